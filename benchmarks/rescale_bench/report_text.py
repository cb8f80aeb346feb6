"""What a report says in words and tables, for its Markdown and its page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rescale_bench.markdown import row
from rescale_bench.peers import NAMES as PEERS
from rescale_bench.speed_report import DEFINITIONS, left_out_lines
from rescale_bench.speed_worker import BACKEND, DIRECTIONS

LABELS = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "eager": "PyTorch eager",
    "compiled": "torch.compile",
    "naive": "plain ONNX export",
    "half": "simulated float16,",
}

SHORT = {"eager": "eager", "compiled": "compile", "naive": "export"}
"""Peers in the heads of columns: how many times as fast as this one."""

WORDS = {"downscale": "down", "upscale": "up"}
PARTS_TOLERANCE = 0.05
"""By which the sum of a timing's parts may miss the whole."""

BUSY = 0.25
"""Load average a CPU, before anything was measured, from which times are doubted."""

Case = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of texts under heads; columns after the first `texts` hold numbers. `strong`: rows that stand out."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    strong: frozenset[int] = frozenset()


def label(name: str) -> str:
    """A competitor's name for people."""
    first, space, rest = name.partition(" ")
    return LABELS.get(first, first) + space + rest


def resolution(case: Case) -> str:
    """``1280x720``."""
    return "{}x{}".format(*case["resolution"])


def megapixels(case: Case) -> float:
    """Of the HR picture."""
    width, height = case["resolution"]
    return float(width * height / 1e6)


def findings(report: Mapping[str, Any]) -> dict[str, str]:
    """One sentence a section, which says its result: ``quality``, ``speed``, ``latency``, ``parity``, ``bytes``."""
    (result,) = report["quality"]["results"]
    (bicubic,) = report["quality"]["bicubic"]
    cases = report["speed"]["cases"]
    values = [p["hr_psnr_y"] for p in result["pictures"]]
    count = f"{len(values)} picture{'s' * (len(values) != 1)}"
    own, source = (sum(p[k] for p in result["pictures"]) for k in ("bytes", "source_png"))
    return {
        "quality": f"Restored at {result['mean']['hr_psnr_y']:.1f} dB on average, {min(values):.1f} to {max(values):.1f} dB"
        f" (Y-PSNR of {count}); bicubic down and up gives {bicubic['mean']['hr_psnr_y']:.1f} dB",
        "speed": _fastest(cases[-1]),
        "latency": _latency(cases[0]),
        "parity": _agreement(report["parity"]["bundles"][0]),
        "bytes": f"An LR file takes {own / source:.2f} of the bytes of its source as PNG ({count})",
    }


def _fastest(case: Case) -> str:
    """Who takes the least time both ways; all whose range of runs reaches into the first's share the place."""
    backends = sorted(
        (c for c in case["competitors"] if c["kind"] == BACKEND and c["round_trip"]), key=lambda c: c["round_trip"]["run"]
    )
    if not backends:
        return f"No backend went both ways at {resolution(case)}"
    first = backends[0]
    limit = sum(first["directions"][d]["run"]["max"] for d in DIRECTIONS)
    equal = [c for c in backends if sum(c["directions"][d]["run"]["min"] for d in DIRECTIONS) <= limit]
    down, up = (megapixels(case) / first["directions"][d]["run"]["median"] for d in DIRECTIONS)
    names = " and ".join(label(c["name"]) for c in equal)
    verb = "is fastest" if len(equal) == 1 else "are equally fast within their spread"
    ratios = [
        f"{first['times_faster'][p]['round_trip']['run']:.1f} times {label(p)}"
        for p in PEERS
        if "round_trip" in first["times_faster"].get(p, {})
    ]
    beside = f", {', '.join(ratios)}" if ratios else ""
    return f"{names} {verb} at {resolution(case)}: {down:.2f} megapixels a second down, {up:.2f} up{beside}"


def _latency(case: Case) -> str:
    backends = [c for c in case["competitors"] if c["kind"] == BACKEND and c["round_trip"]]
    if not backends:
        return f"No backend went both ways at {resolution(case)}"
    first = min(backends, key=lambda c: c["round_trip"]["whole"])
    said = [
        f"{milliseconds(d['whole']['median'])} {WORDS[n]} (p95 {milliseconds(d['whole']['p95'])})"
        for n, d in first["directions"].items()
    ]
    return f"File to file, a {resolution(case)} picture takes {' and '.join(said)} with {label(first['name'])}"


def _agreement(bundle: Mapping[str, Any]) -> str:
    refused = [f"{label(r['backend'])} {r['precision']}" for r in bundle["results"] if r["refused"]]
    if refused:
        return f"The parity gate refuses {', '.join(refused)}"
    keys = {"mean": "psnr_lost_mean", "each": "psnr_lost"}  # what the limit holds for
    lost = max((g[keys[g["limit_holds_for"]]] or 0.0 for r in bundle["results"] for g in r["groups"]), default=0.0)
    count = len(bundle["results"])
    who = "The one backend that ran gives" if count == 1 else f"All {count} backends and precisions that ran give"
    return f"{who} PyTorch's pictures: at most {max(0.0, lost):.3f} dB lost, {bundle['max_loss']:g} are allowed"


