"""The TensorRT runner on `FakeCuda` and a fake TensorRT that computes: numbers, order, lifetimes, threads, every error."""

from __future__ import annotations

import gc
import importlib.util
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rescale
from rescale import flavour, parity
from rescale.backends import create
from rescale.backends.onnxruntime import OnnxRuntimeRunner
from rescale.backends.tensorrt import TensorRTRunner
from rescale.bundle import Bundle
from rescale.cuda import engine, executor, rtx
from rescale.cuda.arrays import DeviceArray, to_device
from rescale.cuda.fake import FakeCuda, Violation
from rescale.errors import BackendError, BundleError, EngineError, OutOfMemoryError
from rescale.memory import ARENA_FACTOR, FIXED_BYTES
from rescale.rescaler import Rescaler

_spec = importlib.util.spec_from_file_location("fake_tensorrt", Path(__file__).with_name("fake_tensorrt.py"))
fake_tensorrt = importlib.util.module_from_spec(_spec)
sys.modules["fake_tensorrt"] = fake_tensorrt
_spec.loader.exec_module(fake_tensorrt)
Library, write_engine, VERSION = fake_tensorrt.Library, fake_tensorrt.write_engine, fake_tensorrt.VERSION

WIDE = "1x{s}x{s}:2x64x64:4x256x256"


