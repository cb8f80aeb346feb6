"""Padding a picture to the network's grid, and undoing it. Pure array functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.errors import InputError

Array = npt.NDArray[np.uint8]

MAX_SIDE = 65535
"""Longest accepted side of an HR picture in pixels."""


def check_rgb(image: Any) -> Array:
    """Return `image` if it is uint8 (H, W, 3) with H and W from 1 to `MAX_SIDE`.

    Raises:
        InputError: another dtype or shape; the message says which.
    """
    array = check_colours(image)
    check_sides(array.shape[1], array.shape[0])
    return array


def check_colours(image: Any) -> Array:
    """Return `image` if it is uint8 (H, W, 3), of any size.

    Raises:
        InputError: another dtype or shape; the message says which.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"an array was expected, got {type(image).__name__}; open files with rescale.read_picture")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"a uint8 array of shape (H, W, 3) was expected, got {image.dtype} {image.shape}")
    return image


def check_sides(width: int, height: int, name: str = "") -> None:
    """Check the size of an HR picture, whose file may be named.

    Raises:
        InputError: a side is empty or above `MAX_SIDE`.
    """
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        wanted = f"sides of 1 to {MAX_SIDE} pixels were expected, got {width}x{height}; cut a larger picture into parts"
        raise InputError(f"{name}: {wanted}" if name else wanted)


def check_pixels(width: int, height: int, max_pixels: int, name: str) -> None:
    """Check a file's size before it is decoded.

    Raises:
        InputError: more than `max_pixels` pixels.
    """
    if width * height > max_pixels:
        raise InputError(f"{name}: {width}x{height} is above the limit of {max_pixels} pixels", "raise it with --max-pixels")


def check_plane(plane: Any, shape: tuple[int, ...], what: str) -> Array:
    """Return `plane` if it is uint8 and of this shape.

    Raises:
        InputError: it is not; the message begins with `what`.
    """
    if not isinstance(plane, np.ndarray):
        raise InputError(f"{what}: a uint8 array of shape {shape} was expected, got {type(plane).__name__}")
    if plane.dtype != np.uint8 or plane.shape != shape:
        raise InputError(f"{what}: a uint8 array of shape {shape} was expected, got {plane.dtype} {plane.shape}")
    return plane


def pad_planes(planes: npt.NDArray[np.float32], multiple: int) -> npt.NDArray[np.float32]:
    """Extend (N, C, h, w) at the bottom and right by repeating its last row and column."""
    bottom, right = -planes.shape[2] % multiple, -planes.shape[3] % multiple
    return np.pad(planes, ((0, 0), (0, 0), (0, bottom), (0, right)), mode="edge") if bottom or right else planes
