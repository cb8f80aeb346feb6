"""The default number of threads respects affinity and container limits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rescale.threads import cpu_quota, usable_threads


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "junk"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_quota_of_both_control_group_versions(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota
    allowed = len(os.sched_getaffinity(0))
    assert usable_threads(tmp_path) == (allowed if quota is None else min(allowed, max(1, -int(-quota // 1))))


def test_affinity_is_respected():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from rescale.threads import *; print(usable_threads())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