@contextmanager
def installed(library, name):
    """The fake is what `import tensorrt` finds, on a machine with one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, flavour._MODULES[name], library.module)
        patch.setattr(flavour, "_loggers", {})
        patch.setattr(flavour, "probe", lambda: (1, ""))
        patch.setattr(flavour, "device", lambda: flavour.Device("Fake GPU", "9.9"))
        yield


@contextmanager
def opened(path, folder, name="tensorrt", profiles=(WIDE,), graphs=None, cuda=None, clean=True, **options):
    """A runner with engines of these profiles, and its fake library and device."""
    bundle = Bundle(path)
    api = cuda or FakeCuda()
    library = Library(api, rtx=name == "tensorrt-rtx")
    for graph in graphs or bundle.graphs:
        for profile in profiles:
            write_engine(folder, bundle, graph, profile.format(s=bundle.scale), name)
    with installed(library, name):
        runner = TensorRTRunner(bundle, name, "fp32", engines=folder, cuda=api, **options)
        try:
            yield runner, library, api
        finally:
            runner.close()
    assert api.violations == []
    if clean:
        assert api.alive() == {"device": 0, "host": 0, "graphs": 0, "streams": 0, "events": 0}
        gc.collect()
        assert library.loaded == 0


def frames(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (b, h, w, 3), np.uint8) for b, h, w in sizes]


@pytest.fixture
def reference(bundle):
    """ONNX Runtime on one thread, as the fake has it."""
    made = {}

    def get(model, scale):
        if (model, scale) not in made:
            made[model, scale] = OnnxRuntimeRunner(Bundle(bundle(model, scale)), 1)
        return made[model, scale]

    yield get
    for runner in made.values():
        runner.close()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("model", "scale"), [("irn", 2), ("dlv_irn_a", 4), ("irn_m", 2), ("dlv_irn_m", 4)])
def test_pictures_are_those_of_onnxruntime(bundle, picture, tmp_path, reference, name, model, scale):
    image = picture(75, 93)
    with opened(bundle(model, scale), tmp_path, name) as (runner, _, _):
        net = Rescaler(Bundle(bundle(model, scale)), runner)
        want = Rescaler(net.bundle, reference(model, scale))
        small = net.downscale(image)
        other = want.downscale(image)
        assert np.array_equal(small.rgb, other.rgb)
        assert (small.latent is None) == (other.latent is None)
        assert small.latent is None or np.array_equal(small.latent, other.latent)
        assert np.array_equal(net.upscale(small), want.upscale(other))
        assert runner.notes == ()
        assert runner.name == f"{name} {VERSION}, fp32, Fake GPU, fake"


@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_golden_vectors_pass_the_gate(bundle, tmp_path, model):
    with opened(bundle(model, 2), tmp_path, profiles=("1x2x2:1x64x64:4x512x512",)) as (runner, _, _):
        found = parity.measure(Bundle(bundle(model, 2)), runner.run)
        found.require("fake")


def test_refining_is_refused(refinable, picture, tmp_path):
    path = refinable("irn", 2)
    with opened(path, tmp_path) as (runner, _, _), pytest.raises(BackendError, match="no engines of the gradient graph; refine on"):
        Rescaler(Bundle(path), runner).downscale(picture(16, 16), 1)


def test_copy_in_then_compute_then_copy_out_then_read(bundle, tmp_path):
    with opened(bundle("irn", 2), tmp_path) as (runner, _, api):
        (x,) = frames((1, 32, 48))
        runner.run("downscale", {"hr": x})
        calls = [c for c in api.calls if c.name in ("to_device", "execute", "to_host", "synchronize_event")]
        assert [c.name for c in calls[-4:]] == ["to_device", "execute", "to_host", "synchronize_event"]
        assert len({c.stream for c in calls[-4:-1]}) == 3
        assert api.executed == ["to_device", "execute", "to_host"]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_next_picture_is_copied_in_before_the_last_one_is_waited_for(bundle, tmp_path, reference, slots):
    items = [{"hr": x} for x in frames(*[(1, 32, 48)] * 6)]
    with opened(bundle("irn", 2), tmp_path, slots=slots) as (runner, _, api):
        got = list(runner.run_many("downscale", items))
        names = [c.name for c in api.calls if c.name in ("to_device", "to_host", "synchronize_event")]
        ahead = most = 0
        for name in names:
            ahead += {"to_device": 1, "synchronize_event": -1}.get(name, 0)
            most = max(most, ahead)
        assert most == slots
        if slots == 2:
            # The second H2D goes in before anything waits; from then on each wait frees the slot of the one after the next.
            pair = ["to_device", "to_host"]
            # The first run allocates scratch memory and waits for the idle compute stream before.
            assert [n for n in names if n != "synchronize_event"][:4] == pair * 2
            assert names[-(4 + 3 * 4) :] == [*pair, *pair, *["synchronize_event", *pair] * 4][-14:] + ["synchronize_event"] * 2
    for g, item in zip(got, items, strict=True):
        assert np.array_equal(g["lr"], reference("irn", 2).run("downscale", item)["lr"])


def test_a_batch_runs_at_once_or_in_parts(bundle, tmp_path, reference):
    (x,) = frames((11, 32, 48))
    with opened(bundle("irn_m", 2), tmp_path) as (runner, _, api):
        for n, runs in ((1, 1), (4, 1), (5, 2), (11, 3)):
            before = api.executed.count("execute")
            got = runner.run("downscale", {"hr": x[:n]})
            want = reference("irn_m", 2).run("downscale", {"hr": x[:n]})
            assert api.executed.count("execute") == before + runs
            assert all(np.array_equal(got[k], want[k]) for k in want)
    fixed = ("3x32x48:3x32x48:3x32x48",)
    with opened(bundle("irn_m", 2), tmp_path / "fixed", profiles=fixed) as (runner, _, _):
        assert runner.run("downscale", {"hr": x[:6]})["lr"].shape == (6, 16, 24, 3)
        with pytest.raises(EngineError, match=r"covers hr \(11, 32, 48, 3\).*--profile 11x32x48"):
            runner.run("downscale", {"hr": x})


def test_the_smallest_engine_that_fits_runs(bundle, tmp_path):
    profiles = ("1x2x2:1x64x64:1x256x256", "1x2x2:1x32x32:1x64x64", "1x66x66:1x80x80:1x100x100")
    with opened(bundle("irn", 2), tmp_path, profiles=profiles) as (runner, _, _):
        for side, most in ((64, 64), (66, 100), (100, 100), (102, 256), (256, 256)):
            engine = runner._engine("downscale", {"hr": (1, side, side, 3)})
            assert engine.info.profile["max"][1] == most
        # A thin picture is the first's alone.
        assert runner._engine("downscale", {"hr": (1, 10, 70, 3)}).info.profile["max"][1] == 256


def test_only_named_engines_run(bundle, tmp_path):
    path = bundle("irn", 2)
    small, large = (write_engine(tmp_path, Bundle(path), "downscale", f"1x2x2:1x32x32:1x{n}x{n}") for n in (64, 128))
    with opened(path, tmp_path, profiles=(), only=[large]) as (runner, _, _):
        assert runner._engine("downscale", {"hr": (1, 32, 32, 3)}).info.path == large
    with opened(path, tmp_path, profiles=(), only=[str(small)]) as (runner, _, _), pytest.raises(EngineError, match="no fp32"):
        runner._engine("downscale", {"hr": (1, 128, 128, 3)})
    with pytest.raises(EngineError, match="no fp32 engine"), opened(path, tmp_path, profiles=(), only=["other.engine"]):
        pass


def test_sizes_of_the_latent_grid_are_covered_as_they_were_built(bundle, tmp_path, reference):
    with opened(bundle("irn_m", 2), tmp_path, profiles=("1x2x2:1x32x32:1x90x90",)) as (runner, _, _):
        z = np.random.default_rng(0).normal(size=(1, 9, 48, 48)).astype(np.float32)  # an LR side of 45, padded
        assert np.array_equal(runner.run("encoder", {"z": z})["code"], reference("irn_m", 2).run("encoder", {"z": z})["code"])
        with pytest.raises(EngineError, match="no fp32 tensorrt engine of encoder covers z"):
            runner.run("encoder", {"z": np.zeros((1, 9, 52, 52), np.float32)})


def test_a_new_engine_is_found_without_a_restart(bundle, tmp_path):
    path = bundle("irn", 2)
    (x,) = frames((1, 80, 80))
    with opened(path, tmp_path, profiles=("1x2x2:1x32x32:1x64x64",)) as (runner, _, _):
        command = f"rescale-engine build {path} --backend tensorrt --precision fp32 --profile 1x80x80, or run in smaller tiles"
        with pytest.raises(EngineError, match=r"covers hr \(1, 80, 80, 3\)") as error:
            runner.run("downscale", {"hr": x})
        assert str(error.value).endswith(command)
        write_engine(tmp_path, Bundle(path), "downscale", "1x80x80")
        assert runner.run("downscale", {"hr": x})["lr"].shape == (1, 40, 40, 3)


@pytest.mark.parametrize("options", [{}, {"slots": 1}, {"slots": 5}, {"cuda_graphs": True}])
def test_eight_threads(bundle, tmp_path, reference, options):
    items = [
        {"hr": x}
        for x in frames(
            *[
                (
                    1,
                    16 + 2 * (i % 5),
                    24,
                )
                for i in range(48)
            ]
        )
    ]
    want = [reference("irn_a", 2).run("downscale", item)["lr"] for item in items]
    with opened(bundle("irn_a", 2), tmp_path, cuda=FakeCuda(seed=3), **options) as (runner, _, api):

        def work(i):
            if i % 8 == 0:  # several runs at once in one thread, while others want slots
                return [g["lr"] for g in runner.run_many("downscale", items[i : i + 8])]
            return [runner.run("downscale", items[i])["lr"]]

        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(work, range(48)))
        assert all(np.array_equal(g[0], w) for g, w in zip(got, want, strict=True))
        assert all(np.array_equal(a, b) for i in range(0, 48, 8) for a, b in zip(got[i], want[i : i + 8], strict=True))
        assert len({c.thread for c in api.calls}) > 4


def test_close_waits_frees_everything_and_ends_use(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path) as (runner, _, _):
        stream = runner.run_many("downscale", [{"hr": x}] * 5)
        next(stream)  # one more is under way
        dropped = runner.run_many("downscale", [{"hr": x}] * 5)
        next(dropped)
        dropped.close()
        runner.close()
        runner.close()
        with pytest.raises(BackendError, match=r"used after close\(\)"):
            list(stream)
        with pytest.raises(BackendError, match=r"used after close\(\)"):
            runner.run("downscale", {"hr": x})
        with pytest.raises(BackendError, match=r"used after close\(\)"):
            runner.run_device("downscale", {"hr": x})


def test_close_waits_for_a_thread_that_is_inside(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path) as (runner, _, api):
        inside, go_on, original = threading.Event(), threading.Event(), api.to_device

        def slow(*arguments):
            inside.set()
            assert go_on.wait(30)
            original(*arguments)

        api.to_device = slow
        with ThreadPoolExecutor(2) as pool:
            run = pool.submit(runner.run, "downscale", {"hr": x})
            assert inside.wait(30)
            closing = pool.submit(runner.close)
            time.sleep(0.05)
            assert not closing.done()
            assert api.alive()["streams"] == 3
            go_on.set()
            closing.result(30)
            try:
                assert run.result(30)["lr"].shape == (1, 8, 8, 3)
            except BackendError as e:
                assert "used after close()" in str(e)  # noqa: PT017  # closed between its start and its end
        del api.to_device


def test_one_thread_at_a_time_binds_and_executes(bundle, tmp_path, reference, monkeypatch):
    items = [{"hr": x} for x in frames(*[(1, 16, 16)] * 12)]
    original = engine.Context.bind

    def bind(*arguments):
        original(*arguments)
        time.sleep(0.005)  # time for another thread to bind its own addresses

    monkeypatch.setattr(engine.Context, "bind", bind)
    with opened(bundle("irn", 2), tmp_path) as (runner, _, _), ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda item: runner.run("downscale", item)["lr"], items))
        assert all(np.array_equal(g, reference("irn", 2).run("downscale", i)["lr"]) for g, i in zip(got, items, strict=True))


def test_the_stream_that_an_array_names_is_waited_for(bundle, tmp_path, reference):
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path, clean=False) as (runner, _, api):
        producer, mine = Stream(api), Stream(api)
        array = to_device(api, np.zeros_like(x), mine)
        with api.current():
            span = (array.pointer, array.pointer + array.nbytes)
            target = api.at(array.pointer, array.nbytes)
            api.synchronize()
            api.kernel("produce", producer.handle_, [], [span], lambda: target.__setitem__(slice(None), x.reshape(-1)))
        with pytest.raises(Violation, match="not ordered after produce"):
            runner.run_device("downscale", {"hr": Interface(array)}, mine)
        api.violations.clear()
        with api.current():
            api.kernel("produce", producer.handle_, [], [span], lambda: target.__setitem__(slice(None), x.reshape(-1)))
        got = runner.run_device("downscale", {"hr": Interface(array, stream=producer.handle_)}, mine)["lr"]
        assert np.array_equal(got.to_host(), reference("irn", 2).run("downscale", {"hr": x})["lr"])


def test_who_forgets_to_close_loses_no_device_memory(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    api = FakeCuda()
    path = Bundle(bundle("irn", 2))
    write_engine(tmp_path, path, "downscale", "16x16")
    with installed(Library(api), "tensorrt"):
        runner = TensorRTRunner(path, precision="fp32", engines=tmp_path, cuda=api)
        runner.run("downscale", {"hr": x})
        assert api.used() > 0
        del runner
        gc.collect()
    assert set(api.alive().values()) == {0}


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
        assert "not read: larger than 1 MB" in runner.notes[0]


def test_a_cache_that_cannot_be_written_is_said_and_nothing_fails(bundle, tmp_path, monkeypatch):
    (x,) = frames((1, 16, 16))

    def full(path, data):
        raise rescale.OutputError(f"{path}: cannot write: No space left on device")

    monkeypatch.setattr(rtx, "atomic_write", full)
    with opened(bundle("irn", 2), tmp_path, "tensorrt-rtx") as (runner, _, _):
        runner.run("downscale", {"hr": x})
        notes = runner._notes
    assert "No space left on device" in notes.lines()[0]


@pytest.mark.parametrize(
    ("verdict", "bits", "kind", "words"),
    [
        ("INVALID", 2, EngineError, "this GPU's compute capability is not among those that it was built for"),
        ("INVALID", 1 | 4, EngineError, "built by another version of the library.*; the CUDA driver is too old"),
        ("INVALID", 32, EngineError, "not an engine of this library"),
        ("INVALID", 16, OutOfMemoryError, "not enough GPU memory"),
        ("INVALID", 0, EngineError, "no reason given"),
    ],
)
def test_the_library_is_asked_before_an_engine_is_loaded(bundle, tmp_path, verdict, bits, kind, words):
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path, "tensorrt-rtx") as (runner, library, _):
        library.validity = (verdict, bits)
        library.say["deserialize_cuda_engine"] = "must not be called"
        with pytest.raises(kind, match=words) as error:
            runner.run("downscale", {"hr": x})
        assert type(error.value) is kind
        assert "downscale.fp32.tensorrt-rtx" in str(error.value)
        assert "deserialize_cuda_engine" in library.say
        del library.say["deserialize_cuda_engine"]
        library.validity = ("SUBOPTIMAL", 8)
        runner.run("downscale", {"hr": x})
        assert "calls it suboptimal here: the CUDA runtime is too old" in runner.notes[0]


SHORT = "Error Code 1: Cuda Runtime (out of memory)"


@pytest.mark.parametrize(
    "call",
    [
        "deserialize_cuda_engine",
        "create_execution_context",
        "set_input_shape",
        "infer_shapes",
        "set_tensor_address",
        "execute_async_v3",
    ],
)
@pytest.mark.parametrize(("text", "kind"), [(SHORT, OutOfMemoryError), ("Error Code 7: something else", BackendError)])
def test_failures_of_the_library_become_our_errors_and_the_next_run_works(bundle, tmp_path, reference, call, text, kind):
    (x,) = frames((1, 32, 32))
    with opened(bundle("irn", 2), tmp_path) as (runner, library, _):
        library.say[call] = text
        library.logger = flavour._loggers["tensorrt"]
        with pytest.raises(kind) as error:
            runner.run("downscale", {"hr": x})
        assert isinstance(error.value, OutOfMemoryError) == (kind is OutOfMemoryError)
        assert text in str(error.value)
        assert "downscale.fp32.tensorrt." in str(error.value)
        if call not in ("deserialize_cuda_engine", "create_execution_context"):
            assert "at hr (1, 32, 32, 3)" in str(error.value)
            assert str(runner._bundle.path) in str(error.value)
        del error  # its traceback keeps the library's objects
        assert np.array_equal(runner.run("downscale", {"hr": x})["lr"], reference("irn", 2).run("downscale", {"hr": x})["lr"])


@pytest.mark.parametrize(
    "call", ["allocate", "allocate_host", "to_device", "record", "wait", "to_host", "synchronize_event", "synchronize"]
)
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_any_cuda_call_may_fail_once(bundle, tmp_path, reference, call, after):
    """Whatever fails, whenever: an error of ours, no violation, no leak, and the next run is right."""
    (x, y) = frames((1, 32, 32), (1, 64, 64))
    with opened(bundle("irn", 2), tmp_path, slots=2) as (runner, _, api):
        runner.run("downscale", {"hr": x})
        left = [after]
        original = getattr(api, call)

        def failing(*arguments):
            left[0] -= 1
            if left[0] == -1:
                raise BackendError(f"{call} failed")
            return original(*arguments)

        setattr(api, call, failing)
        try:
            list(runner.run_many("downscale", [{"hr": y}, {"hr": x}, {"hr": y}]))
            runner.run_device("downscale", {"hr": to_device(api, y)})
        except BackendError as e:
            assert f"{call} failed" in str(e)  # noqa: PT017
        delattr(api, call)
        assert np.array_equal(runner.run("downscale", {"hr": y})["lr"], reference("irn", 2).run("downscale", {"hr": y})["lr"])


def test_a_device_that_is_lost_is_said_at_once(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path) as (runner, _, api):
        api.failures |= {name: BackendError("cudaErrorIllegalAddress (700)") for name in ("to_host", "synchronize")}
        with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
            runner.run("downscale", {"hr": x})
        with pytest.raises(
            BackendError, match=r"the device failed earlier \(cudaErrorIllegalAddress \(700\)\).*start a new process"
        ):
            runner.run("downscale", {"hr": x})


def test_short_memory_is_tried_again_in_smaller_tiles(bundle, picture, tmp_path, reference):
    image = picture(200, 200)
    path = bundle("irn", 2)
    api = FakeCuda(memory=200_000)
    with opened(path, tmp_path, cuda=api) as (runner, _, _):
        with pytest.raises(OutOfMemoryError, match=r"hr \(1, 200, 200, 3\): fake: \d+ bytes do not fit"):
            runner.run("downscale", {"hr": image[None]})
        b = Bundle(path)
        budget = FIXED_BYTES + int(ARENA_FACTOR * b.memory("downscale") * 100 * 100)
        net = Rescaler(b, runner, memory=budget)
        got = net.network.down(image)[0]
        want = reference("irn", 2).run("downscale", {"hr": image[None]})["lr"][0]
        assert np.abs(got.astype(int) - want).max() <= 1
        assert api.executed.count("execute") > 1


def test_engines_that_cannot_be_used_are_named(bundle, tmp_path):
    path = Bundle(bundle("irn", 2))
    api = FakeCuda()
    (x,) = frames((1, 16, 16))
    with installed(Library(api), "tensorrt"):
        with pytest.raises(
            EngineError, match=r"no fp32 engine of .* for tensorrt; build one with rescale-engine build .* --profile hd"
        ):
            TensorRTRunner(path, "tensorrt", "fp32", engines=tmp_path, cuda=api)
        write_engine(tmp_path, path, "downscale", "16x16", library="1.2.3")
        runner = TensorRTRunner(path, "tensorrt", "fp32", engines=tmp_path, cuda=api)
        with pytest.raises(EngineError, match=f"built by version 1.2.3, installed is {VERSION}.*; build one with"):
            runner.run("downscale", {"hr": x})
        assert "built by version 1.2.3" in runner.notes[0]
        with pytest.raises(EngineError, match="no fp32 tensorrt engine of upscale covers lr"):
            runner.run("upscale", {"lr": np.zeros((1, 8, 8, 3), np.uint8)})
        write_engine(tmp_path, path, "downscale", "18x18", device="Other GPU")
        with pytest.raises(EngineError, match="built for Other GPU, this is Fake GPU"):
            runner.run("downscale", {"hr": frames((1, 18, 18))[0]})
        engine = write_engine(tmp_path, path, "downscale", "20x20")
        engine.write_bytes(engine.read_bytes()[:-1])
        with pytest.raises(EngineError, match="truncated"):
            runner.run("downscale", {"hr": frames((1, 20, 20))[0]})
        other = write_engine(tmp_path, path, "upscale", "16x16")
        lying = write_engine(tmp_path, path, "downscale", "22x22")
        data = other.read_bytes()
        lying.write_bytes(data)
        text = fake_tensorrt.sidecar(lying).read_text()
        table = fake_tensorrt.json.loads(text) | {
            "bytes": len(data),
            "engine_sha256": fake_tensorrt.hashlib.sha256(data).hexdigest(),
        }
        fake_tensorrt.sidecar(lying).write_text(fake_tensorrt.json.dumps(table))
        with pytest.raises(EngineError, match=r"has \{'lr': 'uint8'\}, the bundle's graph \{'hr': 'uint8'\}"):
            runner.run("downscale", {"hr": frames((1, 22, 22))[0]})
        runner.close()
        with pytest.raises(BackendError, match="unknown strategy 'fast': choose one of lazy, eager, none"):
            TensorRTRunner(path, "tensorrt", "fp32", engines=tmp_path, cuda=api, strategy="fast")
        with pytest.raises(BackendError, match="slots: at least 1"):
            TensorRTRunner(path, "tensorrt", "fp32", engines=tmp_path, cuda=api, slots=0)
        with pytest.raises(BackendError, match="unknown CUDA implementation 'opencl'"):
            TensorRTRunner(path, "tensorrt", "fp32", engines=tmp_path, cuda="opencl")
        with pytest.raises(BundleError, match="'fp16'"):
            TensorRTRunner(path, "tensorrt", "fp16", engines=tmp_path, cuda=api)
    assert api.violations == []


@pytest.mark.parametrize(
    ("graph", "inputs", "words"),
    [
        ("downscale", {}, r"inputs \[\] given, wanted are \['hr'\]"),
        ("downscale", {"lr": np.zeros((1, 8, 8, 3), np.uint8)}, r"inputs \['lr'\] given"),
        ("downscale", {"hr": np.zeros((1, 8, 8, 3), np.float32)}, r"hr is float32 \(1, 8, 8, 3\), wanted is uint8 \(batch, height"),
        ("downscale", {"hr": np.zeros((8, 8, 3), np.uint8)}, r"hr is uint8 \(8, 8, 3\)"),
        ("downscale", {"hr": np.zeros((1, 8, 8, 4), np.uint8)}, r"hr is uint8 \(1, 8, 8, 4\)"),
        ("downscale", {"hr": np.zeros((0, 8, 8, 3), np.uint8)}, r"hr is uint8 \(0, 8, 8, 3\)"),
        (
            "upscale",
            {"lr": np.zeros((1, 8, 8, 3), np.uint8), "z": np.zeros((1, 9, 8, 9), np.float32)},
            r"z is float32 \(1, 9, 8, 9\)",
        ),
        ("nothing", {}, "no graph 'nothing'"),
    ],
)
def test_wrong_inputs_are_refused_before_the_device_sees_them(bundle, tmp_path, graph, inputs, words):
    with opened(bundle("irn_m", 2), tmp_path) as (runner, _, api):
        calls = len(api.calls)
        with pytest.raises((BackendError, BundleError), match=words):
            runner.run(graph, inputs)
        with pytest.raises((BackendError, BundleError), match=words):
            list(runner.run_many(graph, [inputs]))
        assert len(api.calls) == calls


def test_inputs_of_any_layout_are_taken(bundle, tmp_path, reference):
    (x,) = frames((1, 40, 60))
    views = [x[:, ::2, ::2], x[:, ::-1, :, ::-1][:, :20, :30], np.asfortranarray(x)]
    with opened(bundle("irn", 2), tmp_path) as (runner, _, _):
        for v in views:
            want = reference("irn", 2).run("downscale", {"hr": np.ascontiguousarray(v)})["lr"]
            assert np.array_equal(runner.run("downscale", {"hr": v})["lr"], want)


class Interface:
    """Another library's array: only the array interface."""

    def __init__(self, array, stream=None, **changes):
        self._keep = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.pointer, False),
            "version": 3,
            "strides": None,
            "stream": stream,
        } | changes


