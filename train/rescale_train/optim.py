"""Optimisers: AdamW for every parameter, or for the filters Muon or SOAP and AdamW for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rescale_train.config import TrainConfig
from rescale_train.models import DenseBlock
from rescale_train.soap import Soap


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
        trained = [p for p in net.parameters() if p.requires_grad]
        muon = inner_filters(net) if train.optimiser == "muon" else []
        soap = [p for p in trained if p.ndim == 4] if train.optimiser == "soap" else []
        self._flat = {p: nn.Parameter(_rows(p.detach(), _channels_last(p))) for p in muon}
        rest = [p for p in trained if p not in {*muon, *soap}]
        rate, decay = train.lr_peak, train.weight_decay
        self._adamw = torch.optim.AdamW(rest, lr=rate, betas=train.betas, weight_decay=decay, fused=True)
        self._soap = Soap(soap, rate, train.betas, decay, capture=train.compile == "cuda-graph") if soap else None
        self._muon = None
        if muon:
            flat = list(self._flat.values())
            self._muon = torch.optim.Muon(flat, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self._all = [o for o in (self._adamw, self._soap, self._muon) if o is not None]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self._flat:
            p.grad = None
        for optimiser in self._all:
            optimiser.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        """Apply the gradients at a learning rate."""
        for p, flat in self._flat.items():
            flat.grad = None if p.grad is None else _rows(p.grad, _channels_last(p))
        for optimiser in self._all:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()

    def state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        """Moments and counters of a parameter, empty before its first step."""
        owner, key = self._owner(p)
        return {name: torch.as_tensor(value).clone() for name, value in owner.state.get(key, {}).items()}

    def restore(self, p: nn.Parameter, state: dict[str, Tensor]) -> None:
        """Put back what `state_of` gave."""
        owner, key = self._owner(p)
        if isinstance(owner, Soap):
            owner.restore(key, state)
            return
        # Moments in the parameter's own memory format; the step counter is a scalar.
        owner.state[key] = {
            name: torch.empty_like(key).copy_(value) if value.shape == key.shape else value.to(p.device)
            for name, value in state.items()
        }

    def _owner(self, p: nn.Parameter) -> tuple[torch.optim.Optimizer, nn.Parameter]:
        """The optimiser of a parameter, and what stands for the parameter there."""
        if self._muon is not None and p in self._flat:
            return self._muon, self._flat[p]
        if self._soap is not None and p.ndim == 4:
            return self._soap, p
        return self._adamw, p


def _channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def _rows(tensor: Tensor, channels_last: bool) -> Tensor:
    """(out, in, 3, 3) as (out, 9 in), in the order that needs no copy of a tensor of the named memory format."""
    return (tensor.permute(0, 2, 3, 1) if channels_last else tensor).reshape(tensor.shape[0], -1)
