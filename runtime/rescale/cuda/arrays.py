"""Arrays on the device: what callers hand in, and what they get."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.cuda import CAPTURE, CaptureError, CudaApi, DeviceBuffer, Event, HostBuffer, Stream, optional
from rescale.cuda.dlpack import capsule
from rescale.errors import BackendError, RescaleError

ALIGNMENT = 256
"""TensorRT wants addresses that are multiples of this."""

_CUDA, _CUDA_MANAGED = 2, 13

_refused: deque[DeviceArray] = deque()
"""Arrays that were dropped while a capture forbade to free them; freed when the next one is made."""


class DeviceArray:
    """A C-contiguous array on the device, with ``__cuda_array_interface__`` (version 3) and ``__dlpack__``.

    Its bytes are there once the work of `stream` that was there when it was made is done. Freed with its last reference, in
    the order of `stream`: who reads it in another stream without DLPack keeps it until that reading is done.

    Attributes:
        pointer: address.
        shape, dtype: as numpy's.
        stream: handle of the stream in whose order it is written; 0 is the legacy default stream.
    """

    def __init__(self, api: CudaApi, buffer: DeviceBuffer, shape: tuple[int, ...], dtype: npt.DTypeLike, stream: Stream) -> None:
        for _ in range(len(_refused)):
            with contextlib.suppress(IndexError):  # another thread frees them
                _refused.popleft()._drop()
        self._api, self._buffer, self._stream = api, buffer, stream
        self.pointer, self.shape, self.dtype = buffer.pointer, tuple(shape), np.dtype(dtype)
        self.stream = api.handle(stream)
        self._foreign = False
        self._lock = threading.Lock()
        self._freed = False

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._live(), False),
            "version": 3,
            "strides": None,
            # 0 is not allowed there, since it does not tell the two default streams apart.
            "stream": self.stream or 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._api.dlpack_device

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        pointer = self._live()
        if copy or (dl_device is not None and tuple(dl_device) != self._api.dlpack_device):
            raise BufferError("an array of rescale is exported where it is, without a copy")
        with self._api.current():
            if stream != -1:  # the consumer asks for no order
                consumer = 0 if stream in (None, 0, 1) else stream
                if consumer != self.stream:
                    self._order(consumer)
        return capsule(self, pointer, self.shape, self.dtype, self._api.dlpack_device)

    def to_host(self) -> npt.NDArray[Any]:
        """A copy as a numpy array; waits for it."""
        self._live()
        out = np.empty(self.shape, self.dtype)
        api = self._api
        with api.current(), _staged(api, self.nbytes, self._stream) as (host, event):
            api.to_host(host, self._buffer, self.nbytes, self._stream)
            api.record(event, self._stream)
            api.synchronize_event(event)
            out.reshape(-1).view(np.uint8)[:] = host.array()
        return out

    def free(self) -> None:
        """Give the memory back now; using the array afterwards is an error.

        Raises:
            CaptureError: a capture that is not ours forbids it; the array is as it was.
        """
        with self._lock:
            if self._freed:
                return
            self._freed = True
        try:
            with self._api.current():
                if self._foreign:
                    # A consumer of DLPack may still be reading in a stream of its own.
                    _wait_for_all(self._api)
                self._api.free(self._buffer)
        except CaptureError:
            self._freed = False
            raise

    def __del__(self) -> None:
        self._drop()

    def _drop(self) -> None:
        # At the interpreter's end CUDA may be gone before us.
        with contextlib.suppress(RescaleError, AttributeError, TypeError):
            try:
                self.free()
            except CaptureError:
                _refused.append(self)

    def _order(self, consumer: int) -> None:
        """Later work in the consumer's stream waits for what our stream holds now."""
        self._foreign = True
        try:
            target = self._api.caller_stream(consumer)
        except BackendError:  # PyCUDA knows only streams of its own
            _wait_for_all(self._api)
            return
        after(self._api, target, self._stream)

    def _view(self, api: CudaApi, what: str) -> View:
        if self._api.dlpack_device != api.dlpack_device:
            raise BackendError(f"{what}: on DLPack device {self._api.dlpack_device}, wanted is {api.dlpack_device}: copy it there")
        return View(self._live(), self.shape, self.dtype, False, self, (self._stream,))

    def _live(self) -> int:
        if self._freed:
            raise BackendError("an array on the device was used after free()")
        return self.pointer


def after(api: CudaApi, later: Stream, earlier: Stream) -> None:
    """Work that is put into one stream from now on waits for what is in another now."""
    event = api.create_event()
    try:
        api.record(event, earlier)
        api.wait(later, event)
    finally:
        # CUDA keeps what is still waited for.
        api.destroy_event(event)


def _wait_for_all(api: CudaApi) -> None:
    """Wait for the device, where it is not known for what."""
    with CAPTURE:
        api.synchronize()


