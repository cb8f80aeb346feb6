"""The LR file: a picture that carries what its restoration needs. docs/file-format.md is the contract.

Reading never guesses: it names the state of the file, and pixels, alpha and latent are used only if their digests match.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from rescale import block as blocks
from rescale import carrier as carriers
from rescale import codes, colour, planes
from rescale.block import Block
from rescale.choices import Layout
from rescale.decode import decode_pixels
from rescale.errors import DamagedPictureError, InputError, LrFileError
from rescale.files import atomic_write, atomic_write_both
from rescale.image import check_colours, check_plane
from rescale.limits import MAX_PIXELS
from rescale.picture import Picture
from rescale.source import read_bytes
from rescale.variants import LATENT_CHANNELS, LATENT_STRIDE, VARIANTS

Array = npt.NDArray[np.uint8]
Source = str | os.PathLike[str] | bytes | BinaryIO

LAYOUTS = tuple(place.value for place in Layout)

SUFFIXES = {".png": "png", ".webp": "webp", ".jxl": "jxl"}
"""Container of an LR file by the suffix of its name; all lossless."""


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
NO_MARKER = "it carries no marker of this toolkit"
TRUST = "if `rescale down` made it and a tool saved it again, --trust-alpha restores it with the alpha channel as it is, unchecked"
"""What else to do where there is an alpha channel to trust."""

TRUSTABLE = (State.CHANGED, State.STRIPPED, State.FOREIGN)
"""States in which an alpha channel may still be -A's, or nearly so."""


