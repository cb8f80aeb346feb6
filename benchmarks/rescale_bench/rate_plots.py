"""Plots of a rate report, as SVG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rescale.console import printable
from rescale_bench.rate_report import CONTAINERS, TITLES

COLOURS = {
    "jpeg420": "#b2182b",
    "jpeg444": "#ef8a62",
    "webp": "#1b7837",
    "avif420": "#2166ac",
    "avif444": "#67a9cf",
    "jxl": "#762a83",
    "jpeg2000": "#8c6d31",
}
NAME_LENGTH = 80
"""Characters that a set or a model gives to the name of a plot's file."""

MARKERS = {"png": "s", "webp": "o", "jxl": "D"}


def plots(report: Mapping[str, Any]) -> dict[str, tuple[str, bytes]]:
    """Each set's curves, and for each model on it what the restored HR has more than every codec.

    Returns:
        (file name, SVG) by ``SET/curves`` and ``SET/MODEL``.
    """
    found: dict[str, tuple[str, bytes]] = {}
    taken: set[str] = set()
    for means, measured in zip(report["summary"], report["sets"], strict=True):
        name = means["set"]
        found[f"{name}/curves"] = (_file(taken, name), _curves(means))
        for i, model in enumerate(means["models"]):
            entries = [p["rescaled"][i] for p in measured["pictures"]]
            found[f"{name}/{model['model']}"] = (_file(taken, name, model["model"]), _gains(model, entries, name))
    return found


def _file(taken: set[str], *names: str) -> str:
    """A file name that no other plot has, numbered where what is left of its names is not their own; goes into `taken`."""
    base = "_".join(["rate", *(_slug(n) for n in names)])
    number = 1
    while (file := f"{base}{f'_{number}' if number > 1 else ''}.svg") in taken:
        number += 1
    taken.add(file)
    return file


def _slug(text: str) -> str:
    # No file system has room for two names of any length in one.
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:NAME_LENGTH] or "set"


def _plain(text: str) -> str:
    """A name of anybody's folder or bundle for a figure: on one line, in characters that XML has, its dollars no mathematics."""
    return printable(text).replace("$", r"\$")


def _figure(width: float, height: float) -> Any:
    # Not pyplot: it would choose a window system.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> bytes:
    """The same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    style = {"svg.hashsalt": "rescale", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # text stays text, so the viewer's fonts count
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _curves(means: Mapping[str, Any]) -> bytes:
    """Mean Y-PSNR by mean bits per HR pixel: a line for each codec, a mark for each LR file."""
    figure = _figure(8.0, 5.0)
    axes = figure.subplots()
    bits = 8.0 / means["pixels"]
    marks = [(m, c, m["files"][c] * bits) for m in means["models"] for c in m["files"]]
    for codec, points in means["curves"].items():
        rows = [p for p in points if math.isfinite(p["psnr_y"])]
        axes.plot(
            [p["bytes"] * bits for p in rows], [p["psnr_y"] for p in rows], ".-", color=COLOURS[codec], label=TITLES[codec], lw=1.3
        )
    for i, (model, container, at) in enumerate(marks):
        shade = str(0.0 + 0.45 * means["models"].index(model) / max(1, len(means["models"]) - 1))
        axes.plot(
            at,
            model["psnr_y"],
            MARKERS[container],
            color=shade,
            ms=8,
            label=f"{_plain(model['model'])}, {CONTAINERS[container]}",
            zorder=5 + i,
        )
    finite = [m["psnr_y"] for m, _, _ in marks if math.isfinite(m["psnr_y"])]
    if marks and finite:
        axes.set_xlim(0, 1.35 * max(at for _, _, at in marks))
        axes.set_ylim(min(finite) - 8, max(finite) + 9)
    axes.set_xlabel("bits per HR pixel (mean)")
    axes.set_ylabel("Y-PSNR of the HR, dB (mean)")
    count = f"{means['count']} picture" + ("s" if means["count"] != 1 else "")
    axes.set_title(f"{_plain(means['set'])}, {count}: HR from an LR file, and the HR coded as it is", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return _svg(figure)


def _gains(model: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], name: str) -> bytes:
    """A dot for each picture: dB of Y that the restored HR has more than a codec in the bytes of its smallest LR file."""
    container = min(model["files"], key=lambda c: model["files"][c])
    kinds = (("same_bytes", "the HR coded in the same bytes"), ("residual", "bit-exact bicubic LR + residual in the same bytes"))
    figure = _figure(9.5, 4.2)
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharex=True), kinds, strict=True):
        codecs = list(model[kind][container])
        for row, codec in enumerate(codecs):
            matches = [(e, e[kind][container][codec]) for e in entries]
            gains = [e["psnr_y"] - m["psnr_y"] for e, m in matches if m["reached"] != "below"]
            gains = [g for g in gains if math.isfinite(g)]
            axes.plot(gains, [row] * len(gains), "o", color=COLOURS[codec], alpha=0.45, ms=5)
            if gains:
                axes.plot(sum(gains) / len(gains), row, "|", color="black", ms=18, mew=2)
        axes.axvline(0.0, color="black", lw=1)
        axes.set_yticks(range(len(codecs)), [TITLES[c] for c in codecs])
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("dB that the restored HR has more (Y)")
        axes.grid(axis="x", alpha=0.3)
    what = f"{_plain(model['model'])} on {_plain(name)}"
    figure.suptitle(f"{what}: each picture, and the mean; LR file as {CONTAINERS[container]}", fontsize=11)
    return _svg(figure)
