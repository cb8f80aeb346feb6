"""Recorded steps on a real device: `pytest -m gpu`. PyTorch's build for the CPU is skipped by name; a missing device fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rescale_train.config import DENSE_MODES, Recipe
from rescale_train.data import CropSampler
from rescale_train.loop import Trainer
from rescale_train.speed import pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.version.cuda is None, reason=f"PyTorch {torch.__version__} is a build for the CPU"),
]


def totals(trainer: Trainer, steps: int) -> list[float]:
    """Loss of each step on crops of the same pictures."""
    sampler = CropSampler(pictures(2, 128), trainer.recipe.net.scale, 0, trainer.device)
    found = [trainer.train_step(sampler) for _ in range(steps)]
    return [terms["total"] for terms in found if terms is not None]


def new(recipe: Recipe) -> Trainer:
    return Trainer(recipe, torch.device("cuda", 0))


@pytest.mark.parametrize("optimiser", ["adamw", "soap"])
def test_recorded_steps_are_the_same_steps(recipe_of: Callable[..., Recipe], optimiser: str) -> None:
    """Over two shapes of crops and two arithmetics, each recorded for itself."""
    plain = recipe_of(
        "dlv_irn_a",
        steps=24,
        optimiser=optimiser,
        subnet_dtype="float16",
        float32_fraction=0.25,
        final_fraction=0.5,
        final_batch=1,
        dense="aligned",
    )
    recorded = new(replace(plain, train=replace(plain.train, compile="cuda-graph")))
    assert totals(recorded, 24) == pytest.approx(totals(new(plain), 24), rel=1e-2)
    assert recorded._captured is not None
    assert len(recorded._captured._recordings) == 3


def test_a_recorded_run_goes_on_from_its_checkpoint(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of("dlv_irn_a", steps=20, optimiser="soap", compile="cuda-graph", subnet_dtype="float16")
    unbroken, stopped, again = new(recipe), new(recipe), new(recipe)
    wanted = totals(unbroken, 20)
    totals(stopped, 12)
    stopped.save(tmp_path / "checkpoint.safetensors", {})
    again.resume(tmp_path / "checkpoint.safetensors")
    assert totals(again, 8) == pytest.approx(wanted[12:], rel=1e-2)


@pytest.mark.parametrize("mode", DENSE_MODES)
def test_every_way_to_compute_a_dense_block_is_the_same_on_a_device(recipe_of: Callable[..., Recipe], mode: str) -> None:
    """At the first step: where a gradient is nearly zero, AdamW goes one way or the other by rounding."""
    sampler = CropSampler(pictures(2, 128), 2, 0, torch.device("cuda", 0))
    found = [
        new(recipe_of("dlv_irn_a", subnet_dtype=dtype, dense=dense)).train_step(sampler)
        for dtype, dense in (("float32", "concat"), ("float16", mode))
    ]
    assert found[1] == pytest.approx(found[0], rel=2e-2)
