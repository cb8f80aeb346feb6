"""Weights that ship with the package, each with a card that says how it was made and what it reaches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from rescale.errors import CheckpointError, UnknownModelError
from rescale.variants import check_scale, variant
from rescale_train import checkpoint
from rescale_train.config import DEFAULT_SIZES, Recipe, check_size, size_name
from rescale_train.lineage import UNKNOWN, provenance, rounded, stage
from rescale_train.models import RescalingNet

HEADLINE_SETS = ("BSD100", "Set5", "Kodak")
"""Sets whose PSNR ranks weights of one model and scale, in order of preference."""


@dataclass(frozen=True)
class Shipped:
    """A weights file of the package.

    Attributes:
        model, scale, size: which network.
        path: the safetensors file.
        card: parsed card: data, recipe, steps, machine, seconds, figures.
    """

    model: str
    scale: int
    size: str
    path: Path
    card: dict[str, Any]

    @property
    def title(self) -> str:
        """Short name: model, scale and size."""
        return f"{self.model} x{self.scale} {self.size}"

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Cards of the runs that led to these weights, first one first; each began with what the one before wrote."""
        return [*self.card.get("earlier", []), self.card]

    @property
    def steps(self) -> int:
        """Optimisation steps of all runs that led to these weights."""
        return sum(stage["steps"] or 0 for stage in self.stages)

    def headline(self) -> tuple[str, float]:
        """(set, mean HR Y-PSNR in dB) of the first measured set of `HEADLINE_SETS`; an empty name if there is none."""
        for name in HEADLINE_SETS:
            if name in self.card["figures"]:
                return name, float(self.card["figures"][name]["hr_psnr_y"])
        return "", 0.0


def weights_folder() -> Path:
    """Where the shipped weights lie."""
    return Path(str(resources.files("rescale_train") / "weights"))


def weights_file(name: str) -> Path:
    """A weights file or checkpoint by its path, or shipped weights by name, such as ``dlv_irn_a_x2_medium``.

    A folder of that name is a bundle of those weights; a file goes before shipped weights.

    Raises:
        UnknownModelError: a bare name that is neither; the message lists the names.
    """
    path = Path(name)
    shipped = {p.stem: p for p in sorted(weights_folder().glob("*.safetensors"))}
    if path.is_file() or path.suffix or path.name != name or (path.is_dir() and name not in shipped):
        return path
    if name not in shipped:
        raise UnknownModelError(f"{name}: no such file, and no such shipped weights (there are {', '.join(shipped)})")
    return shipped[name]


def list_shipped(folder: Path | None = None) -> list[Shipped]:
    """All shipped weights, sorted by model, scale and size.

    Raises:
        CheckpointError: a weights file has no readable card.
    """
    found = []
    for path in sorted((folder or weights_folder()).glob("*.safetensors")):
        card_path = path.with_suffix(".json")
        try:
            card = json.loads(card_path.read_text(encoding="utf-8"))
            here = Shipped(card["model"], int(card["scale"]), card["size"], path, card)
            if not (isinstance(card["steps"], int) and here.headline()[1] >= 0.0):
                raise ValueError("no steps or no figures in it")
            found.append(here)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CheckpointError(f"{card_path}: no readable card for {path.name}: {e}") from None
    return sorted(found, key=lambda s: (s.model, s.scale, s.size))


def find_shipped(model: str, scale: int, size: str | None = None, folder: Path | None = None) -> Shipped:
    """The shipped weights of a model and scale: of a named size, or of the first of `DEFAULT_SIZES` that ships; without
    these, those with the best measured PSNR.

    Raises:
        UnknownModelError: unknown model, scale or size, or none shipped; the message lists those that are.
    """
    variant(model)
    check_scale(scale)
    if size is not None:
        check_size(size)
    every = list_shipped(folder)
    fitting = [s for s in every if (s.model, s.scale) == (model, scale) and size in (None, s.size)]
    if not fitting:
        wanted = f"{model} x{scale}" + (f" {size}" if size else "")
        there = ", ".join(s.title for s in every) or "none"
        cure = "train them with rescale-train and give --checkpoint"
        raise UnknownModelError(f"no weights ship for {wanted} (shipped: {there}); {cure}")
    return default_of(fitting)


def default_of(fitting: Sequence[Shipped]) -> Shipped:
    """Which of the weights of one model and scale a user gets who names no size; see `find_shipped`."""
    preferred = {name: -rank for rank, name in enumerate(DEFAULT_SIZES)}
    return max(fitting, key=lambda s: (preferred.get(s.size, -len(preferred)), s.headline()[1]))


def make_card(
    recipe: Recipe,
    progress: dict[str, Any],
    net: RescalingNet,
    report: Path,
    data: str,
    machine: str,
    licence: str = "",
) -> dict[str, Any]:
    """The card of weights, from a report of `rescale-bench psnr --out`.

    Args:
        recipe, progress: of the checkpoint that the weights come from.
        net: with the weights as they ship.
        report: measured on a bundle of exactly these weights.
        data: what it was trained on.
        machine: where it was trained.
        licence: of the weights, where they began with no published ones, whose licence stays.

    Raises:
        CheckpointError: the report is unreadable or of other weights or refined LR pictures; there is a licence already.
    """
    digest = checkpoint.weights_digest(net)
    try:
        results = json.loads(report.read_text(encoding="utf-8"))["results"]
        others = [r["set"] for r in results if r["weights"] != digest]
        refined = [r["set"] for r in results if r.get("refined")]
        figures = {r["set"]: {"count": r["count"], **{k: rounded(v) for k, v in r["mean"].items()}} for r in results}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{report}: not a report of rescale-bench psnr: {e}") from None
    if others:
        raise CheckpointError(f"{report}: {others[0]} was measured on other weights; export these and measure that bundle")
    if refined:
        raise CheckpointError(f"{report}: {refined[0]} was measured with refined LR pictures; a card has figures without --refine")
    config = recipe.net
    origin = provenance(progress)
    if licence and "licence" in origin:
        raise CheckpointError(f"licence: the weights began with published ones, licence {origin['licence']}; leave out --licence")
    run = stage(recipe, progress, digest)
    return {
        "model": config.model,
        "scale": config.scale,
        "size": size_name(config),
        "parameters": sum(p.numel() for p in net.parameters()),
        "weights_sha256": run["weights_sha256"],
        "data": data,
        "machine": machine,
        "torch": torch.__version__,
        **{key: run[key] for key in ("steps", "minutes", "validation", "recipe")},
        "figures": figures,
        "licence": licence or UNKNOWN,
        **origin,
    }
