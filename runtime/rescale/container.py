"""The LR file: a picture that carries what its restoration needs. docs/file-format.md is the contract.

A file is a PNG picture with an integrity block (`rescale.block`) in private chunks ``reSc``. Reading never guesses: it
names the state of the file, and the pixels, alpha and latent are used only if their digests match.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from rescale import block as blocks
from rescale import codes, png
from rescale.block import Block
from rescale.errors import InputError, LrFileError
from rescale.files import atomic_write
from rescale.picture import MAX_PIXELS, decode_pixels, read_bytes
from rescale.variants import LATENT_CHANNELS, LATENT_STRIDE

Array = npt.NDArray[np.uint8]
Source = str | os.PathLike[str] | bytes | BinaryIO

CHUNK = b"reSc"
"""Ancillary, private, safe to copy: survives lossless recompression; our digests catch stale copies."""

CHUNK_BYTES = 1 << 20
_PART = struct.Struct(">HH")


class State(StrEnum):
    """What an LR file is worth."""

    EXACT = "exact"
    CHANGED = "pixels-changed"
    STRIPPED = "auxiliary-stripped"
    FOREIGN = "foreign"
    OTHER_MODEL = "other-model"
    NEWER = "newer-format"
    DAMAGED = "damaged"


ADVICE = {
    State.CHANGED: "it was resized, re-encoded or edited after downscaling; take the original LR file",
    State.STRIPPED: "a tool removed or altered the alpha channel or metadata; take the original LR file",
    State.FOREIGN: "only pictures made by `rescale down` can be restored; this is not super-resolution",
    State.OTHER_MODEL: "take the bundle that made it",
    State.NEWER: "update rescale-toolkit",
    State.DAMAGED: "take an undamaged copy",
}


@dataclass(frozen=True, eq=False)
class Small:
    """A downscaled picture with all that belongs to it.

    Attributes:
        rgb: uint8 (h, w, 3).
        alpha: uint8 (h, w) alpha codes 1..255 with 128 neutral, -A only.
        latent: uint8 (4, ceil(h/4), ceil(w/4)) latent codes with 128 neutral, -M only.
        block: the integrity block; None if the file has none that can be read.
        state: see `State`.
        detail: why the state is not exact, in words.
        name: the file it came from, for messages.
        colour: chunks that describe colour and origin (ICC, EXIF, ...), carried along unchanged.
    """

    rgb: Array
    alpha: Array | None = None
    latent: Array | None = None
    block: Block | None = None
    state: State = State.EXACT
    detail: str = ""
    name: str = "LR picture"
    colour: tuple[tuple[bytes, bytes], ...] = field(default=())

    @classmethod
    def create(
        cls,
        rgb: Array,
        alpha: Array | None,
        latent: Array | None,
        *,
        model: str,
        scale: int,
        weights: str,
        hr_size: tuple[int, int],
    ) -> Small:
        """A fresh result of downscaling; see the attributes for shapes. `hr_size` is (width, height)."""
        auxiliary = _auxiliary_bytes(alpha, latent)
        block = Block(
            model=model,
            scale=scale,
            hr_size=hr_size,
            lr_size=(rgb.shape[1], rgb.shape[0]),
            layout="alpha" if alpha is not None else "none",
            source_mode="rgb",
            weights=weights,
            rgb_digest=hashlib.sha256(rgb.tobytes()).digest(),
            auxiliary_digest=hashlib.sha256(auxiliary).digest(),
        )
        return cls(np.ascontiguousarray(rgb), alpha, latent, block)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the LR picture."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def auxiliary_bits(self) -> float:
        """Auxiliary bits per LR pixel before entropy coding: 8 for -A, about 2 for -M, 0 for plain."""
        return 8.0 * len(_auxiliary_bytes(self.alpha, self.latent)) / (self.size[0] * self.size[1])

    def require(self, model: str, scale: int, weights: str) -> None:
        """Check that this picture can be restored exactly by a model.

        Raises:
            LrFileError: it cannot; the message names the state, the reason and the way out.
        """
        state, detail = self.verdict(model, scale, weights)
        if state is not State.EXACT:
            raise LrFileError(f"{self.name}: {detail}: {ADVICE[state]} (--force restores without its auxiliary data)", state)

    def verdict(self, model: str, scale: int, weights: str) -> tuple[State, str]:
        """State of this picture for one model, and why."""
        b = self.block
        if b is not None and (b.model, b.scale, b.weights) != (model, scale, weights):
            made = f"made by {b.model} x{b.scale} with weights {b.weights[:12]}"
            return State.OTHER_MODEL, f"{made}, not by {model} x{scale} with weights {weights[:12]}"
        return self.state, self.detail

    def to_bytes(self) -> bytes:
        """The PNG file.

        Raises:
            LrFileError: there is no valid block to write, since the picture is not exact.
        """
        if self.block is None or self.state is not State.EXACT:
            raise LrFileError(f"{self.name}: {self.detail}: an LR file is written from an exact picture only", self.state)
        pixels, sections = self.rgb, {}
        if self.alpha is not None:
            pixels = np.dstack([self.rgb, codes.alpha_to_file(self.alpha)])
        if self.latent is not None:
            sections[blocks.LATENT_SECTION] = png.encode(_stack(self.latent), level=9)
        data = blocks.encode(replace(self.block, sections=sections))
        parts = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
        chunks = [(CHUNK, _PART.pack(i, len(parts)) + part) for i, part in enumerate(parts)]
        file = png.insert(png.encode(pixels), [*self.colour, *chunks])
        again = Small.from_bytes(file, self.name)
        if again.state is not State.EXACT or not _same(again, self):
            raise LrFileError(f"{self.name}: reading back the encoded file gave {again.state}: {again.detail}", again.state)
        return file

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the PNG file atomically.

        Raises:
            OutputError: it cannot be written; an old file is untouched.
            InputError: the name does not end in .png.
        """
        target = Path(path)
        if target.suffix.lower() != ".png":
            raise InputError(f"{target}: an LR file is a PNG; a lossy format would destroy it. Name it {target.stem}.png")
        atomic_write(target, self.to_bytes())

    @classmethod
    def open(cls, source: Source, max_pixels: int = MAX_PIXELS) -> Small:
        """Read an LR file from a path, bytes or a binary stream. A foreign or damaged one is read too, and says so in `state`.

        Raises:
            InputError: it is not a readable picture at all, or larger than `max_pixels`.
        """
        data, name = read_bytes(source)
        return cls.from_bytes(data, name, max_pixels)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "LR picture", max_pixels: int = MAX_PIXELS) -> Small:
        """Read an LR file from its bytes; see `open`."""
        if not data.startswith(png.SIGNATURE):
            pixels = decode_pixels(data, name, max_pixels)
            return cls(pixels[:, :, :3].copy(), state=State.FOREIGN, detail="it carries no marker of this toolkit", name=name)
        chunks = png.read_chunks(data, name)
        pixels = decode_pixels(data, name, max_pixels)
        rgb = np.ascontiguousarray(pixels[:, :, :3])
        base = cls(rgb, name=name)
        try:
            found = _collect(chunks)
            if found is None:
                return replace(base, state=State.FOREIGN, detail="it carries no marker of this toolkit")
            block = blocks.decode(found)
        except blocks.NewerFormatError as e:
            return replace(base, state=State.NEWER, detail=str(e))
        except blocks.DamagedBlockError as e:
            return replace(base, state=State.DAMAGED, detail=f"its marker is damaged: {e}")
        return _judge(replace(base, block=block), pixels)


