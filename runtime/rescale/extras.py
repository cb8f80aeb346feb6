"""Libraries that are imported when they are asked for."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

from rescale.errors import BackendError, MissingExtraError

ENVIRONMENT = {"onnxruntime": {"ORT_DISABLE_TELEMETRY": "1"}}
"""What a library shall find in its environment where nothing is there. ONNX Runtime from 1.32 on keeps an identity of the machine
in the user's cache and sends what it runs on to Microsoft, unless it is told before its first import; ``0`` lets it."""


SILENCED = {"openvino": "openvino_telemetry"}
"""What a library does without where it cannot be imported. OpenVINO's wheels bring a package that tells Google Analytics of every
import of OpenVINO, by a process of its own and with an identity that it keeps in the user's home."""


@contextlib.contextmanager
def silenced(module: str) -> Iterator[None]:
    """Keep from a library what `SILENCED` says of it while the block imports it, unless the program imported that itself."""
    other = SILENCED.get(module)
    if other is None or other in sys.modules:
        yield
        return
    sys.modules[other] = cast(ModuleType, None)  # Python refuses to import it then
    try:
        yield
    finally:
        del sys.modules[other]


def set_environment(module: str) -> None:
    """Prepare the first import of a library: what `ENVIRONMENT` says of it, unless it is set already."""
    for name, value in ENVIRONMENT.get(module, {}).items():
        os.environ.setdefault(name, value)


def import_quietly(module: str) -> Any:
    """Import a library that tells its maker of its use, unless it is kept from that by `ENVIRONMENT` or `SILENCED`."""
    set_environment(module)
    with silenced(module):
        return importlib.import_module(module)


def import_library(module: str, extra: str = "", instead: str = "") -> Any:
    """Import a library that runs networks.

    Args:
        module: its name.
        extra: of this package, which installs it; empty for what every installation has.
        instead: what does without it, for the message where it is broken.

    Raises:
        MissingExtraError: not installed.
        BackendError: installed, but it cannot be imported.
    """
    try:
        return import_quietly(module)
    except ModuleNotFoundError as e:
        if e.name is None or not module.startswith(e.name.split(".")[0]):
            raise BackendError(f"{module}: cannot be imported: {e}{instead and f'; {instead}'}") from None
        from rescale.console import PACKAGE

        wanted = f"'{PACKAGE}[{extra}]'" if extra else PACKAGE
        raise MissingExtraError(f"{module} not installed: pip install {wanted}") from None
    except Exception as e:  # packages raise classes of several kinds where a shared library is missing or another one's
        cause = f"{type(e).__name__}: {e}"
        raise BackendError(f"{module}: installed, but cannot be imported: {cause}{instead and f'; {instead}'}") from None
