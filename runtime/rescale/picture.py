"""Ordinary pictures: the HR side of the tool.

Every input is either handled exactly or refused with the way out; nothing is converted in silence.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from rescale import avif, colour, jxl, png, riff
from rescale.choices import AlphaRule
from rescale.decode import opened
from rescale.deep import eight_bits, is_deep, stored_depth, why_not_rounded
from rescale.errors import InputError
from rescale.files import atomic_write
from rescale.image import check_colours, check_plane, check_rgb, check_sides
from rescale.limits import MAX_PIXELS
from rescale.source import Source, read_bytes

Array = npt.NDArray[np.uint8]

ALPHA_RULES = tuple(rule.value for rule in AlphaRule)
WRITABLE = (".png", ".webp")
TIFF_EXTRA_SAMPLES = 338
"""Tag that says what the samples beyond the colours are; 1 is alpha that the colours are multiplied by."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An HR picture with all that is carried beside its colours.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        gray: it was a gray picture, and is written as one again.
        alpha: uint8 (H, W) transparency of the source, or None if opaque.
        colour: chunks that say how it is to be shown, see `rescale.colour`; any sequence of (kind, body) becomes a tuple.

    Raises:
        InputError: pixels or alpha of another dtype or shape, or a chunk that is not carried.
    """

    pixels: Array
    gray: bool = False
    alpha: Array | None = None
    colour: colour.Chunks = ()

    def __post_init__(self) -> None:
        check_colours(self.pixels)
        if self.alpha is not None:
            check_plane(self.alpha, self.pixels.shape[:2], "alpha")
        object.__setattr__(self, "colour", _carried(self.colour))

    def planes(self) -> Array:
        """What is written: (H, W), (H, W, 3), or with alpha (H, W, 2) or (H, W, 4); gray is the mean of R, G and B."""
        base = self._levels() if self.gray else self.pixels
        return base if self.alpha is None else np.dstack([base, self.alpha])

    def shown(self) -> Array:
        """The colours as they are written: uint8 (H, W, 3); of a gray picture the mean of R, G and B, three times."""
        return np.repeat(self._levels()[:, :, None], 3, axis=2) if self.gray else self.pixels

    def _levels(self) -> Array:
        # Rounded without floats, which would take eight bytes a pixel: of three whole numbers no mean lies midway between two.
        levels: Array = ((self.pixels.sum(2, dtype=np.uint16) + 1) // 3).astype(np.uint8)
        return levels

    def to_bytes(self, suffix: str = ".png") -> bytes:
        """A lossless file: PNG, or WebP with suffix ``.webp``.

        Raises:
            InputError: another suffix, or what WebP cannot hold: its size, or its colour space.
        """
        if suffix == ".png":
            return png.insert(png.encode(self.planes()), self.colour)
        if suffix == ".webp":
            if self.gray and colour.for_rgb(self.colour) != self.colour:
                raise InputError("a gray picture with a gray colour profile: WebP holds neither; write it as .png")
            if chunk := colour.told_by_png_alone(self.colour):
                raise InputError(f"its colours are those of a chunk {chunk}, which WebP has no place for; write it as .png")
            pixels = self.shown() if self.alpha is None else np.dstack([self.shown(), self.alpha])
            extra = {b"ICCP": colour.icc_profile(self.colour), b"EXIF": colour.exif(self.colour)}
            kept = {k: v for k, v in extra.items() if v}
            return riff.insert(riff.encode(pixels), self.size, self.alpha is not None, kept)
        raise InputError(f"restored pictures are written as {' or '.join(WRITABLE)}, not as {suffix or 'a file without suffix'}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it losslessly and atomically, as the suffix says.

        Raises:
            OutputError: it cannot be written; an old file is untouched.
            InputError: the suffix is not one of `WRITABLE`.
        """
        target = Path(path)
        atomic_write(target, self.to_bytes(target.suffix.lower()))


def _carried(chunks: object) -> colour.Chunks:
    """Colour chunks in the form that all else relies on.

    Raises:
        InputError: not pairs of bytes, or of a kind that is not carried.
    """
    try:
        pairs = tuple((kind, body) for kind, body in cast(colour.Chunks, chunks))
    except (TypeError, ValueError):
        pairs = ((b"", b""),)
    for kind, body in pairs:
        if not isinstance(body, bytes) or kind not in colour.KINDS:
            wanted = f"pairs of a chunk's kind and its body in bytes, kinds {', '.join(map(repr, colour.KINDS))}"
            raise InputError(f"colour: {wanted} are carried, got {str(chunks)[:80]}")
    return pairs


