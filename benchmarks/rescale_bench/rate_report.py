"""A rate report as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rescale_bench.rate_codecs import LOSSLESS, LOSSY

TITLES = {c.name: c.title for c in LOSSY}
CONTAINERS = {"png": "PNG", "webp": "WebP", "jxl": "JPEG XL", "avif": "AVIF"}

Row = Mapping[str, Any]


def as_markdown(report: Mapping[str, Any], plots: Mapping[str, str] | None = None) -> str:
    """The whole report.

    Args:
        report: as `rescale_bench.rate_cli` writes it.
        plots: file name by key, as `rescale_bench.rate_plots.plots` names them.
    """
    lines: list[str] = []
    for found in report["summary"]:
        lines += _set(found, plots or {})
    lines += ["## How it was measured", ""]
    lines += [f"- {name}: {text}" for name, text in report["definitions"].items()]
    lines += [f"- {name}: {text}" for name, text in report["settings"].items()]
    lines += ["- versions: " + ", ".join(f"{k} {v}" for k, v in report["versions"].items())]
    if report["missing"]:
        lines += ["", "Not measured, because it is not installed:", "", *(f"- {line}" for line in report["missing"])]
    failed = [
        f"- {p['name']} ({s['set']}), {codec}: {reason}"
        for s in report["sets"]
        for p in s["pictures"]
        for codec, reason in p["failed"].items()
    ]
    if failed:
        lines += ["", "Codecs that failed on a picture, and are not in its set's means:", "", *failed]
    return "\n".join(lines) + "\n"


def _set(found: Row, plots: Mapping[str, str]) -> list[str]:
    count = f"{found['count']} picture" + ("s" if found["count"] != 1 else "")
    lines = [f"## {found['set']}, {count}", ""]
    if "curves" in plots_of(found, plots):
        lines += [f"![Y-PSNR by bits per pixel]({plots_of(found, plots)['curves']})", ""]
    lines += ["Mean kB of a file; of LR files in brackets the share of the lossless HR in the same codec:", ""]
    columns = [c.name for c in LOSSLESS if c.name in found["lossless"]]
    lines += _head(["", *(CONTAINERS[c] for c in columns)])
    lines.append(_row(["HR, lossless", *(_kb(found["lossless"][c]) for c in columns)]))
    for model in found["models"]:
        shares = [
            f"{_kb(model['files'][c])} ({100 * model['files'][c] / found['lossless'][c]:.0f} %)" if c in model["files"] else ""
            for c in columns
        ]
        lines.append(_row([f"LR file, {model['model']}", *shares]))
    for scale, sizes in {m["scale"]: m["bicubic_lr"] for m in found["models"]}.items():
        lines.append(_row([f"bicubic LR, x{scale}, lossless", *(_kb(sizes[c]) if c in sizes else "" for c in columns)]))
    lines.append("")
    for model in found["models"]:
        lines += _model(found, model, plots_of(found, plots).get(model["model"], ""))
    return lines


def plots_of(found: Row, plots: Mapping[str, str]) -> dict[str, str]:
    """The files that belong to a set, by what they show: ``curves`` or a model."""
    prefix = f"{found['set']}/"
    return {k.removeprefix(prefix): v for k, v in plots.items() if k.startswith(prefix)}


def _model(found: Row, model: Row, plot: str) -> list[str]:
    lines = [f"### {model['model']} on {found['set']}", "", *verdict(model), ""]
    if plot:
        lines += [f"![restored minus each codec, dB of Y]({plot})", ""]
    containers = list(model["files"])
    smallest = min(containers, key=lambda c: model["files"][c])
    restored = [f"**{_db(model['psnr_y'])}** ({_db(model['psnr_rgb'])})"] * len(containers)
    lines += [
        "Mean Y-PSNR (RGB-PSNR) in dB; behind it, of how many pictures the restored HR is the better one, by Y / by RGB:",
        "",
        *_head(
            [
                "the HR in the bytes of the LR file",
                *(f"{CONTAINERS[c]}, {_kb(model['files'][c])} kB" for c in containers),
                f"bytes for the same Y-PSNR, of the LR's {CONTAINERS[smallest]}",
            ]
        ),
        _row(["**restored from the LR file**", *restored, "100 %"]),
    ]
    for codec, title in TITLES.items():
        if any(codec in model["same_bytes"][c] for c in containers):
            cells = [_cell(model["same_bytes"][c].get(codec)) for c in containers]
            lines.append(_row([title, *cells, _needed(model["same_psnr"].get(codec), smallest)]))
    if any(model["residual"][c] for c in containers):
        lines += [
            "",
            *_head(["a bit-exact bicubic LR and a lossy residual in the same bytes", *(CONTAINERS[c] for c in containers)]),
        ]
        lines.append(_row(["**restored from the LR file**", *restored]))
        for codec, title in TITLES.items():
            if any(codec in model["residual"][c] for c in containers):
                lines.append(_row([title, *(_cell(model["residual"][c].get(codec)) for c in containers)]))
    return [*lines, ""]


def verdict(model: Row) -> list[str]:
    """What the means say, in sentences: against the best codec in the smallest LR file's bytes, JPEG, and the best residual."""
    smallest = min(model["files"], key=lambda c: model["files"][c])
    name = CONTAINERS[smallest]
    lines = []
    rivals = {k: v for k, v in model["same_bytes"][smallest].items() if v["count"]}
    if rivals:
        best = max(rivals, key=lambda c: rivals[c]["psnr_y"])
        text = f"In the bytes of the {name} LR file {TITLES[best]} has {_difference(rivals[best], 'the restored HR')}"
        need = model["same_psnr"].get(best)
        if need and need["count"]:
            text += f"; it needs {100 * need['share'][smallest]:.0f} % of those bytes for the same Y-PSNR"
        lines.append(text + ".")
        if "jpeg420" in rivals and best != "jpeg420":
            lines.append(f"JPEG 4:2:0 has {_difference(rivals['jpeg420'], 'it')}.")
    residuals = {k: v for k, v in model["residual"][smallest].items() if v["count"]}
    if residuals:
        best = max(residuals, key=lambda c: residuals[c]["psnr_y"])
        lines.append(
            f"A bit-exact bicubic {name} and a residual in {TITLES[best]} have {_difference(residuals[best], 'the restored HR')}."
        )
    return lines


def _difference(stat: Row, than: str) -> str:
    gain = stat["gain_y"]["mean"]
    return f"{abs(gain):.2f} dB {'less' if gain > 0 else 'more'} than {than} (Y, mean)"


def _cell(stat: Row | None) -> str:
    if stat is None:
        return "failed"
    if not stat["count"]:
        return "not in so few bytes"
    bound = "> " if stat["above"] else ""
    text = f"{bound}{_db(stat['psnr_y'])} ({_db(stat['psnr_rgb'])}) {stat['better_y']} / {stat['better_rgb']} of {stat['count']}"
    notes = [f"{stat['above']} at its best quality"] if stat["above"] else []
    notes += [f"{stat['below']} not in so few bytes"] if stat["below"] else []
    return text + (f"; {', '.join(notes)}" if notes else "")


def _needed(stat: Row | None, container: str) -> str:
    if stat is None or not stat["count"]:
        return "not reached" if stat else "failed"
    left_out = stat["above"] + stat["below"]
    return f"{100 * stat['share'][container]:.0f} %" + (f" ({stat['count']} pictures; {left_out} not reached)" if left_out else "")


def _db(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "inf"


def _kb(size: float) -> str:
    return f"{size / 1000:.1f}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: list[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]
