"""What changes in the course of a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rescale_train.config import SUBNET_DTYPES, Recipe
from rescale_train.data import CropSampler
from rescale_train.loop import Trainer
from rescale_train.schedule import arithmetic, crop_plan, learning_rate, subnet_arithmetic

CPU = torch.device("cpu")
RecipeOf = Callable[..., Recipe]


def test_learning_rate_warms_up_and_ends_where_it_should(recipe_of: RecipeOf) -> None:
    recipe = recipe_of(steps=100, warmup=10, lr_peak=1e-3, lr_end=0.1)
    rates = [learning_rate(recipe, s) for s in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(1e-3 * 0.55)
    assert rates[100] == learning_rate(recipe, 1000) == pytest.approx(1e-4)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(replace(recipe, train=replace(recipe.train, warmup=0)), 0) == pytest.approx(1e-3)


def test_the_crop_plan_changes_in_the_final_phase(recipe_of: RecipeOf) -> None:
    recipe = recipe_of(steps=10, batch=3, patch=16, final_fraction=0.3, final_batch=1, final_patch=32)
    assert [crop_plan(recipe, s) for s in range(10)] == [(3, 16)] * 7 + [(1, 32)] * 3
    plain = replace(recipe, train=replace(recipe.train, final_fraction=0.0))
    assert {crop_plan(plain, s) for s in range(10)} == {(3, 16)}


@pytest.mark.parametrize("name", SUBNET_DTYPES)
def test_tf32_is_allowed_where_it_is_asked_for_alone(recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as PyTorch has it
    recipe = recipe_of(steps=4, subnet_dtype=name, float32_fraction=0.5)
    for step, wanted in ((0, name), (3, "float32")):
        with subnet_arithmetic(recipe, step, CPU):
            assert torch.backends.cudnn.allow_tf32 == (wanted == "tf32")
            assert torch.is_autocast_enabled("cpu") == (wanted in ("bfloat16", "float16"))


@pytest.mark.parametrize(("compiled", "resets"), [("none", []), ("reduce-overhead", [3])])
def test_what_was_compiled_for_one_arithmetic_does_not_run_in_another(
    recipe_of: RecipeOf,
    sampler_of: Callable[[Recipe], CropSampler],
    monkeypatch: pytest.MonkeyPatch,
    compiled: str,
    resets: list[int],
) -> None:
    """PyTorch does not look at cuDNN's TF32 before it runs compiled code again, and a CUDA graph has it in it."""
    recipe = recipe_of(steps=6, subnet_dtype="tf32", float32_fraction=0.5, compile=compiled)
    monkeypatch.setattr(torch, "compile", lambda module, mode, dynamic: module)
    trainer, sampler, seen = Trainer(recipe, CPU), sampler_of(recipe), []
    monkeypatch.setattr(torch.compiler, "reset", lambda: seen.append(trainer.step))
    for _ in range(6):
        trainer.train_step(sampler)
    assert [arithmetic(recipe, s) for s in range(6)] == ["tf32"] * 3 + ["float32"] * 3
    assert seen == resets
