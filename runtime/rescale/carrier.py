"""How the integrity block travels in a file: as chunks of the container, as text, or beside the file.

    container   chunk (default)                           text
    PNG         reSc chunks, at most 1 MiB each           zTXt "rescale", base64
    WebP        RIFF chunk RSCL                           XMP packet, base64
    JPEG XL     box rscl                                  box "xml ", base64

A side-car is the bare block in FILE.rescale. Private chunks survive lossless optimisers; text survives some re-savers (see
docs/survival.md). A small block, as -A's is, is written both ways by ``chunk``; the digests in it make a stale copy harmless.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rescale import colour, jxl, png, riff
from rescale.block import DamagedBlockError
from rescale.choices import Carrier, Container
from rescale.errors import InputError

Array = npt.NDArray[np.uint8]

CONTAINERS = tuple(c.value for c in Container)
CARRIERS = tuple(c.value for c in Carrier)
PNG_CHUNK, WEBP_CHUNK, JXL_BOX = b"reSc", b"RSCL", b"rscl"
"""PNG: ancillary, private, safe to copy. It survives lossless recompression; our digests catch stale copies."""

PART_BYTES = 1 << 20
MAX_TEXT_BYTES = 700_000
"""Largest block as text: base64 of it stays below the 1 MiB at which Pillow refuses a whole file."""

COPIED_BYTES = 1024
"""A block up to this size is also written as text by carrier ``chunk``."""

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
    if carrier == "text" and len(block) > MAX_TEXT_BYTES:
        raise InputError(f"{len(block)} bytes of auxiliary data; text holds {MAX_TEXT_BYTES}: use --carrier chunk or sidecar")
    as_text = carrier == "text" or (carrier == "chunk" and len(block) <= COPIED_BYTES)
    text = base64.b64encode(block) if as_text else b""
    if container == "png":
        own: list[tuple[bytes, bytes]] = []
        if carrier == "chunk":
            parts = [block[i : i + PART_BYTES] for i in range(0, len(block), PART_BYTES)]
            own = [(PNG_CHUNK, _PART.pack(i, len(parts)) + part) for i, part in enumerate(parts)]
        if text:
            own.append((b"zTXt", _KEYWORD + b"\0\0" + zlib.compress(text, 9)))
        return png.insert(png.encode(pixels), [*shown, *own])
    if container == "webp":
        extra = {b"ICCP": colour.icc_profile(shown), b"EXIF": colour.exif(shown)}
        chunks = {k: v for k, v in extra.items() if v}
        if carrier == "chunk":
            chunks[WEBP_CHUNK] = block
        if text:
            chunks[b"XMP "] = _XMP.format(text.decode()).encode()
        return riff.insert(riff.encode(pixels), (pixels.shape[1], pixels.shape[0]), pixels.shape[2] == 4, chunks)
    boxes: dict[bytes, bytes] = {}
    exif = colour.exif(shown)
    if exif:
        boxes[b"Exif"] = b"\0\0\0\0" + exif
    if carrier == "chunk":
        boxes[JXL_BOX] = block
    if text:
        boxes[b"xml "] = _XMP.format(text.decode()).encode()
    return jxl.encode(pixels, boxes)


def read(data: bytes, name: str) -> tuple[list[bytes], list[DamagedBlockError], colour.Chunks]:
    """What a file carries.

    Returns:
        The block's bytes, once for each copy that is there in whole, own chunk first; what is wrong with other copies; and
        the colour chunks that the container itself holds.

    Raises:
        InputError: the container is truncated or damaged.
    """
    container = container_of(data)
    ways: list[Callable[[], bytes | None]] = []
    shown: colour.Chunks = ()
    if container == "png":
        chunks = png.read_chunks(data, name)
        shown = colour.from_png(chunks, name)
        ways = [lambda: _join([c for c in chunks if c.kind == PNG_CHUNK]), lambda: _png_text(chunks)]
    elif container in ("webp", "jxl"):
        pieces = riff.read_chunks(data, name) if container == "webp" else jxl.read_boxes(data, name)
        shown = _shown(pieces, name)
        ways = [
            lambda: next((d for k, d in pieces if k in (WEBP_CHUNK, JXL_BOX)), None),
            lambda: _xmp([d for k, d in pieces if k in (b"XMP ", b"xml ")]),
        ]
    found: list[bytes] = []
    faults: list[DamagedBlockError] = []
    for way in ways:
        try:
            copy = way()
        except DamagedBlockError as e:
            faults.append(e)
        else:
            found += [] if copy is None else [copy]
    return found, faults, shown


def _shown(pieces: list[tuple[bytes, bytes]], name: str) -> colour.Chunks:
    """ICC profile and EXIF in the places that `write` puts them in a WebP or JPEG XL."""
    first = dict(reversed(pieces))
    box = first.get(b"Exif", b"\0\0\0\0")
    boxed = box[4 + int.from_bytes(box[:4], "big") :]  # the box says where behind its first field the EXIF begins
    return colour.from_info({"icc_profile": first.get(b"ICCP"), "exif": first.get(b"EXIF", boxed)}, name)


def _join(own: list[png.Chunk]) -> bytes | None:
    if not own:
        return None
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


def _xmp(packets: list[bytes]) -> bytes | None:
    for packet in packets:
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
