"""`rescale-bench report`: what a bundle costs and gives on this machine, as report.json, report.md and report.html."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from rescale.bundle import Bundle
from rescale.console import progress_bar
from rescale.errors import ConfigError
from rescale.files import atomic_write
from rescale.json_text import as_json
from rescale.rescaler import load
from rescale.threads import usable_threads
from rescale_bench import parity, parity_report, quality, speed
from rescale_bench.bundles import export_shipped
from rescale_bench.formats import FORMAT, LEAST, MEAN
from rescale_bench.machine import machine, versions
from rescale_bench.options import MODEL, SCALE
from rescale_bench.outputs import make_folder
from rescale_bench.pictures import PictureSet, sample_set
from rescale_bench.report_pictures import HeatMap, Panels, heat_map, panels
from rescale_bench.report_text import busy, findings, markdown
from rescale_bench.sizes import Size, parse_size
from rescale_bench.speed_plan import Options as SpeedOptions
from rescale_bench.speed_plan import minutes_of
from rescale_bench.speed_report import left_out_lines
from rescale_bench.speed_worker import DIRECTIONS

FILES = ("report.json", "report.md", "report.html")

RESOLUTIONS = (("640x360", 0.4), ("1280x720", 0.25), ("1920x1080", 0.35))
"""HR sizes, with the share of the time for speed that each gets. The first also shows how single runs vary."""

MOST_RUNS, QUICK_RUNS = 40, 5
PARITY_PICTURES = ("chelsea.png", "rocket.jpg")
"""Compared beside the golden vectors; also those of a quick report."""


@dataclass(frozen=True)
class Options:
    """The command's options; see its help. Empty lists and None stand for defaults."""

    bundle: Path | None = None
    model: str | None = None
    scale: int | None = None
    size: str | None = None
    backends: Sequence[str] = ()
    resolutions: Sequence[str] = ()
    minutes: float = 4.0
    quick: bool = False
    peers: bool = True
    compiled: bool = True
    threads: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Found:
    """A report, and what only its page shows.

    Attributes:
        report: plain tables.
        pictures: crops of each picture.
        heat: the worst picture of the parity gate; None where nothing differs.
    """

    report: dict[str, Any]
    pictures: list[Panels]
    heat: HeatMap | None


def run(options: Options, out: Path, as_json_: bool) -> bool:
    """Measure, and write the three files.

    Args:
        options: see `Options`.
        out: folder to write to; is made if it is not there.
        as_json_: print the report as JSON, not where it lies.

    Returns:
        False if a backend failed on the way or the parity gate refuses one.

    Raises:
        OutputError: the folder cannot be written to; told before anything is measured.
        RescaleError: a wrong option, or a backend that was named does not run here.
    """
    make_folder(out, *FILES)
    found = measure(options)
    from rescale_bench.report_html import page

    text = as_json(found.report)
    files = dict(zip(FILES, (text, markdown(found.report), page(found)), strict=True))
    for name, content in files.items():
        atomic_write(out / name, content.encode(errors="backslashreplace"))  # names of files need not be text
    if as_json_:
        print(text, end="")
    else:
        notes = filter(None, (busy(found.report["machine"]), *left_out_lines(found.report["speed"])))
        for line in (*found.report["findings"].values(), *notes, *(str(out / name) for name in reversed(FILES))):
            print(line)
    failed = any(c["failed"] for case in found.report["speed"]["cases"] for c in case["competitors"])
    return not failed and not any(b["refused"] for b in found.report["parity"]["bundles"])


def measure(options: Options) -> Found:
    """Run everything.

    Raises:
        ConfigError: no minutes, a resolution is none, or a bundle and what it is to be exported from.
        RescaleError: as the parts.
    """
    if not options.minutes > 0:
        raise ConfigError(f"--minutes {options.minutes:g}: wanted is more than 0")
    if options.bundle is not None and (options.model, options.scale, options.size) != (None, None, None):
        raise ConfigError("--bundle is the network that is measured: leave it out, or --model, --scale and --size")
    for resolution in options.resolutions:
        parse_size(resolution, "--resolution")
    seconds: dict[str, float] = {}
    report: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(options.threads or usable_threads()),
        "versions": versions(),
        "seconds": seconds,
    }
    with tempfile.TemporaryDirectory(prefix="rescale-report-") as folder:
        with _stage("export", seconds):
            bundle = Bundle(_bundle(options, Path(folder)))
        report["bundle"] = _about(bundle)
        with _stage("speed", seconds):
            report["speed"] = measure_speed(bundle, options)
        with _stage("parity", seconds):
            sets, backends = _parity_sets(options), list(options.backends)
            with progress_bar(len(parity.BACKENDS) * len(bundle.precisions) + len(PARITY_PICTURES) + 1) as advance:
                checked = parity.check(bundle, backends, (), sets, (), threads=options.threads, progress=advance)
            heat = heat_map(bundle, checked, sets, options.threads)
            report["parity"] = {
                "definitions": parity_report.DEFINITIONS,
                "bundles": [parity_report.as_dict(checked, checked.bundle.title)],
            }
            report["parity"]["worst"] = None if heat is None else heat.to_dict()
        with _stage("quality", seconds):
            report["quality"], pictures = measure_quality(bundle, options)
    report["findings"] = findings(report)
    return Found(report, pictures, heat)


