"""Arguments and options that commands of the runtime share. What no run could use is wrong usage, as an unknown word is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rescale.errors import InputError, RescaleError

STREAM = Path("-")
"""Standard input or output."""


def path(text: str) -> Path:
    """What an argument names. `-` is a standard stream, as it stands; ./- is a file.

    Raises:
        BadParameter: nothing, which would be the folder that one stands in.
        InputError: written as a folder, and is something else.
    """
    if not text:
        raise typer.BadParameter("is empty; name a file or folder (the folder that you are in is .)")
    named = Path(text)
    if ends_as_folder(text) and os.path.lexists(named) and not named.is_dir():
        raise InputError(f"{text}: no such folder")
    return named.absolute() if named == STREAM and text != "-" else named


def target_text(text: str) -> str:
    """What names a target, as it stands, for `rescale.cli_files.placed`; what `path` refuses is refused."""
    path(text)
    return text


def ends_as_folder(text: str) -> bool:
    """Whether a path ends in a slash, which `Path` forgets."""
    return text.endswith(os.sep if os.altsep is None else (os.sep, os.altsep))


def checked(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Callback of an option: what `check` raises of a value is wrong usage."""

    def call(value: Any) -> Any:
        if value is not None:
            try:
                check(value)
            except RescaleError as e:
                raise typer.BadParameter(str(e)) from None
        return value

    return call


def _check_backend(text: str) -> None:
    from rescale.backends import check_name

    check_name(text)


def _check_precision(text: str) -> None:
    from rescale.bundle import check_precision

    check_precision(text)


def _check_threads(count: int) -> None:
    from rescale.backends import MAX_THREADS

    if count > MAX_THREADS:
        raise typer.BadParameter(f"at most {MAX_THREADS}, got {count}")


def _check_raw(text: str) -> None:
    from rescale.frames import parse_size

    parse_size(text)


def _check_target(text: str) -> None:
    from rescale.resize import parse_target

    parse_target(text)


def _check_least(decibels: float) -> None:
    if not math.isfinite(decibels):
        raise typer.BadParameter(f"a number of dB is wanted, got {decibels}")


def _budget(text: str | int) -> int:
    from rescale.memory import parse_memory

    try:
        return text if isinstance(text, int) else parse_memory(text)  # a default comes as it is
    except RescaleError as e:
        raise typer.BadParameter(str(e)) from None


def memory_option(help_text: str) -> Any:
    """The option that takes a budget, such as 2GB, and gives it in bytes; its text says in such words what it is without one."""
    return typer.Option(parser=_budget, metavar="<size>", show_default=False, help=help_text)


def bundle_option(help_text: str) -> Any:
    """The option that names a bundle."""
    return typer.Option("--bundle", "-b", envvar="RESCALE_BUNDLE", parser=path, help=help_text)


def raw_option(help_text: str) -> Any:
    """The option that says the size of raw frames."""
    return typer.Option(callback=checked(_check_raw), help=help_text)


target_option = typer.Option(
    "--target",
    metavar="WxH",
    callback=checked(_check_target),
    help="Size of the LR: the source is resized first to this times the scale, never enlarged; 640x and x360 keep its shape.",
)
"""The option that says the size of an LR."""

least_option = typer.Option(
    "--least",
    metavar="DB",
    callback=checked(_check_least),
    help="Write no LR that is restored at a lower Y-PSNR than this; implies --check.",
)
"""The option that says how well an LR has to be restored."""

BundleOption = Annotated[Path, bundle_option("Bundle made by rescale-export.")]
Backend = Annotated[
    str,
    typer.Option(
        callback=checked(_check_backend), help="auto, onnxruntime[:PROVIDER[,KEY=VALUE...]], openvino, tensorrt or tensorrt-rtx."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(callback=checked(_check_precision), help="fp32, mixed or fp16; by default mixed on TensorRT and fp32 elsewhere."),
]
Exact = Annotated[bool, typer.Option(help="Tiles with the whole receptive field around them; slower.")]
Threads = Annotated[int, typer.Option(callback=checked(_check_threads), help="CPU threads; 0: all this process may use.", min=0)]
Memory = Annotated[int | None, memory_option("Budget for the network, such as 2GB; by default half of what is available.")]
TileSide = Annotated[int | None, typer.Option(help="Run in tiles of this many LR pixels a side, instead of a budget.", min=1)]
MaxPixels = Annotated[int, typer.Option(help="Refuse pictures with more pixels than this.", min=1)]
Overwrite = Annotated[
    bool | None,
    typer.Option(
        "--overwrite/--no-overwrite",
        help="Folders: make targets again that exist already. --no-overwrite: refuse a single target that exists.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one line for each result or error.")]
