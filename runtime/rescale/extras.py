"""Libraries that are imported when they are asked for."""

from __future__ import annotations

import importlib
import os
from typing import Any

from rescale.errors import BackendError, MissingExtraError

ENVIRONMENT = {"onnxruntime": {"ORT_DISABLE_TELEMETRY": "1"}}
"""What a library shall find in its environment where nothing is there. ONNX Runtime from 1.32 on keeps an identity of the machine
in the user's cache and sends what it runs on to Microsoft, unless it is told before its first import; ``0`` lets it."""


def set_environment(module: str) -> None:
    """Prepare the first import of a library: what `ENVIRONMENT` says of it, unless it is set already."""
    for name, value in ENVIRONMENT.get(module, {}).items():
        os.environ.setdefault(name, value)


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
    set_environment(module)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or not module.startswith(e.name.split(".")[0]):
            raise BackendError(f"{module}: cannot be imported: {e}{instead and f'; {instead}'}") from None
        from rescale.console import PACKAGE

        wanted = f"'{PACKAGE}[{extra}]'" if extra else PACKAGE
        raise MissingExtraError(f"{module} not installed: pip install {wanted}") from None
    except Exception as e:  # packages raise classes of several kinds where a shared library is missing or another one's
        cause = f"{type(e).__name__}: {e}"
        raise BackendError(f"{module}: installed, but cannot be imported: {cause}{instead and f'; {instead}'}") from None