def _judge(small: Small, pixels: Array) -> Small:
    """Compare the pixels and auxiliary data with the block; keep only what matches."""
    block = small.block
    assert block is not None
    width, height = small.size
    if (width, height) != block.lr_size:
        detail = f"it has {width}x{height} pixels where its marker says {block.lr_size[0]}x{block.lr_size[1]}"
        return replace(small, state=State.CHANGED, detail=detail)
    if hashlib.sha256(small.rgb.tobytes()).digest() != block.rgb_digest:
        return replace(small, state=State.CHANGED, detail="its pixels are not those its marker was made for")
    alpha = latent = None
    if block.layout == "alpha":
        # A missing alpha channel reads as opaque: some writers drop one that is opaque everywhere.
        stored = pixels[:, :, 3] if pixels.shape[2] == 4 else np.full((height, width), 255, np.uint8)
        alpha = codes.alpha_from_file(stored)
    if blocks.LATENT_SECTION in block.sections:
        shape = (LATENT_CHANNELS, -(-height // LATENT_STRIDE), -(-width // LATENT_STRIDE))
        try:
            latent = _unstack(block.sections[blocks.LATENT_SECTION], shape, small.name)
        except InputError as e:
            return replace(small, state=State.DAMAGED, detail=f"its latent code is damaged: {e}")
    if hashlib.sha256(_auxiliary_bytes(alpha, latent)).digest() != block.auxiliary_digest:
        what = "alpha channel was changed or dropped" if block.layout == "alpha" else "latent code is missing or changed"
        return replace(small, state=State.STRIPPED, detail=f"its {what}")
    return replace(small, alpha=alpha, latent=latent)


def _collect(chunks: list[png.Chunk]) -> bytes | None:
    """The block's bytes from its chunks; None if there is no such chunk."""
    found = [c for c in chunks if c.kind == CHUNK]
    if not found:
        return None
    parts: dict[int, bytes] = {}
    for chunk in found:
        if len(chunk.data) < _PART.size or not chunk.intact:
            raise blocks.DamagedBlockError("a chunk is truncated or its CRC does not match")
        index, count = _PART.unpack_from(chunk.data)
        if count != len(found) or index in parts:
            raise blocks.DamagedBlockError(f"{len(found)} of {count} parts are there")
        parts[index] = chunk.data[_PART.size :]
    if sorted(parts) != list(range(len(found))):
        raise blocks.DamagedBlockError("its parts are not numbered in sequence")
    return b"".join(parts[i] for i in range(len(found)))


def _auxiliary_bytes(alpha: Array | None, latent: Array | None) -> bytes:
    return (b"" if alpha is None else alpha.tobytes()) + (b"" if latent is None else latent.tobytes())


def _stack(planes: Array) -> Array:
    """(C, h, w) as one gray picture (C * h, w), so that PNG's filters and inflater do the entropy coding."""
    return planes.reshape(-1, planes.shape[2])


def _unstack(data: bytes, shape: tuple[int, int, int], name: str) -> Array:
    """Inverse of `_stack`, bounded: the coded picture's size is checked before it is decoded."""
    header = png.read_header(png.read_chunks(data, name), name)
    if (header.width, header.height, header.depth, header.colour) != (shape[2], shape[0] * shape[1], 8, 0):
        raise InputError(f"{name}: a coded plane of {header.width}x{header.height}, wanted {shape[2]}x{shape[0] * shape[1]}")
    plane = decode_pixels(data, name, header.width * header.height)[:, :, 0]
    return np.ascontiguousarray(plane).reshape(shape)


def _same(a: Small, b: Small) -> bool:
    pairs = ((a.rgb, b.rgb), (a.alpha, b.alpha), (a.latent, b.latent))
    return all((x is None and y is None) or (x is not None and y is not None and np.array_equal(x, y)) for x, y in pairs)
