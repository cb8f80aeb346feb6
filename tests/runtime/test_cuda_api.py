"""The CUDA implementations against the packages that are there, and the fake's own promises."""

from __future__ import annotations

import ctypes
import gc
import inspect
import sys
import threading
import types

import numpy as np
import pytest

from rescale import cuda
from rescale.cuda import CudaApi, open_api, stream_handle
from rescale.cuda.arrays import DeviceArray, to_device, view
from rescale.cuda.cuda_python import Buffer, CudaPython, Pinned
from rescale.cuda.dlpack import _exported, capsule
from rescale.cuda.fake import FakeCuda, Violation
from rescale.cuda.pycuda import PyCuda
from rescale.cuda.torch import TorchCuda
from rescale.errors import BackendError, MissingExtraError, OutOfMemoryError

METHODS = [name for name, f in vars(CudaApi).items() if inspect.isfunction(f) and not name.startswith("_")]


@pytest.mark.parametrize("kind", [CudaPython, TorchCuda, PyCuda, FakeCuda])
def test_implementations_have_the_protocols_calls(kind):
    assert len(METHODS) == 22
    for name in METHODS:
        wanted, found = (list(inspect.signature(getattr(c, name)).parameters) for c in (CudaApi, kind))
        assert found == wanted, name
    for name in ("name", "dlpack_device", "captures", "device"):
        assert name in dir(kind) or name in inspect.getsource(kind.__mro__[-2].__init__)


class Runtime:
    """The real bindings; counts the calls, and can be told an answer."""

    def __init__(self, **answers):
        self.real = pytest.importorskip("cuda.bindings.runtime")
        self.answers, self.called = answers, []

    def __getattr__(self, name):
        value = getattr(self.real, name)  # a name that does not exist fails here
        if not callable(value) or isinstance(value, type):
            return value

        def call(*arguments):
            self.called.append(name)
            if name in self.answers:
                return self.answers[name]
            return value(*arguments)

        return call


def unopened(**answers):
    """CudaPython as if a device had been found."""
    api = CudaPython.__new__(CudaPython)
    api.device, api._pools, api._rt = 0, True, Runtime(**answers)
    return api


