"""Where a picture is hard: crops drawn in proportion to the detail that reducing loses.

A picture's PSNR is that of its mean squared error, to which its hard parts contribute nearly all. Crops drawn alike from
every place teach mostly what is easy. Drawn by detail, with a loss that counts a decibel of every crop the same, they pull on
the network as the mean of the pictures' PSNR does, and no few crops make the gradient's outliers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rescale.quality import LUMA

CELL = 8
"""Side of a cell in pixels: detail is known, and crops begin, cell by cell."""

FLOOR = 10.0 ** (-35.0 / 10.0)
"""Added to every squared error (of values in [0, 1]): below 35 dB's, no place is much easier than another."""


def detail_map(picture: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.float64]:
    """Mean squared luma error of bicubic reduction and enlargement in each whole cell of 8x8 pixels.

    Args:
        picture: uint8 (H, W, 3).
        scale: of the reduction; a divisor of 8.

    Returns:
        (H // 8, W // 8), of values in [0, 1]; empty if a side is below 8 pixels.
    """
    height, width = (n // CELL * CELL for n in picture.shape[:2])
    if not (height and width):
        return np.zeros((height // CELL, width // CELL))
    weights = torch.tensor(LUMA) / 255.0**2
    luma = (torch.from_numpy(np.require(picture[:height, :width], requirements=["C", "W"])).float() @ weights)[None, None]
    small = functional.interpolate(luma, scale_factor=1.0 / scale, mode="bicubic", antialias=True)
    again = functional.interpolate(small, size=(height, width), mode="bicubic")
    cells: npt.NDArray[np.float64] = functional.avg_pool2d((luma - again).square(), CELL)[0, 0].double().numpy()
    return cells


class HardPlaces:
    """Draws where a crop of one picture begins.

    With share s, a crop's density is (1 - s) + s q, where q is its detail over the mean detail of all crops of the picture:
    it has the mean 1, so that the density of a picture among others is left as it was.

    Args:
        picture: uint8 (H, W, 3).
        scale: of the network.
        share: s, 0 to 1.
    """

    def __init__(self, picture: npt.NDArray[np.uint8], scale: int, share: float) -> None:
        cells = detail_map(picture, scale) + FLOOR
        self._sums = np.pad(cells, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        self._share = share
        self._cumulated: dict[tuple[int, int, int, int], tuple[npt.NDArray[np.float64], int]] = {}

    def draw(self, rng: np.random.Generator, margin: int, patch: int, rows: int, cols: int) -> tuple[int, int]:
        """First row and column of a crop with its margin.

        Args:
            rng: takes three numbers from it.
            margin: pixels around a crop that are not its own.
            patch: side of a crop without margin.
            rows: the first row is 0 to this.
            cols: the first column is 0 to this.
        """
        cumulated, width = self._density(margin // CELL, patch // CELL, rows // CELL + 1, cols // CELL + 1)
        row, col = divmod(min(int(np.searchsorted(cumulated, rng.random(), side="right")), len(cumulated) - 1), width)
        below, right = (int(rng.integers(0, min(last - CELL * cell, CELL - 1) + 1)) for last, cell in ((rows, row), (cols, col)))
        return CELL * row + below, CELL * col + right

    def _density(self, margin: int, side: int, rows: int, cols: int) -> tuple[npt.NDArray[np.float64], int]:
        """Cumulated density of crops that begin in each of rows x cols cells, row by row; how many cells a row has."""
        key = margin, side, rows, cols
        if key not in self._cumulated:
            s = self._sums
            if margin + side + rows > s.shape[0] or margin + side + cols > s.shape[1]:
                # The picture is smaller than the crop, which is mirrored: there is one place only along that axis.
                s = np.ones((margin + side + rows, margin + side + cols)).cumsum(0).cumsum(1)
            top, left = slice(margin, margin + rows), slice(margin, margin + cols)
            low, right = slice(margin + side, margin + side + rows), slice(margin + side, margin + side + cols)
            inside = s[low, right] - s[top, right] - s[low, left] + s[top, left]
            density = (1.0 - self._share) + self._share * inside / inside.mean()
            cumulated = density.ravel().cumsum()
            self._cumulated[key] = cumulated / cumulated[-1], cols
        return self._cumulated[key]
