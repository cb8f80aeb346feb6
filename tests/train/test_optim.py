from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rescale_train.config import Recipe
from rescale_train.data import CropSampler
from rescale_train.loop import Options, Trainer
from rescale_train.models import build
from rescale_train.optim import Optimiser, inner_filters

CPU = torch.device("cpu")
RecipeOf = Callable[..., Recipe]
SamplerOf = Callable[[Recipe], CropSampler]


def test_inner_filters_are_three_of_every_dense_block(recipe_of: RecipeOf) -> None:
    net = build(recipe_of("irn_m", net={"shared_trunk": True}).net)
    assert {n for n, p in net.named_parameters() if any(p is q for q in inner_filters(net))} == {
        f"levels.0.0.{part}.conv{k}.weight" for part in ("F", "GH") for k in (2, 3, 4)
    }


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_turns_a_gradient_into_an_orthogonal_step(recipe_of: RecipeOf, layout: torch.memory_format) -> None:
    """All singular values of the update are near one another, whatever the memory formats of weight and gradient."""
    recipe = recipe_of(optimiser="muon", weight_decay=0.0)
    net = build(recipe.net).to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = Optimiser(net, recipe.train)
    weight = inner_filters(net)[0]
    before = weight.detach().clone()
    torch.manual_seed(0)
    for p in net.parameters():
        p.grad = torch.randn(p.shape)
    optimiser.step(0.1)
    step = (weight.detach() - before).flatten(1)
    values = torch.linalg.svdvals(step)
    assert float(values.max() / values.min()) < 2.0
    gradient = weight.grad
    assert gradient is not None
    assert float((step * gradient.flatten(1)).sum()) < 0.0, "downhill, so the rows were not mixed up"
    assert float(step.abs().max()) < 0.1


@pytest.mark.parametrize("optimiser", ["muon", "soap"])
def test_memory_formats_do_not_change_the_step(recipe_of: RecipeOf, optimiser: str) -> None:
    recipe, moved = recipe_of(optimiser=optimiser), []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        net = build(recipe.net).to(memory_format=layout)  # type: ignore[call-overload]
        optimiser = Optimiser(net, recipe.train)
        for _ in range(3):
            for p in net.parameters():
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape))  # laid out like the weight, as autograd does
            optimiser.step(0.01)
        moved.append([p.detach().clone() for p in net.parameters()])
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-3)  # Muon computes in bfloat16


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "soap"])
def test_a_run_resumed_is_the_run_unbroken(recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path, optimiser: str) -> None:
    recipe = recipe_of("irn_a", optimiser=optimiser, steps=8)
    (tmp_path / "a").mkdir()
    whole = Trainer(recipe, CPU)
    whole.run(sampler_of(recipe), [], Options(tmp_path / "a"))
    first = Trainer(recipe, CPU)
    for _ in range(4):
        first.train_step(sampler_of(recipe))
    first.save(tmp_path / "half.safetensors", {})
    second = Trainer(recipe, CPU)
    second.resume(tmp_path / "half.safetensors")
    (tmp_path / "b").mkdir()
    second.run(sampler_of(recipe), [], Options(tmp_path / "b"))
    for p, q in zip(whole.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("optimiser", ["muon", "soap"])
def test_it_trains(recipe_of: RecipeOf, sampler_of: SamplerOf, optimiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("irn_a", optimiser=optimiser, steps=60, warmup=5, lr_peak=3e-3)
    trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
    # The same crops in every step: those of one are twice as hard as those of another.
    batch = sampler.batch
    monkeypatch.setattr(sampler, "batch", lambda step, *shape: batch(0, *shape))
    losses = [terms["total"] for _ in range(60) if (terms := trainer.train_step(sampler)) is not None]
    assert losses[-1] < 0.8 * losses[0]
