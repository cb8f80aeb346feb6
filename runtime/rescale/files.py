"""Writing files so that an interruption leaves the old file or none, never half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from rescale.errors import OutputError


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, flush it to disk and rename it over `path`.

    Raises:
        OutputError: the folder does not exist or is not writable, or the disk is full; an old file is untouched.
    """
    # Not tempfile: its files are private, and a result should have the permissions of any other new file.
    name = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except OSError as e:
        raise OutputError(f"{path}: cannot write: {e.strerror or e}") from None
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(name, path)
    except OSError as e:
        raise OutputError(f"{path}: cannot write: {e.strerror or e}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
