"""Command line of the benchmarks."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from rescale.cli_options import Threads
from rescale.console import Version, new_app, progress_bar, require, run_app
from rescale.errors import InputError
from rescale.files import atomic_write
from rescale.json_text import without_nan
from rescale_bench import ladder_cli, psnr_cli, rate_cli, report_cli
from rescale_bench.options import MODEL, SCALE, Memory

app = new_app("Measure bundles: quality against the source, LR fidelity, bytes, speed, survival. Without a command: report.")


@app.callback(invoke_without_command=True)
def _main(context: typer.Context, version: Version = False) -> None:
    """Measure bundles: quality against the source, LR fidelity, bytes, speed, survival. Without a command: report."""
    if context.invoked_subcommand is None:
        report_cli.report()


app.command("psnr")(psnr_cli.psnr)
app.command("rate")(rate_cli.rate)
app.command("report")(report_cli.report)
app.command("compare")(report_cli.compare)
app.command("ladder")(ladder_cli.ladder)


@app.command()
def parity(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles made by rescale-export.", metavar="BUNDLE...")],
    backend: Annotated[
        list[str] | None, typer.Option(help="Such as onnxruntime, half or tensorrt-rtx; repeat for several. Default: all that run.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, mixed or fp16; repeat for several. Default: all that the bundle holds.")
    ] = None,
    max_loss: Annotated[float, typer.Option(help="dB that may be lost against the true HR.", min=0.0)] = 0.02,
    data: Annotated[list[Path] | None, typer.Option(help="Folder of HR pictures to compare as well; repeat for several.")] = None,
    limit: Annotated[int, typer.Option(help="Pictures per folder at most; 0: all.", min=0)] = 0,
    size: Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT of a probe picture; repeat for several.")] = None,
    threads: Threads = 0,
    graph: Annotated[str | None, typer.Option(help="Which graph Polygraphy's files are of. Default: downscale.")] = None,
    save_inputs: Annotated[Path | None, typer.Option(help="Write the golden inputs as Polygraphy's, and stop.")] = None,
    save_outputs: Annotated[Path | None, typer.Option(help="Write PyTorch's outputs as Polygraphy's, and stop.")] = None,
    load_outputs: Annotated[Path | None, typer.Option(help="Judge what polygraphy run --save-outputs wrote, and stop.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON to this file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Whether backends and precisions give PyTorch's pictures, in grey levels and dB. Exit code 1: the gate refuses one."""
    from rescale_bench import parity_cli

    options = parity_cli.Options(backend or [], precision or [], max_loss, data or [], limit, size or [], threads or None)
    files = parity_cli.Files(graph, save_inputs, save_outputs, load_outputs)
    if not parity_cli.run(bundles, options, files, out, json_):
        raise typer.Exit(1)


