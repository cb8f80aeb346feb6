"""The luma part of RGB errors: what losses and the encoder's corrections weigh higher."""

from __future__ import annotations

from torch import Tensor

from rescale.quality import LUMA_DIRECTION


def stretch_luma(error: Tensor, factor: float) -> Tensor:
    """e + factor n (n.e), with n the direction of BT.601's luma; error is (B, 3, H, W)."""
    direction = error.new_tensor(LUMA_DIRECTION).view(1, 3, 1, 1)
    along = (error * direction).sum(1, keepdim=True)
    return error + factor * along * direction
