"""Libraries that are imported when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from rescale.errors import BackendError, MissingExtraError


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