CALLS = {
    "allocate": (256,),
    "free": (Buffer(4096, 256, None),),
    "allocate_host": (256,),
    "free_host": (Pinned(4096, 256),),
    "create_stream": (),
    "destroy_stream": (4096,),
    "create_event": (),
    "destroy_event": (4096,),
    "record": (4096, 4096),
    "wait": (4096, 4096),
    "synchronize_event": (4096,),
    "synchronize": (),
    "to_device": (Buffer(4096, 256, None), Pinned(4096, 256), 256, 4096),
    "to_host": (Pinned(4096, 256), Buffer(4096, 256, None), 256, 4096),
    "begin_capture": (4096,),
    "end_capture": (4096,),
    "launch": (4096, 4096),
    "destroy_graph": (4096,),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_reaches_the_real_runtime_with_arguments_it_takes(name):
    """Without a driver each answers 35; a wrong name, number or type of arguments would be another error."""
    api = unopened()
    if int(api._rt.real.cudaGetDeviceCount()[0]) != 35:
        pytest.skip("there is a CUDA driver")
    with pytest.raises(BackendError, match=r"cudaErrorInsufficientDriver \(35\): CUDA driver version is insufficient"):
        getattr(api, name)(*CALLS[name])
    if name in ("allocate", "free"):
        with pytest.raises(BackendError, match=r"cuda(Malloc|Free)Async: cudaErrorInsufficientDriver"):
            getattr(api, name)(*((256, 4096) if name == "allocate" else (Buffer(4096, 256, 4096),)))
    with pytest.raises(BackendError, match="cudaGetDevice: cudaErrorInsufficientDriver"):
        api.current().__enter__()


def test_all_calls_that_need_a_device_are_in_that_table():
    assert set(METHODS) - set(CALLS) == {"current", "caller_stream", "handle", "close"}


def test_results_and_out_of_memory():
    real = pytest.importorskip("cuda.bindings.runtime")
    fine, short = real.cudaError_t.cudaSuccess, real.cudaError_t.cudaErrorMemoryAllocation
    api = unopened(cudaMallocAsync=(fine, 512), cudaMalloc=(fine, 1024), cudaGetDevice=(fine, 1), cudaSetDevice=(fine,))
    assert (api.allocate(9, 77).pointer, api.allocate(9, 77).stream) == (512, 77)
    assert (api.allocate(9).pointer, api.allocate(9).stream) == (1024, None)
    api._pools = False
    assert api.allocate(9, 77).stream is None
    with api.current():
        pass
    assert api._rt.called[-3:] == ["cudaGetDevice", "cudaSetDevice", "cudaSetDevice"]
    api = unopened(cudaMalloc=(short, None), cudaHostAlloc=(short, None), cudaStreamEndCapture=(fine, 0))
    for call in (api.allocate, api.allocate_host):
        with pytest.raises(OutOfMemoryError, match=r"cudaErrorMemoryAllocation \(2\): out of memory"):
            call(1 << 40)
    assert api._rt.called.count("cudaGetLastError") == 2
    with pytest.raises(BackendError, match="the capture was invalidated"):
        api.end_capture(1)
    api = unopened(cudaStreamEndCapture=(fine, 5), cudaGraphInstantiate=(real.cudaError_t.cudaErrorInvalidValue, None))
    api._rt.answers["cudaGraphDestroy"] = (fine,)
    with pytest.raises(BackendError, match="cudaGraphInstantiate: cudaErrorInvalidValue"):
        api.end_capture(1)
    assert "cudaGraphDestroy" in api._rt.called


def test_page_locked_memory_is_seen_without_a_copy():
    raw = (ctypes.c_uint8 * 300)()
    array = Pinned(ctypes.addressof(raw), 300).array()
    array[:] = np.arange(300) % 256
    assert array.dtype == np.uint8
    assert bytes(raw) == array.tobytes()


def test_without_a_device_opening_says_so():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a device")
    with pytest.raises(BackendError, match="cudaGetDeviceCount: cudaErrorInsufficientDriver"):
        open_api("cuda-python")
    with pytest.raises(BackendError, match="no CUDA device, or a build for the CPU"):
        open_api("torch")
    with pytest.raises(BackendError, match="unknown CUDA implementation 'cupy': choose one of cuda-python, pycuda, torch"):
        open_api("cupy")


@pytest.mark.parametrize(
    ("name", "module", "command"),
    [
        ("cuda-python", "cuda.bindings.runtime", "pip install 'cuda-python'"),
        ("pycuda", "pycuda.driver", r"pip install 'rescale-toolkit\[pycuda\]'"),
        ("torch", "torch", "pip install 'torch'"),
    ],
)
def test_a_missing_package_names_the_cure(monkeypatch, name, module, command):
    def missing(wanted):
        raise ModuleNotFoundError(f"No module named {wanted!r}", name=module.split(".")[0])

    monkeypatch.setattr(cuda.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=f"^{module} not installed: {command}$"):
        open_api(name)

    def broken(wanted):
        raise ImportError("_driver.so: undefined symbol: cuArrayCreate_v2")

    monkeypatch.setattr(cuda.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=f"{module}: installed, but cannot be imported: ImportError: .*undefined symbol"):
        open_api(name)

    def half(wanted):
        raise ModuleNotFoundError("No module named 'pytools'", name="pytools")

    monkeypatch.setattr(cuda.importlib, "import_module", half)
    with pytest.raises(BackendError, match=f"{module}: cannot be imported: No module named 'pytools'"):
        open_api(name)


def test_pytorchs_calls_are_those_of_the_installed_pytorch():
    torch = pytest.importorskip("torch")
    assert list(inspect.signature(torch.cuda.caching_allocator_alloc).parameters) == ["size", "device", "stream"]
    assert list(inspect.signature(torch.cuda.caching_allocator_delete).parameters) == ["mem_ptr"]
    assert list(inspect.signature(torch.cuda.current_stream).parameters) == ["device"]
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert hasattr(torch._C._CudaStreamBase, "cuda_stream") or not torch.backends.cuda.is_built()


def test_pytorchs_memory_is_asked_for_in_the_right_order(monkeypatch):
    torch = pytest.importorskip("torch")
    asked, freed = [], []

    def alloc(size, device, stream):
        asked.append((size, device, stream))
        if size > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return 4096

    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", alloc)
    monkeypatch.setattr(torch.cuda, "caching_allocator_delete", freed.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=4711))
    api = TorchCuda.__new__(TorchCuda)
    api.device, api._torch, api._idle = 0, torch, 99
    buffer = api.allocate(300, 17)
    api.free(buffer)
    api.allocate(300)
    # Without a stream: a block that no other work of PyTorch's streams can still be using.
    assert asked == [(300, 0, 17), (300, 0, 99)]
    assert freed == [4096]
    with pytest.raises(OutOfMemoryError, match="torch: CUDA out of memory"):
        api.allocate(2000)
    assert api.caller_stream(None) == 4711
    assert api.caller_stream(5) == 5


