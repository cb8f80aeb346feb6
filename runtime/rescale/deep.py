"""Pictures with more than 8 bits a sample: how many a file holds, and 16 of them rounded to 8.

Pillow reads 16 bits of gray as they are, but of colours only one byte a sample: the first, or with the raw mode of the other byte
order the second. Both together are the sample.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from rescale.errors import InputError

Array = npt.NDArray[np.uint8]

ROUNDED = np.rint(np.arange(1 << 16) / 257).astype(np.uint8)
"""The 8-bit sample nearest to each 16-bit one: 255 / 65535 is 1 / 257. None lies in the middle between two."""

TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
_SECOND = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte order of a raw mode that gives the byte which the first one leaves out."""


def is_deep(mode: str) -> bool:
    """Whether samples of a mode of Pillow have more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;")


def stored_depth(data: bytes, name: str, image: Image.Image) -> int:
    """Bits a sample that a file holds, where Pillow would reduce them in silence: PNG, AVIF, TIFF, PPM and JPEG 2000.

    Args:
        data: the file.
        name: for messages.
        image: as `rescale.decode.opened` gives it.

    Raises:
        InputError: a PPM whose samples do not reach to 255.
    """
    if image.format == "TIFF":
        bits = image.tag_v2.get(TIFF_BITS, 8)  # type: ignore[attr-defined]
        return max(bits) if isinstance(bits, tuple) else int(bits)
    if image.format == "PPM" and data[:2] in (b"P2", b"P3", b"P5", b"P6"):
        header = re.sub(rb"#[^\n]*", b"", data[:4096]).split(None, 4)
        most = int(header[3]) if len(header) > 3 and header[3].isdigit() else 0
        if most < 255:
            raise InputError(f"{name}: samples from 0 to {most}, not to 255; convert it to 8 bits a sample first")
        return {255: 8, 65535: 16}.get(most, 15)
    if image.format in ("PNG", "JPEG2000"):
        return int(image.info["depth"])  # of `rescale.decode`, which has read the header
    return avif_depth(data) if image.format == "AVIF" else 8


def avif_depth(data: bytes) -> int:
    """8 or 10 (which stands for 12 too), by the header of an AVIF file."""
    at = data.find(b"av1C")
    # Third byte behind the box name: seq_tier, high_bitdepth, twelve_bit, ...
    return 10 if at >= 0 and len(data) > at + 6 and data[at + 6] & 0x40 else 8


def eight_bits(image: Image.Image, depth: int, again: Callable[[], Image.Image], name: str) -> Array:
    """Samples of 16 bits, each rounded to the nearest of 8: uint8 (H, W, 1 to 4), gray or RGB, with alpha if there is any.

    Args:
        image: opened, not loaded.
        depth: from `stored_depth`.
        again: opens the same picture once more.
        name: for messages.

    Raises:
        InputError: a kind that Pillow does not give all bits of.
    """
    if obstacle := why_not_rounded(image, depth):
        raise InputError(f"{name}: {obstacle}; convert it to 8 bits first")
    if _rounded_by_decoder(image, depth):
        return np.array(image.convert("RGBA" if image.mode == "RGBA" else "RGB"))
    samples = np.asarray(image).astype(np.uint16)[:, :, None] if is_deep(image.mode) else _both_bytes(image, again)
    key = image.info.get("transparency")
    found = ROUNDED[samples]
    if key is None:
        return found
    return np.dstack([found, np.where((samples == key).all(2), 0, 255).astype(np.uint8)])


def why_not_rounded(image: Image.Image, depth: int) -> str:
    """What keeps `eight_bits` from rounding an opened picture of more than 8 bits; empty if nothing does."""
    if _rounded_by_decoder(image, depth):
        return ""
    dark = image.format == "TIFF" and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    if depth != 16 or dark or (image.mode == "I" and image.format != "PPM") or image.mode == "F":
        return f"{_kind(image, depth, dark)}, of which 8 bits are not made here"
    if not is_deep(image.mode) and not _stored_mode(image):
        return "16 bits a sample, stored as Pillow reads only 8 of them"
    return ""


def _rounded_by_decoder(image: Image.Image, depth: int) -> bool:
    return image.format == "AVIF" or (image.format == "PPM" and image.mode == "RGB" and depth == 16)


def _stored_mode(image: Image.Image) -> str:
    """The raw mode of all parts of a picture, if both bytes of its samples can be had by it; else empty."""
    assert isinstance(image, ImageFile.ImageFile)
    modes = {_raw_mode(tile) for tile in image.tile}
    mode = modes.pop() if len(modes) == 1 else ""
    kind, _, order = mode.rpartition(";16")
    return mode if mode == "LA;16B" or (kind in ("RGB", "RGBX", "RGBA") and order in _SECOND) else ""


def _both_bytes(image: Image.Image, again: Callable[[], Image.Image]) -> npt.NDArray[np.uint16]:
    assert isinstance(image, ImageFile.ImageFile)
    mode = _stored_mode(image)
    if mode == "LA;16B":  # four bytes a pixel, which are taken as they come
        image.tile = [_with_mode(tile, "RGBA") for tile in image.tile]
        pairs = np.asarray(image).astype(np.uint16)
        pairs[:, :, 0::2] <<= 8
        pairs[:, :, 0::2] |= pairs[:, :, 1::2]
        return np.ascontiguousarray(pairs[:, :, 0::2])
    kind, _, order = mode.rpartition(";16")
    with again() as other:
        assert isinstance(other, ImageFile.ImageFile)
        other.tile = [_with_mode(tile, f"{kind};16{_SECOND[order]}") for tile in other.tile]
        second = np.array(other)
    samples = np.asarray(image).astype(np.uint16)
    samples <<= 8
    samples |= second
    return samples


def _raw_mode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


def _with_mode(tile: Any, mode: str) -> Any:
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))


def _kind(image: Image.Image, depth: int, dark: bool) -> str:
    if image.mode == "F":
        return "samples of floating point"
    if image.format == "PPM":
        return "samples that end elsewhere than at 65535"
    return "16 bits a sample with white at 0" if dark else "signed samples" if depth == 16 else f"{depth} bits a sample"
