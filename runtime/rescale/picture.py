"""Ordinary pictures: the HR side of the tool.

Every input is either handled exactly or refused with the way out; nothing is converted in silence.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from rescale import avif, colour, jp2, jxl, png, riff
from rescale.choices import AlphaRule
from rescale.deep import eight_bits, is_deep, stored_depth
from rescale.errors import DamagedPictureError, InputError, RescaleError
from rescale.files import atomic_write, read_some
from rescale.image import check_colours, check_pixels, check_plane, check_rgb, check_sides
from rescale.limits import MAX_PIXELS

Array = npt.NDArray[np.uint8]
Source = str | os.PathLike[str] | bytes | BinaryIO

MAX_FILE_BYTES = 2 << 30
PIECE_BYTES = 16 << 20
ALPHA_RULES = tuple(rule.value for rule in AlphaRule)

READABLE = [".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".avif", ".gif"]
READABLE += [".jp2", ".jpx", ".j2k", ".j2c"]
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "GIF", "MPO", "JPEG2000")
"""Decoders of Pillow that may see a file; others run foreign programs or hold no pictures."""
WRITABLE = (".png", ".webp")
_TOO_LARGE = f"above {MAX_PIXELS} pixels in a format that is not read beyond; convert it to PNG, or cut it into parts"
CHECKED = ("PNG", "WEBP", "AVIF")
"""Formats whose damage is found whatever the program that embeds this has told Pillow."""
_TEXT = "it is a stream of text; open it as binary, with mode 'rb'"
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
            if colour.needs_cicp(self.colour):
                raise InputError("its colours are those of a chunk cICP, which WebP has no place for; write it as .png")
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


def read_bytes(source: Source) -> tuple[bytes, str]:
    """All bytes of a path, bytes object or binary stream, and a name for messages.

    Raises:
        InputError: it is none of these, cannot be read, is empty, or is above 2 GiB.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _bounded(bytes(source), "bytes")
    if isinstance(source, str | os.PathLike):
        name = str(Path(source))
    elif hasattr(source, "read"):
        given = getattr(source, "name", None)  # that of a temporary file may be a number, or nothing
        name = str(given) if isinstance(given, str | os.PathLike) else "stream"
    else:
        raise InputError(f"a path, bytes or a binary stream was expected, got {type(source).__name__}")
    try:
        if not isinstance(source, str | os.PathLike):
            return _bounded(_read_all(source), name)
        with Path(source).open("rb") as f:
            return _bounded(_read_all(f), name)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except (OSError, ValueError) as e:
        why = _TEXT if isinstance(e, UnicodeDecodeError) else getattr(e, "strerror", None) or e
        raise InputError(f"{name}: cannot read: {why}") from None


def _read_all(source: BinaryIO) -> bytes:
    """A stream to its end, or to one byte beyond the limit. A reader makes room for all that it is asked for, so in pieces.

    Raises:
        ValueError: the stream gives something else than bytes.
    """
    parts, left = [], MAX_FILE_BYTES + 1
    while left and (part := read_some(source, min(left, PIECE_BYTES))) != b"":
        if isinstance(part, str):
            raise ValueError(_TEXT)
        if not isinstance(part, bytes | bytearray | memoryview):
            raise ValueError(f"its read() gives {type(part).__name__}, not bytes; pass these, as of await file.read()")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _bounded(data: bytes, name: str) -> tuple[bytes, str]:
    if not data:
        raise DamagedPictureError(f"{name}: empty")
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{name}: larger than {MAX_FILE_BYTES} bytes")
    return data, name


