"""Pixels of picture files, by Pillow: every size is bounded before it decodes, every damage is named."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from rescale import jp2, jxl, png
from rescale.deep import is_deep
from rescale.errors import DamagedPictureError, InputError, RescaleError
from rescale.image import check_pixels
from rescale.limits import MAX_PIXELS

Array = npt.NDArray[np.uint8]

READABLE = [".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".avif", ".gif"]
READABLE += [".jp2", ".jpx", ".j2k", ".j2c"]
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "GIF", "MPO", "JPEG2000")
"""Decoders of Pillow that may see a file; others run foreign programs or hold no pictures."""
_TOO_LARGE = f"above {MAX_PIXELS} pixels in a format that is not read beyond; convert it to PNG, or cut it into parts"
CHECKED = ("PNG", "WEBP", "AVIF")
"""Formats whose damage is found whatever the program that embeds this has told Pillow."""


@dataclass(frozen=True)
class Opened:
    """A file that a decoder has opened, its size allowed; no pixel is decoded yet.

    Attributes:
        image: as Pillow sees it; ``info["depth"]`` has the bits a sample of a PNG and of JPEG 2000.
        name: for messages.
        decodable: what of the file reaches the decoder: of a PNG all but its ancillary chunks.
        chunks: all of a PNG; None of other formats.
    """

    image: Image.Image
    name: str
    decodable: bytes
    chunks: list[png.Chunk] | None

    @property
    def has_alpha(self) -> bool:
        """It has transparency in any form."""
        return self.image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in self.image.info

    def load(self) -> None:
        """Decode the pixels.

        Raises:
            InputError: the file is truncated or damaged.
        """
        with self.damage_is_named():
            self.image.load()

    def rgb(self) -> Array:
        """uint8 (H, W, 3), or (H, W, 4) with `has_alpha`. What a file says of its palette is looked at only here.

        Raises:
            InputError: the palette or its transparency is damaged.
        """
        with self.damage_is_named():
            return np.array(self.image.convert("RGBA" if self.has_alpha else "RGB"))

    def again(self) -> Image.Image:
        """The same picture opened once more."""
        return _open_image(self.decodable)

    @contextlib.contextmanager
    def damage_is_named(self) -> Iterator[None]:
        """Make InputError of what a decoder raises in the block."""
        try:
            yield
        except (RescaleError, MemoryError):  # a lack of memory says nothing of the file
            raise
        except Image.DecompressionBombError:
            raise InputError(f"{self.name}: {_TOO_LARGE}") from None
        except Exception as e:  # decoders raise many classes on damaged files; none of them is a fault of ours
            raise DamagedPictureError(f"{self.name}: truncated or damaged picture: {e}") from None


@contextlib.contextmanager
def opened(data: bytes, name: str, max_pixels: int, wanted: Sequence[str] = READABLE) -> Iterator[Opened]:
    """Open a picture file while the block runs.

    Args:
        data: the file.
        name: for messages.
        max_pixels: that it may have.
        wanted: suffixes of what the caller asks for, which the message names.

    Raises:
        InputError: not a picture of `FORMATS`, damaged, or too large.
    """
    decodable, chunks, header = data, None, None
    described = jp2.read_header(data, name) if jp2.is_jp2(data) else None
    if described is not None:
        check_pixels(described.width, described.height, max_pixels, name)
    if data.startswith(png.SIGNATURE):
        chunks = png.read_chunks(data, name)
        header = png.read_header(chunks, name)
        check_pixels(header.width, header.height, max_pixels, name)
        png.require_rows(chunks, header, name)
        decodable = png.critical_only(chunks)
    try:
        image = _open_image(decodable)
    except Image.DecompressionBombError:
        raise InputError(f"{name}: {_TOO_LARGE}") from None
    except MemoryError:
        raise
    except Exception:  # whatever a decoder raises on garbage, the file is not a picture for us
        raise DamagedPictureError(f"{name}: not a picture that can be read ({' '.join(wanted)} are)") from None
    with image:
        check_pixels(image.width, image.height, max_pixels, name)
        if ImageFile.LOAD_TRUNCATED_IMAGES and image.format not in CHECKED:
            cure = "set it to False, or decode the picture yourself and pass the array"
            raise InputError(f"{name}: with PIL.ImageFile.LOAD_TRUNCATED_IMAGES nobody can tell whether it is whole: {cure}")
        if header is not None:
            image.info["depth"] = header.depth
        if header is not None and header.depth in (2, 4) and "transparency" in image.info and image.mode == "L":
            # Pillow widens these samples to 8 bits, but not the level that is transparent.
            most = (1 << header.depth) - 1
            image.info["transparency"] = (image.info["transparency"] & most) * 255 // most
        if described is not None:
            image.info.update(described.info)
        yield Opened(image, name, decodable, chunks)


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


def decode_pixels(data: bytes, name: str, max_pixels: int = MAX_PIXELS, wanted: Sequence[str] = READABLE) -> Array:
    """Pixels of an LR file as uint8 (h, w, 3), or (h, w, 4) if it has transparency in any form.

    Lossless tools may store equal pixels as gray, palette or fewer bits; all become RGB(A) again. `wanted` is as for `opened`.

    Raises:
        InputError: not readable, too large, or with samples that 8 bits cannot hold.
    """
    if jxl.is_jxl(data):
        return jxl.decode(data, name, max_pixels)
    with opened(data, name, max_pixels, wanted) as found:
        found.load()
        if is_deep(found.image.mode):
            raise InputError(f"{name}: {found.image.mode} samples; an LR picture has 8 bits")
        return found.rgb()


def decode_plane(data: bytes, name: str, max_pixels: int) -> Array:
    """The one plane of a gray PNG with 8 bits as uint8 (h, w), without the copies that RGB would take.

    Raises:
        InputError: not readable, too large, or of another kind.
    """
    with opened(data, name, max_pixels) as found:
        found.load()
        if found.image.mode != "L":
            raise InputError(f"{name}: {found.image.mode} samples; a coded plane is gray with 8 bits")
        return np.array(found.image)
