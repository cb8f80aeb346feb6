"""The integrity block of an LR file: what the picture is, whose it is, and digests of all it needs.

Layout, little-endian; docs/file-format.md is the contract:

    0    4   magic "RSCL"
    4    1   major version          readers refuse a larger one
    5    1   minor version          readers accept any
    6    1   scale
    7    1   where -A's fourth plane is: 0 nowhere, 1 alpha channel, 2 section ALPH, 3 strip below the picture
    8    4   HR width               before padding
    12   4   HR height
    16   4   LR width               without a strip
    20   4   LR height
    24   1   source mode            see `SOURCE_MODES`
    25   7   zero
    32   32  model name             ASCII, zero-padded
    64   32  SHA-256 of the weights
    96   32  SHA-256 of the LR's RGB bytes, row-major
    128  32  SHA-256 of the auxiliary bytes: alpha codes (-A), latent codes (-M), nothing (plain)
    160  4   number of sections
    164  ..  sections: name 4, coded length 4, coded bytes
    end  32  SHA-256 of all before
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from rescale.choices import Layout
from rescale.variants import SCALES

MAGIC = b"RSCL"
MAJOR, MINOR = 1, 0
_HEADER = struct.Struct("<4sBBBBIIIIB7x32s32s32s32sI")
_DIGEST = 32
MAX_SECTIONS = 16

LAYOUTS = ("none", Layout.ALPHA.value, Layout.CHUNK.value, Layout.STRIP.value)
"""Places of -A's fourth plane, by their code."""

SOURCE_MODES = ("rgb", "gray")
"""What the HR picture was before it became RGB, by its code."""

ALPHA_SECTION = b"ALPH"
LATENT_SECTION = b"LATN"
SOURCE_ALPHA_SECTION = b"SRCA"
METADATA_SECTION = b"META"


class NewerFormatError(Exception):
    """The block's major version is above ours."""

    def __init__(self, major: int) -> None:
        super().__init__(f"format version {major}, this program reads up to {MAJOR}")
        self.major = major


class DamagedBlockError(Exception):
    """The block is truncated, contradicts itself or does not match its digest."""


@dataclass(frozen=True)
class Block:
    """Decoded integrity block.

    Attributes:
        model: variant name.
        scale: 2 or 4.
        hr_size: (width, height) of the HR picture before padding.
        lr_size: (width, height) of the LR picture.
        layout: one of `LAYOUTS`.
        source_mode: one of `SOURCE_MODES`.
        weights: SHA-256 of the weights, hexadecimal.
        rgb_digest: SHA-256 of the LR's RGB bytes.
        auxiliary_digest: SHA-256 of the auxiliary bytes.
        sections: coded bytes by four-letter name.
    """

    model: str
    scale: int
    hr_size: tuple[int, int]
    lr_size: tuple[int, int]
    layout: str
    source_mode: str
    weights: str
    rgb_digest: bytes
    auxiliary_digest: bytes
    sections: dict[bytes, bytes] = field(default_factory=dict)


def encode(block: Block) -> bytes:
    """Block to bytes."""
    head = _HEADER.pack(
        MAGIC,
        MAJOR,
        MINOR,
        block.scale,
        LAYOUTS.index(block.layout),
        *block.hr_size,
        *block.lr_size,
        SOURCE_MODES.index(block.source_mode),
        block.model.encode("ascii"),
        bytes.fromhex(block.weights),
        block.rgb_digest,
        block.auxiliary_digest,
        len(block.sections),
    )
    body = b"".join(struct.pack("<4sI", name, len(data)) + data for name, data in block.sections.items())
    return head + body + hashlib.sha256(head + body).digest()


def decode(data: bytes) -> Block:
    """Bytes to block.

    Raises:
        NewerFormatError: a major version above ours.
        DamagedBlockError: anything else that is wrong.
    """
    if len(data) < _HEADER.size + _DIGEST or data[:4] != MAGIC:
        raise DamagedBlockError("the block is too short or has no magic")
    if data[4] > MAJOR:
        raise NewerFormatError(data[4])
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise DamagedBlockError("the block does not match its digest")
    (_, major, _, scale, layout, hw, hh, lw, lh, mode, model, weights, rgb, auxiliary, count) = _HEADER.unpack_from(data)
    if major < 1 or layout >= len(LAYOUTS) or mode >= len(SOURCE_MODES) or count > MAX_SECTIONS or scale not in SCALES:
        raise DamagedBlockError("a field of the block is out of range")
    if (lw, lh) != (-(-hw // scale), -(-hh // scale)) or not (hw and hh):
        raise DamagedBlockError(f"HR {hw}x{hh} and LR {lw}x{lh} do not belong together at scale {scale}")
    sections: dict[bytes, bytes] = {}
    at, end = _HEADER.size, len(data) - _DIGEST
    for _ in range(count):
        if at + 8 > end:
            raise DamagedBlockError("a section is truncated")
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > end or name in sections:
            raise DamagedBlockError("a section is truncated or occurs twice")
        sections[name] = data[at + 8 : at + 8 + length]
        at += 8 + length
    if at != end:
        raise DamagedBlockError("bytes are left over behind the sections")
    try:
        name = model.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise DamagedBlockError("the model name is not ASCII") from None
    return Block(name, scale, (hw, hh), (lw, lh), LAYOUTS[layout], SOURCE_MODES[mode], weights.hex(), rgb, auxiliary, sections)
