"""Command line of the runtime: down, up and doctor; `rescale.cli_inspect` has info, verify and strip."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescale.choices import AlphaRule, Carrier, Container, Layout
from rescale.cli_facts import down_text, forced, lr_facts, quality, quality_text, resized_text, up_text
from rescale.cli_files import (
    Verb,
    Watch,
    check_paths,
    one_or_all,
    open_lr,
    placed,
    raw_frames,
    require_writable,
    stream_in,
    write_picture,
    write_result,
)
from rescale.cli_inspect import info, strip, verify
from rescale.cli_options import (
    STREAM,
    Backend,
    BundleOption,
    Exact,
    Json,
    MaxPixels,
    Memory,
    Overwrite,
    Precision,
    Threads,
    TileSide,
    bundle_option,
    least_option,
    path,
    raw_option,
    target_option,
    target_text,
)
from rescale.console import Version, new_app, require, run_app, warn
from rescale.errors import InputError
from rescale.limits import MAX_PIXELS

if TYPE_CHECKING:
    from rescale.container import Small
    from rescale.rescaler import Rescaler

app = new_app("Downscale pictures with a network that can restore them from the small picture alone.")


@app.callback()
def options(version: Version = False) -> None:
    """Options before a command."""


@app.command()
def down(
    source: Annotated[Path, typer.Argument(parser=path, help="HR picture, folder of them, or - for standard input.")],
    target: Annotated[
        str, typer.Argument(parser=target_text, help="LR file (.png, .webp, .jxl), folder, or - for standard output.")
    ],
    bundle: BundleOption,
    layout: Annotated[
        Layout, typer.Option(help="-A: fourth plane in the alpha channel, a chunk or a strip of rows below.")
    ] = Layout.ALPHA,
    carrier: Annotated[Carrier, typer.Option(help="Marker and latent as chunk, text, or sidecar (FILE.rescale).")] = Carrier.CHUNK,
    alpha: Annotated[
        AlphaRule, typer.Option(help="Real transparency in the source: refuse or keep (losslessly, beside).")
    ] = AlphaRule.REFUSE,
    container: Annotated[
        Container | None, typer.Option(help="Folders and standard output: png (the default), webp or jxl.", show_default=False)
    ] = None,
    refine: Annotated[
        int, typer.Option(help="Steps of a search for better LR codes, slow; for bundles of rescale-export --refine.", min=0)
    ] = 0,
    target_size: Annotated[str | None, target_option] = None,
    to_8_bit: Annotated[
        bool, typer.Option("--to-8-bit", help="Round sources with 16 bits a sample to 8; refused without.")
    ] = False,
    first_frame: Annotated[
        bool, typer.Option("--first-frame", help="Take the first of several frames or pages; refused without.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Restore each picture once, and print the PSNR against its source.")
    ] = False,
    least: Annotated[float | None, least_option] = None,
    raw: Annotated[str | None, raw_option("Frames of WIDTHxHEIGHT, rgb24 in, rgb24 or rgba (-A) out.")] = None,
    overwrite: Overwrite = None,
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
    from rescale.contract import GRADIENT
    from rescale.decode import READABLE
    from rescale.files import atomic_write_both
    from rescale.finished import require_small
    from rescale.picture import open_picture
    from rescale.resize import FILTER, hr_size, parse_target, resized

    kind = container or Container.PNG
    goal = placed(source, target, f".{kind}" if raw is None else None)
    if raw is None and not source.is_dir() and goal != STREAM:
        kind = Container(container_for(goal))
    check_paths(source, goal, overwrite)
    check = check or least is not None
    if raw is not None:
        others = {
            "layout": layout != "alpha",
            "carrier": carrier != "chunk",
            "alpha": alpha != "refuse",
            "container": container is not None,
            "target": target_size is not None,
            "to_8_bit": to_8_bit,
            "first_frame": first_frame,
        }
        _unused_with_raw(**others, refine=refine > 0, check=check, overwrite=overwrite is True)
    elif container not in (None, kind):
        raise typer.BadParameter(f"{goal}: its name asks for {kind}, and --container for {container}; leave the option out")
    elif carrier == "sidecar" and goal == STREAM:
        raise typer.BadParameter("--carrier sidecar: needs a file to lie beside, not standard output")
    elif kind == "jxl":
        require(["imagecodecs"], "jxl")
    wanted = None if target_size is None else parse_target(target_size)
    with _load(bundle, backend, precision, threads, memory, tile, exact) as net:
        if refine:
            net.bundle.graph(GRADIENT, precision or "fp32")
        if layout != "alpha" and not net.bundle.variant.alpha:
            raise InputError(f"--layout {layout}: {net.bundle.title} makes no fourth plane to lay out; leave the option out")
        if raw is not None:
            return raw_frames(net, source, goal, raw, max_pixels, json_, upwards=False)

        def make(origin: Path, place: Path, watch: Watch) -> dict[str, Any]:
            picture = open_picture(stream_in(origin), alpha, max_pixels, to_8_bit, first_frame)
            given = picture.size
            if wanted is not None:
                picture = resized(picture, hr_size(given, wanted, net.bundle.scale, str(origin)))
            with watch("downscaling") as progress:
                small = net.downscale(picture, refine, progress)
            facts = lr_facts(small, net, given)
            if check:
                with watch("checking") as progress:
                    again = net.restore(small, progress=lambda done, count, stage: progress(done, count, "checking"))
                figures = quality(again.shown(), picture.shown(), net.bundle.scale)
                if least is not None and figures["psnr_y"] is not None and not figures["psnr_y"] >= least:
                    told = f"would be restored at {quality_text(figures)}, below --least {least:g}, so nothing was written"
                    raise InputError(f"{origin}: {told}; keep the picture itself, or take a larger model")
                facts |= figures
            if picture.size != given and not source.is_dir():
                warn(f"{origin}: {resized_text(facts)} ({FILTER}), and comes back in that size")
            data, sidecar = small.encode(kind, layout, carrier)
            if sidecar is None:
                write_result(place, data)
            else:
                atomic_write_both((sidecar_path(place), sidecar), (place, data))
            return facts | {"bytes": len(data) + len(sidecar or b"")}

        if wanted is not None and source.is_dir():
            warn(f"--target {wanted}: larger pictures are resized first ({FILTER}), and come back in that size")
        verb = Verb(make, lambda job: require_small(job, net.bundle, wanted), READABLE, f".{kind}", down_text, each=check)
        return one_or_all(source, goal, verb, bool(overwrite), json_)


@app.command()
def up(
    source: Annotated[Path, typer.Argument(parser=path, help="LR file, folder of them, or - for standard input.")],
    target: Annotated[str, typer.Argument(parser=target_text, help="HR picture (.png, .webp), folder, or - for standard output.")],
    bundle: BundleOption,
    force: Annotated[bool, typer.Option(help="Restore an LR that is not exact, without its auxiliary data.")] = False,
    trust_alpha: Annotated[
        bool,
        typer.Option(help="-A: restore a picture without its marker, or changed, by the alpha channel it has, unchecked."),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(parser=path, help="Original HR picture: print the PSNR against it, or the first frame of it, in 8 bits."),
    ] = None,
    raw: Annotated[str | None, raw_option("Frames; WIDTHxHEIGHT of the HR frames that come out.")] = None,
    overwrite: Overwrite = None,
    backend: Backend = "auto",
    precision: Precision = None,
    threads: Threads = 0,
    memory: Memory = None,
    tile: TileSide = None,
    exact: Exact = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    json_: Json = False,
) -> int:
    """Restore large pictures. Exit code 3: the LR file is not what `rescale down` made of a picture with this bundle."""
    from rescale.container import SUFFIXES, State
    from rescale.finished import require_large
    from rescale.picture import open_picture

    goal = placed(source, target, ".png" if raw is None else None)
    check_paths(source, goal, overwrite)
    if raw is not None:
        _unused_with_raw(force=force, trust_alpha=trust_alpha, reference=reference is not None, overwrite=overwrite is True)
    else:
        require_writable(source, goal, "restored")
    if reference is not None and source.is_dir():
        raise InputError(f"--reference {reference}: is one picture, and {source} a folder of many; leave it out")
    original = None if reference is None else open_picture(reference, "keep", max_pixels, to_8_bit=True, first_frame=True)
    with _load(bundle, backend, precision, threads, memory, tile, exact) as net:
        if trust_alpha and not net.bundle.variant.alpha:
            raise InputError(f"--trust-alpha: {net.bundle.title} reads no alpha channel; leave the option out")
        if raw is not None:
            return raw_frames(net, source, goal, raw, max_pixels, json_, upwards=True)

        def make(origin: Path, place: Path, watch: Watch) -> dict[str, Any]:
            small = open_lr(origin, max_pixels)
            size = _restored_size(small, net)
            state, detail = small.verdict(*net.bundle.identity)
            if math.prod(size) > max_pixels and (state is State.EXACT or force or trust_alpha):
                raise InputError(f"{small.name}: would become larger than {max_pixels} pixels; raise the limit with --max-pixels")
            if original is not None and original.size != size:
                wanted = f"the restored picture is not of that size but {size[0]}x{size[1]}"
                raise InputError(f"{reference}: {original.size[0]}x{original.size[1]}, {wanted}; leave --reference out")
            with watch("restoring") as progress:
                picture = net.restore(small, strict=not force, trust_alpha=trust_alpha, progress=progress)
            if trust_alpha and small.trusted_alpha(*net.bundle.identity) is not None:
                warn(f"{small.name}: {detail}; restored by its alpha channel, unverified")
            elif state is not State.EXACT:
                warn(f"{small.name}: {detail}; {forced(net)}")
            facts = {"model": net.bundle.title, "state": str(state), "hr_size": list(picture.size)}
            if original is not None:
                facts |= quality(picture.shown(), original.shown(), net.bundle.scale)
            write_picture(place, picture)
            return facts

        verb = Verb(make, lambda job: require_large(job, not (force or trust_alpha)), list(SUFFIXES), ".png", up_text)
        return one_or_all(source, goal, verb, bool(overwrite), json_)


app.command()(info)
app.command()(verify)
app.command()(strip)


@app.command()
def doctor(
    bundle: Annotated[Path | None, bundle_option("Also run its golden vectors on what works.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds that one library may take to answer.", min=0.1, max=86_400.0)] = 60.0,
    json_: Json = False,
) -> int:
    """Show what this machine has, what works, and how to install what does not. Exit code 0: the default backend works."""
    from rescale.doctor import command

    return command(bundle, json_, limit)


def _load(
    bundle: Path, backend: str, precision: str | None, threads: int, memory: int | None, tile: int | None, exact: bool
) -> Rescaler:
    from rescale.rescaler import load

    net = load(bundle, backend, threads or None, memory, None if tile is None else (tile, tile), precision, exact)
    net.network.turn = threading.Lock()  # a folder's pictures are worked on by several threads
    return net


def _restored_size(small: Small, net: Rescaler) -> tuple[int, int]:
    """(width, height) of what an LR picture becomes: the HR picture's, or without a marker that fits all that the network gives."""
    block, scale = small.block, net.bundle.scale
    if block is not None and (block.lr_size, block.scale) == (small.size, scale):
        return block.hr_size
    return small.size[0] * scale, small.size[1] * scale


def _unused_with_raw(**given: bool) -> None:
    """Raw frames carry nothing but pixels.

    Raises:
        BadParameter: an option was given that has no meaning for them.
    """
    for name in (n for n, there in given.items() if there):
        raise typer.BadParameter(f"--{name.replace('_', '-')}: has no meaning for raw frames; leave it out")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `rescale`."""
    return run_app(app, argv, json_errors=True, memory_advice="a smaller --memory or --tile may help")
