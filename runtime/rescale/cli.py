"""Command line of the runtime: down, up, info, verify, strip, doctor."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescale import __version__
from rescale.console import fail, new_app, print_json, progress_bar, run_app, warn
from rescale.errors import InputError, OutputError
from rescale.limits import MAX_PIXELS

if TYPE_CHECKING:
    from rescale.batch import Job
    from rescale.container import Small
    from rescale.rescaler import Rescaler

app = new_app("Downscale pictures with a network that can restore them from the small picture alone.")

STREAM = Path("-")
"""Standard input or output."""

BundleOption = Annotated[Path, typer.Option("--bundle", "-b", envvar="RESCALE_BUNDLE", help="Bundle made by rescale-export.")]
Backend = Annotated[str, typer.Option(help="auto, onnxruntime[:PROVIDER], openvino, tensorrt or tensorrt-rtx.")]
Precision = Annotated[str | None, typer.Option(help="fp32, mixed or fp16; by default mixed on TensorRT and fp32 elsewhere.")]
Exact = Annotated[bool, typer.Option(help="Tiles with the whole receptive field around them; slower.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0: all this process may use.", min=0)]
Memory = Annotated[str | None, typer.Option(help="Budget for the network, such as 2GB; by default half of what is available.")]
TileSide = Annotated[int | None, typer.Option(help="Run in tiles of this many LR pixels a side, instead of a budget.", min=1)]
MaxPixels = Annotated[int, typer.Option(help="Refuse pictures with more pixels than this.", min=1)]
Overwrite = Annotated[bool, typer.Option(help="Folders: make targets again that exist already.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; for folders one line a file.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and stop.")] = False,
) -> None:
    """Options before a command."""


@app.command()
def down(
    source: Annotated[Path, typer.Argument(help="HR picture, folder of them, or - for standard input.")],
    target: Annotated[Path, typer.Argument(help="LR file (.png, .webp, .jxl), folder, or - for standard output.")],
    bundle: BundleOption,
    layout: Annotated[str, typer.Option(help="-A: fourth plane in the alpha channel, a chunk or a strip of rows below.")] = "alpha",
    carrier: Annotated[str, typer.Option(help="Marker and latent as chunk, text, or sidecar (FILE.rescale).")] = "chunk",
    alpha: Annotated[str, typer.Option(help="Real transparency in the source: refuse or keep (losslessly, beside).")] = "refuse",
    container: Annotated[str, typer.Option(help="Folders and standard output: png, webp or jxl.")] = "png",
    raw: Annotated[str | None, typer.Option(help="Frames of WIDTHxHEIGHT, rgb24 in, rgb24 or rgba (-A) out.")] = None,
    overwrite: Overwrite = False,
    backend: Backend = "auto",
    precision: Precision = None,
    threads: Threads = 0,
    memory: Memory = None,
    tile: TileSide = None,
    exact: Exact = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    json_: Json = False,
) -> int:
    """Make small pictures of large ones."""
    from rescale.container import container_for, sidecar_path
    from rescale.files import atomic_write_both
    from rescale.picture import READABLE, open_picture

    _check_paths(source, target)
    if raw is None and source.is_file() and target != STREAM:
        container_for(target)
    with _load(bundle, backend, precision, threads, memory, tile, exact) as net:
        if raw is not None:
            return _frames(net, source, target, raw, upwards=False)

        def make(origin: Path, goal: Path) -> dict[str, Any]:
            small = net.downscale(open_picture(_stream_in(origin), alpha, max_pixels))
            data, sidecar = small.encode(container if goal == STREAM else container_for(goal), layout, carrier)
            if sidecar is None:
                _write(goal, data)
            elif goal == STREAM:
                raise InputError("--carrier sidecar needs a file to lie beside, not standard output")
            else:
                atomic_write_both((sidecar_path(goal), sidecar), (goal, data))
            return _lr_facts(small, net) | {"bytes": len(data) + len(sidecar or b"")}

        return _one_or_all(net, source, target, make, READABLE, f".{container}", overwrite, json_, _down_text)


@app.command()
def up(
    source: Annotated[Path, typer.Argument(help="LR file, folder of them, or - for standard input.")],
    target: Annotated[Path, typer.Argument(help="HR picture (.png, .webp), folder, or - for standard output.")],
    bundle: BundleOption,
    force: Annotated[bool, typer.Option(help="Restore an LR that is not exact, without its auxiliary data.")] = False,
    trust_alpha: Annotated[
        bool,
        typer.Option(help="-A: restore a picture without its marker, or changed, by the alpha channel it has, unchecked."),
    ] = False,
    reference: Annotated[Path | None, typer.Option(help="Original HR picture: print the PSNR against it.")] = None,
    raw: Annotated[str | None, typer.Option(help="Frames; WIDTHxHEIGHT of the HR frames that come out.")] = None,
    overwrite: Overwrite = False,
    backend: Backend = "auto",
    precision: Precision = None,
    threads: Threads = 0,
    memory: Memory = None,
    tile: TileSide = None,
    exact: Exact = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    json_: Json = False,
) -> int:
    """Restore large pictures. Exit code 3: the LR file cannot be restored exactly."""
    from rescale.container import SUFFIXES, Small, State
    from rescale.picture import WRITABLE

    _check_paths(source, target)
    if raw is None and source.is_file() and target != STREAM and target.suffix.lower() not in WRITABLE:
        raise InputError(f"{target}: restored pictures are {' or '.join(WRITABLE)}; name it {target.stem}.png")
    with _load(bundle, backend, precision, threads, memory, tile, exact) as net:
        if raw is not None:
            return _frames(net, source, target, raw, upwards=True)

        def make(origin: Path, goal: Path) -> dict[str, Any]:
            small = Small.open(_stream_in(origin), max_pixels)
            if small.size[0] * small.size[1] * net.bundle.scale**2 > max_pixels:
                raise InputError(f"{small.name}: would become larger than {max_pixels} pixels; raise the limit with --max-pixels")
            state, detail = small.verdict(net.bundle.variant.name, net.bundle.scale, net.bundle.weights)
            picture = net.restore(small, strict=not force, trust_alpha=trust_alpha)
            if trust_alpha and small.unverified_alpha is not None and net.bundle.variant.alpha and state is not State.OTHER_MODEL:
                warn(f"{small.name}: {detail}; restored by its alpha channel, unverified")
            elif state is not State.EXACT:
                warn(f"{small.name}: {detail}; restored without auxiliary data: {_cost(net)}")
            facts = {"model": net.bundle.title, "state": str(state), "hr_size": list(picture.size)}
            if reference is not None:
                facts |= _quality(picture.shown(), reference, net.bundle.scale, max_pixels)
            _write(goal, picture.to_bytes(".png" if goal == STREAM else goal.suffix.lower()))
            return facts

        return _one_or_all(net, source, target, make, list(SUFFIXES), ".png", overwrite, json_, _up_text)


@app.command()
def info(
    source: Annotated[Path, typer.Argument(help="LR file, or - for standard input.")],
    max_pixels: MaxPixels = MAX_PIXELS,
    json_: Json = False,
) -> None:
    """Show what a file carries, without restoring it."""
    from rescale.container import Small

    small = Small.open(_stream_in(source), max_pixels)
    facts: dict[str, Any] = {"source": str(source), "state": str(small.state), "lr_size": list(small.size)}
    if small.detail:
        facts["detail"] = small.detail
    if small.block is not None:
        b = small.block
        facts |= {"model": b.model, "scale": b.scale, "hr_size": list(b.hr_size), "weights": b.weights, "layout": b.layout}
        facts["auxiliary_bits_per_pixel"] = round(small.auxiliary_bits, 3)
        facts["sections"] = {name.decode("latin-1"): len(data) for name, data in b.sections.items()}
        facts["source_mode"] = b.source_mode
    facts["colour"] = [kind.decode("latin-1") for kind, _ in small.colour]
    if json_:
        print_json(facts)
        return
    for key, value in facts.items():
        print(f"{key}: {value}")


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(help="LR file, or - for standard input.")],
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Also check that this bundle made it.")] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    json_: Json = False,
) -> int:
    """Check that a file can be restored exactly. Exit code 0: it can; 3: it cannot."""
    from rescale.bundle import Bundle
    from rescale.container import ADVICE, Small, State
    from rescale.errors import LrFileError

    small = Small.open(_stream_in(source), max_pixels)
    state, detail = small.state, small.detail
    if bundle is not None:
        b = Bundle(bundle)
        b.verify()
        state, detail = small.verdict(b.variant.name, b.scale, b.weights)
    if json_:
        print_json({"source": str(source), "state": str(state), "detail": detail, "restorable": state is State.EXACT})
        return 0 if state is State.EXACT else LrFileError.exit_code
    if state is not State.EXACT:
        raise LrFileError(f"{source}: {state}: {detail}: {ADVICE[state]}", state)
    print(f"{source}: exact")
    return 0


@app.command()
def strip(
    source: Annotated[Path, typer.Argument(help="LR file.")],
    target: Annotated[Path, typer.Argument(help="Ordinary picture to write (.png, .webp), or -.")],
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Write the LR picture without its auxiliary data: nothing is left from which the HR could be restored."""
    from rescale.container import Small, sidecar_path

    _check_paths(source, target)
    if target != STREAM and sidecar_path(target).exists():
        raise OutputError(f"{sidecar_path(target)}: a side-car lies there and would make {target.name} restorable; remove it")
    picture = Small.open(_stream_in(source), max_pixels).without_auxiliary()
    _write(target, picture.to_bytes(".png" if target == STREAM else target.suffix.lower()))


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Also run its golden vectors on what works.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds that one library may take to answer.", min=0.1)] = 60.0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show what this machine has, what works, and how to install what does not. Exit code 0: the default backend works."""
    from rescale.doctor import command

    return command(bundle, json_, limit)


