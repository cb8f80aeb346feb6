"""Means of a rate report, over pictures where a comparison exists; how many those are is always said."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Means of a set as `rescale_bench.rate.measure_set` gives it.

    Returns:
        ``set``, ``count``, ``size`` and ``pixels`` means, ``lossless`` mean bytes by codec, ``curves``: mean bytes and PSNR by
        codec and step of the ladder, and ``models``: for each network ``psnr_y``, ``psnr_rgb``, ``files`` and ``bicubic_lr`` mean
        bytes by container, ``same_bytes`` and ``residual`` by container and codec (see `_against`), ``same_psnr`` by codec (see
        `_needed`). A codec that failed on a picture is left out of that set's means.
    """
    pictures = found["pictures"]
    by_model = zip(*(p["rescaled"] for p in pictures), strict=True)
    return {
        "set": found["set"],
        "count": len(pictures),
        "size": [statistics.fmean(p["size"][i] for p in pictures) for i in (0, 1)],
        "pixels": statistics.fmean(p["size"][0] * p["size"][1] for p in pictures),
        "lossless": _means([p["lossless"] for p in pictures]),
        "curves": {codec: _curve([p["curves"][codec] for p in pictures]) for codec in _shared([p["curves"] for p in pictures])},
        "models": [_model(entries) for entries in by_model],
    }


def _model(entries: Sequence[Entry]) -> dict[str, Any]:
    first = entries[0]
    files = _means([e["files"] for e in entries])
    finite = [e for e in entries if math.isfinite(e["psnr_y"])]
    return {
        **{k: first[k] for k in ("model", "scale", "weights", "runner")},
        "psnr_y": statistics.fmean(e["psnr_y"] for e in entries),
        "psnr_rgb": statistics.fmean(e["psnr_rgb"] for e in entries),
        "files": files,
        "bicubic_lr": _means([e["bicubic_lr"] for e in entries]),
        "bits_per_lr_pixel": _means([{c: 8.0 * n / math.prod(e["lr_size"]) for c, n in e["files"].items()} for e in entries]),
        "same_bytes": {c: _all(entries, [e["same_bytes"][c] for e in entries], _against) for c in files},
        "residual": {c: _all(entries, [e["residual"][c] for e in entries], _against) for c in files},
        "same_psnr": _all(finite, [e["same_psnr"] for e in finite], lambda es, ms: _needed(es, ms, files, len(entries))),
    }


def _all(
    entries: Sequence[Entry], matches: Sequence[Entry], judge: Callable[[Sequence[Entry], Sequence[Entry]], dict[str, Any]]
) -> dict[str, Any]:
    """What `judge` says of each codec that every picture has a match of."""
    return {codec: judge(entries, [m[codec] for m in matches]) for codec in _shared(matches)}


def _against(entries: Sequence[Entry], matches: Sequence[Entry]) -> dict[str, Any]:
    """A codec at given bytes, over the pictures that it can code in so few.

    Returns:
        ``psnr_y``, ``psnr_rgb`` means; ``gain_y``: dB that the restored HR has more, mean, least and most; ``better_y``,
        ``better_rgb``: pictures where it has more; ``count``: pictures in these figures; ``above``: of them, where the codec
        was at its best quality in fewer bytes; ``below``: pictures left out, because its worst needs more.
    """
    pairs = [(e, m) for e, m in zip(entries, matches, strict=True) if m["reached"] != "below"]
    gains = [_less(e["psnr_y"], m["psnr_y"]) for e, m in pairs]
    return {
        "count": len(pairs),
        "above": sum(m["reached"] == "above" for _, m in pairs),
        "below": len(entries) - len(pairs),
        "psnr_y": _mean(m["psnr_y"] for _, m in pairs),
        "psnr_rgb": _mean(m["psnr_rgb"] for _, m in pairs),
        "gain_y": {"mean": _mean(gains), "least": min(gains, default=math.nan), "most": max(gains, default=math.nan)},
        "better_y": sum(e["psnr_y"] > m["psnr_y"] for e, m in pairs),
        "better_rgb": sum(e["psnr_rgb"] > m["psnr_rgb"] for e, m in pairs),
    }


def _needed(entries: Sequence[Entry], matches: Sequence[Entry], files: Mapping[str, Any], total: int) -> dict[str, Any]:
    """Bytes of a codec at a given PSNR, over the pictures where it reaches that between two of its qualities.

    Returns:
        ``bytes`` mean; ``share``: of the LR file's bytes, by container, the mean of the pictures' shares; ``count``; ``above``,
        ``below``: pictures left out, because the codec's best is worse, or its worst better; ``whole``: pictures left out, of
        the set's `total`, that are restored without loss, which no codec is asked for.
    """
    pairs = [(e, m) for e, m in zip(entries, matches, strict=True) if m["reached"] == "bracketed"]
    return {
        "count": len(pairs),
        "above": sum(m["reached"] == "above" for m in matches),
        "below": sum(m["reached"] == "below" for m in matches),
        "whole": total - len(entries),
        "bytes": _mean(m["bytes"] for _, m in pairs),
        "share": {c: _mean(m["bytes"] / e["files"][c] for e, m in pairs) for c in files},
    }


def _curve(ladders: Sequence[Sequence[Entry]]) -> list[dict[str, float]]:
    rows = []
    for points in zip(*ladders, strict=True):
        figures = {k: statistics.fmean(p[k] for p in points) for k in ("bytes", "psnr_y", "psnr_rgb")}
        rows.append({"step": points[0]["step"], **figures})
    return rows


def _shared(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that every row has, in the first one's order."""
    return [k for k in rows[0] if all(k in r for r in rows)] if rows else []


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {k: statistics.fmean(r[k] for r in rows) for k in _shared(rows)}


def _mean(values: Any) -> float:
    found = list(values)
    # Infinite in both directions has no mean, and the sum of such is an error.
    return statistics.fmean(found) if found and not {math.inf, -math.inf} <= set(found) else math.nan


def _less(a: float, b: float) -> float:
    """a - b, and 0 where both are infinite."""
    return 0.0 if a == b else a - b
