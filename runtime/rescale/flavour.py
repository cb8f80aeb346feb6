"""TensorRT and TensorRT for RTX behind one set of names: which one, which version, what it needs, what it says.

Nothing is imported before it is asked for. Precision lives in the graphs, so that TensorRT 10, 11 and RTX need no branches
but the few that `Flavour` tells of.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from rescale.errors import BackendError, MissingExtraError
from rescale.extras import import_library

NAMES = ("tensorrt", "tensorrt-rtx")
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

MAX_MESSAGES = 500
"""Kept of one collector: a log is no reason to run out of memory."""


@dataclass(frozen=True)
class Flavour:
    """One loaded library.

    Attributes:
        name: one of `NAMES`.
        module: its Python bindings.
        version: as the library tells it, such as ``1.7.1.116``.
        builds_without_gpu: whether engines can be built on a machine that has no GPU.
    """

    name: str
    module: Any
    version: str
    builds_without_gpu: bool

    @property
    def title(self) -> str:
        """Name and version, for reports."""
        return f"{self.name} {self.version}"


class Message(NamedTuple):
    """What a library said; `severity` is ``internal_error``, ``error`` or ``warning``."""

    severity: str
    text: str


def probe(extra: str = "tensorrt-rtx") -> tuple[int, str]:
    """Number of CUDA devices, and why there is none (empty if there is one).

    Args:
        extra: of this package, that brings cuda-python with what is wanted.

    Raises:
        MissingExtraError: cuda-python is not installed.
    """
    runtime = import_library("cuda.bindings.runtime", extra)
    try:
        error, count = runtime.cudaGetDeviceCount()
    except Exception as e:  # the bindings load the driver's library on the first call, and word its absence in several ways
        return 0, f"{type(e).__name__}: {e}"
    if int(error) != 0:
        _, text = runtime.cudaGetErrorString(error)
        return 0, f"{error.name}: {text.decode(errors='replace') if isinstance(text, bytes) else text}"
    return int(count), "" if count else "no CUDA device"


def device_count() -> int:
    """Number of CUDA devices; 0 where there is no driver.

    Raises:
        MissingExtraError: cuda-python is not installed.
    """
    return probe()[0]


@dataclass(frozen=True)
class Device:
    """The CUDA device in use: its name and compute capability, such as ``9.0``."""

    name: str
    compute_capability: str


def device() -> Device:
    """The current CUDA device.

    Raises:
        BackendError: there is none, or it does not answer.
        MissingExtraError: cuda-python is not installed.
    """
    count, reason = probe()
    if not count:
        raise BackendError(f"no CUDA device ({reason})")
    runtime = import_library("cuda.bindings.runtime", "tensorrt-rtx")
    error, index = runtime.cudaGetDevice()
    if int(error) == 0:
        error, found = runtime.cudaGetDeviceProperties(index)
    if int(error) != 0:
        raise BackendError(f"CUDA device does not answer: {error.name}")
    name = found.name.decode(errors="replace") if isinstance(found.name, bytes) else str(found.name)
    return Device(name, f"{found.major}.{found.minor}")


def load(name: str, needs_device: bool = True) -> Flavour:
    """Import a library.

    Args:
        name: one of `NAMES`.
        needs_device: whether engines will be loaded or run. Building for ``tensorrt`` needs a device as well: without a driver
            its objects are not what they seem, and the first use of one ends the process.

    Raises:
        BackendError: unknown name, no device where one is needed, or a library that cannot be loaded.
        MissingExtraError: not installed.
    """
    if name not in NAMES:
        raise BackendError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
    # Asked first: it must be known before anything of `tensorrt` is constructed.
    count, reason = probe(name) if needs_device else (0, "")
    module = import_library(_MODULES[name], name)
    if needs_device and not count:
        raise BackendError(f"{name}: no CUDA device ({reason})")
    return Flavour(name, module, str(module.__version__), builds_without_gpu=name == "tensorrt-rtx")


_listening: ContextVar[list[Message] | None] = ContextVar("rescale_tensorrt_messages", default=None)
_active: list[list[Message]] = []
_loggers: dict[str, Any] = {}
_lock = threading.Lock()


def logger(flavour: Flavour) -> Any:
    """The one ``ILogger`` of this process: the first that a library is given wins, later ones are ignored by it."""
    with _lock:
        if flavour.name not in _loggers:
            base, severity = flavour.module.ILogger, flavour.module.ILogger.Severity
            kept = {severity.INTERNAL_ERROR: "internal_error", severity.ERROR: "error", severity.WARNING: "warning"}

            class Router(base):  # type: ignore[misc, valid-type]  # the base is found at run time
                """Hands messages to whoever listens."""

                def __init__(self) -> None:
                    base.__init__(self)

                def log(self, severity: Any, text: str) -> None:
                    """Called by the library, from threads of its own as well."""
                    if severity in kept:
                        _route(Message(kept[severity], text))

            _loggers[flavour.name] = Router()
        return _loggers[flavour.name]


def _route(message: Message) -> None:
    own = _listening.get()
    if own is not None:
        targets = [own]
    else:
        # A thread of the library's own has no context: what it says goes to everybody who listens.
        with _lock:
            targets = list(_active)
    for target in targets:
        if len(target) < MAX_MESSAGES:
            target.append(message)
    if not targets:
        level = logging.WARNING if message.severity == "warning" else logging.ERROR
        logging.getLogger("rescale.tensorrt").log(level, "%s", message.text)


@contextlib.contextmanager
def collected(flavour: Flavour) -> Iterator[list[Message]]:
    """Collect what the library says while the block runs, warnings and worse; each thread or task has a list of its own."""
    logger(flavour)
    messages: list[Message] = []
    token = _listening.set(messages)
    with _lock:
        _active.append(messages)
    try:
        yield messages
    finally:
        with _lock:
            # By identity: two empty lists are equal.
            _active[:] = [m for m in _active if m is not messages]
        _listening.reset(token)


_NO_DRIVER = ("cudaError 35", "failure with error: 35", "cudaErrorInsufficientDriver", "CUDA driver version is insufficient")


def clean_text(text: str) -> str:
    """A message's lines without, on a machine with no device, the library's complaints about that."""
    try:
        alone = device_count() == 0
    except (BackendError, MissingExtraError):
        alone = True
    return "\n".join(line for line in text.splitlines() if not (alone and any(mark in line for mark in _NO_DRIVER)))


def clean(messages: Iterable[Message]) -> list[Message]:
    """Messages without repetitions and without what `clean_text` drops."""
    found = (Message(m.severity, clean_text(m.text)) for m in dict.fromkeys(messages))
    return [m for m in found if m.text.strip()]


def errors(messages: Iterable[Message]) -> str:
    """The cleaned errors as one line of text; empty if there is none."""
    return "; ".join(" ".join(m.text.split()) for m in clean(messages) if m.severity != "warning")
