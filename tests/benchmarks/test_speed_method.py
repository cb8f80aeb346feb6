"""How `rescale-bench speed` times: parts that add up, time limits, torch.compile, and engines on a fake GPU."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale import flavour, png
from rescale.bundle import Bundle
from rescale.cuda.fake import FakeCuda
from rescale.errors import BackendError
from rescale_bench import speed
from rescale_bench.compare import Options as Limits
from rescale_bench.compare import compare
from rescale_bench.compare_read import read
from rescale_bench.formats import LEAST
from rescale_bench.peers import compiled, eager
from rescale_bench.report_text import PARTS_TOLERANCE
from rescale_bench.speed_gpu import IN_A_ROW, MODES, GpuCase
from rescale_bench.speed_plan import Options, competitors, sample_picture
from rescale_bench.speed_processes import Job, Process, Timing, run_in_turn
from rescale_bench.speed_report import spread
from rescale_bench.speed_worker import DIRECTIONS, PARTS, Spec
from rescale_train.models import RescalingNet

BundleOf = Callable[[str, int], Path]


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60))
def test_the_95th_percentile_is_a_run(times: list[float]) -> None:
    found = spread(times)["p95"]
    assert found in times
    assert sum(t <= found for t in times) >= 0.95 * len(times)
    assert sum(t < found for t in times) < 0.95 * len(times)
    if len(times) < 20:
        assert found == max(times)


def test_parts_add_up_to_the_whole_and_the_graphs_are_within_the_run(bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "nonesuch")
    options = Options([bundle("irn_a", 2)], backends=["onnxruntime"], repeats=5, threads=1, resolutions=["320x240"])
    (case,) = speed.measure(options)["cases"]
    assert list(case["missing"]) == ["compiled"]
    assert "C++ compiler" in case["missing"]["compiled"]
    assert [c["name"] for c in case["competitors"]] == ["onnxruntime fp32", "eager", "naive"]
    for c in case["competitors"]:
        for direction in DIRECTIONS:
            d = c["directions"][direction]
            for i, whole in enumerate(d["whole"]["times"]):
                assert sum(d[p]["times"][i] for p in PARTS) <= whole
                assert 0 < d["compute"]["times"][i] <= d["run"]["times"][i]
            # Another process may come between two parts of a single run.
            low, median, high = d["parts_of_whole"]
            assert low <= median <= high <= 1
            assert median >= 1 - PARTS_TOLERANCE
            assert d["first"] > 0


@pytest.mark.slow
def test_two_runs_agree_within_their_spread(bundle: BundleOf, tmp_path: Path) -> None:
    """On a machine that does nothing else."""
    options = Options([bundle("irn_a", 2)], backends=["onnxruntime"], compiled=False, repeats=20, resolutions=["640x360"])
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps(speed.measure(options)))
    found = compare(read(tmp_path / "a"), read(tmp_path / "b"), Limits(0.05, 0.02))
    assert found["regressions"] == 0
    judged = [r for r in found["figures"] if r["verdict"] != "unjudged"]
    assert [r for r in judged if r["verdict"] != "same"] == []


def test_a_time_limit_ends_after_whole_rounds(bundle: BundleOf, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(png.encode(sample_picture(20, 30)))
    process = Process(Spec("backend", "downscale", 1, str(bundle("irn", 2)), "onnxruntime", "fp32"))
    try:
        process.ready()
        for seconds, least, most in ((0.0, LEAST, LEAST), (0.5, LEAST, 49), (None, 6, 6)):
            timings = {"a": Timing(), "b": Timing()}
            jobs = {n: Job(n, source) for n in timings}
            repeats = 50 if seconds is not None else 6
            order = run_in_turn(dict.fromkeys(timings, process), timings, jobs, repeats, lambda name: None, seconds)
            runs = [len(t.times["whole"]) for t in timings.values()]
            assert runs[0] == runs[1]
            assert least <= runs[0] <= most
            assert len(order) == sum(runs)
            assert timings["a"].first is not None
    finally:
        process.close()


def test_torch_compile_without_a_compiler_is_told_by_name(
    make_net: Callable[..., RescalingNet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendError, match=r"needs a C\+\+ compiler, and there is no g\+\+ or c\+\+ or clang\+\+: install one"):
        compiled(make_net("irn", 2), 1, tmp_path)
    monkeypatch.setenv("CXX", "nonesuch")
    with pytest.raises(BackendError, match="there is no nonesuch"):
        compiled(make_net("irn", 2), 1, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or not shutil.which("c++"), reason="needs a C++ compiler")
def test_torch_compile_gives_pytorchs_pictures(make_net: Callable[..., RescalingNet], tmp_path: Path) -> None:
    net, picture = make_net("irn_a", 2), sample_picture(48, 64)
    fast, plain = compiled(net, 1, tmp_path), eager(net, 1)
    lr, _ = fast.down(picture)
    want, _ = plain.down(picture)
    assert np.abs(lr.astype(int) - want).max() <= 1
    again = fast.up(want[:, :, :3], want[:, :, 3], None)
    assert np.abs(again.astype(int) - plain.up(want[:, :, :3], want[:, :, 3], None)).max() <= 1


def test_engines_are_measured_in_every_mode() -> None:
    names = [c.name for c in competitors(Options(backends=["tensorrt", "tensorrt-rtx"], precisions=["mixed"], peers=False))]
    assert names == [
        "tensorrt mixed",
        "tensorrt mixed (CUDA graphs)",
        "tensorrt mixed (one stream)",
        "tensorrt-rtx mixed",
        "tensorrt-rtx mixed (one stream)",
    ]


@pytest.mark.parametrize(("backend", "mode"), [(b, m) for b, modes in MODES.items() for m in modes])
@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_a_gpu_is_timed_alone_with_copies_and_in_a_row(
    bundle: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, mode: str, model: str
) -> None:
    opened = Bundle(bundle(model, 2))
    api = FakeCuda()
    library = fake_tensorrt.Library(api, rtx=backend == "tensorrt-rtx")
    for graph in opened.graphs:
        fake_tensorrt.write_engine(tmp_path, opened, graph, "1x2x2:2x64x64:4x256x256", backend)
    monkeypatch.setitem(sys.modules, flavour._MODULES[backend], library.module)
    monkeypatch.setattr(flavour, "_loggers", {})
    monkeypatch.setattr(flavour, "probe", lambda *_: (1, ""))
    monkeypatch.setattr(flavour, "device", lambda: flavour.Device("Fake GPU", "9.9"))
    case = GpuCase(opened, backend, "fp32", mode, cuda=api, engines=tmp_path)
    try:
        assert "Fake GPU" in case.name
        picture = sample_picture(50, 70)
        lr, latent = case.network.down(picture)
        compute = case._device

        def watched(items: Any) -> float:
            start = len(api.calls)
            seconds = compute(items)
            timed = [n for n in _names(api)[start:] if n in ("execute", "launch")][-len(items) :]
            assert timed == ["launch" if mode == "CUDA graphs" else "execute"] * len(items)
            return seconds

        monkeypatch.setattr(case, "_device", watched)
        for step in (lambda: None, lambda: case.network.up(lr[:, :, :3], lr[:, :, 3] if lr.shape[2] == 4 else None, latent)):
            step()
            before = _names(api)
            found = case.measure()
            assert set(found) == {"compute", "pipelined"}
            assert all(v > 0 and math.isfinite(v) for v in found.values())
            assert _names(api).count("execute") + _names(api).count("launch") >= before.count("execute") + IN_A_ROW
        assert case.notes == ()
        assert ("launch" in _names(api)) == (mode == "CUDA graphs")
    finally:
        case.close()
    assert api.violations == []
    assert api.alive() == {"device": 0, "host": 0, "graphs": 0, "streams": 0, "events": 0}


def _names(api: Any) -> list[str]:
    return [c.name for c in api.calls]
