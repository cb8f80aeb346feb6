"""Plots of a report as SVG elements, whose colours are those of the page around them, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rescale_bench.report_pictures import BLOCK, HeatMap
from rescale_bench.report_text import Case, label, megapixels, resolution
from rescale_bench.speed_worker import DIRECTIONS

SERIES = ("#0000a0", "#0000a1", "#0000a2", "#0000a3", "#0000a4", "#0000a5", "#0000a6", "#0000a7")
"""Stand for the page's variables ``--s0`` to ``--s7``."""

TEXT, RULE, PAPER = "#0000b0", "#0000b1", "#0000b2"
VARIABLES = {c: f"var(--s{i})" for i, c in enumerate(SERIES)} | {TEXT: "var(--ink)", RULE: "var(--rule)", PAPER: "var(--paper)"}
MARKERS = "os^Dv*Px"

STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}

WIDTH = 4.9
"""Inches of a plot: two stand side by side on a wide page, and one can be read on a telephone."""


def throughput(cases: Sequence[Case], direction: str) -> str:
    """Megapixels of HR a second, arrays to arrays, by resolution and competitor; whiskers from the slowest run to the fastest."""
    if len(cases) == 1:
        return _throughput(cases[0], direction)
    ordered = sorted(cases, key=megapixels)
    names = competitors(cases)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for i, name in enumerate(names):
            points = [(j, megapixels(c), d["run"]) for j, c in enumerate(ordered) if (d := _direction(c, name, direction))]
            if not points:
                continue
            x = [j + 0.03 * (i - len(names) / 2) for j, _, _ in points]
            y = [mp / run["median"] for _, mp, run in points]
            spread = [
                [at - mp / run["max"] for at, (_, mp, run) in zip(y, points, strict=True)],
                [mp / run["min"] - at for at, (_, mp, run) in zip(y, points, strict=True)],
            ]
            look = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5.5, "linewidth": 1.6}
            axes.errorbar(x, y, yerr=spread, elinewidth=1.0, capsize=2.0, label=label(name), **look)
        axes.set_xticks(range(len(ordered)), [resolution(c) for c in ordered])
        axes.set_xlim(-0.4, len(ordered) - 0.6)
        axes.set_ylim(0)
        axes.set_ylabel("megapixels a second")
        axes.set_xlabel("size of the HR picture")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=3, handlelength=2.2, columnspacing=1.4)

    return _svg(draw, (WIDTH, 3.9), f"Throughput, {direction}: megapixels a second by resolution and competitor")


def _throughput(case: Case, direction: str) -> str:
    """The same of one resolution, as bars."""
    names = [n for n in competitors([case]) if _direction(case, n, direction)]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, name in enumerate(reversed(names)):
            run, size = _direction(case, name, direction)["run"], megapixels(case)
            rate, slowest, fastest = (size / run[k] for k in ("median", "max", "min"))
            error = {"ecolor": TEXT, "capsize": 2.0, "elinewidth": 1.0}
            colour = SERIES[names.index(name) % len(SERIES)]
            axes.barh(row, rate, xerr=[[rate - slowest], [fastest - rate]], height=0.6, color=colour, error_kw=error)
        axes.set_yticks(range(len(names)), [label(n) for n in reversed(names)])
        axes.set_xlim(0)
        axes.set_xlabel(f"megapixels a second at {resolution(case)}")
        axes.grid(axis="y", visible=False)

    return _svg(draw, (WIDTH, 0.9 + 0.36 * len(names)), f"Throughput, {direction}, {resolution(case)}: megapixels a second")


