"""`rescale-bench compare`: two reports, figure by figure, with the spread of every ratio."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rescale.console import printable
from rescale.errors import ConfigError, InputError
from rescale.files import atomic_write
from rescale.json_text import as_json
from rescale_bench.compare_read import Figure, Key, Measured, read

DEFINITIONS = {
    "ratio": "B by A of seconds, bytes and bare numbers; for dB the difference B - A, infinite from or to a PSNR that is",
    "spread": "smallest and largest ratio that runs allow: B's 5th percentile by A's 95th, to B's 95th by A's 5th (nearest rank:"
    " below 20 runs the fastest and the slowest); PSNR and bytes are the same in every run and have none",
    "same": "1 is within the spread: the two cannot be told apart",
    "better, worse": "outside the spread",
    "regression": "worse by more than the threshold, outside the spread; or it failed or was refused in B alone; or B lacks a"
    " judged figure of a result that both have",
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
    """One figure of both files. `ratio`, `low` and `high` are differences where the unit is dB. Numbers may be infinite."""

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


def run(first: Path, second: Path, options: Options, every: bool, out: Path | None, print_json: bool) -> bool:
    """Compare and print.

    Returns:
        False if there is a regression.

    Raises:
        InputError: a file is no report, or the two cannot be compared; the message says why.
        ConfigError: a limit that is no number of 0 or more, or a competitor's name without the other's.
        OutputError: `out` cannot be written.
    """
    found = compare(read(first), read(second), options)
    text = as_json(found)
    if out is not None:
        atomic_write(out, text.encode())
    if print_json:
        print(text, end="")
    else:
        _show(found, every)
    return not found["regressions"]


def compare(a: Measured, b: Measured, options: Options) -> dict[str, Any]:
    """The comparison as plain tables; numbers may be infinite.

    Raises:
        InputError: nothing in the two can be compared.
        ConfigError: see `run`.
    """
    for option, limit in (("--threshold", options.threshold), ("--threshold-db", options.threshold_db)):
        if not 0.0 <= limit < math.inf:
            raise ConfigError(f"{option} {limit:g}: a finite number of 0 or more is wanted, such as 0.05")
    if (options.name_a is None) != (options.name_b is None):
        raise ConfigError("--name-a and --name-b belong together: which competitor of A, and which of B in its place")
    if options.name_a is not None and options.name_b is not None:
        _rename(a, options.name_a, options.name_a)
        _rename(b, options.name_b, options.name_a)
    shared = [s for s in a.sections if s in b.sections]
    if not shared:
        mine, theirs = (", ".join(m.sections) or "nothing" for m in (a, b))
        raise InputError(f"{a.path} holds {mine} and {b.path} {theirs}: nothing to compare")
    differ = dict(_otherwise(a, b))
    keys = [k for k in a.figures if k in b.figures and not _excluded(k, differ)]
    rows = [_row(key, a.figures[key], b.figures[key], options) for key in keys]
    broken = {k: reason for k, reason in _failed_in(b, a) if k not in a.failed}
    only_a, only_b = dict(_lacking(a, b, differ)), dict(_lacking(b, a, differ))
    # Two competitors need not have the same parts: graphs alone are not timed of all.
    same = options.name_a == options.name_b
    lost = {k: why for k, why in only_a.items() if same and k in a.figures and a.figures[k].better}
    if not any(r.verdict != "unjudged" for r in rows) and not broken and not lost:
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
        "regressions": counts["regression"] + len(broken) + len(lost),
        "figures": [r.to_dict() for r in rows],
        "broken": _entries(broken),
        "lost": _entries(lost),
        "not_compared": _entries(differ),
        "only_a": _entries({k: why for k, why in only_a.items() if k not in lost and k not in broken}),
        "only_b": _entries(only_b),
    }


def _entries(reasons: Mapping[Key, str | None]) -> list[dict[str, Any]]:
    return [{"key": list(key), "reason": reason} for key, reason in reasons.items()]


def _row(key: Key, a: Figure, b: Figure, options: Options) -> Row:
    if a.unit == "dB":
        # Both may be infinite: equal pictures.
        ratio = 0.0 if a.value == b.value else b.value - a.value
        worse = -ratio if a.better == "more" else ratio
        # The same in every run: the difference is what it is.
        verdict = "regression" if worse > options.threshold_db else "same" if ratio == 0 else "worse" if worse > 0 else "better"
        return Row(key, a.unit, a.value, b.value, ratio, ratio, ratio, verdict if a.better else "unjudged")
    # From nothing to something: only shares and SSIM, which are not judged.
    ratio = b.value / a.value if a.value else (math.inf if b.value else 1.0)
    if None in (a.low, a.high, b.low, b.high) or not a.better:
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
    measured.missing = {name: measured.missing[wanted]} if wanted in measured.missing else {}
    measured.results = {(*k[:2], name) for k in measured.results if k[2] == wanted}
    for table in (measured.figures, measured.failed, measured.sets):
        kept = {(k[0], k[1], name, *k[3:]): v for k, v in table.items() if k[2] == wanted}
        table.clear()
        table.update(kept)  # type: ignore[arg-type]


def _otherwise(a: Measured, b: Measured) -> Iterator[tuple[Key, str]]:
    """Figures that both have and that are not of the same thing."""
    for key, mine in a.sets.items():
        reason = mine.differ(b.sets[key]) if key in b.sets else None
        if reason is not None:
            yield key, reason
    known = {key[-1] for key in (*a.figures, *b.figures)}
    for figure, texts in a.definitions.items():
        theirs = b.definitions.get(figure, {})
        if figure in known and any(theirs.get(name, text) != text for name, text in texts.items()):
            yield ("", "", "", figure), "defined otherwise"


def _excluded(key: Key, differ: Mapping[Key, str]) -> bool:
    return key[:3] in differ or ("", "", "", key[-1]) in differ


def _failed_in(mine: Measured, other: Measured) -> Iterator[tuple[Key, str]]:
    """What failed or was refused, where the other file has figures of it."""
    results = {k[:3] for k in other.figures}
    # The gate refuses a backend, whatever the group of pictures.
    results |= {(model, "parity", by) for model, on, by in results if on.startswith("parity, ")}
    yield from ((key, reason) for key, reason in mine.failed.items() if key[:3] in results)


def _lacking(mine: Measured, other: Measured, differ: Mapping[Key, str]) -> Iterator[tuple[Key, str | None]]:
    """What the other file has not, and why if it says so: whole results, directions that failed, and single figures."""
    results = other.results | {k[:3] for k in other.failed}
    for key, figure in mine.figures.items():
        if key in other.figures or _excluded(key, differ):
            continue
        why = other.missing.get(key[2])
        if key[:4] in other.failed:
            yield key[:4], other.failed[key[:4]]
        elif key[:3] in results:
            yield key, why
        elif figure.section != "speed" or key[2]:  # not the matrix product of a size
            yield key[:3], why


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


def _show(found: Mapping[str, Any], every: bool) -> None:
    console = Console()
    names = found["names"]
    for what, path, name in (("A", found["a"], 0), ("B", found["b"], 1)):
        _line(console, f"{what}: {path}" + (f", {names[name]}" if names else ""))
    for what, (a, b) in found["context"].items():
        _line(console, f"{what}: {a or 'unknown'} -> {b or 'unknown'}", "  ")
    table = Table(box=SIMPLE)
    for head in ("model", "on", "by", "figure", "A", "B", "ratio", "spread", ""):
        table.add_column(head, justify="right" if head in ("A", "B", "ratio", "spread") else "left", no_wrap=True)
    colours = {"regression": "bold red", "worse": "yellow", "better": "green"}
    for r in found["figures"]:
        if every or r["verdict"] in colours:
            model, on, by, *figure = r["key"]
            spread = "" if r["low"] is None or r["unit"] == "dB" or r["low"] == r["high"] else f"{r['low']:.3f} - {r['high']:.3f}"
            ratio = f"{r['ratio']:+.3f} dB" if r["unit"] == "dB" else f"{r['ratio']:.3f}"
            cells = (model, on, by, " ".join(figure), _text(r["a"], r["unit"]), _text(r["b"], r["unit"]), ratio, spread)
            # As `Text`, for a plain cell may hold markup.
            table.add_row(*(Text(printable(cell)) for cell in cells), Text(r["verdict"], colours.get(r["verdict"], "dim")))
    if table.row_count:
        Console(width=max(console.width, Console(width=10_000).measure(table).maximum)).print(table)
    for entry in found["broken"]:
        _line(console, f"regression: {_named(entry, ' fails in B')}")
    for entry in found["lost"]:
        _line(console, f"regression: {_named(entry, ' is not in B')}")
    for entry in found["not_compared"]:
        _line(console, f"not compared: {_named(entry)}")
    for where in ("a", "b"):
        for entry in found[f"only_{where}"]:
            _line(console, f"only in {where.upper()}: {_named(entry)}")
    c = found["counts"]
    total = sum(c.values())
    limits = f"threshold {100 * found['threshold']:g} %, {found['threshold_db']:g} dB"
    said = f"{c['same']} same within the spread, {c['better']} better, {c['worse']} worse, {c['unjudged']} unjudged"
    _line(console, f"{total} figures: {said}; {found['regressions']} regressions ({limits})")


def _named(entry: Mapping[str, Any], said: str = "") -> str:
    """A key, what is said of it, and the reason if there is one."""
    return " ".join(filter(None, entry["key"])) + said + (f": {entry['reason']}" if entry["reason"] else "")


def _text(value: float, unit: str) -> str:
    if unit == "s":
        return f"{1000 * value:.2f} ms" if value < 1 else f"{value:.3f} s"
    if unit == "B":
        return f"{value:,.0f} B"
    return f"{value:.3f} dB" if unit == "dB" else f"{value:.5f}"


def _line(console: Console, text: str, indent: str = "") -> None:
    # Reasons may be of several lines. As `Text`: what stands between colons would become emoji.
    console.print(Text(indent + printable(" ".join(text.split()))), soft_wrap=True)