def milliseconds(seconds: float) -> str:
    """``8.3 ms``; above 10 seconds ``12.3 s``."""
    if seconds >= 10.0:
        return f"{seconds:.1f} s"
    return f"{_plain(seconds)} ms"


def speed_table(case: Case) -> Table:
    """One resolution: every competitor in both directions; times in milliseconds."""
    peers = [p for p in PEERS if any(p in c["times_faster"] for c in case["competitors"])]
    parts = ["compute", "run", "whole"]
    if any("pipelined" in d for c in case["competitors"] for d in c["directions"].values()):
        parts.append("pipelined")
    names = {"compute": "graphs alone", "run": "arrays to arrays", "whole": "file to file", "pipelined": "in a row"}
    heads = ("competitor", "direction", *(names[p] for p in parts), "fastest - slowest", "p95", "runs")
    heads += (*(f"times {SHORT[p]}" for p in peers), "GFLOP/s", "peak MB")
    rows: list[tuple[str, ...]] = []
    strong = set()
    for c in case["competitors"]:
        for i, (name, d) in enumerate(c["directions"].items()):
            whole = d["whole"]
            if c["kind"] == BACKEND:
                strong.add(len(rows))
            faster = [c["times_faster"].get(p, {}).get(name) for p in peers]
            rows.append(
                (
                    label(c["name"]) if i == 0 else "",
                    WORDS[name],
                    *(_plain(d[p]["median"]) if p in d else "" for p in parts),
                    f"{_plain(whole['min'])} - {_plain(whole['max'])}",
                    _plain(whole["p95"]),
                    str(len(whole["times"])),
                    *("" if f is None else f"{f['run']:.2f}" for f in faster),
                    f"{d['gflops']:.1f}",
                    f"{d['peak_rss'] / 2**20:.0f}",
                )
            )
    title = f"{resolution(case)}, {case['model']}: milliseconds, medians; fastest to slowest and p95 from file to file"
    return Table(title, heads, tuple(rows), 2, frozenset(strong))


def _plain(seconds: float) -> str:
    """Milliseconds without their unit."""
    return f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def quality_table(report: Mapping[str, Any]) -> Table:
    """Every picture and the mean."""
    (result,) = report["quality"]["results"]
    heads = ("picture", "HR Y-PSNR", "RGB-PSNR", "SSIM-Y", "bicubic", "LR Y-PSNR", "LR bytes", "bits/LR px", "source PNG", "of it")
    rows = []
    plain = report["quality"]["bicubic"][0]["pictures"]
    for p, b in zip(result["pictures"], plain, strict=True):
        rows.append((p["name"], *_figures(p, b["hr_psnr_y"]), f"{p['source_png']:,}", f"{p['bytes'] / p['source_png']:.2f}"))
    mean, source = result["mean"], sum(p["source_png"] for p in result["pictures"])
    share = sum(p["bytes"] for p in result["pictures"]) / source
    bicubic = report["quality"]["bicubic"][0]["mean"]["hr_psnr_y"]
    rows.append(("mean", *_figures(mean, bicubic), f"{source / len(rows):,.0f}", f"{share:.2f}"))
    return Table("Quality and bytes", heads, tuple(rows), 1, frozenset({len(rows) - 1}))


