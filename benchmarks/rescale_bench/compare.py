"""`rescale-bench compare`: two reports, figure by figure, with the spread of every ratio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rescale.errors import ConfigError, InputError
from rescale.files import atomic_write
from rescale_bench.compare_read import Figure, Key, Measured, read

DEFINITIONS = {
    "ratio": "B by A of seconds, bytes and bare numbers; for dB the difference B - A",
    "spread": "smallest and largest ratio that runs allow: B's 5th percentile by A's 95th, to B's 95th by A's 5th (nearest rank:"
    " below 20 runs the fastest and the slowest); PSNR and bytes are the same in every run and have none",
    "same": "1 is within the spread: the two cannot be told apart",
    "better, worse": "outside the spread",
    "regression": "worse by more than the threshold, outside the spread; or it failed or was refused in B alone",
    "unjudged": "measured once, by fewer than 3 runs, or neither good nor bad",
}


@dataclass(frozen=True)
class Options:
    """The command's options; see its help."""

    threshold: float
    threshold_db: float
    name_a: str | None = None
    name_b: str | None = None


@dataclass(frozen=True)
class Row:
    """One figure of both files. `ratio`, `low` and `high` are differences where the unit is dB."""

    key: Key
    unit: str
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "key": list(self.key)}


def run(first: Path, second: Path, options: Options, every: bool, out: Path | None, as_json: bool) -> bool:
    """Compare and print.

    Returns:
        False if there is a regression.

    Raises:
        InputError: a file is no report, or the two cannot be compared; the message says why.
        ConfigError: a competitor's name without the other's.
        OutputError: `out` cannot be written.
    """
    found = compare(read(first), read(second), options)
    text = json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False)
    if out is not None:
        atomic_write(out, (text + "\n").encode())
    if as_json:
        print(text)
    else:
        _show(found, every)
    return not found["regressions"]


def compare(a: Measured, b: Measured, options: Options) -> dict[str, Any]:
    """The comparison as plain tables.

    Raises:
        InputError: nothing in the two can be compared.
        ConfigError: see `run`.
    """
    if (options.name_a is None) != (options.name_b is None):
        raise ConfigError("--name-a and --name-b belong together: which competitor of A, and which of B in its place")
    if options.name_a is not None and options.name_b is not None:
        _rename(a, options.name_a, options.name_a)
        _rename(b, options.name_b, options.name_a)
    shared = [s for s in a.sections if s in b.sections]
    if not shared:
        raise InputError(f"{a.path} holds {', '.join(a.sections)} and {b.path} {', '.join(b.sections)}: nothing to compare")
    differ = dict(_otherwise(a, b))
    keys = [k for k in a.figures if k in b.figures and not _excluded(k, differ)]
    rows = [_row(key, a.figures[key], b.figures[key], options) for key in keys]
    broken = [
        {"key": list(key), "reason": reason}
        for key, reason in b.failed.items()
        if key not in a.failed and any(k[:3] == key[:3] or (key[1] == "parity" and _same_result(k, key)) for k in a.figures)
    ]
    if not any(r.verdict != "unjudged" for r in rows) and not broken:
        raise InputError(f"{a.path} and {b.path} cannot be compared: {_why(a, b, shared, differ, rows)}")
    counts = {v: sum(r.verdict == v for r in rows) for v in ("same", "better", "worse", "regression", "unjudged")}
    return {
        "a": str(a.path),
        "b": str(b.path),
        "names": None if options.name_a is None else [options.name_a, options.name_b],
        "threshold": options.threshold,
        "threshold_db": options.threshold_db,
        "definitions": DEFINITIONS,
        "context": {k: [a.context.get(k), b.context.get(k)] for k in _contexts(a, b) if a.context.get(k) != b.context.get(k)},
        "counts": counts,
        "regressions": counts["regression"] + len(broken),
        "figures": [r.to_dict() for r in rows],
        "broken": broken,
        "not_compared": [{"key": list(key), "reason": reason} for key, reason in differ.items()],
        "only_a": _only(a, b),
        "only_b": _only(b, a),
    }


def _row(key: Key, a: Figure, b: Figure, options: Options) -> Row:
    if a.unit == "dB":
        ratio = b.value - a.value
        worse = -ratio if a.better == "more" else ratio
        # The same in every run: the difference is what it is.
        verdict = "regression" if worse > options.threshold_db else "same" if ratio == 0 else "worse" if worse > 0 else "better"
        return Row(key, a.unit, a.value, b.value, ratio, ratio, ratio, verdict if a.better else "unjudged")
    ratio = b.value / a.value if a.value else (1.0 if not b.value else float("inf"))
    if ratio == float("inf"):  # from nothing to something: only shares, which are not judged
        return Row(key, a.unit, a.value, b.value, 0.0, None, None, "unjudged")
    if None in (a.low, a.high, b.low, b.high) or not a.better or not a.value:
        return Row(key, a.unit, a.value, b.value, ratio, None, None, "unjudged")
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None  # noqa: PT018
    low, high = b.low / a.high, b.high / a.low
    if low <= 1.0 <= high:
        verdict = "same"
    elif high < 1.0:  # fewer seconds, fewer bytes
        verdict = "better"
    else:
        verdict = "regression" if ratio > 1.0 + options.threshold else "worse"
    return Row(key, a.unit, a.value, b.value, ratio, low, high, verdict)


