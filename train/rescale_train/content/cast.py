"""Colour casts: how far colour has crept into a picture where it does not belong ("green shadows" of the published x2 network)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

BLOCK = 8
"""Side of a block in pixels of the picture that is measured."""

SHADOW = 8.0
"""A block whose chroma is further off than this many levels is a visible shadow."""

_CHROMA = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]).T


@dataclass(frozen=True)
class Cast:
    """Chroma shift of the blocks of a picture in levels of 0 to 255.

    Attributes:
        mean: over the blocks.
        worst: of the worst block.
    """

    mean: float
    worst: float

    @property
    def shadow(self) -> bool:
        """The worst block is beyond `SHADOW`."""
        return self.worst > SHADOW


def block_shifts(picture: Picture, reference: Picture, block: int = BLOCK) -> npt.NDArray[np.float64]:
    """Chroma shift of each block: the larger of |mean Cb difference| and |mean Cr difference|, BT.601 over the full range.

    The mean over a block lets errors of single pixels cancel, which the eye does not see as a colour, and keeps what tints
    a region.

    Args:
        picture, reference: uint8 (H, W, 3).
        block: side in pixels. Rows and columns beyond the last whole block count with it; a smaller picture is one block.

    Returns:
        float64 (rows, columns of blocks).

    Raises:
        ValueError: the shapes differ.
    """
    if picture.shape != reference.shape:
        raise ValueError(f"colour cast of different shapes: {picture.shape} and {reference.shape}")
    difference = (picture.astype(np.float64) - reference) @ _CHROMA
    starts = [np.arange(0, max(n - n % block, 1), block) for n in picture.shape[:2]]
    sums = np.add.reduceat(np.add.reduceat(difference, starts[0], 0), starts[1], 1)
    rows, cols = (np.diff([*s, n]) for s, n in zip(starts, picture.shape[:2], strict=True))
    result: npt.NDArray[np.float64] = np.abs(sums / (rows[:, None] * cols)[:, :, None]).max(2)
    return result


def colour_cast(picture: Picture, reference: Picture, block: int = BLOCK) -> Cast:
    """Mean and worst of `block_shifts`: of an LR against bicubic, or of a restored HR against the source."""
    shifts = block_shifts(picture, reference, block)
    return Cast(float(shifts.mean()), float(shifts.max()))
