"""What an AVIF file says of its colours without an ICC profile: Pillow decodes the pixels and leaves it unsaid."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from rescale.boxes import bodies
from rescale.colour import SRGB

UNSPECIFIED = 2


def cicp(data: bytes) -> bytes | None:
    """Colour space of the main picture as the body of PNG's chunk ``cICP``; None for sRGB, or where the file does not say.

    The matrix is that of RGB and the range the full one, since pixels are decoded to RGB.
    """
    try:
        found = next((body for kind, body in _properties(data) if kind == b"colr" and body[:4] == b"nclx"), b"")
        primaries, transfer = struct.unpack_from(">HH", found, 4)
    except (LookupError, struct.error):
        return None
    if UNSPECIFIED in (primaries, transfer) or max(primaries, transfer) > 0xFF:
        return None
    space = bytes([primaries, transfer])
    return None if space == SRGB else space + b"\0\1"


def _first(data: bytes, kind: bytes, at: int = 0) -> bytes:
    for name, body in bodies(data, at):
        if name == kind:
            return body
    raise LookupError(kind)


def _properties(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Boxes that describe the main picture; a file may hold others beside it, for transparency, brightness or a preview.

    Raises:
        LookupError, struct.error: the file is not as the standard has it.
    """
    meta = _first(data, b"meta")
    main = _first(meta, b"pitm", 4)
    (picture,) = struct.unpack_from(">I" if main[0] else ">H", main, 4)
    properties = _first(meta, b"iprp", 4)
    described = list(bodies(_first(properties, b"ipco")))
    table = _first(properties, b"ipma")
    item, place = (">I" if table[0] else ">H"), (">H" if table[3] & 1 else ">B")
    (entries,), at = struct.unpack_from(">I", table, 4), 8
    for _ in range(entries):
        (owner,) = struct.unpack_from(item, table, at)
        at += struct.calcsize(item)
        count = table[at]
        at += 1
        for _ in range(count):
            (number,) = struct.unpack_from(place, table, at)
            at += struct.calcsize(place)
            number &= 0x7FFF if place == ">H" else 0x7F  # the first bit says whether a reader has to know the property
            if owner == picture and number:
                yield described[number - 1]
