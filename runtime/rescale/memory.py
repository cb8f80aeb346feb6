"""Memory budgets: how large a piece of a picture may be run at once.

The cost model is fitted, not exact: a graph's live tensors per LR pixel come from the bundle, ONNX Runtime's arena takes up to
3.5 times that (docs/measurements.md), and something is needed before the first pixel.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from rescale.cgroup import MOUNT, OWN, control_groups
from rescale.errors import InputError

ARENA_FACTOR = 4.0
"""Resident bytes per byte of live tensors, at the most."""

FIXED_BYTES = 64 << 20
MIN_CORE = 16
"""Smallest core of a tile in LR pixels; below it the halo would be nearly all of the work."""

PIECE_PIXELS = 1 << 20
"""LR pixels of a piece beyond which larger ones are no faster (docs/speed.md) and only take more memory."""

PIECE_WORK = 1.05
"""Work that pieces of that size may repeat in their halos; with a larger halo the whole picture is run if it fits."""

NO_LIMIT = 1 << 62
"""From here on a control group of version 1 has no limit: it says the largest number of whole pages."""

_ACCOUNTS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Control groups of version 2 and 1: kind, limit, use, and the name of the cached files in memory.stat."""

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "KB": 1 << 10, "M": 1 << 20, "MB": 1 << 20, "G": 1 << 30, "GB": 1 << 30}


def parse_memory(text: str) -> int:
    """``2GB``, ``512MB`` or a number of bytes, in powers of 1024.

    Raises:
        InputError: not such a text.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]?B?)\s*", text.upper())
    if not match or float(match.group(1)) * _UNITS[match.group(2)] < 1:
        raise InputError(f"memory {text!r}: a size is wanted, such as 2GB or 512MB")
    value = float(match.group(1)) * _UNITS[match.group(2)]
    if value > 1 << 60:
        raise InputError(f"memory {text[:20]!r}...: more than any machine has")
    return int(value)


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = MOUNT, own: Path = OWN) -> int | None:
    """Bytes that this process can still get: what the system has free, at most what its control groups leave; None if unknown.

    Args:
        meminfo: the kernel's account of the system.
        cgroup, own: see `control_groups`.
    """
    found = []
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.M)
        found += [int(match.group(1)) << 10] if match else []
    except OSError:
        pass
    for kind, most, used, cached in _ACCOUNTS:
        for group in control_groups(cgroup, kind, own):
            try:
                limit = (group / most).read_text().strip()
                if limit != "max" and int(limit) < NO_LIMIT:
                    found.append(max(0, int(limit) - _held(group, used, cached)))
            except (OSError, ValueError):
                continue
    return min(found) if found else None


def _held(group: Path, used: str, cached: str) -> int:
    """Bytes of a control group that do not give way: cached files count as used in it."""
    stat = group / "memory.stat"
    match = re.search(rf"^{cached} (\d+)$", stat.read_text() if stat.exists() else "", re.M)
    return int((group / used).read_text()) - (int(match.group(1)) if match else 0)


def default_budget() -> int:
    """Half of what is available; 2 GiB where that is unknown."""
    available = available_memory()
    return 2 << 30 if available is None else available // 2


def least_budget(halo: int, cost: int) -> int:
    """The smallest budget that `choose_tile` can work with, in bytes."""
    return FIXED_BYTES + math.ceil(ARENA_FACTOR * cost * (MIN_CORE + 2 * halo) ** 2) + 1


def choose_tile(height: int, width: int, halo: int, cost: int, budget: int) -> tuple[int, int] | None:
    """Core size that keeps a run within a budget, and a large picture in pieces that are as fast.

    Args:
        height, width: of the LR picture.
        halo: LR pixels around a core.
        cost: bytes of live tensors per LR pixel.
        budget: bytes for one run.

    Returns:
        None for the whole picture; else (height, width) of a core, as full-width strips where they repeat less work than
        squares.

    Raises:
        InputError: not even the smallest tile fits.
    """
    pixels = int((budget - FIXED_BYTES) / (ARENA_FACTOR * cost))
    fits = height * width <= pixels
    if fits and height * width <= PIECE_PIXELS:
        return None
    if min(pixels, height * width) > PIECE_PIXELS:
        tile, work = _best(width, halo, PIECE_PIXELS)
        if work <= PIECE_WORK:
            return tile
    if fits:
        return None
    tile, work = _best(width, halo, pixels)
    if math.isinf(work):
        least = least_budget(halo, cost)
        raise InputError(f"a memory budget of {budget >> 20} MB is too small for this model: at least {(least >> 20) + 1} MB")
    return tile


def _best(width: int, halo: int, pixels: int) -> tuple[tuple[int, int], float]:
    """Core of a strip or a square whose region has at most so many pixels, and how much work it repeats (1 is none)."""
    rows = pixels // width - 2 * halo
    side = math.isqrt(max(0, pixels)) - 2 * halo
    strip = (rows + 2 * halo) / rows if rows >= MIN_CORE else math.inf
    square = ((side + 2 * halo) / side) ** 2 if side >= MIN_CORE else math.inf
    return ((rows, width), strip) if strip <= square else ((side, side), square)
