"""Boxes of tiles: pure integers, in LR pixels.

A tile has a *core*, the output it is responsible for, and a *region*, the core with a halo on every side, which is what the
network sees. Cores cover the picture without overlap. With a halo of the network's receptive field the cores are what the
whole picture would give.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from rescale.errors import InputError


@dataclass(frozen=True)
class Box:
    """Half-open rectangle in LR pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def within(self, outer: Box) -> tuple[slice, slice]:
        """Slices that cut this box out of an array of `outer`."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )

    def slices(self, factor: int = 1) -> tuple[slice, slice]:
        """Slices of this box in a picture of `factor` pixels per LR pixel."""
        return slice(self.top * factor, self.bottom * factor), slice(self.left * factor, self.right * factor)


@dataclass(frozen=True)
class Tile:
    """One piece of work."""

    core: Box
    region: Box


def grow(box: Box, halo: int, align: int, height: int, width: int) -> Box:
    """A box with `halo` pixels on every side, moved outwards to multiples of `align`, cut to the picture."""

    def down(value: int) -> int:
        return max(0, value // align * align)

    def up(value: int, limit: int) -> int:
        return min(limit, -(-value // align) * align)

    return Box(
        down(box.top - halo),
        up(box.bottom + halo, height),
        down(box.left - halo),
        up(box.right + halo, width),
    )


def cut(length: int, size: int, align: int) -> list[tuple[int, int]]:
    """An axis in pieces of at most `size` pixels, as even as `align` allows; every start is a multiple of `align`."""
    units, most = -(-length // align), max(1, size // align)
    count = 1 if size >= length else -(-units // most)
    edges = [units * i // count * align for i in range(count + 1)]
    edges[-1] = length
    return list(itertools.pairwise(edges))


def plan(height: int, width: int, tile: tuple[int, int], halo: int, align: int = 1) -> list[Tile]:
    """Tiles of a picture, row by row.

    Args:
        height, width: of the LR picture.
        tile: (height, width) of a core at most, in LR pixels, at least `align`.
        halo: LR pixels around a core.
        align: starts of cores and regions are multiples of this (-M: the latent's stride).

    Raises:
        InputError: a tile smaller than `align`, or a negative halo.
    """
    if min(tile) < align or halo < 0:
        raise InputError(f"tiles of {tile[1]}x{tile[0]} LR pixels with a halo of {halo}: at least {align} and 0 are wanted")
    tiles = []
    for top, bottom in cut(height, tile[0], align):
        for left, right in cut(width, tile[1], align):
            core = Box(top, bottom, left, right)
            tiles.append(Tile(core, grow(core, halo, align, height, width)))
    return tiles
