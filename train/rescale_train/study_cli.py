"""`rescale-train study`: several short runs and one table."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from rescale.console import print_json, require
from rescale.errors import InputError, OutputError
from rescale.threads import usable_threads
from rescale_train.options import EXTRA, Device, Threads, pick_device, spread


def study(
    name: Annotated[str, typer.Argument(help="Name of a shipped study, or a .toml file; `list` lists them.", metavar="STUDY")],
    data: Annotated[list[Path] | None, typer.Option(help="Folder of training pictures; repeat for several.")] = None,
    measure: Annotated[list[Path] | None, typer.Option(help="Folder of pictures to measure on; repeat for several.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs, study.json and study.md.")] = Path("runs/study"),
    holdout: Annotated[int, typer.Option(help="Training pictures held out and measured on.", min=1)] = 16,
    arm: Annotated[list[str] | None, typer.Option(help="Run only this arm; repeat for several.")] = None,
    device: Device = "auto",
    threads: Threads = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train the arms of a study one after the other and compare them. Stopped and started again it goes on where it was."""
    require(EXTRA, "train")
    import torch

    from rescale_train.data import find_pictures, load_held, load_picture
    from rescale_train.loop import Options
    from rescale_train.study import load_study, run_arm, samplers, study_names, table, write_results

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
    where = pick_device(device)
    if where.type == "cpu":
        torch.set_num_threads(threads or usable_threads())
    paths = find_pictures(data)
    held_paths = spread(paths, holdout)
    scale = max(a.recipe.net.scale for a in plan.arms)
    held = list(load_held(held_paths, scale).values())
    if not held:
        raise InputError(
            f"{', '.join(map(str, data))}: {len(paths)} picture(s); a study wants at least 2, of at least {8 * scale} pixels a side"
        )
    sets = {folder.name: [load_picture(p) for p in find_pictures([folder])] for folder in measure or []}
    crops = samplers(plan, [load_picture(p) for p in paths if p not in set(held_paths)], where)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{out}: cannot create the folder: {e.strerror}") from None

    stopping = False

    def ask_to_stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    records: list[dict[str, Any]] = []
    previous = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    torch.set_flush_denormal(True)
    try:
        for chosen in plan.arms:
            if stopping or (arm and chosen.name not in arm):
                continue
            typer.echo(f"{chosen.name} ...", err=True)
            options = Options(out, save_every=100, validate_every=0, log_every=50, should_stop=lambda: stopping)
            records.append(run_arm(chosen, out, crops[chosen.name], held, sets, where, options))
            write_results(plan, records, out)
    finally:
        torch.set_flush_denormal(False)
        for s, handler in previous.items():
            signal.signal(s, handler)
    print_json({"title": plan.title, "arms": records}) if json_ else print(table(plan, records))
    if stopping:
        raise typer.Exit(130)
