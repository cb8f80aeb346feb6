"""The luma part of RGB errors: what losses and the encoder's corrections weigh higher."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rescale.quality import LUMA_DIRECTION


@functools.lru_cache(maxsize=16)
def _direction(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept on the device: a copy to it waits for all that is under way there."""
    with torch.inference_mode(False):
        return torch.tensor(LUMA_DIRECTION, dtype=dtype, device=device).view(1, 3, 1, 1)


def stretch_luma(error: Tensor, factor: float) -> Tensor:
    """e + factor n (n.e), with n the direction of BT.601's luma; error is (B, 3, H, W)."""
    direction = _direction(error.dtype, error.device)
    along = (error * direction).sum(1, keepdim=True)
    return error + factor * along * direction
