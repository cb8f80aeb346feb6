"""`python -m rescale_export`, and what the command `rescale-export` calls."""

from __future__ import annotations

from rescale import start


def main() -> int:
    """Run the command line."""
    return start.run("rescale_export.cli")


if __name__ == "__main__":
    raise SystemExit(main())
