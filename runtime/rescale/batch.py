"""Folders: every picture below one folder to the same place below another, resumable and never half-written."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rescale.container import sidecar_path
from rescale.errors import InputError, OutputError, RescaleError
from rescale.files import TEMPORARY_GLOB, TEMPORARY_NAME, machine_mark

ABANDONED = 3600.0
"""Seconds without a write after which a temporary file of another machine, whose processes cannot be asked for, is left over."""


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What the system says where no further file could be written either."""


@dataclass(frozen=True)
class Job:
    """One file to make."""

    source: Path
    target: Path


@dataclass
class Outcome:
    """What became of a folder: counts, and the errors by source file. `left` were not begun, since nothing could be written."""

    done: int = 0
    skipped: int = 0
    left: int = 0
    errors: list[tuple[Path, RescaleError]] = field(default_factory=list)


def plan(source: Path, target: Path, suffixes: Sequence[str], new_suffix: str) -> list[Job]:
    """Jobs for all files below `source` with one of `suffixes`, in the same tree below `target`.

    Raises:
        InputError: nothing to do, a folder below cannot be read, or two sources would be written to one target.
        OutputError: a target, or the side-car beside it, is one of the sources: by a link, or since `source` lies below `target`.
    """
    paths = (Path(folder) / name for folder, _, names in os.walk(source, onerror=_refuse_folder) for name in names)
    found = sorted(p for p in paths if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith("."))
    if not found:
        raise InputError(f"{source}: no picture found; wanted are {' '.join(suffixes)}")
    jobs: dict[Path, Job] = {}
    places = {os.path.realpath(path): path for path in found}
    for path in found:
        goal = target / path.relative_to(source).with_suffix(new_suffix)
        if goal in jobs:
            raise InputError(f"{path} and {jobs[goal].source.name} would both become {goal}; rename one")
        for place in (goal, sidecar_path(goal)):
            if taken := places.get(os.path.realpath(place)):
                raise OutputError(f"{place}: is the source {taken} itself; choose another folder for the results")
        jobs[goal] = Job(path, goal)
    return list(jobs.values())


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot read: {error.strerror}; make it readable, or move it elsewhere") from None


def run(
    jobs: Iterable[Job],
    make: Callable[[Job], None],
    overwrite: bool,
    report: Callable[[Job, str], None] = lambda job, what: None,
    workers: int = 1,
) -> Outcome:
    """Carry the jobs out. A target that exists is finished, since targets appear complete or not at all.

    An error is kept and the next job begins, unless there is no room for any result. That ends the run after the jobs that have
    begun, as Ctrl-C does.

    Args:
        jobs: from `plan`.
        make: reads a job's source and writes its target atomically; called in worker threads.
        overwrite: make targets that exist again.
        report: told about each job in order, in the calling thread: ``done``, ``skipped`` or ``error: `` and the message.
        workers: jobs under way at a time: with two, one is decoded or encoded while the other is on the network.
    """
    outcome = Outcome()
    waiting: deque[tuple[Job, Future[RescaleError | None]]] = deque()

    full = False

    def finish() -> None:
        nonlocal full
        job, future = waiting.popleft()
        fault = future.result()
        if fault is None:
            outcome.done += 1
        else:
            outcome.errors.append((job.source, fault))
            full = full or (isinstance(fault, OutputError) and fault.errno in NO_ROOM)
        report(job, "done" if fault is None else f"error: {fault}")

    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                if len(waiting) == workers:
                    finish()
                if full:
                    outcome.left += 1
                    continue
                if job.target.is_file() and not overwrite:
                    while waiting:
                        finish()
                    outcome.skipped += 1
                    report(job, "skipped")
                    continue
                waiting.append((job, pool.submit(_attempt, make, job)))
            while waiting:
                finish()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return outcome


def _attempt(make: Callable[[Job], None], job: Job) -> RescaleError | None:
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        make(job)
    except RescaleError as e:
        return e
    except OSError as e:
        return OutputError(f"{job.target}: cannot write: {e.strerror or e}", e.errno)
    except MemoryError:
        return RescaleError(f"{job.source}: not enough memory")
    except Exception as e:  # a defect met by one picture must not cost the others
        return RescaleError(f"{job.source}: unexpected {type(e).__name__}: {e}; please report it with the picture")
    return None


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files of ours below a folder that nothing writes any more (after SIGKILL). Returns how many."""
    count = 0
    for path in folder.rglob(TEMPORARY_GLOB):
        match = TEMPORARY_NAME.fullmatch(path.name)
        if match and _is_left_over(path, match.group(1), int(match.group(2))):
            path.unlink(missing_ok=True)
            count += 1
    return count


def _is_left_over(path: Path, machine: str, pid: int) -> bool:
    if machine == machine_mark():
        return not _alive(pid)
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except OSError:  # finished in the meantime
        return False


def _alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 is Ctrl-C there; leftovers stay
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
