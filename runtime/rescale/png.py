"""PNG at the level of chunks: bounded reading, and insertion of chunks into an encoded file.

Pixels are decoded by Pillow from a copy that holds critical chunks only, so that no text bomb or damaged ancillary chunk
reaches a decoder that would refuse the whole file for it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from rescale.errors import DamagedPictureError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000
PIECE = 1 << 20
"""Bytes that are inflated at a time where only their number counts."""

FEED = 1 << 16
"""Bytes that are handed to the inflater at a time: what it has not used yet it copies with every piece."""

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by colour type."""

ALPHA = 4
"""The bit of a colour type that says that the last sample is alpha."""

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps, of each pass of an interlaced picture."""

CRITICAL = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""All that decide the pixels; tRNS, which the standard lets readers skip, is the transparency of a file without an alpha plane."""


@dataclass(frozen=True)
class Chunk:
    """One chunk. `intact` is False where the CRC does not match."""

    kind: bytes
    data: bytes
    intact: bool


@dataclass(frozen=True)
class Header:
    """IHDR: size in pixels, bits per sample, colour type, interlaced or not."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool


def read_chunks(data: bytes, name: str) -> list[Chunk]:
    """Split a PNG file into chunks.

    Raises:
        InputError: not a PNG, truncated, without IHDR or IEND, or a critical chunk is damaged, unknown, or not where or not as long
            as the standard has it.
    """
    if not data.startswith(SIGNATURE):
        raise DamagedPictureError(f"{name}: not a PNG file")
    chunks: list[Chunk] = []
    at = len(SIGNATURE)
    while at + 12 <= len(data) and len(chunks) < MAX_CHUNKS:
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise DamagedPictureError(f"{name}: truncated PNG: a {kind!r} chunk of {length} bytes ends after the file")
        body = data[at + 8 : end - 4]
        (crc,) = struct.unpack_from(">I", data, end - 4)
        intact = zlib.crc32(body, zlib.crc32(kind)) == crc
        if not intact and kind in CRITICAL:
            raise DamagedPictureError(f"{name}: damaged PNG: the CRC of a {kind.decode('latin-1')} chunk does not match")
        chunks.append(Chunk(kind, body, intact))
        at = end
        if kind == b"IEND":
            break
    kinds = [c.kind for c in chunks]
    if not kinds or kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or b"IDAT" not in kinds:
        raise DamagedPictureError(f"{name}: truncated or damaged PNG: IHDR, IDAT or IEND is missing")
    _check_order(kinds, name)
    _check_colours(chunks, name)
    return chunks


def _check_order(kinds: list[bytes], name: str) -> None:
    """Check that a file can be understood in one way: decoders differ in which of two headers they take, and skip what is late."""
    first, count = kinds.index(b"IDAT"), kinds.count(b"IDAT")
    if kinds[first : first + count] != [b"IDAT"] * count:
        raise DamagedPictureError(f"{name}: damaged PNG: other chunks between its IDAT chunks")
    for i, kind in enumerate(kinds):
        if kind not in CRITICAL and not kind[0] & 0x20:
            raise DamagedPictureError(f"{name}: damaged PNG: a critical chunk {kind!r} that no PNG has")
        if kind in (b"PLTE", b"tRNS") and i > first:
            raise DamagedPictureError(f"{name}: damaged PNG: {kind.decode()} behind IDAT")
        if kind in (b"IHDR", b"PLTE", b"tRNS") and kinds.index(kind) != i:
            raise DamagedPictureError(f"{name}: damaged PNG: more than one {kind.decode()} chunk")


def _check_colours(chunks: list[Chunk], name: str) -> None:
    """Check that palette and transparency fit the pixels: of those that do not, decoders take a part, others nothing at all."""
    if len(chunks[0].data) != 13:
        return  # `read_header` refuses it
    depth, colour = chunks[0].data[8], chunks[0].data[9]
    colours = [c for c in chunks if c.kind in (b"PLTE", b"tRNS")]
    palette, transparency = (next((len(c.data) for c in colours if c.kind == kind), None) for kind in (b"PLTE", b"tRNS"))
    if colour == 3:
        if palette is None:
            raise DamagedPictureError(f"{name}: damaged PNG: PLTE is missing")
        if not 0 < palette <= 3 << min(depth, 8) or palette % 3:
            raise DamagedPictureError(f"{name}: damaged PNG: PLTE of {palette} bytes for pixels of {depth} bits")
        if colours[0].kind == b"tRNS":
            raise DamagedPictureError(f"{name}: damaged PNG: tRNS before PLTE")
    fitting = {0: range(2, 3), 2: range(6, 7), 3: range(1, (palette or 0) // 3 + 1)}
    if transparency is not None and transparency not in fitting.get(colour, (transparency,)):
        raise DamagedPictureError(f"{name}: damaged PNG: tRNS of {transparency} bytes")


def read_header(chunks: list[Chunk], name: str) -> Header:
    """Decode IHDR.

    Raises:
        InputError: it is malformed.
    """
    if len(chunks[0].data) != 13:
        raise DamagedPictureError(f"{name}: damaged PNG: IHDR has {len(chunks[0].data)} bytes, wanted 13")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0].data)
    if not width or not height:
        raise DamagedPictureError(f"{name}: damaged PNG: size {width}x{height}")
    return Header(width, height, depth, colour, interlace != 0)


def require_rows(chunks: Iterable[Chunk], header: Header, name: str) -> None:
    """Check that the compressed data hold every row. Pillow takes rows that are missing for black, and says nothing.

    Raises:
        InputError: they end before, or are damaged.
    """
    missing = _data_bytes(header, name)
    # Without zlib's two bytes before the data and its checksum behind them, which decoders do not insist on either.
    inflate, before = zlib.decompressobj(-zlib.MAX_WBITS), 2
    try:
        for chunk in chunks:
            if chunk.kind == b"IDAT":
                data, before = memoryview(chunk.data)[before:], max(0, before - len(chunk.data))
                for at in range(0, len(data), FEED):
                    rest: bytes | memoryview = data[at : at + FEED]
                    while rest and missing > 0 and not inflate.eof:
                        missing -= len(inflate.decompress(rest, PIECE))
                        rest = inflate.unconsumed_tail
    except zlib.error as e:
        raise DamagedPictureError(f"{name}: truncated or damaged picture: {e}") from None
    if missing > 0:
        raise DamagedPictureError(f"{name}: truncated or damaged picture: its data end before its last row")


def _data_bytes(header: Header, name: str) -> int:
    """Bytes of all rows before compression, each with its filter byte."""
    if header.colour not in CHANNELS:
        raise DamagedPictureError(f"{name}: damaged picture: its colour type is {header.colour}")
    bits = header.depth * CHANNELS[header.colour]
    total = 0
    for x, y, dx, dy in ADAM7 if header.interlaced else ((0, 0, 1, 1),):
        width, height = -(-max(0, header.width - x) // dx), -(-max(0, header.height - y) // dy)
        total += height * (1 + -(-width * bits // 8)) if width else 0
    return total


def critical_only(chunks: Iterable[Chunk]) -> bytes:
    """The same picture without ancillary chunks."""
    return assemble(c for c in chunks if c.kind in CRITICAL)


def assemble(chunks: Iterable[Chunk]) -> bytes:
    """Chunks back to a file, with fresh CRCs."""
    out = [SIGNATURE]
    for c in chunks:
        out += [struct.pack(">I", len(c.data)), c.kind, c.data, struct.pack(">I", zlib.crc32(c.data, zlib.crc32(c.kind)))]
    return b"".join(out)


def insert(data: bytes, extra: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Put chunks right behind IHDR, where all readers expect colour and private chunks. Same-named ones are replaced."""
    added = [Chunk(kind, body, True) for kind, body in extra]
    kinds = {c.kind for c in added}
    first, *rest = read_chunks(data, "encoded PNG")
    return assemble([first, *added, *(c for c in rest if c.kind not in kinds)])


def encode(pixels: npt.NDArray[np.uint8], level: int = 6) -> bytes:
    """(H, W), (H, W, 3) or (H, W, 4) uint8 -> PNG file, zlib level 0 to 9."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()
