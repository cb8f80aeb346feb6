"""Markdown of reports: tables, and names of files and folders, which may hold any character."""

from __future__ import annotations

from collections.abc import Sequence


def plain(text: str) -> str:
    """Text that is neither the end of a cell or line nor the beginning of HTML."""
    return " ".join(text.replace("<", "&lt;").replace("|", "\\|").splitlines())


def row(cells: Sequence[str]) -> str:
    """A row of a table; each cell is `plain`."""
    return f"| {' | '.join(map(plain, cells))} |"


def head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(cells), "|" + "---|" * len(cells)]
