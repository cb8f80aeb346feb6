"""Folders that results are to take the place of: what stands in the way is said before the work, not after it."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from rescale.errors import OutputError


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


def temporary_beside(place: Path) -> Path:
    """A new name in the same folder, which no server or program looks for."""
    # Not the place's name with something added: that could be too long.
    return place.with_name(f".rescale-export.{os.getpid()}-{secrets.token_hex(4)}.tmp")
