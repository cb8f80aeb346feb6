"""Commands that look at LR files and run no network: info, verify, strip."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rescale.cli_files import (
    Verb,
    Watch,
    check_paths,
    one_or_all,
    open_lr,
    placed,
    require_writable,
    stream_in,
    worst,
    write_picture,
)
from rescale.cli_options import STREAM, Json, MaxPixels, Overwrite, bundle_option, path, target_text
from rescale.console import fail, print_json_line, printable, progress_bar, warn
from rescale.errors import LrFileError, RescaleError
from rescale.limits import MAX_PIXELS

Sources = Annotated[list[Path], typer.Argument(parser=path, help="LR files, folders of them, or - for standard input.")]


def info(sources: Sources, max_pixels: MaxPixels = MAX_PIXELS, json_: Json = False) -> int:
    """Show what files carry, without restoring them."""
    from rescale.container import Small

    def look(source: Path) -> int:
        small = Small.open(stream_in(source), max_pixels)
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
            print_json_line(facts)
            return 0
        for key, value in facts.items():
            print(f"{key}: {printable(value)}")
        if several:
            print(flush=True)
        return 0

    several = _are_several(sources)
    return _look_at_all(sources, look, json_, {0: "done"}) if several else look(sources[0])


def verify(
    sources: Sources,
    bundle: Annotated[Path | None, bundle_option("Also check that this bundle made them.")] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    json_: Json = False,
) -> int:
    """Check that LR files are as `rescale down` made them. Exit code 0: all are; 3: one is not; 1: one could not be looked at.

    Undamaged, a file is restored to exactly what its network makes of it, which is not the source: `rescale down --check` says how
    near it comes.
    """
    from rescale.bundle import Bundle
    from rescale.container import ADVICE, TRUST, State

    made = None if bundle is None else Bundle(bundle)
    if made is not None:
        made.verify()

    def look(source: Path) -> int:
        trusted = False
        try:
            small = open_lr(source, max_pixels)
            state, detail, trusted = small.state, small.detail, small.unverified_alpha is not None
            if made is not None:
                (state, detail), trusted = small.verdict(*made.identity), small.trusted_alpha(*made.identity) is not None
        except LrFileError as e:
            if not json_:
                raise
            state, detail = State(e.state), str(e)
        if json_:
            print_json_line({"source": str(source), "state": str(state), "detail": detail, "restorable": state is State.EXACT})
            return 0 if state is State.EXACT else LrFileError.exit_code
        if state is not State.EXACT:
            raise LrFileError(f"{source}: {state}: {detail}: {ADVICE[state]}" + (f"; {TRUST}" if trusted else ""), state)
        meaning = "undamaged; `rescale up` gives exactly what its network makes of it, which is not the source"
        print(f"{printable(source)}: exact: {meaning}", flush=True)
        return 0

    if not _are_several(sources):
        return look(sources[0])
    return _look_at_all(sources, look, json_, {0: "exact", LrFileError.exit_code: "not_exact"})


def _are_several(sources: list[Path]) -> bool:
    return len(sources) > 1 or os.path.isdir(sources[0])


def _look_at_all(sources: list[Path], look: Callable[[Path], int], json_: bool, names: dict[int, str]) -> int:
    """Look at files and all that lie in folders; an error costs no other file. Returns the exit code, see `worst`.

    Args:
        sources: files, folders, or - for standard input.
        look: tells of one file and returns its exit code. An OSError of it is one of standard output, and ends the command.
        json_: errors and the counts at the end are lines of JSON too.
        names: of the counts, by the exit codes; files with others are counted as ``errors``.
    """
    from rescale import batch
    from rescale.container import SUFFIXES

    counts = dict.fromkeys([*names.values(), "errors", "ignored"], 0)
    found, counts["ignored"] = batch.find(sources, list(SUFFIXES))
    codes = []
    with progress_bar(len(found)) as advance:
        for source, fault in found:
            advance(source.name)
            try:
                if fault is not None:
                    raise fault
                codes.append(look(source))
            except (RescaleError, MemoryError) as error:
                e = RescaleError(f"{source}: not enough memory") if isinstance(error, MemoryError) else error
                codes.append(e.exit_code)
                fail(str(e))
                if json_:
                    print_json_line({"source": str(source), "status": "error", "error": str(e)})
            counts[names.get(codes[-1], "errors")] += 1
    if json_:
        print_json_line(counts)
    else:
        print(", ".join(f"{n} {what.replace('_', ' ')}" for what, n in counts.items()), flush=True)
    return worst(codes)


def strip(
    source: Annotated[Path, typer.Argument(parser=path, help="LR file, folder of them, or - for standard input.")],
    target: Annotated[str, typer.Argument(parser=target_text, help="Ordinary picture to write (.png, .webp), folder, or -.")],
    overwrite: Overwrite = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    json_: Json = False,
) -> int:
    """Write LR pictures without their auxiliary data and marker.

    Nearly all that an -A model restores beyond bicubic is in these. Plain and -M models have it in the pixels, which stay.
    """
    from rescale.cli_facts import left_in_pixels, strip_text
    from rescale.container import SUFFIXES, Small
    from rescale.finished import require_bare, require_no_sidecar

    goal = placed(source, target, ".png")
    check_paths(source, goal, overwrite)
    require_writable(source, goal, "stripped")

    def make(origin: Path, place: Path, watch: Watch) -> dict[str, Any]:
        if place != STREAM:
            require_no_sidecar(place)
        small = Small.open(stream_in(origin), max_pixels)
        bare = small.without_auxiliary()
        if small.block is not None and (left := left_in_pixels(small.block.model)):
            warn(f"{small.name}: {left}")
        return {"lr_size": list(small.size), "bytes": write_picture(place, bare)}

    return one_or_all(source, goal, Verb(make, require_bare, list(SUFFIXES), ".png", strip_text), bool(overwrite), json_)
