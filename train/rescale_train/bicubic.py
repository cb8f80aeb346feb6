"""Bicubic interpolation, compatible with MATLAB's imresize: reduced with antialiasing it is the reference that the LR picture
is held to, enlarged it is what a picture gives without any learned detail.

Kernel a = -0.5, for reduction widened by the scale, weights normalised, pixels mirrored at the border (edge repeated).
Separable, so it is one matrix per axis.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1.0
    far = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return np.where(x <= 1.0, near, np.where(x <= 2.0, far, 0.0))


@functools.lru_cache(maxsize=64)
def bicubic_matrix(size: int, scale: int) -> npt.NDArray[np.float64]:
    """Weights that reduce an axis of `size` pixels by `scale`.

    Returns:
        (size // scale, size) float64; each row sums to 1. Do not modify: the result is cached.
    """
    out = size // scale
    centre = (np.arange(out) + 0.5) * scale - 0.5
    first = np.floor(centre - 2.0 * scale).astype(np.int64)
    taps = first[:, None] + np.arange(4 * scale + 2)
    weight = _cubic((taps - centre[:, None]) / scale)
    weight /= weight.sum(1, keepdims=True)
    return _mirrored(taps, weight, size)


@functools.lru_cache(maxsize=64)
def enlarging_matrix(size: int, scale: int) -> npt.NDArray[np.float64]:
    """Weights that enlarge an axis of `size` pixels: (scale * size, size) float64, each row sums to 1. Do not modify it."""
    at = (np.arange(scale * size) + 0.5) / scale - 0.5
    taps = np.floor(at).astype(np.int64)[:, None] + np.arange(-1, 3)
    return _mirrored(taps, _cubic(taps - at[:, None]), size)


def _mirrored(taps: npt.NDArray[np.int64], weight: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Taps that reach over the border come back from it, the edge repeated."""
    inside = np.mod(taps, 2 * size)
    inside = np.where(inside < size, inside, 2 * size - 1 - inside)
    matrix = np.zeros((len(taps), size))
    np.add.at(matrix, (np.arange(len(taps))[:, None], inside), weight)
    matrix.setflags(write=False)
    return matrix


def bicubic_picture(picture: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """Reduce a uint8 (H, W, C) picture whose sides are multiples of `scale`; rounded and clamped to uint8."""
    return _applied(picture, bicubic_matrix(picture.shape[0], scale), bicubic_matrix(picture.shape[1], scale))


def enlarge_picture(picture: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """Enlarge a uint8 (h, w, C) picture; rounded and clamped to uint8."""
    return _applied(picture, enlarging_matrix(picture.shape[0], scale), enlarging_matrix(picture.shape[1], scale))


def _applied(picture: npt.NDArray[np.uint8], rows: npt.NDArray[np.float64], cols: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    other = np.einsum("ih,hwc->iwc", rows, picture.astype(np.float64), optimize=True)
    other = np.einsum("jw,iwc->ijc", cols, other, optimize=True)
    result: npt.NDArray[np.uint8] = np.clip(np.rint(other), 0, 255).astype(np.uint8)
    return result


def bicubic_batch(x: Tensor, scale: int) -> Tensor:
    """Reduce (B, C, H, W) floats; neither rounded nor clamped, as IRN does while training."""
    rows, cols = (_matrix_on(n, scale, x.dtype, x.device) for n in x.shape[2:])
    return rows @ x @ cols.T


@functools.lru_cache(maxsize=16)
def _matrix_on(size: int, scale: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`bicubic_matrix`, kept on the device: a copy to it waits for all that is under way there."""
    with torch.inference_mode(False):
        return torch.from_numpy(bicubic_matrix(size, scale).copy()).to(device, dtype)