@dataclass(frozen=True, eq=False)
class Small:
    """A downscaled picture with all that belongs to it. Its arrays are read-only, for its state speaks of what they hold.

    Attributes:
        rgb: uint8 (h, w, 3).
        alpha: uint8 (h, w) alpha codes 1..255 with 128 neutral, -A only.
        latent: uint8 (4, ceil(h/4), ceil(w/4)) latent codes with 128 neutral, -M only.
        source_alpha: uint8 (H, W) transparency of the HR picture, if it was kept.
        block: the integrity block; None if the file has none that can be read.
        state: see `State`.
        detail: why the state is not exact, in words.
        name: the file it came from, for messages.
        colour: chunks that say how the picture is shown, carried along unchanged.
        unverified_alpha: uint8 (h, w) alpha codes of a picture in a state of `TRUSTABLE` with an alpha channel; -A's, or anything.

    Raises:
        InputError: an array of another dtype, or planes of different sizes.
    """

    rgb: Array
    alpha: Array | None = None
    latent: Array | None = None
    source_alpha: Array | None = None
    block: Block | None = None
    state: State = State.EXACT
    detail: str = ""
    name: str = "LR picture"
    colour: colour.Chunks = ()
    unverified_alpha: Array | None = None

    def __post_init__(self) -> None:
        height, width = check_colours(self.rgb).shape[:2]
        shapes: dict[str, tuple[int, ...]] = {"rgb": (height, width, 3), "latent": _latent_shape(height, width)}
        shapes |= {"alpha": (height, width), "unverified_alpha": (height, width)}
        own = getattr(self.source_alpha, "shape", ())  # without a block nothing says what it should be
        shapes["source_alpha"] = own if self.block is None else self.block.hr_size[::-1]
        for field, shape in shapes.items():
            if (plane := getattr(self, field)) is not None:
                view = check_plane(plane, shape, f"{self.name}: {field}").view()  # the caller's stays as writable as it was
                view.setflags(write=False)
                object.__setattr__(self, field, view)

    def __setstate__(self, state: dict[str, object]) -> None:
        # A copy or a pickle makes new arrays, which are writable.
        self.__dict__.update(state)
        self.__post_init__()

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
        source: Picture,
    ) -> Small:
        """A fresh result of downscaling `source`; see the attributes for shapes."""
        rgb = np.ascontiguousarray(rgb)
        block = Block(
            model=model,
            scale=scale,
            hr_size=source.size,
            lr_size=(rgb.shape[1], rgb.shape[0]),
            layout="alpha" if alpha is not None else "none",
            source_mode="gray" if source.gray else "rgb",
            weights=weights,
            rgb_digest=hashlib.sha256(rgb.tobytes()).digest(),
            auxiliary_digest=hashlib.sha256(_auxiliary_bytes(alpha, latent)).digest(),
        )
        return cls(rgb, alpha, latent, source.alpha, block, colour=source.colour)

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
        if state is State.EXACT:
            return
        advice = ADVICE[state]
        if self.trusted_alpha(model, scale, weights) is not None:
            advice += f"; {TRUST}"
        if self.block is not None and self.block.scale != scale:
            advice += " (--force does not help: another scale gives another size)"
        elif model in VARIANTS and VARIANTS[model].auxiliary == "none":
            advice += " (--force restores from its pixels, unverified)"
        else:
            advice += " (--force restores without its auxiliary data)"
        raise LrFileError(f"{self.name}: {detail}: {advice}", state)

    def verdict(self, model: str, scale: int, weights: str) -> tuple[State, str]:
        """State of this picture for one model, and why."""
        b = self.block
        if b is not None and (b.model, b.scale, b.weights) != (model, scale, weights):
            made = f"made by {b.model} x{b.scale} with weights {b.weights[:12]}"
            return State.OTHER_MODEL, f"{made}, not by {model} x{scale} with weights {weights[:12]}"
        if b is not None and self.state is State.EXACT and self.size != b.lr_size:  # not from a file: its arrays were exchanged
            return State.CHANGED, _resized(self.size, b.lr_size)
        return self.state, self.detail

    def trusted_alpha(self, model: str, scale: int, weights: str) -> Array | None:
        """Alpha codes by which a model can restore this picture if its user trusts them; None if there is nothing to trust."""
        state, _ = self.verdict(model, scale, weights)
        return self.unverified_alpha if state in TRUSTABLE and VARIANTS[model].alpha else None

    def without_auxiliary(self) -> Picture:
        """The ordinary picture: LR pixels and colour chunks, nothing from which the HR could be restored.

        Raises:
            LrFileError: without a readable marker that fits the pixels nobody can say what of them is auxiliary.
        """
        if self.block is None or self.size != self.block.lr_size:
            raise LrFileError(f"{self.name}: {self.detail}: what of it is auxiliary data cannot be told", self.state)
        return Picture(self.rgb, colour=colour.for_rgb(self.colour))

    def encode(self, container: str = "png", layout: str = "alpha", carrier: str = "chunk") -> tuple[bytes, bytes | None]:
        """The file, and the side-car's bytes if `carrier` is ``sidecar``. What was encoded is read back and compared.

        Args:
            container: ``png``, ``webp`` or ``jxl``, all lossless.
            layout: where -A's fourth plane goes: ``alpha`` channel, ``chunk`` in the metadata, or ``strip`` below the picture.
            carrier: ``chunk``, ``text`` or ``sidecar``, see `rescale.carrier`.

        Raises:
            LrFileError: this picture is not exact, so there is no valid block to write.
            InputError: an unknown option, or more than the container or carrier can hold.
        """
        for option, value, known in (
            ("container", container, carriers.CONTAINERS),
            ("layout", layout, LAYOUTS),
            ("carrier", carrier, carriers.CARRIERS),
        ):
            if value not in known:
                raise InputError(f"{option} {value!r}: choose one of {', '.join(known)}")
        if self.block is None or self.state is not State.EXACT:
            raise LrFileError(f"{self.name}: {self.detail}: an LR file is written from an exact picture only", self.state)
        pixels, sections = self.rgb, {}
        if self.alpha is None:
            layout = "none"
        elif layout == "alpha":
            pixels = np.dstack([self.rgb, codes.alpha_to_file(self.alpha)])
        elif layout == "strip":
            pixels = planes.add_strip(self.rgb, self.alpha)
        else:
            sections[blocks.ALPHA_SECTION] = planes.encode(self.alpha)
        if self.latent is not None:
            sections[blocks.LATENT_SECTION] = planes.encode(self.latent)
        if self.source_alpha is not None:
            sections[blocks.SOURCE_ALPHA_SECTION] = planes.encode(self.source_alpha)
        shown = colour.for_rgb(self.colour)
        if self.colour and (container != "png" or shown != self.colour):
            sections[blocks.METADATA_SECTION] = colour.pack(self.colour)
        block = blocks.encode(replace(self.block, layout=layout, sections=sections))
        data = carriers.write(pixels, block, shown, container, carrier)
        sidecar = block if carrier == "sidecar" else None
        width, height = self.block.hr_size
        again = Small.from_bytes(data, self.name, max(pixels.shape[0] * pixels.shape[1], width * height), sidecar)
        if again.state is not State.EXACT or not _same(again, self):
            raise LrFileError(f"{self.name}: reading back the encoded file gave {again.state}: {again.detail}", again.state)
        return data, sidecar

    def to_bytes(self, container: str = "png", layout: str = "alpha", carrier: str = "chunk") -> bytes:
        """The file alone; see `encode`."""
        return self.encode(container, layout, carrier)[0]

    def save(self, path: str | os.PathLike[str], layout: str = "alpha", carrier: str = "chunk") -> None:
        """Write the file atomically, in the container that its suffix names; a side-car goes beside it, first.

        Raises:
            OutputError: it cannot be written; an old file is untouched.
            InputError: the suffix is not that of a lossless container; see also `encode`.
        """
        target = Path(path)
        data, sidecar = self.encode(container_for(target), layout, carrier)
        if sidecar is None:
            atomic_write(target, data)
        else:
            atomic_write_both((sidecar_path(target), sidecar), (target, data))

    @classmethod
    def open(cls, source: Source, max_pixels: int = MAX_PIXELS) -> Small:
        """Read an LR file from a path, bytes or a binary stream. A foreign or damaged one is read too, and says so in `state`.

        A side-car FILE.rescale beside a path is used if the file itself carries no block that can be read.

        Raises:
            InputError: it is not a readable picture at all, or it or the HR transparency that it carries is larger than
                `max_pixels`.
        """
        data, name = read_bytes(source)
        small = cls.from_bytes(data, name, max_pixels)
        if small.block is not None or not isinstance(source, str | os.PathLike) or not os.path.isfile(sidecar_path(Path(source))):
            return small
        try:
            return cls.from_bytes(data, name, max_pixels, read_bytes(sidecar_path(Path(source)))[0])
        except InputError as e:
            return replace(small, state=State.DAMAGED, detail=f"its side-car cannot be read: {e}")

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "LR picture", max_pixels: int = MAX_PIXELS, sidecar: bytes | None = None) -> Small:
        """Read an LR file from its bytes (or a bytearray or memoryview), with the side-car's bytes if there is one; see `open`."""
        data, sidecar = _as_bytes(data, name), None if sidecar is None else _as_bytes(sidecar, name)
        if not data:
            raise DamagedPictureError(f"{name}: empty, not a picture that can be read")
        pixels = decode_pixels(data, name, max_pixels, tuple(SUFFIXES))
        copies, faults, shown = carriers.read(data, name)
        base = cls(np.ascontiguousarray(pixels[:, :, :3]), name=name, colour=shown)
        newer: blocks.NewerFormatError | None = None
        for copy in [*copies, *([] if sidecar is None else [sidecar])]:
            try:
                return _judge(replace(base, block=blocks.decode(copy)), pixels, max_pixels)
            except blocks.NewerFormatError as e:
                newer = e
            except blocks.DamagedBlockError as e:
                faults.append(e)
        if newer:
            return replace(base, state=State.NEWER, detail=str(newer))
        if faults:
            return replace(base, state=State.DAMAGED, detail=f"its marker is damaged: {faults[0]}")
        return replace(base, state=State.FOREIGN, detail=NO_MARKER, unverified_alpha=_stored_alpha(pixels))


