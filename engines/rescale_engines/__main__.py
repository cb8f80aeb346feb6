"""`python -m rescale_engines`, and what the command `rescale-engine` calls."""

from __future__ import annotations

from rescale import start


def main() -> int:
    """Run the command line."""
    return start.run("rescale_engines.cli")


if __name__ == "__main__":
    raise SystemExit(main())
