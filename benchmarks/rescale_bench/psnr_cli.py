"""`rescale-bench psnr`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from rescale.cli_options import Threads
from rescale.console import progress_bar, require
from rescale.files import atomic_write
from rescale_bench import options
from rescale_bench.formats import MEAN

PROTOCOL = {
    "source": "sides cut to multiples of the scale, at the bottom and right",
    "rounding": "LR and restored HR are rounded to 8 bits; what is restored comes from the LR file's bytes",
    "border": "as many pixels as the scale are cropped on every side, of HR and of LR; of one too thin for that none",
    "gray": "measured in R, G and B as the network restores them, as the field does; rescale up writes their mean",
    "bicubic": "MATLAB's imresize, antialiased down and a = -0.5, rounded to 8 bits both ways; its LR files carry nothing else",
    "published": "by others; the paper states neither border nor rounding. Raw bits an LR pixel: -A 32, -M 26, others 24",
}


def psnr(
    bundles: options.Bundles = None,
    model: options.Models = None,
    scale: options.Scales = None,
    size: options.Sizes = None,
    data: options.Data = None,
    limit: options.Limit = 0,
    backend: Annotated[str, typer.Option(help="As of rescale down; or half: float16 as a device computes it.")] = "auto",
    threads: Threads = 0,
    precision: options.Precision = "fp32",
    refine: Annotated[int, typer.Option(help="Steps of refining each LR; of bundles exported with --refine.", min=0)] = 0,
    each: Annotated[bool, typer.Option(help="Also print every picture.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Folder for each picture's figures: a stopped run goes on from them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the report as Markdown to this file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """PSNR and SSIM of the restored HR, fidelity of the LR, and bits, beside bicubic and the paper's table 3."""
    require(("skimage", "torch"), "bench")
    from rescale.json_text import as_json
    from rescale.rescaler import load
    from rescale_bench.bundles import bundles_of, distinct
    from rescale_bench.machine import versions
    from rescale_bench.outputs import check_files
    from rescale_bench.pictures import look_at, picture_sets, sample_set
    from rescale_bench.quality import DEFINITIONS, measure_set, measure_set_bicubic
    from rescale_bench.quality_report import as_markdown, tables
    from rescale_bench.rate_codecs import JXL, WEBP
    from rescale_bench.store import Store

    check_files(out, markdown)
    sets = picture_sets(data, limit or None) if data else [sample_set(limit or None)]
    store = Store(keep)
    needs = {"LR files as lossless WebP": WEBP, "LR files as lossless JPEG XL": JXL}
    report: dict[str, Any] = {
        "definitions": DEFINITIONS,
        "mean": MEAN,
        "protocol": PROTOCOL,
        "versions": versions(),
        "missing": [f"{what}: {reason}" for what, need in needs.items() if (reason := need.missing())],
        "told_apart": {},
        "results": [],
        "bicubic": [],
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        choices = bundles_of(bundles or (), model or (), scale or (), size or (), precision, refine > 0)
        scales = sorted({c.scale for c in choices})
        exports = sum(not c.is_there for c in choices)
        advance = stack.enter_context(progress_bar(exports + (len(choices) + len(scales)) * sum(len(s.pictures) for s in sets)))
        look_at(sets, max(scales), lambda name: advance(f"looking at {name}", 0))
        for choice, name in zip(choices, distinct([c.title for c in choices]), strict=True):
            path = choice.path(folder, advance)
            with load(path, backend, threads or None, precision=precision) as net:
                title = name + (f", refined in {refine} steps" if refine else "")
                head = {"bundle": str(path), "model": title, "backend": net.runner.name}
                if sum(c.title == choice.title for c in choices) > 1:
                    report["told_apart"][title] = str(path) if choice.is_there else "what ships"
                report["results"] += [head | measure_set(net, s, advance, store, refine) for s in sets]
        report["bicubic"] += [measure_set_bicubic(n, s, advance, store) for n in scales for s in sets]
    report["tables"] = tables(report)
    text = as_json(report)
    if out is not None:
        atomic_write(out, text.encode())
    shown = as_markdown(report, each)
    if markdown is not None:
        atomic_write(markdown, shown.encode(errors="backslashreplace"))  # names of files need not be text
    print(text if json_ else shown, end="")
