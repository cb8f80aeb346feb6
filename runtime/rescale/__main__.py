"""`python -m rescale`, and what the command `rescale` calls."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line. Ctrl-C is told in one line also while the command's modules are still being loaded."""
    try:
        from rescale.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
