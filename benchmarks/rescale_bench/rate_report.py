"""A rate report as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rescale_bench.markdown import head, plain, row
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
        plain(f"- {p['name']} ({s['set']}), {codec}: {reason}")
        for s in report["sets"]
        for p in s["pictures"]
        for codec, reason in p["failed"].items()
    ]
    if failed:
        lines += ["", "Codecs that failed on a picture, and are not in its set's means:", "", *failed]
    return "\n".join(lines) + "\n"


def _set(found: Row, plots: Mapping[str, str]) -> list[str]:
    count = f"{found['count']} picture" + ("s" if found["count"] != 1 else "")
    lines = [f"## {plain(found['set'])}, {count}", ""]
    if "curves" in plots_of(found, plots):
        lines += [f"![Y-PSNR by bits per pixel]({plots_of(found, plots)['curves']})", ""]
    lines += ["Mean kB of a file; of LR files in brackets the share of the lossless HR in the same codec:", ""]
    columns = [c.name for c in LOSSLESS if c.name in found["lossless"]]
    lines += head(["", *(CONTAINERS[c] for c in columns)])
    lines.append(row(["HR, lossless", *(_kb(found["lossless"][c]) for c in columns)]))
    for model in found["models"]:
        shares = [
            f"{_kb(model['files'][c])} ({100 * model['files'][c] / found['lossless'][c]:.0f} %)" if c in model["files"] else ""
            for c in columns
        ]
        lines.append(row([f"LR file, {model['model']}", *shares]))
    for scale, sizes in {m["scale"]: m["bicubic_lr"] for m in found["models"]}.items():
        lines.append(row([f"bicubic LR, x{scale}, lossless", *(_kb(sizes[c]) if c in sizes else "" for c in columns)]))
    lines.append("")
    for model in found["models"]:
        lines += _model(found, model, plots_of(found, plots).get(model["model"], ""))
    return lines


def plots_of(found: Row, plots: Mapping[str, str]) -> dict[str, str]:
    """The files that belong to a set, by what they show: ``curves`` or a model."""
    prefix = f"{found['set']}/"
    return {k.removeprefix(prefix): v for k, v in plots.items() if k.startswith(prefix)}


def _model(found: Row, model: Row, plot: str) -> list[str]:
    lines = [f"### {model['model']} on {plain(found['set'])}", "", *verdict(model), ""]
    if plot:
        lines += [f"![restored minus each codec, dB of Y]({plot})", ""]
    containers = list(model["files"])
    smallest = min(containers, key=lambda c: model["files"][c])
    restored = [f"**{_db(model['psnr_y'])}** ({_db(model['psnr_rgb'])})"] * len(containers)
    lines += [
        "Mean Y-PSNR (RGB-PSNR) in dB; behind it, of how many pictures the restored HR is the better one, by Y / by RGB:",
        "",
        *head(
            [
                "the HR in the bytes of the LR file",
                *(f"{CONTAINERS[c]}, {_kb(model['files'][c])} kB" for c in containers),
                f"bytes for the same Y-PSNR, of the LR's {CONTAINERS[smallest]}",
            ]
        ),
        row(["**restored from the LR file**", *restored, "100 %"]),
    ]
    for codec, title in TITLES.items():
        if any(codec in model["same_bytes"][c] for c in containers):
            cells = [_cell(model["same_bytes"][c].get(codec)) for c in containers]
            # Where every picture is restored without loss, no codec is asked for a PSNR.
            need = _needed(model["same_psnr"].get(codec), smallest) if model["same_psnr"] else "not reached"
            lines.append(row([title, *cells, need]))
    if any(model["residual"][c] for c in containers):
        lines += [
            "",
            *head(["a bit-exact bicubic LR and a lossy residual in the same bytes", *(CONTAINERS[c] for c in containers)]),
        ]
        lines.append(row(["**restored from the LR file**", *restored]))
        for codec, title in TITLES.items():
            if any(codec in model["residual"][c] for c in containers):
                lines.append(row([title, *(_cell(model["residual"][c].get(codec)) for c in containers)]))
    return [*lines, ""]


def verdict(model: Row) -> list[str]:
    """What the means say, in sentences: against the best codec in the smallest LR file's bytes, JPEG, and the best residual.

    The best is looked for among those that have all pictures: means over different pictures cannot be compared.
    """
    smallest = min(model["files"], key=lambda c: model["files"][c])
    name = CONTAINERS[smallest]
    lines = []
    rivals = model["same_bytes"][smallest]
    best = _best(rivals)
    if best:
        text = f"In the bytes of the {name} LR file {TITLES[best]} has {_difference(rivals[best], 'the restored HR')}"
        need = model["same_psnr"].get(best)
        if need and need["count"]:
            text += f"; it needs {100 * need['share'][smallest]:.0f} % of those bytes for the same Y-PSNR{_on_some(need)}"
        lines.append(text + ".")
    elif rivals:
        lines.append(f"In the bytes of the {name} LR file no codec has every picture; the table counts those that each has.")
    if best != "jpeg420" and rivals.get("jpeg420", {}).get("count"):
        lines.append(f"JPEG 4:2:0 has {_difference(rivals['jpeg420'], 'the restored HR' if best is None else 'it')}.")
    lines += _not_compared(rivals, best)
    residuals = model["residual"][smallest]
    best = _best(residuals)
    if best:
        text = f"A bit-exact bicubic {name} and a residual in {TITLES[best]} have"
        lines.append(f"{text} {_difference(residuals[best], 'the restored HR')}.")
    elif residuals:
        lines.append(f"With no codec do a bit-exact bicubic {name} and a residual fit into those bytes on every picture.")
    lines += _not_compared(residuals, best)
    return lines


def _best(stats: Mapping[str, Row]) -> str | None:
    """The codec with the highest mean of Y, of those that have all pictures, or of one; None if there is none."""
    whole = [c for c, stat in stats.items() if not stat["below"]]
    found = whole or [c for c, stat in stats.items() if stat["count"] and len(stats) == 1]
    return max(found, key=lambda c: float(stats[c]["psnr_y"]), default=None)


def _not_compared(stats: Mapping[str, Row], best: str | None) -> list[str]:
    """A sentence that names the codecs which `_best` passed over; none where it found nothing."""
    fewer = [f"{TITLES[c]} ({s['count']} of {_total(s)})" for c, s in stats.items() if s["below"] and c != best]
    return [f"Not compared, for having only some of the pictures in so few bytes: {', '.join(fewer)}."] if best and fewer else []


def _difference(stat: Row, than: str) -> str:
    """What a codec has more or less; its PSNR is a bound, and with it this, where it was at its best quality."""
    gain = stat["gain_y"]["mean"]
    if math.isnan(gain):
        return f"no mean distance from {than} (each is without loss on some pictures)"
    bound = ("< " if gain > 0 else "> ") if stat["above"] and math.isfinite(gain) else ""
    notes = f"; at its best quality on {stat['above']}" if stat["above"] else ""
    return f"{bound}{abs(gain):.2f} dB {'less' if gain > 0 else 'more'} than {than} (Y, mean{_on_some(stat)}{notes})"


def _on_some(stat: Row) -> str:
    """Of how many pictures a figure is, where that is not all of them."""
    total = _total(stat)
    return f" on {stat['count']} of {total} pictures, the others are not reached" if stat["count"] < total else ""


def _total(stat: Row) -> int:
    """Pictures of the set: `same_psnr`'s ``above`` and ``whole`` are left out of its count, `same_bytes`' ``above`` is within."""
    left_out = stat["below"] + (stat["above"] + stat["whole"] if "whole" in stat else 0)
    return int(stat["count"] + left_out)


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
    if stat is None:
        return "failed"
    if not stat["count"]:
        return "not reached"
    left_out = _total(stat) - stat["count"]
    return f"{100 * stat['share'][container]:.0f} %" + (f" ({stat['count']} pictures; {left_out} not reached)" if left_out else "")


def _db(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "inf"


def _kb(size: float) -> str:
    return f"{size / 1000:.1f}"
