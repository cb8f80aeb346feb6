"""`python -m rescale_train`, and what the command `rescale-train` calls."""

from __future__ import annotations

from rescale import start


def main() -> int:
    """Run the command line."""
    return start.run("rescale_train.cli")


if __name__ == "__main__":
    raise SystemExit(main())