def to_device(api: CudaApi, array: npt.NDArray[Any], stream: Any = None) -> DeviceArray:
    """Copy a numpy array to the device; waits until it is there.

    Args:
        api: where.
        array: any shape with at least one element.
        stream: as `CudaApi.caller_stream` takes it.
    """
    source = np.ascontiguousarray(array)
    with api.current():
        order = api.caller_stream(stream)
        buffer = api.allocate(source.nbytes, order)
        made = DeviceArray(api, buffer, source.shape, source.dtype, order)
        with _staged(api, source.nbytes, order) as (host, event):
            host.array()[:] = source.reshape(-1).view(np.uint8)
            api.to_device(buffer, host, source.nbytes, order)
            api.record(event, order)
            api.synchronize_event(event)
    return made


@contextlib.contextmanager
def _staged(api: CudaApi, nbytes: int, stream: Stream) -> Iterator[tuple[HostBuffer, Event]]:
    """Page-locked memory and an event, for one copy in a stream that is waited for in the block."""
    host = api.allocate_host(nbytes)
    try:
        event = api.create_event()
        try:
            yield host, event
        except BaseException:
            # A copy may be under way.
            with contextlib.suppress(BackendError):
                api.record(event, stream)
                api.synchronize_event(event)
            raise
        finally:
            api.destroy_event(event)
    finally:
        api.free_host(host)


@dataclass(frozen=True)
class View:
    """Somebody's memory on the device.

    Attributes:
        pointer, shape, dtype: C-contiguous.
        readonly: must not be written.
        owner: keeps the memory alive.
        writers: streams whose work has to be waited for.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    readonly: bool
    owner: Any
    writers: tuple[Stream, ...] = ()


def view(api: CudaApi, value: Any, what: str, stream: Stream) -> View:
    """Look at a caller's array: DLPack where it is offered, since that makes the order of streams, else the array interface.

    Args:
        api: on whose device it has to be.
        value: the array.
        what: what to call it in errors.
        stream: in which it will be used.

    Raises:
        BackendError: neither, not on this device, not C-contiguous, or not aligned.
    """
    if isinstance(value, DeviceArray):
        found = value._view(api, what)
    elif hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        found = _from_dlpack(api, value, what, stream)
    elif hasattr(value, "__cuda_array_interface__"):
        found = _from_interface(api, value.__cuda_array_interface__, value, what)
    else:
        kind = type(value).__name__
        raise BackendError(f"{what}: {kind} is not on a device: an object with __cuda_array_interface__ or __dlpack__ is wanted")
    if found.pointer % ALIGNMENT:
        raise BackendError(f"{what}: its address is not a multiple of {ALIGNMENT}, as that of a slice may be; give a copy of it")
    return found


def _from_dlpack(api: CudaApi, value: Any, what: str, stream: Stream) -> View:
    kind, ordinal = (int(x) for x in value.__dlpack_device__())
    if kind == _CUDA_MANAGED:
        kind = _CUDA
    if (kind, ordinal) != api.dlpack_device:
        raise BackendError(f"{what}: on DLPack device ({kind}, {ordinal}), wanted is {api.dlpack_device}: copy it there")
    memory = optional("cuda.core.utils", "cuda-core").StridedMemoryView
    # 1 is DLPack's word for the legacy default stream; memory of the host has none.
    order = (api.handle(stream) or 1) if kind == _CUDA else -1
    try:
        found = memory.from_dlpack(value, stream_ptr=order)
    except (BufferError, RuntimeError, TypeError, ValueError, NotImplementedError) as e:
        raise BackendError(f"{what}: cannot be taken by DLPack: {e}") from None
    dtype = np.dtype(found.dtype)
    _check_contiguous(what, found.shape, found.strides)
    return View(int(found.ptr), tuple(found.shape), dtype, bool(found.readonly), found)


def _from_interface(api: CudaApi, table: Any, owner: Any, what: str) -> View:
    try:
        pointer, readonly = table["data"]
        shape, dtype = tuple(int(n) for n in table["shape"]), np.dtype(table["typestr"])
        strides = table.get("strides")
        stream = table.get("stream")
        if table.get("mask") is not None:
            raise BackendError(f"{what}: masked arrays are not taken")
        pointer, stream = int(pointer), None if stream is None else int(stream)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise BackendError(f"{what}: damaged __cuda_array_interface__: {type(e).__name__}: {e}") from None
    if stream == 0:
        raise BackendError(f"{what}: __cuda_array_interface__ names stream 0, which its specification forbids")
    if strides is not None:
        if any(s % dtype.itemsize for s in strides):
            raise BackendError(f"{what}: strides {tuple(strides)} are not multiples of its {dtype.itemsize} bytes an element")
        strides = tuple(s // dtype.itemsize for s in strides)
    _check_contiguous(what, shape, strides)
    # 1 is that specification's word for the legacy default stream.
    writers = () if stream is None else (api.caller_stream(0 if stream == 1 else stream),)
    return View(pointer, shape, dtype, bool(readonly), owner, writers)


def _check_contiguous(what: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """Raises BackendError if strides, in elements, are not those of C order; an axis of one element may have any."""
    if strides is None or 0 in shape:
        return
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            raise BackendError(f"{what}: shape {tuple(shape)} with strides {tuple(strides)} is not C-contiguous; give a copy of it")
        step *= size