class Exporter:
    """Another library's array: only DLPack."""

    def __init__(self, array):
        self._keep = array
        self.asked = []

    def __dlpack_device__(self):
        return self._keep.__dlpack_device__()

    def __dlpack__(self, **options):
        self.asked.append(options.pop("stream"))
        options.pop("max_version", None)
        return self._keep.__dlpack__(stream=-1)


class Stream:
    """A stream of the caller by NVIDIA's protocol."""

    def __init__(self, api):
        with api.current():
            self.handle_ = api.create_stream()

    def __cuda_stream__(self):
        return 0, self.handle_


def test_arrays_of_the_device_run_in_the_order_of_the_callers_stream(bundle, tmp_path, reference):
    (x,) = frames((1, 32, 48))
    want = reference("irn_m", 2).run("downscale", {"hr": x})
    with opened(bundle("irn_m", 2), tmp_path, clean=False) as (runner, _, api):
        own = Stream(api)
        device = to_device(api, x, own)
        for stream in (own, own.handle_):
            for value in (device, Interface(device), Interface(device, stream=own.handle_), Exporter(device)):
                waits = [c.name for c in api.calls].count("synchronize_event")
                got = runner.run_device("downscale", {"hr": value}, stream)
                # Nothing has waited, but for the first run's memory.
                assert [c.name for c in api.calls].count("synchronize_event") - waits <= 1
                assert list(got) == ["lr", "z"]
                assert got["lr"].stream == own.handle_
                for name in want:
                    assert got[name].shape == want[name].shape
                    assert np.array_equal(got[name].to_host(), want[name])
        # To and from the same device memory, without the host.
        lr = runner.run_device("downscale", {"hr": device}, own)
        hr = runner.run_device("upscale", {"lr": lr["lr"], "z": lr["z"]}, own)["hr"]
        assert np.array_equal(hr.to_host(), reference("irn_m", 2).run("upscale", want)["hr"])
        runner.close()
        assert np.array_equal(hr.to_host(), reference("irn_m", 2).run("upscale", want)["hr"])
        del lr, hr, got, device, value
        gc.collect()
        assert api.alive() == {"device": 0, "host": 0, "graphs": 0, "streams": 1, "events": 0}


