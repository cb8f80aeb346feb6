"""One run to a folder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from rescale.console import warn
from rescale.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, which has no lock of a folder
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make a folder, and let no other process in a block of this kind on it. A process that ends, however, lets go.

    Nothing is written: the folder itself is locked. Where that cannot be (Windows, some network file systems) it is not.

    Raises:
        OutputError: the folder cannot be made, or another run is writing to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{folder}: cannot create the folder: {e.strerror}") from None
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OutputError(f"{folder}: another run is writing here; wait for its end, or choose another --out") from None
            warn(f"{folder}: cannot be locked ({e.strerror}); let no other run write to it")
        yield
    finally:
        os.close(handle)
