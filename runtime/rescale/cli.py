"""Command line of the runtime: down, up, info, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rescale.console import new_app, print_json, run_app, warn
from rescale.errors import InputError, OutputError

app = new_app("Downscale pictures with a network that can restore them from the small picture alone.")

BundleOption = Annotated[Path, typer.Option("--bundle", "-b", envvar="RESCALE_BUNDLE", help="Bundle made by rescale-export.")]
Backend = Annotated[str, typer.Option(help="auto or onnxruntime.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0: all this process may use.", min=0)]
MaxPixels = Annotated[int, typer.Option(help="Refuse pictures with more pixels than this.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_MAX_PIXELS = 256_000_000


@app.command()
def down(
    source: Annotated[Path, typer.Argument(help="HR picture.")],
    target: Annotated[Path, typer.Argument(help="LR file to write (.png).")],
    bundle: BundleOption,
    backend: Backend = "auto",
    threads: Threads = 0,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    json_: Json = False,
) -> None:
    """Make the small picture of a large one."""
    from rescale.picture import read_picture
    from rescale.rescaler import load

    _check_target(source, target)
    with load(bundle, backend, threads or None) as net:
        small = net.downscale(read_picture(source, max_pixels))
        small.save(target)
        block = small.block
        assert block is not None
        facts = {
            "source": str(source),
            "target": str(target),
            "model": net.bundle.title,
            "hr_size": list(block.hr_size),
            "lr_size": list(block.lr_size),
            "bytes": target.stat().st_size,
            "auxiliary_bits_per_pixel": round(small.auxiliary_bits, 3),
        }
    if json_:
        print_json(facts)
    else:
        hr, lr = block.hr_size, block.lr_size
        print(f"{target}: {lr[0]}x{lr[1]} from {hr[0]}x{hr[1]}, {facts['model']}, {facts['bytes']} bytes")


@app.command()
def up(
    source: Annotated[Path, typer.Argument(help="LR file.")],
    target: Annotated[Path, typer.Argument(help="HR picture to write (.png).")],
    bundle: BundleOption,
    force: Annotated[bool, typer.Option(help="Restore an LR that is not exact, without its auxiliary data.")] = False,
    reference: Annotated[Path | None, typer.Option(help="Original HR picture: print the PSNR against it.")] = None,
    backend: Backend = "auto",
    threads: Threads = 0,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    json_: Json = False,
) -> None:
    """Restore the large picture. Exit code 3: the LR file cannot be restored exactly."""
    from rescale.container import Small, State
    from rescale.picture import read_picture, write_picture
    from rescale.quality import psnr, psnr_y
    from rescale.rescaler import load

    _check_target(source, target)
    with load(bundle, backend, threads or None) as net:
        small = Small.open(source, max_pixels)
        state, detail = small.verdict(net.bundle.variant.name, net.bundle.scale, net.bundle.weights)
        picture = net.upscale(small, strict=not force)
        if state is not State.EXACT:
            warn(f"{source}: {detail}; restored without auxiliary data, so far below the model's quality")
        write_picture(target, picture)
        facts: dict[str, Any] = {
            "source": str(source),
            "target": str(target),
            "model": net.bundle.title,
            "state": str(state),
            "hr_size": [picture.shape[1], picture.shape[0]],
        }
        scale = net.bundle.scale
    text = f"{target}: {picture.shape[1]}x{picture.shape[0]}, {facts['model']}"
    if reference is not None:
        original = read_picture(reference, max_pixels)
        if original.shape != picture.shape:
            raise InputError(f"{reference}: {original.shape[1]}x{original.shape[0]}, the restored picture is not of that size")
        facts |= {"psnr_y": psnr_y(picture, original, scale), "psnr_rgb": psnr(picture, original)}
        text += f", Y-PSNR {facts['psnr_y']:.2f} dB (BT.601, {scale} px cropped), RGB-PSNR {facts['psnr_rgb']:.2f} dB"
    print_json(facts) if json_ else print(text)


@app.command()
def info(
    source: Annotated[Path, typer.Argument(help="LR file.")],
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    json_: Json = False,
) -> None:
    """Show what a file carries, without restoring it."""
    facts = _facts(source, max_pixels)
    if json_:
        print_json(facts)
        return
    for key, value in facts.items():
        print(f"{key}: {value}")


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(help="LR file.")],
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Also check that this bundle made it.")] = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    json_: Json = False,
) -> int:
    """Check that a file can be restored exactly. Exit code 0: it can; 3: it cannot."""
    from rescale.bundle import Bundle
    from rescale.container import ADVICE, Small, State
    from rescale.errors import LrFileError

    small = Small.open(source, max_pixels)
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


def _facts(source: Path, max_pixels: int) -> dict[str, Any]:
    from rescale.container import Small

    small = Small.open(source, max_pixels)
    facts: dict[str, Any] = {"source": str(source), "state": str(small.state), "lr_size": list(small.size)}
    if small.detail:
        facts["detail"] = small.detail
    if small.block is not None:
        b = small.block
        facts |= {"model": b.model, "scale": b.scale, "hr_size": list(b.hr_size), "weights": b.weights, "layout": b.layout}
        facts["auxiliary_bits_per_pixel"] = round(small.auxiliary_bits, 3)
    return facts


def _check_target(source: Path, target: Path) -> None:
    """Fail before the work, not after it."""
    if not source.exists():
        raise InputError(f"{source}: no such file")
    if target.suffix.lower() != ".png":
        raise InputError(f"{target}: the result is a PNG; name it {target.stem}.png")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist")
    if target.exists() and source.samefile(target):
        raise OutputError(f"{target}: is the source itself")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `rescale`."""
    return run_app(app, argv)
