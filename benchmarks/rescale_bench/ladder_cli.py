"""`rescale-bench ladder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale.cli_options import Threads
from rescale.console import progress_bar, require
from rescale.files import atomic_write


def ladder(
    study: Annotated[Path, typer.Argument(help="Folder that `rescale-train study ladder` filled.")],
    backend: Annotated[str, typer.Option(help="As for rescale down.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32, mixed or fp16.")] = "fp32",
    resolution: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the HR picture.")] = "1280x720",
    repeats: Annotated[int, typer.Option(help="Measured runs of each network and direction.", min=1)] = 5,
    threads: Threads = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also write the plot as SVG to this file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Cost and quality of a study's networks, one table and plot: which size to take."""
    require(("torch", "onnx", "matplotlib"), "bench")
    from rescale.json_text import as_json
    from rescale_bench import ladder as rungs
    from rescale_bench.outputs import check_files
    from rescale_bench.sizes import parse_size

    check_files(out, plot)
    height, width = parse_size(resolution, "--resolution")
    arms = len(rungs.read_study(study)["arms"])
    with progress_bar(arms * (repeats + 2)) as told:
        report = rungs.measure(study, backend, precision, (width, height), repeats, threads or None, told)
    if out is not None:
        atomic_write(out, as_json(report).encode())
    if plot is not None:
        atomic_write(plot, rungs.plot(report))
    print(as_json(report) if json_ else rungs.markdown(report), end="")
