"""The TensorRT runner on fakes: arrays of the device, and any sequence of shapes; what the fakes themselves are worth."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from fake_tensorrt import Library, write_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorrt_runner import frames, installed, opened

import rescale
from rescale import flavour
from rescale.backends import create
from rescale.backends.tensorrt import TensorRTRunner
from rescale.bundle import Bundle
from rescale.cuda.arrays import DeviceArray, to_device
from rescale.cuda.fake import FakeCuda, Violation
from rescale.errors import BackendError, EngineError


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
    monkeypatch.setattr(flavour, "probe", lambda *_: (0, "cudaErrorInsufficientDriver"))
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
