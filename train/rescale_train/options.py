"""Options that commands of the trainer share, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescale.errors import RescaleError

if TYPE_CHECKING:
    import torch

EXTRA = ("torch", "safetensors")
"""What every command of the trainer needs installed."""

HOLDOUT = 8
"""Training pictures that a run holds out where nothing else is said; `rescale-train ship` measures on the same."""

RecipeName = Annotated[str, typer.Argument(help="Name of a shipped recipe, or a .toml file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a value: train.steps=2000.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0: all this process may use.", min=0)]


def overrides_of(items: list[str] | None) -> dict[str, str]:
    """Values of ``--set KEY=VALUE``, by key."""
    overrides = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes KEY=VALUE, got {item!r}")
        overrides[key] = value
    return overrides


def pick_device(name: str) -> torch.device:
    """The torch device of a name.

    Raises:
        RescaleError: CUDA was asked for and is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RescaleError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RescaleError(f"--device {name}: this PyTorch ({torch.__version__}) sees no CUDA device; use --device cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def spread(paths: list[Path], count: int) -> list[Path]:
    """`count` paths spread evenly over a list, always the same ones; at most half of it."""
    count = min(count, len(paths) // 2)
    return [paths[(2 * i + 1) * len(paths) // (2 * count)] for i in range(count)]