@contextlib.contextmanager
def _opened(data: bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open with Pillow, the size bounded before pixels are decoded; PNG without its ancillary chunks."""
    header, described = None, jp2.read_header(data, name) if jp2.is_jp2(data) else None
    if described is not None:
        check_pixels(described.width, described.height, max_pixels, name)
    if data.startswith(png.SIGNATURE):
        chunks = png.read_chunks(data, name)
        header = png.read_header(chunks, name)
        check_pixels(header.width, header.height, max_pixels, name)
        png.require_rows(chunks, header, name)
        data = png.critical_only(chunks)
    try:
        image = _open_image(data)
    except Image.DecompressionBombError:
        raise InputError(f"{name}: {_TOO_LARGE}") from None
    except Exception:  # whatever a decoder raises on garbage, the file is not a picture for us
        raise DamagedPictureError(f"{name}: not a picture that can be read ({' '.join(READABLE)} are)") from None
    with image:
        check_pixels(image.width, image.height, max_pixels, name)
        if ImageFile.LOAD_TRUNCATED_IMAGES and image.format not in CHECKED:
            cure = "set it to False, or decode the picture yourself and pass the array"
            raise InputError(f"{name}: with PIL.ImageFile.LOAD_TRUNCATED_IMAGES nobody can tell whether it is whole: {cure}")
        if header is not None and header.depth in (2, 4) and "transparency" in image.info and image.mode == "L":
            # Pillow widens these samples to 8 bits, but not the level that is transparent.
            most = (1 << header.depth) - 1
            image.info["transparency"] = (image.info["transparency"] & most) * 255 // most
        if described is not None:
            image.info.update(described.info)
        yield image


def _open_image(data: bytes) -> Image.Image:
    """`Image.open` without Pillow's limit and its warning, which are one for the whole process: the caller has a limit of its own.

    Raises:
        UnidentifiedImageError: none of `FORMATS`; decoders raise other classes on garbage.
    """
    Image.init()
    for kind in FORMATS:
        factory, accept = Image.OPEN.get(kind, (None, None))
        if factory is not None and accept is not None and accept(data[:16]) is True:
            return cast(Image.Image, factory(io.BytesIO(data), ""))
    raise UnidentifiedImageError


def _load(image: Image.Image, name: str) -> None:
    """Decode the pixels.

    Raises:
        InputError: the file is truncated or damaged.
    """
    with _damage_is_named(name):
        image.load()


def _converted(image: Image.Image, mode: str, name: str) -> Array:
    """Pixels in another mode. What a file says of its palette is looked at only here.

    Raises:
        InputError: the palette or its transparency is damaged.
    """
    with _damage_is_named(name):
        return np.array(image.convert(mode))


@contextlib.contextmanager
def _damage_is_named(name: str) -> Iterator[None]:
    try:
        yield
    except RescaleError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{name}: {_TOO_LARGE}") from None
    except Exception as e:  # decoders raise many classes on damaged files; none of them is a fault of ours
        raise DamagedPictureError(f"{name}: truncated or damaged picture: {e}") from None


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def decode_pixels(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Array:
    """Pixels of an LR file as uint8 (h, w, 3), or (h, w, 4) if it has transparency in any form.

    Lossless tools may store equal pixels as gray, palette or fewer bits; all become RGB(A) again.

    Raises:
        InputError: not readable, too large, or with samples that 8 bits cannot hold.
    """
    if jxl.is_jxl(data):
        return jxl.decode(data, name, max_pixels)
    with _opened(data, name, max_pixels) as image:
        _load(image, name)
        if is_deep(image.mode):
            raise InputError(f"{name}: {image.mode} samples; an LR picture has 8 bits")
        return _converted(image, "RGBA" if _has_alpha(image) else "RGB", name)


def decode_plane(data: bytes, name: str, max_pixels: int) -> Array:
    """The one plane of a gray PNG with 8 bits as uint8 (h, w), without the copies that RGB would take.

    Raises:
        InputError: not readable, too large, or of another kind.
    """
    with _opened(data, name, max_pixels) as image:
        _load(image, name)
        if image.mode != "L":
            raise InputError(f"{name}: {image.mode} samples; a coded plane is gray with 8 bits")
        return np.array(image)


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
    with _opened(data, name, max_pixels) as image:
        check_sides(image.width, image.height, name)
        with _damage_is_named(name):
            frames = getattr(image, "n_frames", 1)
            depth = stored_depth(data, name, image)
        if not first_frame and (frames > 1 or _is_animated_png(data, name)):
            raise InputError(
                f"{name}: has several frames", "extract the one you want as a PNG, or `down --first-frame` takes the first"
            )
        deep = is_deep(image.mode) or depth > 8
        if deep and not to_8_bit:
            reason = f"{name}: more than 8 bits a sample, which the networks cannot hold"
            raise InputError(reason, "`down --to-8-bit` rounds them")
        if image.format == "TIFF" and _has_associated_alpha(image):
            raise InputError(f"{name}: its colours are multiplied by its alpha, which cannot be undone exactly; convert it first")
        if not is_deep(image.mode) and image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
            raise InputError(f"{name}: colour mode {image.mode}; convert it to RGB by its colour profile first (docs/commands.md)")
        if deep:
            with _damage_is_named(name):
                planes = eight_bits(image, depth, lambda: _open_image(_decodable(data, name)), name)
            gray = planes.shape[2] < 3
        else:
            _load(image, name)
            gray = image.mode in ("1", "L", "LA")
            planes = _converted(image, "RGBA" if _has_alpha(image) else "RGB", name)
        if _is_png(data):
            carried = colour.from_png(png.read_chunks(data, name), name)
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


def _decodable(data: bytes, name: str) -> bytes:
    """What of a file reaches a decoder: a PNG without its ancillary chunks."""
    return png.critical_only(png.read_chunks(data, name)) if _is_png(data) else data


def _is_png(data: bytes) -> bool:
    return data.startswith(png.SIGNATURE)


def _is_animated_png(data: bytes, name: str) -> bool:
    """Pillow sees critical chunks only, so the animation chunk is looked for here."""
    return _is_png(data) and any(c.kind == b"acTL" for c in png.read_chunks(data, name))


def write_picture(path: str | os.PathLike[str], pixels: Array) -> None:
    """Write RGB pixels losslessly and atomically as PNG or WebP; see `Picture.save`.

    Raises:
        InputError: not uint8 (H, W, 3), and as `Picture.save`.
    """
    Picture(check_rgb(pixels)).save(path)
