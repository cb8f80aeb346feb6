"""Bicubic enlargement, compatible with MATLAB's imresize: what a picture without any learned detail gives."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from rescale_bench.pictures import Picture
from rescale_train.bicubic import bicubic_picture


@functools.lru_cache(maxsize=64)
def _matrix(size: int, scale: int) -> npt.NDArray[np.float64]:
    """Weights that enlarge an axis of `size` pixels: (scale * size, size) float64, each row sums to 1. Do not modify it."""
    out = scale * size
    at = (np.arange(out) + 0.5) / scale - 0.5
    taps = np.floor(at).astype(np.int64)[:, None] + np.arange(-1, 3)
    x = np.abs(taps - at[:, None])
    weight = np.where(x <= 1.0, 1.5 * x**3 - 2.5 * x**2 + 1.0, -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0)
    mirrored = np.mod(taps, 2 * size)
    mirrored = np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out)[:, None], mirrored), weight)
    matrix.setflags(write=False)
    return matrix


def enlarge(picture: Picture, scale: int) -> Picture:
    """uint8 (h, w, 3) -> uint8 (scale * h, scale * w, 3): kernel a = -0.5, pixels mirrored at the border."""
    rows, cols = _matrix(picture.shape[0], scale), _matrix(picture.shape[1], scale)
    large = np.einsum("ih,hwc->iwc", rows, picture.astype(np.float64), optimize=True)
    large = np.einsum("jw,iwc->ijc", cols, large, optimize=True)
    result: Picture = np.clip(np.rint(large), 0, 255).astype(np.uint8)
    return result


def reduce(picture: Picture, scale: int) -> Picture:
    """uint8 (H, W, 3) of any size -> uint8 (ceil(H/scale), ceil(W/scale), 3), antialiased; the last row and column repeat."""
    short = [(0, -n % scale) for n in picture.shape[:2]]
    return bicubic_picture(np.pad(picture, (*short, (0, 0)), mode="edge"), scale)
