"""Reading and writing ordinary pictures: the HR side of the tool.

Every input is either handled exactly or refused with the way out; nothing is converted in silence.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from rescale import png
from rescale.errors import InputError
from rescale.files import atomic_write

Array = npt.NDArray[np.uint8]
Source = str | os.PathLike[str] | bytes | BinaryIO

MAX_PIXELS = 256_000_000
"""Default limit on a picture's pixels, checked from the header before anything is decoded."""

MAX_FILE_BYTES = 2 << 30


def read_bytes(source: Source) -> tuple[bytes, str]:
    """All bytes of a path, bytes object or binary stream, and a name for messages.

    Raises:
        InputError: it cannot be read, is empty, or is above 2 GiB.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _bounded(bytes(source), "bytes")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            with path.open("rb") as f:
                return _bounded(f.read(MAX_FILE_BYTES + 1), str(path))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except OSError as e:
            raise InputError(f"{path}: cannot read: {e.strerror}") from None
    name = getattr(source, "name", "stream")
    return _bounded(source.read(MAX_FILE_BYTES + 1), str(name))


def _bounded(data: bytes, name: str) -> tuple[bytes, str]:
    if not data:
        raise InputError(f"{name}: empty")
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{name}: larger than {MAX_FILE_BYTES} bytes")
    return data, name


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Open with Pillow, the size bounded before pixels are decoded."""
    if data.startswith(png.SIGNATURE):
        chunks = png.read_chunks(data, name)
        header = png.read_header(chunks, name)
        _check_pixels(header.width, header.height, max_pixels, name)
        data = png.critical_only(chunks)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as e:
        raise InputError(f"{name}: {e}; raise the limit with --max-pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError):
        raise InputError(f"{name}: not a picture that can be read (PNG, JPEG, WebP, TIFF, BMP, AVIF, PPM are)") from None
    _check_pixels(image.width, image.height, max_pixels, name)
    return image


def _check_pixels(width: int, height: int, max_pixels: int, name: str) -> None:
    if width * height > max_pixels:
        raise InputError(f"{name}: {width}x{height} is above the limit of {max_pixels} pixels; raise it with --max-pixels")


def _load(image: Image.Image, name: str) -> None:
    """Decode the pixels.

    Raises:
        InputError: the file is truncated or damaged.
    """
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError) as e:
        raise InputError(f"{name}: truncated or damaged picture: {e}") from None


def decode_pixels(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Array:
    """Pixels of an LR file as uint8 (h, w, 3), or (h, w, 4) if it has transparency in any form.

    Lossless tools may store equal pixels as gray, palette or fewer bits; all become RGB(A) again.

    Raises:
        InputError: not readable, too large, or with samples that 8 bits cannot hold.
    """
    with _open(data, name, max_pixels) as image:
        _load(image, name)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise InputError(f"{name}: {image.mode} samples; an LR picture has 8 bits")
        has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
        return np.array(image.convert("RGBA" if has_alpha else "RGB"))


def read_picture(source: Source, max_pixels: int = MAX_PIXELS) -> Array:
    """An HR picture as uint8 (H, W, 3).

    Raises:
        InputError: missing, not a picture, truncated, too large, or of a kind that RGB with 8 bits cannot hold exactly:
            more than 8 bits, CMYK, several frames, real transparency. The message says what to do.
    """
    data, name = read_bytes(source)
    with _open(data, name, max_pixels) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{name}: has {image.n_frames} frames; extract the one you want")  # type: ignore[attr-defined]
        deep = image.mode in ("I", "F") or image.mode.startswith("I;") or _png_depth(data, name) > 8
        if deep:
            raise InputError(f"{name}: more than 8 bits a sample; convert it to 8 bits first")
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
            raise InputError(f"{name}: colour mode {image.mode}; convert it to RGB with its colour profile first")
        _load(image, name)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = np.array(image.convert("RGBA"))
            if (rgba[:, :, 3] != 255).any():
                raise InputError(f"{name}: has real transparency, which would be lost; flatten it onto a background first")
            return np.ascontiguousarray(rgba[:, :, :3])
        return np.array(image.convert("RGB"))


def _png_depth(data: bytes, name: str) -> int:
    return png.read_header(png.read_chunks(data, name), name).depth if data.startswith(png.SIGNATURE) else 8


def write_picture(path: str | os.PathLike[str], pixels: Array) -> None:
    """Write an HR picture losslessly as PNG, atomically.

    Raises:
        OutputError: it cannot be written; an old file is untouched.
        InputError: the name does not end in .png.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise InputError(f"{target}: restored pictures are written as PNG; name it {target.stem}.png")
    atomic_write(target, png.encode(pixels))
