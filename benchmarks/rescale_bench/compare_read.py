"""Figures of what report, speed, psnr and parity wrote as JSON, in one form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescale.errors import InputError
from rescale_bench.report import FORMAT
from rescale_bench.speed_processes import LEAST

MAX_BYTES = 64 << 20
SECTIONS = ("speed", "quality", "parity")
TIMED = ("compute", "run", "whole", "pipelined")
FAMILY = FORMAT.partition("/")[0]

Key = tuple[str, ...]
"""Model, what it was measured on, by whom, and which figure."""


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        section: one of `SECTIONS`.
        value: median of runs, or what was measured once and is the same every time.
        low, high: 5th and 95th percentile of the runs, by nearest rank; the value where every run gives the same; None where fewer
            than `rescale_bench.speed_processes.LEAST` runs cannot tell how it varies.
        unit: ``s``, ``B`` or ``dB``, or empty for a bare number.
        better: ``less``, ``more``, or empty for a figure that is shown and not judged.
    """

    section: str
    value: float
    low: float | None
    high: float | None
    unit: str
    better: str


@dataclass
class Measured:
    """One file.

    Attributes:
        path: which.
        sections: what it holds, of `SECTIONS`.
        figures: by key.
        failed: why something failed or was refused, by the first three parts of its keys.
        missing: why a competitor did not run, by name.
        sets: names of the pictures, and border, of each quality or parity result by the first parts of its keys.
        definitions: of quality's figures.
        context: machine and versions.
    """

    path: Path
    sections: list[str] = field(default_factory=list)
    figures: dict[Key, Figure] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    sets: dict[Key, Any] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)

    def competitors(self) -> list[str]:
        """Names of those with figures of their own."""
        return list(dict.fromkeys(key[2] for key in (*self.figures, *self.failed) if key[2]))


def read(path: Path) -> Measured:
    """Read a file.

    Raises:
        InputError: it cannot be read, is no such report, is of a later format, or is damaged.
    """
    data = _load(path)
    found = Measured(path)
    parts = _sections(data, path)
    try:
        _context(found, data)
        for name, part in parts.items():
            found.sections.append(name)
            for key, figure in _READERS[name](found, part):
                if key in found.figures:
                    raise InputError(f"{path}: holds {' '.join(filter(None, key))} twice; compare files with one result each")
                found.figures[key] = figure
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        said = f"lacks {e}" if isinstance(e, KeyError) else str(e)
        raise InputError(f"{path}: a damaged report: {said}; measure again") from None
    return found


def _load(path: Path) -> Mapping[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        with open(path, "rb") as f:
            text = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise InputError(f"{path}: cannot read: {e.strerror or e}") from None
    if len(text) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MB, which no report is")
    try:
        data = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path}: not JSON: {e}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a report: a table is wanted, this is a {type(data).__name__}")
    return data


