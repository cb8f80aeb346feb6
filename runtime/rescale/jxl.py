"""JPEG XL, lossless, as a container of boxes. Needs the optional extra ``jxl`` (imagecodecs)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.boxes import walk
from rescale.errors import DamagedPictureError, InputError, MissingExtraError
from rescale.image import check_pixels

SIGNATURE = bytes.fromhex("0000000c4a584c200d0a870a")
FILE_TYPE = bytes.fromhex("00000014667479706a786c20000000006a786c20")
CODESTREAM = b"\xff\x0a"
MAX_BOXES = 10_000
HEADER_BYTES = 66
"""At the beginning of a codestream; what is read of it is in these."""

LAST_PART = 1 << 31
"""Bit beside the number of a codestream's last part."""


def is_jxl(data: bytes) -> bool:
    """Whether the bytes start like a JPEG XL file, boxed or bare."""
    return data.startswith((SIGNATURE, CODESTREAM))


def _codec() -> Any:
    try:
        import imagecodecs
    except ImportError:
        raise MissingExtraError("JPEG XL needs imagecodecs: pip install 'rescale-toolkit[jxl]'") from None
    return imagecodecs


def read_boxes(data: bytes, name: str) -> list[tuple[bytes, bytes]]:
    """Boxes (name, body) of a file; a bare codestream is one box ``jxlc``.

    Raises:
        InputError: truncated or damaged.
    """
    if data.startswith(CODESTREAM):
        return [(b"jxlc", data)]
    boxes: list[tuple[bytes, bytes]] = []
    at = 0
    for kind, start, end in islice(walk(data), MAX_BOXES):
        if not start <= end <= len(data):
            raise DamagedPictureError(f"{name}: truncated JPEG XL: a {kind!r} box ends after the file")
        boxes.append((kind, data[start:end]))
        at = end
    if at != len(data):
        raise DamagedPictureError(f"{name}: damaged JPEG XL: bytes behind the last box")
    _check_codestream(boxes, name)
    return boxes


def _check_codestream(boxes: list[tuple[bytes, bytes]], name: str) -> None:
    """Check that there is at most one picture, whole or in numbered parts: decoders differ in what they take of more."""
    whole = sum(kind == b"jxlc" for kind, _ in boxes)
    parts = [int.from_bytes(body[:4], "big") for kind, body in boxes if kind == b"jxlp"]
    last = len(parts) - 1
    in_order = parts == [i | (LAST_PART if i == last else 0) for i in range(len(parts))]
    if whole + bool(parts) > 1 or not in_order or any(len(body) < 4 for kind, body in boxes if kind == b"jxlp"):
        raise DamagedPictureError(f"{name}: damaged JPEG XL: more than one picture in it, or its parts are not in order")


def picture_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of a still picture from the codestream's header, before anything is decoded.

    Raises:
        InputError: there is no codestream, or it is an animation.
    """
    stream = b""
    for kind, body in read_boxes(data, name):
        if kind in (b"jxlc", b"jxlp") and len(stream) < HEADER_BYTES:
            stream += body[4:] if kind == b"jxlp" else body
    if len(stream) < 16 or not stream.startswith(CODESTREAM):
        raise DamagedPictureError(f"{name}: damaged JPEG XL: no picture in it")
    bits = int.from_bytes(stream[2:HEADER_BYTES], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(small: int) -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    def size() -> tuple[int, int]:
        small = take(1)
        height = side(small)
        ratio = take(3)
        if ratio:
            up, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
            return height * up // down, height
        return side(small), height

    found = size()
    if not take(1) and take(1):  # not all default, and extra fields: orientation, intrinsic size, preview, animation
        take(3)
        if take(1):
            size()
        if take(1) or take(1):
            raise InputError(f"{name}: a JPEG XL with a preview or an animation; a still picture is wanted")
    return found


def encode(pixels: npt.NDArray[np.uint8], boxes: Mapping[bytes, bytes]) -> bytes:
    """(H, W, 3) or (H, W, 4) uint8 -> lossless JPEG XL container with extra boxes."""
    stream = bytes(_codec().jpegxl_encode(pixels, lossless=True, effort=5))
    if stream.startswith(SIGNATURE):
        stream = next(body for kind, body in read_boxes(stream, "encoded JPEG XL") if kind == b"jxlc")
    out = [SIGNATURE, FILE_TYPE]
    for kind, body in [(b"jxlc", stream), *boxes.items()]:
        out.append(struct.pack(">I4s", len(body) + 8, kind) + body)
    return b"".join(out)


def decode(data: bytes, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, 3 or 4).

    Raises:
        InputError: damaged, too large, or not 8 bits.
        MissingExtraError: imagecodecs is not installed.
    """
    width, height = picture_size(data, name)
    check_pixels(width, height, max_pixels, name)
    codec = _codec()
    try:
        pixels = np.asarray(codec.jpegxl_decode(data))
    except MemoryError:
        raise
    except Exception as e:  # imagecodecs raises classes of its own
        raise DamagedPictureError(f"{name}: truncated or damaged JPEG XL: {e}") from None
    if pixels.dtype != np.uint8 or pixels.shape[:2] != (height, width):
        raise InputError(f"{name}: {pixels.dtype} {pixels.shape} in a JPEG XL; an 8-bit still picture is wanted")
    if pixels.ndim == 2 or pixels.shape[2] in (1, 2):
        planes = pixels.reshape(height, width, -1)
        pixels = np.dstack([planes[:, :, :1]] * 3 + [planes[:, :, 1:]])
    return np.ascontiguousarray(pixels)
