"""JSON that every reader takes: ASCII, and neither NaN nor infinity."""

from __future__ import annotations

import json
import math
from typing import Any


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null and "inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    return [without_nan(v) for v in value] if isinstance(value, list | tuple) else value


def as_json(value: Any) -> str:
    """Indented JSON with a last newline."""
    return json.dumps(without_nan(value), indent=2) + "\n"


def as_json_line(value: Any) -> str:
    """JSON on one line, with its newline."""
    return json.dumps(without_nan(value)) + "\n"
