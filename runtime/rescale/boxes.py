"""Boxes of the ISO base media file format, as JPEG 2000, JPEG XL and AVIF files have them: length, name, body."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """Where a box is: `end` comes before `start` or after the file's end where its length is not true."""

    kind: bytes
    start: int
    end: int


def walk(data: bytes, at: int = 0) -> Iterator[Box]:
    """Boxes in the bytes from `at` on, one behind the other, up to the first whose length is not true, that one included."""
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1 and start + 8 <= len(data):
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = at + length if length else len(data)
        yield Box(kind, start, end)
        if end < start:
            return
        at = end


def bodies(data: bytes, at: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of the same boxes; what of a body lies behind the end is left out."""
    return ((kind, data[start:end]) for kind, start, end in walk(data, at) if end >= start)
