"""CUDA without a device: host memory, streams that run nothing before they must, and checks that CUDA does not make.

For tests on any machine. `rescale.cuda.fake_order` says what runs when. Checked are, and told in `FakeCuda.violations`:

- memory: use after free, double free, out of bounds, freed while work on it is under way;
- page-locked memory: touched by this process while a copy is under way;
- order: work of two streams on the same bytes that no event puts in order;
- threads: calls outside of ``with api.current()``; use of what was destroyed;
- captures, thread-local as the runtime's are: in the thread that captures, memory that comes or goes, and waits; in every other,
  waits for the device and use of the stream that captures. Streams are non-blocking: the legacy default stream stays free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from rescale.cuda import stream_handle
from rescale.cuda.fake_order import Event, Order, Recorded, Span
from rescale.cuda.fake_order import Violation as Violation
from rescale.errors import BackendError, OutOfMemoryError

Bytes = npt.NDArray[np.uint8]

_ALIGNMENT = 256


@dataclass(eq=False)
class Memory:
    """Device or page-locked memory; `stream` is the one in whose order it comes and goes, or None."""

    api: FakeCuda = field(repr=False)
    pointer: int
    nbytes: int
    bytes: Bytes = field(repr=False)
    kind: str
    stream: int | None = None
    live: bool = True

    @property
    def span(self) -> Span:
        """First address, and the one after the last."""
        return self.pointer, self.pointer + self.nbytes

    def array(self) -> Bytes:
        """The bytes of page-locked memory."""
        self.api._touch_host(self)
        return self.bytes


@dataclass(frozen=True)
class Call:
    """One call of this process, in order.

    Attributes:
        name: as in `rescale.cuda.CudaApi`, or of a kernel.
        stream: whose, if any.
        thread: identity of the calling thread.
    """

    name: str
    stream: int | None
    thread: int


@dataclass(eq=False)
class FakeCuda:
    """`rescale.cuda.CudaApi` in this process's memory.

    Attributes:
        memory: bytes of device memory; more cannot be allocated.
        seed: of the order in which work runs.
        captures: whether graphs are offered.
        calls: every call in order.
        executed: names of all work in the order in which it ran.
        failures: by call name, an exception that its next call raises.
    """

    memory: int = 1 << 40
    seed: int = 0
    captures: bool = True
    device: int = 0
    calls: list[Call] = field(default_factory=list, repr=False)
    executed: list[str] = field(default_factory=list, repr=False)
    failures: dict[str, Exception] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._order = Order(self.seed, self._wrong, self.executed)
        self._lock = threading.RLock()
        self._depth = threading.local()
        self._events: set[Event] = set()
        self._graphs: dict[int, list[Recorded]] = {}
        self._memory: list[Memory] = []
        self._graves: list[Memory] = []
        self._handles = 0x1000

    name = "fake"
    dlpack_device = (1, 0)
    """That of the host, so that numpy takes results."""

    def used(self) -> int:
        """Bytes of device memory that are allocated."""
        return sum(m.nbytes for m in self._memory if m.kind == "device")

    def alive(self) -> dict[str, int]:
        """How many of each kind were made and not yet ended."""
        kinds = [m.kind for m in self._memory]
        counts = {"device": kinds.count("device"), "host": kinds.count("host"), "graphs": len(self._graphs)}
        return counts | {"streams": len(self._order), "events": len(self._events)}

    @contextmanager
    def current(self) -> Iterator[None]:
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        finally:
            self._depth.value -= 1

    def allocate(self, nbytes: int, stream: Any = None) -> Memory:
        with self._call("allocate", stream):
            self._not_capturing("allocate")
            if nbytes < 1:
                self._wrong(f"allocate: {nbytes} bytes")
            if self.used() + nbytes > self.memory:
                raise OutOfMemoryError(f"fake: {nbytes} bytes do not fit into {self.memory - self.used()}")
            memory = self._new(nbytes, "device", stream)
            if stream is not None:
                # Not there before the stream has come to it.
                self._enqueue("allocated", stream, (), (memory.span,), lambda: None)
            return memory

    def free(self, buffer: Any) -> None:
        with self._call("free", buffer.stream):
            self._not_capturing("free")
            self._end(buffer, "device")
            if buffer.stream is None:
                self._idle(buffer, "freed")
            elif buffer.stream in self._order:
                self._enqueue("freed", buffer.stream, (), (buffer.span,), lambda: None)
            else:
                self._wrong("free: in the order of a stream that was destroyed")
            self._bury(buffer)

    def allocate_host(self, nbytes: int) -> Memory:
        with self._call("allocate_host"):
            self._not_capturing("allocate_host")
            return self._new(nbytes, "host", None)

    def free_host(self, buffer: Any) -> None:
        with self._call("free_host"):
            self._not_capturing("free_host")
            self._end(buffer, "host")
            self._idle(buffer, "freed")
            self._bury(buffer)

    def create_stream(self) -> int:
        with self._call("create_stream"):
            self._handles += 16
            self._order.create(self._handles)
            return self._handles

    def destroy_stream(self, stream: Any) -> None:
        with self._call("destroy_stream", stream):
            self._order.destroy(stream)

    def caller_stream(self, stream: Any) -> int:
        return 0 if stream is None else stream_handle(stream)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def create_event(self) -> Event:
        with self._call("create_event"):
            event = Event()
            self._events.add(event)
            return event

    def destroy_event(self, event: Any) -> None:
        with self._call("destroy_event"):
            self._events.remove(event)

    def record(self, event: Any, stream: Any) -> None:
        with self._call("record", stream):
            self._alive_event(event)
            self._order.record(event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        with self._call("wait", stream):
            self._alive_event(event)
            self._order.wait(stream, event)

    def synchronize_event(self, event: Any) -> None:
        with self._call("synchronize_event"):
            self._not_capturing("synchronize_event")
            self._alive_event(event)
            self._order.finish(event)

    def synchronize(self) -> None:
        with self._call("synchronize"):
            self._not_capturing("synchronize")
            if self._order.capturing():
                self._wrong("synchronize: while a stream captures")
            self._order.finish_all()

    def to_device(self, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        with self._call("to_device", stream):
            self._copy("to_device", target, source, nbytes, stream)

    def to_host(self, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        with self._call("to_host", stream):
            self._copy("to_host", target, source, nbytes, stream)

    def kernel(self, name: str, stream: int, reads: Sequence[Span], writes: Sequence[Span], run: Callable[[], None]) -> None:
        """Put a kernel into a stream. `reads` and `writes` are (first address, address after the last)."""
        with self._call(name, stream):
            self._enqueue(name, stream, reads, writes, run)

    def at(self, pointer: int, nbytes: int) -> Bytes:
        """Bytes of live device memory by address: what a kernel that is put into a stream now will work on."""
        for m in self._memory:
            if m.kind == "device" and m.pointer <= pointer and pointer + nbytes <= m.pointer + m.nbytes:
                return m.bytes[pointer - m.pointer :][:nbytes]
        raise Violation(f"{nbytes} bytes at {pointer:#x} are not device memory")

    def begin_capture(self, stream: Any) -> None:
        with self._call("begin_capture", stream):
            self._order.begin_capture(stream)

    def end_capture(self, stream: Any) -> int:
        with self._call("end_capture", stream):
            recorded = self._order.end_capture(stream)
            if recorded is None:
                raise BackendError("fake: the stream does not capture")
            self._handles += 16
            self._graphs[self._handles] = recorded
            return self._handles

    def captures_into(self, stream: int) -> bool:
        """Whether what is put into a stream is recorded, and not done."""
        return self._order.captures(stream)

    def launch(self, graph: Any, stream: Any) -> None:
        with self._call("launch", stream):
            if graph not in self._graphs:
                self._wrong("launch: the graph was destroyed")
            for name, reads, writes, run in self._graphs[graph]:
                self._enqueue(name, stream, reads, writes, run)

    def destroy_graph(self, graph: Any) -> None:
        with self._call("destroy_graph"):
            if graph not in self._graphs:
                self._wrong("destroy_graph: the graph was destroyed")
            del self._graphs[graph]

    def close(self) -> None:
        """Nothing is held."""

    @contextmanager
    def _call(self, name: str, stream: Any = None) -> Iterator[None]:
        with self._lock:
            if not getattr(self._depth, "value", 0):
                self._wrong(f"{name}: outside of `with api.current()`")
            self.calls.append(Call(name, stream, threading.get_ident()))
            failure = self.failures.pop(name, None)
            if failure is not None:
                raise failure
            yield

    def _wrong(self, message: str) -> NoReturn:
        self.violations.append(message)
        raise Violation(message)

    def _alive_event(self, event: Any) -> None:
        if event not in self._events:
            self._wrong("the event was destroyed")

    def _not_capturing(self, name: str) -> None:
        if threading.get_ident() in self._order.capturing():
            self._wrong(f"{name}: while this thread captures")

    def _new(self, nbytes: int, kind: str, stream: Any) -> Memory:
        # Never reused, so that an address tells for ever whose it was.
        raw = np.full(nbytes + _ALIGNMENT, 0xA5, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        memory = Memory(self, raw.ctypes.data + start, nbytes, raw[start : start + nbytes], kind, stream)
        self._memory.append(memory)
        return memory

    def _end(self, buffer: Memory, kind: str) -> None:
        if buffer.kind != kind:
            self._wrong(f"{kind} memory wanted, this is {buffer.kind} memory")
        if not buffer.live:
            self._wrong("double free")

    def _bury(self, buffer: Memory) -> None:
        buffer.live = False
        self._memory.remove(buffer)
        self._graves.append(buffer)

    def _copy(self, name: str, target: Memory, source: Memory, nbytes: int, stream: int) -> None:
        if not 1 <= nbytes <= min(target.nbytes, source.nbytes):
            self._wrong(f"{name}: {nbytes} bytes from {source.nbytes} to {target.nbytes}")
        if (target.kind, source.kind) != (("device", "host") if name == "to_device" else ("host", "device")):
            self._wrong(f"{name}: from {source.kind} to {target.kind} memory")

        def run() -> None:
            target.bytes[:nbytes] = source.bytes[:nbytes]

        reads, writes = (source.pointer, source.pointer + nbytes), (target.pointer, target.pointer + nbytes)
        self._enqueue(name, stream, (reads,), (writes,), run)

    def _enqueue(self, name: str, stream: int, reads: Sequence[Span], writes: Sequence[Span], run: Callable[[], None]) -> None:
        for low, high in (*reads, *writes):
            if not any(m.pointer <= low and high <= m.pointer + m.nbytes for m in self._memory):
                self._wrong(f"{name}: {high - low} bytes at {low:#x} are not allocated, or were freed")
        self._order.put(name, stream, reads, writes, run)

    def _touch_host(self, memory: Memory) -> None:
        with self._lock:
            if not memory.live:
                self._wrong("page-locked memory was used after it was freed")
            self._idle(memory, "touched")

    def _idle(self, memory: Memory, what: str) -> None:
        if work := self._order.under_way(memory.span):
            self._wrong(f"{memory.kind} memory was {what} while {work.name} in stream {work.stream:#x} is under way")
