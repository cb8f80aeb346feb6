"""8-bit planes as bytes: the coded form of auxiliary data, and the three places of -A's fourth plane.

A plane is coded as a gray PNG: its filters and deflate do the entropy coding, every reader of the LR file has them, and the
size is known from its header before anything is inflated.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rescale import png
from rescale.codes import ALPHA_NEUTRAL
from rescale.decode import decode_plane
from rescale.errors import InputError

Array = npt.NDArray[np.uint8]


def encode(planes: Array) -> bytes:
    """(C, h, w) or (h, w) uint8 -> one gray PNG of C * h rows."""
    return png.encode(planes.reshape(-1, planes.shape[-1]), level=9)


def decode(data: bytes, shape: tuple[int, ...], name: str) -> Array:
    """Inverse of `encode`, bounded by the shape that is expected.

    Raises:
        InputError: damaged, or of another size; found before pixels are decoded.
    """
    width, height = shape[-1], int(np.prod(shape[:-1]))
    header = png.read_header(png.read_chunks(data, name), name)
    if (header.width, header.height, header.depth, header.colour) != (width, height, 8, 0):
        raise InputError(f"{name}: a coded plane of {header.width}x{header.height}, wanted {width}x{height} gray with 8 bits")
    return decode_plane(data, name, width * height).reshape(shape)


def add_strip(rgb: Array, plane: Array) -> Array:
    """Append a plane below a picture: three of its rows in R, G and B of one row. (h, w, 3), (h, w) -> (h + ceil(h/3), w, 3)."""
    height, width = plane.shape
    rows = -(-height // 3)
    padded = np.full((rows * 3, width), ALPHA_NEUTRAL, np.uint8)
    padded[:height] = plane
    return np.concatenate([rgb, padded.reshape(rows, 3, width).transpose(0, 2, 1)])


def take_strip(pixels: Array, height: int) -> tuple[Array, Array]:
    """Inverse of `add_strip` for a picture of `height` rows without its strip."""
    rows = -(-height // 3)
    strip = pixels[height : height + rows]
    plane = strip.transpose(0, 2, 1).reshape(rows * 3, -1)[:height]
    return np.ascontiguousarray(pixels[:height]), np.ascontiguousarray(plane)


def strip_rows(height: int) -> int:
    """Rows that a strip adds to a picture of `height` rows."""
    return -(-height // 3)
