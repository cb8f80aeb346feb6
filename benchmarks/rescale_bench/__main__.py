"""`python -m rescale_bench`, and what the command `rescale-bench` calls."""

from __future__ import annotations

from rescale import start


def main() -> int:
    """Run the command line."""
    return start.run("rescale_bench.cli")


if __name__ == "__main__":
    raise SystemExit(main())
