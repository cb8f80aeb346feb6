"""The ladder: what each size of network costs and gives, from the runs of `rescale-train study ladder`."""

from __future__ import annotations

import io
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rescale import backends
from rescale.bundle import check_precision
from rescale.errors import InputError
from rescale.network import Network
from rescale_bench.speed_plan import sample_picture
from rescale_export.bundles import write_bundle
from rescale_train import checkpoint
from rescale_train.models import RescalingNet
from rescale_train.study import arm_folder

Rung = dict[str, Any]


def read_study(folder: Path) -> dict[str, Any]:
    """What `rescale-train study` wrote, with at least two finished arms, each with the figures of the sets that all of them have.

    Raises:
        InputError: it is no such folder, fewer arms are finished, or no set was measured on all of them.
    """
    path = folder / "study.json"
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        arms = [a for a in study["arms"] if "figures" in a]
        for arm in arms:
            _check(arm)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InputError(f"{path}: not the result of rescale-train study: {e}") from None
    if len(arms) < 2:
        raise InputError(f"{path}: {len(arms)} finished arm(s); a ladder has at least 2")
    common = [name for name in arms[0]["figures"] if all(name in a["figures"] for a in arms)]
    if not common:
        raise InputError(f"{path}: no set was measured on all {len(arms)} arms; run them again with one --measure")
    arms = [a | {"figures": {name: a["figures"][name] for name in common}} for a in arms]
    return {"title": str(study.get("title", "")), "arms": arms}


