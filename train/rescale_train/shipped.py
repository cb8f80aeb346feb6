"""Weights that ship with the package, each with a card that says how it was made and what it reaches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rescale.errors import CheckpointError, UnknownModelError
from rescale.variants import check_scale, variant
from rescale_train.config import SIZES

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

    def headline(self) -> tuple[str, float]:
        """(set, mean HR Y-PSNR in dB) of the first measured set of `HEADLINE_SETS`."""
        for name in HEADLINE_SETS:
            if name in self.card["figures"]:
                return name, float(self.card["figures"][name]["hr_psnr_y"])
        return "none", 0.0


def weights_folder() -> Path:
    """Where the shipped weights lie."""
    return Path(str(resources.files("rescale_train") / "weights"))


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
            found.append(Shipped(card["model"], int(card["scale"]), card["size"], path, card))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CheckpointError(f"{card_path}: no readable card for {path.name}: {e}") from None
    return found


def find_shipped(model: str, scale: int, size: str | None = None, folder: Path | None = None) -> Shipped:
    """The shipped weights of a model and scale: of a named size, or those with the best measured PSNR.

    Raises:
        UnknownModelError: unknown model, scale or size, or none shipped; the message lists those that are.
    """
    variant(model)
    check_scale(scale)
    if size is not None and size not in SIZES:
        raise UnknownModelError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
    every = list_shipped(folder)
    fitting = [s for s in every if (s.model, s.scale) == (model, scale) and size in (None, s.size)]
    if not fitting:
        wanted = f"{model} x{scale}" + (f" {size}" if size else "")
        there = ", ".join(s.title for s in every) or "none"
        cure = "train them with rescale-train and give --checkpoint"
        raise UnknownModelError(f"no weights ship for {wanted} (shipped: {there}); {cure}")
    return max(fitting, key=lambda s: s.headline()[1])
