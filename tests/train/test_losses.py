from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rescale.errors import ConfigError
from rescale.quality import LUMA
from rescale_export.probe import probe_picture
from rescale_train.bicubic import bicubic_batch
from rescale_train.config import LossConfig, Recipe
from rescale_train.losses import PSNR_WEIGHT, ROUNDING, Objective, charbonnier, log_error, weigh_luma
from rescale_train.models import RescalingNet, quantise

MODELS = ["irn", "irn_a", "irn_m", "dlv_irn_a", "dlv_irn_m"]


@pytest.fixture
def batch(as_batch: Callable[..., Tensor]) -> Tensor:
    return as_batch(probe_picture(32, 32, 1), probe_picture(32, 32, 2))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_terms_are_those_of_equation_2(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor, model: str, scale: int
) -> None:
    weights = LossConfig(hr=2.0, lr=3.0, z=5.0, z_mse=7.0)
    recipe = recipe_of(model, scale, loss=weights)
    net = net_of(recipe.net, 0.05, True)
    reference = bicubic_batch(batch, scale)
    got = {k: float(v) for k, v in Objective(net, recipe)(batch, reference).items()}

    down = net.downscale(batch)
    z_hat = net.decode_z(down.lr, down.code).numpy()
    restored, z = net.upscale(down.lr, torch.from_numpy(z_hat)).numpy(), down.z.numpy()
    want = {
        "hr": np.sqrt((restored - batch.numpy()).astype(np.float64) ** 2 + 1e-6).sum() / 2,
        "lr": ((down.lr_raw.numpy() - reference.numpy()).astype(np.float64) ** 2).sum() / 2,
        "z": (z.astype(np.float64) ** 2).sum() / 2,
    }
    want["total"] = 2.0 * want["hr"] + 3.0 * want["lr"] + 5.0 * want["z"]
    if model.endswith("_m"):
        want["z_mse"] = ((z - z_hat).astype(np.float64) ** 2).sum() / 2
        want["total"] += 7.0 * want["z_mse"]
    assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_lr_weight_is_scale_squared_by_default(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], scale: int
) -> None:
    assert Objective(net_of(recipe_of("irn", scale).net), recipe_of("irn", scale)).lr_weight == scale**2
    assert Objective(net_of(recipe_of("irn", scale).net), recipe_of("irn", scale, loss=LossConfig(lr=3.0))).lr_weight == 3.0


@torch.no_grad()
def test_the_logarithmic_hr_term(net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor) -> None:
    recipe = recipe_of("irn_a", loss=LossConfig(hr_kind="psnr"))
    net = net_of(recipe.net, 0.05, True)
    got = Objective(net, recipe)(batch, bicubic_batch(batch, 2))
    down = net.downscale(batch)
    error = (net.upscale(down.lr) - batch).numpy().astype(np.float64)
    crops = [0.004 * e.size * np.log(1.0 + np.mean(e**2) * 12.0 * 255.0**2) for e in error]
    assert float(got["hr"]) == pytest.approx(np.mean(crops), rel=1e-4)
    assert float(got["total"]) == pytest.approx(float(got["hr"] + 4.0 * got["lr"] + got["z"]), rel=1e-5)


