"""How many CPU threads this process may use: what the scheduler allows, and what its control groups pay for."""

from __future__ import annotations

import math
import os
from pathlib import Path

from rescale.cgroup import MOUNT, OWN, control_groups


def usable_threads(cgroup: Path = MOUNT, own: Path = OWN) -> int:
    """CPUs in this process's affinity mask, at most the CPU quota of its control groups rounded up; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroup, own)
    return max(1, min(allowed, math.ceil(quota)) if quota else allowed)


def cpu_quota(cgroup: Path = MOUNT, own: Path = OWN) -> float | None:
    """CPUs that the control groups may use, from version 2's cpu.max or version 1's cpu.cfs_*_us; None without a limit."""
    found = []
    for kind, read in (("", _version_2), ("cpu", _version_1)):
        for group in control_groups(cgroup, kind, own):
            try:
                limit, period = read(group)
            except (OSError, ValueError):
                continue
            if limit > 0 and period > 0:
                found.append(limit / period)
    return min(found, default=None)


def _version_2(group: Path) -> tuple[float, float]:
    limit, period = (group / "cpu.max").read_text().split()
    return (-1.0 if limit == "max" else float(limit)), float(period)


def _version_1(group: Path) -> tuple[float, float]:
    return float((group / "cpu.cfs_quota_us").read_text()), float((group / "cpu.cfs_period_us").read_text())
