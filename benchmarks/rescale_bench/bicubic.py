"""Bicubic pictures of any size, as the measured baseline."""

from __future__ import annotations

import numpy as np

from rescale_bench.pictures import Picture
from rescale_train.bicubic import bicubic_picture


def reduce(picture: Picture, scale: int) -> Picture:
    """uint8 (H, W, 3) of any size -> uint8 (ceil(H/scale), ceil(W/scale), 3), antialiased; the last row and column repeat."""
    short = [(0, -n % scale) for n in picture.shape[:2]]
    return bicubic_picture(np.pad(picture, (*short, (0, 0)), mode="edge"), scale)