def _load(
    bundle: Path, backend: str, precision: str | None, threads: int, memory: str | None, tile: int | None, exact: bool
) -> Rescaler:
    from rescale.memory import parse_memory
    from rescale.rescaler import load

    budget = None if memory is None else parse_memory(memory)
    return load(bundle, backend, threads or None, budget, None if tile is None else (tile, tile), precision, exact)


def _one_or_all(
    net: Rescaler,
    source: Path,
    target: Path,
    make: Callable[[Path, Path], dict[str, Any]],
    suffixes: list[str],
    new_suffix: str,
    overwrite: bool,
    json_: bool,
    describe: Callable[[dict[str, Any]], str],
) -> int:
    """One file, or every file below a folder."""
    # Standard output belongs to the picture when it is the target.
    out = sys.stderr if target == STREAM else sys.stdout
    if not source.is_dir():
        facts = {"source": str(source), "target": str(target)} | make(source, target)
        print(json.dumps(facts, ensure_ascii=False) if json_ else describe(facts), file=out)
        return 0
    from rescale import batch

    if target == STREAM or target.is_file():
        raise OutputError(f"{target}: a folder is wanted for the results of the folder {source}")
    jobs = batch.plan(source, target, suffixes, new_suffix)
    batch.remove_leftovers(target) if target.is_dir() else None
    found: dict[Job, dict[str, Any]] = {}
    with progress_bar(len(jobs)) as advance:

        def make_job(job: Job) -> None:
            found[job] = make(job.source, job.target)

        def report(job: Job, what: str) -> None:
            advance(job.source.name)
            if json_:
                status, _, message = what.partition(": ")
                line = {"source": str(job.source), "target": str(job.target)} | found.pop(job, {}) | {"status": status}
                print(json.dumps(line | ({"error": message} if message else {}), ensure_ascii=False), flush=True)

        net.network.turn = threading.Lock()
        outcome = batch.run(jobs, make_job, overwrite, report, workers=2)
    for _, error in outcome.errors:
        fail(str(error))
    summary = {"done": outcome.done, "skipped": outcome.skipped, "errors": len(outcome.errors)}
    print(json.dumps(summary) if json_ else ", ".join(f"{n} {what}" for what, n in summary.items()))
    return 1 if outcome.errors else 0


