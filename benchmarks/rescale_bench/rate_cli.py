"""`rescale-bench rate`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from rescale.cli_options import Threads
from rescale.console import progress_bar, require, warn
from rescale.errors import ConfigError, MissingExtraError
from rescale.files import atomic_write
from rescale_bench import options

REPORT, PAGE = "rate.json", "rate.md"


def rate(
    bundles: options.Bundles = None,
    model: options.Models = None,
    scale: options.Scales = None,
    size: options.Sizes = None,
    data: options.Data = None,
    limit: options.Limit = 0,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="Lossy codec to compare with, such as jpeg420 or avif444; repeat for several. Default: all."),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, or a backend's name, such as onnxruntime.")] = "auto",
    threads: Threads = 0,
    precision: options.Precision = "fp32",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for rate.json, rate.md and plots, and for all points: a stopped run goes on from them."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Bytes of the LR file and PSNR of the restored HR, against codecs at the same bytes. A picture takes a minute or more."""
    require(("skimage", "torch", "matplotlib"), "bench")
    from rescale.json_text import as_json
    from rescale.rescaler import load
    from rescale_bench.bundles import bundles_of
    from rescale_bench.formats import RATE_FORMAT
    from rescale_bench.machine import versions
    from rescale_bench.outputs import make_folder
    from rescale_bench.pictures import look_at
    from rescale_bench.rate import DEFINITIONS, Tools, measure_set
    from rescale_bench.rate_codecs import LOSSLESS, LOSSY, Codec, Lossless, lr_containers, missing
    from rescale_bench.rate_pictures import shown, source_sets
    from rescale_bench.rate_plots import plots
    from rescale_bench.rate_report import as_markdown
    from rescale_bench.rate_summary import summary
    from rescale_bench.store import Store

    known = {c.name: c for c in LOSSY}
    for name in codec or ():
        if name not in known:
            raise ConfigError(f"unknown codec {name!r}: choose one of {', '.join(known)}")
        if reason := known[name].need.missing():
            raise MissingExtraError(f"{known[name].title}: {reason}")
    lossy = [c for c in LOSSY if c.name in (codec or known) and not c.need.missing()]
    lossless = [c for c in LOSSLESS if not c.need.missing()]
    for line in missing():
        warn(f"not measured: {line}")
    sets = source_sets(data or (), limit or None)
    if out is not None:
        make_folder(out, REPORT, PAGE)
    tools = Tools(lossy, lossless, lr_containers(), Store(None if out is None else out / "points"))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        choices = bundles_of(bundles or (), model or (), scale or (), size or (), precision)
        exports = sum(not c.is_there for c in choices)
        advance = stack.enter_context(progress_bar(exports + len(lossy) * sum(len(s.pictures) for s in sets)))
        look_at([shown(s) for s in sets], told=lambda name: advance(f"looking at {name}", 0))
        paths = [c.path(folder, advance) for c in choices]
        nets = [stack.enter_context(load(p, backend, threads or None, precision=precision)) for p in paths]
        found = [measure_set(nets, s, tools, advance) for s in sets]
    used: list[Codec | Lossless] = [*lossy, *lossless]
    report: dict[str, Any] = {
        "format": RATE_FORMAT,
        "definitions": DEFINITIONS,
        "settings": {c.title: f"{c.settings} ({c.need.version()})" for c in used},
        "versions": versions(),
        "missing": missing(),
        "summary": [summary(s) for s in found],
        "sets": found,
    }
    if out is not None:
        # First what took hours, and only then what is made of it.
        atomic_write(out / REPORT, as_json(report).encode())
        drawn = plots(report)
        for file, svg in drawn.values():
            atomic_write(out / file, svg)
        text = as_markdown(report, {k: file for k, (file, _) in drawn.items()})
        atomic_write(out / PAGE, text.encode(errors="backslashreplace"))  # names of files need not be text
    print(as_json(report) if json_ else as_markdown(report), end="")
