"""What the GPU runtime needs of CUDA, behind one small protocol: memory, pinned memory, streams, events, copies, graphs.

All implementations use a device's primary context, so that pointers and streams of one are good in every other library of
the process that does the same: TensorRT, PyTorch, CuPy, ONNX Runtime. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import threading
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rescale.errors import BackendError, MissingExtraError

NAMES = ("cuda-python", "pycuda", "torch")

Stream = Any
Event = Any
Graph = Any

CAPTURE = threading.RLock()
"""Held while a stream captures, and around each wait for a device: CUDA refuses those while any stream captures, in whatever thread
and mode, and the capture is spoiled. Reentrant, since the garbage collector may end an array in the thread that captures."""


class CaptureError(BackendError):
    """CUDA refused a call because a stream captures (its errors 900 to 908): the device is well, and later the call will do."""


class DeviceBuffer(Protocol):
    """Bytes on a device."""

    @property
    def pointer(self) -> int:
        """Address on the device, a multiple of 256."""

    @property
    def nbytes(self) -> int:
        """Size as asked for."""


class HostBuffer(Protocol):
    """Page-locked bytes of this process."""

    @property
    def nbytes(self) -> int:
        """Size as asked for."""

    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes, to read or write now: no copy from or to them may be under way."""


class CudaApi(Protocol):
    """CUDA calls on one device. All but `current` are made inside of ``with api.current()``, in any thread.

    Every call raises OutOfMemoryError where memory is short, CaptureError where a capture forbids it and BackendError for any other
    failure; errors of earlier asynchronous work may come from any later call.
    """

    @property
    def name(self) -> str:
        """Which implementation, for reports."""

    @property
    def device(self) -> int:
        """Ordinal of the device."""

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """Device type and ordinal as DLPack counts them: (2, ordinal) for CUDA."""

    @property
    def captures(self) -> bool:
        """Whether the four graph calls exist."""

    def current(self) -> AbstractContextManager[None]:
        """The device is this thread's current one while the block runs; what was current before is so again afterwards."""

    def allocate(self, nbytes: int, stream: Stream | None = None) -> DeviceBuffer:
        """Device memory, not cleared.

        Args:
            nbytes: at least 1.
            stream: the stream in whose order the memory comes and goes; None for memory that every stream may use at once
                and that is freed only when all work on it is done.
        """

    def free(self, buffer: DeviceBuffer) -> None:
        """Give memory back."""

    def allocate_host(self, nbytes: int) -> HostBuffer:
        """Page-locked memory, not cleared."""

    def free_host(self, buffer: HostBuffer) -> None:
        """Give page-locked memory back; no copy may be under way."""

    def create_stream(self) -> Stream:
        """A new stream."""

    def destroy_stream(self, stream: Stream) -> None:
        """End a stream that `create_stream` made."""

    def caller_stream(self, stream: Any) -> Stream:
        """A stream of the caller: its handle, an object with ``__cuda_stream__``, of PyTorch, CuPy or PyCUDA.

        None stands for PyTorch's current stream where PyTorch is the implementation, and for the legacy default stream elsewhere.
        """

    def handle(self, stream: Stream) -> int:
        """``cudaStream_t`` of a stream; 0 is the legacy default stream."""

    def create_event(self) -> Event:
        """A new event, without timing."""

    def destroy_event(self, event: Event) -> None:
        """End an event."""

    def record(self, event: Event, stream: Stream) -> None:
        """The event stands for all work that is in the stream now."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Later work in the stream waits for what the event stands for now; this thread does not."""

    def synchronize_event(self, event: Event) -> None:
        """Wait, in this thread, for what the event stands for."""

    def synchronize(self) -> None:
        """Wait for all work on the device; only under `CAPTURE`."""

    def to_device(self, target: DeviceBuffer, source: HostBuffer, nbytes: int, stream: Stream) -> None:
        """Copy the first bytes, asynchronously."""

    def to_host(self, target: HostBuffer, source: DeviceBuffer, nbytes: int, stream: Stream) -> None:
        """Copy the first bytes, asynchronously."""

    def begin_capture(self, stream: Stream) -> None:
        """What this thread puts into the stream from now on is noted instead of run."""

    def end_capture(self, stream: Stream) -> Graph:
        """What was noted, ready to launch."""

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Put a graph into a stream."""

    def destroy_graph(self, graph: Graph) -> None:
        """End a graph that is not running."""

    def close(self) -> None:
        """End what the implementation itself holds. Buffers that are still alive may be freed afterwards."""


def open_api(name: str = "cuda-python", device: int = 0) -> CudaApi:
    """An implementation by name, on a device.

    Raises:
        BackendError: unknown name, no such device.
        MissingExtraError: its package is not installed.
    """
    if name == "cuda-python":
        from rescale.cuda.cuda_python import CudaPython

        return CudaPython(device)
    if name == "pycuda":
        from rescale.cuda.pycuda import PyCuda

        return PyCuda(device)
    if name == "torch":
        from rescale.cuda.torch import TorchCuda

        return TorchCuda(device)
    raise BackendError(f"unknown CUDA implementation {name!r}: choose one of {', '.join(NAMES)}")


def optional(module: str, install: str) -> Any:
    """Import an optional package.

    Args:
        module: dotted name.
        install: what to give to pip.

    Raises:
        MissingExtraError: not installed; the message holds the one command that cures it.
        BackendError: installed, but it cannot be imported, for instance because there is no driver.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or not (module == e.name or module.startswith(f"{e.name}.")):
            raise BackendError(f"{module}: cannot be imported: {e}") from None
        raise MissingExtraError(f"{module} not installed: pip install '{install}'") from None
    except Exception as e:  # a missing shared library has as many classes as there are packages
        raise BackendError(f"{module}: installed, but cannot be imported: {type(e).__name__}: {e}") from None


def stream_handle(stream: Any) -> int:
    """``cudaStream_t`` of a caller's stream object.

    Args:
        stream: an int, or an object with ``__cuda_stream__`` (version 0), ``cuda_stream`` (PyTorch), ``ptr`` (CuPy) or ``handle``
            (PyCUDA, cuda.core).

    Raises:
        BackendError: none of them.
    """
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        # cuda.core's first releases had a property here.
        version, handle = protocol() if callable(protocol) else protocol
        if int(version) != 0:
            raise BackendError(f"a stream with version {version} of __cuda_stream__; version 0 is understood")
        return int(handle)
    for name in ("cuda_stream", "ptr", "handle"):
        value = getattr(stream, name, None)
        if value is not None and not callable(value):
            return int(value)
    raise BackendError(f"not a CUDA stream: {type(stream).__name__}; give its handle as an int, or an object with __cuda_stream__")