def _frames(net: Rescaler, source: Path, target: Path, raw: str, upwards: bool) -> int:
    """Raw frames from a stream or file to another."""
    from rescale.files import atomic_stream
    from rescale.frames import down_frames, parse_size, up_frames

    size = parse_size(raw)
    run = up_frames if upwards else down_frames
    if target != STREAM and target.is_dir():
        raise OutputError(f"{target}: raw frames go to a file or to -, not to a folder")
    with ExitStack() as stack:
        try:
            # Unbuffered: a thread that waits in a buffered stdin would abort the interpreter at its end.
            where, keep = (0, False) if source == STREAM else (source, True)
            reader = stack.enter_context(open(where, "rb", buffering=0, closefd=keep))
        except OSError as e:
            raise InputError(f"{source}: cannot read: {e.strerror}") from None
        writer = sys.stdout.buffer if target == STREAM else stack.enter_context(atomic_stream(target))
        count = run(net, size, reader, writer)
    print(f"{count} frames", file=sys.stderr)
    return 0


def _lr_facts(small: Small, net: Rescaler) -> dict[str, Any]:
    block = small.block
    assert block is not None
    return {
        "model": net.bundle.title,
        "hr_size": list(block.hr_size),
        "lr_size": list(block.lr_size),
        "auxiliary_bits_per_pixel": round(small.auxiliary_bits, 3),
    }


