"""What a command of the runtime reads and writes: one file, a folder, the standard streams, raw frames."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rescale.console import binary_input, binary_output, fail, printable, progress_bar
from rescale.errors import InputError, LrFileError, OutputError

if TYPE_CHECKING:
    from rescale.batch import Job
    from rescale.rescaler import Rescaler

STREAM = Path("-")
"""Standard input or output."""


def check_paths(source: Path, target: Path) -> None:
    """Fail before the work, not after it.

    Raises:
        InputError: the source does not exist.
        OutputError: the target's folder does not exist, or the target would overwrite what is read.
    """
    if source != STREAM and not source.exists():
        raise InputError(f"{source}: no such file")
    if target == STREAM:
        binary_output()
        return
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist")
    if target.exists() and source != STREAM and source.samefile(target):
        raise OutputError(f"{target}: is the source itself")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"{target}: lies inside the source folder, whose results would be taken for sources")


def stream_in(path: Path) -> Any:
    """What a picture is read from: a path, or standard input.

    Raises:
        InputError: standard input is closed.
    """
    return binary_input() if path == STREAM else path


def write_result(target: Path, data: bytes) -> None:
    """Write a finished file atomically, or to standard output.

    Raises:
        OutputError: the target cannot be written.
    """
    from rescale.files import atomic_write

    if target == STREAM:
        out = binary_output()
        out.write(data)
        out.flush()
    else:
        atomic_write(target, data)


def one_or_all(
    net: Rescaler,
    source: Path,
    target: Path,
    make: Callable[[Path, Path], dict[str, Any]],
    suffixes: list[str],
    new_suffix: str,
    overwrite: bool,
    json_: bool,
    describe: Callable[[dict[str, Any]], str],
) -> int:
    """One file, or every file below a folder. Returns the exit code: 3 when every error is an LR that cannot be restored, else 1.

    Args:
        net: takes turns among the workers.
        source, target: as the command was given them.
        make: writes one target and returns what to tell of it.
        suffixes: of the files of a folder.
        new_suffix: of a folder's targets.
        overwrite: make a folder's targets again that exist.
        json_: tell in JSON.
        describe: tells it as text.

    Raises:
        OutputError: the target of a folder is no folder.
    """
    if not source.is_dir():
        facts = {"source": str(source), "target": str(target)} | make(source, target)
        print(json.dumps(facts) if json_ else printable(describe(facts)), file=_told(target))
        return 0
    from rescale import batch

    if target == STREAM or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target}: a folder is wanted for the results of the folder {source}")
    jobs = batch.plan(source, target, suffixes, new_suffix)
    batch.remove_leftovers(target) if target.is_dir() else None
    found: dict[Job, dict[str, Any]] = {}
    with progress_bar(len(jobs)) as advance:

        def make_job(job: Job) -> None:
            found[job] = make(job.source, job.target)

        def report(job: Job, what: str) -> None:
            advance(job.source.name)
            status, _, message = what.partition(": ")
            if message:
                fail(message)
            if json_:
                line = {"source": str(job.source), "target": str(job.target)} | found.pop(job, {}) | {"status": status}
                print(json.dumps(line | ({"error": message} if message else {})), flush=True)

        net.network.turn = threading.Lock()
        outcome = batch.run(jobs, make_job, overwrite, report, workers=2)
    summary = {"done": outcome.done, "skipped": outcome.skipped, "errors": len(outcome.errors)}
    if outcome.left:
        fail(f"{target}: nothing can be written there; {outcome.left} pictures are left: make room and run this again")
        summary["left"] = outcome.left
    print(json.dumps(summary) if json_ else ", ".join(f"{n} {what}" for what, n in summary.items()))
    codes = {error.exit_code for _, error in outcome.errors}
    return 0 if not codes else codes.pop() if codes == {LrFileError.exit_code} else 1


def raw_frames(net: Rescaler, source: Path, target: Path, raw: str, max_pixels: int, json_: bool, upwards: bool) -> int:
    """Raw frames from a stream or file to another. Returns the exit code.

    Args:
        net: what makes the frames.
        source, target: files, or - for the standard streams.
        raw: WIDTHxHEIGHT of the HR frames.
        max_pixels: that an HR frame may have.
        json_: tell the number of frames as JSON on standard output (on stderr, where that belongs to the frames).
        upwards: LR to HR.

    Raises:
        InputError: the source cannot be read, holds no frame, or the frames are too large.
        OutputError: the target cannot be written.
    """
    from rescale.files import atomic_stream
    from rescale.frames import down_frames, parse_size, up_frames

    size = parse_size(raw)
    if size[0] * size[1] > max_pixels:
        raise InputError(f"--raw {raw}: {size[0] * size[1]} pixels, at most {max_pixels} are allowed; raise it with --max-pixels")
    run = up_frames if upwards else down_frames
    if target != STREAM and target.is_dir():
        raise OutputError(f"{target}: raw frames go to a file or to -, not to a folder")
    with ExitStack() as stack:
        try:
            # Unbuffered, as the target is: a thread that waits in a buffered stream holds up or aborts the interpreter's end.
            where, keep = (binary_input().fileno(), False) if source == STREAM else (source, True)
            reader = stack.enter_context(open(where, "rb", buffering=0, closefd=keep))
        except OSError as e:
            raise InputError(f"{source}: cannot read: {e.strerror}") from None
        writer: BinaryIO
        if target == STREAM:
            writer = stack.enter_context(open(binary_output().fileno(), "wb", buffering=0, closefd=False))
        else:
            writer = stack.enter_context(atomic_stream(target, buffering=0))
        count = run(net, size, reader, writer)
        if not count:
            raise InputError(f"{source}: holds no frame; does what should fill it work?")
    if json_:
        print(json.dumps({"source": str(source), "target": str(target), "frames": count}), file=_told(target))
    else:
        print(f"{count} frames", file=sys.stderr)
    return 0


def _told(target: Path) -> Any:
    """Where a command tells of a result: standard output belongs to the picture when it is the target."""
    return sys.stderr if target == STREAM else sys.stdout
