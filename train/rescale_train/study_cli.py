"""`rescale-train study`: several short runs and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rescale.batch import remove_leftovers
from rescale.cli_options import Threads
from rescale.console import print_json, require, warn
from rescale.errors import InputError
from rescale.threads import usable_threads
from rescale_train.options import EXTRA, Device, held_of, named_sets, pick_device, stop_on_signals

HELD = "held"
"""The set of held-out training pictures in a study's results."""


def study(
    name: Annotated[str, typer.Argument(help="Name of a shipped study, or a .toml file; `list` lists them.", metavar="STUDY")],
    data: Annotated[list[Path] | None, typer.Option(help="Folder of training pictures; repeat for several.")] = None,
    measure: Annotated[
        list[Path] | None, typer.Option(help="Folder of pictures to measure on, none of which is trained on; repeat for several.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs, study.json and study.md.")] = Path("runs/study"),
    holdout: Annotated[
        int,
        typer.Option(
            help="Training pictures held out and measured on, at most half of them; with --init-from those that these weights "
            "were not trained on, if they name them.",
            min=1,
        ),
    ] = 16,
    init_from: Annotated[
        str | None,
        typer.Option(help="Weights that every arm starts from, a file or shipped ones; a smaller network grows into the arm's."),
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Run only this arm; repeat for several.")] = None,
    device: Device = "auto",
    threads: Threads = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train the arms of a study one after the other and compare them.

    Stopped and started again it goes on where it was; what other arms reached, in --out, stays in the results.
    """
    require(EXTRA, "train")
    import torch

    from rescale_train.data import (
        by_content,
        find_pictures,
        least_side,
        load_all,
        load_held,
        load_measured,
        pictures_digest,
        too_small,
        training_pictures,
    )
    from rescale_train.lock import sole_writer
    from rescale_train.loop import DivergedError, Options
    from rescale_train.shipped import weights_file
    from rescale_train.start import read_start
    from rescale_train.study import Setting, load_study, read_results, run_arm, samplers, study_names, table, write_results

    if name == "list":
        for each in study_names():
            print(f"{each}: {load_study(each).title}")
        return
    plan = load_study(name)
    names = [a.name for a in plan.arms]
    for wanted in arm or []:
        if wanted not in names:
            raise typer.BadParameter(f"--arm {wanted}: the study has {', '.join(names)}")
    if not data:
        raise typer.BadParameter("--data: give a folder of training pictures")
    folders = named_sets("--measure", measure or [], HELD)
    where = pick_device(device)
    if where.type == "cpu":
        torch.set_num_threads(threads or usable_threads())
    everything = training_pictures(data)
    measured = {digest for folder in folders.values() for digest in by_content(find_pictures([folder]))}
    found = {digest: path for digest, path in everything.items() if digest not in measured}
    starts = {a.name: read_start(weights_file(init_from), a.recipe) for a in plan.arms} if init_from is not None else {}
    start = starts[names[0]] if starts else None
    named = start.held_out if start is not None else None
    # Of weights that were trained on the others only these tell anything.
    if named is not None and not any(digest in named for digest in found):
        raise InputError(
            f"{init_from}: none of the pictures that it was not trained on is in {', '.join(map(str, data))}, --measure left aside"
        )
    held_paths = held_of(found, named, holdout)
    train_paths = [path for path in found.values() if path not in held_paths]
    kept = [digest for digest, path in everything.items() if path not in train_paths]
    held_out = kept if start is None else start.held_out_of(kept)
    if held_out is None:
        warn(f"{init_from} does not say what it was trained on; if on the pictures to measure on, their figures flatter")
    elif len(held_out) < len(kept):
        few = f"{len(kept) - len(held_out)} of the {len(kept)} pictures to measure on"
        warn(f"{init_from} may have been trained on {few}: it does not name them as held out. Their figures flatter")
    scale = max(a.recipe.net.scale for a in plan.arms)
    held = list(load_held(held_paths, scale).values())
    if not (held and train_paths):
        raise InputError(
            f"{', '.join(map(str, data))}: {len(everything)} picture(s), {len(everything) - len(found)} of them in --measure; "
            f"a study wants at least 2 others, of at least {least_side(scale)} pixels a side"
        )
    if len(held) < len(held_paths):
        warn(f"held out: {too_small(len(held), len(held_paths), scale)}")
    sets = {HELD: held} | {title: load_measured(folder, scale) for title, folder in folders.items()}
    pictures = load_all(train_paths)
    crops = samplers(plan, pictures, where)
    setting = Setting(start.digest if start is not None else None, pictures_digest(pictures))

    def in_order() -> list[dict[str, Any]]:
        return [done[name] for name in names if name in done]

    with sole_writer(out):
        remove_leftovers(out)
        done = read_results(plan, out, setting, sets)
        write_results(plan, in_order(), out, setting)
        torch.set_flush_denormal(True)
        try:
            with stop_on_signals() as stopped_by:
                for chosen in plan.arms:
                    if stopped_by() or (arm and chosen.name not in arm):
                        continue
                    typer.echo(f"{chosen.name} ...", err=True)
                    options = Options(out, save_every=100, validate_every=0, log_every=50, should_stop=lambda: stopped_by() != 0)
                    begin = starts.get(chosen.name)
                    done[chosen.name] = run_arm(chosen, out, crops[chosen.name], held_out, sets, where, options, begin)
                    write_results(plan, in_order(), out, setting)
        finally:
            torch.set_flush_denormal(False)
    print_json({"title": plan.title, "arms": in_order()}) if json_ else print(table(plan, in_order()))
    if stopped_by():
        raise typer.Exit(stopped_by())
    if failed := [r for r in in_order() if "failed" in r]:
        raise DivergedError("; ".join(f"{r['name']}: {r['failed']}" for r in failed))
