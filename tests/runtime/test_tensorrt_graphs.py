"""The TensorRT runner on fakes: CUDA graphs, and what TensorRT for RTX compiles and keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tensorrt_runner import frames, opened

import rescale
from rescale.cuda import executor, rtx
from rescale.cuda.fake import FakeCuda
from rescale.errors import BackendError


def test_graphs_are_captured_for_shapes_that_come_again(bundle, tmp_path, reference):
    a, b = frames((1, 32, 32), (1, 48, 16))
    big = frames((1, 128, 128))[0]
    with opened(bundle("irn_a", 2), tmp_path, cuda_graphs=True, slots=1) as (runner, _, api):

        def run(x):
            start = len(api.calls)
            got = runner.run("downscale", {"hr": x})["lr"]
            assert np.array_equal(got, reference("irn_a", 2).run("downscale", {"hr": x})["lr"])
            names = [c.name for c in api.calls[start:]]
            return names.count("execute"), names.count("launch")

        assert [run(x) for x in (a, b, a, b, a, b)] == [(1, 0), (1, 0), (2, 0), (2, 0), (0, 1), (0, 1)]
        assert api.alive()["graphs"] == 2
        # Larger buffers: what was captured with the old addresses is not used.
        assert run(big) == (1, 0)
        assert api.alive()["graphs"] == 0
        assert [run(x) for x in (a, a, a)] == [(1, 0), (2, 0), (0, 1)]
        assert runner.notes == ()


def test_graphs_that_were_not_used_for_long_go(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "MAX_GRAPHS", 3)
    pictures = frames((1, 64, 64), *[(1, 16, 16 + 2 * i) for i in range(5)])
    with opened(bundle("irn", 2), tmp_path, cuda_graphs=True, slots=1) as (runner, _, api):
        for x in [*pictures, *pictures]:
            runner.run("downscale", {"hr": x})
        assert api.alive()["graphs"] == 3


def test_a_capture_that_fails_is_said_and_the_result_is_right(bundle, tmp_path, reference):
    (x,) = frames((1, 32, 32))
    want = reference("irn", 2).run("downscale", {"hr": x})["lr"]
    with opened(bundle("irn", 2), tmp_path, cuda_graphs=True, slots=1) as (runner, library, api):
        runner.run("downscale", {"hr": x})
        api.failures["begin_capture"] = BackendError("capture forbidden")
        for _ in range(4):
            assert np.array_equal(runner.run("downscale", {"hr": x})["lr"], want)
        assert len(runner.notes) == 1
        assert "CUDA graph not captured, runs without: capture forbidden" in runner.notes[0]
        assert "hr (1, 32, 32, 3)" in runner.notes[0]
        (y,) = frames((1, 30, 30))
        runner.run("downscale", {"hr": y})
        # The library refuses while capturing: the first execution of the pair is the run itself.
        original = api.begin_capture

        def begin(stream):
            original(stream)
            library.say["execute_async_v3"] = "operation not permitted when stream is capturing"

        api.begin_capture = begin
        assert np.array_equal(runner.run("downscale", {"hr": y})["lr"], reference("irn", 2).run("downscale", {"hr": y})["lr"])
        del api.begin_capture
        assert "not permitted when stream is capturing" in runner.notes[1]
        assert api.alive()["graphs"] == 0
        assert np.array_equal(runner.run("downscale", {"hr": y})["lr"], reference("irn", 2).run("downscale", {"hr": y})["lr"])
    with opened(bundle("irn", 2), tmp_path, cuda_graphs=True, slots=1, cuda=FakeCuda(captures=False)) as (runner, _, _):
        for _ in range(3):
            assert np.array_equal(runner.run("downscale", {"hr": x})["lr"], want)
        assert runner.notes[0].endswith("fake has no CUDA graphs; runs without")


def test_rtx_is_configured_and_never_captured_by_hand(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    for options, graphs, strategy in (
        ({}, "DISABLED", "LAZY"),
        ({"cuda_graphs": True, "strategy": "eager"}, "WHOLE_GRAPH_CAPTURE", "EAGER"),
        ({"strategy": "none", "runtime_cache": False}, "DISABLED", "NONE"),
    ):
        with opened(bundle("irn", 2), tmp_path, "tensorrt-rtx", **options) as (runner, library, api):
            for _ in range(4):
                runner.run("downscale", {"hr": x})
            (config,) = library.configs
            assert config.cuda_graph_strategy.name == graphs
            assert config.dynamic_shapes_kernel_specialization_strategy.name == strategy
            assert "begin_capture" not in [c.name for c in api.calls]
            before = sorted(tmp_path.glob("*.cache"))
        assert sorted(tmp_path.glob("*.cache")) != [] or before == []


def test_compiled_kernels_are_kept_beside_the_engine(bundle, tmp_path):
    (x,) = frames((1, 16, 16))

    def use(blob, accepts=True):
        with opened(bundle("irn", 2), tmp_path, "tensorrt-rtx") as (runner, library, _):
            library.blob, library.accepts_cache = blob, accepts
            runner.run("downscale", {"hr": x})
            notes = runner._notes
        return library.read_caches, notes.lines()

    assert use(b"kernels") == ([], ())
    (cache,) = tmp_path.glob("*.cache")
    assert cache.read_bytes() == b"kernels"
    assert cache.name.startswith("downscale.fp32.tensorrt-rtx.")
    assert cache.name.endswith(".fake-gpu.cache")
    assert use(b"more kernels") == ([b"kernels"], ())
    assert cache.read_bytes() == b"more kernels"
    # Less than what another process has written meanwhile does not replace it.
    assert use(b"few") == ([b"more kernels"], ())
    assert cache.read_bytes() == b"more kernels"
    # What the library refuses does not hold its place against what was compiled instead.
    read, notes = use(b"x", accepts=False)
    assert read == [b"more kernels"]
    assert "of another GPU, driver or version, or damaged" in notes[0]
    assert cache.read_bytes() == b"x"
    assert [p.name for p in tmp_path.glob(".rescale*")] == []


def test_caches_beyond_the_limit_are_neither_read_nor_written(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(rtx, "MAX_CACHE_BYTES", 1 << 20)
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path, "tensorrt-rtx") as (runner, library, _):
        library.blob = b"0" * ((1 << 20) + 1)
        runner.run("downscale", {"hr": x})
        notes = runner._notes
    assert list(tmp_path.glob("*.cache")) == []
    assert notes.lines()[0].endswith("not written: 1 MB, at most 1 MB are kept")
    (info,) = tmp_path.glob("downscale*.engine")
    Path(f"{str(info).removesuffix('.engine')}.fake-gpu.cache").write_bytes(b"0" * ((1 << 20) + 1))
    with opened(bundle("irn", 2), tmp_path, "tensorrt-rtx") as (runner, library, _):
        runner.run("downscale", {"hr": x})
        assert library.read_caches == []
        assert "not read: larger than 1048576 bytes" in runner.notes[0]


def test_a_cache_that_cannot_be_written_is_said_and_nothing_fails(bundle, tmp_path, monkeypatch):
    (x,) = frames((1, 16, 16))

    def full(path, data):
        raise rescale.OutputError(f"{path}: cannot write: No space left on device")

    monkeypatch.setattr(rtx, "atomic_write", full)
    with opened(bundle("irn", 2), tmp_path, "tensorrt-rtx") as (runner, _, _):
        runner.run("downscale", {"hr": x})
        notes = runner._notes
    assert "No space left on device" in notes.lines()[0]
