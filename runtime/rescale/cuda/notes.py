"""What did not go as asked, in words: a fall-back is never silent."""

from __future__ import annotations

import threading

MAX_NOTES = 100


class Notes:
    """Lines of text, each once, the first `MAX_NOTES` of them. Thread-safe."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Say something."""
        with self._lock:
            if len(self._lines) < MAX_NOTES:
                self._lines[line] = None

    def lines(self) -> tuple[str, ...]:
        """All that was said, in order."""
        with self._lock:
            return tuple(self._lines)
