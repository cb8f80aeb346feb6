from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rescale_train.soap import EPS, REFRESH, Soap, turned, turned_back


def orthonormal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def losses(optimiser: str, turn: Tensor, steps: int = 60) -> list[float]:
    """Of a filter fitted to random answers to correlated inputs, with the output channels in another basis."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 18, dtype=torch.float64, generator=generator) * torch.logspace(0, -2, 18, dtype=torch.float64)
    mixed = inputs @ orthonormal(18, 2)
    wanted = torch.randn(200, 4, dtype=torch.float64, generator=generator) @ turn.T
    weight = nn.Parameter(torch.zeros(4, 2, 3, 3, dtype=torch.float64))
    adam = torch.optim.AdamW([weight], lr=0.02, betas=(0.9, 0.99), weight_decay=0.0)
    chosen = adam if optimiser == "adamw" else Soap([weight], 0.02, (0.9, 0.99), 0.0)
    found = []
    for _ in range(steps):
        chosen.zero_grad()
        loss = (mixed @ weight.flatten(1).T - wanted).square().mean()
        loss.backward()
        chosen.step()
        found.append(float(loss.detach()))
    return found


def test_bases_are_turned_into_and_back() -> None:
    values = torch.randn(2, 5, 9, 7, dtype=torch.float64)
    bases = [torch.stack([orthonormal(side, side + i) for i in range(2)]) for side in values.shape[1:]]
    there = turned(values, bases)
    torch.testing.assert_close(there, torch.einsum("noki,noa,nkb,nic->nabc", values, *bases))
    torch.testing.assert_close(turned_back(there, bases), values)


def test_what_channels_are_called_does_not_matter() -> None:
    """Channels mixed by a rotation are learnt as fast: Adam's step hangs on the axes, SOAP's does not."""
    straight, turned = torch.eye(4, dtype=torch.float64), orthonormal(4, 1)
    a, b = losses("soap", straight), losses("soap", turned)
    assert a == pytest.approx(b, rel=1e-6)
    assert losses("adamw", straight) != pytest.approx(losses("adamw", turned), rel=1e-3)


def test_correlated_inputs_are_fitted_sooner_than_by_adam() -> None:
    straight = torch.eye(4, dtype=torch.float64)
    assert losses("soap", straight, 300)[-1] < losses("adamw", straight, 300)[-1]


def test_bases_stay_orthonormal_and_become_the_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.zeros(6, 4, 3, 3, dtype=torch.float64))
    optimiser = Soap([weight], 1e-3, (0.9, 0.99), 0.0)
    spread = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    axes = orthonormal(6, 4)
    for _ in range(20 * REFRESH + 1):
        weight.grad = torch.einsum(
            "ab,bcij->acij", axes * spread, torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=generator)
        )
        optimiser.step()
    state = optimiser.state[weight]
    for k in range(3):
        basis = state[f"basis{k}"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))
    assert (axes.T @ state["basis0"]).abs().diagonal().min() > 0.95


def test_the_first_step_only_looks_and_the_next_goes_downhill() -> None:
    weight = nn.Parameter(torch.randn(3, 2, 3, 3))
    optimiser = Soap([weight], 0.01, (0.9, 0.99), 0.0)
    before = weight.detach().clone()
    weight.grad = torch.randn(3, 2, 3, 3)
    optimiser.step()
    assert torch.equal(weight, before)
    optimiser.step()
    assert float(((weight.detach() - before) * weight.grad).sum()) < 0.0


def test_filters_of_one_shape_do_not_touch_each_other() -> None:
    generator = torch.Generator().manual_seed(5)
    shapes = [(4, 2, 3, 3), (3, 5, 3, 3), (4, 2, 3, 3), (4, 2, 3, 3)]
    start = [torch.randn(s, generator=generator) for s in shapes]
    grads = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(2 * REFRESH + 5)]

    def train(chosen: list[int]) -> list[Tensor]:
        weights = [nn.Parameter(start[i].clone()) for i in chosen]
        optimiser = Soap(weights, 0.01, (0.9, 0.99), 1e-3)
        for every in grads:
            for i, w in zip(chosen, weights, strict=True):
                w.grad = every[i]
            optimiser.step()
        return [w.detach() for w in weights]

    together = train([0, 1, 2, 3])
    for i in range(4):
        torch.testing.assert_close(train([i])[0], together[i], rtol=0, atol=1e-4)


def test_weight_decay_shrinks_what_has_no_gradient() -> None:
    weight = nn.Parameter(torch.ones(3, 2, 3, 3))
    optimiser = Soap([weight], 0.1, (0.9, 0.99), 0.5)
    for _ in range(3):
        weight.grad = torch.zeros(3, 2, 3, 3)
        optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 2, 3, 3), 0.95**2))


def test_it_is_the_published_algorithm() -> None:
    """Algorithm 3 of the paper, filter by filter and axis by axis; the first gradient makes the bases and no step."""
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=generator) * (1.0 + i % 3) for i in range(2 * REFRESH + 6)]
    start = torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=generator)
    rate, beta1, beta2, decay = 0.01, 0.8, 0.95, 0.1
    weight = nn.Parameter(start.clone())
    optimiser = Soap([weight], rate, (beta1, beta2), decay)
    for grad in grads:
        weight.grad = grad
        optimiser.step()

    def gram(g: Tensor, k: int) -> Tensor:
        rest = [i for i in range(3) if i != k]
        return torch.tensordot(g, g, dims=(rest, rest))

    def project(g: Tensor, bases: list[Tensor]) -> Tensor:
        return torch.einsum("abc,ai,bj,ck->ijk", g, *bases)

    want = start.flatten(2)
    mean, square = torch.zeros_like(want), torch.zeros_like(want)
    every = [g.flatten(2) for g in grads]
    covariances = [gram(every[0], k) for k in range(3)]
    bases = [torch.linalg.eigh(c).eigenvectors.flip(1) for c in covariances]
    for count, g in enumerate(every[1:], 1):
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * project(g, bases).square()
        step = project(mean / (1 - beta1**count), bases) / ((square / (1 - beta2**count)).sqrt() + EPS)
        want = want * (1 - rate * decay) - rate * project(step, [b.T for b in bases])
        covariances = [beta2 * c + (1 - beta2) * gram(g, k) for k, c in enumerate(covariances)]
        if count % REFRESH == 0:
            for k, c in enumerate(covariances):
                order = (bases[k].T @ c @ bases[k]).diagonal().argsort(descending=True)
                square = square.index_select(k, order)
                bases[k] = torch.linalg.qr(c @ bases[k][:, order]).Q
    torch.testing.assert_close(weight.detach().flatten(2), want)
