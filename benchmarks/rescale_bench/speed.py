"""How fast a bundle is, in parts, beside PyTorch eager, torch.compile and a plain ONNX export in the same rounds."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from rescale import png
from rescale.comparison import Comparison
from rescale.console import Advance, progress_bar, work_bar
from rescale.errors import BackendError, RescaleError
from rescale.files import atomic_write
from rescale.threads import usable_threads
from rescale_bench import peers
from rescale_bench.bundles import distinct
from rescale_bench.machine import machine, versions
from rescale_bench.outputs import check_files
from rescale_bench.peers_torch import export_naive, save_net
from rescale_bench.sizes import Size, parse_size
from rescale_bench.speed_plan import Competitor, Options, Subject, competitors, sample_picture, side_lengths, subjects, within
from rescale_bench.speed_processes import Job, Process, Timing, run_in_turn
from rescale_bench.speed_report import DEFINITIONS, add_ratios, direction_report, product_report, show, spread, sweep_flatness
from rescale_bench.speed_worker import BACKEND, DIRECTIONS, NET, PRODUCT, Spec, arrays_file
from rescale_train.config import NetConfig
from rescale_train.cost import correction_macs, macs_per_lr_pixel

REPEATS, SWEEP_REPEATS, PROBE_RUNS = 5, 3, 1
"""Runs after the warm-up: of a case, of a sweep, and of the smallest size before a sweep."""


@dataclass
class Session:
    """What all cases of one command share."""

    threads: int
    repeats: int
    memory: int | None
    folder: Path
    seconds: float | None = None
    advance: Advance = lambda name, count=1: None
    _product: Process | None = None

    def product(self) -> Process:
        """The process that multiplies matrices, started on first use; it outlives the competitors'."""
        if self._product is None:
            self._product = Process(Spec(PRODUCT, DIRECTIONS[0], self.threads))
            self._product.ready()
        return self._product

    def close(self) -> None:
        """End it."""
        if self._product is not None:
            self._product.close()


def run(options: Options, out: Path | None, as_json: bool) -> bool:
    """Measure and print.

    Returns:
        False if a competitor failed on the way.

    Raises:
        OutputError: `out` cannot be written; told before anything is measured.
        RescaleError: a wrong option, or a backend that was named does not run here.
    """
    check_files(out)
    report = measure(options)
    text = json.dumps(report, indent=2, allow_nan=False)
    if out is not None:
        atomic_write(out, (text + "\n").encode())
    if as_json:
        print(text)
    else:
        show(report)
    return not any(c["failed"] for case in (*report["cases"], *report["sweeps"]) for c in case["competitors"])


def measure(options: Options) -> dict[str, Any]:
    """The whole report as plain tables.

    Raises:
        ConfigError, BackendError, InputError: a wrong option.
        RescaleError: a backend that was named does not run here.
    """
    wanted = competitors(options)
    sizes = [parse_size(text, "--resolution") for text in dict.fromkeys(options.resolutions or ("1280x720",))]
    repeats = options.repeats or (SWEEP_REPEATS if options.sweep else REPEATS)
    threads = options.threads or usable_threads()
    head: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(threads),
        "versions": versions(),
        "repeats": repeats,
        "memory": options.memory,
        "definitions": DEFINITIONS,
    }
    cases: list[dict[str, Any]] = []
    sweeps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="rescale-speed-") as folder, contextlib.ExitStack() as stack:
        session = stack.enter_context(contextlib.closing(Session(threads, repeats, options.memory, Path(folder), options.seconds)))
        with work_bar("exporting") as told:
            found = list(subjects(options, wanted, Path(folder), told))
        every = [replace(s, name=name) for s, name in zip(found, distinct([s.title for s in found]), strict=True)]
        if options.sweep:
            runs = (len(wanted) - _peers(wanted)) * (len(options.sweep_megapixels) * (repeats + 1) + PROBE_RUNS + 1)
        else:
            runs = (len(wanted) + 1) * len(sizes) * (repeats + 1)
        with progress_bar(len(every) * len(DIRECTIONS) * runs) as session.advance:
            for subject in every:
                if options.sweep:
                    sweeps.append(measure_sweep(subject, wanted, options, session))
                else:
                    cases += [measure_case(subject, wanted, size, session) for size in sizes]
    return {**head, "cases": cases, "sweeps": sweeps}


