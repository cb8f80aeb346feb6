"""Optimisers: AdamW for every parameter, or Muon for the inner filters of the dense blocks and AdamW for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rescale_train.config import TrainConfig
from rescale_train.models import DenseBlock


def inner_filters(net: nn.Module) -> list[nn.Parameter]:
    """Weights of the second to fourth convolution of every dense block: the matrices that Muon is made for.

    The first convolution and the last, which starts at zero, stay with AdamW, as Muon's authors advise for first and last
    layers.
    """
    blocks = [m for m in net.modules() if isinstance(m, DenseBlock)]
    weights = [p for block in blocks for conv in block.convs[1:4] for p in [conv.weight] if isinstance(p, nn.Parameter)]
    return [w for w in weights if w.requires_grad]


class Optimiser:
    """One step over all parameters at one learning rate.

    Muon's updates are scaled to the root mean square of AdamW's (``match_rms_adamw``), so that one rate serves both.

    Args:
        net: its parameters that require gradients are optimised; they keep their memory format afterwards.
        train: ``optimiser``, ``betas``, ``weight_decay``.
    """

    def __init__(self, net: nn.Module, train: TrainConfig) -> None:
        filters = inner_filters(net) if train.optimiser == "muon" else []
        self._flat = {p: nn.Parameter(_rows(p.detach(), _channels_last(p))) for p in filters}
        rest = [p for p in net.parameters() if p.requires_grad and p not in self._flat]
        self._adamw = torch.optim.AdamW(rest, lr=train.lr_peak, betas=train.betas, weight_decay=train.weight_decay, fused=True)
        self._muon = None
        if filters:
            decay = train.weight_decay
            flat = list(self._flat.values())
            self._muon = torch.optim.Muon(flat, lr=train.lr_peak, weight_decay=decay, adjust_lr_fn="match_rms_adamw")

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self._flat:
            p.grad = None
        self._adamw.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        """Apply the gradients at a learning rate."""
        for optimiser in (self._adamw, self._muon):
            if optimiser is not None:
                for group in optimiser.param_groups:
                    group["lr"] = rate
        self._adamw.step()
        if self._muon is not None:
            for p, flat in self._flat.items():
                flat.grad = None if p.grad is None else _rows(p.grad, _channels_last(p))
            self._muon.step()  # type: ignore[no-untyped-call]

    def state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        """Moments and counters of a parameter, empty before its first step."""
        flat = self._flat.get(p)
        state = self._adamw.state.get(p, {}) if flat is None or self._muon is None else self._muon.state.get(flat, {})
        return {key: torch.as_tensor(value) for key, value in state.items()}

    def restore(self, p: nn.Parameter, state: dict[str, Tensor]) -> None:
        """Put back what `state_of` gave."""
        flat = self._flat.get(p)
        if flat is None or self._muon is None:
            # Moments in the parameter's own memory format; the step counter is a scalar.
            self._adamw.state[p] = {
                k: torch.empty_like(p).copy_(v) if v.shape == p.shape else v.to(p.device) for k, v in state.items()
            }
        else:
            self._muon.state[flat] = {k: torch.empty_like(flat).copy_(v) for k, v in state.items()}


def _channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def _rows(tensor: Tensor, channels_last: bool) -> Tensor:
    """(out, in, 3, 3) as (out, 9 in), in the order that needs no copy of a tensor of the named memory format."""
    return (tensor.permute(0, 2, 3, 1) if channels_last else tensor).reshape(tensor.shape[0], -1)
