"""A training run from its pictures to its result, on this process or this process of a torchrun group."""

from __future__ import annotations

import contextlib
import gc
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from rescale.batch import remove_leftovers
from rescale.console import print_json, warn
from rescale.errors import CheckpointError, InputError, OutputError, RescaleError
from rescale.threads import usable_threads
from rescale_train import checkpoint
from rescale_train.config import Recipe
from rescale_train.data import (
    Sampling,
    by_content,
    digests_digest,
    find_pictures,
    load_all,
    load_held,
    too_small,
    training_pictures,
)
from rescale_train.lock import sole_writer
from rescale_train.loop import Options, Trainer
from rescale_train.options import held_of
from rescale_train.plot import PLOT, loss_plot
from rescale_train.progress import carry_out
from rescale_train.start import Start, read_start


@dataclass(frozen=True)
class Division:
    """Pictures to train on and to validate on, by `data.file_digest`; none is both."""

    train: dict[str, Path]
    held: dict[str, Path]


def divide(data: list[Path], val: list[Path], holdout: int, weights: Path, named: list[str] | None, plot: Path) -> Division:
    """Divide what is below `data`, unless `val` has pictures of its own to validate on.

    Args:
        data, val: folders.
        holdout: pictures of `data` to hold out.
        weights: to go on with.
        named: digests of the pictures that `weights` were not trained on; None: they do not say.
        plot: the run's own picture, which may lie below `data` and is none of them.

    Raises:
        InputError: a folder has no picture, a file cannot be read, or nothing is left to train on.
    """
    found = training_pictures(data, plot)
    if val:
        held = by_content(find_pictures(val))
    else:
        chosen = set(held_of(found, named, holdout))
        held = {digest: path for digest, path in found.items() if path in chosen}
    train = {digest: path for digest, path in found.items() if digest not in held}
    if not train:
        whose = "in --val" if val else f"among those that {weights} names as held out"
        raise InputError(f"{', '.join(map(str, data))}: nothing to train on: all pictures are {whose}; give others as well")
    return Division(train, held)


def start_run(
    recipe: Recipe,
    data: list[Path],
    val: list[Path],
    holdout: int,
    resume: bool,
    init_from: Path | None,
    device: torch.device,
    threads: int,
    options: Options,
) -> int:
    """Set a run up and carry it out; for the arguments see `rescale-train run --help`.

    Returns:
        The exit code that a signal asked for before the last step; 0 without one.

    Raises:
        CheckpointError, ConfigError, InputError, OutputError: what was given cannot be run, or what it makes not be written.
        RescaleError: another process of the group ended.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.set_flush_denormal(True)
    if device.type == "cpu":
        torch.set_num_threads(threads or max(1, usable_threads() // world))
    target = options.out / "checkpoint.safetensors"
    source = _source(target)
    if not resume:
        _refuse_existing(source)
    if resume and init_from is not None:
        raise CheckpointError("--resume and --init-from exclude each other")
    if resume and not source.exists():
        raise CheckpointError(f"{target}: no checkpoint to resume; leave out --resume to start, or give the run's --out")
    start = None if init_from is None else read_start(init_from, recipe)
    named = None if start is None else start.held_out
    if resume:
        named = checkpoint.validated_on(checkpoint.read(source), str(source))
        # A run that held out nothing trained on all that others would be held out of.
        holdout = 0 if named == [] else holdout
    pictures = divide(data, val, holdout, init_from or source, named, options.out.resolve() / PLOT)
    with sole_writer(options.out) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            if not resume:
                # Another run may have begun and ended while the pictures were looked at.
                _refuse_existing(_source(target))
            remove_leftovers(options.out)
        try:
            held = list(load_held(pictures.held.values(), recipe.net.scale).values())
        except InputError as e:
            load_all(pictures.train.values(), before=[str(e)])  # raises: what is wrong with the others is told with it
            raise
        if len(held) < len(pictures.held) and val:
            why = too_small(len(held), len(pictures.held), recipe.net.scale)
            raise InputError(f"{', '.join(map(str, val))}: {why}; take them out")
        if rank == 0:
            _tell(recipe, pictures, len(held), init_from, start)
        sampler = Sampling.of(recipe).sampler(load_all(pictures.train.values()), device)
        if world > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        trainer: Trainer | None = None
        try:
            trainer = Trainer(recipe, device, rank, world, start, pretrain=not resume)
            trainer.held_out = list(pictures.held) if start is None else start.held_out_of(pictures.held)
            trainer.validated_on = list(pictures.held)
            trainer.trained_on = digests_digest(pictures.train)
            if resume:
                trainer.resume(source)
            result, stopped_by = carry_out(trainer, sampler, held, options)
            if world > 1:
                dist.barrier()
        except RuntimeError as e:
            if world == 1 or not is_loss_of_another(e):
                raise
            cause = next(iter(str(e).splitlines()), "")
            raise RescaleError(f"process {rank}: another process of this run ended; its own message says why ({cause})") from None
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
    return 0 if result["finished"] else stopped_by


def is_loss_of_another(error: RuntimeError) -> bool:
    """Whether an error says that another process of the group is gone: gloo has no class of its own for that."""
    return isinstance(error, dist.DistError) or ("gloo" in str(error) and "peer" in str(error))


def _source(target: Path) -> Path:
    """What a run is resumed from: its checkpoint, or the first of its parts."""
    return target if target.exists() else target.with_name(target.name + ".part00")


def _refuse_existing(source: Path) -> None:
    if source.exists():
        raise OutputError(f"{source}: exists; add --resume to continue it, or choose another --out")


def _tell(recipe: Recipe, pictures: Division, validated: int, init_from: Path | None, start: Start | None) -> None:
    """Say what the run is made of, and what its figures would not show."""
    print(f"{recipe.net.model} x{recipe.net.scale}: {len(pictures.train)} pictures to train on, {len(pictures.held)} held out")
    warmup, steps = recipe.train.warmup, recipe.train.steps
    if warmup >= steps:
        warn(f"train.warmup: {warmup} of {steps} steps; the learning rate does not fall. Give --set train.warmup={steps // 10}")
    if validated < len(pictures.held):
        warn(f"held out: {too_small(validated, len(pictures.held), recipe.net.scale)}")
    if start is None:
        return
    if start.held_out is None and pictures.held:
        warn(f"validation: {init_from} does not say what it was trained on; if on these pictures, their figures flatter")
    told = start.held_out_of(pictures.held)
    if told is not None and (unnamed := len(pictures.held) - len(told)):
        warn(
            f"validation: {init_from} may have been trained on {unnamed} of {len(pictures.held)} pictures: it does not name them "
            "as held out. Their figures flatter, and rescale-train ship leaves them out"
        )
    if start.grown:
        print(start.grown)
