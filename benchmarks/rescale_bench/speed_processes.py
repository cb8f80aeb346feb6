"""Competitors of `rescale-bench speed` as processes, and their runs in turn."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescale import errors
from rescale.errors import BackendError, RescaleError
from rescale_bench.formats import LEAST
from rescale_bench.speed_worker import Spec, request_of

PAUSE_SECONDS = 0.05
"""Between two runs: thread pools that wait actively go to sleep before the next competitor starts."""


@dataclass
class Timing:
    """Raw results of one competitor on one source in one direction.

    Attributes:
        times: seconds by part, one of each run after the warm-up.
        first: seconds of the warm-up from file to file, compilation and first allocations included.
        runner: what ran, in words.
        base_rss: peak of resident memory before the first run, in bytes.
        peak_rss: the same at the end.
        failed: why it stopped, or None.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    first: float | None = None
    runner: str = ""
    base_rss: int = 0
    peak_rss: int = 0
    failed: str | None = None


class Process:
    """A running `rescale_bench.speed_worker`. Call `ready` before the first `run`."""

    def __init__(self, spec: Spec) -> None:
        self._busy = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        threads = {name: str(spec.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rescale_bench.speed_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, **threads},
        )
        with contextlib.suppress(BrokenPipeError):  # told by `ready`
            self._send(request_of(spec))

    def ready(self) -> tuple[str, int]:
        """Wait until it can run: what runs, in words, and its resident memory in bytes.

        Raises:
            RescaleError: as the process raised it, of the same class.
        """
        found = self._answer()
        return str(found["ready"]), int(found["base_rss"])

    def run(self, source: Path, save: Path | None = None) -> dict[str, float]:
        """Run a source once: seconds by part, and ``peak_rss`` in bytes.

        Args:
            source: file to read.
            save: where to write the resulting file, its arrays beside it.

        Raises:
            RescaleError: it failed, or the process died.
        """
        with contextlib.suppress(BrokenPipeError):
            self._send(json.dumps({"source": str(source), "save": None if save is None else str(save)}))
        return self._answer()

    def close(self) -> None:
        """End the process, also in the middle of a run."""
        if self._busy:
            self._process.kill()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._busy = True
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BackendError(self._death())
        self._busy = False
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise _error_class(str(found["kind"]))(found["error"])
        return found

    def _death(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        if code < 0:
            return f"its process was ended by signal {-code}{' (was there enough memory?)' if code == -9 else ''}{said}"
        return f"its process ended with exit code {code}{said}"


def _error_class(name: str) -> type[RescaleError]:
    """The class of an error that came from a process; `BackendError` for what is no error of ours."""
    kind = getattr(errors, name, None)
    # An LrFileError takes more than a message.
    ours = isinstance(kind, type) and issubclass(kind, RescaleError) and kind is not errors.LrFileError
    return kind if ours and kind is not None else BackendError


def rounds(names: Sequence[str], repeats: int) -> Iterator[str]:
    """Every name once a round, each round beginning one further: a slow minute hits all, and nobody always follows the same."""
    for i in range(repeats):
        start = i % len(names)
        yield from names[start:]
        yield from names[:start]


@dataclass(frozen=True)
class Job:
    """A source for a process to run, and where the warm-up's results go, if anywhere."""

    process: str
    source: Path
    save: Path | None = None


def run_in_turn(
    processes: dict[str, Process],
    timings: dict[str, Timing],
    jobs: dict[str, Job],
    repeats: int,
    advance: Callable[[str], None],
    seconds: float | None = None,
) -> list[str]:
    """Warm every job up, then run all in turn.

    Args:
        processes: by name, ready.
        timings: by job; filled in.
        jobs: by name. The first that fails takes its process's later ones along.
        repeats: runs of each job after the warm-up.
        advance: called before each run with the job's name.
        seconds: no round after the first `LEAST` begins when this time has passed since the warm-up; None: all do.

    Returns:
        Names of the jobs in the order they ran, without the warm-up.
    """
    order: list[str] = []
    dead: dict[str, str] = {}

    def once(name: str, warm: bool) -> bool:
        job, timing = jobs[name], timings[name]
        advance(name)
        if job.process in dead:
            timing.failed = timing.failed or dead[job.process]
            return False
        time.sleep(PAUSE_SECONDS)
        try:
            found = processes[job.process].run(job.source, job.save if warm else None)
        except RescaleError as e:
            timing.failed = dead[job.process] = str(e)
            return False
        timing.peak_rss = int(found.pop("peak_rss"))
        if warm:
            timing.first = found.get("whole")
        for part, value in found.items() if not warm else ():
            timing.times.setdefault(part, []).append(value)
        return True

    for name in jobs:
        once(name, True)
    start = time.monotonic()
    for i, name in enumerate(rounds(list(jobs), repeats)):
        begins = i % len(jobs) == 0 and i >= LEAST * len(jobs)
        if begins and seconds is not None and time.monotonic() - start > seconds:
            break
        if once(name, False):
            order.append(name)
    return order
