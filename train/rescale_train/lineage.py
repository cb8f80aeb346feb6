"""The runs that led to weights, first one first, and the published file that the first of them may have begun with.

A checkpoint and a weights file carry them in their progress (``earlier``), so that neither a card nor a bundle has to be told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rescale.errors import CheckpointError
from rescale.files import read_regular
from rescale.json_text import as_json, without_nan
from rescale_train.config import Recipe
from rescale_train.tables import to_dict

UNKNOWN = "unknown"
"""Licence of weights that nobody has stated one for."""

KEYS = ("weights_sha256", "steps", "minutes", "validation", "recipe")
"""What every run before says of itself; see `stage`."""

MAX_EARLIER = 1 << 18
"""Characters that a file may hold of earlier runs, indented as in cards and manifests; a run has some 2,000."""

MAX_CARD = 1 << 19
"""Bytes of a card that is read."""


def stage(recipe: Recipe, progress: Mapping[str, Any], digest: str | None) -> dict[str, Any]:
    """What later weights say of a run.

    Args:
        recipe, progress: of its checkpoint or weights file.
        digest: `checkpoint.weights_digest` of what it led to.

    Returns:
        ``weights_sha256``, ``steps``, ``minutes``, ``validation`` (dB), ``recipe``; of a published file that was imported
        ``imported`` too, no steps and no recipe of the run, which it does not hold.
    """
    imported = progress.get("imported")
    trained = not isinstance(imported, dict)
    table = to_dict(recipe)
    return {
        "weights_sha256": digest,
        "steps": progress.get("step") if trained else None,
        "minutes": round(seconds / 60.0, 1) if trained and isinstance(seconds := progress.get("seconds"), int | float) else None,
        "validation": {k: rounded(v) for k, v in progress.items() if "_psnr_" in k},
        "recipe": table if trained else {"net": table["net"], "train": None},
        **({} if trained else {"imported": imported}),
    }


def earlier_of(path: Path, progress: Mapping[str, Any], digest: str) -> list[dict[str, Any]]:
    """The runs before that of a file: as its progress has them, or for weights shipped before 2026-11-28 the card beside it.

    Args:
        path: checkpoint or weights file.
        progress: of it, as `checkpoint.read` returned it.
        digest: `checkpoint.weights_digest` of its weights; the card of others is not theirs.
    """
    if "earlier" in progress:
        return list(progress["earlier"])
    return check(card_beside(path, digest).get("earlier", []), str(path.with_suffix(".json")))


def card_beside(path: Path, digest: str) -> dict[str, Any]:
    """The card beside a weights file, as `rescale-train ship` writes it; empty if there is none of these weights.

    Args:
        path: of the weights file.
        digest: `checkpoint.weights_digest` of its weights; the card of others is not theirs.
    """
    try:
        card = json.loads(read_regular(path.with_suffix(".json"), MAX_CARD))
    except (OSError, ValueError, RecursionError):
        return {}
    return without_nan(card) if isinstance(card, dict) and card.get("weights_sha256") == digest else {}


def check(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of earlier runs from a file.

    Raises:
        CheckpointError: it is none, or too long for a card.
    """
    if not (isinstance(value, list) and all(isinstance(s, dict) and all(key in s for key in KEYS) for s in value)):
        raise CheckpointError(f"{name}: not readable: earlier is not a list of runs, each with {', '.join(KEYS)}")
    if len(as_json(value)) > MAX_EARLIER:
        raise CheckpointError(f"{name}: not readable: earlier, {len(value)} runs, has more than {MAX_EARLIER} characters")
    return value


def provenance(progress: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of the origin of weights, from the progress in their file; empty for those of one run alone.

    Returns:
        ``earlier`` (runs before, see `stage`), ``imported`` (a published file, its SHA-256 and layout) and ``licence`` (that of
        the published file among them), as far as there are any.
    """
    earlier, imported = progress.get("earlier", []), progress.get("imported")
    found: dict[str, Any] = {}
    if isinstance(imported, dict):
        found["imported"] = imported
    if earlier:
        found["earlier"] = earlier
    published = [s["imported"] for s in [*earlier, found] if isinstance(s.get("imported"), dict)]
    if published:
        found["licence"] = str(published[0].get("licence", UNKNOWN))
    return found


def rounded(value: Any) -> Any:
    """A figure as cards have it: four decimals."""
    return round(value, 4) if isinstance(value, float) else value