def open_picture(
    source: Source, alpha: str = "refuse", max_pixels: int = MAX_PIXELS, to_8_bit: bool = False, first_frame: bool = False
) -> Picture:
    """An HR picture from a path, bytes or a binary stream.

    Gray and palette pictures become RGB, which holds them exactly; gray is remembered. An alpha channel that is opaque
    everywhere is dropped. Colour profile, EXIF and orientation are carried along, not applied, except those of a
    TIFF: it is turned upright and keeps its colour profile alone. Text, XMP, comments and times are left behind.

    Args:
        source: what to read.
        alpha: ``refuse`` a picture with real transparency, or ``keep`` its alpha plane losslessly.
        max_pixels: refuse larger ones before decoding.
        to_8_bit: round more bits a sample to the nearest of 8, instead of refusing them.
        first_frame: take the first of several frames or pages, instead of refusing them; of an animated PNG the picture that
            programs show which do not animate it.

    Raises:
        InputError: missing, not a picture, truncated, too large, or of a kind that RGB with 8 bits cannot hold exactly: more
            than 8 bits, CMYK, several frames, real transparency. The message says what to do.
    """
    if alpha not in ALPHA_RULES:
        raise InputError(f"alpha rule {alpha!r}: choose one of {', '.join(ALPHA_RULES)}")
    data, name = read_bytes(source)
    if jxl.is_jxl(data):
        raise InputError(f"{name}: JPEG XL as a source would lose its colour profile; convert it to PNG first")
    with opened(data, name, max_pixels) as found:
        image, chunks = found.image, found.chunks
        check_sides(image.width, image.height, name)
        with found.damage_is_named():
            # Not n_frames: Pillow counts the pages of a TIFF in quadratic time.
            several = getattr(image, "is_animated", False)
            depth = stored_depth(data, name, image)
        # Pillow sees critical chunks only, so a PNG's animation is looked for here.
        animated = several or any(c.kind == b"acTL" for c in chunks or ())
        if animated and not first_frame:
            raise InputError(
                f"{name}: has several frames", "extract the one you want as a PNG, or `down --first-frame` takes the first"
            )
        if image.format == "TIFF" and _has_associated_alpha(image):
            raise InputError(f"{name}: its colours are multiplied by its alpha, which cannot be undone exactly; convert it first")
        if not is_deep(image.mode) and image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
            how = " by its colour profile" if image.mode == "CMYK" else ""  # others have none
            raise InputError(f"{name}: colour mode {image.mode}; convert it to RGB{how} first (docs/commands.md)")
        deep = is_deep(image.mode) or depth > 8
        if deep and not to_8_bit:
            with found.damage_is_named():
                cure = "convert it to 8 bits first" if why_not_rounded(image, depth) else "`down --to-8-bit` rounds them"
            raise InputError(f"{name}: more than 8 bits a sample, which the networks cannot hold", cure)
        if deep:
            with found.damage_is_named():
                planes = eight_bits(image, depth, found.again, name)
            gray = planes.shape[2] < 3
        else:
            found.load()
            gray = image.mode in ("1", "L", "LA")
            planes = found.rgb()
        if chunks is not None:
            carried = colour.from_png(chunks, name)
        else:
            carried = colour.from_info(image.info | {"cicp": avif.cicp(data) if image.format == "AVIF" else None}, name)
    pixels = np.repeat(planes[:, :, :1], 3, axis=2) if planes.shape[2] < 3 else np.ascontiguousarray(planes[:, :, :3])
    return Picture(pixels, gray, _transparency(planes, alpha, name), carried)


def read_picture(source: Source, max_pixels: int = MAX_PIXELS) -> Array:
    """Only the pixels of `open_picture`: uint8 (H, W, 3)."""
    return open_picture(source, max_pixels=max_pixels).pixels


def _transparency(pixels: Array, rule: str, name: str) -> Array | None:
    """The alpha plane to keep; None for an opaque picture."""
    if pixels.shape[2] in (1, 3) or (pixels[:, :, -1] == 255).all():
        return None
    if rule == "refuse":
        raise InputError(f"{name}: has real transparency", "keep it beside the LR with --alpha keep, or flatten it first")
    return np.ascontiguousarray(pixels[:, :, -1])


def _has_associated_alpha(image: Image.Image) -> bool:
    samples = image.tag_v2.get(TIFF_EXTRA_SAMPLES)  # type: ignore[attr-defined]
    return 1 in (samples if isinstance(samples, tuple) else (samples,))


def write_picture(path: str | os.PathLike[str], pixels: Array) -> None:
    """Write RGB pixels losslessly and atomically as PNG or WebP; see `Picture.save`.

    Raises:
        InputError: not uint8 (H, W, 3), and as `Picture.save`.
    """
    Picture(check_rgb(pixels)).save(path)
