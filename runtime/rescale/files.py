"""Reading streams that may have nothing yet, and writing files so that an interruption leaves the old file or none, never half."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rescale.errors import OutputError

PROCESS_NAMESPACE = Path("/proc/self/ns/pid")
BOOT = Path("/proc/sys/kernel/random/boot_id")
"""On Linux, what process numbers are counted in, and a name of the machine's run; elsewhere they do not exist."""

TEMPORARY_GLOB = ".rescale.*.tmp"
TEMPORARY_NAME = re.compile(r"\.rescale\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")
"""Names of the files that become results: the machine and the process that write one, and chance."""

ABANDONED = 3600.0
"""Seconds without a write after which a temporary file of another machine, whose processes cannot be asked for, is left over."""


def machine_mark() -> str:
    """Eight hexadecimal digits that tell this machine or container from others that write to the same folder."""
    processes, boot = 0, ""
    with contextlib.suppress(OSError):
        # Containers may share a name, and number their processes each from 1.
        processes = PROCESS_NAMESPACE.stat().st_ino
        # So may machines, whose first namespaces all have one number.
        boot = BOOT.read_text()
    return hashlib.sha256(f"{platform.node()} {processes} {boot}".encode()).hexdigest()[:8]


def is_left_over(path: Path, names: re.Pattern[str] = TEMPORARY_NAME) -> bool:
    """Whether a file or folder is temporary and the process that made it is gone; of another machine's, age decides.

    Args:
        path: of anything.
        names: of what is temporary; its groups are the machine and the process.
    """
    match = names.fullmatch(path.name)
    if match is None:
        return False
    if match.group(1) == machine_mark():
        return not _alive(int(match.group(2)))
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


def read_some(source: BinaryIO, size: int) -> bytes:
    """At most `size` bytes; empty at the end of the stream alone. Waits for one that does not block and has nothing yet."""
    while (part := source.read(size)) is None:
        select.select([source], [], [])
    return part


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read, or a link to one. A pipe would be waited for, and a device such as /dev/zero never ends.

    Raises:
        OSError: as `open`, or it is neither; `strerror` says what is wrong, and the caller which file.
    """
    source = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
        source.close()
        raise OSError(errno.EINVAL, "a pipe or a device, not a file")
    return source


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """All bytes of a file of at most `most`. Memory is asked for as the file is long when it is opened, and not beyond.

    Raises:
        OSError: as `open_regular`, or it is larger, or grows while it is read.
    """
    with open_regular(path) as source:
        size = os.fstat(source.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"larger than {most} bytes")
        data = source.read(size + 1)
    if len(data) > size:
        raise OSError(errno.EBUSY, "it grows while it is read")
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, or over one, and flush it to disk: for a folder that takes its place by one renaming once all is in it, which
    a power failure must not leave with empty files.

    Raises:
        OSError: as `open`, or the disk is full.
    """
    with open(path, "wb") as f:
        f.write(data)
        _flush_to_disk(f)


def _flush_to_disk(f: BinaryIO) -> None:
    f.flush()
    os.fsync(f.fileno())


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, flush it to disk and rename it over `path`.

    Raises:
        OutputError: the folder does not exist or is not writable, `path` is a folder, or the disk is full; an old file is
            untouched.
    """
    with atomic_stream(path) as f:
        f.write(data)


def atomic_write_both(first: tuple[Path, bytes], second: tuple[Path, bytes]) -> None:
    """`atomic_write` of two files that belong together: neither takes its place before both are on the disk.

    Raises:
        OutputError: as `atomic_write`; both old files are untouched. Only a system that refuses the last renaming, of the
            second, leaves the first one new.
    """
    # Left in reverse order: the first takes its place first.
    with atomic_stream(second[0]) as b, atomic_stream(first[0]) as a:
        b.write(second[1])
        _flush_to_disk(b)
        a.write(first[1])


@contextlib.contextmanager
def atomic_stream(path: Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends without an error, and vanishes otherwise.

    A symbolic link stays, and what it points to is replaced; what takes a file's place has its permissions. A pipe or device has no
    place to take: it is written to as it is. `buffering` is that of `open`.

    Raises:
        OutputError: as `atomic_write`.
    """
    if _is_special(path):
        try:
            with open(path, "wb", buffering) as special:
                yield special
        except OSError as e:
            raise OutputError.of(path, e) from None
        return
    try:
        place = Path(os.path.realpath(path))
        is_folder = place.is_dir()
    except (OSError, ValueError) as e:
        raise OutputError.of(path, e) from None
    if is_folder:
        raise OutputError(f"{path}: cannot write: {os.strerror(errno.EISDIR)}")
    # Not tempfile: its files are private, and a result should have the permissions of any other new file.
    # Not the target's name with something added either: that could be too long.
    name = place.with_name(f".rescale.{machine_mark()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(name, "xb", buffering) as f:
            yield f
            _keep_mode(f, place)
            _flush_to_disk(f)
        os.replace(name, place)
    except OSError as e:
        raise OutputError.of(path, e) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _keep_mode(file: BinaryIO, place: Path) -> None:
    """Give a file the permissions of the one that it is to replace, if there is one: what its owner closed stays closed."""
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(file.fileno(), place.stat().st_mode & 0o777)


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
