"""How two results differ: bytes by grey levels and places, z by its range."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.errors import ParityError
from rescale.quality import psnr

TILE = 32
"""Side in pixels of the squares among which the worst is looked for."""

_ZERO = 255
"""Index of no difference in a histogram of differences."""


@dataclass
class Comparison:
    """Agreement of uint8 values.

    Attributes:
        counts: int64 (511,): how many values differ from the reference by -255 to 255.
    """

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * _ZERO + 1, np.int64))

    def add(self, got: npt.NDArray[Any], want: npt.NDArray[Any], what: str) -> None:
        """Take one pair of arrays in.

        Raises:
            ParityError: not uint8, or their shapes differ.
        """
        if got.shape != want.shape or got.dtype != want.dtype or want.dtype != np.uint8:
            raise ParityError(f"{what}: {got.dtype} {got.shape}, PyTorch gives {want.dtype} {want.shape}")
        delta = got.astype(np.int16) - want.astype(np.int16)
        self.counts += np.bincount(delta.ravel() + _ZERO, minlength=self.counts.size)

    def merge(self, other: Comparison) -> None:
        """Take all of another's pairs in."""
        self.counts += other.counts

    @property
    def values(self) -> int:
        """How many were compared."""
        return int(self.counts.sum())

    @property
    def different(self) -> int:
        """How many are not equal."""
        return self.values - int(self.counts[_ZERO])

    @property
    def largest(self) -> int:
        """Largest difference in grey levels."""
        return max((abs(level) for level in self.histogram()), default=0)

    @property
    def share(self) -> float:
        """Part of the values that differ, 0 to 1."""
        return self.different / max(1, self.values)

    @property
    def psnr(self) -> float:
        """PSNR against the reference in dB, peak 255; infinite where nothing differs."""
        squared = sum(level * level * n for level, n in self.histogram().items())
        return 10.0 * math.log10(255.0**2 * self.values / squared) if squared else math.inf

    def histogram(self) -> dict[int, int]:
        """How many values differ by how many levels, signed; only those that occur."""
        return {int(i) - _ZERO: int(self.counts[i]) for i in np.flatnonzero(self.counts)}

    def require(self, what: str, share: float) -> None:
        """Raises ParityError if more than this share of the values differ, or one by more than 1."""
        if self.largest > 1 or self.different > share * self.values:
            raise ParityError(f"{what}: {self.different} of {self.values} values differ from PyTorch, by up to {self.largest}")

    def to_dict(self) -> dict[str, Any]:
        """For manifests and reports; an infinite PSNR is None."""
        value = self.psnr
        return {
            "values": self.values,
            "different": self.different,
            "largest": self.largest,
            "psnr": None if math.isinf(value) else round(value, 2),
        }


@dataclass(frozen=True)
class Spot:
    """The part of a picture where a result is worst.

    Attributes:
        top, left, height, width: in pixels.
        largest: difference in grey levels.
        psnr: against the reference within it, dB.
    """

    top: int
    left: int
    height: int
    width: int
    largest: int
    psnr: float

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return {**vars(self), "psnr": round(self.psnr, 2)}


def worst_spot(got: npt.NDArray[np.uint8], want: npt.NDArray[np.uint8], side: int = TILE) -> Spot | None:
    """The square of the largest squared error among those that tile two uint8 (H, W, C) pictures; None where they are equal."""
    delta = got.astype(np.int32) - want.astype(np.int32)
    energy = np.square(delta).sum(axis=2)
    if not energy.any():
        return None
    height, width = energy.shape
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(energy, rows, axis=0, dtype=np.int64), columns, axis=1)
    top, left = (int(i) * side for i in np.unravel_index(int(sums.argmax()), sums.shape))
    here = np.s_[top : top + side, left : left + side]
    h, w = energy[here].shape
    return Spot(top, left, h, w, int(np.abs(delta[here]).max()), psnr(got[here], want[here]))


def z_error(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    """Largest difference of two z as part of the largest |z| wanted, which counts as 0.1 at least; infinite for no number."""
    error = float(np.abs(got - want).max(initial=0.0))
    return error / max(float(np.abs(want).max(initial=0.0)), 0.1) if math.isfinite(error) else math.inf
