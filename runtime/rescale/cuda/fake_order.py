"""Streams, events and captures as `rescale.cuda.fake` has them: which work must be done before which, and what runs when.

Work is put off until somebody waits for it, and is then run in an arbitrary order that streams and events allow; so a missing event
shows as wrong bytes as well as in what `Order` objects to: work of two streams on the same bytes that no event puts in order.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

Span = tuple[int, int]
"""First address, and the one after the last."""

Recorded = tuple[str, "Sequence[Span]", "Sequence[Span]", "Callable[[], None]"]
"""Work that a capture holds: name, what it reads, what it writes, and what it does."""


class Violation(AssertionError):
    """A use of CUDA that would be wrong on a device."""


@dataclass(eq=False)
class Work:
    """One piece of work in a stream. `before` is a bit mask of all work that is certain to be done when it begins."""

    index: int
    name: str
    stream: int
    reads: Sequence[Span]
    writes: Sequence[Span]
    run: Callable[[], None]
    before: int

    def touches(self, span: Span) -> bool:
        """Whether it reads or writes any of these bytes."""
        return any(_overlap(span, own) for own in (*self.reads, *self.writes))


@dataclass(eq=False)
class Event:
    """A place in a stream: the work before it, as a bit mask; None before it is recorded."""

    before: int | None = None


@dataclass(eq=False)
class _Stream:
    before: int = 0
    capturing: list[Recorded] | None = None
    thread: int = 0


class Order:
    """All streams of a process, 0 among them, and the work in them.

    Args:
        seed: of the order in which work runs.
        wrong: told of what would be wrong on a device; raises.
        executed: is given the name of each piece of work once it is done.
    """

    def __init__(self, seed: int, wrong: Callable[[str], NoReturn], executed: list[str]) -> None:
        self._random, self._wrong, self._executed = random.Random(seed), wrong, executed
        self._streams: dict[int, _Stream] = {0: _Stream()}
        self._pending: dict[int, Work] = {}
        self._next, self._complete = 0, 0

    def __contains__(self, stream: object) -> bool:
        return stream in self._streams

    def __len__(self) -> int:
        """Streams beside the one that is always there."""
        return len(self._streams) - 1

    def create(self, stream: int) -> None:
        """A stream with a new handle."""
        self._streams[stream] = _Stream()

    def destroy(self, stream: int) -> None:
        """The handle is of no use any more; work in the stream stays to be done."""
        self._streams.pop(stream)

    def record(self, event: Event, stream: int) -> None:
        """The event is behind what is in the stream now."""
        event.before = self._stream(stream).before

    def wait(self, stream: int, event: Event) -> None:
        """What is put into the stream from now on comes after the event."""
        if event.before is None:
            self._wrong("wait: the event was never recorded")
        self._stream(stream).before |= event.before

    def put(self, name: str, stream: int, reads: Sequence[Span], writes: Sequence[Span], run: Callable[[], None]) -> None:
        """Work into a stream, or into what it captures."""
        s = self._stream(stream)
        if s.capturing is not None:
            s.capturing.append((name, reads, writes, run))
            return
        before = s.before | self._complete
        for other in self._pending.values():
            if not before >> other.index & 1 and _conflict(other, reads, writes):
                self._wrong(f"{name} in stream {stream:#x}: not ordered after {other.name} in stream {other.stream:#x}")
        self._pending[self._next] = Work(self._next, name, stream, reads, writes, run, before)
        s.before = before | 1 << self._next
        self._next += 1

    def finish(self, event: Event) -> None:
        """Run what an event is behind."""
        if event.before is None:
            self._wrong("synchronize_event: the event was never recorded")
        self._finish(event.before)

    def finish_all(self) -> None:
        """Run what is in any stream."""
        self._finish((1 << self._next) - 1)

    def under_way(self, span: Span) -> Work | None:
        """Work that is still to be done on any of these bytes."""
        return next((w for w in self._pending.values() if w.touches(span)), None)

    def begin_capture(self, stream: int) -> None:
        """What is put into the stream is recorded from now on, and not done."""
        s = self._stream(stream)
        if s.capturing is not None:
            self._wrong("begin_capture: captures already")
        s.capturing, s.thread = [], threading.get_ident()

    def end_capture(self, stream: int) -> list[Recorded] | None:
        """What was recorded; None if the stream does not capture."""
        s = self._stream(stream)
        recorded, s.capturing = s.capturing, None
        return recorded

    def captures(self, stream: int) -> bool:
        """Whether what is put into the stream is recorded."""
        return self._stream(stream).capturing is not None

    def capturing(self) -> list[int]:
        """The threads that began a capture which has not ended."""
        return [s.thread for s in self._streams.values() if s.capturing is not None]

    def _stream(self, stream: int) -> _Stream:
        if stream not in self._streams:
            self._wrong(f"stream {stream:#x} does not exist or was destroyed")
        s = self._streams[stream]
        if s.capturing is not None and s.thread != threading.get_ident():
            self._wrong(f"stream {stream:#x} was used while another thread captures it")
        return s

    def _finish(self, mask: int) -> None:
        """Run what a mask names, in any order that is allowed. Nothing beyond it runs: a device may be as slow."""
        todo = [w for w in self._pending.values() if mask >> w.index & 1]
        while todo:
            undone = sum(1 << w.index for w in todo)
            work = self._random.choice([w for w in todo if not w.before & undone])
            work.run()
            self._executed.append(work.name)
            todo.remove(work)
            del self._pending[work.index]
        self._complete |= mask


def _overlap(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _conflict(work: Work, reads: Sequence[Span], writes: Sequence[Span]) -> bool:
    return any(work.touches(span) for span in writes) or any(_overlap(a, b) for a in reads for b in work.writes)
