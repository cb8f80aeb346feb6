"""CUDA by PyCUDA, on the device's primary context.

Never ``pycuda.autoinit``: it makes a context of its own, in which the pointers and streams of TensorRT, PyTorch and ONNX
Runtime are invalid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.cuda import CaptureError, optional
from rescale.errors import BackendError, OutOfMemoryError

INSTALL = "rescale-toolkit[pycuda]"


@dataclass(eq=False)
class Buffer:
    """A ``pycuda.driver.DeviceAllocation``."""

    allocation: Any
    nbytes: int

    @property
    def pointer(self) -> int:
        """Address on the device."""
        return int(self.allocation)


@dataclass(eq=False)
class Pinned:
    """A page-locked array of PyCUDA."""

    memory: Any

    @property
    def nbytes(self) -> int:
        """Size as asked for."""
        return int(self.memory.nbytes)

    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes, without a copy."""
        array: npt.NDArray[np.uint8] = self.memory
        return array


@dataclass(eq=False)
class Held:
    """A stream or event that was made here. PyCUDA ends one with its last reference, in whatever thread that goes; dropping it
    inside of ``current`` is the only way to end it in its context.
    """

    value: Any


class PyCuda:
    """`rescale.cuda.CudaApi` by ``pycuda.driver``. A stream of the caller is PyCUDA's object; None is the legacy default stream."""

    captures = False
    """PyCUDA has no calls for graphs."""

    def __init__(self, device: int = 0) -> None:
        """Retain the primary context of a device.

        Raises:
            BackendError: no driver, or no such device.
            MissingExtraError: PyCUDA is not installed.
        """
        self.device = device
        self._drv = drv = optional("pycuda.driver", INSTALL)
        with self._errors():
            drv.init()
            count = drv.Device.count()
            if not 0 <= device < count:
                raise BackendError(f"device {device}: this machine has {count} CUDA device(s)")
            self._context = drv.Device(device).retain_primary_context()

    @property
    def name(self) -> str:
        return f"pycuda {optional('pycuda', INSTALL).VERSION_TEXT}"

    @property
    def dlpack_device(self) -> tuple[int, int]:
        return 2, self.device

    @contextmanager
    def current(self) -> Iterator[None]:
        # Pushing also lets PyCUDA free in this thread what another one made: it compares context objects.
        with self._errors():
            self._context.push()
        try:
            yield
        finally:
            with self._errors():
                self._drv.Context.pop()

    def allocate(self, nbytes: int, stream: Any = None) -> Buffer:
        # PyCUDA's plain memory waits for the device when it is freed, which is more than the order of a stream.
        with self._errors():
            return Buffer(self._drv.mem_alloc(nbytes), nbytes)

    def free(self, buffer: Any) -> None:
        with self._errors():
            buffer.allocation.free()

    def allocate_host(self, nbytes: int) -> Pinned:
        flags = self._drv.host_alloc_flags.PORTABLE
        with self._errors():
            return Pinned(self._drv.pagelocked_empty(nbytes, np.uint8, mem_flags=flags))

    def free_host(self, buffer: Any) -> None:
        with self._errors():
            buffer.memory.base.free()

    def create_stream(self) -> Any:
        # Blocking streams (flag 0) keep order with the legacy default stream, for which PyCUDA has no object to wait with.
        with self._errors():
            return Held(self._drv.Stream(0))

    def destroy_stream(self, stream: Any) -> None:
        stream.value = None

    def caller_stream(self, stream: Any) -> Any:
        if stream is None or isinstance(stream, self._drv.Stream):
            return stream
        if isinstance(stream, int) and stream == 0:
            return None
        kind = type(stream).__name__
        message = f"PyCUDA cannot wait for a {kind}: give a pycuda.driver.Stream, or open the backend with cuda='cuda-python'"
        raise BackendError(f"{message}, which shares pointers and streams with PyCUDA's primary context")

    def handle(self, stream: Any) -> int:
        raw = _raw(stream)
        return 0 if raw is None else int(raw.handle)

    def create_event(self) -> Any:
        with self._errors():
            return Held(self._drv.Event(self._drv.event_flags.DISABLE_TIMING))

    def destroy_event(self, event: Any) -> None:
        event.value = None

    def record(self, event: Any, stream: Any) -> None:
        with self._errors():
            event.value.record(_raw(stream))

    def wait(self, stream: Any, event: Any) -> None:
        if stream is not None:  # as in `create_stream`
            with self._errors():
                _raw(stream).wait_for_event(event.value)

    def synchronize_event(self, event: Any) -> None:
        with self._errors():
            event.value.synchronize()

    def synchronize(self) -> None:
        with self._errors():
            self._drv.Context.synchronize()

    def to_device(self, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        with self._errors():
            self._drv.memcpy_htod_async(target.pointer, source.memory[:nbytes], _raw(stream))

    def to_host(self, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        with self._errors():
            self._drv.memcpy_dtoh_async(target.memory[:nbytes], source.pointer, _raw(stream))

    def begin_capture(self, stream: Any) -> None:
        raise BackendError("PyCUDA has no CUDA graphs")

    def end_capture(self, stream: Any) -> Any:
        raise BackendError("PyCUDA has no CUDA graphs")

    def launch(self, graph: Any, stream: Any) -> None:
        raise BackendError("PyCUDA has no CUDA graphs")

    def destroy_graph(self, graph: Any) -> None:
        raise BackendError("PyCUDA has no CUDA graphs")

    def close(self) -> None:
        """Nothing: the context goes with the last object that was made in it."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._drv.MemoryError as e:
            raise OutOfMemoryError(f"pycuda: {e}") from None
        except self._drv.Error as e:
            # PyCUDA tells no numbers; the texts of 900 to 908, and no others, speak of captures.
            kind = CaptureError if "captur" in str(e) else BackendError
            raise kind(f"pycuda: {type(e).__name__}: {e}") from None


def _raw(stream: Any) -> Any:
    """PyCUDA's own object."""
    return stream.value if isinstance(stream, Held) else stream
