"""`rescale-bench report` and `rescale-bench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale.cli_options import Threads
from rescale.console import require
from rescale_bench.options import MODEL, SCALE, Memory

REGRESSION = 4
"""Exit code of `compare` for a regression."""

THRESHOLD, THRESHOLD_DB = 0.05, 0.02

FOLDER = Path("rescale-report")


def report(
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and report.json.")] = FOLDER,
    bundle: Annotated[Path | None, typer.Option(help="Bundle made by rescale-export. Default: the model below, exported.")] = None,
    model: Annotated[str | None, typer.Option(help=f"Model whose shipped weights are measured. Default: {MODEL}.")] = None,
    scale: Annotated[int | None, typer.Option(help=f"Its scale, 2 or 4. Default: {SCALE}.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Its size, lite, medium or full; without it that which rescale-export takes.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Such as onnxruntime or openvino; repeat for several. Default: all that run.")
    ] = None,
    resolution: Annotated[
        list[str] | None,
        typer.Option(
            help="WIDTHxHEIGHT of the HR for speed; repeat for several. Default: 640x360; 1280x720 and 1920x1080 where time allows."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="About how long to time runs; each has 3 at least.")] = 4.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest size, 5 runs, 2 pictures: a minute, with an encoder's corrections a few.")
    ] = False,
    peers: Annotated[bool, typer.Option(help="Also PyTorch eager, torch.compile and a plain ONNX export, for ratios.")] = True,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="Whether torch.compile is one of these.")] = True,
    threads: Threads = 0,
    memory: Memory = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Speed, parity, PSNR and bytes on this machine as a page, in a few minutes. Exit code 1: something failed or was refused."""
    require(("torch", "onnx", "skimage", "matplotlib", "jinja2"), "bench")
    from rescale_bench.report import Options, run

    options = Options(
        bundle=bundle,
        model=model,
        scale=scale,
        size=size,
        backends=backend or (),
        resolutions=resolution or (),
        minutes=minutes,
        quick=quick,
        peers=peers,
        compiled=compile_,
        threads=threads or None,
        memory=memory,
    )
    if not run(options, out, json_):
        raise typer.Exit(1)


def compare(
    first: Annotated[Path, typer.Argument(help="Report, or what speed, psnr or parity wrote with --out.", metavar="A.json")],
    second: Annotated[Path, typer.Argument(help="Another of the same kind, judged against the first.", metavar="B.json")],
    threshold: Annotated[
        float,
        typer.Option(help="Share of seconds and bytes by which B may be worse; more beyond the spread is a regression.", min=0.0),
    ] = THRESHOLD,
    threshold_db: Annotated[float, typer.Option(help="dB by which B may be worse.", min=0.0)] = THRESHOLD_DB,
    name_a: Annotated[
        str | None, typer.Option(help="Only this competitor of A, such as 'onnxruntime fp32'; with --name-b.")
    ] = None,
    name_b: Annotated[str | None, typer.Option(help="Only this competitor of B, under A's name; A and B may be one file.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Print all figures, not only those that differ.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the comparison as JSON to this file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ratios of two reports with their spread. Exit code 4: B is worse than A beyond threshold and spread."""
    from rescale_bench.compare import Options, run

    if not run(first, second, Options(threshold, threshold_db, name_a, name_b), every, out, json_):
        raise typer.Exit(REGRESSION)
