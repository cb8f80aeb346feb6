"""Figures of what report, speed, psnr and parity wrote as JSON, in one form."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescale.errors import InputError
from rescale.image import MAX_SIDE
from rescale_bench.formats import FORMAT, LEAST, MOST_DB, RATE_FORMAT

MAX_BYTES = 64 << 20
SECTIONS = ("speed", "quality", "parity")
TIMED = ("compute", "run", "whole", "pipelined")
FAMILY = FORMAT.partition("/")[0]

SECONDS, BYTES, COUNT = (1e-12, 1e9), (1, 1e18), (0, 1e18)
DECIBELS, LOST, SSIM = (0, MOST_DB), (-MOST_DB, MOST_DB), (-1.000001, 1.000001)
"""Least and most that a file is believed: what is beyond nobody measured. An SSIM may miss 1 by its
last digits. Within, ratios and differences are finite."""

QUALITY = {"hr_psnr_y": "dB", "hr_psnr_rgb": "dB", "lr_psnr_y": "dB", "hr_ssim_y": "", "bytes": "B"}
"""Figures of quality, and their units."""

DEFINED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "speed": {
        **{part: (part, "order") for part in TIMED},
        "peak memory": ("peak",),
        "matrix product": ("of peak", "order"),
    },
    "quality": {name: (name,) for name in QUALITY},
    "parity": {"dB lost": ("lost",), "share of HR values that differ": ("differ", "hr")},
}
"""By section and figure the names of the definitions that say what it is."""

Key = tuple[str, ...]
"""Model, what it was measured on, by whom, and which figure."""


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        section: one of `SECTIONS`.
        value: median of runs, or what was measured once and is the same every time; a PSNR may be infinite.
        low, high: 5th and 95th percentile of the runs, by nearest rank; the value where every run gives the same; None where fewer
            than `rescale_bench.formats.LEAST` runs cannot tell how it varies.
        unit: ``s``, ``B`` or ``dB``, or empty for a bare number.
        better: ``less``, ``more``, or empty for a figure that is shown and not judged.
    """

    section: str
    value: float
    low: float | None
    high: float | None
    unit: str
    better: str


@dataclass(frozen=True)
class Pictures:
    """What is behind a mean.

    Attributes:
        head: what any two files tell: names and border, or names and sizes.
        marks: size and digest of the pixels of each picture by its name; none of those in files of older versions.
    """

    head: tuple[Any, ...]
    marks: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def differ(self, other: Pictures) -> str | None:
        """Why the means cannot be compared, in words; None if they can."""
        if self.head != other.head:
            return "other pictures, or another border"
        names = [name for name, mark in self.marks.items() if other.marks.get(name, mark) != mark]
        return f"other pictures under the same names, such as {names[0]}" if names else None


@dataclass
class Measured:
    """One file.

    Attributes:
        path: which.
        sections: what it holds, of `SECTIONS`.
        figures: by key.
        results: the first three parts of the keys of all results, also of those without a figure.
        failed: why something failed or was refused, by the first three parts of its keys.
        missing: why a competitor did not run, by name.
        sets: pictures of each quality or parity result by the first parts of its keys.
        definitions: texts that say what a figure is, by their names, by the last part of its keys.
        context: machine and versions.
    """

    path: Path
    sections: list[str] = field(default_factory=list)
    figures: dict[Key, Figure] = field(default_factory=dict)
    results: set[Key] = field(default_factory=set)
    failed: dict[Key, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    sets: dict[Key, Pictures] = field(default_factory=dict)
    definitions: dict[str, dict[str, str]] = field(default_factory=dict)
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
            found.definitions |= _definitions(part, DEFINED[name])
            for key, figure in _READERS[name](found, part):
                if key in found.figures:
                    raise InputError(f"{path}: holds {' '.join(filter(None, key))} twice; compare files with one result each")
                found.figures[key] = figure
                found.results.add(key[:3])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as e:
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
        form = data["format"]
        if form != FORMAT:
            known = isinstance(form, str) and form.partition("/")[0] == FAMILY
            if known:
                cure = "compare it with the version that wrote it"
            elif form == RATE_FORMAT:
                cure = "a file of rescale-bench rate, which is not compared"
            else:
                cure = "a file of another program?"
            raise InputError(f"{path}: format {reprlib.repr(form)}, this version reads {FORMAT}; {cure}")
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
    found.context = {k: _plain(m[k]) for k in ("cpu", "threads", "memory", "system") if m.get(k) is not None}
    found.context |= {name: _plain(version) for name, version in data.get("versions", {}).items()}
    budget = data.get("speed", data).get("memory")
    found.context |= {} if budget is None else {"memory budget": _plain(budget)}


def _definitions(part: Mapping[str, Any], defined: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, str]]:
    """The texts that say what each figure of a section is; files of older versions may have none."""
    # One text may be of several names: "decode, run, encode".
    texts = {name: text for names, text in _texts(part.get("definitions", {})).items() for name in names.split(", ")}
    return {figure: {name: texts[name] for name in names if name in texts} for figure, names in defined.items()}


