"""What was measured, kept in a folder, so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.errors import InputError
from rescale.files import atomic_write
from rescale.json_text import without_nan
from rescale_bench.outputs import make_folder


class Store:
    """Values by everything that they depend on, each in a file of its own.

    Several processes may share a folder: files are written atomically, and two that measure the same write the same name.

    Args:
        folder: is made if it is not there; None keeps nothing.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            make_folder(folder)

    def get(self, key: Mapping[str, Any], read: Callable[[Any], Any] | None = None) -> Any:
        """The value of a key, as JSON has it or as `read` makes it; None if there is none.

        Args:
            key: as it was put.
            read: raises ValueError, KeyError or TypeError for what cannot have been put.

        Raises:
            InputError: the file is damaged.
        """
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["key"] != without_nan(dict(key)):
                raise ValueError("it is of something else")
            return read(found["value"]) if read else found["value"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as e:
            raise InputError(f"{path}: not a measurement that this command kept: {e}; delete it") from None

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        """Keep a value.

        Raises:
            OutputError: it cannot be written.
        """
        if self.folder is not None:
            text = json.dumps({"key": without_nan(dict(key)), "value": without_nan(value)})
            atomic_write(self._path(self.folder, key), (text + "\n").encode())

    @staticmethod
    def _path(folder: Path, key: Mapping[str, Any]) -> Path:
        text = json.dumps(without_nan(dict(key)), sort_keys=True)
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def digest(picture: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of a picture's shape and pixels."""
    found = hashlib.sha256(str(picture.shape).encode())
    found.update(np.ascontiguousarray(picture).tobytes())
    return found.hexdigest()
