"""A quality report as Markdown: what was measured here beside what others published, each marked as such."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from rescale_bench.formats import MEAN
from rescale_bench.markdown import head, plain, row
from rescale_bench.paper import published_rows

MEASURED, PUBLISHED = "measured", "published"

COLUMNS = (
    ("HR Y-PSNR", "hr_psnr_y", 2),
    ("HR RGB-PSNR", "hr_psnr_rgb", 2),
    ("HR SSIM-Y", "hr_ssim_y", 4),
    ("HR SSIM-RGB", "hr_ssim_rgb", 4),
    ("LR Y-PSNR", "lr_psnr_y", 2),
    ("LR SSIM-Y", "lr_ssim_y", 4),
    ("bit/LR px PNG", "bits_per_lr_pixel", 2),
    ("WebP", "bits_per_lr_pixel_webp", 2),
    ("JPEG XL", "bits_per_lr_pixel_jxl", 2),
)
FORCED = ("auxiliary lost", "hr_psnr_y_forced", 2)


def tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table a scale and set.

    Returns:
        ``scale``, ``set``, ``count``; ``rows``: ``method``, ``origin`` (`MEASURED` or `PUBLISHED`), ``source`` and the figures
        that are known; a row has figures of one origin only; ``spread``: see `spread`.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    measured = [(r["model"], r) for r in report["results"]] + [("bicubic down and up", r) for r in report["bicubic"]]
    for method, result in measured:
        place = (result["scale"], result["set"])
        table = found.setdefault(place, {"scale": place[0], "set": place[1], "count": result["count"], "rows": []})
        by = result.get("backend", "MATLAB's kernel, 8 bits")
        row = {"method": method, "origin": MEASURED, "source": by, **result["mean"]}
        table["rows"].append(row)
    for (scale, name), table in found.items():
        table["spread"] = spread(report, scale, name)
        for p in published_rows(scale, name):
            figures = {"hr_psnr_y": p.hr_psnr_y, "hr_ssim_y": p.hr_ssim_y}
            table["rows"].append({"method": p.method, "origin": PUBLISHED, "source": p.source, **figures})
    return list(found.values())


def spread(report: Mapping[str, Any], scale: int, name: str) -> list[dict[str, Any]]:
    """What a set's means hide: the picture that comes back worst, and the gains of single ones (HR Y-PSNR, dB).

    Returns:
        One a measured bundle: ``method``, ``lowest`` and ``gains``: over bicubic and, from the second bundle on, over the first
        one of this scale: ``over``, ``least``, ``median`` and ``most``. ``lowest``, ``least`` and ``most`` are pairs of a
        picture's name and dB. Where both restored a picture without error its gain is 0.
    """
    bicubic, results = (_of(report[kind], scale, name) for kind in ("bicubic", "results"))
    found = []
    for i, result in enumerate(results):
        bases = [("bicubic", b) for b in bicubic] + [(b["model"], b) for b in results[:1] if i]
        each = {p["name"]: p["hr_psnr_y"] for p in result["pictures"]}
        gains = []
        for title, base in bases:
            by = {p["name"]: _gain(each[p["name"]], p["hr_psnr_y"]) for p in base["pictures"]}
            ranked = _ranked(by)
            median = statistics.median(by.values())
            gains.append({"over": title, "least": ranked[0], "median": median, "most": ranked[-1]})
        found.append({"method": result["model"], "lowest": _ranked(each)[0], "gains": gains})
    return found


def _of(results: list[dict[str, Any]], scale: int, name: str) -> list[dict[str, Any]]:
    """Those of one scale and set."""
    return [r for r in results if (r["scale"], r["set"]) == (scale, name)]


def _gain(value: float, base: float) -> float:
    return 0.0 if value == base else value - base  # infinite both, where a picture comes back without error


def _ranked(by: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(by.items(), key=lambda item: item[1])


def as_markdown(report: Mapping[str, Any], each: bool) -> str:
    """The report; with `each` every picture too. Definitions come last."""
    lines: list[str] = []
    for table in report["tables"]:
        pictures = f"{table['count']} picture" + ("s" if table["count"] != 1 else "")
        lines += [f"## {plain(table['set'])}, x{table['scale']} ({pictures})", ""]
        lines += head(["", "", *(title for title, _, _ in COLUMNS), FORCED[0]])
        for r in table["rows"]:
            name = f"**{r['method']}**" if r["origin"] == MEASURED else r["method"]
            cells = [_figure(r.get(key), digits) for _, key, digits in (*COLUMNS, FORCED)]
            lines.append(row([name, r["origin"], *cells]))
        lines.append("")
        if table["spread"]:
            lines += [*map(_spread, table["spread"]), ""]
        if each:
            lines += _pictures(report, table)
    published = [r for t in report["tables"] for r in t["rows"] if r["origin"] == PUBLISHED]
    lines += [f"Means {MEAN}.", ""]
    lines += [plain(f"- {title}: {path}") for title, path in report.get("told_apart", {}).items()]
    sources = sorted({r["source"] for r in published})
    lines += [f"- {source}: {', '.join(_methods(published, source))}, as published" for source in sources]
    runners = sorted({r["source"] for t in report["tables"] for r in t["rows"] if r["origin"] == MEASURED})
    lines.append(f"- measured here by: {'; '.join(runners)}")
    lines += [f"- {name}: {text}" for name, text in report["protocol"].items()]
    lines += [f"- {name}: {text}" for name, text in report["definitions"].items()]
    lines += [f"- not measured: {line}" for line in report["missing"]]
    return "\n".join(lines) + "\n"


def _spread(found: Mapping[str, Any]) -> str:
    """In HR Y-PSNR."""
    name, lowest = found["lowest"]
    text = f"- {found['method']}, picture by picture: lowest {_figure(lowest, 2)} dB ({name})"
    for gain in found["gains"]:
        (least, low), (most, high) = gain["least"], gain["most"]
        text += f"; over {gain['over']} {low:+.2f} ({least}) to {high:+.2f} ({most}), median {gain['median']:+.2f}"
    return plain(text)


def _methods(rows: list[dict[str, Any]], source: str) -> list[str]:
    return list(dict.fromkeys(r["method"] for r in rows if r["source"] == source))


def _pictures(report: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for r in _of(report["results"], table["scale"], table["set"]):
        lines += [f"{r['model']}, each picture:", "", *head(["", *(title for title, _, _ in COLUMNS), FORCED[0]])]
        for p in r["pictures"]:
            lines.append(row([p["name"], *(_figure(p[key], digits) for _, key, digits in (*COLUMNS, FORCED))]))
        lines.append("")
    return lines


def _figure(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:.{digits}f}" if math.isfinite(value) else "inf"