def _speed(found: Measured, report: Mapping[str, Any]) -> Iterator[tuple[Key, Figure]]:
    for case in report["cases"]:
        on, model = _size(case["resolution"]), _text(case["model"])
        found.missing |= _texts(case["missing"])
        peak = case["product"]["seconds"]
        yield (model, on, "", "matrix product"), _timed(peak, judged=False)
        for c in case["competitors"]:
            name = _text(c["name"])
            found.results.add((model, on, name))
            for direction, reason in _texts(c["failed"]).items():
                found.failed[model, on, name, direction] = reason
            for direction, d in c["directions"].items():
                for part in TIMED:
                    if part in d:
                        yield (model, on, name, direction, part), _timed(d[part])
                memory = _number(d["peak_rss"], *BYTES)
                yield (model, on, name, direction, "peak memory"), Figure("speed", memory, None, None, "B", "")
    for sweep in report["sweeps"]:
        model = _text(sweep["model"])
        found.missing |= _texts(sweep["missing"])
        sizes = [_size(size) for size in sweep["resolutions"]]
        for c in sweep["competitors"]:
            name = _text(c["name"])
            found.results |= {(model, f"sweep {on}", name) for on in sizes}
            for direction, reason in _texts(c["failed"]).items():
                # One reason is told a direction: it stands for every size without times.
                timed = [_size(s["resolution"]) for s in c["directions"].get(direction, {"sizes": ()})["sizes"]]
                found.failed |= {(model, f"sweep {on}", name, direction): reason for on in sizes if on not in timed}
            for direction, d in c["directions"].items():
                for s in d["sizes"]:
                    on = f"sweep {_size(s['resolution'])}"
                    for part in ("run", "whole"):
                        yield (model, on, name, direction, part), _timed(s[part])


def _timed(spread: Mapping[str, Any], judged: bool = True) -> Figure:
    times = sorted(_number(t, *SECONDS) for t in spread["times"])
    median = _number(spread["median"], *SECONDS)
    if not times or not times[0] <= median <= times[-1]:
        raise ValueError(f"a median of {median:g} s, which its {len(times)} runs do not have")
    # Of one or two runs nobody knows how much others would differ.
    known = len(times) >= LEAST
    low, high = (times[math.ceil(share * len(times)) - 1] if known else None for share in (0.05, 0.95))
    return Figure("speed", median, low, high, "s", "less" if judged else "")


def _quality(found: Measured, report: Mapping[str, Any]) -> Iterator[tuple[Key, Figure]]:
    for r in report["results"]:
        model, name = _text(r["model"]), _text(r["set"])
        found.results.add((model, name, ""))
        found.sets[model, name, ""] = _pictures(r)
        for figure, unit in QUALITY.items():
            value = r["mean"].get(figure)
            if value is None:  # undefined, such as the SSIM of a picture smaller than its window
                continue
            if unit == "dB":
                number = math.inf if value == "inf" else _number(value, *DECIBELS)
            else:
                number = _number(value, *(BYTES if unit else SSIM))
            better = {"dB": "more", "B": "less"}.get(unit, "")
            yield (model, name, "", figure), Figure("quality", number, number, number, unit, better)


def _pictures(result: Mapping[str, Any]) -> Pictures:
    rows = {_text(p["name"]): p for p in result["pictures"]}
    if len(rows) != len(result["pictures"]):
        raise ValueError("two pictures of one name")
    marks = {name: (_size(p["size"]), _text(p["digest"])) for name, p in rows.items() if "size" in p and "digest" in p}
    return Pictures((_number(result["border"], *COUNT), *sorted(rows)), marks)


def _cases(cases: Any) -> Pictures:
    """Of a parity group; golden pictures have no names."""
    rows = [(_text(c.get("name", "")), _size([c["width"], c["height"]]), c.get("digest")) for c in cases]
    marks = {name: (size, _text(digest)) for name, size, digest in rows if name and digest is not None}
    return Pictures(tuple(sorted((name, size) for name, size, _ in rows)), marks)


def _parity(found: Measured, report: Mapping[str, Any]) -> Iterator[tuple[Key, Figure]]:
    for b in report["bundles"]:
        model = _text(b["model"])
        found.missing |= {f"{_text(m['backend'])} {_text(m['precision'])}": _text(m["reason"]) for m in b["missing"]}
        for r in b["results"]:
            name = f"{_text(r['backend'])} {_text(r['precision'])}".strip()
            if r["refused"]:
                found.failed[model, "parity", name, ""] = _text(r["refused"])
            for g in r["groups"]:
                on = f"parity, {_text(g['name'])}"
                found.results.add((model, on, name))
                found.sets[model, on, name] = _cases(g["cases"])
                lost = g["psnr_lost_mean" if g["limit_holds_for"] == "mean" else "psnr_lost"]
                if lost is not None:  # no number where a result holds none
                    value = _number(lost, *LOST)
                    yield (model, on, name, "dB lost"), Figure("parity", value, value, value, "dB", "less")
                hr = g["graphs"].get("hr")
                if hr and (values := _number(hr["values"], *COUNT)):
                    value = _number(hr["different"], 0, values) / values
                    yield (model, on, name, "share of HR values that differ"), Figure("parity", value, value, value, "", "")


def _number(value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"a number from {least:g} to {most:g} is wanted, not {reprlib.repr(value)}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is wanted, not {reprlib.repr(value)}")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {name: _text(text) for name, text in value.items()}


def _plain(value: Any) -> str:
    """A text or number as a text."""
    if not isinstance(value, str | int | float):
        raise ValueError(f"a text or number is wanted, not {reprlib.repr(value)}")
    return str(value)


def _size(value: Any) -> str:
    """``WIDTHxHEIGHT`` of the two."""
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 1 <= n <= MAX_SIDE for n in value):
        raise ValueError(f"a width and a height of 1 to {MAX_SIDE} are wanted, not {reprlib.repr(value)}")
    return "{}x{}".format(*value)


_READERS = {"speed": _speed, "quality": _quality, "parity": _parity}
