"""Figures of `rescale-bench speed` from raw times, and its tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rescale_bench.machine import PRODUCT_FLOPS, PRODUCT_SIDE
from rescale_bench.peers import NAMES as PEERS
from rescale_bench.speed_processes import Timing
from rescale_bench.speed_worker import DIRECTIONS, PARTS

EXTRA = ("compute", "pipelined")
"""Parts within or beside the run part, where they were measured."""

DEFINITIONS = {
    "decode, run, encode": "downscale: PNG to pixels, pixels to LR codes, codes and digests to the LR file; upscale: LR file to"
    " codes with digests checked, codes to pixels, pixels to PNG; seconds, medians, files in memory",
    "compute": "within run: the graphs alone, without padding, tiling and joining; on a GPU on data that is there, waited for",
    "pipelined": "on a GPU: seconds a picture where several follow each other, copies overlapping where the mode lets them",
    "first": "the warm-up from file to file: compilation and first allocations; in no other figure",
    "p95": "95th percentile by nearest rank: a run that happened; below 20 runs it is the slowest",
    "whole": "from the first byte to the last, seconds, median; round trip: sum of both directions' medians",
    "GFLOP/s": "of the run part: 2 x multiply-accumulates of all subnets F, G and H, whether or not a graph leaves some out",
    "of peak": f"GFLOP/s of the run part as a share of the best float32 {PRODUCT_SIDE}x{PRODUCT_SIDE} matrix product in the same"
    " rounds (PyTorch, same threads); lower precisions and left-out work may exceed 100 %",
    "peak": "largest resident memory of a process that does this direction alone; in brackets before its first run",
    "x eager, x naive": "time of PyTorch eager, and of a plain torch.onnx.export on ONNX Runtime, by this one's: run (whole)",
    "differ": "share of uint8 values that are not the first competitor's, in brackets the largest difference in grey levels",
    "order": "each competitor in a process of its own, one run of each a round after a warm-up, rounds beginning in turn",
}


def spread(times: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest, quartiles and 95th percentile (nearest rank) of some seconds, and the seconds themselves."""
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    found = {"median": statistics.median(times), "min": min(times), "max": max(times), "q1": quartiles[0], "q3": quartiles[2]}
    return {**found, "p95": sorted(times)[math.ceil(0.95 * len(times)) - 1], "times": list(times)}


def product_report(timing: Timing) -> dict[str, Any]:
    """The machine's peak: GFLOP/s of the best matrix product."""
    times = timing.times["run"]
    return {"gflops": PRODUCT_FLOPS / min(times) / 1e9, "seconds": spread(times), "side": PRODUCT_SIDE}


def direction_report(timing: Timing, flops: int, peak_gflops: float) -> dict[str, Any]:
    """One competitor in one direction.

    Args:
        timing: with at least one run.
        flops: of the run part.
        peak_gflops: of the machine.
    """
    found: dict[str, Any] = {part: spread(timing.times[part]) for part in (*PARTS, "whole", *EXTRA) if part in timing.times}
    sums = [sum(parts) / whole for *parts, whole in zip(*(timing.times[p] for p in (*PARTS, "whole")), strict=True)]
    gflops = flops / found["run"]["median"] / 1e9
    return {
        "runner": timing.runner,
        **found,
        "first": timing.first,
        "parts_of_whole": [min(sums), statistics.median(sums), max(sums)],
        "gflops": gflops,
        "share_of_peak": gflops / peak_gflops,
        "peak_rss": timing.peak_rss,
        "base_rss": timing.base_rss,
    }


