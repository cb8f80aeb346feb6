"""Running engines: staging, streams and events.

    slot A   page-locked in -> device in            device out -> page-locked out
    slot B   page-locked in -> device in            device out -> page-locked out
    streams  ---- copies in ----  ---- compute ----  ---- copies out ----

While the device computes on one slot, the next one's input is copied in and the last one's output out. All engines compute in
one stream: a second picture at once would not make the device faster, and so one scratch memory serves all of them. The host
waits for a slot's last event only, before it reads its output; no slot is filled again before that.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.cuda import CAPTURE, CaptureError, CudaApi, DeviceBuffer, HostBuffer
from rescale.cuda.arrays import ALIGNMENT, DeviceArray, View, after
from rescale.cuda.engine import Context, LoadedEngine, Plan, Shape
from rescale.cuda.notes import Notes
from rescale.errors import BackendError, OutOfMemoryError, RescaleError

MAX_GRAPHS = 16
"""Captured graphs kept; the one that was not used for longest goes first."""

Arrays = Mapping[str, npt.NDArray[Any]]
Layout = dict[str, tuple[int, Shape, np.dtype[Any]]]


def layout(tensors: Mapping[str, tuple[Shape, np.dtype[Any]]]) -> tuple[Layout, int]:
    """Where tensors are in one buffer, each at a multiple of `ALIGNMENT`, and the buffer's bytes."""
    out: Layout = {}
    offset = 0
    for name, (shape, dtype) in tensors.items():
        out[name] = (offset, shape, dtype)
        offset += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    return out, offset


class _Arena:
    """A page-locked buffer and one on the device, of the same size. They grow and never shrink."""

    def __init__(self, api: CudaApi) -> None:
        self._api = api
        self.host: HostBuffer | None = None
        self.device: DeviceBuffer | None = None

    def fit(self, nbytes: int) -> tuple[HostBuffer, DeviceBuffer]:
        if self.host is None or self.device is None or self.device.nbytes < nbytes:
            self.free()
            self.device = self._api.allocate(nbytes)
            self.host = self._api.allocate_host(nbytes)
        return self.host, self.device

    def free(self) -> None:
        device, self.device = self.device, None
        host, self.host = self.host, None
        if device is not None:
            self._api.free(device)
        if host is not None:
            self._api.free_host(host)


class _Slot:
    """Staging of one run. `idle`: nothing on the device can touch its memory."""

    def __init__(self, api: CudaApi) -> None:
        self.inputs, self.outputs = _Arena(api), _Arena(api)
        self.loaded, self.computed, self.done = (api.create_event() for _ in range(3))
        self.idle = True

    def events(self) -> tuple[Any, ...]:
        return self.loaded, self.computed, self.done


@dataclass(eq=False)
class Ticket:
    """A run that is under way."""

    slot: _Slot
    outputs: Layout


@dataclass(eq=False)
class _Captured:
    graph: Any
    context: Context


