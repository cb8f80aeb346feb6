"""What all commands share: errors become one line and an exit code, heavy packages are asked for by name."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, Any, BinaryIO, Protocol, TextIO

import typer

from rescale import __version__, start
from rescale.errors import InputError, MissingExtraError, OutputError, RescaleError
from rescale.json_text import as_json, as_json_line

PACKAGE = "rescale-toolkit"

INTERRUPTED = start.INTERRUPTED
"""Exit code after Ctrl-C."""

PATIENCE = 1.0
"""Seconds that a command works in silence before it shows what it does."""

TERMINATED = 143
"""Exit code after SIGTERM, as shells use it."""


def require(modules: Iterable[str], extra: str) -> None:
    """Check that an extra's packages are installed, without importing them.

    Raises:
        MissingExtraError: one is missing; the message is the command that installs it.
    """
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise MissingExtraError(f"{', '.join(missing)} not installed: pip install '{PACKAGE}[{extra}]'")


def new_app(help_text: str) -> typer.Typer:
    """A command-line application whose help shows defaults and whose errors are one line."""
    return typer.Typer(help=help_text, no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and stop.")]
"""Option of every command."""


_holds_bytes = False
"""Standard output belongs to a picture or to frames in this command."""


def run_app(app: typer.Typer, argv: list[str] | None = None, json_errors: bool = False, memory_advice: str = "") -> int:
    """Run a command and return its exit code.

    0, 1 for an error, 2 for wrong usage, 3 for an LR that cannot be restored, 4 for a regression, 130 for Ctrl-C,
    143 for SIGTERM, which ends a command as Ctrl-C does.

    Args:
        app: the application.
        argv: its arguments; None for those of the process.
        json_errors: with ``--json`` among them, what ends a command is told as a line of JSON too, beside that on stderr.
        memory_advice: what to do where there is not enough memory.
    """
    global _holds_bytes
    _holds_bytes = False
    _settle_streams()
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture is told in one line
    with _sigterm_interrupts() as terminated:
        code, message = _carry_out(app, argv, memory_advice)
    if code == INTERRUPTED and terminated:
        code = TERMINATED
    if message and json_errors and start.wants_json(sys.argv[1:] if argv is None else argv):
        with suppress(OSError):
            line = {"status": "error", "error": message, "exit_code": code}
            print_json_line(line, sys.stderr if _holds_bytes else sys.stdout)
    try:
        sys.stdout.flush()
    except OSError as e:
        # A full disk, or a reader that went away (`| head`). What standard output still holds would fail once more, with a
        # traceback, at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code == 0:
            return 1 if isinstance(e, BrokenPipeError) else fail(f"output: {e.strerror or e}")
    return code


def _carry_out(app: typer.Typer, argv: list[str] | None, memory_advice: str) -> tuple[int, str]:
    """Exit code, and what ended the command before its end, which standard error was told."""

    def failed(message: str, code: int = 1) -> tuple[int, str]:
        return fail(message, code), message

    command = typer.main.get_command(app)
    try:
        result = command.main(args=argv, standalone_mode=False)
    except RescaleError as e:
        return failed(str(e), e.exit_code)
    except KeyboardInterrupt:
        return failed("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return 1, ""
    except OSError as e:
        return failed(f"{e.filename or 'output'}: {e.strerror or e}")
    except MemoryError:
        return failed("not enough memory" + (memory_advice and f"; {memory_advice}"))
    except Exception as e:
        code = getattr(e, "exit_code", None)
        if code is None:
            raise
        show = getattr(e, "show", None)
        if type(e).__name__ == "Abort":
            return failed("interrupted", INTERRUPTED)
        if show is not None:
            show()
        return int(code), str(getattr(e, "format_message", lambda: "")())
    if result == INTERRUPTED:  # what typer makes of Ctrl-C
        return failed("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0, ""


def _settle_streams() -> None:
    """Names that the locale cannot print come out escaped, and a closed standard stream takes what is printed and drops it."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        # A file opened later must not get the number of a standard stream.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _sigterm_interrupts() -> Iterator[list[bool]]:
    """SIGTERM unwinds a command as Ctrl-C does, so that nothing half-written stays. Yields a list that is not empty once it came.

    Only where nobody has another use for the signal.
    """
    came: list[bool] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(True)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield came
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def binary_input() -> BinaryIO:
    """Standard input for bytes.

    Raises:
        InputError: it is closed.
    """
    if sys.stdin is None:
        raise InputError("standard input is closed")
    return sys.stdin.buffer


def binary_output() -> BinaryIO:
    """Standard output for bytes.

    Raises:
        OutputError: it is closed.
    """
    global _holds_bytes
    if sys.__stdout__ is None:
        raise OutputError("standard output is closed")
    _holds_bytes = True
    return sys.stdout.buffer


class Advance(Protocol):
    """What `progress_bar` yields."""

    def __call__(self, name: str, count: int = 1, /) -> None:
        """Move the bar past a named item, or past `count` of them; with 0 it says what comes now."""


@contextmanager
def progress_bar(total: int) -> Iterator[Advance]:
    """A bar with the remaining time on stderr, if that is a terminal. Yields a function that advances it."""
    if not sys.stderr.isatty():
        yield lambda name, count=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    # Results that go to a file are none of the terminal's, to which the bar would take them.
    shared = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=shared) as bar:
        task = bar.add_task("", total=total)
        yield lambda name, count=1: bar.update(task, advance=count, description=printable(name))


@contextmanager
def work_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """What one piece of work does and for how long, on stderr, if that is a terminal and the work takes more than `PATIENCE`.

    Yields a function that is told how much of how much is done of which stage, as `rescale.network.Progress` is; until there is
    more than one part, the bar only shows life.
    """
    if not sys.stderr.isatty():
        yield lambda done, count, stage: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(printable(what), total=None)
    start = threading.Timer(PATIENCE, bar.start)
    start.daemon = True
    start.start()

    def tell(done: int, count: int, stage: str) -> None:
        bar.update(task, completed=done, total=count if count > 1 else None, description=printable(stage))

    try:
        yield tell
    finally:
        start.cancel()
        start.join()
        bar.stop()


def printable(value: Any) -> str:
    """Text of a file that anybody may have written, on one line: no control character reaches the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def _one_line(message: str) -> str:
    """A message without its line breaks; blanks within a line stay, as a file's name may have several."""
    return printable(re.sub(r"\s*[\r\n]\s*", " ", message.strip()))


def fail(message: str, code: int = 1) -> int:
    """Print an error as one line and return its exit code."""
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return code


def warn(message: str) -> None:
    """Print a warning as one line."""
    print(f"warning: {_one_line(message)}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as one JSON document."""
    print(as_json(value), end="")


def print_json_line(value: Any, file: TextIO | None = None) -> None:
    """Print a value as one line of JSON, at once: whoever reads lines waits for them."""
    print(as_json_line(value), end="", file=file, flush=True)
