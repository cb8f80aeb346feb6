"""CUDA by cuda-python: the runtime API's own calls. The default, since its wheels install everywhere."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.cuda import CaptureError, optional, stream_handle
from rescale.errors import BackendError, OutOfMemoryError


@dataclass(eq=False)
class Buffer:
    """Device memory; `stream` as it was given to `allocate`."""

    pointer: int
    nbytes: int
    stream: int | None


@dataclass(eq=False)
class Pinned:
    """Page-locked host memory."""

    pointer: int
    nbytes: int

    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes, without a copy."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.pointer))


class CudaPython:
    """`rescale.cuda.CudaApi` by ``cuda.bindings.runtime``. Streams, events and graphs are its handles."""

    captures = True

    def __init__(self, device: int = 0) -> None:
        """Open a device.

        Raises:
            BackendError: no such device.
            MissingExtraError: cuda-python is not installed.
        """
        self.device = device
        self._rt = optional("cuda.bindings.runtime", "cuda-python")
        count = self._call("cudaGetDeviceCount")
        if not 0 <= device < count:
            raise BackendError(f"device {device}: this machine has {count} CUDA device(s)")
        attribute = self._rt.cudaDeviceAttr.cudaDevAttrMemoryPoolsSupported
        self._pools = bool(self._call("cudaDeviceGetAttribute", attribute, device))

    @property
    def name(self) -> str:
        return "cuda-python"

    @property
    def dlpack_device(self) -> tuple[int, int]:
        return 2, self.device

    @contextmanager
    def current(self) -> Iterator[None]:
        before = self._call("cudaGetDevice")
        if before != self.device:
            self._call("cudaSetDevice", self.device)
        try:
            yield
        finally:
            if before != self.device:
                self._call("cudaSetDevice", before)

    def allocate(self, nbytes: int, stream: Any = None) -> Buffer:
        if stream is None or not self._pools:
            return Buffer(int(self._call("cudaMalloc", nbytes)), nbytes, None)
        return Buffer(int(self._call("cudaMallocAsync", nbytes, stream)), nbytes, stream)

    def free(self, buffer: Any) -> None:
        if buffer.stream is None:
            self._call("cudaFree", buffer.pointer)
        else:
            self._call("cudaFreeAsync", buffer.pointer, buffer.stream)

    def allocate_host(self, nbytes: int) -> Pinned:
        return Pinned(int(self._call("cudaHostAlloc", nbytes, self._rt.cudaHostAllocPortable)), nbytes)

    def free_host(self, buffer: Any) -> None:
        self._call("cudaFreeHost", buffer.pointer)

    def create_stream(self) -> int:
        # Non-blocking: work of others in the legacy default stream does not hold ours up. Order with it is made by events.
        return int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))

    def destroy_stream(self, stream: Any) -> None:
        self._call("cudaStreamDestroy", stream)

    def caller_stream(self, stream: Any) -> int:
        return 0 if stream is None else stream_handle(stream)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def create_event(self) -> Any:
        return self._call("cudaEventCreateWithFlags", self._rt.cudaEventDisableTiming)

    def destroy_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: Any) -> None:
        self._call("cudaEventSynchronize", event)

    def synchronize(self) -> None:
        self._call("cudaDeviceSynchronize")

    def to_device(self, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target.pointer, source.pointer, nbytes, kind, stream)

    def to_host(self, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.pointer, source.pointer, nbytes, kind, stream)

    def begin_capture(self, stream: Any) -> None:
        # Thread-local: what other threads do meanwhile neither fails nor spoils the capture.
        self._call("cudaStreamBeginCapture", stream, self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)

    def end_capture(self, stream: Any) -> Any:
        graph = self._call("cudaStreamEndCapture", stream)
        if not int(graph or 0):
            raise BackendError("cudaStreamEndCapture: the capture was invalidated")
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Nothing: the primary context belongs to the process."""

    def _call(self, name: str, *arguments: Any) -> Any:
        """A runtime call's result without its error code, which becomes an exception."""
        try:
            error, *result = getattr(self._rt, name)(*arguments)
        except Exception as e:  # the bindings load the driver's library on the first call, and word its absence in several ways
            raise BackendError(f"{name}: {type(e).__name__}: {e}") from None
        if int(error):
            self._rt.cudaGetLastError()  # otherwise the next one to ask for the last error gets this one
            _, text = self._rt.cudaGetErrorString(error)
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            short = self._rt.cudaError_t.cudaErrorMemoryAllocation
            kind = OutOfMemoryError if error == short else CaptureError if 900 <= int(error) <= 908 else BackendError
            raise kind(f"{name}: {error.name} ({int(error)}): {text}")
        return result[0] if result else None