class Driver(types.ModuleType):
    """`pycuda.driver` as its source has it, for the order of calls. It runs nothing."""

    def __init__(self, devices=1):
        super().__init__("pycuda.driver")
        log = self.log = []
        stack = self.stack = []

        class Error(Exception):
            pass

        class MemoryError(Error):
            pass

        class Context:
            def push(self):
                stack.append(self)

            @staticmethod
            def pop():
                stack.pop()

            @staticmethod
            def synchronize():
                log.append("synchronize")

        class Device:
            def __init__(self, ordinal):
                self.ordinal = ordinal

            @staticmethod
            def count():
                return devices

            def retain_primary_context(self):
                log.append(f"primary context of {self.ordinal}")
                return Context()

            def make_context(self, flags=0):
                raise AssertionError("a context of its own")

        class Stream:
            def __init__(self, flags=0):
                self.handle = 640
                assert flags == 0

            def wait_for_event(self, event):
                log.append(("wait", self.handle, type(event).__name__))

            def __del__(self):
                log.append(("stream ended", len(stack)))

        class Event:
            def __init__(self, flags=0):
                assert flags == 2

            def record(self, stream=None):
                log.append(("record", stream and stream.handle))

            def synchronize(self):
                log.append("event")

        class Allocation:
            def __init__(self, size):
                if size > 1000:
                    raise MemoryError("cuMemAlloc failed: out of memory")
                assert stack

            def __int__(self):
                return 7680

            def free(self):
                log.append(("free", len(stack)))

        class Pages(np.ndarray):
            pass

        def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
            assert mem_flags == 1
            base = np.zeros(shape, dtype).view(Pages)
            base.free = lambda: log.append("host free")
            return base[:]

        self.Error, self.MemoryError, self.Context, self.Device, self.Stream = Error, MemoryError, Context, Device, Stream
        self.Event, self.mem_alloc, self.pagelocked_empty = Event, Allocation, pagelocked_empty
        self.init = lambda flags=0: log.append("init")
        self.event_flags = types.SimpleNamespace(DISABLE_TIMING=2)
        self.host_alloc_flags = types.SimpleNamespace(PORTABLE=1)
        self.memcpy_htod_async = lambda dest, src, stream=None: log.append(("in", dest, len(src), stream and stream.handle))
        self.memcpy_dtoh_async = lambda dest, src, stream=None: log.append(("out", len(dest), src, stream and stream.handle))


@pytest.fixture
def driver(monkeypatch):
    module = Driver()
    package = types.ModuleType("pycuda")
    package.driver, package.VERSION_TEXT = module, "2026.1"
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    yield module
    assert module.stack == []
    assert "pycuda.autoinit" not in sys.modules


