"""Folders: every picture below one folder to the same place below another, resumable and never half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rescale.container import sidecar_path
from rescale.errors import BundleError, InputError, LoadError, OutputError, RescaleError
from rescale.files import TEMPORARY_GLOB, is_left_over

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What the system says where no further file could be written either."""

NO_PICTURES = (BundleError, LoadError)
"""Errors that no picture is to blame for: the next one would meet the same."""

DONE, SKIPPED = "done", "skipped"
"""What becomes of a job without an error."""


class AbandonedError(RescaleError):
    """A job gave up because it was asked to."""


@dataclass(frozen=True)
class Job:
    """One file to make. With a `fault` there is none to make, and the fault is told in its place."""

    source: Path
    target: Path
    fault: RescaleError | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be done of a folder, and how many of its entries are `ignored`: hidden, or no files of the wanted suffixes."""

    jobs: list[Job]
    ignored: int


@dataclass
class Outcome:
    """What became of a folder: counts, and the errors by source file.

    `left` were not begun, or given up: nothing could be written, or the run was `interrupted`.
    """

    done: int = 0
    skipped: int = 0
    left: int = 0
    interrupted: bool = False
    errors: list[tuple[Path, RescaleError]] = field(default_factory=list)


def plan(source: Path, target: Path, suffixes: Sequence[str], new_suffix: str) -> Plan:
    """Jobs for all files below `source` with one of `suffixes`, in the same tree below `target`.

    Hidden files and folders are left out. What stands in the way of one file or folder alone is the fault of its job: it cannot
    be read, is a link to nothing, or would be written to the target of another file.

    Raises:
        InputError: nothing to do, or `source` itself cannot be read.
        OutputError: a target, or the side-car beside it, is one of the sources: by a link, or since `source` lies below `target`.
    """
    found, faults, ignored = _walk(source, suffixes)
    if not found and not faults:
        raise InputError(f"{source}: no picture found; wanted are {' '.join(suffixes)}")
    goals = {path: target / path.relative_to(source).with_suffix(new_suffix) for path in found}
    rivals: dict[Path, list[Path]] = {}
    for path, goal in goals.items():
        rivals.setdefault(goal, []).append(path)
    places = {os.path.realpath(path): path for path in found}
    jobs = [Job(path, target / path.relative_to(source), fault) for path, fault in faults]
    for path, goal in goals.items():
        others = " and ".join(other.name for other in rivals[goal] if other != path)
        if others:
            fault = InputError(f"{path} and {others} would both become {goal}; rename all but one")
            jobs.append(Job(path, goal, fault))
            continue
        for place in (goal, sidecar_path(goal)):
            if taken := places.get(os.path.realpath(place)):
                raise OutputError(f"{place}: is the source {taken} itself; choose another folder for the results")
        jobs.append(Job(path, goal))
    return Plan(sorted(jobs, key=lambda job: job.source), ignored)


def find(sources: Sequence[Path], suffixes: Sequence[str]) -> tuple[list[tuple[Path, RescaleError | None]], int]:
    """The sources, in their order, with all files of `suffixes` below those that are folders in their place, and how many
    entries of the folders are ignored. What cannot be read comes with its fault.

    Raises:
        InputError: there is nothing.
    """
    listed: list[tuple[Path, RescaleError | None]] = []
    ignored = 0
    for source in sources:
        if not os.path.isdir(source):
            listed.append((source, None))
            continue
        found, faults, others = _walk(source, suffixes)
        listed += sorted([*((path, None) for path in found), *faults], key=lambda entry: entry[0])
        ignored += others
    if not listed:
        raise InputError(f"{', '.join(map(str, sources))}: no picture found; wanted are {' '.join(suffixes)}")
    return listed, ignored


def _walk(source: Path, suffixes: Sequence[str]) -> tuple[list[Path], list[tuple[Path, RescaleError]], int]:
    """Files of `suffixes` below a folder, what is wrong with others of them and with folders, and how much else lies there."""
    found: list[Path] = []
    faults: list[tuple[Path, RescaleError]] = []
    others: list[Path] = []

    def unreadable(error: OSError) -> None:
        path = Path(error.filename)
        fault = InputError(f"{path}: cannot read: {error.strerror}; make it readable, or move it elsewhere")
        if path == source:
            raise fault from None
        faults.append((path, fault))

    for place, folders, names in os.walk(source, onerror=unreadable):
        # A linked folder is not entered, so it counts as one entry, as a hidden one does.
        left = [f for f in folders if f.startswith(".") or os.path.islink(os.path.join(place, f))]
        others += [Path(place) / f for f in left]
        folders[:] = [f for f in folders if f not in left]
        for path in (Path(place) / name for name in names):
            if path.name.startswith(".") or path.suffix.lower() not in suffixes:
                others.append(path)
                continue
            try:
                regular = stat.S_ISREG(path.stat().st_mode)
            except OSError as e:
                if path.is_symlink():
                    what = f"a link to {os.readlink(path)}, which cannot be opened: {e.strerror}; mend it, or remove it"
                    faults.append((path, InputError(f"{path}: {what}")))
                else:
                    unreadable(e)
            else:
                (found if regular else others).append(path)
    beside = {sidecar_path(path) for path in found}
    return found, faults, sum(path not in beside for path in others)


def run(
    jobs: Sequence[Job],
    make: Callable[[Job], None],
    overwrite: bool,
    report: Callable[[Job, str], None] = lambda job, what: None,
    workers: int = 1,
    check: Callable[[Job], None] = lambda job: None,
    abandon: threading.Event | None = None,
) -> Outcome:
    """Carry the jobs out. A target that exists is finished if `check` finds nothing wrong with it.

    An error is kept and the next job begins, unless there is no room for any result. That ends the run after the jobs that have
    begun, as Ctrl-C does; after a second Ctrl-C these are given up as well.

    Raises:
        BundleError, LoadError: the bundle is damaged or the backend cannot load its graphs, which no picture is to blame for; the
            jobs that have begun are waited for.

    Args:
        jobs: from `plan`.
        make: reads a job's source and writes its target atomically; called in worker threads.
        overwrite: make targets that exist again.
        report: told about each job in order, in the calling thread: ``done``, ``skipped`` or ``error: `` and the message.
        workers: jobs under way at a time: with two, one is decoded or encoded while the other is on the network.
        check: raises a `RescaleError` if the target that exists is not what `make` would write; called in worker threads.
        abandon: set by a second Ctrl-C; `make` shall raise `AbandonedError` then.
    """
    outcome = Outcome()
    waiting: deque[tuple[Job, Future[RescaleError | str]]] = deque()
    full = False

    def finish() -> None:
        nonlocal full
        job, future = waiting[0]
        result = future.result()
        if isinstance(result, NO_PICTURES):
            raise result
        if not isinstance(result, AbandonedError):
            # Before it counts as told: Ctrl-C in between has it told once more, not left out.
            report(job, f"error: {result}" if isinstance(result, RescaleError) else result)
        waiting.popleft()
        if isinstance(result, AbandonedError):
            return
        if isinstance(result, RescaleError):
            outcome.errors.append((job.source, result))
            full = full or (isinstance(result, OutputError) and result.errno in NO_ROOM)
        elif result == SKIPPED:
            outcome.skipped += 1
        else:
            outcome.done += 1

    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                if len(waiting) == workers:
                    finish()
                if full:
                    outcome.left += 1
                else:
                    waiting.append((job, pool.submit(_attempt, make, check, overwrite, job)))
            while waiting:
                finish()
        except KeyboardInterrupt:
            outcome.interrupted = True
            pool.shutdown(wait=False, cancel_futures=True)
            try:
                _finish_begun(waiting, finish)
            except KeyboardInterrupt:
                if abandon is None:
                    raise
                abandon.set()
                _finish_begun(waiting, finish)
            outcome.left = len(jobs) - outcome.done - outcome.skipped - len(outcome.errors)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return outcome


def _finish_begun(waiting: deque[tuple[Job, Future[RescaleError | str]]], finish: Callable[[], None]) -> None:
    while waiting:
        if waiting[0][1].cancelled():
            waiting.popleft()
        else:
            finish()


def _attempt(make: Callable[[Job], None], check: Callable[[Job], None], overwrite: bool, job: Job) -> RescaleError | str:
    """`DONE`, `SKIPPED`, or what is wrong, with the name of a file of the job or of the bundle."""
    if job.fault is not None:
        return job.fault
    try:
        if job.target.is_file() and not overwrite:
            check(job)
            return SKIPPED
        job.target.parent.mkdir(parents=True, exist_ok=True)
        make(job)
    except NO_PICTURES as e:
        return e
    except RescaleError as e:
        if str(job.source) not in str(e) and str(job.target) not in str(e):
            e.args = (f"{job.source}: {e}", *e.args[1:])
        return e
    except OSError as e:
        return OutputError.of(job.target, e)
    except MemoryError:
        return RescaleError(f"{job.source}: not enough memory")
    except Exception as e:  # a defect met by one picture must not cost the others
        return RescaleError(f"{job.source}: unexpected {type(e).__name__}: {e}; please report it with the picture")
    return DONE


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files of ours below a folder that nothing writes any more (after SIGKILL). Returns how many."""
    count = 0
    for path in folder.rglob(TEMPORARY_GLOB):
        if is_left_over(path):
            # What cannot be removed, as in somebody else's folder, is in no picture's way.
            with contextlib.suppress(OSError):
                path.unlink()
                count += 1
    return count