@app.command()
def speed(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundles made by rescale-export. Default: the model below.", metavar="[BUNDLE...]")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help=f"Model to export and measure; repeat for several. Default: {MODEL}.")
    ] = None,
    scale: Annotated[list[int] | None, typer.Option(help=f"Its scale, 2 or 4; repeat for several. Default: {SCALE}.")] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Its size, lite, medium or full, with random weights where none ship; repeat for several. Default: that which"
            " rescale-export takes, or lite where none ship."
        ),
    ] = None,
    resolution: Annotated[
        list[str] | None, typer.Option(help="WIDTHxHEIGHT of the HR; repeat for several. Default: 1280x720.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Such as onnxruntime or openvino; repeat for several. Default: all that run.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, mixed or fp16; repeat for several. Default: fp32, off ONNX Runtime mixed too.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each after the warm-up; 0: 5, in a sweep 3.", min=0)] = 0,
    threads: Threads = 0,
    peers: Annotated[bool, typer.Option(help="Also PyTorch eager, torch.compile and a plain ONNX export, for ratios.")] = True,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="Whether torch.compile is one of these.")] = True,
    memory: Memory = None,
    sizes_sweep: Annotated[
        bool, typer.Option("--sizes-sweep", help="Seconds per megapixel from 0.5 to 50 megapixels instead, without peers.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(help="Of a sweep: sizes beyond so many minutes a bundle are left out; 0: none. Default: 30.", min=0.0),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON to this file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Seconds of decode, run and encode, GFLOP/s, memory, and how many times faster than PyTorch and a plain ONNX export."""
    require(("torch", "onnx"), "bench")
    from rescale_bench import speed as bench
    from rescale_bench.speed_plan import SWEEP_MINUTES, Options

    if minutes is not None and not sizes_sweep:
        raise typer.BadParameter("--minutes is for --sizes-sweep, which is missing; --repeats says how many runs there are")
    if sizes_sweep and resolution:
        raise typer.BadParameter("--resolution is not for --sizes-sweep, which has sizes of its own; leave one of them out")
    options = Options(
        bundles=bundles or (),
        models=model or (),
        scales=scale or (),
        sizes=size or (),
        resolutions=resolution or (),
        backends=backend or (),
        precisions=precision or (),
        repeats=repeats or None,
        threads=threads or None,
        peers=peers,
        compiled=compile_,
        memory=memory,
        sweep=sizes_sweep,
        minutes=SWEEP_MINUTES if minutes is None else minutes,
    )
    if not bench.run(options, out, json_):
        raise typer.Exit(1)


@app.command()
def survival(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles made by rescale-export, one a model.", metavar="BUNDLE...")],
    picture: Annotated[Path | None, typer.Option(help="HR picture. Default: scikit-image's chelsea.")] = None,
    states_only: Annotated[
        list[str] | None, typer.Option(help="Model whose weights are not worth a PSNR, such as irn_m; repeat for several.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the rows as JSON to this file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What programs that re-save, optimise, strip or resize an LR file leave of it, as a Markdown table."""
    require(("skimage", "torch"), "bench")
    from rescale.picture import read_picture
    from rescale.rescaler import load
    from rescale_bench.outputs import check_files
    from rescale_bench.pictures import sample
    from rescale_bench.survival import as_markdown, matrix
    from rescale_bench.survival_tools import TOOLS

    check_files(out)
    with ExitStack() as stack:
        nets = {}
        for path in bundles:
            net = stack.enter_context(load(path))
            if net.bundle.variant.name in nets:
                raise InputError(f"{path}: a second bundle of {net.bundle.variant.name}; give one a model")
            nets[net.bundle.variant.name] = net
        unknown = sorted({*(states_only or ())} - {*nets})
        if unknown:
            raise InputError(f"--states-only {unknown[0]}: no such bundle given; there is {', '.join(nets)}")
        hr = read_picture(picture) if picture else sample("chelsea.png")
        with progress_bar(len(TOOLS)) as advance:
            rows = matrix(nets, hr, states_only=states_only or (), tools=TOOLS, progress=advance)
    text = json.dumps(without_nan(rows), indent=2)
    if out is not None:
        atomic_write(out, (text + "\n").encode())
    print(text if json_ else as_markdown(rows))


@app.command()
def showcase(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by rescale-export.")],
    target: Annotated[Path, typer.Argument(help="PNG or WebP file to write.")],
    picture: Annotated[Path | None, typer.Option(help="HR picture. Default: scikit-image's chelsea.")] = None,
    x: Annotated[int | None, typer.Option(help="Column of the crop's centre; by default the middle.")] = None,
    y: Annotated[int | None, typer.Option(help="Row of the crop's centre; by default the middle.")] = None,
) -> None:
    """Crops side by side: source, LR, bicubic down and up, restored, and the error."""
    require(("skimage", "torch"), "bench")
    from rescale.cli_files import require_writable
    from rescale.picture import read_picture, write_picture
    from rescale.rescaler import load
    from rescale_bench.outputs import check_files
    from rescale_bench.pictures import sample
    from rescale_bench.showcase import showcase as draw

    check_files(target)
    require_writable(target, target, "showcase")
    hr = read_picture(picture) if picture else sample("chelsea.png")
    centre = (hr.shape[1] // 2 if x is None else x, hr.shape[0] // 2 if y is None else y)
    with load(bundle) as net:
        write_picture(target, np.array(draw(net, hr, centre)))
    print(target)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `rescale-bench`."""
    return run_app(app, argv)
