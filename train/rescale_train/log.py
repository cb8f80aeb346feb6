"""The log of a run: one JSON record a line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from rescale.files import atomic_write


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log. What is none is ignored: a last line cut short by a kill, what a power failure left of the last ones."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def trim_log(path: Path, step: int) -> None:
    """Drop records after `step`, which a resumed run writes again; of a run that starts, at step 0, all."""
    if path.exists():
        kept = [r for r in read_log(path) if step and r["step"] <= step]
        atomic_write(path, "".join(json.dumps(r) + "\n" for r in kept).encode())