def _rename(measured: Measured, wanted: str, name: str) -> None:
    """Keep one competitor, under a name."""
    if wanted not in measured.competitors():
        there = ", ".join(measured.competitors()) or "none"
        why = f": it did not run: {measured.missing[wanted]}" if wanted in measured.missing else ""
        raise InputError(f"{measured.path}: no competitor {wanted!r}{why} (there is {there})")
    for table in (measured.figures, measured.failed, measured.sets):
        kept = {(k[0], k[1], name, *k[3:]): v for k, v in table.items() if k[2] == wanted}
        table.clear()
        table.update(kept)  # type: ignore[arg-type]


def _otherwise(a: Measured, b: Measured) -> Iterator[tuple[Key, str]]:
    """Figures that both have and that are not of the same thing."""
    for key, mine in a.sets.items():
        if key in b.sets and mine != b.sets[key]:
            yield key, "other pictures, or another border"
    for name, text in a.definitions.items():
        if b.definitions.get(name, text) != text:
            yield ("", "", "", name), "defined otherwise"


def _excluded(key: Key, differ: Mapping[Key, str]) -> bool:
    return key[:3] in differ or ("", "", "", key[-1]) in differ


def _same_result(figure: Key, failed: Key) -> bool:
    """Whether a figure is of a backend that the parity gate refused."""
    return figure[0] == failed[0] and figure[2] == failed[2] and figure[1].startswith("parity, ")


def _why(a: Measured, b: Measured, shared: list[str], differ: Mapping[Key, str], rows: list[Row]) -> str:
    """Why nothing is left to judge."""
    if differ:
        key, reason = next(iter(differ.items()))
        return f"{' '.join(filter(None, key))}: {reason}"
    if any(a.figures[r.key].better for r in rows):
        return "of too few runs each; measure more (--repeats 5)"
    for i, what in enumerate(("models", "sizes or sets", "competitors")):
        mine, theirs = ({k[i]: None for m in (x,) for k, f in m.figures.items() if f.section in shared and k[i]} for x in (a, b))
        if not mine.keys() & theirs.keys():
            cure = "; --name-a and --name-b compare two competitors" if i == 2 else ""
            return f"they share no {what}: {', '.join(mine) or 'none'} against {', '.join(theirs) or 'none'}{cure}"
    return "no figure is of the same model, size and competitor"


def _contexts(a: Measured, b: Measured) -> list[str]:
    return list(dict.fromkeys((*a.context, *b.context)))


def _only(mine: Measured, other: Measured) -> list[dict[str, Any]]:
    """Results that the other file has not, and why if it says so."""
    theirs = {k[:3] for k in (*other.figures, *other.failed)}
    lacking = dict.fromkeys(k[:3] for k in mine.figures if k[:3] not in theirs and k[2])
    return [{"key": list(key), "reason": other.missing.get(key[2])} for key in lacking]


def _show(found: Mapping[str, Any], every: bool) -> None:
    console = Console()
    names = found["names"]
    for what, path, name in (("A", found["a"], 0), ("B", found["b"], 1)):
        _line(console, f"{what}: {path}" + (f", {names[name]}" if names else ""))
    for what, (a, b) in found["context"].items():
        _line(console, f"  {what}: {a or 'unknown'} -> {b or 'unknown'}")
    table = Table(box=SIMPLE)
    for head in ("model", "on", "by", "figure", "A", "B", "ratio", "spread", ""):
        table.add_column(head, justify="right" if head in ("A", "B", "ratio", "spread") else "left", no_wrap=True)
    colours = {"regression": "[bold red]", "worse": "[yellow]", "better": "[green]"}
    for r in found["figures"]:
        if every or r["verdict"] in colours:
            model, on, by, *figure = r["key"]
            spread = "" if r["low"] is None or r["unit"] == "dB" or r["low"] == r["high"] else f"{r['low']:.3f} - {r['high']:.3f}"
            ratio = f"{r['ratio']:+.3f} dB" if r["unit"] == "dB" else f"{r['ratio']:.3f}"
            said = f"{colours.get(r['verdict'], '[dim]')}{r['verdict']}[/]"
            table.add_row(model, on, by, " ".join(figure), _text(r["a"], r["unit"]), _text(r["b"], r["unit"]), ratio, spread, said)
    if table.row_count:
        Console(width=max(console.width, Console(width=10_000).measure(table).maximum)).print(table)
    for entry in found["broken"]:
        _line(console, f"regression: {' '.join(filter(None, entry['key']))} fails in B: {entry['reason']}")
    for entry in found["not_compared"]:
        _line(console, f"not compared: {' '.join(filter(None, entry['key']))}: {entry['reason']}")
    for where in ("a", "b"):
        for entry in found[f"only_{where}"]:
            why = f": {entry['reason']}" if entry["reason"] else ""
            _line(console, f"only in {where.upper()}: {' '.join(filter(None, entry['key']))}{why}")
    c = found["counts"]
    total = sum(c.values())
    limits = f"threshold {100 * found['threshold']:g} %, {found['threshold_db']:g} dB"
    said = f"{c['same']} same within the spread, {c['better']} better, {c['worse']} worse, {c['unjudged']} unjudged"
    _line(console, f"{total} figures: {said}; {found['regressions']} regressions ({limits})")


def _text(value: float, unit: str) -> str:
    if unit == "s":
        return f"{1000 * value:.2f} ms" if value < 1 else f"{value:.3f} s"
    if unit == "B":
        return f"{value:,.0f} B"
    return f"{value:.3f} dB" if unit == "dB" else f"{value:.5f}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