def measure_case(subject: Subject, wanted: Sequence[Competitor], size: Size, session: Session) -> dict[str, Any]:
    """One bundle at one size: every competitor, both directions.

    Args:
        subject: what is measured.
        wanted: by whom.
        size: (height, width) of the HR picture.
        session: see `Session`.
    """
    scale = subject.bundle.scale
    lr_size = -(-size[0] // scale), -(-size[1] // scale)
    flops = flops_of(subject.net.config, lr_size)
    folder = Path(tempfile.mkdtemp(dir=session.folder))
    source = folder / "source.png"
    source.write_bytes(png.encode(sample_picture(*size)))
    missing: dict[str, str] = {}
    if _peers(wanted):
        save_net(subject.net, folder / NET)
        if subject.net.corrections:
            why = "the encoder's corrections take gradients; compare a bundle made with --corrections 0"
            missing |= dict.fromkeys(peers.TRACED, why)
        else:
            export_naive(subject.net, folder, lr_size)
    product = Timing()
    timings: dict[str, dict[str, Timing]] = {}
    order: dict[str, list[str]] = {}
    agreements: dict[str, dict[str, Any]] = {}
    for direction in DIRECTIONS:
        with started(subject, wanted, direction, folder, session, missing) as (processes, found):
            jobs = {n: Job(n, source, _saved(folder, direction, n)) for n in processes} | {PRODUCT: Job(PRODUCT, source)}
            all_processes, all_timings = processes | {PRODUCT: session.product()}, found | {PRODUCT: product}
            order[direction] = run_in_turn(all_processes, all_timings, jobs, session.repeats, session.advance, session.seconds)
        if product.failed is not None:
            raise BackendError(f"the matrix product failed: {product.failed}")
        timings[direction] = found
        agreements[direction] = agreement(subject, [_saved(folder, direction, n) for n in found], list(found), direction)
        source = next((s for n in found if (s := _saved(folder, direction, n)).exists()), source)
    peak = product_report(product)
    results = []
    for c in wanted:
        mine = {d: timings[d][c.name] for d in DIRECTIONS if c.name in timings[d]}
        directions = {
            d: direction_report(t, flops[d], peak["gflops"]) | {"agreement": agreements[d].get(c.name)}
            for d, t in mine.items()
            if t.failed is None
        }
        if mine:
            failed = {d: t.failed for d, t in mine.items() if t.failed is not None}
            head = {"name": c.name, "kind": c.kind, "backend": c.backend, "precision": c.precision, "mode": c.mode}
            results.append({**head, "directions": directions, "failed": failed})
    add_ratios(results)
    return {
        **_subject_head(subject),
        "resolution": [size[1], size[0]],
        "flops": flops,
        "product": peak,
        "peers": [c["name"] for c in results if c["kind"] != BACKEND],
        "competitors": results,
        "missing": missing,
        "order": order,
    }


def flops_of(config: NetConfig, lr_size: Size) -> dict[str, int]:
    """Floating-point operations of each direction for an LR picture of (height, width)."""
    up = 2 * macs_per_lr_pixel(config) * lr_size[0] * lr_size[1]
    more = 2 * config.corrections * correction_macs(config) * lr_size[0] * lr_size[1]
    return dict(zip(DIRECTIONS, (up + more, up), strict=True))


def measure_sweep(subject: Subject, wanted: Sequence[Competitor], options: Options, session: Session) -> dict[str, Any]:
    """Seconds per megapixel of the backends at several sizes, all in one process a backend and direction.

    The smallest size is run on its own first: how long the others will take is told from that on stderr, before they run.
    """
    backends = [c for c in wanted if c.kind == BACKEND]
    sizes = [side_lengths(n) for n in options.sweep_megapixels]
    probe = _sweep_sizes(subject, backends, sizes[:1], replace(session, repeats=PROBE_RUNS))
    missing = probe["missing"]
    backends = [c for c in backends if c.name not in missing]
    directions = [d for c in probe["competitors"] for d in c["directions"].values()]
    seconds = sum(s["whole"]["median"] for d in directions for s in d["sizes"])
    kept, expected, absent = within(options.minutes, sizes, seconds, session.repeats)
    session.advance("", len(DIRECTIONS) * len(backends) * len(absent) * (session.repeats + 1))
    listed = ", ".join(f"{width}x{height}" for height, width in kept)
    print(f"{subject.title}, {listed}: about {math.ceil(expected)} min", file=sys.stderr)
    found = _sweep_sizes(subject, backends, kept, session)
    return found | {"missing": missing | found["missing"], "left_out": absent, "minutes_expected": expected}


def _sweep_sizes(subject: Subject, backends: Sequence[Competitor], sizes: Sequence[Size], session: Session) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=session.folder))
    sources = [folder / f"source{i}.png" for i in range(len(sizes))]
    for path, size in zip(sources, sizes, strict=True):
        path.write_bytes(png.encode(sample_picture(*size), 1))
    missing: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {c.name: {} for c in backends}
    failed: dict[str, dict[str, str]] = {c.name: {} for c in backends}
    order: dict[str, list[str]] = {}
    for direction in DIRECTIONS:
        with started(subject, backends, direction, folder, session, missing) as (processes, opened):
            down = direction == DIRECTIONS[0]
            jobs, timings = {}, {}
            for i in range(len(sizes)):
                for n in processes:
                    job = f"{n} {sizes[i][1]}x{sizes[i][0]}"
                    jobs[job] = Job(n, sources[i], _saved(folder, f"{direction}{i}", n) if down else None)
                    timings[job] = replace(opened[n], times={})
            order[direction] = run_in_turn(processes, timings, jobs, session.repeats, session.advance)
        for n in processes:
            mine = [(s, timings[f"{n} {s[1]}x{s[0]}"]) for s in sizes]
            reasons = [t.failed for _, t in mine if t.failed is not None]
            if reasons:
                failed[n][direction] = reasons[0]
            done = [_size_report(s, t) for s, t in mine if t.failed is None]
            if done:
                rss = max(t.peak_rss for _, t in mine)
                found[n][direction] = {"sizes": done, "spread": sweep_flatness(done), "peak_rss": rss, "runner": opened[n].runner}
        if down:
            saved = [[_saved(folder, f"{direction}{i}", n) for n in processes] for i in range(len(sizes))]
            sources = [next((s for s in made if s.exists()), source) for made, source in zip(saved, sources, strict=True)]
    rows = [{"name": n, "directions": found[n], "failed": failed[n]} for n in found if found[n] or failed[n]]
    resolutions = [[width, height] for height, width in sizes]
    return {
        **_subject_head(subject),
        "resolutions": resolutions,
        "competitors": rows,
        "missing": missing,
        "order": order,
    }


