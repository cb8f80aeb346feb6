"""Ink for drawn pictures: words, fonts, colours, and text as screens show it. Everything is drawn by a generator's numbers."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from rescale.console import require

Colour = tuple[int, int, int]
Face = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rng = np.random.Generator

FONTS = (
    "",  # the one inside Pillow
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
)
MONO = ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")
SIZES = (8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 18, 22, 28)
SMOOTHING = ("grey", "hard", "subpixel")
"""How text edges are drawn: antialiased, not at all, or on the three stripes of an LCD pixel (coloured fringes)."""

PRIMARIES: tuple[Colour, ...] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 0),
    (0, 0, 0),
    (255, 255, 255),
)
"""The corners of the gamut."""

_SYLLABLES = "ba ce di fo gu ha il ki lo mer na os pre qui ran sta te un ver wil xy za ing tion th sh ly er".split()  # noqa: SIM905
_SIGNS = "= == + - * / ( ) [ ] { } < > : ; , . -> # @ % & | \" ' _ !".split()  # noqa: SIM905


@functools.cache
def font_folder() -> Path:
    """Where matplotlib keeps its fonts.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require(("matplotlib",), "train")
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@functools.lru_cache(maxsize=256)
def font(name: str, size: int) -> Face:
    """A font of `FONTS` or `MONO`; the layout engine is fixed, since an optional one moves letters."""
    if not name:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(font_folder() / name), size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=256)
def _tripled(face: ImageFont.FreeTypeFont) -> ImageFont.FreeTypeFont:
    return face.font_variant(size=3 * face.size)


def pick_font(rng: Rng, mono: bool = False, small: bool = True) -> Face:
    """A random font; `small` keeps to the sizes of running text."""
    names = MONO if mono else FONTS
    sizes = SIZES[:9] if small else SIZES
    return font(names[rng.integers(len(names))], sizes[rng.integers(len(sizes))])


def word(rng: Rng) -> str:
    """A pronounceable word, sometimes capitalised."""
    text = "".join(_SYLLABLES[i] for i in rng.integers(len(_SYLLABLES), size=rng.integers(1, 5)))
    return text.capitalize() if rng.random() < 0.2 else text


def number(rng: Rng) -> str:
    """A number as tables and axes show it."""
    value = float(rng.normal(0, 10.0 ** rng.integers(0, 5)))
    return f"{value:.{rng.integers(0, 3)}f}" + ("%" if rng.random() < 0.15 else "")


def sentence(rng: Rng, count: int) -> str:
    """`count` words and numbers with some punctuation."""
    parts = [number(rng) if rng.random() < 0.08 else word(rng) for _ in range(count)]
    return " ".join(p + ("," if rng.random() < 0.1 else "") for p in parts) + str(rng.choice([".", "", ":", "?"]))


def code_tokens(rng: Rng) -> list[str]:
    """One line of something that looks like a program."""
    indent = "    " * int(rng.integers(0, 4))
    tokens = []
    for _ in range(int(rng.integers(2, 12))):
        kind = rng.random()
        tokens.append(_SIGNS[rng.integers(len(_SIGNS))] if kind < 0.4 else number(rng) if kind < 0.5 else word(rng))
    return [indent + tokens[0], *tokens[1:]]


def grey(level: float, rng: Rng | None = None, tint: int = 0) -> Colour:
    """A grey of a level, tinted by at most `tint` levels a channel."""
    shift = rng.integers(-tint, tint + 1, 3) if rng is not None and tint else np.zeros(3)
    r, g, b = (int(np.clip(level + s, 0, 255)) for s in shift)
    return r, g, b


def any_colour(rng: Rng) -> Colour:
    """A corner of the gamut, an edge of it, or anything inside."""
    kind = rng.random()
    if kind < 0.3:
        return PRIMARIES[rng.integers(len(PRIMARIES))]
    values = rng.integers(0, 256, 3)
    if kind < 0.6:
        values[rng.integers(3)] = 0
        values[rng.integers(3)] = 255
    r, g, b = (int(v) for v in values)
    return r, g, b


def distance(a: Colour, b: Colour) -> int:
    """Largest difference of a channel."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def theme(rng: Rng) -> tuple[Colour, Colour, list[Colour]]:
    """(ground, ink, accents) of a light, dark or coloured page."""
    kind = rng.random()
    if kind < 0.4:
        ground, ink = grey(float(rng.choice([255, 250, 240, 225])), rng, 4), grey(float(rng.integers(0, 90)), rng, 10)
    elif kind < 0.75:
        ground, ink = grey(float(rng.choice([0, 18, 30, 45])), rng, 8), grey(float(rng.integers(170, 256)), rng, 10)
    else:
        ground, ink = any_colour(rng), any_colour(rng)
        while distance(ground, ink) < 70:
            ink = any_colour(rng)
    accents: list[Colour] = []
    while len(accents) < 5:
        colour = any_colour(rng)
        if distance(colour, ground) >= 60:
            accents.append(colour)
    return ground, ink, accents


def write(
    image: Image.Image,
    at: tuple[float, float],
    text: str,
    face: Face,
    colour: Colour,
    smoothing: str = "grey",
) -> float:
    """Write one line of text into an RGB picture, its top left corner at `at`.

    Args:
        smoothing: one of `SMOOTHING`.

    Returns:
        The width of the line in pixels.
    """
    draw = ImageDraw.Draw(image)
    width = float(draw.textlength(text, font=face))
    x, y = int(at[0]), int(at[1])
    if smoothing != "subpixel" or not isinstance(face, ImageFont.FreeTypeFont):
        draw.fontmode = "1" if smoothing == "hard" else "L"
        draw.text((x, y), text, fill=colour, font=face)
        return width
    # The visible part only: a line may be far wider than the picture.
    w, h = min(int(width) + 4, image.width - x), min(int(face.size * 1.5) + 2, image.height - y)
    if w <= 0 or h <= 0 or x < 0 or y < 0:
        return width
    mask = Image.new("L", (3 * w, 3 * h))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=_tripled(face))
    stripes = np.asarray(mask.resize((3 * w, h), Image.Resampling.BOX), dtype=np.float32) / 255.0
    padded = np.pad(stripes, ((0, 0), (2, 2)))
    taps = (1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9)
    smooth = sum((t * padded[:, i : i + 3 * w] for i, t in enumerate(taps)), np.zeros((h, 3 * w), np.float32))
    cover = smooth.reshape(h, w, 3)
    under = np.asarray(image.crop((x, y, x + w, y + h)), dtype=np.float32)
    image.paste(to_image(under + cover * (np.array(colour, np.float32) - under)), (x, y))
    return width


def to_image(values: npt.NDArray[np.floating]) -> Image.Image:
    """(H, W, 3) numbers, rounded and clamped to 8 bits, as a picture."""
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
