"""How a command begins. Light: what a command needs is loaded where Ctrl-C is told in one line."""

from __future__ import annotations

import importlib
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""


def run(module: str) -> int:
    """Load the module of a command and call its ``main``.

    Args:
        module: with a function ``main`` that takes nothing and returns an exit code.

    Returns:
        That exit code, or 130: Ctrl-C came while modules were being loaded.
    """
    try:
        code: int = importlib.import_module(module).main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code
