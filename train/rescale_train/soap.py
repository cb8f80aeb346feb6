"""SOAP (Vyas et al., arXiv 2409.11321): Adam in the eigenbasis of Shampoo's preconditioner.

Filters of a coupling network act together: a change that all of a channel's values share moves the LR, alpha and s far more
than the same change spread at random, which bounds Adam's rate for all directions by that of a few. SOAP finds these
directions from the gradients of a filter and takes Adam's step along each by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

REFRESH = 10
"""Steps between two turns of the bases towards the eigenvectors."""

EPS = 1e-8


def _modes(grad: Tensor) -> list[Tensor]:
    """G G^T along each axis of (out, 9, in)."""
    out, taps, inputs = grad.shape
    rows, columns, middle = grad.reshape(out, -1), grad.reshape(-1, inputs), grad.transpose(0, 1).reshape(taps, -1)
    return [rows @ rows.T, middle @ middle.T, columns.T @ columns]


def _turned(values: Tensor, bases: list[Tensor]) -> Tensor:
    """(out, 9, in) in the bases, whose columns are the directions."""
    out, taps, inputs = values.shape
    values = (bases[0].T @ values.reshape(out, -1)).view(out, taps, inputs)
    return bases[1].T @ (values @ bases[2])


def _turned_back(values: Tensor, bases: list[Tensor]) -> Tensor:
    """The inverse of `_turned`."""
    out, taps, inputs = values.shape
    values = bases[1] @ (values @ bases[2].T)
    return (bases[0] @ values.reshape(out, -1)).view(out, taps, inputs)


class Soap(torch.optim.Optimizer):
    """For 4-d filters (out, in, 3, 3), in channels_last without a copy.

    Args:
        params: filters.
        lr: learning rate, as Adam's.
        betas: of the mean and of the mean square; the latter also of the preconditioner.
        weight_decay: decoupled.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. The first of a filter only looks at its gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad.permute(0, 2, 3, 1).flatten(1, 2), group)

    def _update(self, p: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        beta1, beta2 = group["betas"]
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
            for k, gram in enumerate(_modes(grad)):
                state[f"gram{k}"], state[f"basis{k}"] = gram, torch.linalg.eigh(gram).eigenvectors.flip(1).contiguous()
            return
        bases = [state[f"basis{k}"] for k in range(3)]
        state["step"] += 1
        count = int(state["step"])
        turned = _turned(grad, bases)
        state["mean"].lerp_(grad, 1.0 - beta1)
        state["square"].lerp_(turned.square(), 1.0 - beta2)
        scale = (state["square"] / (1.0 - beta2**count)).sqrt_().add_(EPS)
        step = _turned_back(_turned(state["mean"], bases).div_(scale), bases)
        if decay:
            p.mul_(1.0 - rate * decay)
        p.sub_(step.view(p.shape[0], *p.shape[2:], p.shape[1]).permute(0, 3, 1, 2), alpha=rate / (1.0 - beta1**count))
        for k, gram in enumerate(_modes(grad)):
            state[f"gram{k}"].lerp_(gram, 1.0 - beta2)
        if count % REFRESH == 0:
            self._refresh(state)

    @staticmethod
    def _refresh(state: dict[str, Tensor]) -> None:
        """One power iteration and a QR decomposition of each basis, its directions in order of their gradient's size."""
        for k in range(3):
            gram, basis = state[f"gram{k}"], state[f"basis{k}"]
            product = gram @ basis
            order = (basis * product).sum(0).argsort(descending=True)
            state["square"] = state["square"].index_select(k, order)
            state[f"basis{k}"] = torch.linalg.qr(product[:, order]).Q
