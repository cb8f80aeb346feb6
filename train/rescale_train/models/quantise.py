"""Rounding to 8 bits with a straight-through gradient.

The codes are those of the exported graphs: round half to even, after clamping. Gradients pass through both the rounding
and the clamp, as in IRN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rescale.codes import ALPHA_MAX, ALPHA_MIN, LOGIT_MARGIN


def straight_through(value: Tensor, replacement: Tensor) -> Tensor:
    """`replacement` in the forward pass, the gradient of `value` in the backward pass."""
    return value + (replacement - value).detach()


def quantise_rgb(x: Tensor) -> Tensor:
    """[0, 1] floats to the nearest multiple of 1/255; any shape. Values outside are clamped."""
    return straight_through(x, torch.round(x.clamp(0.0, 1.0) * 255.0) / 255.0)


def quantise_alpha(u: Tensor) -> Tensor:
    """(0, 1) floats to the nearest of the 255 alpha levels; code 0 is never used.

    u = (code - 1) / 254, so that u = 1/2 is exactly code 128.
    """
    steps = float(ALPHA_MAX - ALPHA_MIN)
    return straight_through(u, torch.round(u.clamp(0.0, 1.0) * steps) / steps)


def quantise_latent(s: Tensor) -> Tensor:
    """(-1, 1) floats to the nearest of the 255 latent levels; code 128 is exactly 0."""
    return straight_through(s, torch.round(s.clamp(-1.0, 1.0) * 127.0) / 127.0)


def logit(u: Tensor) -> Tensor:
    """Inverse of the sigmoid, of u clamped to [1/512, 511/512]: the paper is silent here; this keeps the flow exact."""
    u = u.clamp(LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
    return torch.log(u / (1.0 - u))
