"""Drawn pictures for training: documents, screens, charts, cartoons, patterns, colours. No outside data; a seed decides all."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from rescale_train.content import ink
from rescale_train.content.ink import SMOOTHING, Colour, Rng

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def smoothing(rng: Rng) -> str:
    """One of `SMOOTHING` for a whole picture, as one machine draws it."""
    return SMOOTHING[int(rng.choice(3, p=(0.5, 0.2, 0.3)))]


def text(rng: Rng, height: int, width: int) -> Picture:
    """A page of text or a listing, one or two columns."""
    ground, colour, accents = ink.theme(rng)
    image = Image.new("RGB", (width, height), ground)
    how, listing = smoothing(rng), bool(rng.random() < 0.45)
    columns = 1 if listing or rng.random() < 0.6 else 2
    for column in range(columns):
        x0 = 6 + column * width // columns
        face = ink.pick_font(rng, mono=listing)
        y = float(rng.integers(0, 12))
        while y < height:
            if not listing and rng.random() < 0.06:
                face = ink.pick_font(rng, small=False)
            line = float(getattr(face, "size", 11)) * float(rng.uniform(1.15, 1.5))
            if rng.random() < 0.08:
                box = (x0 - 3, int(y), x0 + int(rng.integers(20, width)), int(y + line))
                ImageDraw.Draw(image).rectangle(box, fill=accents[4])
            x = float(x0)
            if listing:
                for token in ink.code_tokens(rng):
                    tone = colour if rng.random() < 0.4 else accents[rng.integers(4)]
                    x += ink.write(image, (x, y), token + " ", face, tone, how)
                    if x > width:
                        break
            else:
                tone = accents[rng.integers(4)] if rng.random() < 0.1 else colour
                ink.write(image, (x, y), ink.sentence(rng, 12), face, tone, how)
                if columns == 2:  # what runs over into the next column is covered
                    ImageDraw.Draw(image).rectangle((x0 + width // 2 - 14, int(y), width, int(y + line) + 8), fill=ground)
            y += line
    return np.array(image)


def screen(rng: Rng, height: int, width: int) -> Picture:
    """Overlapping windows with title bars, 1-pixel borders, buttons, icons, lists and menus."""
    ground, _, accents = ink.theme(rng)
    image = ink.to_image(ramp(rng, height, width)) if rng.random() < 0.5 else Image.new("RGB", (width, height), ground)
    how = smoothing(rng)
    for _ in range(int(rng.integers(1, 4))):
        page, colour, accents = ink.theme(rng)
        x0, y0 = int(rng.integers(-40, width // 2)), int(rng.integers(-30, height // 2))
        x1, y1 = x0 + int(rng.integers(width // 3, width)), y0 + int(rng.integers(height // 3, height))
        if rng.random() < 0.4:
            _shadow(image, (x0, y0, x1, y1), rng)
        draw = ImageDraw.Draw(image)
        draw.rectangle((x0, y0, x1, y1), fill=page, outline=accents[0])
        bar = int(rng.integers(14, 28))
        draw.rectangle((x0 + 1, y0 + 1, x1 - 1, y0 + bar), fill=accents[1])
        for i, tone in enumerate(accents[2:]):
            draw.ellipse((x1 - 12 * (i + 1), y0 + 4, x1 - 12 * (i + 1) + 8, y0 + 12), fill=tone, outline=colour)
        face = ink.pick_font(rng)
        ink.write(image, (max(x0, 0) + 6, max(y0, 0) + 2), ink.sentence(rng, 3), face, colour, how)
        y = y0 + bar + 4
        while y < y1 - 14:
            y += _widget(image, (x0 + 5, y, x1 - 5), rng, (page, colour, accents), face, how)
    return np.array(image)


def _shadow(image: Image.Image, box: tuple[int, int, int, int], rng: Rng) -> None:
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rectangle((box[0] + 4, box[1] + 4, box[2] + 6, box[3] + 6), fill=int(rng.integers(60, 160)))
    image.paste((0, 0, 0), (0, 0), mask.filter(ImageFilter.BoxBlur(4)))


def _widget(
    image: Image.Image,
    span: tuple[int, int, int],
    rng: Rng,
    colours: tuple[Colour, Colour, list[Colour]],
    face: ink.Face,
    how: str,
) -> int:
    """Draw one row of a window between x0 and x1 at y; returns its height."""
    draw = ImageDraw.Draw(image)
    x0, y, x1 = span
    page, colour, accents = colours
    left = max(x0, 0)
    kind = int(rng.integers(7))
    line = int(getattr(face, "size", 11)) + 5
    if kind <= 1:  # text
        ink.write(image, (left + 2, max(y, 0)), ink.sentence(rng, int(rng.integers(2, 9))), face, colour, how)
    elif kind == 2:  # buttons
        x = x0
        while x < x1 - 50:
            end = x + int(rng.integers(34, 80))
            fill = accents[rng.integers(5)]
            radius = 4 if rng.random() < 0.5 else 0
            draw.rounded_rectangle((x, y, end, y + line), radius=radius, fill=fill, outline=colour)
            ink.write(image, (max(x, 0) + 5, max(y, 0) + 2), ink.word(rng), face, page if rng.random() < 0.5 else colour, how)
            x = end + 6
        line += 5
    elif kind == 3:  # a field and boxes to tick
        draw.rectangle((x0 + 1, y, x0 + 12, y + 11), outline=colour)
        if rng.random() < 0.5:
            draw.line((x0 + 3, y + 5, x0 + 6, y + 9, x0 + 11, y + 2), fill=accents[0], width=int(rng.integers(1, 3)))
        draw.rectangle((x0 + 20, y, max(x1, x0 + 20), y + line), outline=accents[2])
        ink.write(image, (left + 24, max(y, 0) + 2), ink.sentence(rng, 2), face, colour, how)
        line += 3
    elif kind == 4:  # icons
        line = int(rng.choice([16, 24, 32]))
        for x in range(x0, x1 - line, line + 8):
            image.paste(Image.fromarray(icon(rng, line, page)), (x, y))
        line += 6
    elif kind == 5:  # rules, a progress bar, a slider
        draw.line((x0, y + 2, x1, y + 2), fill=accents[3])
        end = x0 + int(rng.integers(1, max(2, x1 - x0)))
        draw.rectangle((x0, y + 6, x1, y + 12), outline=colour)
        draw.rectangle((x0 + 1, y + 7, end, y + 11), fill=accents[rng.integers(5)])
        line = 16
    else:  # a chosen row
        draw.rectangle((x0, y, x1, y + line), fill=accents[0])
        ink.write(image, (left + 4, max(y, 0) + 2), ink.sentence(rng, 4), face, page, how)
    return line


def icon(rng: Rng, side: int, ground: Colour) -> Picture:
    """A small mirrored drawing of few colours, on a grid of 8 cells or smooth."""
    if rng.random() < 0.5:
        tones = np.array([ground, ink.any_colour(rng), ink.any_colour(rng), ink.any_colour(rng)], np.uint8)
        half = rng.choice(4, size=(8, 4), p=(0.4, 0.3, 0.2, 0.1))
        cells = tones[np.concatenate([half, half[:, ::-1]], 1)]
        return np.array(Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST))
    image = Image.new("RGB", (4 * side, 4 * side), ground)
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        _shape(draw, rng, 4 * side, 4 * side, ink.any_colour(rng), ink.any_colour(rng), int(rng.integers(0, 8)))
    return np.array(image.resize((side, side), Image.Resampling.BOX))


def chart(rng: Rng, height: int, width: int) -> Picture:
    """A table, or a diagram with axes, of lines, bars or sectors."""
    ground, colour, accents = ink.theme(rng)
    image = Image.new("RGB", (width, height), ground)
    how, face = smoothing(rng), ink.pick_font(rng)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.5:
        step_y, y, row = int(getattr(face, "size", 11)) + int(rng.integers(4, 9)), 0, 0
        widths = rng.integers(34, 100, size=width // 34 + 1)
        stripe = ink.grey(np.mean(ground) + rng.choice([-14, 14]), rng, 5)
        while y < height:
            if row % 2 or row == 0:
                draw.rectangle((0, y, width, y + step_y), fill=accents[0] if row == 0 else stripe)
            x = 0
            for w in widths:
                content = ink.word(rng) if row == 0 or x == 0 else ink.number(rng)
                ink.write(image, (x + 3, y + 2), content, face, colour if row else ground, how)
                draw.line((x + int(w), y, x + int(w), y + step_y), fill=accents[1])
                x += int(w)
            draw.line((0, y, width, y), fill=accents[1])
            y, row = y + step_y, row + 1
        return np.array(image)
    fine = 1 if rng.random() < 0.3 else 3
    plot = image.resize((fine * width, fine * height))
    draw = ImageDraw.Draw(plot)
    left, top, right, bottom = 30 * fine, 14 * fine, (width - 8) * fine, (height - 20) * fine
    for i in range(1, int(rng.integers(3, 12))):
        draw.line((left, top + i * 30 * fine, right, top + i * 30 * fine), fill=accents[4], width=fine)
        draw.line((left + i * 40 * fine, top, left + i * 40 * fine, bottom), fill=accents[4], width=fine)
    kind, count = int(rng.integers(3)), int(rng.integers(4, 40))
    xs = np.linspace(left, right, count)
    for tone in accents[: int(rng.integers(1, 5))]:
        ys = np.clip(np.cumsum(rng.normal(0, 0.12, count)) + rng.uniform(0.2, 0.8), 0, 1) * (bottom - top) + top
        if kind == 0:
            draw.line([(float(a), float(b)) for a, b in zip(xs, ys, strict=True)], fill=tone, width=fine * int(rng.integers(1, 4)))
        elif kind == 1:
            for a, b in zip(xs, ys, strict=True):
                draw.rectangle((float(a), float(b), float(a) + (right - left) / count * 0.6, bottom), fill=tone, outline=colour)
        else:
            r = fine * int(rng.integers(20, 120))
            start = float(rng.uniform(0, 300))
            box = (width * fine // 2 - r, height * fine // 2 - r, width * fine // 2 + r, height * fine // 2 + r)
            draw.pieslice(box, start, start + float(rng.uniform(20, 120)), fill=tone, outline=colour, width=fine)
    draw.line((left, top, left, bottom, right, bottom), fill=colour, width=fine)
    image = plot.resize((width, height), Image.Resampling.BOX)
    for i in range(0, width - 40, 48):
        ink.write(image, (28 + i, height - 17), ink.number(rng), face, colour, how)
        ink.write(image, (1, i % height), ink.number(rng)[:4], face, colour, how)
    return np.array(image)


def drawing(rng: Rng, height: int, width: int) -> Picture:
    """Flat shapes with or without outlines, or line art with hatching; smooth or stepped edges."""
    fine = int(rng.choice([1, 2, 4], p=(0.25, 0.25, 0.5)))
    h, w = height * fine, width * fine
    ground, colour, _ = ink.theme(rng)
    image = Image.new("RGB", (w, h), ground)
    draw = ImageDraw.Draw(image)
    line_art = rng.random() < 0.3
    outline = fine * int(rng.integers(0, 5))
    for _ in range(int(rng.integers(10, 60))):
        fill = ground if line_art else ink.any_colour(rng)
        _shape(draw, rng, h, w, fill, colour, max(outline, fine) if line_art else outline)
        if rng.random() < 0.15:  # hatching
            x, y, n = int(rng.integers(w)), int(rng.integers(h)), int(rng.integers(4, 20))
            slant, gap = int(rng.integers(-40, 40)) * fine, fine * int(rng.integers(2, 7))
            for i in range(n):
                draw.line((x + i * gap, y, x + i * gap + slant, y + 40 * fine), fill=colour, width=fine)
    return np.array(image.resize((width, height), Image.Resampling.BOX) if fine > 1 else image)


def _shape(draw: ImageDraw.ImageDraw, rng: Rng, h: int, w: int, fill: Colour, outline: Colour, thick: int) -> None:
    x, y = float(rng.uniform(-0.1 * w, w)), float(rng.uniform(-0.1 * h, h))
    a, b = float(rng.uniform(0.02, 0.35) * w), float(rng.uniform(0.02, 0.35) * h)
    kind = int(rng.integers(4))
    radii: Floats
    edge = outline if thick else None
    if kind == 0:
        draw.ellipse((x, y, x + a, y + b), fill=fill, outline=edge, width=thick)
    elif kind == 1:
        draw.rectangle((x, y, x + a, y + b), fill=fill, outline=edge, width=thick)
    else:
        if kind == 2:  # a polygon
            turns, radii = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8)))), np.ones(1)
        else:  # a blob
            turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
            waves = (rng.uniform(0, 0.25) * np.sin(k * turns + rng.uniform(0, 6.3)) for k in range(2, 5))
            radii = 1 + sum(waves, np.zeros(48))
        xs, ys = x + a * radii * np.cos(turns), y + b * radii * np.sin(turns)
        points = [(float(px), float(py)) for px, py in zip(xs, ys, strict=True)]
        draw.polygon(points, fill=fill)
        if thick:
            draw.line([*points, points[0]], fill=outline, width=thick, joint="curve")


def ramp(rng: Rng, height: int, width: int) -> Floats:
    """A linear or radial gradient between two colours, as (H, W, 3) levels that are not rounded."""
    y, x = np.mgrid[0:height, 0:width]
    if rng.random() < 0.6:
        turn = rng.uniform(0, 2 * np.pi)
        along = x * np.cos(turn) + y * np.sin(turn)
    else:
        along = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
    along = (along - along.min()) / max(float(np.ptp(along)), 1e-9)
    one, other = (np.array(ink.any_colour(rng), np.float64) for _ in range(2))
    result: Floats = one + along[:, :, None] * (other - one)
    return result


def _cells(rng: Rng, height: int, width: int, make: Callable[[Rng, int, int], Floats]) -> Picture:
    """A picture cut into rectangles, each filled by `make`."""
    out = np.zeros((height, width, 3))
    rows = [0, *sorted(rng.integers(1, height, size=int(rng.integers(0, 4))).tolist()), height]
    for top, bottom in itertools.pairwise(rows):
        cols = [0, *sorted(rng.integers(1, width, size=int(rng.integers(0, 4))).tolist()), width]
        for left, right in itertools.pairwise(cols):
            if bottom > top and right > left:
                out[top:bottom, left:right] = make(rng, bottom - top, right - left)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def pattern(rng: Rng, height: int, width: int) -> Picture:
    """Rectangles of gradients, chequers, stripes, zone plates, noise and dither."""
    return _cells(rng, height, width, _pattern)


def _pattern(rng: Rng, height: int, width: int) -> Floats:
    y, x = np.mgrid[0:height, 0:width]
    one, other = (np.array(ink.any_colour(rng), np.float64) for _ in range(2))
    kind = int(rng.integers(7))
    if kind == 0:
        return ramp(rng, height, width)
    if kind == 6:  # noise: of each channel or of all alike, dense or sparse
        noise = rng.normal(0, rng.uniform(1, 40), (height, width, int(rng.choice([1, 3]))))
        if rng.random() < 0.3:
            noise *= rng.random((height, width, 1)) < 0.02
        return np.asarray(one + noise)
    if kind == 1:  # chequers
        side = int(rng.choice([1, 1, 2, 3, 4, 8, 16]))
        share = ((x // side + y // side) % 2).astype(np.float64)
    elif kind == 2:  # straight or slanted stripes
        period, slant = int(rng.integers(2, 9)), int(rng.integers(-2, 3))
        along = (x + slant * y) if rng.random() < 0.5 else (y + slant * x)
        share = (along % period < max(1, period // 2)).astype(np.float64)
    elif kind == 3:  # a zone plate: every frequency up to the last one
        r2 = (x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2
        share = 0.5 + 0.5 * np.cos(np.pi * r2 / (2 * max(height, width) * rng.uniform(0.5, 2)))
    elif kind == 4:  # a plane wave
        turn, length = rng.uniform(0, np.pi), rng.uniform(2, 12)
        share = 0.5 + 0.5 * np.sin(2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / length)
    else:  # ordered dither of a ramp
        bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16.0
        share = ((x / width) > bayer[y % 4, x % 4]).astype(np.float64)
    if rng.random() < 0.4:  # weak contrast
        other = one + (other - one) * rng.uniform(0.03, 0.4)
    return np.asarray(one + share[:, :, None] * (other - one))


def colour(rng: Rng, height: int, width: int) -> Picture:
    """Rectangles of gamut corners, flat colours, and texture at the ends of the range."""
    return _cells(rng, height, width, _colour)


def _colour(rng: Rng, height: int, width: int) -> Floats:
    kind = int(rng.integers(5))
    base = np.array(ink.any_colour(rng), np.float64)
    if kind <= 1:
        return np.broadcast_to(base, (height, width, 3))
    texture = Image.fromarray(rng.integers(0, 256, (height // 3 + 2, width // 3 + 2), dtype=np.uint8))
    wave = np.asarray(texture.resize((width, height), Image.Resampling.BICUBIC), np.float64)[:, :, None] / 255.0
    if kind == 2:  # nearly black or nearly white
        low = wave * rng.uniform(2, 30, 3)
        return np.asarray(low if rng.random() < 0.5 else 255.0 - low)
    if kind == 3:  # a pure colour with texture in it, as in a flower or a neon sign
        return np.asarray(base * (1.0 - rng.uniform(0.1, 0.9) * wave))
    other = np.array(ink.PRIMARIES[rng.integers(len(ink.PRIMARIES))], np.float64)
    return np.asarray(base + (wave > rng.uniform(0.3, 0.7)) * (other - base))


KINDS: dict[str, Callable[[Rng, int, int], Picture]] = {
    "text": text,
    "screen": screen,
    "chart": chart,
    "drawing": drawing,
    "pattern": pattern,
    "colour": colour,
}
"""Each takes a generator, a height and a width and returns a uint8 (height, width, 3) picture."""
