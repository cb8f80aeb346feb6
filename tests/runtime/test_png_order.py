"""PNG files whose chunks can be understood in two ways are refused: decoders differ in what they make of them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from rescale import planes, png
from rescale.errors import DamagedPictureError
from rescale.picture import open_picture
from rescale.png import Chunk

ROWS = zlib.compress(bytes([0] + [200] * 48) * 16)
IDAT, IEND = Chunk(b"IDAT", ROWS, True), Chunk(b"IEND", b"", True)
FIRST, SECOND = (Chunk(b"IDAT", part, True) for part in (ROWS[:9], ROWS[9:]))
PLTE, TRNS, TEXT = Chunk(b"PLTE", b"\0\1\0", True), Chunk(b"tRNS", b"\0\xc8" * 3, True), Chunk(b"tEXt", b"a\0b", True)


INDICES = Chunk(b"IDAT", zlib.compress(bytes([0] + [1] * 16) * 16), True)
FOUR = Chunk(b"PLTE", b"\xc8" * 12, True)


def header(width: int = 16, height: int = 16, colour: int = 2, depth: int = 8) -> Chunk:
    return Chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), True)


def clear(size: int) -> Chunk:
    return Chunk(b"tRNS", bytes(size), True)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([header(), header(16, 32), IDAT], "more than one IHDR chunk"),
        ([header(), IDAT, header(16, 32)], "more than one IHDR chunk"),
        ([header(), FIRST, header(), SECOND], "other chunks between its IDAT chunks"),
        ([header(), FIRST, TEXT, SECOND], "other chunks between its IDAT chunks"),
        ([header(), IDAT, TRNS], "tRNS behind IDAT"),
        ([header(), IDAT, PLTE], "PLTE behind IDAT"),
        ([header(), PLTE, PLTE, IDAT], "more than one PLTE chunk"),
        ([header(), TRNS, TRNS, IDAT], "more than one tRNS chunk"),
        ([header(), Chunk(b"ABCD", b"zz", True), IDAT], "a critical chunk b'ABCD' that no PNG has"),
        ([header(), IDAT, Chunk(b"ABCD", b"zz", True)], "a critical chunk b'ABCD' that no PNG has"),
        ([header(colour=3), INDICES], "PLTE is missing"),
        ([header(colour=3), clear(1), FOUR, INDICES], "tRNS before PLTE"),
        ([header(colour=3), FOUR, clear(5), INDICES], "tRNS of 5 bytes"),
        ([header(colour=3), FOUR, clear(0), INDICES], "tRNS of 0 bytes"),
        ([header(), clear(2), IDAT], "tRNS of 2 bytes"),
        ([header(colour=0), clear(6), INDICES], "tRNS of 6 bytes"),
        ([header(colour=3), Chunk(b"PLTE", b"", True), INDICES], "PLTE of 0 bytes for pixels of 8 bits"),
        ([header(colour=3), Chunk(b"PLTE", bytes(7), True), INDICES], "PLTE of 7 bytes for pixels of 8 bits"),
        ([header(colour=3), Chunk(b"PLTE", bytes(771), True), INDICES], "PLTE of 771 bytes for pixels of 8 bits"),
        ([header(colour=3, depth=1), FOUR, INDICES], "PLTE of 12 bytes for pixels of 1 bits"),
    ],
)
def test_a_file_that_decoders_understand_differently_is_refused(chunks: list[Chunk], message: str) -> None:
    data = png.assemble([*chunks, IEND])
    for read in (lambda: png.read_chunks(data, "a.png"), lambda: open_picture(data, "keep")):
        with pytest.raises(DamagedPictureError, match=f"damaged PNG: {message}"):
            read()


@pytest.mark.parametrize(
    "chunks",
    [
        [header(), TEXT, FIRST, SECOND, TEXT],
        [header(), PLTE, TRNS, IDAT],
        [header(), Chunk(b"IDAT", b"", True), FIRST, SECOND, Chunk(b"prVt", b"x", True)],
        [header(colour=3), FOUR, clear(1), INDICES],
        [header(), Chunk(b"PLTE", bytes(7), True), IDAT],
    ],
)
def test_a_file_in_the_standards_order_is_read(chunks: list[Chunk]) -> None:
    assert (open_picture(png.assemble([*chunks, IEND]), "keep").pixels == 200).all()


def test_a_coded_plane_with_two_headers_is_damaged_not_a_traceback() -> None:
    """The size that was checked was the first header's; Pillow took the second."""
    whole = planes.encode(np.zeros((16, 16), np.uint8))
    first, *rest = png.read_chunks(whole, "plane")
    data = png.assemble([first, header(5, 3, 0), *rest])
    with pytest.raises(DamagedPictureError, match="plane: damaged PNG: more than one IHDR"):
        planes.decode(data, (16, 16), "plane")


@pytest.mark.parametrize(("depth", "byte", "alpha"), [(2, 0b00011011, [255, 255, 255, 0]), (4, 0x03, [255, 0])])
def test_of_a_transparent_gray_only_the_samples_bits_count(depth, byte, alpha):
    """Its 16 bits may say more than a sample can (PNG, section 11.3.2.1)."""
    rows = Chunk(b"IDAT", zlib.compress(bytes([0, byte])), True)
    chunks = [header(len(alpha), 1, 0, depth), Chunk(b"tRNS", struct.pack(">H", 3 + (1 << depth)), True), rows, IEND]
    assert open_picture(png.assemble(chunks), "keep").alpha.tolist() == [alpha]


@pytest.mark.parametrize("intact", [True, False])
def test_a_damaged_chunk_that_decoders_may_ignore_is_not_carried(intact):
    data = png.assemble([header(), Chunk(b"pHYs", struct.pack(">IIB", 3000, 3000, 1), True), IDAT, IEND])
    at = data.index(b"pHYs") + 4 + 9
    damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    assert [kind for kind, _ in open_picture(data if intact else damaged).colour] == ([b"pHYs"] if intact else [])
