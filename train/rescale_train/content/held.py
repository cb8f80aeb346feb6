"""The set that robustness is measured on: drawn with numbers that no run uses, and with layouts that no run sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from rescale_train.content import degraded, drawn, ink
from rescale_train.content.ink import Rng

Picture = npt.NDArray[np.uint8]

SEED = 0x7E57_0000_C0DE
"""Beyond any seed that a person would give a run."""

SIDE = 192
OF_A_KIND = 2


def street_map(rng: Rng, height: int, width: int) -> Picture:
    """Blocks, water and parks under cased roads, with names along them and a few pins."""
    fine = 3
    image = Image.new("RGB", (fine * width, fine * height), (242, 239, 233))
    draw = ImageDraw.Draw(image)
    for tone in [(170, 211, 223), (200, 230, 180), (217, 208, 201)] * 3:
        centre, turns = rng.uniform(0, fine * width, 2), np.sort(rng.uniform(0, 2 * np.pi, 7))
        reach = rng.uniform(20, 55, 7) * fine
        draw.polygon([(centre[0] + r * np.cos(t), centre[1] + r * np.sin(t)) for r, t in zip(reach, turns, strict=True)], fill=tone)
    roads = []
    for _ in range(9):
        start, turn = rng.uniform(0, fine * width, 2), rng.uniform(0, np.pi)
        bends = np.cumsum(rng.normal(0, 9 * fine, 9))
        along = np.linspace(-fine * width, fine * width, 9)
        points = [
            (float(start[0] + a * np.cos(turn) - b * np.sin(turn)), float(start[1] + a * np.sin(turn) + b * np.cos(turn)))
            for a, b in zip(along, bends, strict=True)
        ]
        roads.append((points, int(rng.integers(2, 6)) * fine, [(255, 255, 255), (247, 223, 138), (232, 146, 162)][rng.integers(3)]))
    for extra in (2 * fine, 0):  # all casings below all roads
        for points, thick, tone in roads:
            draw.line(points, fill=(150, 140, 130) if extra else tone, width=thick + extra, joint="curve")
    image = image.resize((width, height), Image.Resampling.BOX)
    for _ in range(6):
        x, y = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 14))
        ink.write(image, (x, y), ink.word(rng).capitalize(), ink.font("DejaVuSans.ttf", 9), (60, 60, 60))
        ImageDraw.Draw(image).ellipse((x - 6, y + 3, x - 1, y + 8), fill=ink.PRIMARIES[rng.integers(6)])
    return np.array(image)


def sprites(rng: Rng, height: int, width: int) -> Picture:
    """A tile world of 8x8 sprites of 4 colours, enlarged 1, 2 or 3 times without smoothing."""
    factor = int(rng.integers(1, 4))
    tiles = []
    for _ in range(10):
        tones = np.array([ink.any_colour(rng) for _ in range(4)], np.uint8)
        tiles.append(tones[rng.choice(4, size=(8, 8), p=(0.55, 0.25, 0.12, 0.08))])
    rows, cols = height // (8 * factor) + 1, width // (8 * factor) + 1
    world = np.array(tiles)[rng.choice(10, size=(rows, cols), p=(0.37, *[0.07] * 9))]
    flat = world.transpose(0, 2, 1, 3, 4).reshape(8 * rows, 8 * cols, 3)
    result: Picture = flat.repeat(factor, 0).repeat(factor, 1)[:height, :width]
    return np.ascontiguousarray(result)


def score(rng: Rng, height: int, width: int) -> Picture:
    """Sheet music: staves of 1-pixel lines, heads, stems and beams, black on white or tinted."""
    fine = int(rng.choice([1, 4]))
    paper = ((255, 255, 255), (250, 243, 224))[rng.integers(2)]
    image = Image.new("RGB", (fine * width, fine * height), paper)
    draw = ImageDraw.Draw(image)
    for top in range(10, height - 30, 46):
        for i in range(5):
            draw.line((0, (top + 5 * i) * fine, width * fine, (top + 5 * i) * fine), fill=(0, 0, 0), width=fine)
        previous = None
        for x in range(8, width - 8, 13):
            y = top + int(rng.integers(-2, 9)) * 2.5
            box = tuple(fine * v for v in (x, y, x + 6, y + 4))
            draw.ellipse(box, fill=(0, 0, 0) if rng.random() < 0.7 else None, outline=(0, 0, 0), width=fine)
            stem = (fine * (x + 6), fine * (y + 2), fine * (x + 6), fine * (y - 14))
            draw.line(stem, fill=(0, 0, 0), width=fine)
            if previous is not None and rng.random() < 0.5:
                draw.line((*previous, stem[2], stem[3]), fill=(0, 0, 0), width=2 * fine)
            previous = (stem[2], stem[3])
    return np.array(image.resize((width, height), Image.Resampling.BOX))


LAYOUTS: dict[str, Callable[[Rng, int, int], Picture]] = {"map": street_map, "sprites": sprites, "score": score}
"""Held out: in no training pool."""


def generated_set(side: int = SIDE) -> dict[str, Picture]:
    """The drawn test pictures by name, `OF_A_KIND` of each kind and layout.

    Args:
        side: height and width; the figures that are published are those of the default.

    Returns:
        uint8 (side, side, 3) pictures, the same on every call.
    """
    makers = drawn.KINDS | LAYOUTS
    return {
        f"{kind}{i}": makers[kind](np.random.default_rng((SEED, number, i)), side, side)
        for number, kind in enumerate(makers)
        for i in range(OF_A_KIND)
    }


def degraded_set(photographs: Mapping[str, Picture], side: int = 384) -> dict[str, Picture]:
    """Each photograph degraded in every way, by "name kind".

    Args:
        photographs: uint8 (H, W, 3) by name; none of them may be trained on.
        side: largest side of a result.
    """
    return {
        f"{name} {kind}": degrade(photograph, np.random.default_rng((SEED, 100 + number, i)), side)
        for i, (name, photograph) in enumerate(photographs.items())
        for number, (kind, degrade) in enumerate(degraded.KINDS.items())
    }
