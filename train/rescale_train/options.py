"""Options that commands of the trainer share, and what they mean."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescale.cli_options import checked
from rescale.console import INTERRUPTED, TERMINATED
from rescale.errors import RescaleError

if TYPE_CHECKING:
    import torch

    from rescale_train.config import Recipe

EXTRA = ("torch", "safetensors")
"""What every command of the trainer needs installed."""

HOLDOUT = 8
"""Training pictures that a run holds out where nothing else is said; `rescale-train ship` measures on the same."""


def _check_name(recipe: str) -> None:
    from rescale_train.recipe import load_recipe, recipe_names

    if Path(recipe).suffix != ".toml" and recipe not in recipe_names():
        load_recipe(recipe)


RecipeName = Annotated[str, typer.Argument(callback=checked(_check_name), help="Name of a shipped recipe, or a .toml file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a value: train.steps=2000.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def overrides_of(items: list[str] | None) -> dict[str, str]:
    """Values of ``--set KEY=VALUE``, by key."""
    overrides = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes KEY=VALUE, got {item!r}")
        overrides[key] = value
    return overrides


def recipe_of(name_or_path: str, items: list[str] | None) -> Recipe:
    """A recipe with the values of ``--set KEY=VALUE``.

    Raises:
        typer.BadParameter: these are what is wrong.
        RescaleError: the recipe is wrong without them too.
    """
    from rescale_train.recipe import load_recipe

    overrides = overrides_of(items)
    try:
        return load_recipe(name_or_path, overrides)
    except RescaleError as e:
        load_recipe(name_or_path)
        raise typer.BadParameter(str(e)) from None


def pick_device(name: str) -> torch.device:
    """The torch device of a name.

    Raises:
        RescaleError: no device that the trainer knows, or CUDA was asked for and is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise RescaleError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RescaleError(f"--device {name}: this PyTorch ({torch.__version__}) sees no CUDA device; use --device cpu")
    if device.type == "cuda" and device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise RescaleError(f"--device {name}: one device for several processes; give --device cuda, and each takes one of its own")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise RescaleError(f"--device {name}: there are {torch.cuda.device_count()} CUDA device(s), numbered from 0")
    return device


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int]]:
    """Ctrl-C and SIGTERM do not interrupt the block. Yields a function that says what exit code they ask for; 0: none came."""
    code = 0

    def ask_to_stop(number: int, frame: object) -> None:
        nonlocal code
        code = INTERRUPTED if number == signal.SIGINT else TERMINATED

    previous = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: code
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def spread(paths: list[Path], count: int) -> list[Path]:
    """`count` paths spread evenly over a list, always the same ones; at most half of it."""
    count = min(count, len(paths) // 2)
    return [paths[(2 * i + 1) * len(paths) // (2 * count)] for i in range(count)]


def held_of(found: Mapping[str, Path], named: Container[str] | None, count: int) -> list[Path]:
    """Training pictures to hold out.

    Args:
        found: pictures by `data.file_digest`.
        named: digests that the weights to go on with were not trained on; None: they do not say.
        count: how many to `spread` where none of `named` is there; 0: hold out none.
    """
    kept = [path for digest, path in found.items() if digest in (named or ())] if count else []
    return kept or spread(list(found.values()), count)


def named_sets(option: str, folders: Iterable[Path], taken: str) -> dict[str, Path]:
    """Folders of pictures to measure on by the names of their sets, which are the folders'.

    Args:
        option: that the folders come from.
        folders: any paths of them, also `.`.
        taken: name of a set that is there without a folder.

    Raises:
        typer.BadParameter: two sets would have one name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in found or name == taken:
            raise typer.BadParameter(f"{option}: two sets would be called {name!r}; the folder's name is the set's")
        found[name] = folder
    return found
