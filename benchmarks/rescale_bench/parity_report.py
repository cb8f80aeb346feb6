"""Reports of the parity gate: as JSON, and as a table in grey levels and dB."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rescale.parity import Comparison, Parity
from rescale_bench.parity import Group, Report

DEFINITIONS = {
    "differ": "share of uint8 values that are not the reference's; in brackets the largest difference in grey levels",
    "lr, hr, code": "LR of the HR picture; HR of the reference's LR; latent code of the reference's z (-M; elsewhere of its own z)",
    "PSNR": "of that HR against the reference's, dB, peak 255",
    "lost": "RGB-PSNR against the true HR that is lost to the reference, dB: through its own LR or from the reference's, whichever"
    " is more; a PSNR above 60 dB counts as 60, a picture below 4096 pixels as nothing; below 0 it gains",
    "worst": "largest difference in levels, in which 32x32 square at which column and row of the HR",
    "half": "every float16 result rounded, sums in float32: what a device with float16 computes; ONNX Runtime on x86 uses float32",
}


def as_dict(report: Report, title: str) -> dict[str, Any]:
    """One bundle's results for JSON, under its title; an infinite PSNR is None."""
    bundle = report.bundle
    return {
        "bundle": str(bundle.path),
        "model": title,
        "weights": bundle.network,
        "max_loss": report.max_loss,
        "refused": report.refused,
        "results": [
            {
                "backend": r.backend,
                "precision": r.precision,
                "runner": r.runner,
                "refused": r.refused,
                "advice": r.advice,
                "groups": [_group(g) for g in r.groups],
            }
            for r in report.results
        ],
        "missing": [{"backend": b, "precision": p, "reason": why} for b, p, why in report.missing],
    }


def _group(group: Group) -> dict[str, Any]:
    parity = group.parity
    head = {"name": group.name, "reference": group.reference, "limit_holds_for": "mean" if group.average else "each"}
    found = parity.to_dict()
    for case in found["cases"]:
        if case.get("name") in group.digests:
            case["digest"] = group.digests[case["name"]]
    for name, c in parity.total().items():
        found["graphs"][name]["histogram"] = {str(level): n for level, n in c.histogram().items()}
    return head | {"psnr_lost_mean": round(parity.mean_lost, 4)} | found


def share(found: Comparison) -> str:
    """Share of values that differ, and by how many levels at most: ``1.87 % (1)``."""
    return f"{100 * found.share:.2f} % ({found.largest})"


def histogram(found: Comparison) -> str:
    """Share of values by absolute difference, such as ``1 level 2.3 %, 2 levels 0.004 %``; empty where none differs."""
    counts: dict[int, int] = {}
    for level, n in found.histogram().items():
        counts[abs(level)] = counts.get(abs(level), 0) + n
    shares = [(level, 100 * n / found.values) for level, n in sorted(counts.items()) if level]
    shown = [f"{level} level{'s' * (level > 1)} {share:.2g} %" for level, share in shares[:3]]
    if len(shares) > 3:
        shown.append(f"{shares[3][0]} to {shares[-1][0]} levels {sum(s for _, s in shares[3:]):.2g} %")
    return ", ".join(shown)


def show(report: Report, title: str, console: Console) -> None:
    """Print one bundle's results under its title."""
    table = Table(title=f"{title}: at most {report.max_loss:g} dB may be lost", title_justify="left", box=SIMPLE)
    texts, differ = ("backend", "pictures"), ("lr differ", "hr differ", *(("code differ",) if report.bundle.variant.latent else ()))
    for head in (*texts, *differ, "PSNR", "lost mean", "most", "verdict"):
        table.add_column(head, justify="left" if head in (*texts, "verdict") else "right", no_wrap=True)
    for result in report.results:
        for i, group in enumerate(result.groups):
            parity, total = group.parity, group.parity.total()
            reason = parity.failure(report.max_loss, group.average)
            table.add_row(
                result.title if i == 0 else "",
                f"{group.name} ({len(parity.cases)})",
                *(share(total[name.split()[0]]) if name.split()[0] in total else "" for name in differ),
                _decibels(total["hr"].psnr) if "hr" in total else "",
                f"{parity.mean_lost:z.3f}",
                f"{parity.lost:z.3f}",
                "[green]accepted[/]" if reason is None else "[red]refused[/]",
            )
    console.print(table)
    for line in _lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(report: Report) -> Iterable[str]:
    for r in report.results:
        for group in r.groups:
            parts = [f"{name} {text}" for name, c in group.parity.total().items() if (text := histogram(c))]
            yield f"{r.title}, {group.name}: {'; '.join([*parts, *worst(group.parity)]) or 'equal'}"
    for reference in dict.fromkeys(g.reference for r in report.results for g in r.groups):
        names = dict.fromkeys(g.name for r in report.results for g in r.groups if g.reference == reference)
        yield f"compared with {reference}: {', '.join(names)}"
    for r in report.results:
        if r.refused:
            yield f"refused: {r.title}: {r.refused}" + (f"; {r.advice}" if r.advice else "")
    for backend, reason in dict.fromkeys((b, why) for b, _, why in report.missing):
        precisions = [p for b, p, why in report.missing if (b, why) == (backend, reason)]
        yield f"not run: {backend} {', '.join(precisions)}: {reason}"


def worst(parity: Parity) -> list[str]:
    """Where the HR is worst over all cases, in words; empty where none differs."""
    spots = [(c.worst, c.name or f"the {c.width}x{c.height} picture") for c in parity.cases if c.worst is not None]
    if not spots:
        return []
    spot, name = min(spots, key=lambda found: (-found[0].largest, found[0].psnr))
    return [f"worst {spot.largest} at {spot.left},{spot.top} of {name}"]


def _decibels(value: float) -> str:
    return "equal" if math.isinf(value) else f"{value:.1f}"
