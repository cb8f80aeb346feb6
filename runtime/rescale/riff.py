"""WebP at the level of RIFF chunks: bounded reading, and insertion of chunks into an encoded file."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from rescale.errors import DamagedPictureError, InputError

MAX_SIDE = 16383
"""Longest side that WebP can hold."""

MAX_CHUNKS = 10_000
_FLAGS = {b"ICCP": 0x20, b"ALPH": 0x10, b"EXIF": 0x08, b"XMP ": 0x04, b"ANIM": 0x02}


def is_webp(data: bytes) -> bool:
    """Whether the bytes start like a WebP file."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_chunks(data: bytes, name: str) -> list[tuple[bytes, bytes]]:
    """Split a WebP file into (name, body).

    Raises:
        InputError: not a WebP file, truncated, or with too many chunks.
    """
    if not is_webp(data):
        raise DamagedPictureError(f"{name}: not a WebP file")
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise DamagedPictureError(f"{name}: truncated WebP: {len(data)} of {end} bytes")
    chunks: list[tuple[bytes, bytes]] = []
    at = 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > end or len(chunks) >= MAX_CHUNKS:
            raise DamagedPictureError(f"{name}: damaged WebP: a {kind!r} chunk of {length} bytes does not fit")
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + (length & 1)
    if not any(kind in (b"VP8 ", b"VP8L", b"ANMF") for kind, _ in chunks):
        raise DamagedPictureError(f"{name}: damaged WebP: no picture in it")
    return chunks


def assemble(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Chunks back to a file."""
    body = b"".join(struct.pack("<4sI", kind, len(data)) + data + b"\0" * (len(data) & 1) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def insert(data: bytes, size: tuple[int, int], has_alpha: bool, extra: Mapping[bytes, bytes]) -> bytes:
    """Add chunks to an encoded still picture, in the order that the format wants, with the extended header they need."""
    picture = [(k, d) for k, d in read_chunks(data, "encoded WebP") if k in (b"VP8L", b"VP8 ", b"ALPH")]
    flags = 0x10 if has_alpha else 0
    for kind in extra:
        flags |= _FLAGS.get(kind, 0)
    header = struct.pack("<I", flags) + struct.pack("<I", size[0] - 1)[:3] + struct.pack("<I", size[1] - 1)[:3]
    first = [(k, extra[k]) for k in (b"ICCP",) if k in extra]
    behind = [(k, extra[k]) for k in (b"EXIF", b"XMP ") if k in extra]
    own = [(k, d) for k, d in extra.items() if k not in (b"ICCP", b"EXIF", b"XMP ")]
    return assemble([(b"VP8X", header), *first, *picture, *behind, *own])


def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """(H, W, 3) or (H, W, 4) uint8 -> lossless WebP; colour under alpha 0 is kept.

    Raises:
        InputError: a side is above `MAX_SIDE`.
    """
    if max(pixels.shape[:2]) > MAX_SIDE:
        raise InputError(f"{pixels.shape[1]}x{pixels.shape[0]}: WebP holds at most {MAX_SIDE} pixels a side; write a PNG")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True, quality=75, method=4)
    return buffer.getvalue()
