"""Photographs as they reach users: compressed, reduced, sharpened, wrongly exposed."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

Picture = npt.NDArray[np.uint8]
Rng = np.random.Generator

SHORTEST = 96
"""A picture is not reduced below this side: less would be mirrored in a crop."""

FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def piece(picture: Picture, side: int, rng: Rng) -> Picture:
    """A random part of at most `side` pixels a side; a smaller picture whole."""
    top, left = (int(rng.integers(0, max(n - side, 0) + 1)) for n in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def jpeg(picture: Picture, rng: Rng, side: int) -> Picture:
    """Compressed at a quality of 30 to 95, with full or quartered colour."""
    file = io.BytesIO()
    quality, subsampling = int(rng.integers(30, 96)), int(rng.choice([0, 2]))
    Image.fromarray(np.ascontiguousarray(piece(picture, side, rng))).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def shrunk(picture: Picture, rng: Rng, side: int) -> Picture:
    """Reduced by 1.5 to 4 with any common filter, so that its detail reaches the last frequency, or beyond."""
    factor = float(rng.uniform(1.5, 4.0))
    factor = max(1.0, min(factor, min(picture.shape[:2]) / SHORTEST))
    chosen = FILTERS[rng.integers(len(FILTERS))]
    source = piece(picture, round(side * factor), rng)
    height, width = (max(1, round(n / factor)) for n in source.shape[:2])
    return np.array(Image.fromarray(np.ascontiguousarray(source)).resize((width, height), chosen))


def sharpened(picture: Picture, rng: Rng, side: int) -> Picture:
    """Unsharp masking, from modest to overdone."""
    how = ImageFilter.UnsharpMask(float(rng.uniform(0.5, 2.5)), int(rng.integers(50, 300)), int(rng.integers(0, 4)))
    return np.array(Image.fromarray(np.ascontiguousarray(piece(picture, side, rng))).filter(how))


def exposed(picture: Picture, rng: Rng, side: int) -> Picture:
    """Far too dark, far too bright, or saturated to the gamut's border."""
    image = Image.fromarray(np.ascontiguousarray(piece(picture, side, rng)))
    kind = rng.integers(3)
    if kind == 0:
        return np.array(image.point([round(v * f) for f in [float(rng.uniform(0.05, 0.3))] for v in range(256)] * 3))
    if kind == 1:
        lift = float(rng.uniform(0.05, 0.3))
        return np.array(image.point([255 - round((255 - v) * lift) for v in range(256)] * 3))
    return np.array(ImageEnhance.Color(image).enhance(float(rng.uniform(2.0, 5.0))))


KINDS: dict[str, Callable[[Picture, Rng, int], Picture]] = {
    "jpeg": jpeg,
    "shrunk": shrunk,
    "sharpened": sharpened,
    "exposed": exposed,
}
"""Each takes a uint8 (H, W, 3) photograph, a generator and the largest side of the result."""
