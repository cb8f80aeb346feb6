"""Command line of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale.cli_options import Threads
from rescale.console import Version, new_app, print_json, require, run_app
from rescale_train.importers.command import import_file
from rescale_train.options import EXTRA, HOLDOUT, Device, Overrides, RecipeName, pick_device, recipe_of
from rescale_train.recipe import load_recipe, recipe_names
from rescale_train.ship_cli import ship
from rescale_train.speed_cli import speed
from rescale_train.study_cli import study
from rescale_train.tables import to_dict

app = new_app("Train invertible image rescaling networks.")


@app.callback()
def _main(version: Version = False) -> None:
    """Train invertible image rescaling networks."""


app.command()(study)
app.command()(speed)
app.command()(ship)
app.command("import")(import_file)


HELD_OUT = (
    "Training pictures held out for validation, at most half of them; with --init-from those that these weights were not trained "
    "on, if they name some of them. 0: none."
)


@app.command()
def run(
    recipe: RecipeName,
    data: Annotated[list[Path], typer.Option(help="Folder of training pictures; repeat for several.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint, log and plot.")] = Path("runs/latest"),
    val: Annotated[list[Path] | None, typer.Option(help="Folder of validation pictures instead of held-out ones.")] = None,
    holdout: Annotated[int, typer.Option(help=HELD_OUT, min=0)] = HOLDOUT,
    resume: Annotated[bool, typer.Option(help="Continue from the checkpoint in --out.")] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: a file, or shipped ones such as dlv_irn_a_x2_medium. A smaller network grows into "
            "the recipe's."
        ),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop cleanly after this many minutes; by default never.", min=0.0)
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 500,
    validate_every: Annotated[int, typer.Option(help="Steps between validations; 0: at the end only.", min=0)] = 1000,
    log_every: Annotated[int, typer.Option(help="Steps between log lines.", min=1)] = 50,
    split: Annotated[bool, typer.Option(help="Also write the checkpoint as parts below 15 MB.")] = False,
    set_: Overrides = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Train a recipe. Ctrl-C and SIGTERM stop after the current step with a resumable checkpoint, with exit code 130 or 143."""
    require((*EXTRA, "matplotlib"), "train")
    from rescale_train.loop import Options
    from rescale_train.run import start_run
    from rescale_train.shipped import weights_file

    options = Options(
        out=out,
        max_minutes=max_minutes,
        save_every=save_every,
        validate_every=validate_every,
        log_every=log_every,
        split_parts=split,
    )
    found = recipe_of(recipe, set_)
    start = None if init_from is None else weights_file(init_from)
    stopped_by = start_run(found, data, val or [], holdout, resume, start, pick_device(device), threads, options)
    if stopped_by:
        raise typer.Exit(stopped_by)


@app.command()
def recipes(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the shipped recipes."""
    table = {name: to_dict(load_recipe(name)) for name in recipe_names()}
    if json_:
        print_json(table)
        return
    for name, row in table.items():
        net, train = row["net"], row["train"]
        growth = f"{net['growth']}" + (f" and {net['lr_growth']} at LR" if net["lr_growth"] else "")
        print(f"{name}: {net['model']} x{net['scale']}, blocks {net['blocks']}, growth {growth}, {train['steps']} steps")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `rescale-train`."""
    return run_app(app, argv)
