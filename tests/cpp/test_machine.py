"""Threads and memory that this process may use: C++ finds in the kernel's files what Python does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rescale.memory import available_memory
from rescale.threads import usable_threads

pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")

SOURCE = Path(__file__).resolve().parents[2] / "runtime" / "cpp" / "src"
PROGRAM = """
#include <cstdio>
#include "machine.hpp"
int main(int, char** argv) {
  const rescale::detail::MachineFiles files{argv[1], argv[2], argv[3]};
  std::printf("%d %llu", rescale::detail::usable_threads(files), (unsigned long long)rescale::detail::default_budget(files));
}
"""
V2 = "0::/slurm/job_1/step\n"
V1 = "9:name=systemd:/x\n4:memory:/batch/job\n2:cpuacct,cpu:/batch\n0::/\n"


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """What the compiled program prints for a tree of files."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "main.cpp").write_text(PROGRAM)
    compiler = os.environ.get("CXX", "c++")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", f"-I{SOURCE}"]
    subprocess.run([compiler, *flags, str(SOURCE / "machine.cpp"), "main.cpp", "-o", "ask"], cwd=folder, check=True)

    def run(tree: Path) -> tuple[int, int]:
        places = [str(tree / name) for name in ("meminfo", "groups", "own")]
        threads, budget = subprocess.run([str(folder / "ask"), *places], capture_output=True, text=True, check=True).stdout.split()
        return int(threads), int(budget)

    return run


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        ("", {}, 4 << 30),
        ("0::/\n", {"memory.max": "1048576\n", "memory.current": "48576\n"}, 1_000_000),
        (V2, {"slurm/job_1/memory.max": "1048576\n", "slurm/job_1/memory.current": "48576\n"}, 1_000_000),
        (
            V2,
            {
                "memory.max": "max\n",
                "slurm/memory.max": "9000000\n",
                "slurm/memory.current": "1000000\n",
                "slurm/job_1/step/memory.max": "5000000\n",
                "slurm/job_1/step/memory.current": "600000\n",
                "slurm/job_1/step/memory.stat": "anon 7\ninactive_file 100000\n",
                "slurm/job_1/cpu.max": "100000 100000\n",
            },
            4_500_000,
        ),
        (V2, {"other/memory.max": "1000\n", "other/memory.current": "0\n"}, 4 << 30),
        ("0::/../../slurm\n", {"slurm/memory.max": "1000\n", "slurm/memory.current": "0\n"}, 4 << 30),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "5\n"}, 4 << 30),
        (
            V1,
            {
                "memory/batch/job/memory.limit_in_bytes": "1048576\n",
                "memory/batch/job/memory.usage_in_bytes": "48576\n",
                "memory/batch/job/memory.stat": "inactive_file 7\ntotal_inactive_file 40000\n",
                "cpu/batch/cpu.cfs_quota_us": "50000\n",
                "cpu/batch/cpu.cfs_period_us": "100000\n",
            },
            1_040_000,
        ),
        (V2, {"slurm/memory.max": "junk\n", "slurm/job_1/cpu.max": "junk"}, 4 << 30),
    ],
)
def test_limits_of_all_groups_that_hold_the_process(ask, tmp_path, own, files, free):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4194304 kB\n")
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    groups = tmp_path / "groups"
    assert available_memory(tmp_path / "meminfo", groups, tmp_path / "own") == free
    threads = usable_threads(groups, tmp_path / "own")
    assert threads == (
        1 if any("cpu.cfs" in name or text == "100000 100000\n" for name, text in files.items()) else usable_threads()
    )
    assert ask(tmp_path) == (threads, free // 2)
