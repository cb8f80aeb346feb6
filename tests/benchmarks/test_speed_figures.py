"""What `rescale-bench speed` makes of raw times: order of runs, spread, ratios, the peak, and what it says of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_bench.machine import PRODUCT_FLOPS, machine, peak_rss, versions
from rescale_bench.speed_processes import Timing, rounds
from rescale_bench.speed_report import add_ratios, direction_report, product_report, spread, sweep_flatness
from rescale_bench.speed_worker import DIRECTIONS


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True), st.integers(1, 7))
def test_rounds_are_fair(names: list[str], repeats: int) -> None:
    order = list(rounds(names, repeats))
    assert len(order) == len(names) * repeats
    for i in range(repeats):
        part = order[i * len(names) : (i + 1) * len(names)]
        assert sorted(part) == sorted(names)
        assert part[0] == names[i % len(names)]


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20))
def test_spread_is_ordered(times: list[float]) -> None:
    found = spread(times)
    assert found["times"] == times
    assert found["min"] <= found["q1"] * (1 + 1e-9)
    assert found["q1"] <= found["median"] * (1 + 1e-9)
    assert found["median"] <= found["q3"] * (1 + 1e-9)
    assert found["q3"] <= found["max"] * (1 + 1e-9)


def timing(run: float, codec: float = 0.25) -> Timing:
    times = {"decode": [codec] * 3, "run": [run, 2 * run, 4 * run], "encode": [codec] * 3}
    times["whole"] = [a + 2 * codec for a in times["run"]]
    return Timing(times, "x", 10, 20)


def test_ratios_are_the_peers_time_over_mine() -> None:
    def row(name: str, down: float, up: float) -> dict[str, Any]:
        directions = {d: direction_report(timing(s), 4_000_000_000, 8.0) for d, s in zip(DIRECTIONS, (down, up), strict=True)}
        return {"name": name, "directions": directions}

    rows = [row("onnxruntime fp32", 0.5, 1.0), row("eager", 2.0, 3.0), row("naive", 1.0, 0.5)]
    rows.append({"name": "onnxruntime mixed", "directions": {"upscale": rows[0]["directions"]["upscale"]}})
    add_ratios(rows)
    mine = rows[0]
    assert mine["round_trip"] == {"run": 3.0, "whole": 4.0}
    assert mine["times_faster"]["eager"] == {
        "downscale": {"run": 4.0, "whole": 3.0},
        "upscale": {"run": 3.0, "whole": pytest.approx(6.5 / 2.5)},
        "round_trip": {"run": pytest.approx(10 / 3), "whole": pytest.approx(11 / 4)},
    }
    assert mine["times_faster"]["naive"]["upscale"]["run"] == 0.5
    assert rows[1]["times_faster"]["eager"]["round_trip"] == {"run": 1.0, "whole": 1.0}
    assert rows[3]["round_trip"] is None
    assert set(rows[3]["times_faster"]["eager"]) == {"upscale"}
    assert mine["directions"]["downscale"]["gflops"] == 4.0
    assert mine["directions"]["downscale"]["share_of_peak"] == 0.5


def test_the_peak_is_the_best_product() -> None:
    found = product_report(Timing({"run": [0.5, 0.25, 1.0]}, "product"))
    assert found["gflops"] == PRODUCT_FLOPS / 0.25 / 1e9


def test_flatness_is_largest_over_smallest() -> None:
    sizes = [{"seconds_per_megapixel": {"run": r, "whole": w}} for r, w in ((1.0, 3.0), (1.2, 3.0), (1.1, 3.0))]
    assert sweep_flatness(sizes) == {"run": pytest.approx(0.2), "whole": 0.0}


def test_peak_memory_is_the_process_own() -> None:
    """`ru_maxrss` of a child is at least what its parent took when it began."""
    ballast = np.ones(200 << 20, np.uint8)
    command = "from rescale_bench.machine import peak_rss; print(peak_rss())"
    found = int(subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout)
    assert peak_rss() > ballast.nbytes > found > 1 << 20


def test_machine_is_read_from_linux_files(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f amx_bf16x\n")
    (tmp_path / "meminfo").write_text("MemTotal:       2048 kB\nMemAvailable:   1024 kB\n")
    found = machine(3, tmp_path / "cpuinfo", tmp_path / "meminfo")
    assert (found["cpu"], found["simd"], found["memory"], found["threads"]) == ("Some CPU @ 2 GHz", ["avx2", "avx512f"], 2 << 20, 3)
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50\nFeatures\t: fp asimd asimdhp\n")
    assert machine(1, tmp_path / "cpuinfo", tmp_path / "none")["simd"] == ["asimd", "asimdhp"]
    assert machine(1, tmp_path / "none", tmp_path / "none")["memory"] is None
    assert versions()["onnxruntime"] == ort.__version__