class Executor:
    """Runs engines on one device. Thread-safe: threads share the slots, and wait where none is free.

    Args:
        api: the device.
        slots: runs that may be under way at once.
        notes: what does not go as asked is said here.
    """

    def __init__(self, api: CudaApi, slots: int, notes: Notes) -> None:
        self.api, self._notes = api, notes
        self._state = threading.Condition()
        self._enqueue = threading.Lock()
        self._users, self._closed, self._broken = 0, False, ""
        self._scratch: DeviceBuffer | None = None
        self._captured: OrderedDict[tuple[Any, ...], _Captured] = OrderedDict()
        self._seen: Counter[tuple[Any, ...]] = Counter()
        with api.current():
            self._copy_in, self._compute, self._copy_out = (api.create_stream() for _ in range(3))
            self._quiet = api.create_event()
            self._slots = [_Slot(api) for _ in range(slots)]
        self._free = list(self._slots)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The executor stays open, and the device is current, while the block runs.

        Raises:
            BackendError: closed, or the device failed earlier.
        """
        with self._state:
            if self._closed:
                raise BackendError("used after close()")
            if self._broken:
                raise BackendError(f"the device failed earlier ({self._broken}); what CUDA holds is lost: start a new process")
            self._users += 1
        try:
            with self.api.current():
                yield
        finally:
            with self._state:
                self._users -= 1
                self._state.notify_all()

    def submit(self, engine: LoadedEngine, inputs: Arrays, wait: bool = True) -> Ticket | None:
        """Start a run: copy in, compute, copy out; returns at once.

        Args:
            engine: that covers the inputs' shapes.
            inputs: C-contiguous arrays by name.
            wait: for a free slot; otherwise None is returned where there is none.

        Raises:
            OutOfMemoryError, BackendError: the run cannot be started; nothing of it is left.
        """
        api = self.api
        with self.entered():
            slot = self._take(wait)
            if slot is None:
                return None
            try:
                if not slot.idle:
                    self._finish(slot)
                slot.idle = False
                places, nbytes = layout({name: (a.shape, a.dtype) for name, a in inputs.items()})
                host, device = slot.inputs.fit(nbytes)
                _fill(host.array(), places, inputs)
                with self._enqueue:
                    api.to_device(device, host, nbytes, self._copy_in)
                    api.record(slot.loaded, self._copy_in)
                    api.wait(self._compute, slot.loaded)
                    plan = engine.context.plan({name: a.shape for name, a in inputs.items()})
                    out, out_bytes = layout({t.name: (plan.outputs[t.name], np.dtype(t.dtype)) for t in engine.graph.outputs})
                    out_host, out_device = slot.outputs.fit(out_bytes)
                    addresses = {n: device.pointer + p[0] for n, p in places.items()}
                    addresses |= {n: out_device.pointer + p[0] for n, p in out.items()}
                    self._run(engine, plan, addresses)
                    api.record(slot.computed, self._compute)
                    api.wait(self._copy_out, slot.computed)
                    api.to_host(out_host, out_device, out_bytes, self._copy_out)
                    api.record(slot.done, self._copy_out)
            except BaseException as e:
                slot.idle = self._settle(partial(self._finish, slot))
                if isinstance(e, OutOfMemoryError) and slot.idle:
                    # Who tries again with a smaller picture gets this memory too.
                    with contextlib.suppress(BackendError):
                        slot.inputs.free()
                        slot.outputs.free()
                self._give_back(slot)
                raise
            return Ticket(slot, out)

    def collect(self, ticket: Ticket) -> dict[str, npt.NDArray[np.generic]]:
        """Wait for a run and copy its outputs.

        Raises:
            BackendError: it failed on the device.
        """
        with self.entered():
            try:
                self.api.synchronize_event(ticket.slot.done)
                ticket.slot.idle = True
                assert ticket.slot.outputs.host is not None
                data = ticket.slot.outputs.host.array()
                return {
                    name: data[start:][: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape).copy()
                    for name, (start, shape, dtype) in ticket.outputs.items()
                }
            except BaseException:
                ticket.slot.idle = self._settle(partial(self._finish, ticket.slot))
                raise
            finally:
                self._give_back(ticket.slot)

    def abandon(self, ticket: Ticket) -> None:
        """Let go of a run whose outputs nobody wants.

        Who takes its slot waits for it. This does not: the garbage collector may drop a generator where a lock is held or a stream
        captures.
        """
        self._give_back(ticket.slot)

    def run_device(
        self, engine: LoadedEngine, inputs: Mapping[str, View], stream: Any, outputs: Mapping[str, View]
    ) -> dict[str, DeviceArray]:
        """Run on memory of the device, in the order of a caller's stream.

        Args:
            engine: that covers the inputs' shapes.
            inputs: by name.
            stream: as `CudaApi.caller_stream` gives it. The run begins after what is in it now, and what is put into it
                later begins after the run; this thread does not wait.
            outputs: memory for outputs, with their shapes and dtypes; those that are missing are allocated.

        Returns:
            The allocated ones by name.
        """
        api = self.api
        made: dict[str, DeviceArray] = {}
        with self.entered(), self._enqueue:
            plan = engine.context.plan({name: v.shape for name, v in inputs.items()})
            addresses = {name: v.pointer for name, v in (*inputs.items(), *outputs.items())}
            try:
                for t in engine.graph.outputs:
                    shape, dtype = plan.outputs[t.name], np.dtype(t.dtype)
                    if t.name in outputs:
                        given = outputs[t.name]
                        if (given.shape, given.dtype) != (shape, dtype):
                            raise BackendError(f"output {t.name}: {given.dtype} {given.shape} given, wanted is {dtype} {shape}")
                        continue
                    buffer = api.allocate(math.prod(shape) * dtype.itemsize, stream)
                    made[t.name] = DeviceArray(api, buffer, shape, dtype, stream)
                    addresses[t.name] = buffer.pointer
                after(api, self._compute, stream)
                for writer in {w for v in (*inputs.values(), *outputs.values()) for w in v.writers if w != stream}:
                    after(api, self._compute, writer)
                self._run(engine, plan, addresses)
                after(api, stream, self._compute)
            except BaseException:
                self._settle(self._idle)
                for array in made.values():
                    array.free()
                raise
        return made

    def close(self) -> None:
        """Wait for what is under way and free everything. Runs that were not collected are lost."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._state.notify_all()
            while self._users:
                self._state.wait()
        api = self.api
        with api.current():
            # Also where the device has failed: what can be freed is.
            with contextlib.suppress(RescaleError):
                self._idle(self._copy_in, self._compute, self._copy_out)
            steps: list[Callable[[], None]] = [partial(api.destroy_graph, c.graph) for c in self._captured.values()]
            for slot in self._slots:
                steps += [slot.inputs.free, slot.outputs.free, *(partial(api.destroy_event, e) for e in slot.events())]
            if self._scratch is not None:
                steps.append(partial(api.free, self._scratch))
            steps.append(partial(api.destroy_event, self._quiet))
            steps += [partial(api.destroy_stream, s) for s in (self._copy_in, self._compute, self._copy_out)]
            for step in steps:
                with contextlib.suppress(RescaleError):
                    step()
            self._captured.clear()

    def _take(self, wait: bool) -> _Slot | None:
        with self._state:
            while not self._free:
                if not wait:
                    return None
                self._state.wait()
                if self._closed:
                    raise BackendError("closed while a run waited for its turn")
            return self._free.pop()

    def _give_back(self, slot: _Slot) -> None:
        with self._state:
            self._free.append(slot)
            self._state.notify_all()

    def _settle(self, wait: Callable[[], None]) -> bool:
        """Wait, so that memory may be freed or filled again; False: CUDA does not wait now. If it fails, the device is lost."""
        try:
            wait()
        except (OutOfMemoryError, CaptureError):
            return False
        except BackendError as e:
            with self._state:
                self._broken = self._broken or str(e)
        return True

    def _finish(self, slot: _Slot) -> None:
        """Wait for a slot's work, by all that is in the streams, since any part of it may be missing; never for the device, whose
        other work is not ours and may be a capture.
        """
        with self._enqueue:  # what is recorded in a stream that captures is captured
            for event, stream in zip(slot.events(), (self._copy_in, self._compute, self._copy_out), strict=True):
                self.api.record(event, stream)
        for event in slot.events():
            self.api.synchronize_event(event)

    def _idle(self, *streams: Any) -> None:
        """Wait for streams, the compute stream unless others are named; under the lock of `_enqueue`."""
        for stream in streams or (self._compute,):
            self.api.record(self._quiet, stream)
            self.api.synchronize_event(self._quiet)

    def _scratch_of(self, nbytes: int) -> DeviceBuffer:
        """Scratch memory of at least so many bytes; what was captured with a smaller one is forgotten."""
        if self._scratch is not None and self._scratch.nbytes < nbytes:
            self._idle()
            while self._captured:
                self._forget()
            old, self._scratch = self._scratch, None
            self.api.free(old)
        if self._scratch is None:
            self._scratch = self.api.allocate(max(nbytes, ALIGNMENT))
        return self._scratch

    def _forget(self) -> None:
        """End the oldest captured graph; the compute stream has to be idle."""
        _, captured = self._captured.popitem(last=False)
        self.api.destroy_graph(captured.graph)

    def _run(self, engine: LoadedEngine, plan: Plan, addresses: Mapping[str, int]) -> None:
        """Put one run into the compute stream: as it is, or by a graph that was captured for the same shapes and addresses."""
        scratch = self._scratch_of(plan.scratch)
        key = (engine.info.path, tuple(plan.inputs.items()), tuple(addresses.items()), scratch.pointer)
        captured = self._captured.get(key)
        if captured is not None:
            self._captured.move_to_end(key)
            self.api.launch(captured.graph, self._compute)
            return
        context = engine.context
        self._seen[key] += 1
        # A shape that comes once is not worth a capture. After a failure the count has passed 2: it is not tried again.
        if engine.captures and self._seen[key] == 2:
            context = self._capture(engine, plan, addresses, scratch, key)
        if context is engine.context:
            context.bind(addresses, scratch.pointer, scratch.nbytes)
            context.execute(self.api.handle(self._compute))
        if len(self._seen) > 64 * MAX_GRAPHS:
            self._seen.clear()

    def _capture(
        self, engine: LoadedEngine, plan: Plan, addresses: Mapping[str, int], scratch: DeviceBuffer, key: tuple[Any, ...]
    ) -> Context:
        """Run once in a context of the graph's own, as TensorRT wants before a capture, and capture a second run for later.

        Returns:
            The context that the run was put into the stream with: the engine's, which has not run, if there are no captures.
        """
        api, stream = self.api, self._compute
        what = f"{engine.info.path.name} at {', '.join(f'{n} {s}' for n, s in plan.inputs.items())}"
        if not api.captures:
            self._notes.add(f"{what}: {api.name} has no CUDA graphs; runs without")
            return engine.context
        if len(self._captured) >= MAX_GRAPHS:
            self._idle()
            self._forget()
        context = Context(engine)
        context.plan(plan.inputs)
        context.bind(addresses, scratch.pointer, scratch.nbytes)
        context.execute(api.handle(stream))
        try:
            with CAPTURE:
                api.begin_capture(stream)
                try:
                    context.execute(api.handle(stream))
                except BaseException:
                    # Leaves the capture, which is invalid.
                    with contextlib.suppress(BackendError):
                        api.destroy_graph(api.end_capture(stream))
                    raise
                self._captured[key] = _Captured(api.end_capture(stream), context)
        except BackendError as e:
            # The context may go: what it runs at this moment is finished first.
            self._idle()
            self._notes.add(f"{what}: CUDA graph not captured, runs without: {e}")
        return context


def _fill(target: npt.NDArray[np.uint8], places: Layout, arrays: Arrays) -> None:
    for name, (start, shape, dtype) in places.items():
        target[start:][: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)[...] = arrays[name]
