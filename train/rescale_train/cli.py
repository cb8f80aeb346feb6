"""Command line of the trainer."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescale.console import new_app, print_json, require, run_app, warn
from rescale.errors import CheckpointError, InputError, OutputError
from rescale.threads import usable_threads
from rescale_train.config import Recipe, to_dict
from rescale_train.importers.command import import_file
from rescale_train.options import (
    EXTRA,
    HOLDOUT,
    Device,
    Overrides,
    RecipeName,
    Threads,
    held_of,
    overrides_of,
    pick_device,
    stop_on_signals,
)
from rescale_train.recipe import load_recipe, recipe_names
from rescale_train.ship_cli import ship
from rescale_train.speed_cli import speed
from rescale_train.study_cli import study

if TYPE_CHECKING:
    from rescale_train.loop import Options, Trainer

app = new_app("Train invertible image rescaling networks.")
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
        Path | None, typer.Option(help="Weights to start from; a smaller network grows into the recipe's.")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop cleanly after this many minutes.", min=0.0)] = None,
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

    options = Options(
        out=out,
        max_minutes=max_minutes,
        save_every=save_every,
        validate_every=validate_every,
        log_every=log_every,
        split_parts=split,
    )
    start_run(load_recipe(recipe, overrides_of(set_)), data, val or [], holdout, resume, init_from, device, threads, options)


def start_run(
    recipe: Recipe,
    data: list[Path],
    val: list[Path],
    holdout: int,
    resume: bool,
    init_from: Path | None,
    device_name: str,
    threads: int,
    options: Options,
) -> None:
    """Set a run up on this process (or this process of a torchrun group) and carry it out."""
    import torch
    import torch.distributed as dist

    from rescale_train import checkpoint
    from rescale_train.data import Sampling, by_content, digests_digest, find_pictures, load_held, load_picture, too_small
    from rescale_train.loop import Trainer
    from rescale_train.plot import PLOT, loss_plot
    from rescale_train.start import read_start

    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = pick_device(device_name)
    torch.set_flush_denormal(True)
    if device.type == "cpu":
        torch.set_num_threads(threads or max(1, usable_threads() // world))
    target = options.out / "checkpoint.safetensors"
    source = target if target.exists() else target.with_name(target.name + ".part00")
    if not resume and source.exists():
        raise OutputError(f"{source}: exists; add --resume to continue it, or choose another --out")
    if resume and init_from is not None:
        raise CheckpointError("--resume and --init-from exclude each other")
    if resume and not source.exists():
        raise CheckpointError(f"{target}: no checkpoint to resume; leave out --resume to start, or give the run's --out")
    start = None if init_from is None else read_start(init_from, recipe)
    named = None if start is None else start.held_out
    if resume:
        named = checkpoint.held_out(checkpoint.read(source), str(source))
        # A run that held out nothing trained on all that others would be held out of.
        holdout = 0 if named == [] else holdout
    # The plot of a run whose folder lies below --data is no picture to train on.
    plot = options.out.resolve() / PLOT
    found = by_content(p for p in find_pictures(data) if p.resolve() != plot)
    held_paths = find_pictures(val) if val else held_of(found, named, holdout)
    held_out = list(by_content(held_paths))
    trained_on = {digest: p for digest, p in found.items() if digest not in held_out}
    train_paths = list(trained_on.values())
    if not train_paths:
        whose = "in --val" if val else f"among those that {init_from or source} names as held out"
        raise InputError(f"{', '.join(map(str, data))}: nothing to train on: all pictures are {whose}; give others as well")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{options.out}: cannot create the folder: {e.strerror}") from None
    if rank == 0:
        print(f"{recipe.net.model} x{recipe.net.scale}: {len(train_paths)} pictures to train on, {len(held_paths)} held out")
        warmup, steps = recipe.train.warmup, recipe.train.steps
        if warmup >= steps:
            warn(f"train.warmup: {warmup} of {steps} steps; the learning rate does not fall. Give --set train.warmup={steps // 10}")
    held = list(load_held(held_paths, recipe.net.scale).values())
    if len(held) < len(held_paths):
        why = too_small(len(held), len(held_paths), recipe.net.scale)
        if val:
            raise InputError(f"{', '.join(map(str, val))}: {why}; take them out")
        if rank == 0:
            warn(f"held out: {why}")
    if start is not None:
        told = start.held_out_of(held_out)
        if start.held_out is None and held_out and rank == 0:
            warn(f"validation: {init_from} does not say what it was trained on; if on these pictures, their figures flatter")
        if len(told) < len(held_out) and rank == 0:
            warn(
                f"validation: {init_from} may have been trained on {len(held_out) - len(told)} of {len(held_out)} pictures: it "
                "does not name them as held out. Their figures flatter, and rescale-train ship leaves them out"
            )
        held_out = told
        if start.grown and rank == 0:
            print(start.grown)
    photographs = [load_picture(p) for p in train_paths]
    sampler = Sampling.of(recipe).sampler(photographs, device)

    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    trainer: Trainer | None = None
    try:
        trainer = Trainer(recipe, device, rank, world, start, pretrain=not resume)
        trainer.held_out = held_out
        trainer.trained_on = digests_digest(trained_on)
        if resume:
            trainer.resume(source)
        result, stopped_by = carry_out(trainer, sampler, held, options)
        if world > 1:
            dist.barrier()
    finally:
        torch.set_flush_denormal(False)
        if world > 1:
            # The wrapped network holds the process group in a cycle; left to the interpreter's end, the group's threads
            # would abort the process there.
            trainer = None
            dist.destroy_process_group()
            gc.collect()
    if rank == 0:
        loss_plot(options.out / "log.jsonl", options.out / PLOT)
        print_json(result | {"checkpoint": str(target)})
    if stopped_by and not result["finished"]:
        raise typer.Exit(stopped_by)


def carry_out(trainer: Trainer, sampler: Any, held: list[Any], options: Options) -> tuple[dict[str, Any], int]:
    """Run the trainer with a progress bar (on a terminal) or plain lines, stopping cleanly on signals.

    Returns:
        What `Trainer.run` does, and the exit code that a signal asked for; 0 without one.
    """
    with stop_on_signals() as stopped_by:
        options.should_stop = lambda: stopped_by() != 0
        if trainer.rank == 0 and sys.stderr.isatty():
            return with_progress_bar(trainer, sampler, held, options), stopped_by()
        if trainer.rank == 0:
            options.report = plain_report(trainer.recipe.train.steps)
        return trainer.run(sampler, held, options), stopped_by()


def plain_report(steps: int) -> Callable[[dict[str, Any]], None]:
    """Progress as lines, for logs and pipes. A reader that goes away, or a full disk, does not end a run: the lines stop."""
    broken = False

    def report(record: dict[str, Any]) -> None:
        nonlocal broken
        if broken:
            return
        values = " ".join(f"{k} {v:.6g}" for k, v in record.items() if k != "step")
        try:
            print(f"step {record['step']}/{steps} {values}", flush=True)
        except OSError as e:
            broken = True
            with contextlib.suppress(OSError):
                warn(f"output: {e.strerror or e}; the run goes on, its log is log.jsonl in --out")

    return report


def with_progress_bar(trainer: Trainer, sampler: Any, held: list[Any], options: Options) -> dict[str, Any]:
    """Progress as a bar with the remaining time and the newest figures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown: dict[str, Any] = {}
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=trainer.recipe.train.steps, completed=trainer.step)

        def report(record: dict[str, Any]) -> None:
            shown.update({k: v for k, v in record.items() if k in ("total", "ms", "hr_psnr_y", "hr_psnr_rgb", "lr_psnr_y")})
            text = " ".join(f"{k} {v:.4g}" for k, v in shown.items())
            bar.update(task, completed=record["step"], description=text)

        options.report = report
        return trainer.run(sampler, held, options)


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