def test_outputs_may_be_the_callers(bundle, tmp_path, reference):
    (x,) = frames((2, 32, 48))
    want = reference("irn_a", 2).run("downscale", {"hr": x})["lr"]
    with opened(bundle("irn_a", 2), tmp_path, clean=False) as (runner, _, api):
        source, target = to_device(api, x), to_device(api, np.zeros_like(want))
        used = api.used()
        for _ in range(3):
            got = runner.run_device("downscale", {"hr": source}, outputs={"lr": Interface(target)})
            assert isinstance(got["lr"], Interface)
            assert np.array_equal(target.to_host(), want)
        assert api.used() == used + runner._executor._scratch.nbytes
        for outputs, words in (
            ({"hr": target}, "no output 'hr', only lr"),
            ({"lr": source}, r"output lr: uint8 \(2, 32, 48, 3\) given, wanted is uint8 \(2, 16, 24, 4\)"),
            ({"lr": Interface(target, data=(target.pointer, True))}, "lr is read-only"),
        ):
            with pytest.raises(BackendError, match=words):
                runner.run_device("downscale", {"hr": source}, outputs=outputs)


def test_arrays_that_cannot_be_taken_are_refused(bundle, tmp_path):
    (x,) = frames((1, 32, 48))
    with opened(bundle("irn", 2), tmp_path, clean=False) as (runner, _, api):
        device = to_device(api, x)
        for value, words in (
            ([1, 2], "list is not on a device"),
            (Interface(device, strides=(1, 3, 96, 1)), r"strides \(1, 3, 96, 1\) is not C-contiguous"),
            (Interface(device, data=(device.pointer + 3, False)), "not a multiple of 256"),
            (Interface(device, stream=0), "names stream 0"),
            (Interface(device, mask=device), "masked"),
            (Interface(device, typestr="?!"), "damaged __cuda_array_interface__"),
            (Interface(device, shape=(1, 32, 48, 4)), r"hr is uint8 \(1, 32, 48, 4\)"),
            (Interface(device, typestr="<f4", strides=(1, 1, 1, 1)), "not multiples of its 4 bytes"),
        ):
            with pytest.raises(BackendError, match=words):
                runner.run_device("downscale", {"hr": value})
        with pytest.raises(EngineError, match=r"covers hr \(5, 32, 48, 3\)"):
            runner.run_device("downscale", {"hr": to_device(api, np.repeat(x, 5, 0))})
        with pytest.raises(BackendError, match="not a CUDA stream: str"):
            runner.run_device("downscale", {"hr": device}, "main")
        executed = len(api.executed)
        device.free()
        with pytest.raises(BackendError, match=r"used after free\(\)"):
            runner.run_device("downscale", {"hr": device})
        assert len(api.executed) == executed