def test_pycuda_uses_the_primary_context_only(driver):
    api = open_api("pycuda")
    assert driver.log == ["init", "primary context of 0"]
    assert api.name == "pycuda 2026.1"
    with api.current():
        stream, event = api.create_stream(), api.create_event()
        buffer, host = api.allocate(512), api.allocate_host(512)
        assert (buffer.pointer, buffer.nbytes, host.nbytes, api.handle(stream), api.handle(None)) == (7680, 512, 512, 640, 0)
        host.array()[:] = 3
        api.to_device(buffer, host, 100, stream)
        api.record(event, stream)
        api.wait(stream, event)
        api.wait(None, event)
        api.record(event, None)
        api.to_host(host, buffer, 200, None)
        api.synchronize_event(event)
        api.synchronize()
        api.free(buffer)
        api.free_host(host)
        api.destroy_event(event)
        api.destroy_stream(stream)
        assert driver.log[2:] == [
            ("in", 7680, 100, 640),
            ("record", 640),
            ("wait", 640, "Event"),
            ("record", None),
            ("out", 200, 7680, None),
            "event",
            "synchronize",
            ("free", 1),
            "host free",
            ("stream ended", 1),
        ]
        with pytest.raises(OutOfMemoryError, match="pycuda: cuMemAlloc failed: out of memory"):
            api.allocate(2000)


def test_pycuda_knows_its_own_streams_only(driver):
    api = open_api("pycuda")
    own = driver.Stream()
    assert api.caller_stream(own) is own
    assert api.caller_stream(None) is api.caller_stream(0) is None
    for other in (640, object()):
        with pytest.raises(BackendError, match=r"give a pycuda\.driver\.Stream, or open the backend with cuda='cuda-python'"):
            api.caller_stream(other)
    for call in (api.begin_capture, api.end_capture, api.destroy_graph):
        with pytest.raises(BackendError, match="no CUDA graphs"):
            call(1)
    assert not api.captures
    with pytest.raises(BackendError, match=r"device 1: this machine has 1 CUDA device\(s\)"):
        open_api("pycuda", 1)


def test_handles_of_streams_of_all_libraries():
    class Nvidia:
        def __cuda_stream__(self):
            return 0, 11

    class Old:
        __cuda_stream__ = (0, 12)

    class Later:
        def __cuda_stream__(self):
            return 1, 11

    assert [stream_handle(s) for s in (0, 5, Nvidia(), Old())] == [0, 5, 11, 12]
    for name in ("cuda_stream", "ptr", "handle"):
        assert stream_handle(types.SimpleNamespace(**{name: 13})) == 13
    for wrong in (-1, True, "x", 1.5, object(), types.SimpleNamespace(handle=lambda: 3)):
        with pytest.raises(BackendError, match="not a CUDA stream"):
            stream_handle(wrong)
    with pytest.raises(BackendError, match="version 1 of __cuda_stream__"):
        stream_handle(Later())


