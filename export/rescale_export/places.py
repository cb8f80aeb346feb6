"""Folders that results are to take the place of: what stands in the way is said before the work, not after it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from rescale.errors import OutputError
from rescale.files import is_left_over, machine_mark


def check_place(target: Path, what: str, option: str) -> Path:
    """Where a folder may be made or replaced, through every link.

    Args:
        target: as it was given.
        what: is to be written there, for the error message.
        option: that names another place, for the error message.

    Raises:
        OutputError: links lead in a circle, it is the root folder or a mount point, no path at all, or its parent does not exist
            or is not writable.
    """
    place = Path(os.path.realpath(target))
    cannot, cure = f"{place}: cannot write the {what}", f"choose another {option}"
    try:
        circle = stat.S_ISLNK(place.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        circle = False
    except OSError as e:
        raise OutputError(f"{cannot}: {e.strerror or e}; {cure}") from None
    if circle:
        raise OutputError(f"{cannot}: this symbolic link leads back to itself; {cure}")
    if place == place.parent:
        raise OutputError(f"{cannot}: it is the root folder; {cure}")
    if os.path.ismount(place):
        raise OutputError(f"{cannot}: it is a mount point, to which nothing can be moved at once; choose a folder below it")
    if not place.parent.is_dir():
        raise OutputError(f"{cannot}: there is no folder {place.parent}")
    if not os.access(place.parent, os.W_OK):
        raise OutputError(f"{cannot}: {place.parent} is not writable; {cure}")
    return place


_TEMPORARY = re.compile(r"\.rescale-export\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")
"""The machine and the process that write a folder, and chance."""


@contextlib.contextmanager
def staged(place: Path) -> Iterator[Path]:
    """A temporary folder beside a place, where no server or program looks, with folders ``new`` and ``old`` in it: what is to be
    there and what was. It is removed in the end, and what killed processes left of theirs before."""
    for path in place.parent.glob(".rescale-export.*.tmp"):
        if is_left_over(path, _TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)
    # Not the place's name with something added: that could be too long.
    stage = place.with_name(f".rescale-export.{machine_mark()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        stage.mkdir()
        (stage / "new").mkdir()
        (stage / "old").mkdir()
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