def test_results_go_to_numpy_and_torch_by_dlpack(bundle, tmp_path, reference):
    torch = pytest.importorskip("torch")
    (x,) = frames((1, 32, 48))
    with opened(bundle("irn_a", 2), tmp_path, clean=False) as (runner, _, api):
        got = runner.run_device("downscale", {"hr": to_device(api, x)})["lr"]
        with api.current():
            api.synchronize()
        want = reference("irn_a", 2).run("downscale", {"hr": x})["lr"]
        assert np.array_equal(np.from_dlpack(got), want)
        tensor = torch.from_dlpack(got)
        assert tensor.data_ptr() == got.pointer
        del got
        gc.collect()
        assert np.array_equal(tensor.numpy(), want)  # still alive
        used = api.used()
        del tensor
        gc.collect()
        assert api.used() < used


def test_the_fake_would_notice_a_missing_event(bundle, tmp_path):
    """Each of the waits that make the order: without it the fake objects. (Else the other tests would prove nothing.)"""
    (x,) = frames((1, 32, 48))
    path = Bundle(bundle("irn", 2))
    caught = []
    for skipped in range(4):
        api = FakeCuda()
        folder = tmp_path / str(skipped)
        write_engine(folder, path, "downscale", "32x48")
        with installed(Library(api), "tensorrt"):
            runner = TensorRTRunner(path, precision="fp32", engines=folder, cuda=api)
            device = to_device(api, x)
            runner.run("downscale", {"hr": x})
            waits, original = [0], api.wait

            def wait(stream, event, waits=waits, skipped=skipped, original=original):
                waits[0] += 1
                if waits[0] - 1 != skipped:
                    original(stream, event)

            api.wait = wait

            def both(runner=runner, device=device):
                runner.run("downscale", {"hr": x})
                runner.run_device("downscale", {"hr": device})["lr"].to_host()

            with pytest.raises(Violation) as error:
                both()
            caught.append(str(error.value).split(":")[1])
            del api.wait
            runner.close()
    assert len(caught) == 4