def _figures(p: Mapping[str, Any], bicubic: float | None) -> tuple[str, ...]:
    return (
        *(_number(p[k], digits) for k, digits in (("hr_psnr_y", 2), ("hr_psnr_rgb", 2), ("hr_ssim_y", 4))),
        _number(bicubic, 2),
        _number(p["lr_psnr_y"], 2),
        f"{p['bytes']:,.0f}",
        _number(p["bits_per_lr_pixel"], 2),
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def parity_table(report: Mapping[str, Any]) -> Table:
    """Every backend and precision on every set."""
    (bundle,) = report["parity"]["bundles"]
    heads = ("backend", "pictures", "compared with", "verdict", "HR differ", "largest", "PSNR", "dB lost")
    rows = []
    for r in bundle["results"]:
        for i, g in enumerate(r["groups"]):
            hr = g["graphs"].get("hr", {"different": 0, "values": 0, "largest": 0, "psnr": None})
            psnr = "equal" if hr["psnr"] is None else f"{hr['psnr']:.1f} dB"
            rows.append(
                (
                    f"{label(r['backend'])} {r['precision']}" if i == 0 else "",
                    f"{g['name']} ({len(g['cases'])})",
                    g["reference"].partition(",")[0],
                    "refused" if r["refused"] else "accepted",
                    f"{100 * hr['different'] / max(1, hr['values']):.3f} %",
                    str(hr["largest"]),
                    psnr,
                    "" if g["psnr_lost"] is None else f"{g['psnr_lost']:z.4f}",
                )
            )
    return Table("Parity", heads, tuple(rows), 4)


def not_run(report: Mapping[str, Any]) -> list[str]:
    """What was left out, did not run or failed, with the reason; each once."""
    lines: dict[str, None] = dict.fromkeys(left_out_lines(report["speed"]))
    for case in report["speed"]["cases"]:
        for reason in dict.fromkeys(case["missing"].values()):
            names = ", ".join(label(n) for n, why in case["missing"].items() if why == reason)
            lines[f"Not run: {names}: {reason}"] = None
        for c in case["competitors"]:
            for direction, reason in c["failed"].items():
                lines[f"Failed: {label(c['name'])}, {direction} at {resolution(case)}: {reason}"] = None
    for b in report["parity"]["bundles"]:
        for r in b["results"]:
            if r["refused"]:
                lines[f"Refused: {label(r['backend'])} {r['precision']}: {r['refused']}; {r['advice']}"] = None
    return list(lines)


def parts_check(cases: Iterable[Case]) -> str:
    """Whether the parts of a timing add up to the whole, in words. A single run may have been held up between two parts."""
    shares = [d["parts_of_whole"] for case in cases for c in case["competitors"] for d in c["directions"].values()]
    if not shares:
        return "Nothing was timed: every run failed."
    low, high = 100 * min(s[0] for s in shares), 100 * max(s[2] for s in shares)
    kept = all(abs(s[1] - 1) <= PARTS_TOLERANCE for s in shares)
    verdict = "" if kept else f": more than {100 * PARTS_TOLERANCE:.0f} % apart, these timings are not to be trusted"
    return f"Decode, run and encode add up to {low:.2f} to {high:.2f} % of the whole of every run{verdict}."


def busy(machine: Mapping[str, Any]) -> str:
    """What else the machine did when the report began, in words; empty where that was little."""
    load = machine["load_average"]
    if load is None or load[0] <= BUSY * machine["cpus"]:
        return ""
    return (
        f"Other programs were at work when this began (load average {load[0]:.1f}, {machine['cpus']} CPUs): times are too long,"
        " and ratios are not to be trusted; measure again on an idle machine"
    )


def machine_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the figures depend on."""
    m = report["machine"]
    rows = [
        ("Processor", f"{m['cpu'] or m['architecture']} ({', '.join(m['simd'])})"),
        ("Threads", f"{m['threads']} of {m['cpus']} CPUs"),
        ("Memory", "" if m["memory"] is None else f"{m['memory'] / 2**30:.1f} GB"),
        ("System", m["system"]),
        ("Load at the start", "" if m["load_average"] is None else ", ".join(f"{n:.2f}" for n in m["load_average"])),
        (
            "Matrix product",
            f"{max(c['product']['gflops'] for c in report['speed']['cases']):.0f} GFLOP/s, float32, the best of the runs",
        ),
        ("GPU", _gpu(report)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        ("Model", f"{report['bundle']['model']}, weights {report['bundle']['weights'][:12]}"),
        ("Measured", f"{report['date']}, {sum(report['seconds'].values()) / 60:.1f} minutes"),
        ("Command", report["command"]),
    ]
    return [row for row in rows if row[1]]


def _gpu(report: Mapping[str, Any]) -> str:
    backends = {c["backend"] for case in report["speed"]["cases"] for c in case["competitors"]}
    ran = sorted(b for b in backends if b.startswith("tensorrt"))
    if ran:
        return f"used by {', '.join(map(label, ran))}"
    return "not measured: no backend for one ran; streams and CUDA graphs on and off were not measured either"


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report without plots and pictures."""
    found = report["findings"]
    lines = [f"# {report['bundle']['model']} on this machine", "", *(f"- {text}." for text in found.values())]
    lines += ["", f"## {found['speed']}", ""]
    for case in report["speed"]["cases"]:
        lines += [f"### {resolution(case)}", "", *_rows(speed_table(case)), ""]
    lines += [parts_check(report["speed"]["cases"]), ""]
    lines += [f"{said}.", ""] if (said := busy(report["machine"])) else []
    lines += [f"## {found['parity']}", "", *_rows(parity_table(report)), ""]
    lines += [f"## {found['quality']}", "", *_rows(quality_table(report)), "", f"{found['bytes']}.", ""]
    rest = not_run(report)
    lines += ["## What did not run", "", *(f"- {line}" for line in rest), ""] if rest else []
    lines += ["## Machine and versions", "", *_rows(Table("", ("what", "value"), tuple(machine_rows(report)), 2)), ""]
    lines += ["## Definitions", ""]
    every = {**DEFINITIONS, **report["quality"]["definitions"], **report["parity"]["definitions"]}
    return "\n".join([*lines, *(f"- **{name}**: {text}" for name, text in every.items()), ""])


def _rows(table: Table) -> Sequence[str]:
    rule = ["---" if i < table.texts else "---:" for i in range(len(table.heads))]
    return [row(table.heads), row(rule), *map(row, table.rows)]
