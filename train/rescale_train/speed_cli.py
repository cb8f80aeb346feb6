"""`rescale-train speed`: what a step takes here, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale.cli_options import Threads
from rescale.console import print_json, progress_bar, require
from rescale.files import atomic_write
from rescale.json_text import as_json
from rescale.threads import usable_threads
from rescale_train.options import EXTRA, Device, Overrides, RecipeName, pick_device, recipe_of


def speed(
    recipe: RecipeName = "dlv_irn_a_x2_lite",
    steps: Annotated[int, typer.Option(help="Measured steps of each variant.", min=1)] = 10,
    compile_: Annotated[str, typer.Option("--compile", help="Also measure torch.compile in this mode; none: do not.")] = "none",
    set_: Overrides = None,
    device: Device = "auto",
    threads: Threads = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON to this file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure training steps: milliseconds, GFLOP/s and their share of a matrix product, for plain PyTorch up to the recipe."""
    require(EXTRA, "train")
    import torch

    from rescale_train.speed import WARM_UP, compiled, matmul_peak, measure, table, variants

    plan = recipe_of(recipe, set_)
    where = pick_device(device)
    count = threads or usable_threads()
    torch.set_num_threads(count)
    rows = variants(plan, where, count)
    if compile_ != "none":
        rows.append(compiled(plan, compile_, count))
    peak = matmul_peak(where)
    with progress_bar(len(rows) * (WARM_UP + steps)) as advance:
        records = list(measure(rows, where, steps, advance))
    machine = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{count} CPU thread(s)"
    report = {"recipe": recipe, "device": machine, "torch": torch.__version__, "matmul": peak, "variants": records}
    # First: minutes of measuring are not lost where the file cannot be written.
    print_json(report) if json_ else print(f"{recipe}, {machine}, PyTorch {torch.__version__}\n\n{table(records, peak)}")
    if out is not None:
        atomic_write(out, as_json(report).encode())