def measure_speed(bundle: Bundle, options: Options) -> dict[str, Any]:
    """The report of `rescale-bench speed` for several resolutions, torch.compile at the first only: it compiles for minutes.

    Resolutions that nobody named are left out where their least runs alone would take more than all the minutes; ``left_out``
    says so.
    """
    plan: Sequence[tuple[str, float]] = RESOLUTIONS[:1] if options.quick else RESOLUTIONS
    if options.resolutions:
        named = list(dict.fromkeys(options.resolutions))
        plan = [(r, 1.0 / len(named)) for r in named]
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for i, (resolution, share) in enumerate(plan):
        needed = least_minutes(found["cases"][-1], parse_size(resolution, "--resolution")) if found else 0.0
        if needed > options.minutes and not options.resolutions:
            absent[resolution] = f"{LEAST} runs of each would take about {needed:.0f} minutes; --resolution {resolution} takes them"
            continue
        asked = SpeedOptions(
            bundles=[bundle.path],
            resolutions=[resolution],
            backends=options.backends,
            precisions=() if "mixed" in bundle.precisions else ("fp32",),
            repeats=QUICK_RUNS if options.quick else MOST_RUNS,
            threads=options.threads,
            peers=options.peers,
            compiled=options.compiled and not options.quick and i == 0,
            seconds=60.0 * options.minutes * share / len(DIRECTIONS),
            memory=options.memory,
        )
        one = speed.measure(asked)
        found = found or one | {"cases": []}
        found["cases"] += one["cases"]
    return found | {"left_out": absent}


def least_minutes(case: Mapping[str, Any], size: Size) -> float:
    """What the warm-up and the least runs of the competitors of a case would take at another size, (height, width)."""
    width, height = case["resolution"]
    competitors = [c for c in case["competitors"] if c["kind"] != "compiled"]
    seconds = sum(d["whole"]["median"] for c in competitors for d in c["directions"].values())
    return minutes_of(LEAST, seconds, (height, width), size)


def measure_quality(bundle: Bundle, options: Options) -> tuple[dict[str, Any], list[Panels]]:
    """PSNR, SSIM and bytes of the pictures that scikit-image ships, as `rescale-bench psnr` has them, and their crops."""
    pictures = _some(sample_set()) if options.quick else sample_set()
    # Float32 on ONNX Runtime is what other figures of the toolkit are of; parity says what another backend changes.
    backend = options.backends[0] if options.backends else "onnxruntime"
    shown = []
    precision = _precision(backend, bundle)
    with load(bundle.path, backend, options.threads, memory=options.memory, precision=precision) as net:
        with progress_bar(2 * len(pictures.pictures)) as advance:
            result = quality.measure_set(net, pictures, advance)
            bicubic = quality.measure_set_bicubic(net.bundle.scale, pictures)
            for row, (name, read) in zip(result["pictures"], pictures.pictures, strict=True):
                shown.append(panels(net, name, read(), row))
                advance(name)
        head = {"bundle": bundle.path.name, "model": bundle.title, "scale": bundle.scale, "backend": net.runner.name}
    found = {
        "definitions": quality.DEFINITIONS,
        "mean": MEAN,
        "results": [head | result],
        "bicubic": [bicubic],
    }
    for row, one in zip(result["pictures"], shown, strict=True):
        row["source_png"] = one.source_png
    return found, shown


def _bundle(options: Options, folder: Path) -> Path:
    """The given bundle, or the shipped weights of a model exported with `mixed`, which some backends want."""
    if options.bundle is not None:
        return options.bundle
    from rescale_train.shipped import find_shipped

    return export_shipped(find_shipped(options.model or MODEL, options.scale or SCALE, options.size), folder, ("mixed",))


def _precision(backend: str, bundle: Bundle) -> str | None:
    return None if backend.startswith("tensorrt") and "mixed" in bundle.precisions else "fp32"


def _about(bundle: Bundle) -> dict[str, Any]:
    files = {
        f"{name} {p}": (bundle.path / g.file).stat().st_size for p in bundle.precisions for name, g in bundle.precisions[p].items()
    }
    return {
        "name": bundle.path.name,
        "model": bundle.title,
        "variant": bundle.variant.name,
        "scale": bundle.scale,
        "size": bundle.size,
        "weights": bundle.network,
        "bytes": files,
    }


def _some(pictures: PictureSet) -> PictureSet:
    return PictureSet(pictures.name, tuple(p for p in pictures.pictures if p[0] in PARITY_PICTURES))


def _parity_sets(options: Options) -> list[PictureSet]:
    return [] if options.quick else [_some(sample_set())]


@contextlib.contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say on a terminal what goes on, and note how long it took."""
    console = Console(stderr=True)
    start = time.monotonic()
    if console.is_terminal:
        console.print(f"[bold]{name}[/] ...")
    yield
    seconds[name] = round(time.monotonic() - start, 1)
