"""The engine cache: a name that holds everything which makes an engine valid, one builder at a time, and tidying up."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescale.bundle import PRECISIONS, Bundle
from rescale.console import PACKAGE
from rescale.contract import graph_names
from rescale.engine_file import ENGINE_SUFFIX, SIDECAR_SUFFIX, EngineInfo, check_belongs, read_info, read_whole, sidecar
from rescale.errors import EngineError, ForeignEngineError, MissingExtraError, OutputError
from rescale.files import TEMPORARY_GLOB, is_left_over
from rescale.flavour import NAMES
from rescale.variants import VARIANTS

POLL_SECONDS = 0.1

_GRAPHS = sorted({name for v in VARIANTS.values() for name in graph_names(v)})
_SIZE = r"\d+x\d+x\d+"
_NAME = re.compile(
    rf"(?:{'|'.join(_GRAPHS)})\.(?:{'|'.join(PRECISIONS)})\.(?:{'|'.join(NAMES)})"
    rf"\.{_SIZE}-{_SIZE}-{_SIZE}\.[0-9a-f]{{12}}{re.escape(ENGINE_SUFFIX)}"
)
"""What `rescale.engine_file.engine_name` makes of a profile and a key: the folder may hold other people's engines."""


def engine_key(parts: dict[str, Any]) -> str:
    """SHA-256 of everything that makes an engine valid; `parts` is of JSON's types."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def locked(engine: Path, cancel: threading.Event | None = None, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of an engine's name: of several processes and threads, one builds and the others wait.

    Args:
        engine: its path; the lock is a hidden empty file beside it. A killed process holds none.
        cancel: once set, waiting ends.
        waiting: called once if the lock is not free.

    Raises:
        EngineError: cancelled while waiting.
        OutputError: no lock can be made there.
        MissingExtraError: filelock is not installed.
    """
    try:
        filelock = importlib.import_module("filelock")
    except ModuleNotFoundError:
        raise MissingExtraError(f"filelock not installed: pip install '{PACKAGE}[tensorrt-rtx]'") from None
    lock = filelock.FileLock(str(engine.with_name(f".{engine.name}.lock")))
    told = False
    while True:
        try:
            lock.acquire(timeout=POLL_SECONDS if told else 0)
            break
        except filelock.Timeout:
            if not told and waiting is not None:
                waiting()
            told = True
        except (OSError, NotImplementedError) as e:
            raise OutputError(f"{engine.parent}: cannot lock: {e}") from None
        if cancel is not None and cancel.is_set():
            raise EngineError(f"{engine}: cancelled while another process builds it")
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Entry:
    """One engine found in a folder.

    Attributes:
        path: the engine file.
        info: its sidecar; None if that cannot be read.
        problem: why it cannot be used; None if it can.
        foreign: it is of another bundle than the one that was asked about.
    """

    path: Path
    info: EngineInfo | None
    problem: str | None
    foreign: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return {"path": str(self.path), "problem": self.problem, "engine": self.info.to_dict() if self.info else None}


def scan(folder: Path, bundle: Bundle | None = None, versions: dict[str, str] | None = None) -> list[Entry]:
    """All engines of a folder, each read and verified. Files whose names no build gives are left out, whatever they hold.

    Args:
        folder: may be missing.
        bundle: whose engines are wanted; None: not compared.
        versions: of the installed libraries by backend; an engine of another version cannot be used.
    """
    engines = set(folder.glob(f"*{ENGINE_SUFFIX}"))
    engines |= {p.with_name(p.name.removesuffix(SIDECAR_SUFFIX) + ENGINE_SUFFIX) for p in folder.glob(f"*{SIDECAR_SUFFIX}")}
    return [_entry(path, bundle, versions or {}) for path in sorted(engines) if _NAME.fullmatch(path.name)]


def _entry(path: Path, bundle: Bundle | None, versions: dict[str, str]) -> Entry:
    info = None
    try:
        info = read_info(path)
        if bundle is not None:
            check_belongs(info, bundle)
        installed = versions.get(info.backend)
        if installed is not None and installed != info.library:
            raise EngineError(f"{path}: built by {info.backend} {info.library}, installed is {installed}")
        read_whole(info)
    except EngineError as e:
        return Entry(path, info, str(e), isinstance(e, ForeignEngineError))
    return Entry(path, info, None)


def remove(entry: Entry) -> bool:
    """Delete an engine, its sidecar and the kernels compiled from it; False if another process is building it.

    Raises:
        OutputError: not allowed to.
    """
    try:
        with locked(entry.path, cancel=_already()):
            # The engine goes first: what is left after a crash in between is known as half-written.
            kernels = entry.path.parent.glob(f"{glob.escape(entry.path.name.removesuffix(ENGINE_SUFFIX))}.*.cache")
            for path in (entry.path, sidecar(entry.path), *kernels):
                try:
                    path.unlink(missing_ok=True)
                except OSError as e:
                    raise OutputError(f"{path}: cannot delete: {e.strerror}") from None
    except EngineError:
        return False
    return True


def _already() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def abandoned(folder: Path) -> list[Path]:
    """Temporary files that a killed process left behind."""
    return [path for path in sorted(folder.glob(TEMPORARY_GLOB)) if is_left_over(path)]