def _sections(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if "format" in data:
        if data["format"] != FORMAT:
            known = str(data["format"]).partition("/")[0] == FAMILY
            cure = "compare it with the version that wrote it" if known else "a file of another program?"
            raise InputError(f"{path}: format {data['format']!r}, this version reads {FORMAT}; {cure}")
        return {name: data[name] for name in SECTIONS if name in data}
    if "cases" in data and "sweeps" in data:
        return {"speed": data}
    if "results" in data and "definitions" in data:
        return {"quality": data}
    if "bundles" in data and "definitions" in data:
        return {"parity": data}
    raise InputError(f"{path}: neither a report nor what rescale-bench speed, psnr or parity write with --out")


def _context(found: Measured, data: Mapping[str, Any]) -> None:
    m = data.get("machine", {})
    found.context = {k: str(m[k]) for k in ("cpu", "threads", "memory", "system") if m.get(k) is not None}
    found.context |= {name: str(version) for name, version in data.get("versions", {}).items()}
    budget = data.get("speed", data).get("memory")
    found.context |= {} if budget is None else {"memory budget": str(budget)}


def _speed(found: Measured, report: Mapping[str, Any]) -> Iterator[tuple[Key, Figure]]:
    for case in report["cases"]:
        on = "{}x{}".format(*case["resolution"])
        found.missing |= case["missing"]
        peak = case["product"]["seconds"]
        yield (case["model"], on, "", "matrix product"), _timed(peak, judged=False)
        for c in case["competitors"]:
            for direction, reason in c["failed"].items():
                found.failed[case["model"], on, c["name"], direction] = str(reason)
            for direction, d in c["directions"].items():
                for part in TIMED:
                    if part in d:
                        yield (case["model"], on, c["name"], direction, part), _timed(d[part])
                memory = _number(d["peak_rss"])
                yield (case["model"], on, c["name"], direction, "peak memory"), Figure("speed", memory, None, None, "B", "")
    for sweep in report["sweeps"]:
        found.missing |= sweep["missing"]
        sizes = ["{}x{}".format(*size) for size in sweep["resolutions"]]
        for c in sweep["competitors"]:
            for direction, reason in c["failed"].items():
                # One reason is told a direction: it stands for every size without times.
                timed = ["{}x{}".format(*s["resolution"]) for s in c["directions"].get(direction, {"sizes": ()})["sizes"]]
                found.failed |= {
                    (sweep["model"], f"sweep {on}", c["name"], direction): str(reason) for on in sizes if on not in timed
                }
            for direction, d in c["directions"].items():
                for s in d["sizes"]:
                    on = "{}x{}".format(*s["resolution"])
                    for part in ("run", "whole"):
                        yield (sweep["model"], f"sweep {on}", c["name"], direction, part), _timed(s[part])


def _timed(spread: Mapping[str, Any], judged: bool = True) -> Figure:
    times = sorted(_number(t) for t in spread["times"])
    median = _number(spread["median"])
    if not times or not 0 < times[0] <= median <= times[-1]:
        raise ValueError(f"a median of {median:g} s, which its {len(times)} runs do not have")
    # Of one or two runs nobody knows how much others would differ.
    known = len(times) >= LEAST
    low, high = (times[math.ceil(share * len(times)) - 1] if known else None for share in (0.05, 0.95))
    return Figure("speed", median, low, high, "s", "less" if judged else "")


_QUALITY = {"hr_psnr_y": "dB", "hr_psnr_rgb": "dB", "lr_psnr_y": "dB", "hr_ssim_y": "", "bytes": "B"}


def _quality(found: Measured, report: Mapping[str, Any]) -> Iterator[tuple[Key, Figure]]:
    found.definitions = {name: str(text) for name, text in report["definitions"].items()}
    for r in report["results"]:
        found.sets[r["model"], r["set"], ""] = [r["border"], sorted(p["name"] for p in r["pictures"])]
        for name, unit in _QUALITY.items():
            value = r["mean"].get(name)
            if value is None or value == "inf":
                continue
            better = {"dB": "more", "B": "less"}.get(unit, "")
            number = _number(value)
            yield (r["model"], r["set"], "", name), Figure("quality", number, number, number, unit, better)


def _parity(found: Measured, report: Mapping[str, Any]) -> Iterator[tuple[Key, Figure]]:
    for b in report["bundles"]:
        found.missing |= {f"{m['backend']} {m['precision']}": m["reason"] for m in b["missing"]}
        for r in b["results"]:
            name = f"{r['backend']} {r['precision']}".strip()
            if r["refused"]:
                found.failed[b["model"], "parity", name, ""] = str(r["refused"])
            for g in r["groups"]:
                on = f"parity, {g['name']}"
                found.sets[b["model"], on, name] = [[c["width"], c["height"]] for c in g["cases"]]
                lost = g["psnr_lost_mean" if g["limit_holds_for"] == "mean" else "psnr_lost"]
                if lost is not None:
                    value = _number(lost)
                    yield (b["model"], on, name, "dB lost"), Figure("parity", value, value, value, "dB", "less")
                hr = g["graphs"].get("hr")
                if hr and hr["values"]:
                    value = _number(hr["different"]) / _number(hr["values"])
                    yield (b["model"], on, name, "share of HR values that differ"), Figure("parity", value, value, value, "", "")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a number is wanted, not {value!r}")
    return float(value)


_READERS = {"speed": _speed, "quality": _quality, "parity": _parity}
