"""Writing files so that an interruption leaves the old file or none, never half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rescale.errors import OutputError


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, flush it to disk and rename it over `path`.

    Raises:
        OutputError: the folder does not exist or is not writable, or the disk is full; an old file is untouched.
    """
    with atomic_stream(path) as f:
        f.write(data)


def atomic_write_both(first: tuple[Path, bytes], second: tuple[Path, bytes]) -> None:
    """`atomic_write` of two files that belong together: neither takes its place before both are on the disk.

    Raises:
        OutputError: as `atomic_write`; both old files are untouched.
    """
    # Left in reverse order: the first takes its place first.
    with atomic_stream(second[0]) as b, atomic_stream(first[0]) as a:
        b.write(second[1])
        b.flush()
        os.fsync(b.fileno())
        a.write(first[1])


@contextlib.contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends without an error, and vanishes otherwise.

    Raises:
        OutputError: as `atomic_write`.
    """
    # Not tempfile: its files are private, and a result should have the permissions of any other new file.
    # Not the target's name with something added either: that could be too long.
    name = path.with_name(f".rescale.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(name, "xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(name, path)
    except OSError as e:
        raise OutputError(f"{path}: cannot write: {e.strerror or e}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
