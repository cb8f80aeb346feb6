"""Files that a command is to write: what stands in the way is told before the measuring, not after it."""

from __future__ import annotations

import os
import tempfile
from errno import EISDIR
from pathlib import Path

from rescale.errors import OutputError


def check_files(*paths: Path | None) -> None:
    """Check that files can be written later. What is there stays as it is; None is no file.

    Raises:
        OutputError: a path is a folder, or its own folder does not exist or is not writable, or two are of one file.
    """
    places: list[Path] = []
    for path in (p for p in paths if p is not None):
        place = Path(os.path.realpath(path))
        if place in places and (place.is_file() or not place.exists()):
            raise OutputError(f"{path}: two outputs would be written to it, the second over the first; name another file")
        places.append(place)
        try:
            if place.is_dir():
                raise OSError(EISDIR, os.strerror(EISDIR))
            if place.is_file() or not place.exists():  # a pipe or a device is written to as it is
                check_folder(place.parent)
        except OSError as e:
            raise OutputError.of(path, e) from None


def make_folder(folder: Path, *names: str) -> None:
    """Make a folder that is not there yet, and check that files of these names can be written to it later.

    Raises:
        OutputError: it cannot be made, or as `check_files`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{folder}: cannot make this folder: {e.strerror or e}") from None
    check_files(*(folder / name for name in names))


def check_folder(folder: Path) -> None:
    """Raises OSError unless a file can be made in a folder; none stays."""
    with tempfile.TemporaryFile(dir=folder):
        pass
