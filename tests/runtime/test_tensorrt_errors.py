"""The TensorRT runner on fakes: every failure of the library, of CUDA and of what was asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json

import numpy as np
import pytest
from fake_tensorrt import VERSION, Library, write_engine
from tensorrt_runner import frames, installed, opened

from rescale import flavour
from rescale.backends.tensorrt import TensorRTRunner
from rescale.bundle import Bundle
from rescale.cuda.arrays import to_device
from rescale.cuda.fake import FakeCuda
from rescale.engine_file import sidecar
from rescale.errors import BackendError, BundleError, EngineError, OutOfMemoryError
from rescale.memory import ARENA_FACTOR, FIXED_BYTES
from rescale.rescaler import Rescaler


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


@contextlib.contextmanager
def failing_once(api, call, after):
    """One call of CUDA fails while the block runs, after so many that do not."""
    left, original = [after], getattr(api, call)

    def failing(*arguments):
        left[0] -= 1
        if left[0] == -1:
            raise BackendError(f"{call} failed")
        return original(*arguments)

    setattr(api, call, failing)
    try:
        yield
    finally:
        delattr(api, call)


@pytest.mark.parametrize("call", ["allocate", "allocate_host", "to_device", "record", "wait", "to_host", "synchronize_event"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_any_cuda_call_may_fail_once(bundle, tmp_path, reference, call, after):
    """Whatever fails, whenever: an error of ours, no violation, no leak, and the next run is right."""
    (x, y) = frames((1, 32, 32), (1, 64, 64))
    with opened(bundle("irn", 2), tmp_path, slots=2) as (runner, _, api):
        runner.run("downscale", {"hr": x})
        with failing_once(api, call, after):
            try:
                list(runner.run_many("downscale", [{"hr": y}, {"hr": x}, {"hr": y}]))
                runner.run_device("downscale", {"hr": to_device(api, y)})
            except BackendError as e:
                assert f"{call} failed" in str(e)  # noqa: PT017
        # What is not ours is not waited for: it may be a capture.
        assert "synchronize" not in {c.name for c in api.calls}
        assert np.array_equal(runner.run("downscale", {"hr": y})["lr"], reference("irn", 2).run("downscale", {"hr": y})["lr"])


@pytest.mark.parametrize(("call", "after"), [("allocate", 0), ("record", 0), ("wait", 0), ("record", 1), ("wait", 1)])
def test_a_run_in_the_callers_stream_that_fails_leaves_nothing(bundle, tmp_path, reference, call, after):
    """Whether it was begun or not, its outputs' memory goes only behind it."""
    (x,) = frames((1, 32, 32))
    with opened(bundle("irn", 2), tmp_path, clean=False) as (runner, _, api):
        device = to_device(api, x)
        runner.run_device("downscale", {"hr": device})["lr"].free()
        used = api.used()
        with failing_once(api, call, after), pytest.raises(BackendError, match=f"{call} failed"):
            runner.run_device("downscale", {"hr": device})
        assert api.used() == used
        assert "synchronize" not in {c.name for c in api.calls}
        got = runner.run_device("downscale", {"hr": device})["lr"].to_host()
        assert np.array_equal(got, reference("irn", 2).run("downscale", {"hr": x})["lr"])


def test_a_device_that_is_lost_is_said_at_once(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path) as (runner, _, api):
        api.failures |= {name: BackendError("cudaErrorIllegalAddress (700)") for name in ("to_host", "synchronize_event")}
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


def test_engines_that_cannot_be_used_are_named(bundle, tmp_path, monkeypatch):
    path = Bundle(bundle("irn", 2))
    api = FakeCuda()
    (x,) = frames((1, 16, 16))
    with installed(Library(api), "tensorrt"):
        command = f"rescale-engine build {path.path} --backend tensorrt --precision fp32 --profile hd"
        with pytest.raises(EngineError, match=r"no fp32 engine of .* for tensorrt; ") as error:
            TensorRTRunner(path, "tensorrt", "fp32", engines=tmp_path, cuda=api)
        assert str(error.value).endswith(f"; build one with {command} --out {tmp_path}")
        monkeypatch.setenv("RESCALE_CACHE", str(tmp_path / "cache"))
        with pytest.raises(EngineError) as error:
            TensorRTRunner(path, "tensorrt", "fp32", cuda=api)
        assert str(error.value).endswith(f"; build one with {command}")
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
        text = sidecar(lying).read_text()
        table = json.loads(text) | {
            "bytes": len(data),
            "engine_sha256": hashlib.sha256(data).hexdigest(),
        }
        sidecar(lying).write_text(json.dumps(table))
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
