"""What a rate run kept, read again: files that anybody may have written, so everything in them is checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rescale_bench.formats import MOST_DB
from rescale_bench.rate_codecs import fitting
from rescale_bench.rate_curve import Point


def read_size(found: Any) -> int:
    """Bytes of a file.

    Raises:
        ValueError: anything else.
    """
    if type(found) is not int or found <= 0:
        raise ValueError(f"{found!r} for bytes, a whole number above 0 is wanted")
    return found


def read_points(found: Any, steps: int) -> list[Point]:
    """The points of a curve, as JSON has them: ``[step, bytes, psnr_y, psnr_rgb]`` each.

    Args:
        found: untrusted.
        steps: how many the codec has.

    Raises:
        ValueError: something else, a step that the codec has not, or one twice.
    """
    points = [_point(row, steps) for row in _list(found)]
    if len({p.step for p in points}) < len(points):
        raise ValueError("a step has two points")
    return points


def read_rescaled(found: Any, containers: Sequence[str], lr_size: Sequence[int]) -> dict[str, Any]:
    """What one network made of a picture.

    Args:
        found: untrusted.
        containers: of LR files, such as can be written here.
        lr_size: (width, height) of the LR picture.

    Returns:
        ``files`` bytes by container, ``psnr_y``, ``psnr_rgb``, ``lr_size`` [width, height].

    Raises:
        ValueError: something else.
    """
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise ValueError("not the figures of an LR file")
    files, wanted = found["files"], fitting(containers, lr_size)
    if set(files) != set(wanted):
        raise ValueError(f"files in {', '.join(files) or 'no container'}, those in {', '.join(wanted)} are wanted")
    if found.get("lr_size") != list(lr_size):
        raise ValueError(f"LR size {found.get('lr_size')!r}, {list(lr_size)} is wanted")
    return {
        "files": {c: read_size(files[c]) for c in wanted},
        "psnr_y": _psnr(found.get("psnr_y")),
        "psnr_rgb": _psnr(found.get("psnr_rgb")),
        "lr_size": list(lr_size),
    }


def _point(row: Any, steps: int) -> Point:
    if len(_list(row)) != 4:
        raise ValueError(f"{row!r} for a point, [step, bytes, PSNR of Y, PSNR of RGB] is wanted")
    step = row[0]
    if type(step) is not int or not 0 <= step < steps:
        raise ValueError(f"step {step!r} of a codec with {steps} steps")
    return Point(step, read_size(row[1]), _psnr(row[2]), _psnr(row[3]))


def _psnr(found: Any) -> float:
    """A PSNR in dB; `rescale.json_text` writes an infinite one as text."""
    if found == "inf":
        return math.inf
    if type(found) not in (int, float) or not 0.0 <= found <= MOST_DB:
        raise ValueError(f'{found!r} for a PSNR, 0 to {MOST_DB:.0f} dB or "inf" is wanted')
    return float(found)


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{found!r}, a list is wanted")
    return found