def _quality(picture: Any, reference: Path, scale: int, max_pixels: int) -> dict[str, Any]:
    from rescale.picture import read_picture
    from rescale.quality import psnr, psnr_y

    original = read_picture(reference, max_pixels)
    if original.shape != picture.shape:
        raise InputError(f"{reference}: {original.shape[1]}x{original.shape[0]}, the restored picture is not of that size")
    figures = {"psnr_y": psnr_y(picture, original, scale), "psnr_rgb": psnr(picture, original)}
    # JSON has no infinity: equal pictures have null.
    return {k: v if math.isfinite(v) else None for k, v in figures.items()} | {"border": scale}


def _cost(net: Rescaler) -> str:
    """What the missing auxiliary data costs, as measured for the weights."""
    card = net.bundle.manifest["weights"].get("card") or {}
    for name, row in card.get("figures", {}).items():
        if isinstance(row.get("hr_psnr_y_forced"), float):
            lost = row["hr_psnr_y"] - row["hr_psnr_y_forced"]
            return f"{lost:.1f} dB below the model's {row['hr_psnr_y']:.1f} dB (Y-PSNR on {name})"
    return "the loss was not measured for these weights"


def _down_text(facts: dict[str, Any]) -> str:
    hr, lr = facts["hr_size"], facts["lr_size"]
    return f"{facts['target']}: {lr[0]}x{lr[1]} from {hr[0]}x{hr[1]}, {facts['model']}, {facts['bytes']} bytes"


def _up_text(facts: dict[str, Any]) -> str:
    text = f"{facts['target']}: {facts['hr_size'][0]}x{facts['hr_size'][1]}, {facts['model']}"
    if "psnr_y" in facts and None in (facts["psnr_y"], facts["psnr_rgb"]):
        text += ", equal to the reference"
    elif "psnr_y" in facts:
        text += f", Y-PSNR {facts['psnr_y']:.2f} dB (BT.601, {facts['border']} px cropped), RGB-PSNR {facts['psnr_rgb']:.2f} dB"
    return text


def _stream_in(path: Path) -> Any:
    return sys.stdin.buffer if path == STREAM else path


def _write(target: Path, data: bytes) -> None:
    from rescale.files import atomic_write

    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        atomic_write(target, data)


def _check_paths(source: Path, target: Path) -> None:
    """Fail before the work, not after it."""
    if source != STREAM and not source.exists():
        raise InputError(f"{source}: no such file")
    if target == STREAM:
        return
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist")
    if target.exists() and source != STREAM and source.samefile(target):
        raise OutputError(f"{target}: is the source itself")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"{target}: lies inside the source folder, whose results would be taken for sources")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `rescale`."""
    return run_app(app, argv)