@contextlib.contextmanager
def started(
    subject: Subject, wanted: Sequence[Competitor], direction: str, folder: Path, session: Session, missing: dict[str, str]
) -> Iterator[tuple[dict[str, Process], dict[str, Timing]]]:
    """Processes of all that run here, and empty timings, by name; ended when the block ends. The others go into `missing`.

    Raises:
        RescaleError: one that was asked for does not run, or none does.
    """
    shared = Spec(BACKEND, direction, session.threads, str(subject.bundle.path), memory=session.memory, folder=str(folder))
    specs = {c.name: replace(shared, kind=c.kind, backend=c.backend, precision=c.precision, mode=c.mode) for c in wanted}
    asked = {c.name for c in wanted if c.asked}
    timings: dict[str, Timing] = {}
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name, spec in specs.items():
            if name not in missing:
                processes[name] = stack.enter_context(contextlib.closing(Process(spec)))
        for name in list(processes):
            try:
                runner, base = processes[name].ready()
            except RescaleError as e:
                if name in asked or (name in peers.NAMES and name not in peers.OPTIONAL):
                    raise type(e)(f"{name}: {e}") from None
                missing[name] = str(e)
                del processes[name]
            else:
                timings[name] = Timing(runner=runner, base_rss=base, peak_rss=base)
        if not any(c.kind == BACKEND and c.name in processes for c in wanted):
            reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
            raise BackendError(f"{subject.bundle.path}: no backend runs here: {reasons}")
        yield processes, timings


def agreement(subject: Subject, files: Sequence[Path], names: Sequence[str], direction: str) -> dict[str, Any]:
    """How the arrays of each competitor differ from those of the first that has any, by name; None for foreign weights."""
    found: dict[str, Any] = {}
    reference: dict[str, npt.NDArray[np.uint8]] | None = None
    for name, file in zip(names, files, strict=True):
        path = arrays_file(file)
        if not path.exists():
            continue
        with np.load(path, allow_pickle=False) as data:
            mine = {key: data[key] for key in data.files}
        reference = reference or mine
        if subject.weights == "unknown" and name in peers.NAMES:
            found[name] = None
            continue
        comparison = Comparison()
        for key, array in mine.items():
            comparison.add(array, reference[key], f"{name}: {direction}")
        found[name] = comparison.to_dict()
    return found


def _peers(wanted: Sequence[Competitor]) -> int:
    return sum(c.kind != BACKEND for c in wanted)


def _subject_head(subject: Subject) -> dict[str, Any]:
    bundle, macs = subject.bundle, macs_per_lr_pixel(subject.net.config)
    head = {"bundle": bundle.path.name, "model": subject.title, "variant": bundle.variant.name, "scale": bundle.scale}
    return {**head, "size": bundle.size, "weights": subject.weights, "macs_per_lr_pixel": macs}


def _saved(folder: Path, direction: str, name: str) -> Path:
    return folder / f"{direction}.{quote(name, safe='')}.png"


def _size_report(size: Size, timing: Timing) -> dict[str, Any]:
    megapixels = size[0] * size[1] / 1e6
    parts = {part: spread(times) for part, times in timing.times.items()}
    per = {part: parts[part]["median"] / megapixels for part in ("run", "whole")}
    return {"resolution": [size[1], size[0]], "megapixels": megapixels, "seconds_per_megapixel": per, **parts}
