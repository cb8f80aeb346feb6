"""Chunks that say how a picture is to be shown and where it came from: carried from HR to LR and back, never applied.

Their common form is PNG's: iCCP, cICP, gAMA, cHRM, sRGB, pHYs, eXIf. A PNG's own chunks are kept byte for byte; from other
formats ICC profile, EXIF and density are put into that form, from a TIFF the profile alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

from rescale import png
from rescale.errors import InputError

Chunks = tuple[tuple[bytes, bytes], ...]

KINDS = (b"iCCP", b"cICP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"eXIf")
SRGB = bytes([1, 13])
"""Primaries and transfer function of sRGB, as cICP begins; what an RGB picture has that says nothing."""

MAX_BYTES = 8 << 20
_ICC_PREFIX = b"ICC profile\0\0"
_EXIF_PREFIX = b"Exif\0\0"
_ICC_SPACE = slice(16, 20)
"""Where a profile's header names the colour space that it is for."""
_SRGB_NUMBERS = {b"gAMA": (45455,), b"cHRM": (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)}
"""What the chunks hold for sRGB, in 100,000ths."""
_NEAR = 500
"""How far off a writer may have rounded them; 0 is no value of either."""
_INCH = 0.0254
_MOST_DENSITY = 0x7FFFFFFF
"""A PNG's whole numbers have 31 bits."""


def from_png(chunks: list[png.Chunk], name: str) -> Chunks:
    """The carried chunks of a PNG, first of each kind, intact ones only."""
    found: dict[bytes, bytes] = {}
    for chunk in chunks:
        if chunk.kind in KINDS and chunk.intact:
            found.setdefault(chunk.kind, chunk.data)
    return _bounded(tuple(found.items()), name)


def from_info(info: Mapping[Any, Any], name: str) -> Chunks:
    """The same from what Pillow knows of another format; under ``cicp`` the body of that chunk, under ``density`` pixels a metre in
    x and y."""
    found: list[tuple[bytes, bytes]] = []
    icc, exif = info.get("icc_profile"), info.get("exif")
    if isinstance(icc, bytes) and icc:
        found.append((b"iCCP", _ICC_PREFIX + zlib.compress(icc, 9)))
    elif cicp := info.get("cicp"):
        found.append((b"cICP", cicp))
    density = info.get("density", (0, 0))
    if info.get("jfif_unit") in (1, 2):
        metres = _INCH if info["jfif_unit"] == 1 else 0.01
        density = [v / metres for v in info.get("jfif_density", (0, 0))]
    if 0.5 < min(density) <= max(density) < _MOST_DENSITY:
        found.append((b"pHYs", struct.pack(">IIB", *map(round, density), 1)))
    if isinstance(exif, bytes) and exif:
        found.append((b"eXIf", exif.removeprefix(_EXIF_PREFIX)))
    return _bounded(tuple(found), name)


def icc_profile(chunks: Chunks) -> bytes | None:
    """The ICC profile in the chunks, inflated; None if there is none or it is damaged."""
    data = dict(chunks).get(b"iCCP")
    if data is None or b"\0" not in data[:80]:
        return None
    coded = data[data.index(b"\0") + 2 :]
    try:
        inflater = zlib.decompressobj()
        profile = inflater.decompress(coded, MAX_BYTES)
    except zlib.error:
        return None
    return profile if inflater.eof else None


def for_rgb(chunks: Chunks) -> Chunks:
    """The chunks that an RGB picture may show: all but an ICC profile for gray, which PNG and WebP allow beside gray alone."""
    profile = icc_profile(chunks)
    is_gray = profile is not None and profile[_ICC_SPACE] == b"GRAY"
    return tuple((kind, data) for kind, data in chunks if not (is_gray and kind == b"iCCP"))


def told_by_png_alone(chunks: Chunks) -> str:
    """The chunk that alone says in which colours, others than sRGB's, a picture is to be shown, where WebP has no place for it:
    cICP, gAMA or cHRM; empty if there is none. The order is that of PNG's specification."""
    kinds = dict(chunks)
    if b"iCCP" in kinds:
        return ""
    if b"cICP" in kinds:
        return "cICP" if kinds[b"cICP"][:2] != SRGB else ""
    if b"sRGB" in kinds:
        return ""
    for kind, numbers in _SRGB_NUMBERS.items():
        if len(data := kinds.get(kind, b"")) == 4 * len(numbers):
            found = struct.unpack(f">{len(numbers)}I", data)
            if all(found) and any(abs(a - b) > _NEAR for a, b in zip(found, numbers, strict=True)):
                return kind.decode()
    return ""


def exif(chunks: Chunks) -> bytes | None:
    """The EXIF block in the chunks, without prefix."""
    return dict(chunks).get(b"eXIf")


def pack(chunks: Chunks) -> bytes:
    """Chunks as bytes for the LR file's section META: name 4, length 4 little-endian, body, repeated."""
    return b"".join(struct.pack("<4sI", kind, len(data)) + data for kind, data in chunks)


def unpack(data: bytes, name: str) -> Chunks:
    """Inverse of `pack`.

    Raises:
        InputError: damaged, too large, or with a chunk that is not carried.
    """
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind not in KINDS or at + 8 + length > len(data):
            raise InputError(f"{name}: damaged metadata section")
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length
    if at != len(data):
        raise InputError(f"{name}: damaged metadata section")
    return _bounded(tuple(found), name)


def _bounded(chunks: Chunks, name: str) -> Chunks:
    size = sum(len(data) for _, data in chunks)
    if size > MAX_BYTES:
        raise InputError(f"{name}: {size} bytes of colour and EXIF metadata; at most {MAX_BYTES} are carried: strip some")
    return chunks
