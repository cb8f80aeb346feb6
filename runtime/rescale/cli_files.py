"""What a command of the runtime reads and writes: one file, a folder, the standard streams, raw frames."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rescale.cli_options import STREAM, ends_as_folder, path
from rescale.console import INTERRUPTED, binary_input, binary_output, fail, print_json_line, printable, progress_bar, work_bar
from rescale.errors import DamagedPictureError, InputError, LrFileError, OutputError

if TYPE_CHECKING:
    from rescale.batch import Job
    from rescale.container import Small
    from rescale.network import Progress
    from rescale.picture import Picture
    from rescale.rescaler import Rescaler

Watch = Callable[[str], AbstractContextManager["Progress"]]
"""Gives what a piece of work, whose name it takes, has to tell its progress to."""


@dataclass(frozen=True)
class Verb:
    """What a command makes of each file, and how it tells of it.

    Attributes:
        make: writes one target and returns what to tell of it; its long work is told to what it is given third.
        check: raises an error if a target in a folder that exists is not what `make` would write.
        suffixes: of the files of a folder.
        new_suffix: of a folder's targets.
        describe: tells what `make` returned as text.
        each: describe the files of a folder too.
    """

    make: Callable[[Path, Path, Watch], dict[str, Any]]
    check: Callable[[Job], None]
    suffixes: list[str]
    new_suffix: str
    describe: Callable[[dict[str, Any]], str]
    each: bool = False


def check_paths(source: Path, target: Path, overwrite: bool | None = None) -> None:
    """Fail before the work, not after it.

    Args:
        source, target: as the command was given them, the target by `placed`.
        overwrite: False refuses a target that is a file.

    Raises:
        InputError: the source does not exist.
        OutputError: the target's folder does not exist or cannot be written to, or the target would overwrite what is read, or
            what may not be overwritten.
    """
    if target == STREAM:
        binary_output()
    if source != STREAM and not source.exists():
        raise InputError(f"{source}: no such file")
    if target == STREAM:
        return
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist")
    if target.exists() and source != STREAM and source.samefile(target):
        raise OutputError(f"{target}: is the source itself")
    if source.is_dir() and Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
        raise OutputError(f"{target}: lies inside the source folder, whose results would be taken for sources")
    if target.is_file() and overwrite is False:
        raise OutputError(f"{target}: exists, and --no-overwrite keeps it; name another file, or leave that option out")
    if target.is_dir() or not target.exists() or target.is_file():  # a pipe or device is written to as it is
        folder = target if target.is_dir() else Path(os.path.realpath(target)).parent
        if not folder.is_dir():
            raise OutputError(f"{target}: is a link into the folder {folder}, which does not exist; make it, or remove the link")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(
                f"{target}: cannot write: the folder {folder} takes no new files; choose another, or make it writable"
            )


def placed(source: Path, text: str, new_suffix: str | None) -> Path:
    """The file that one source becomes: where the target is a folder, the one of the source's name in it, as `cp` has it.

    Args:
        source: as the command was given it; a folder's results go to the target itself.
        text: the target as it was written: with a slash at its end only a folder is meant, which has to be there.
        new_suffix: of a file in a folder; None: one without a name of its own, such as raw frames.

    Raises:
        OutputError: a folder that is not there, or standard input, which has no name for a file in it.
    """
    target = path(text)
    if source.is_dir() or target == STREAM:
        return target
    if ends_as_folder(text) and not target.is_dir():
        raise OutputError(f"{text}: no such folder")
    if new_suffix is None or not target.is_dir():
        return target
    if source == STREAM:
        raise OutputError(f"{target}: is a folder, and standard input has no name; name a file in it")
    return target / source.with_suffix(new_suffix).name


def stream_in(source: Path) -> Any:
    """What a picture is read from: a path, or standard input.

    Raises:
        InputError: standard input is closed.
    """
    return binary_input() if source == STREAM else source


def open_lr(source: Path, max_pixels: int) -> Small:
    """`Small.open` for commands that say whether a file can be restored.

    Raises:
        InputError: it cannot be read, or is too large.
        LrFileError: it is no whole picture.
    """
    from rescale.container import ADVICE, Small, State

    try:
        return Small.open(stream_in(source), max_pixels)
    except DamagedPictureError as e:
        raise LrFileError(f"{e}: {ADVICE[State.DAMAGED]}", State.DAMAGED) from None


def require_writable(source: Path, target: Path, made: str) -> None:
    """Check that the target of one picture has a suffix by which it is written.

    Args:
        source, target: as for `check_paths`; a folder's results are named by the command.
        made: what it is, such as ``restored``.

    Raises:
        InputError: it has not.
    """
    from rescale.picture import WRITABLE

    if not source.is_dir() and target != STREAM and target.suffix.lower() not in WRITABLE:
        raise InputError(f"{target}: {made} pictures are {' or '.join(WRITABLE)}; name it {target.stem}.png")


def write_picture(target: Path, picture: Picture) -> int:
    """Write a picture atomically as its suffix says, or as PNG to standard output. Returns the number of bytes.

    Raises:
        InputError: the format cannot hold it.
        OutputError: the target cannot be written.
    """
    try:
        data = picture.to_bytes(".png" if target == STREAM else target.suffix.lower())
    except InputError as e:
        raise InputError(f"{target}: {e}") from None
    write_result(target, data)
    return len(data)


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


def one_or_all(source: Path, target: Path, verb: Verb, overwrite: bool, json_: bool) -> int:
    """One file, or every file below a folder. Returns the exit code, see `worst`.

    Args:
        source, target: as the command was given them.
        verb: what to do.
        overwrite: make a folder's targets again that exist.
        json_: tell in JSON.

    Raises:
        OutputError: the target of a folder is no folder.
    """
    if not source.is_dir():
        facts = {"source": str(source), "target": str(target)} | verb.make(source, target, work_bar)
        if json_:
            print_json_line(facts, _told(target))
        else:
            print(printable(verb.describe(facts)), file=_told(target))
        return 0
    from rescale import batch

    if target == STREAM or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target}: a folder is wanted for the results of the folder {source}")
    plan = batch.plan(source, target, verb.suffixes, verb.new_suffix)
    batch.remove_leftovers(target) if target.is_dir() else None
    found: dict[Job, dict[str, Any]] = {}
    abandon = threading.Event()

    @contextmanager
    def watch(what: str) -> Iterator[Progress]:
        def go_on(done: int, count: int, stage: str) -> None:
            if abandon.is_set():
                raise batch.AbandonedError(f"{what}: interrupted")

        yield go_on

    with progress_bar(len(plan.jobs)) as advance:

        def make_job(job: Job) -> None:
            found[job] = verb.make(job.source, job.target, watch)

        def report(job: Job, what: str) -> None:
            advance(job.source.name)
            status, _, message = what.partition(": ")
            if message:
                fail(message)
            facts = {"source": str(job.source), "target": str(job.target)} | found.get(job, {})
            if json_:
                print_json_line(facts | {"status": status} | ({"error": message} if message else {}))
            elif verb.each and status == batch.DONE:
                print(printable(verb.describe(facts)), flush=True)
            found.pop(job, None)

        outcome = batch.run(plan.jobs, make_job, overwrite, report, workers=2, check=verb.check, abandon=abandon)
    summary = {"done": outcome.done, "skipped": outcome.skipped, "errors": len(outcome.errors), "ignored": plan.ignored}
    if outcome.left:
        summary["left"] = outcome.left
    if outcome.left and not outcome.interrupted:
        fail(f"{target}: nothing can be written there; {outcome.left} pictures are left: make room and run this again")
    if json_:
        print_json_line(summary)
    else:
        print(", ".join(f"{n} {what}" for what, n in summary.items()), flush=True)
    if outcome.interrupted:
        return INTERRUPTED
    return worst(error.exit_code for _, error in outcome.errors)


def worst(codes: Iterable[int]) -> int:
    """Exit code of a command by those of its files: 3 where all that failed are LR files that cannot be restored, else 1; 0."""
    failed = set(codes) - {0}
    return 0 if not failed else failed.pop() if failed == {LrFileError.exit_code} else 1


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
        print_json_line({"source": str(source), "target": str(target), "frames": count}, _told(target))
    else:
        print(f"{count} frames", file=sys.stderr)
    return 0


def _told(target: Path) -> Any:
    """Where a command tells of a result: standard output belongs to the picture when it is the target."""
    return sys.stderr if target == STREAM else sys.stdout
