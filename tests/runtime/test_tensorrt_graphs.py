"""The TensorRT runner on fakes: CUDA graphs, and what TensorRT for RTX compiles and keeps."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tensorrt_runner import frames, opened

import rescale
from rescale.cuda import CAPTURE, CaptureError, arrays, executor, rtx
from rescale.cuda.arrays import to_device
from rescale.cuda.fake import FakeCuda
from rescale.cuda.notes import Notes
from rescale.errors import BackendError, OutOfMemoryError


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


class Watched:
    """A lock that says when a thread has to wait for it."""

    def __init__(self, lock, wanted):
        self._lock, self._wanted = lock, wanted

    def __enter__(self):
        if not self._lock.acquire(blocking=False):
            self._wanted.set()
            self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()


@contextmanager
def capturing(runner, api, reference):
    """A thread is between the beginning and the end of a capture while the block runs; it becomes a graph.

    Yields a function that calls another in a second thread. The capture ends when the call has ended or waits for a lock.
    """
    (x,) = frames((1, 16, 16))
    inside, wanted, go_on, begin = *(threading.Event() for _ in range(3)), api.begin_capture

    def slow(stream):
        begin(stream)
        inside.set()
        assert go_on.wait(30)

    def meanwhile(call):
        other = pool.submit(call)
        other.add_done_callback(lambda _: wanted.set())
        assert wanted.wait(30)
        go_on.set()
        return other.result(30)

    runner.run("downscale", {"hr": x})
    api.begin_capture = slow
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        for module in (arrays, executor):
            patch.setattr(module, "CAPTURE", Watched(CAPTURE, wanted))
        patch.setattr(runner._executor, "_enqueue", Watched(runner._executor._enqueue, wanted))
        run = pool.submit(runner.run, "downscale", {"hr": x})
        try:
            assert inside.wait(30)
            yield meanwhile
        finally:
            go_on.set()
        assert np.array_equal(run.result(30)["lr"], reference("irn", 2).run("downscale", {"hr": x})["lr"])
    del api.begin_capture
    assert runner.notes == ()
    assert api.alive()["graphs"] == 1
    # Nothing is lost, and no slot is used too early.
    for got in runner.run_many("downscale", [{"hr": x}] * 5):
        assert np.array_equal(got["lr"], reference("irn", 2).run("downscale", {"hr": x})["lr"])


@pytest.fixture
def busy(bundle, tmp_path):
    """A runner with one slot that is free and two runs under way, and the generator that has them."""
    (y,) = frames((1, 32, 32))
    with opened(bundle("irn", 2), tmp_path, cuda_graphs=True, slots=3) as (runner, _, api):
        runs = runner.run_many("downscale", [{"hr": y}] * 3)
        next(runs)
        yield runner, api, runs
        gc.collect()  # an error keeps the frame, and so the array, that it came through


def test_what_is_dropped_while_another_thread_captures_waits_for_nobody(busy, reference):
    runner, api, runs = busy
    with capturing(runner, api, reference):
        runs.close()
        with api.current():
            executor.Executor(api, 1, Notes()).close()
        api.failures["synchronize_event"] = BackendError("not copied")
        with pytest.raises(BackendError, match="not copied"):
            to_device(api, np.zeros(8, np.uint8))


@pytest.mark.parametrize("error", [BackendError("no result"), CaptureError("no result")])
def test_a_run_that_fails_while_another_thread_captures_is_waited_for(busy, reference, error):
    runner, api, runs = busy
    with capturing(runner, api, reference) as meanwhile:
        api.failures["synchronize_event"] = error
        with pytest.raises(BackendError, match="no result"):
            meanwhile(lambda: next(runs))


def test_a_run_that_cannot_start_while_another_thread_captures_is_waited_for(bundle, tmp_path, reference):
    (large,) = frames((1, 128, 128))
    with (
        opened(bundle("irn", 2), tmp_path, cuda_graphs=True) as (runner, _, api),
        capturing(runner, api, reference) as meanwhile,
    ):
        api.failures["allocate"] = OutOfMemoryError("too large")
        with pytest.raises(OutOfMemoryError, match="too large"):
            meanwhile(lambda: runner.run("downscale", {"hr": large}))


def test_an_array_that_another_stream_reads_is_freed_behind_a_capture(bundle, tmp_path, reference):
    with opened(bundle("irn", 2), tmp_path, cuda_graphs=True, clean=False) as (runner, _, api):
        array = to_device(api, np.zeros(100, np.uint8))
        with api.current():
            other = api.create_stream()
            array.__dlpack__(stream=other)
            api.kernel("read", other, [(array.pointer, array.pointer + 100)], [], lambda: None)
        with capturing(runner, api, reference) as meanwhile:
            meanwhile(array.free)
        assert "read" in api.executed


@pytest.mark.parametrize("call", ["to_host", "synchronize_event"])
def test_a_capture_of_another_library_breaks_nothing(bundle, tmp_path, reference, call):
    """CUDA may refuse every wait for as long as it goes on: the slot is waited for by who takes it next."""
    (x,) = frames((1, 32, 32))
    with opened(bundle("irn", 2), tmp_path, slots=1) as (runner, _, api):

        def refuse(event):
            raise CaptureError("cudaErrorStreamCaptureUnsupported (900)")

        runner.run("downscale", {"hr": x})
        api.synchronize_event = refuse
        if call == "to_host":
            api.failures[call] = OutOfMemoryError("short")
        for _ in range(3):
            with pytest.raises(BackendError, match=r"short|\(900\)"):
                runner.run("downscale", {"hr": x})
        del api.synchronize_event
        assert np.array_equal(runner.run("downscale", {"hr": x})["lr"], reference("irn", 2).run("downscale", {"hr": x})["lr"])


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