@pytest.mark.parametrize("shape", [(3, 4), (1,), (2, 3, 4, 5), (7, 1, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64"])
def test_capsules_are_read_by_numpy_and_torch(shape, dtype):
    torch = pytest.importorskip("torch")
    want = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)

    class Owner:
        array = want.copy()

        def __dlpack_device__(self):
            return 1, 0

        def __dlpack__(self, **options):
            return capsule(self, self.array.ctypes.data, shape, dtype, (1, 0))

    before = len(_exported)
    owner = Owner()
    for read in (np.from_dlpack, torch.from_dlpack):
        got = read(owner)
        assert np.array_equal(np.asarray(got), want)
        assert len(_exported) == before + 1
        del got
        assert len(_exported) == before
    unused = owner.__dlpack__()
    assert len(_exported) == before + 1
    del unused
    assert len(_exported) == before


def test_arrays_tell_the_array_interface_and_are_freed_once():
    api = FakeCuda()
    array = to_device(api, np.arange(12, dtype=np.float32).reshape(3, 4))
    table = array.__cuda_array_interface__
    assert table == {"shape": (3, 4), "typestr": "<f4", "data": (array.pointer, False), "version": 3, "strides": None, "stream": 1}
    assert array.nbytes == 48
    for options in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            array.__dlpack__(**options)
    array.free()
    array.free()
    for use in (array.to_host, array.__dlpack__, lambda: array.__cuda_array_interface__):
        with pytest.raises(BackendError, match=r"used after free\(\)"):
            use()
    assert api.alive()["device"] == 0


def test_a_consumer_in_another_stream_is_put_in_order_and_waited_for_at_the_end():
    api = FakeCuda()
    array = to_device(api, np.zeros(100, np.uint8))
    with api.current():
        other = api.create_stream()
        taken = np.from_dlpack(
            types.SimpleNamespace(__dlpack__=lambda **o: array.__dlpack__(stream=other), __dlpack_device__=lambda: (1, 0))
        )
        api.kernel("read", other, [(array.pointer, array.pointer + 100)], [], lambda: None)
        del taken
    gc.collect()
    array.free()
    assert api.executed[-1] == "read"
    with api.current():
        api.destroy_stream(other)
    assert api.violations == []


def test_pytorch_tensors_and_numpy_arrays_come_in_by_dlpack():
    torch = pytest.importorskip("torch")
    api = FakeCuda()  # whose device is the host
    raw = np.zeros(1024 + 256, np.uint8)
    aligned = raw[-raw.ctypes.data % 256 :][:1024]
    for value in (aligned.reshape(4, 256), torch.from_numpy(aligned.reshape(4, 256))):
        found = view(api, value, "x", 0)
        assert (found.pointer, found.shape, found.dtype, found.readonly) == (aligned.ctypes.data, (4, 256), np.uint8, False)
    with pytest.raises(BackendError, match=r"x: shape \(256, 4\) with strides \(1, 256\) is not C-contiguous"):
        view(api, torch.from_numpy(aligned.reshape(4, 256)).T, "x", 0)
    api.dlpack_device = (2, 0)
    with pytest.raises(BackendError, match=r"x: on DLPack device \(1, 0\), wanted is \(2, 0\): copy it there"):
        view(api, torch.zeros(4), "x", 0)


class TestFake:
    """Everything that the fake promises to notice, it notices."""

    @pytest.fixture
    def api(self):
        api = FakeCuda()
        with api.current():
            yield api

    def wrong(self, api, words, call, *arguments):
        with pytest.raises(Violation, match=words):
            call(*arguments)
        assert api.violations

    def test_calls_outside_of_current(self):
        api = FakeCuda()
        self.wrong(api, "outside of `with api.current", api.create_stream)
        with api.current():
            thread = threading.Thread(target=lambda: self.wrong(api, "outside of", api.create_event))
            thread.start()
            thread.join()
        assert len(api.violations) == 2

    def test_memory_that_was_freed(self, api):
        device, host, stream = api.allocate(64), api.allocate_host(64), api.create_stream()
        api.free(device)
        self.wrong(api, "double free", api.free, device)
        self.wrong(api, "not allocated, or were freed", api.to_device, device, host, 64, stream)
        api.free_host(host)
        self.wrong(api, "after it was freed", host.array)
        self.wrong(api, "host memory wanted", api.free_host, api.allocate(1))

    def test_memory_that_is_in_use(self, api):
        device, host, stream = api.allocate(64), api.allocate_host(64), api.create_stream()
        event = api.create_event()
        api.to_device(device, host, 64, stream)
        self.wrong(api, "touched while to_device", host.array)
        self.wrong(api, "freed while to_device", api.free_host, host)
        self.wrong(api, "freed while to_device", api.free, device)
        api.record(event, stream)
        api.synchronize_event(event)
        host.array()
        api.free(device)

    def test_copies_out_of_bounds_or_in_the_wrong_direction(self, api):
        device, host, stream = api.allocate(64), api.allocate_host(32), api.create_stream()
        self.wrong(api, "33 bytes from 32 to 64", api.to_device, device, host, 33, stream)
        self.wrong(api, "from device to host", api.to_device, host, device, 8, stream)
        self.wrong(api, "not device memory", api.at, device.pointer + 60, 8)

    def test_two_streams_without_an_event(self, api):
        device, hosts = api.allocate(64), [api.allocate_host(64) for _ in range(3)]
        a, b, event = api.create_stream(), api.create_stream(), api.create_event()
        api.to_device(device, hosts[0], 64, a)
        self.wrong(api, "not ordered after to_device", api.to_host, hosts[1], device, 64, b)
        api.record(event, a)
        api.wait(b, event)
        api.to_host(hosts[1], device, 64, b)
        c = api.create_stream()
        self.wrong(api, "not ordered after to_", api.to_device, device, hosts[2], 64, c)
        # Two readers need no order; a host that has waited puts everything in order.
        api.wait(c, event)
        api.to_host(hosts[2], device, 64, c)
        api.synchronize()
        api.to_device(device, hosts[0], 64, api.create_stream())

    def test_memory_in_the_order_of_a_stream(self, api):
        a, b, host, event = api.create_stream(), api.create_stream(), api.allocate_host(64), api.create_event()
        device = api.allocate(64, a)
        self.wrong(api, "not ordered after allocated", api.to_device, device, host, 64, b)
        api.record(event, a)
        api.wait(b, event)
        api.to_device(device, host, 64, b)
        self.wrong(api, "freed in stream .* not ordered after to_device", api.free, device)
        api.record(event, b)
        api.wait(a, event)
        api.free(device)

    def test_what_was_destroyed(self, api):
        stream, event, graph_stream = api.create_stream(), api.create_event(), api.create_stream()
        self.wrong(api, "never recorded", api.wait, stream, event)
        self.wrong(api, "never recorded", api.synchronize_event, event)
        api.destroy_event(event)
        self.wrong(api, "event was destroyed", api.record, event, stream)
        api.destroy_stream(stream)
        self.wrong(api, "does not exist or was destroyed", api.record, api.create_event(), stream)
        api.begin_capture(graph_stream)
        graph = api.end_capture(graph_stream)
        api.destroy_graph(graph)
        self.wrong(api, "graph was destroyed", api.launch, graph, graph_stream)

    def test_what_a_capture_forbids(self, api):
        stream, event = api.create_stream(), api.create_event()
        api.begin_capture(stream)
        for call, arguments in ((api.allocate, (8,)), (api.synchronize, ()), (api.synchronize_event, (event,))):
            self.wrong(api, "while this thread captures", call, *arguments)

    def test_a_captured_graph_runs_when_it_is_launched(self, api):
        device, host, back = api.allocate(4), api.allocate_host(4), api.allocate_host(4)
        stream = api.create_stream()
        host.array()[:] = 1
        back.array()[:] = 0
        api.begin_capture(stream)
        api.to_device(device, host, 4, stream)
        api.to_host(back, device, 4, stream)
        graph = api.end_capture(stream)
        api.synchronize()
        assert not back.array().any()
        for value in (1, 2):
            host.array()[:] = value
            api.launch(graph, stream)
            api.synchronize()
            assert (back.array() == value).all()

    def test_work_waits_until_it_must(self, api):
        device, host, stream = api.allocate(4), api.allocate_host(4), api.create_stream()
        host.array()[:] = 9
        api.to_device(device, host, 4, stream)
        assert api.executed == []
        assert (api.at(device.pointer, 4) == 0xA5).all()
        api.synchronize()
        assert api.executed == ["to_device"]
        assert (api.at(device.pointer, 4) == 9).all()

    def test_memory_is_limited(self):
        api = FakeCuda(memory=100)
        with api.current():
            first = api.allocate(60)
            with pytest.raises(OutOfMemoryError, match="41 bytes do not fit into 40"):
                api.allocate(41)
            api.free(first)
            api.allocate(100)
            assert api.used() == 100

    def test_results_in_two_streams_come_in_any_order(self):
        orders = set()
        for seed in range(20):
            api = FakeCuda(seed=seed)
            with api.current():
                for name in ("a", "b"):
                    api.kernel(name, api.create_stream(), [], [], lambda: None)
                api.synchronize()
            orders.add(tuple(api.executed))
        assert orders == {("a", "b"), ("b", "a")}


def test_a_device_array_of_another_device_is_refused():
    one, other = FakeCuda(), FakeCuda()
    other.dlpack_device = (1, 1)
    array = to_device(one, np.zeros(3, np.uint8))
    assert isinstance(array, DeviceArray)
    with pytest.raises(BackendError, match=r"x: on DLPack device \(1, 0\), wanted is \(1, 1\)"):
        view(other, array, "x", 0)
