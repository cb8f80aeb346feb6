"""How fast a recipe trains here, and what each measure that makes it fast is worth.

Every variant differs from the one before it (or from the recipe) in one thing; all are measured in turn, in one process,
so that a change of the machine's speed meets them alike. A step is the trainer's own: crops, bicubic, both directions,
backward, clipping, optimiser, average.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rescale_train.config import Recipe
from rescale_train.cost import step_flop
from rescale_train.data import CropSampler, Picture
from rescale_train.loop import Trainer
from rescale_train.schedule import crop_plan

WARM_UP = 2
"""Steps of each variant before the clock runs: memory, kernels and the optimiser's moments are made in them."""


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: what it changes.
        recipe: what runs.
        channels_last: memory format of weights and crops.
        flush: denormal numbers are flushed to zero.
        threads: CPU threads.
    """

    name: str
    recipe: Recipe
    channels_last: bool = True
    flush: bool = True
    threads: int = 1


def variants(recipe: Recipe, device: torch.device, threads: int) -> list[Variant]:
    """From plain PyTorch to the recipe step by step, then alternatives to the recipe."""

    def changed(**train: Any) -> Recipe:
        return replace(recipe, train=replace(recipe.train, **train))

    plain = changed(subnet_dtype="float32", compile="none", dense="concat")
    rows = [Variant("plain: float32, channels first, denormals kept", plain, False, False, threads)]
    if device.type == "cpu":
        rows.append(Variant("+ denormals flushed", plain, False, True, threads))
    rows.append(Variant("+ channels last", plain, True, True, threads))
    if recipe.train.subnet_dtype != "float32":
        rows.append(Variant(f"+ {recipe.train.subnet_dtype} subnets", changed(compile="none", dense="concat"), True, True, threads))
    if recipe.train.dense == "sum":
        rows.append(Variant("+ sums in place of joined features", changed(compile="none"), True, True, threads))
    if recipe.train.dense == "aligned":
        rows.append(Variant("+ channels of zeros up to eights", changed(compile="none"), True, True, threads))
    if recipe.train.compile != "none":
        rows.append(Variant(f"+ {recipe.train.compile}", recipe, True, True, threads))
    rows[-1] = replace(rows[-1], name=f"{rows[-1].name} (the recipe)")
    rows.append(Variant("recipe, half the batch", changed(batch=max(1, recipe.train.batch // 2)), True, True, threads))
    rows.append(Variant("recipe, twice the batch", changed(batch=2 * recipe.train.batch), True, True, threads))
    if device.type == "cpu" and threads > 1:
        rows.append(Variant("recipe, 1 thread", recipe, True, True, 1))
    return rows


def compiled(recipe: Recipe, mode: str, threads: int) -> Variant:
    """The recipe through torch.compile; the first step takes minutes, and a C++ compiler is needed."""
    return Variant(f"recipe, torch.compile {mode}", replace(recipe, train=replace(recipe.train, compile=mode)), threads=threads)


def pictures(count: int = 8, side: int = 512, seed: int = 0) -> list[Picture]:
    """Smooth colours with edges and a little noise: what is on them does not matter for speed, denormal numbers apart."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    made = []
    for _ in range(count):
        waves = [np.sin(rng.uniform(2, 40) * x + rng.uniform(2, 40) * y + rng.uniform(0, 6)) for _ in range(3)]
        picture = 127.0 + 80.0 * np.stack(waves, 2) + rng.normal(0.0, 3.0, (side, side, 3))
        picture[:, side // 2 :] *= 0.5
        made.append(picture.clip(0, 255).astype(np.uint8))
    return made


def matmul_peak(device: torch.device, seconds: float = 1.0) -> dict[str, float]:
    """Best rate of a large matrix product in FLOP/s, by arithmetic."""
    side = 1536 if device.type == "cpu" else 8192
    best = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rate, end = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < end or rate == 0.0:
            start = time.perf_counter()
            a @ b
            _wait(device)
            rate = max(rate, 2.0 * side**3 / (time.perf_counter() - start))
        best[name] = rate
    return best


def measure(
    rows: list[Variant], device: torch.device, steps: int, told: Callable[[str], None] = lambda name: None
) -> Iterator[dict[str, Any]]:
    """Milliseconds a step of each variant, one step of each in turn.

    Args:
        rows: what to measure.
        device: where.
        steps: measured steps of each.
        told: called with the variant's name after each step.

    Yields:
        For each variant: name, crops and side, median, 10th and 90th percentile in ms, FLOP/s, crop pixels a second.
    """
    scale = rows[0].recipe.net.scale
    sampler = CropSampler(pictures(), scale, 0, device)
    trainers = [Trainer(v.recipe, device, pretrain=False) for v in rows]
    times: list[list[float]] = [[] for _ in rows]
    threads = torch.get_num_threads()
    try:
        for turn in range(WARM_UP + steps):
            for variant, trainer, taken in zip(rows, trainers, times, strict=True):
                torch.set_flush_denormal(variant.flush)
                torch.set_num_threads(variant.threads)
                if turn == 0 and not variant.channels_last:
                    trainer.net.to(memory_format=torch.contiguous_format)
                _wait(device)
                start = time.perf_counter()
                trainer.train_step(_Contiguous(sampler) if not variant.channels_last else sampler)
                _wait(device)
                if turn >= WARM_UP:
                    taken.append(1000.0 * (time.perf_counter() - start))
                told(variant.name)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    for variant, taken in zip(rows, times, strict=True):
        count, patch = crop_plan(variant.recipe, 0)
        deciles = statistics.quantiles(taken, n=10, method="inclusive") if len(taken) > 1 else [taken[0]] * 9
        median = statistics.median(taken)
        yield {
            "name": variant.name,
            "batch": count,
            "patch": patch,
            "threads": variant.threads if device.type == "cpu" else None,
            "ms": median,
            "ms_p10": deciles[0],
            "ms_p90": deciles[-1],
            "flops_per_second": step_flop(variant.recipe, count, patch) / median * 1000.0,
            "pixels_per_second": count * patch * patch / median * 1000.0,
        }


class _Contiguous(CropSampler):
    """Another sampler's crops, channels first."""

    def __init__(self, inner: CropSampler) -> None:
        self.inner = inner

    def batch(self, step: int, rank: int, count: int, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
        hr, lr = self.inner.batch(step, rank, count, patch)
        return hr.contiguous(memory_format=torch.contiguous_format), lr


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(records: list[dict[str, Any]], peak: dict[str, float]) -> str:
    """Markdown, with ratios against the first row by crop pixels a second."""
    head = "| what | crops | ms a step (10 to 90 %) | GFLOP/s | of float32 matrix product | speed |\n|---|---|---|---|---|---|\n"
    first = records[0]["pixels_per_second"]
    lines = []
    for r in records:
        rate = r["flops_per_second"]
        lines.append(
            f"| {r['name']} | {r['batch']} of {r['patch']} px | {r['ms']:.0f} ({r['ms_p10']:.0f} to {r['ms_p90']:.0f}) | "
            f"{rate / 1e9:.0f} | {100 * rate / peak['float32']:.0f} % | {r['pixels_per_second'] / first:.2f} |\n"
        )
    peaks = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peak.items())
    return head + "".join(lines) + f"\nMatrix product, GFLOP/s: {peaks}.\n"
