"""Fidelity of two pictures, as the field measures it. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.errors import InputError
from rescale.image import check_colours

Picture = npt.NDArray[np.uint8]


LUMA = (65.481, 128.553, 24.966)
"""Weights of R, G and B in [0, 1] in BT.601's Y of 16 to 235."""

LUMA_DIRECTION = tuple(w / math.hypot(*LUMA) for w in LUMA)
"""The same as a unit vector: the direction of RGB errors that Y sees."""

LUMA_WEIGHT = 3.0
"""What the square of an error's luma counts beside the square of the error, where LR codes are chosen by what they restore."""


def error_metric() -> npt.NDArray[np.float32]:
    """(3, 3) M, with which an RGB error e counts e M e: its square, and its luma's `LUMA_WEIGHT` times."""
    return np.asarray(np.eye(3) + LUMA_WEIGHT * np.outer(LUMA_DIRECTION, LUMA_DIRECTION), np.float32)


def luma(picture: Picture) -> npt.NDArray[np.float64]:
    """BT.601 Y of an RGB picture in MATLAB's range 16 to 235, not rounded.

    Args:
        picture: uint8 (H, W, 3).

    Returns:
        float64 (H, W).
    """
    weights = np.array(LUMA) / 255.0
    return picture.astype(np.float64) @ weights + 16.0


def counted_border(picture: npt.NDArray[np.generic], border: int) -> int:
    """The border that `crop_border` removes of a picture: `border`, or 0 if nothing would be left.

    Raises:
        InputError: the border is negative.
    """
    if border < 0:
        raise InputError(f"border {border}: 0 or more pixels are wanted")
    return border if min(picture.shape[:2]) > 2 * border else 0


def crop_border(picture: npt.NDArray[np.generic], border: int) -> npt.NDArray[np.generic]:
    """Remove `border` pixels on every side; a picture too small for that is returned whole."""
    border = counted_border(picture, border)
    return picture[border:-border, border:-border] if border > 0 else picture


ROWS = 256
"""Rows that are compared at a time: a large picture in float64 would take eight times its memory."""


def psnr(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, of two uint8 arrays; infinite for equal ones.

    Raises:
        InputError: another dtype, whose peak is not 255; different shapes; or nothing to compare.
    """
    for array in (a, b):
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"PSNR of uint8 arrays is wanted, peak 255, got {got}: convert both first")
    return _psnr(a, b, lambda part: part.astype(np.float64))


def psnr_y(a: Picture, b: Picture, border: int = 0) -> float:
    """PSNR in dB of the Y channels of two uint8 (H, W, 3) pictures, cropped as by `crop_border`.

    Raises:
        InputError: another dtype or shape, nothing to compare, or a negative border.
    """
    check_colours(a)
    check_colours(b)
    return _psnr(crop_border(a, border), crop_border(b, border), luma)


def _psnr(a: npt.NDArray[Any], b: npt.NDArray[Any], values: Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]]) -> float:
    if a.shape != b.shape:
        raise InputError(f"PSNR of different shapes: {a.shape} and {b.shape}: bring both to one size first")
    if not a.size:
        raise InputError(f"PSNR of empty arrays: {a.shape}: nothing to compare")
    total, count = 0.0, 0
    for start in range(0, a.shape[0], ROWS):
        difference = values(a[start : start + ROWS]) - values(b[start : start + ROWS])
        total, count = total + float(np.sum(np.square(difference))), count + difference.size
    error = total / count
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)
