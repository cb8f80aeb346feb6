"""`python -m rescale`, and what the command `rescale` calls."""

from __future__ import annotations

from rescale import start


def main() -> int:
    """Run the command line."""
    return start.run("rescale.cli")


if __name__ == "__main__":
    raise SystemExit(main())