def _check(arm: Any) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError for what a study does not write of a finished arm."""
    if not isinstance(arm["name"], str):
        raise ValueError(f"an arm is named {arm['name']!r}")
    numbers = [arm["macs_per_lr_pixel"], arm["parameters"]]
    numbers += [f[key] for f in arm["figures"].values() for key in ("hr_psnr_y", "lr_psnr_y")]
    if wrong := [n for n in numbers if type(n) not in (int, float) or not math.isfinite(n)]:
        raise ValueError(f"{arm['name']}: {wrong[0]!r} is no figure")


def measure(
    folder: Path,
    backend: str,
    precision: str | None,
    resolution: tuple[int, int],
    repeats: int,
    threads: int | None,
    told: Callable[[str], None],
) -> dict[str, Any]:
    """Seconds of each finished arm's network down and up, one run of each in turn.

    Args:
        folder: of the study, with the arms' checkpoints.
        backend: as for `rescale.load`.
        precision: as for `rescale.load`.
        resolution: (width, height) of the HR picture.
        repeats: measured runs of each, after one that is not.
        threads: CPU threads; None for all that this process may use.
        told: called with the arm's name after its export and after each run.

    Raises:
        InputError: the study or a checkpoint is not there.
        ConfigError, BackendError: an unknown precision or backend.
        ParityError: a network loses more in this precision than the gate of the export allows.
    """
    backends.check_name(backend)
    if precision is not None:
        check_precision(precision)
    study = read_study(folder)
    picture = sample_picture(resolution[1], resolution[0])
    rungs: list[Rung] = []
    with tempfile.TemporaryDirectory(prefix="rescale-ladder-") as work:
        runs: list[tuple[Network, RescalingNet, Any]] = []
        for number, arm in enumerate(study["arms"]):
            path = arm_folder(folder, arm["name"]) / "checkpoint.safetensors"
            if not path.exists():
                raise InputError(f"{path}: missing; the ladder is measured on the folder of the runs")
            net = checkpoint.read_net(path)
            bundle = write_bundle(net, Path(work) / str(number), None, () if precision is None else (precision,))
            runner = backends.create(bundle, backend, threads, precision)
            runs.append((Network(bundle, runner), net, runner))
            rungs.append({k: arm[k] for k in ("name", "parameters", "macs_per_lr_pixel", "figures")} | {"down": [], "up": []})
            told(arm["name"])
        name = runs[0][2].name
        for turn in range(repeats + 1):
            for rung, (network, _, _) in zip(rungs, runs, strict=True):
                start = time.perf_counter()
                lr, code = network.down(picture)
                middle = time.perf_counter()
                alpha = lr[..., 3] if lr.shape[2] == 4 else None
                network.up(np.ascontiguousarray(lr[..., :3]), alpha, code)
                if turn:
                    rung["down"].append(middle - start)
                    rung["up"].append(time.perf_counter() - middle)
                told(rung["name"])
        for rung, (_, net, runner) in zip(rungs, runs, strict=True):
            rung["seconds"] = {d: statistics.median(rung[d]) for d in ("down", "up")}
            rung["gpu_ms"] = gpu_milliseconds(net, resolution, repeats)
            runner.close()
    mark_knee(rungs)
    width, height = resolution
    return {
        "title": study["title"],
        "backend": name,
        "resolution": f"{width}x{height}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "rungs": rungs,
    }


def gpu_milliseconds(net: RescalingNet, resolution: tuple[int, int], repeats: int) -> dict[str, float] | None:
    """Median time of PyTorch in float16 subnets on the CUDA device, both directions; None without one."""
    if not torch.cuda.is_available():
        return None
    scale = net.config.scale
    width, height = (n - n % scale for n in resolution)
    moved = net.to("cuda").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(1, 3, height, width, device="cuda").contiguous(memory_format=torch.channels_last)
    taken: dict[str, list[float]] = {"down": [], "up": []}
    with torch.no_grad(), torch.autocast("cuda", torch.float16):  # not inference_mode: corrections take a gradient
        for turn in range(repeats + 3):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]  # type: ignore[no-untyped-call]
            marks[0].record()
            down = moved.downscale(x)
            marks[1].record()
            moved.upscale(down.lr, moved.decode_z(down.lr, down.code))
            marks[2].record()
            torch.cuda.synchronize()
            if turn >= 3:
                taken["down"].append(marks[0].elapsed_time(marks[1]))
                taken["up"].append(marks[1].elapsed_time(marks[2]))
    net.to("cpu")
    return {d: statistics.median(t) for d, t in taken.items()}


def mark_knee(rungs: Sequence[Rung]) -> None:
    """Set ``knee`` on each rung: true for the one farthest above the line from the cheapest to the dearest.

    The axes are the logarithm of the seconds of both directions and the mean HR PSNR of all sets, each scaled to 0..1. Where the
    dearest is no better than the cheapest, the best takes its place in the scale of PSNR. One that another beats at no more cost
    is never the knee.
    """
    cost = [math.log(r["seconds"]["down"] + r["seconds"]["up"]) for r in rungs]
    gain = [quality(r) for r in rungs]
    first, last = cost.index(min(cost)), cost.index(max(cost))
    width, height = cost[last] - cost[first], gain[last] - gain[first]
    if height <= 0:
        height = max(gain) - gain[first]
    above = [
        ((g - gain[first]) / height if height > 0 else 0.0) - ((c - cost[first]) / width if width > 0 else 0.0)
        for c, g in zip(cost, gain, strict=True)
    ]
    best = above.index(max(above))
    for i, rung in enumerate(rungs):
        rung["knee"] = i == best


def quality(rung: Rung) -> float:
    """Mean HR Y-PSNR over the sets, in dB."""
    return statistics.fmean(f["hr_psnr_y"] for f in rung["figures"].values())


def markdown(report: dict[str, Any]) -> str:
    """The ladder as a table."""
    sets = list(report["rungs"][0]["figures"])
    gpu = ["GPU ms down / up"] if report["gpu"] else []
    heads = ["network", "parameters", "MAC/LR px", "s down / up", *gpu, *(f"{s} HR / LR dB" for s in sets)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for r in report["rungs"]:
        name = f"**{r['name']}**" if r["knee"] else r["name"]
        cells = [name, f"{r['parameters']:,}", f"{r['macs_per_lr_pixel'] / 1e3:,.0f}k"]
        cells.append(f"{r['seconds']['down']:.2f} / {r['seconds']['up']:.2f}")
        if report["gpu"]:
            cells.append(f"{r['gpu_ms']['down']:.1f} / {r['gpu_ms']['up']:.1f}")
        cells += [f"{r['figures'][s]['hr_psnr_y']:.2f} / {r['figures'][s]['lr_psnr_y']:.2f}" for s in sets]
        lines.append(f"| {' | '.join(cells)} |")
    head = f"{report['title']}\n\n{report['backend']}, {report['resolution']}; in bold the knee of the curve.\n\n"
    return head + "\n".join(lines) + "\n"


def plot(report: dict[str, Any]) -> bytes:
    """PSNR against seconds as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    rungs = sorted(report["rungs"], key=lambda r: r["seconds"]["down"] + r["seconds"]["up"])
    cost = [r["seconds"]["down"] + r["seconds"]["up"] for r in rungs]
    axes.plot(cost, [quality(r) for r in rungs], "o", color="#0072b2")
    middle = math.sqrt(cost[0] * cost[-1])
    for r, c in zip(rungs, cost, strict=True):
        weight = "bold" if r["knee"] else "normal"
        # Names run towards the middle, or those of the last points would leave the picture.
        right = c > middle
        axes.annotate(
            r["name"],
            (c, quality(r)),
            xytext=(-5, 5) if right else (5, -9),
            ha="right" if right else "left",
            textcoords="offset points",
            fontsize=7,
            fontweight=weight,
        )
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds down and up, {report['resolution']}, {report['backend']}")
    axes.set_ylabel("HR Y-PSNR, mean of the sets (dB)")
    axes.margins(x=0.06, y=0.12)
    axes.grid(alpha=0.3, which="both")
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rescale", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