def latency(case: Case, direction: str) -> str:
    """Seconds file to file: every run as a tick, quartiles as a bar, the median as a dot and the 95th percentile as a diamond."""
    names = [n for n in competitors([case]) if _direction(case, n, direction)]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, name in enumerate(reversed(names)):
            whole = _direction(case, name, direction)["whole"]
            colour = SERIES[names.index(name) % len(SERIES)]
            unit = {k: 1000 * whole[k] for k in ("q1", "q3", "median", "p95")}
            axes.barh(row, unit["q3"] - unit["q1"], left=unit["q1"], height=0.5, color=colour, alpha=0.35)
            axes.plot([1000 * t for t in whole["times"]], [row] * len(whole["times"]), "|", color=colour, markersize=12, alpha=0.8)
            axes.plot(unit["median"], row, "o", color=colour, markersize=6)
            axes.plot(unit["p95"], row, "D", color=PAPER, markeredgecolor=colour, markeredgewidth=1.4, markersize=5.5)
        axes.set_yticks(range(len(names)), [label(n) for n in reversed(names)])
        axes.set_xlim(0)
        axes.set_xlabel("milliseconds, file to file")
        axes.grid(axis="y", visible=False)

    return _svg(draw, (WIDTH, 0.9 + 0.36 * len(names)), f"Latency of single runs, {direction}, {resolution(case)}")


def parts(case: Case, direction: str) -> str:
    """Where the time of a picture goes: decode, graphs alone, the rest of the network's part, encode."""
    names = [n for n in competitors([case]) if _direction(case, n, direction)]
    shown = ("decode", "graphs", "padding, tiles, copies", "encode")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, name in enumerate(reversed(names)):
            d = _direction(case, name, direction)
            compute = d["compute"]["median"] if "compute" in d else d["run"]["median"]
            rest = max(0.0, d["run"]["median"] - compute)
            left = 0.0
            for i, value in enumerate((d["decode"]["median"], compute, rest, d["encode"]["median"])):
                axes.barh(row, 1000 * value, left=1000 * left, height=0.6, color=SERIES[(0, 5, 1, 2)[i]])
                left += value
        axes.set_yticks(range(len(names)), [label(n) for n in reversed(names)])
        axes.set_xlabel("milliseconds, medians")
        axes.grid(axis="y", visible=False)
        from matplotlib.patches import Patch

        handles = [Patch(color=SERIES[(0, 5, 1, 2)[i]], label=text) for i, text in enumerate(shown)]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.0, columnspacing=1.2)

    return _svg(draw, (WIDTH, 1.2 + 0.36 * len(names)), f"Parts of a picture's time, {direction}, {resolution(case)}")


def heat(found: HeatMap) -> str:
    """The map of a parity report's worst picture, with its scale."""
    width, height = found.size

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        top = max(0.01, 100 * float(found.values.max()))
        rows, columns = found.values.shape
        extent = (0, columns * BLOCK, rows * BLOCK, 0)
        image = axes.imshow(100 * found.values, cmap="cividis", vmin=0, vmax=top, extent=extent, interpolation="nearest")
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.grid(visible=False)
        w = found.worst
        from matplotlib.patches import Rectangle

        square = Rectangle((w["left"], w["top"]), w["width"], w["height"], fill=False, edgecolor=SERIES[3], linewidth=1.6)
        axes.add_patch(square)
        axes.set_xlabel("column, pixels of HR")
        axes.set_ylabel("row")
        bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
        bar.set_label(f"% of values that differ, {BLOCK}x{BLOCK} squares")
        bar.outline.set_visible(False)

    tall = min(1.4, max(0.35, height / width))
    return _svg(draw, (WIDTH, 0.6 + 0.8 * WIDTH * tall), f"Where {found.title} differs from {found.reference} on {found.picture}")


def competitors(cases: Sequence[Case]) -> list[str]:
    """Names of all that ran anywhere, in their order."""
    return list(dict.fromkeys(c["name"] for case in cases for c in case["competitors"] if c["directions"]))


def _direction(case: Case, name: str, direction: str) -> Mapping[str, Any]:
    assert direction in DIRECTIONS
    found = next((c for c in case["competitors"] if c["name"] == name), None)
    return {} if found is None else found["directions"].get(direction, {})


def _svg(draw: Any, size: tuple[float, float], title: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")  # not pyplot: it would choose a window system
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    used = set(re.findall(r"#([\w.-]+)", text))
    # The others are the same in every plot of a page.
    text = re.sub(r' id="([^"]*)"', lambda m: m.group() if m.group(1) in used else "", text)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", re.sub(r"font-family: [^;\"]*;?", "", text))
    text = re.sub("|".join(VARIABLES), lambda m: VARIABLES[m.group()], text)
    width, height = re.findall(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', text)[0]
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escaped(title)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + text[text.index(">") + 1 :]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