def medians(directions: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Median seconds of the run part and of the whole, by direction and, where both are there, of the round trip."""
    found = {d: {part: float(directions[d][part]["median"]) for part in ("run", "whole")} for d in directions}
    if set(DIRECTIONS) <= set(found):
        found["round_trip"] = {part: sum(found[d][part] for d in DIRECTIONS) for part in ("run", "whole")}
    return found


def add_ratios(competitors: Sequence[dict[str, Any]]) -> None:
    """Give each competitor its round trip, and how many times faster than each peer it is."""
    seconds = {c["name"]: medians(c["directions"]) for c in competitors}
    for c in competitors:
        mine = seconds[c["name"]]
        c["round_trip"] = mine.get("round_trip")
        c["times_faster"] = {
            peer: {
                what: {part: seconds[peer][what][part] / mine[what][part] for part in mine[what]} for what in mine if what in theirs
            }
            for peer, theirs in seconds.items()
            if peer in PEERS
        }


def sweep_flatness(sizes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By part: largest seconds per megapixel over the smallest, less 1."""
    found = {}
    for part in ("run", "whole"):
        values = [s["seconds_per_megapixel"][part] for s in sizes]
        found[part] = max(values) / min(values) - 1.0
    return found


def left_out_lines(measured: Mapping[str, Any]) -> list[str]:
    """Sizes that would have taken too long, a line each with the reason."""
    return [f"Left out: {resolution}: {why}" for resolution, why in measured["left_out"].items()]


def show(report: Mapping[str, Any]) -> None:
    """Print the tables."""
    console = Console()
    m = report["machine"]
    _line(console, f"{m['cpu']}, {', '.join(m['simd'])}; {m['threads']} of {m['cpus']} CPUs, load {m['load_average']}")
    _line(console, ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    for case in report["cases"]:
        _show_case(case, console)
    for case in report["sweeps"]:
        _show_sweep(case, console)
    for name, meaning in DEFINITIONS.items():
        _line(console, f"  {name}: {meaning}")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print(table: Table, console: Console) -> None:
    """Whole cells, also where the terminal wraps the lines or is a pipe, which counts as 80 columns."""
    Console(width=max(console.width, Console(width=10_000).measure(table).maximum)).print(table)


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for head in (*texts, *numbers):
        table.add_column(head, justify="left" if head in texts else "right", no_wrap=True)
    return table


def _head(case: Mapping[str, Any]) -> str:
    weights = {"same": "", "random": ", random weights", "unknown": ", peers with random weights"}[case["weights"]]
    return f"{case['model']}{weights}"


def _work(flops: Mapping[str, int]) -> str:
    down, up = (n / 1e9 for n in flops.values())
    return f"{up:.1f} GFLOP a direction" if down == up else f"{down:.1f} GFLOP down, {up:.1f} up"


def _show_case(case: Mapping[str, Any], console: Console) -> None:
    width, height = case["resolution"]
    peak = case["product"]["gflops"]
    title = f"{_head(case)}, {width}x{height}: {_work(case['flops'])}; matrix product {peak:.0f} GFLOP/s"
    numbers = ("decode", "run", "encode", "whole", "run min q1-q3 max", "GFLOP/s", "of peak", "peak MB")
    table = _table(title, ("competitor", "direction"), (*numbers, *(f"x {p}" for p in case["peers"]), "differ"))
    for c in case["competitors"]:
        for i, (direction, d) in enumerate(c["directions"].items()):
            differ = d["agreement"]
            table.add_row(
                c["name"] if i == 0 else "",
                direction,
                *(f"{d[part]['median']:.3f}" for part in (*PARTS, "whole")),
                "{min:.3f} {q1:.3f}-{q3:.3f} {max:.3f}".format(**d["run"]),
                f"{d['gflops']:.1f}",
                f"{100 * d['share_of_peak']:.0f} %",
                f"{d['peak_rss'] / 2**20:.0f} ({d['base_rss'] / 2**20:.0f})",
                *(_ratio(c, peer, direction) for peer in case["peers"]),
                "" if differ is None else f"{100 * differ['different'] / max(1, differ['values']):.2f} % ({differ['largest']})",
            )
        if c["round_trip"]:
            trip = c["round_trip"]
            cells = ["", "round trip", "", f"{trip['run']:.3f}", "", f"{trip['whole']:.3f}", "", "", "", ""]
            table.add_row(*cells, *(_ratio(c, peer, "round_trip") for peer in case["peers"]), "", end_section=True)
    _print(table, console)
    _show_rest(case, console)


def _ratio(competitor: Mapping[str, Any], peer: str, what: str) -> str:
    found = competitor["times_faster"].get(peer, {}).get(what)
    return "" if found is None else f"{found['run']:.2f} ({found['whole']:.2f})"


def _show_sweep(case: Mapping[str, Any], console: Console) -> None:
    title = f"{_head(case)}: seconds per megapixel of HR, median of the run part (of the whole)"
    sizes = [f"{width * height / 1e6:.1f} MP" for width, height in case["resolutions"]]
    table = _table(title, ("competitor", "direction"), (*sizes, "spread", "peak MB"))
    for c in case["competitors"]:
        for i, (direction, d) in enumerate(c["directions"].items()):
            cells = {tuple(s["resolution"]): s["seconds_per_megapixel"] for s in d["sizes"]}
            found = [cells.get(tuple(r)) for r in case["resolutions"]]
            table.add_row(
                c["name"] if i == 0 else "",
                direction,
                *("" if f is None else f"{f['run']:.3f} ({f['whole']:.3f})" for f in found),
                f"{100 * d['spread']['run']:.0f} % ({100 * d['spread']['whole']:.0f} %)",
                f"{d['peak_rss'] / 2**20:.0f}",
            )
    _print(table, console)
    for line in left_out_lines(case):
        _line(console, line)
    _show_rest(case, console)


def _show_rest(case: Mapping[str, Any], console: Console) -> None:
    for c in case["competitors"]:
        for direction, reason in c["failed"].items():
            _line(console, f"failed: {c['name']}, {direction}: {reason}")
    for reason in dict.fromkeys(case["missing"].values()):
        _line(console, f"not run: {', '.join(n for n, why in case['missing'].items() if why == reason)}: {reason}")