def _as_bytes(data: object, name: str) -> bytes:
    """What a program has of a file, in the one form of which slices can be compared and looked up.

    Raises:
        InputError: no bytes.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        wanted = "the bytes of a file were expected; Small.open takes paths and streams"
        raise InputError(f"{name}: {wanted}, got {type(data).__name__}")
    return bytes(data)


def container_for(path: Path) -> str:
    """Container that a file name asks for.

    Raises:
        InputError: not a lossless container.
    """
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise InputError(f"{path}: an LR file is lossless: name it {' or '.join(path.stem + s for s in SUFFIXES)}") from None


def sidecar_path(path: Path) -> Path:
    """Where a file's side-car lies."""
    return path.with_name(path.name + carriers.SIDECAR_SUFFIX)


def _judge(small: Small, pixels: Array, max_pixels: int) -> Small:
    """Compare pixels and auxiliary data with the block; keep only what matches.

    Raises:
        InputError: the HR picture's transparency is there and has more than `max_pixels`.
    """
    block = small.block
    assert block is not None
    width, height = block.lr_size
    rows = height + (planes.strip_rows(height) if block.layout == "strip" else 0)
    if small.size != (width, rows):
        return replace(small, state=State.CHANGED, detail=_resized(small.size, (width, rows)))
    rgb, alpha = small.rgb, None
    if block.layout == "strip":
        rgb, alpha = planes.take_strip(small.rgb, height)
        small = replace(small, rgb=rgb)
    unverified = _stored_alpha(pixels) if block.layout == "alpha" else None
    if hashlib.sha256(rgb.tobytes()).digest() != block.rgb_digest:
        detail = "its pixels are not those its marker was made for"
        return replace(small, state=State.CHANGED, detail=detail, unverified_alpha=unverified)
    sections = block.sections
    if blocks.SOURCE_ALPHA_SECTION in sections and block.hr_size[0] * block.hr_size[1] > max_pixels:
        wanted = f"above the limit of {max_pixels} pixels; raise it with --max-pixels"
        raise InputError(f"{small.name}: carries the transparency of an HR picture of {_by(block.hr_size)}, {wanted}")
    try:
        if block.layout == "alpha":
            # A missing alpha channel reads as opaque, which is neutral: some writers drop one that is opaque everywhere.
            alpha = np.full((height, width), codes.ALPHA_NEUTRAL, np.uint8) if unverified is None else unverified
        elif blocks.ALPHA_SECTION in sections:
            alpha = planes.decode(sections[blocks.ALPHA_SECTION], (height, width), small.name)
        latent = None
        if blocks.LATENT_SECTION in sections:
            latent = planes.decode(sections[blocks.LATENT_SECTION], _latent_shape(height, width), small.name)
        if blocks.SOURCE_ALPHA_SECTION in sections:
            source_alpha = planes.decode(sections[blocks.SOURCE_ALPHA_SECTION], block.hr_size[::-1], small.name)
            small = replace(small, source_alpha=source_alpha)
        if blocks.METADATA_SECTION in sections:
            small = replace(small, colour=colour.unpack(sections[blocks.METADATA_SECTION], small.name))
    except InputError as e:
        return replace(small, state=State.DAMAGED, detail=f"its auxiliary data is damaged: {e}")
    if hashlib.sha256(_auxiliary_bytes(alpha, latent)).digest() != block.auxiliary_digest:
        what = "latent code is missing or changed" if alpha is None else "alpha plane was changed or dropped"
        return replace(small, state=State.STRIPPED, detail=f"its {what}", unverified_alpha=unverified)
    return replace(small, alpha=alpha, latent=latent)


def _stored_alpha(pixels: Array) -> Array | None:
    """Alpha codes of a picture's alpha channel, if it has one."""
    return codes.alpha_from_file(pixels[:, :, 3]) if pixels.shape[2] == 4 else None


def _auxiliary_bytes(alpha: Array | None, latent: Array | None) -> bytes:
    return (b"" if alpha is None else alpha.tobytes()) + (b"" if latent is None else latent.tobytes())


def _latent_shape(height: int, width: int) -> tuple[int, int, int]:
    return LATENT_CHANNELS, -(-height // LATENT_STRIDE), -(-width // LATENT_STRIDE)


def _resized(size: tuple[int, int], wanted: tuple[int, int]) -> str:
    return f"it has {_by(size)} pixels where its marker says {_by(wanted)}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _same(a: Small, b: Small) -> bool:
    pairs = ((a.rgb, b.rgb), (a.alpha, b.alpha), (a.latent, b.latent), (a.source_alpha, b.source_alpha))
    equal = all((x is None and y is None) or (x is not None and y is not None and np.array_equal(x, y)) for x, y in pairs)
    return equal and a.colour == b.colour