@pytest.mark.parametrize("level", [3e-2, 1e-1, 1.0])
def test_a_decibel_is_worth_the_same_on_every_crop(level: float) -> None:
    error = level * torch.linspace(-1.0, 1.0, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    gain = (log_error(error) - log_error(error / 10.0 ** (1.0 / 20.0))) / error[0].numel()
    assert gain.numpy() == pytest.approx(PSNR_WEIGHT * 0.1 * np.log(10.0), rel=0.03)


def test_the_logarithm_pulls_as_the_distance_where_it_says_so_and_not_below_rounding() -> None:
    sign = torch.tensor([-1.0, 1.0]).repeat(24).reshape(1, 3, 4, 4)

    def pull(of: Callable[[Tensor], Tensor], level: float) -> float:
        error = (level * sign).requires_grad_()
        of(error).sum().backward()
        assert error.grad is not None
        return float(error.grad.abs().mean())

    assert pull(log_error, 0.008) == pytest.approx(pull(charbonnier, 0.008), rel=0.05)
    assert pull(log_error, 0.1) < 0.1 * pull(charbonnier, 0.1), "a lost crop does not decide"
    assert pull(log_error, 0.1 * ROUNDING**0.5) < 0.3 * pull(log_error, ROUNDING**0.5)
    assert log_error(torch.zeros(1, 3, 4, 4)).item() == 0.0


@pytest.mark.parametrize("knee", [20.0, 37.0, 50.0])
def test_above_the_knee_a_crop_counts_as_its_squared_error(knee: float) -> None:
    shape = torch.linspace(-1.0, 1.0, 3 * 8 * 8, dtype=torch.float64).reshape(1, 3, 8, 8)
    unit = shape / shape.square().mean().sqrt()
    r = 10.0 ** (-knee / 10.0)
    for offset in (-10.0, 0.0, 25.0):
        m = r * 10.0 ** (-offset / 10.0)
        assert log_error(unit * m**0.5, knee).item() == pytest.approx(PSNR_WEIGHT * 192 * np.log1p(m / r), rel=1e-9)
    good = log_error(unit * (1e-4 * r) ** 0.5, knee).item()
    assert good == pytest.approx(PSNR_WEIGHT * 192 * 1e-4, rel=1e-3)
    assert log_error(unit, 0.0).item() == log_error(unit, -10.0 * np.log10(ROUNDING)).item(), "0 is the knee of rounding"


@torch.no_grad()
def test_the_objective_takes_its_knee(net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor) -> None:
    recipe = recipe_of("irn_a", loss=LossConfig(hr_kind="psnr", hr_knee=30.0, luma=3.0))
    net = net_of(recipe.net, 0.05, True)
    error = weigh_luma(net.upscale(net.downscale(batch).lr) - batch, 3.0)
    got = Objective(net, recipe)(batch, bicubic_batch(batch, 2))["hr"]
    assert torch.allclose(got, log_error(error, 30.0).mean())
    assert not torch.allclose(got, log_error(error).mean())


@pytest.mark.parametrize("luma", [0.0, 0.5, 3.0])
def test_luma_counts_more_and_the_rest_of_the_colour_as_before(luma: float) -> None:
    error = torch.randn(2, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    weights = torch.tensor(LUMA, dtype=torch.float64)
    y_error = torch.einsum("bchw,c->bhw", error, weights)
    want = error.square().sum(1) + luma * y_error.square() / weights.square().sum()
    got = weigh_luma(error, luma)
    assert torch.allclose(got.square().sum(1), want)
    colour = error - (y_error / weights.square().sum())[:, None] * weights.view(1, 3, 1, 1)
    assert torch.allclose(weigh_luma(colour, luma), colour), "an error without luma counts as before"


def test_the_objective_weighs_the_luma_of_the_restored_picture_only(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor
) -> None:
    reference = bicubic_batch(batch, 2)
    for kind, of in (("charbonnier", charbonnier), ("psnr", log_error)):
        terms = []
        for luma in (0.0, 3.0):
            recipe = recipe_of(loss=LossConfig(luma=luma, hr_kind=kind))
            net = net_of(recipe.net, 0.05, True)
            terms.append(Objective(net, recipe)(batch, reference))
        down = net.downscale(batch)
        error = net.upscale(down.lr, net.decode_z(down.lr, down.code)) - batch
        assert torch.allclose(terms[0]["hr"], of(error).sum() / len(batch))
        assert torch.allclose(terms[1]["hr"], of(weigh_luma(error, 3.0)).sum() / len(batch))
        assert (terms[1]["lr"], terms[1]["z"]) == (terms[0]["lr"], terms[0]["z"])


def test_only_the_total_carries_a_gradient(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor
) -> None:
    recipe = recipe_of("dlv_irn_m")
    net = net_of(recipe.net, 0.05, True)
    terms = Objective(net, recipe)(batch, bicubic_batch(batch, 2))
    assert [k for k, v in terms.items() if v.requires_grad] == ["total"]
    terms["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


ALONE = {
    "hr": LossConfig(hr=1.0, lr=1e-30, z=0.0, z_mse=0.0),
    "lr": LossConfig(hr=0.0, lr=1.0, z=0.0, z_mse=0.0),
    "z": LossConfig(hr=0.0, lr=1e-30, z=1.0, z_mse=0.0),
    "z_mse": LossConfig(hr=0.0, lr=1e-30, z=0.0, z_mse=1.0),
}
"""Weights that leave one term in the total; an LR weight of 0 would be the default."""


PARTS = (".F.", ".G.", ".H.", "autoencoder.encoder.", "autoencoder.decoder.")
REACHED = {"hr": PARTS, "lr": PARTS[:3], "z": PARTS[:3], "z_mse": PARTS}
"""Whose parameters each term trains."""


@pytest.mark.parametrize("hr_kind", ["charbonnier", "psnr"])
def test_the_gradient_of_each_term_is_that_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch,
    net_of: Callable[..., RescalingNet],
    recipe_of: Callable[..., Recipe],
    batch: Tensor,
    hr_kind: str,
) -> None:
    """With rounding errors that stay as they are: that is the function whose gradient straight-through rounding has. The step is
    so small because the slope of a ReLU jumps."""
    recipes = {term: recipe_of("irn_m", net={"blocks": (2,)}, loss=replace(ALONE[term], hr_kind=hr_kind)) for term in ALONE}
    net = net_of(recipes["hr"].net, 0.05, True).double()
    reference = bicubic_batch(batch, 2).double()

    def terms(term: str = "hr") -> dict[str, Tensor]:
        return Objective(net, recipes[term])(batch.double(), reference)

    parameters = list(net.parameters())
    gradients = {term: torch.autograd.grad(terms(term)["total"], parameters) for term in ALONE}
    errors: list[Tensor] = []
    monkeypatch.setattr(quantise, "straight_through", lambda v, to: errors.append((to - v).detach()) or to)
    terms()
    assert len(errors) == 2, "those of RGB and latent"

    def terms_at(step: float, direction: list[Tensor]) -> dict[str, Tensor]:
        turn = iter(errors)
        monkeypatch.setattr(quantise, "straight_through", lambda v, to: v + next(turn))
        before = [p.clone() for p in parameters]
        for p, d in zip(parameters, direction, strict=True):
            p += step * d
        found = terms()
        for p, b in zip(parameters, before, strict=True):
            p.copy_(b)
        return found

    reached: dict[str, list[str]] = {term: [] for term in ALONE}
    for part in PARTS:
        draw = generator(1)
        inside = [part in name for name, _ in net.named_parameters()]
        direction = [torch.randn(p.shape, generator=draw, dtype=p.dtype) * i for p, i in zip(parameters, inside, strict=True)]
        with torch.no_grad():
            after, before = (terms_at(step, direction) for step in (1e-8, -1e-8))
        for term in ALONE:
            slope = float(after[term] - before[term]) / 2e-8
            got = sum(float((g * d).sum()) for g, d in zip(gradients[term], direction, strict=True))
            assert got == pytest.approx(slope, rel=1e-4, abs=1e-4), (term, part)
            if abs(slope) > 1e-2:
                reached[term].append(part)
    assert {term: tuple(parts) for term, parts in reached.items()} == REACHED


@torch.no_grad()
def test_noise_changes_the_restored_picture_only_and_comes_from_the_generator(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor
) -> None:
    reference = bicubic_batch(batch, 2)
    net = net_of(recipe_of().net, 0.05, True)
    plain = Objective(net, recipe_of())(batch, reference)
    noisy = Objective(net, recipe_of(lr_noise=0.05, lr_noise_share=1.0))
    first, again, other = (noisy(batch, reference, generator(s)) for s in (1, 1, 2))
    assert (first["lr"], first["z"]) == (plain["lr"], plain["z"])
    assert first["hr"] == again["hr"]
    assert first["hr"] != other["hr"]
    assert first["hr"] > plain["hr"]
    silent = Objective(net, recipe_of(lr_noise=0.05, lr_noise_share=0.0))
    assert silent(batch, reference, generator(1))["hr"] == plain["hr"]


@torch.no_grad()
def test_random_z_comes_from_the_generator(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor
) -> None:
    reference = bicubic_batch(batch, 2)
    net = net_of(recipe_of().net, 0.05, True)
    zero = Objective(net, recipe_of())(batch, reference)["hr"]
    drawn = Objective(net, recipe_of(z="random"))
    first, again, other = (drawn(batch, reference, generator(s))["hr"] for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first > zero


@torch.no_grad()
def test_the_lr_term_can_be_charbonnier(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor
) -> None:
    reference = bicubic_batch(batch, 2)
    net = net_of(recipe_of("irn_a").net, 0.05, True)
    squared = Objective(net, recipe_of("irn_a", loss=LossConfig(lr=3.0)))(batch, reference)
    got = Objective(net, recipe_of("irn_a", loss=LossConfig(lr=3.0, lr_kind="charbonnier")))(batch, reference)
    error = (net.downscale(batch).lr_raw - reference).double().numpy()
    want = np.sqrt(error**2 + 1e-6).sum() / 2
    assert float(got["lr"]) == pytest.approx(want, rel=1e-5)
    assert (got["hr"], got["z"]) == (squared["hr"], squared["z"])
    assert float(got["total"] - squared["total"]) == pytest.approx(3.0 * (want - float(squared["lr"])), rel=1e-3)


@pytest.mark.parametrize("model", ["irn", "irn_a", "irn_m"])
@torch.no_grad()
def test_noise_is_on_the_colours_of_some_crops_and_never_on_alpha(
    monkeypatch: pytest.MonkeyPatch,
    net_of: Callable[..., RescalingNet],
    recipe_of: Callable[..., Recipe],
    as_batch: Callable[..., Tensor],
    model: str,
) -> None:
    many = as_batch(*[probe_picture(64, 64, i) for i in range(24)])
    net = net_of(recipe_of(model).net, 0.05, True)
    seen: list[Tensor] = []
    upscale = net.upscale
    monkeypatch.setattr(net, "upscale", lambda lr, z: seen.append(lr) or upscale(lr, z))
    Objective(net, recipe_of(model, lr_noise=0.01))(many, bicubic_batch(many, 2), generator(1))
    clean, noisy = net.downscale(many).lr, seen[0]
    assert torch.equal(noisy[:, 3:], clean[:, 3:])
    assert 0.0 <= noisy[:, :3].min() <= noisy[:, :3].max() <= 1.0
    changed = (noisy != clean).flatten(1).any(1)
    assert 6 <= int(changed.sum()) <= 18
    inside = (clean[changed][:, :3] > 0.05) & (clean[changed][:, :3] < 0.95)
    assert float((noisy - clean)[changed][:, :3][inside].std()) == pytest.approx(0.01, rel=0.05)


@torch.no_grad()
def test_the_lr_reference_can_be_clamped_to_what_8_bits_hold(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], as_batch: Callable[..., Tensor]
) -> None:
    y, x = np.mgrid[0:32, 0:32]
    bars = np.repeat(np.where((x // 5 + y // 7) % 2, 255, 0).astype(np.uint8)[:, :, None], 3, 2)
    batch = as_batch(bars)
    reference = bicubic_batch(batch, 2)
    assert reference.min() < -0.02
    net = net_of(recipe_of().net, 0.05, True)
    free, clamped = (Objective(net, recipe_of(loss=LossConfig(lr_clamp=c)))(batch, reference) for c in (False, True))
    want = (net.downscale(batch).lr_raw - reference.clamp(0.0, 1.0)).square().sum()
    assert float(clamped["lr"]) == pytest.approx(float(want), rel=1e-5)
    assert clamped["lr"] != free["lr"]
    assert (clamped["hr"], clamped["z"]) == (free["hr"], free["z"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ["hr", "lr", "z", "z_mse"])
def test_a_weight_that_would_train_nothing_or_away_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"train.loss.{name}: 0 to 1e9"):
        LossConfig(**{name: value})
