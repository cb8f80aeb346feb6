"""What `rescale-bench parity` does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rescale.bundle import PRECISIONS, Bundle
from rescale.console import progress_bar, require
from rescale.errors import ConfigError
from rescale.files import atomic_write
from rescale_bench import polygraphy_io
from rescale_bench.bundles import distinct
from rescale_bench.outputs import check_files
from rescale_bench.parity import BACKENDS, Group, Report, Result, check, check_limit
from rescale_bench.parity_report import DEFINITIONS, as_dict, show
from rescale_bench.sizes import parse_size

LEAST_WIDTH = 120
"""Columns that a table takes; a narrower terminal wraps its lines."""


@dataclass(frozen=True)
class Options:
    """The command's options; see its help."""

    backends: Sequence[str]
    precisions: Sequence[str]
    max_loss: float
    data: Sequence[Path]
    limit: int
    sizes: Sequence[str]
    threads: int | None


@dataclass(frozen=True)
class Files:
    """Polygraphy's files of one graph."""

    named: str | None
    save_inputs: Path | None
    save_outputs: Path | None
    load_outputs: Path | None

    @property
    def graph(self) -> str:
        """Name of the graph."""
        return self.named or "downscale"

    @property
    def writes(self) -> bool:
        """Whether there is a file to write."""
        return self.save_inputs is not None or self.save_outputs is not None


def run(paths: Sequence[Path], options: Options, files: Files, out: Path | None, as_json: bool) -> bool:
    """Do what the command line asks for.

    Returns:
        False if the gate refuses anything.

    Raises:
        RescaleError: as `rescale_bench.parity.check` and `rescale_bench.polygraphy_io`.
    """
    if (files.writes or files.load_outputs) and len(paths) != 1:
        raise ConfigError(f"Polygraphy's files are of one bundle, {len(paths)} were given")
    if files.writes and files.load_outputs:
        raise ConfigError("--load-outputs judges results; give it without --save-inputs and --save-outputs")
    _no_idle_options(options, files, out is not None, as_json)
    check_limit(options.max_loss)
    check_files(out, files.save_inputs, files.save_outputs)
    bundles = [Bundle(path) for path in paths]
    if files.writes:
        _write(bundles[0], files)
        return True
    reports = [_loaded(bundles[0], files, options)] if files.load_outputs else _checked(bundles, options)
    titles = distinct([r.bundle.title for r in reports])
    report = {"definitions": DEFINITIONS, "bundles": [as_dict(r, title) for r, title in zip(reports, titles, strict=True)]}
    text = json.dumps(report, indent=2, allow_nan=False)
    if out is not None:
        atomic_write(out, (text + "\n").encode())
    if as_json:
        print(text)
    else:
        _print(reports, titles)
    return not any(r.refused for r in reports)


def _no_idle_options(options: Options, files: Files, out: bool, as_json: bool) -> None:
    """Raises ConfigError for an option that would do nothing."""
    chosen: dict[str, object] = {
        "--backend": options.backends,
        "--precision": options.precisions,
        "--data": options.data,
        "--size": options.sizes,
    }
    idle: dict[str, dict[str, object]] = {"is for --data": {"--limit": options.limit and not options.data}}
    if files.writes:
        idle["does nothing where Polygraphy's files are written"] = {**chosen, "--out": out, "--json": as_json}
    elif files.load_outputs:
        idle["does nothing where Polygraphy's outputs are judged"] = chosen
    else:
        idle["is for Polygraphy's files"] = {"--graph": files.named}
    for why, found in idle.items():
        if names := [name for name, given in found.items() if given]:
            raise ConfigError(f"{names[0]} {why}; leave it out")


def _checked(bundles: Sequence[Bundle], options: Options) -> list[Report]:
    sets: list[Any] = []
    if options.data:
        require(("torch", "skimage"), "bench")
        from rescale_bench.pictures import look_at, picture_sets

        sets = picture_sets(options.data, options.limit or None)
        look_at(sets)
    sizes = [parse_size(text) for text in options.sizes]
    pairs = len(options.backends or BACKENDS) * len(options.precisions or PRECISIONS)
    with progress_bar(len(bundles) * (pairs + 1 + len(sizes) + sum(len(s.pictures) for s in sets))) as advance:
        return [
            check(b, options.backends, options.precisions, sets, sizes, options.max_loss, options.threads, advance) for b in bundles
        ]


def _write(bundle: Bundle, files: Files) -> None:
    if files.save_inputs is not None:
        polygraphy_io.save_inputs(bundle, files.graph, files.save_inputs)
        print(files.save_inputs)
    if files.save_outputs is not None:
        polygraphy_io.save_outputs(bundle, files.graph, files.save_outputs)
        print(files.save_outputs)


def _loaded(bundle: Bundle, files: Files, options: Options) -> Report:
    assert files.load_outputs is not None
    report = Report(bundle, options.max_loss)
    for runner, outputs in polygraphy_io.load_outputs(files.load_outputs).items():
        found = polygraphy_io.compare(bundle, files.graph, outputs, options.threads)
        # Polygraphy adds a number and the time to a runner's name.
        name = re.sub(r"-N[0-9]+-[0-9/:-]+$", "", runner)
        result = Result(name, "", f"{runner}, by Polygraphy", [Group(f"golden {files.graph}", "PyTorch", parity=found)])
        result.judge(options.max_loss)
        report.results.append(result)
    return report


def _print(reports: Sequence[Report], titles: Sequence[str]) -> None:
    console = Console()
    if console.width < LEAST_WIDTH:  # a pipe counts as 80 columns
        console = Console(width=LEAST_WIDTH)
    every = [r.bundle.title for r in reports]
    for report, title in zip(reports, titles, strict=True):
        show(report, title, console)
    for report, title in zip(reports, titles, strict=True):
        if every.count(report.bundle.title) > 1:
            console.print(f"{title}: {report.bundle.path}", markup=False, highlight=False, soft_wrap=True)
    for name, meaning in DEFINITIONS.items():
        console.print(f"  {name}: {meaning}", markup=False, highlight=False, soft_wrap=True)
