"""What a lossy codec reaches on one picture: measured points, and the search for given bytes or a given PSNR."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One measurement: the codec's step, bytes of the file, PSNR in dB of Y and of RGB; infinite where nothing is lost."""

    step: int
    bytes: int
    psnr_y: float
    psnr_rgb: float


@dataclass(frozen=True)
class Match:
    """Where a codec meets a target, between two measured points of neighbouring steps.

    Attributes:
        target: bytes, or dB.
        reached: ``bracketed``; ``above``: the codec's best quality needs less than the target, so the target would be more than
            it can use; ``below``: its worst quality needs more.
        bytes, psnr_y, psnr_rgb: at the target. Interpolated in the logarithm of the bytes if bracketed, else the end point's.
            Towards a lossless point nothing is interpolated: given bytes reach the lower point, a given PSNR needs the upper.
        lower, upper: the measured points around it; None for one that does not exist.
    """

    target: float
    reached: str
    bytes: float
    psnr_y: float
    psnr_rgb: float
    lower: Point | None
    upper: Point | None

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        points = {k: None if (p := getattr(self, k)) is None else p._asdict() for k in ("lower", "upper")}
        return asdict(self) | points


class Curve:
    """Points of one codec on one picture, each step measured once.

    Args:
        measure: measures a step.
        steps: how many steps the codec has.
        ladder: steps where every search starts, ascending from 0 to `steps` - 1.
        points: known already.
        floor: what there is at no bytes of this codec at all, as a point of step -1; None for nothing.
    """

    def __init__(
        self,
        measure: Callable[[int], Point],
        steps: int,
        ladder: tuple[int, ...],
        points: Iterable[Point] = (),
        floor: Point | None = None,
    ) -> None:
        if ladder[0] != 0 or ladder[-1] != steps - 1 or list(ladder) != sorted(set(ladder)):
            raise ValueError(f"ladder {ladder} of a codec with {steps} steps")
        self._measure, self._ladder, self.floor = measure, ladder, floor
        self._points = {p.step: p for p in points}
        self.changed = False

    def at(self, step: int) -> Point:
        """The point of a step, measured if it is not known."""
        if step not in self._points:
            self._points[step] = self._measure(step)
            self.changed = True
        return self._points[step]

    def points(self) -> list[Point]:
        """All that were measured so far, by step."""
        return [self._points[s] for s in sorted(self._points)]

    def ladder(self) -> list[Point]:
        """The points of the ladder."""
        return [self.at(s) for s in self._ladder]

    def for_bytes(self, target: int) -> Match:
        """What the codec reaches in so many bytes."""
        lower, upper = self._bracket(lambda p: p.bytes, target)
        return _match(target, lower, upper, _share_of_bytes(lower, upper, target))

    def for_psnr(self, target: float) -> Match:
        """How many bytes the codec needs for a PSNR of Y."""
        lower, upper = self._bracket(lambda p: p.psnr_y, target)
        return _match(target, lower, upper, _share_of_psnr(lower, upper, target))

    def _bracket(self, value: Callable[[Point], float], target: float) -> tuple[Point | None, Point | None]:
        """Points of neighbouring steps, the first with a value of at most the target, the second with a higher one.

        Where values do not grow with every step, it is one of the places where they pass the target. The search depends on
        the ladder and not on what else is known, so that a run which was stopped ends with the same figures.
        """
        ladder = self.ladder()
        fits = [i for i, p in enumerate(ladder) if value(p) <= target]
        if not fits:
            if self.floor is not None and value(self.floor) > target:
                return None, self.floor
            return self.floor, ladder[0]
        if fits[-1] == len(ladder) - 1:
            return ladder[-1], None
        low, high = ladder[fits[-1]], ladder[fits[-1] + 1]
        tries = 0
        while high.step - low.step > 1:
            # Interpolated first, which mostly hits; then halved, which always ends.
            middle = self.at(_guess(low, high, value, target) if tries < 3 else (low.step + high.step) // 2)
            low, high = (middle, high) if value(middle) <= target else (low, middle)
            tries += 1
        return low, high


def _guess(low: Point, high: Point, value: Callable[[Point], float], target: float) -> int:
    """A step between two points where a value that grows evenly with the step would pass the target."""
    first, last = value(low), value(high)
    if not math.isfinite(last):
        return (low.step + high.step) // 2
    at = low.step + (high.step - low.step) * (target - first) / (last - first)
    return min(max(round(at), low.step + 1), high.step - 1)


def _share_of_bytes(lower: Point | None, upper: Point | None, target: float) -> float:
    """How far the target is from the lower point to the upper, in the logarithm of the bytes."""
    if lower is None or upper is None:
        return 0.0
    return math.log(target / lower.bytes) / math.log(upper.bytes / lower.bytes)


def _share_of_psnr(lower: Point | None, upper: Point | None, target: float) -> float:
    """How far the target is from the lower point to the upper, in dB; wholly at the upper one where that is lossless."""
    if lower is None or upper is None or target <= lower.psnr_y:
        return 0.0
    # The lower point has less than the target, and what lies between it and a lossless one is not known.
    return (target - lower.psnr_y) / (upper.psnr_y - lower.psnr_y) if math.isfinite(upper.psnr_y) else 1.0


def _match(target: float, lower: Point | None, upper: Point | None, share: float) -> Match:
    if lower is None or upper is None:
        end = upper if lower is None else lower
        assert end is not None
        reached = "below" if lower is None else "above"
        return Match(target, reached, end.bytes, end.psnr_y, end.psnr_rgb, lower, upper)
    if share == 1.0:  # what was measured, and not a power of it
        return Match(target, "bracketed", upper.bytes, upper.psnr_y, upper.psnr_rgb, lower, upper)
    size = lower.bytes * (upper.bytes / lower.bytes) ** share
    psnr_y, psnr_rgb = (_between(low, high, share) for low, high in zip(lower[2:], upper[2:], strict=True))
    return Match(target, "bracketed", size, psnr_y, psnr_rgb, lower, upper)


def _between(low: float, high: float, share: float) -> float:
    """Interpolated; the lower value, which was measured, where the upper one is infinite."""
    return low + share * (high - low) if math.isfinite(low) and math.isfinite(high) else low
