"""Reading a file from a stranger into tensors by name.

A ``.pth`` file is a pickle. It is never unpickled freely: what it names is looked at first, without carrying anything out, and then
PyTorch's restricted unpickler builds tensors and plain containers. That alone is not enough: it also calls ``bytearray`` and
``torch.Tensor`` with any size that a file says. It reads what was checked and hashed here, not the file again.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from rescale.errors import CheckpointError

MAX_BYTES = 1 << 29
"""Largest file that is read. The largest published one of these layouts, x8 with its optimiser's state, has about 140 MB."""

WRAPPER = "model_state_dict"
"""Entry that holds the parameters in a file that also keeps the optimiser's state."""

MAX_STEPS = 1 << 21
"""Of a pickle. The largest published one has about 100,000."""

_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (BFloat16|Bool|Byte|Char|Double|Float|Half|Int|Long|Short)Storage"
)
"""All that parameters, and an optimiser's state beside them, are made of."""

_OTHER_NAMES = ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
"""Steps that name something in ways that torch.save does not use."""

_LEGACY_PICKLES = 5
"""Of the format before PyTorch 1.6: mark, version, system, content, order of the values that follow."""

_CURE = "save torch.save(model.state_dict(), ...) where the file comes from, or get it as safetensors"

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True)
class Source:
    """A file as it was read.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        size: its bytes.
        tensors: by their names in the file, without the prefix ``module.``; nothing is known of their shapes and values.
    """

    path: Path
    sha256: str
    size: int
    tensors: dict[str, Tensor]


def read(path: Path) -> Source:
    """Read a PyTorch file (zip, or the format before PyTorch 1.6) or a safetensors file.

    Raises:
        CheckpointError: missing, too large, truncated, of no known format, holding code, or holding no tensors by name.
    """
    data = _bytes(path)
    if data.startswith(_ZIP):
        content = _restricted_load(path, _plain_zip(path, data))
    elif data[8:9] == b"{":
        try:
            content = load_safetensors(data)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
            raise CheckpointError(f"{path}: not readable as safetensors: {_shown(e)}") from None
    elif data.startswith(_PICKLE):
        _check_pickles(path, data, _LEGACY_PICKLES)
        content = _restricted_load(path, data)
    else:
        raise CheckpointError(f"{path}: neither a PyTorch file (.pth) nor safetensors; it begins with {data[:8]!r}")
    return Source(path, hashlib.sha256(data).hexdigest(), len(data), _named_tensors(path, content))


def _shown(said: object) -> str:
    """The beginning of a text out of a file, fit for one line of a terminal."""
    return str(said)[:160].encode("unicode_escape").decode()


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: not a file")
    try:
        with open(path, "rb") as f:
            data = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot read: {e.strerror or e}") from None
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; a checkpoint of these networks has at most {MAX_BYTES}")
    return data


def _plain_zip(path: Path, data: bytes) -> bytes:
    """The archive's entries in a new archive. Nothing in it may unpack to more than the file holds: torch.save never compresses.

    PyTorch's own reader finds the list of entries in another way than this one, so that a file could hold one list for each:
    it gets what was looked at here.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(path, entries, len(data))
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as plain:
                for entry in entries:
                    content = archive.read(entry)
                    if entry.filename.lower().endswith("data.pkl"):  # PyTorch's reader takes capitals for small letters
                        _check_pickles(path, content, 1)
                    plain.writestr(zipfile.ZipInfo(entry.filename), content)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError, OverflowError, struct.error) as e:
        raise CheckpointError(f"{path}: truncated or damaged: {_shown(e)}") from None
    return out.getvalue()


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    if any(e.filename.endswith("/constants.pkl") for e in entries):
        raise CheckpointError(f"{path}: a TorchScript program, which is code; wanted a state dict")
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size]
    if packed:
        raise CheckpointError(f"{path}: {_shown(packed[0])} in it is compressed, as no file of torch.save is; not unpacked")
    total = sum(e.file_size for e in entries)
    if total > size:
        raise CheckpointError(f"{path}: its entries say {total} bytes, the file has {size}")
    names = [e.filename for e in entries]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path}: two of its entries have one name")


def _check_pickles(path: Path, data: bytes, count: int) -> None:
    """Check that pickles, one after the other, name nothing but what parameters are made of. Carries nothing out."""
    stream, steps = io.BytesIO(data), 0
    try:
        for _ in range(count):
            for step, value, _ in pickletools.genops(stream):
                steps += 1
                if steps > MAX_STEPS:
                    raise CheckpointError(
                        f"{path}: a pickle of more than {MAX_STEPS} steps; no checkpoint of these networks has that"
                    )
                if step.name in _OTHER_NAMES or (step.name == "GLOBAL" and not _NAMES.fullmatch(str(value))):
                    named = "something on a way of its own" if value is None else _shown(str(value).replace(" ", "."))
                    raise CheckpointError(f"{path}: the pickle in it names {named}, which is code and is not run; {_CURE}")
    except ValueError as e:
        raise CheckpointError(f"{path}: truncated or damaged: {_shown(e)}") from None


def _restricted_load(path: Path, data: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            # Of an unusual pickle protocol: it is refused or it is not.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        # PyTorch's message ends in advice to load the file without the restriction, which is not to be passed on.
        named = re.search(r"GLOBAL (\S+)|Trying to (?:call|instantiate|set)\D* (\S+)", str(e))
        what = f"names {_shown(named[1] or named[2])}, which is code" if named else "is not one of tensors only"
        raise CheckpointError(f"{path}: the pickle in it {what} and is not run; {_CURE}") from None
    except Exception as e:
        # A hostile or damaged pickle makes the unpickler fail in any way: KeyError, IndexError, EOFError, RuntimeError, ...
        said = str(e).strip().splitlines()
        raise CheckpointError(f"{path}: truncated or damaged: {type(e).__name__}{': ' + _shown(said[0]) if said else ''}") from None


def _named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get(WRAPPER), dict):
        content = content[WRAPPER]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, wanted parameters by name")
    if not any(isinstance(v, Tensor) for v in content.values()):
        there = _shown(", ".join(map(str, list(content)[:6])) or "none")
        raise CheckpointError(f"{path}: holds no parameters by name, only the entries {there}; wanted a state dict or {WRAPPER}")
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not re.fullmatch(r"[\w.]{1,120}", key, re.ASCII) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: entry {_shown(key)} is a {type(value).__name__}, wanted a tensor with a name")
        # Left by DataParallel.
        name = key.removeprefix("module.")
        if name in found:
            raise CheckpointError(f"{path}: {name} is there twice, with and without the prefix module.")
        found[name] = value.detach()
    return found
