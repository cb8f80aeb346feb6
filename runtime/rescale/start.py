"""How a command begins. Light: what a command needs is loaded where Ctrl-C is told in one line."""

from __future__ import annotations

import importlib
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""

TELLS_IN_JSON = "rescale.cli"
"""Command whose errors are lines of JSON too, if it is asked for them."""


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
        if module == TELLS_IN_JSON and wants_json(sys.argv[1:]):
            print(f'{{"status": "error", "error": "interrupted", "exit_code": {INTERRUPTED}}}', flush=True)
        return INTERRUPTED
    return code


def wants_json(argv: list[str]) -> bool:
    """Whether ``--json`` is among the options: wrong words, and Ctrl-C, end a command before it knows them."""
    return "--json" in (argv[: argv.index("--")] if "--" in argv else argv)