def test_the_backend_is_open_by_name(bundle, tmp_path, monkeypatch):
    path = Bundle(bundle("irn", 2))
    monkeypatch.setenv("RESCALE_CACHE", str(tmp_path))
    monkeypatch.setattr(flavour, "probe", lambda: (0, "cudaErrorInsufficientDriver"))
    for name in ("tensorrt", "tensorrt-rtx"):
        monkeypatch.setitem(sys.modules, flavour._MODULES[name], Library(FakeCuda()).module)
        with pytest.raises(BackendError, match=f"{name}: no CUDA device"):
            create(path, name)
        with pytest.raises(BackendError, match=f"{name}: no CUDA device"):
            rescale.load(path.path, backend=name)


def test_the_fake_has_only_names_that_the_real_bindings_have():
    real = pytest.importorskip("tensorrt_rtx")
    fake = Library(FakeCuda(), rtx=True).module
    for name, value in vars(fake).items():
        assert hasattr(real, name), name
        for attribute in vars(value) if isinstance(value, type) else ():
            if not attribute.startswith("_"):
                assert hasattr(getattr(real, name), attribute), f"{name}.{attribute}"
    flags = real.EngineInvalidityDiagnostics
    assert {m.name: m.value for m in fake.EngineInvalidityDiagnostics} == {n: int(m) for n, m in flags.__members__.items()}
    config = real.IRuntimeConfig
    assert isinstance(config.cuda_graph_strategy, property)
    assert isinstance(config.dynamic_shapes_kernel_specialization_strategy, property)


