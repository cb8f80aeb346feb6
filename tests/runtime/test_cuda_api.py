"""The CUDA implementations against the protocol and the packages that are there."""

from __future__ import annotations

import ctypes
import inspect
import types

import numpy as np
import pytest

from rescale import cuda
from rescale.cuda import CaptureError, CudaApi, open_api
from rescale.cuda.cuda_python import Buffer, CudaPython, Pinned
from rescale.cuda.fake import FakeCuda
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


def test_what_a_capture_forbids_is_an_error_of_its_own():
    real = pytest.importorskip("cuda.bindings.runtime")
    for number in (*range(900, 910), 700):
        api = unopened(cudaDeviceSynchronize=(real.cudaError_t(number),))
        with pytest.raises(BackendError, match=rf"cudaDeviceSynchronize: \w+ \({number}\): ") as error:
            api.synchronize()
        assert isinstance(error.value, CaptureError) == (900 <= number <= 908)
        # By which PyCUDA's are known.
        assert ("captur" in str(error.value).partition("): ")[2]) == (900 <= number <= 908)


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
