"""How the integrity block travels in a file: as chunks of the container, as text, or beside the file.

    container   chunk (default)                           text
    PNG         reSc chunks, at most 1 MiB each           zTXt "rescale", base64
    WebP        RIFF chunk RSCL                           XMP packet, base64
    JPEG XL     box rscl                                  box "xml ", base64

A side-car is the bare block in FILE.rescale. Private chunks survive lossless optimisers and fail cleanly elsewhere; text
survives some re-savers (see docs/survival.md).
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib

import numpy as np
import numpy.typing as npt

from rescale import colour, jxl, png, riff
from rescale.block import DamagedBlockError
from rescale.errors import InputError

Array = npt.NDArray[np.uint8]

CONTAINERS = ("png", "webp", "jxl")
CARRIERS = ("chunk", "text", "sidecar")
PNG_CHUNK, WEBP_CHUNK, JXL_BOX = b"reSc", b"RSCL", b"rscl"
"""PNG: ancillary, private, safe to copy. It survives lossless recompression; our digests catch stale copies."""

PART_BYTES = 1 << 20
MAX_TEXT_BYTES = 700_000
"""Largest block as text: base64 of it stays below the 1 MiB at which Pillow refuses a whole file."""

SIDECAR_SUFFIX = ".rescale"
_PART = struct.Struct(">HH")
_KEYWORD = b"rescale"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:rescale="urn:rescale-toolkit:1" rescale:block="{}"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
_XMP_BLOCK = re.compile(rb'rescale:block="([A-Za-z0-9+/=\s]*)"')


def container_of(data: bytes) -> str | None:
    """``png``, ``webp`` or ``jxl`` by the file's first bytes; None for anything else."""
    if data.startswith(png.SIGNATURE):
        return "png"
    return "webp" if riff.is_webp(data) else "jxl" if jxl.is_jxl(data) else None


def write(pixels: Array, block: bytes, shown: colour.Chunks, container: str, carrier: str) -> bytes:
    """A lossless picture file with the block in it (or without, for a side-car).

    Args:
        pixels: uint8 (H, W, 3) or (H, W, 4).
        block: encoded integrity block.
        shown: colour chunks of the source; PNG keeps all, WebP its ICC profile and EXIF, JPEG XL its EXIF.
        container: one of `CONTAINERS`.
        carrier: one of `CARRIERS`.

    Raises:
        InputError: the picture is too large for WebP, or the block for text.
        MissingExtraError: JPEG XL without imagecodecs.
    """
    text = b""
    if carrier == "text":
        if len(block) > MAX_TEXT_BYTES:
            raise InputError(f"{len(block)} bytes of auxiliary data; text holds {MAX_TEXT_BYTES}: use --carrier chunk or sidecar")
        text = base64.b64encode(block)
    if container == "png":
        own: list[tuple[bytes, bytes]] = []
        if carrier == "chunk":
            parts = [block[i : i + PART_BYTES] for i in range(0, len(block), PART_BYTES)]
            own = [(PNG_CHUNK, _PART.pack(i, len(parts)) + part) for i, part in enumerate(parts)]
        elif text:
            own = [(b"zTXt", _KEYWORD + b"\0\0" + zlib.compress(text, 9))]
        return png.insert(png.encode(pixels), [*shown, *own])
    if container == "webp":
        extra = {b"ICCP": colour.icc_profile(shown), b"EXIF": colour.exif(shown)}
        chunks = {k: v for k, v in extra.items() if v}
        if carrier == "chunk":
            chunks[WEBP_CHUNK] = block
        elif text:
            chunks[b"XMP "] = _XMP.format(text.decode()).encode()
        return riff.insert(riff.encode(pixels), (pixels.shape[1], pixels.shape[0]), pixels.shape[2] == 4, chunks)
    boxes: dict[bytes, bytes] = {}
    exif = colour.exif(shown)
    if exif:
        boxes[b"Exif"] = b"\0\0\0\0" + exif
    if carrier == "chunk":
        boxes[JXL_BOX] = block
    elif text:
        boxes[b"xml "] = _XMP.format(text.decode()).encode()
    return jxl.encode(pixels, boxes)


def read(data: bytes, name: str) -> tuple[bytes | None, colour.Chunks]:
    """The block's bytes, None if the file carries none, and the colour chunks that the container itself holds.

    Raises:
        InputError: the container is truncated or damaged.
        DamagedBlockError: there is a block, but not all of it.
    """
    container = container_of(data)
    if container == "png":
        chunks = png.read_chunks(data, name)
        shown = colour.from_png(chunks, name)
        own = [c for c in chunks if c.kind == PNG_CHUNK]
        return (_join(own) if own else _png_text(chunks)), shown
    if container == "webp":
        found = riff.read_chunks(data, name)
        own_webp = [d for k, d in found if k == WEBP_CHUNK]
        return (own_webp[0] if own_webp else _xmp(d for k, d in found if k == b"XMP ")), ()
    if container == "jxl":
        boxes = jxl.read_boxes(data, name)
        own_jxl = [d for k, d in boxes if k == JXL_BOX]
        return (own_jxl[0] if own_jxl else _xmp(d for k, d in boxes if k == b"xml ")), ()
    return None, ()


def _join(own: list[png.Chunk]) -> bytes:
    parts: dict[int, bytes] = {}
    for chunk in own:
        if len(chunk.data) < _PART.size or not chunk.intact:
            raise DamagedBlockError("a chunk is truncated or its CRC does not match")
        index, count = _PART.unpack_from(chunk.data)
        if count != len(own) or index in parts:
            raise DamagedBlockError(f"{len(own)} of {count} parts are there")
        parts[index] = chunk.data[_PART.size :]
    if sorted(parts) != list(range(len(own))):
        raise DamagedBlockError("its parts are not numbered in sequence")
    return b"".join(parts[i] for i in range(len(own)))


def _png_text(chunks: list[png.Chunk]) -> bytes | None:
    """The block from tEXt, zTXt or iTXt, whichever a tool has made of our zTXt."""
    for chunk in chunks:
        if chunk.kind not in (b"tEXt", b"zTXt", b"iTXt") or not chunk.data.startswith(_KEYWORD + b"\0"):
            continue
        body = chunk.data[len(_KEYWORD) + 1 :]
        packed = chunk.kind == b"zTXt"
        if chunk.kind == b"zTXt":
            body = body[1:]
        elif chunk.kind == b"iTXt":
            packed = body[:1] == b"\1"
            fields = body[2:].split(b"\0", 2)
            body = fields[-1] if len(fields) == 3 else b""
        return _base64(_inflate(body) if packed else body)
    return None


def _xmp(packets: object) -> bytes | None:
    for packet in packets:  # type: ignore[attr-defined]
        found = _XMP_BLOCK.search(packet[: 2 * MAX_TEXT_BYTES + len(_XMP)])
        if found:
            return _base64(found.group(1))
    return None


def _inflate(data: bytes) -> bytes:
    """Bounded: a text bomb inflates to our limit and no further."""
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(data, 2 * MAX_TEXT_BYTES)
    except zlib.error:
        raise DamagedBlockError("its text does not inflate") from None
    if not inflater.eof:
        raise DamagedBlockError("its text is truncated or too long")
    return out


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise DamagedBlockError("its text is not base64") from None
