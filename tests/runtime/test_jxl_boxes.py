"""JPEG XL files that hold more than one picture, or one in parts that are out of order, are refused: decoders differ there."""

from __future__ import annotations

import struct

import pytest

from rescale import jxl
from rescale.errors import DamagedPictureError

STREAM = jxl.CODESTREAM + bytes([0x07, 0x00]) + bytes(range(100))


def boxes(*parts: tuple[bytes, bytes]) -> bytes:
    return jxl.SIGNATURE + jxl.FILE_TYPE + b"".join(struct.pack(">I4s", len(body) + 8, kind) + body for kind, body in parts)


def part(number: int, data: bytes) -> tuple[bytes, bytes]:
    return b"jxlp", struct.pack(">I", number) + data


LAST = jxl.LAST_PART
WHOLE = (b"jxlc", STREAM)


@pytest.mark.parametrize(
    "parts",
    [
        (WHOLE, WHOLE),
        (WHOLE, part(LAST, STREAM)),
        (part(0, STREAM[:40]), WHOLE),
        (part(1, STREAM[:40]), part(LAST, STREAM[40:])),
        (part(0, STREAM[:40]), part(LAST | 2, STREAM[40:])),
        (part(LAST, STREAM), part(1, b"more")),
        (part(0, STREAM),),
        (part(LAST, STREAM), part(LAST | 1, STREAM)),
        ((b"jxlp", b"\x80\0\0"),),
    ],
)
def test_more_than_one_picture_is_refused(parts: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(DamagedPictureError, match="damaged JPEG XL: more than one picture in it, or its parts are not in order"):
        jxl.picture_size(boxes(*parts), "a.jxl")


@pytest.mark.parametrize("cut", [1, 5, 40, 104])
def test_a_picture_in_parts_has_the_size_of_the_whole(cut: int) -> None:
    wanted = jxl.picture_size(boxes(WHOLE), "a.jxl")
    assert jxl.picture_size(STREAM, "a.jxl") == wanted
    in_parts = boxes((b"rscl", b"x"), part(0, STREAM[:cut]), part(1, b""), part(LAST | 2, STREAM[cut:]))
    assert jxl.picture_size(in_parts, "a.jxl") == wanted
