"""All bytes of what a caller names: a path, bytes, or a binary stream."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from rescale.errors import DamagedPictureError, InputError
from rescale.files import read_some

Source = str | os.PathLike[str] | bytes | BinaryIO

MAX_FILE_BYTES = 2 << 30
PIECE_BYTES = 16 << 20
_TEXT = "it is a stream of text; open it as binary, with mode 'rb'"


def read_bytes(source: Source) -> tuple[bytes, str]:
    """All bytes of a path, bytes object or binary stream, and a name for messages.

    Raises:
        InputError: it is none of these, cannot be read, is empty, or is above 2 GiB.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _bounded(bytes(source), "bytes")
    if isinstance(source, str | os.PathLike):
        name = str(Path(source))
    elif hasattr(source, "read"):
        given = getattr(source, "name", None)  # that of a temporary file may be a number, or nothing
        name = str(given) if isinstance(given, str | os.PathLike) else "stream"
    else:
        raise InputError(f"a path, bytes or a binary stream was expected, got {type(source).__name__}")
    try:
        if not isinstance(source, str | os.PathLike):
            return _bounded(_read_all(source), name)
        with Path(source).open("rb") as f:
            return _bounded(_read_all(f), name)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except (OSError, ValueError) as e:
        why = _TEXT if isinstance(e, UnicodeDecodeError) else getattr(e, "strerror", None) or e
        raise InputError(f"{name}: cannot read: {why}") from None


def _read_all(source: BinaryIO) -> bytes:
    """A stream to its end, or to one byte beyond the limit. A reader makes room for all that it is asked for, so in pieces.

    Raises:
        ValueError: the stream gives something else than bytes.
    """
    parts, left = [], MAX_FILE_BYTES + 1
    while left and (part := read_some(source, min(left, PIECE_BYTES))) != b"":
        if isinstance(part, str):
            raise ValueError(_TEXT)
        if not isinstance(part, bytes | bytearray | memoryview):
            raise ValueError(f"its read() gives {type(part).__name__}, not bytes; pass these, as of await file.read()")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _bounded(data: bytes, name: str) -> tuple[bytes, str]:
    if not data:
        raise DamagedPictureError(f"{name}: empty")
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{name}: larger than {MAX_FILE_BYTES} bytes")
    return data, name
