"""How many CPU threads this process may use: what the scheduler allows, and what its control group pays for."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_threads(cgroup: Path = CGROUP) -> int:
    """CPUs in this process's affinity mask, at most the CPU quota of its control group rounded up; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroup)
    return max(1, min(allowed, math.ceil(quota)) if quota else allowed)


def cpu_quota(cgroup: Path) -> float | None:
    """CPUs that the control group may use, from version 2's cpu.max or version 1's cpu.cfs_*_us; None without a limit."""
    for read in (_version_2, _version_1):
        try:
            limit, period = read(cgroup)
        except (OSError, ValueError):
            continue
        return limit / period if limit > 0 and period > 0 else None
    return None


def _version_2(cgroup: Path) -> tuple[float, float]:
    limit, period = (cgroup / "cpu.max").read_text().split()
    return (-1.0 if limit == "max" else float(limit)), float(period)


def _version_1(cgroup: Path) -> tuple[float, float]:
    folder = cgroup / "cpu"
    return float((folder / "cpu.cfs_quota_us").read_text()), float((folder / "cpu.cfs_period_us").read_text())