SIZES = [(1, 8, 8), (1, 16, 8), (2, 16, 8), (3, 10, 12), (1, 32, 20), (6, 8, 8)]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(["run", "many", "device", "drop", "held"]), st.sampled_from(SIZES)), max_size=14),
    st.integers(0, 1 << 30),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_sequence_of_shapes_is_right_and_leaves_nothing(bundle, reference, tmp_path_factory, steps, seed, slots, graphs):
    folder = tmp_path_factory.mktemp("engines")
    api = FakeCuda(seed=seed)
    with opened(bundle("irn_a", 2), folder, cuda=api, slots=slots, cuda_graphs=graphs, clean=False) as (runner, _, _):
        held: list[tuple[DeviceArray, np.ndarray]] = []
        open_runs = []
        for i, (what, size) in enumerate(steps):
            (x,) = frames(size, seed=seed + i)
            want = reference("irn_a", 2).run("downscale", {"hr": x})["lr"]
            if what == "run":
                assert np.array_equal(runner.run("downscale", {"hr": x})["lr"], want)
            elif what == "many":
                assert all(np.array_equal(g["lr"], want[:1]) for g in runner.run_many("downscale", [{"hr": x[:1]}] * 3))
            elif what == "drop":
                if len(open_runs) < slots - 1:  # who keeps all slots waits for himself
                    run = runner.run_many("downscale", [{"hr": x[:1]}] * 4)
                    assert np.array_equal(next(run)["lr"], want[:1])
                    open_runs.append(run)
            elif size[0] <= 4:
                got = runner.run_device("downscale", {"hr": to_device(api, x)})["lr"]
                if what == "held":
                    held.append((got, want))
                else:
                    assert np.array_equal(got.to_host(), want)
        for got, want in held:
            assert np.array_equal(got.to_host(), want)
        del held
        open_runs.clear()
    got = None
    gc.collect()
    assert api.alive() == {"device": 0, "host": 0, "graphs": 0, "streams": 0, "events": 0}
    assert api.violations == []
