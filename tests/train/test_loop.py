from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rescale.errors import CheckpointError, RescaleError
from rescale.quality import psnr, psnr_y
from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.bicubic import bicubic_picture
from rescale_train.config import Recipe
from rescale_train.data import CropSampler
from rescale_train.log import read_log
from rescale_train.loop import CLIP_WINDOW, MAX_SKIPPED, DivergedError, Options, Trainer
from rescale_train.models import RescalingNet, build
from rescale_train.pretrain import pretrain_autoencoder
from rescale_train.schedule import learning_rate, subnet_arithmetic
from rescale_train.start import Start
from rescale_train.validation import CEILING, restore, validate

CPU = torch.device("cpu")
RecipeOf = Callable[..., Recipe]
SamplerOf = Callable[[Recipe], CropSampler]


def with_overrides(recipe: Recipe, **train: Any) -> Recipe:
    return replace(recipe, train=replace(recipe.train, **train))


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.net.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def without_times(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in ("ms", "seconds")} for r in read_log(path)]


CASES: list[tuple[str, dict[str, object]]] = [
    ("irn", {"z": "random", "lr_noise": 0.02}),
    ("irn_a", {"final_fraction": 0.3, "final_batch": 1, "subnet_dtype": "bfloat16", "float32_fraction": 0.3}),
    ("dlv_irn_m", {"ae_pretrain_steps": 2, "ae_frozen": True, "ema": 0.9}),
    ("irn_m", {"ema": 0.0, "clip": 0.0}),
]


@pytest.mark.parametrize(("model", "train"), CASES, ids=[m for m, _ in CASES])
def test_a_resumed_run_equals_an_unbroken_one(
    recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path, model: str, train: dict[str, object]
) -> None:
    recipe = recipe_of(model, **train)
    held = [probe_picture(32, 32, 9)]
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    options = [Options(tmp_path / n, log_every=1, validate_every=6) for n in ("straight", "broken")]
    straight = Trainer(recipe, CPU)
    straight.run(sampler_of(recipe), held, options[0])

    first = Trainer(recipe, CPU)
    result = first.run(sampler_of(recipe), held, replace(options[1], should_stop=lambda: first.step == 6))
    assert (result["step"], result["finished"]) == (6, False)
    second = Trainer(recipe, CPU, pretrain=False)
    second.resume(tmp_path / "broken" / "checkpoint.safetensors")
    assert second.step == 6
    result = second.run(sampler_of(recipe), held, options[1])

    assert (result["step"], result["finished"]) == (12, True)
    assert same(weights(straight), weights(second))
    assert same(straight.average, second.average)
    logs = [without_times(tmp_path / n / "log.jsonl") for n in ("straight", "broken")]
    assert logs[0] == logs[1]
    assert [r["step"] for r in logs[0] if "total" in r] == list(range(1, 13))
    files = [checkpoint.read(tmp_path / n / "checkpoint.safetensors") for n in ("straight", "broken")]
    assert files[0].tensors.keys() == files[1].tensors.keys()
    assert all(torch.equal(v, files[1].tensors[k]) for k, v in files[0].tensors.items())


def test_the_loss_falls(recipe_of: RecipeOf, sampler_of: SamplerOf) -> None:
    recipe = recipe_of("irn_a", steps=60, warmup=5, batch=4, lr_peak=5e-3)
    trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
    totals = [terms["total"] for _ in range(60) if (terms := trainer.train_step(sampler))]
    assert len(totals) == 60
    assert np.mean(totals[-10:]) < 0.8 * np.mean(totals[:5])


def test_the_step_uses_the_plan_and_the_rate(recipe_of: RecipeOf, sampler_of: SamplerOf, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(steps=4, final_fraction=0.5, final_batch=1, final_patch=32, warmup=0)
    trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
    asked = []
    batch = sampler.batch
    monkeypatch.setattr(sampler, "batch", lambda *args: asked.append(args) or batch(*args))
    rates = [terms["rate"] for _ in range(4) if (terms := trainer.train_step(sampler))]
    assert asked == [(0, 0, 2, 16), (1, 0, 2, 16), (2, 0, 1, 32), (3, 0, 1, 32)]
    assert rates == [learning_rate(recipe, s) for s in range(4)]


class Faulty(torch.nn.Module):
    """An objective whose total is not finite while `broken`."""

    def __init__(self, inner: torch.nn.Module, value: float) -> None:
        super().__init__()
        self.inner, self.value, self.broken = inner, value, True

    def forward(self, *args: Any) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.inner(*args)
        return terms | {"total": terms["total"] * self.value} if self.broken else terms


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(recipe_of: RecipeOf, sampler_of: SamplerOf, value: float) -> None:
    recipe = recipe_of("irn_a")
    trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
    trainer.train_step(sampler)
    before, average, norms = weights(trainer), [a.clone() for a in trainer.average], list(trainer.norms)
    trainer.objective = Faulty(trainer.objective, value)
    assert trainer.train_step(sampler) is None
    assert trainer.step == 2
    assert same(before, weights(trainer))
    assert same(average, trainer.average)
    assert trainer.norms == norms
    assert {int(trainer.optimiser.state_of(p)["step"]) for p in trainer.parameters} == {1}


def test_a_run_gives_up_after_too_many_such_steps_in_a_row(recipe_of: RecipeOf, sampler_of: SamplerOf) -> None:
    recipe = recipe_of(steps=1000, patch=16, batch=1)
    trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
    faulty = trainer.objective = Faulty(trainer.objective, math.nan)
    for _ in range(MAX_SKIPPED - 1):
        assert trainer.train_step(sampler) is None
    faulty.broken = False
    assert trainer.train_step(sampler) is not None, "a good step resets the count"
    faulty.broken = True
    for _ in range(MAX_SKIPPED - 1):
        assert trainer.train_step(sampler) is None
    with pytest.raises(DivergedError, match=r"50 steps in a row were not finite; lower train.lr_peak"):
        trainer.train_step(sampler)


def test_skipped_steps_are_told(
    recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the log, the result and the checkpoint, also where a line was due at a step that was skipped."""
    recipe = recipe_of(steps=5, warmup=0)
    trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
    faulty = trainer.objective = Faulty(trainer.objective, math.nan)
    batch = sampler.batch

    def watched(step: int, *rest: Any) -> Any:
        faulty.broken = step in (1, 2, 4)
        return batch(step, *rest)

    monkeypatch.setattr(sampler, "batch", watched)
    assert trainer.run(sampler, [], Options(tmp_path, log_every=1))["skipped"] == 3
    records = read_log(tmp_path / "log.jsonl")
    assert [(r["step"], r.get("skipped"), "total" in r) for r in records] == [
        (1, None, True),
        (2, 1, False),
        (3, 2, False),
        (4, 2, True),
        (5, 3, False),
    ]
    again = Trainer(recipe, CPU)
    again.resume(tmp_path / "checkpoint.safetensors")
    assert again.skipped == 3


def test_gradients_above_the_running_median_are_clipped(recipe_of: RecipeOf, sampler_of: SamplerOf) -> None:
    moved = []
    for clip in (0.0, 2.0):
        recipe = recipe_of(clip=clip, warmup=0, ema=0.0)
        trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
        trainer.norms = [1e-12] * 20
        trainer.train_step(sampler)
        moved.append(max(float(trainer.optimiser.state_of(p)["exp_avg"].abs().max()) for p in trainer.parameters))
    assert moved[0] > 1e-3
    assert moved[1] <= 2e-12


def test_the_limit_is_of_the_median_of_a_window(recipe_of: RecipeOf, sampler_of: SamplerOf) -> None:
    """Neither some large norms nor what was long ago lift it."""
    recipe = recipe_of(clip=2.0)
    trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
    norms = trainer.norms = [1.0] * 60 + [1000.0] * 40
    for _ in range(3):
        terms = trainer.train_step(sampler)
        assert terms is not None
        assert terms["grad_norm"] > 20.0
        assert float(torch.nn.utils.get_total_norm([p.grad for p in trainer.parameters])) == pytest.approx(2.0, rel=1e-4)
        norms = [*norms, terms["grad_norm"]][-CLIP_WINDOW:]
        assert trainer.norms == norms
    assert len(norms) == CLIP_WINDOW


def test_max_minutes_stops_cleanly_and_resumably(recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path) -> None:
    recipe = recipe_of(steps=1000)
    result = Trainer(recipe, CPU).run(sampler_of(recipe), [], Options(tmp_path, max_minutes=0.0, log_every=7))
    assert (result["step"], result["steps"], result["finished"]) == (1, 1000, False)
    again = Trainer(recipe, CPU)
    again.resume(tmp_path / "checkpoint.safetensors")
    assert again.step == 1
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1]
    seconds = again.seconds
    assert seconds > 0
    assert again.run(sampler_of(recipe), [], Options(tmp_path, max_minutes=0.0))["seconds"] > seconds


def test_a_finished_run_does_nothing_more(recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path) -> None:
    recipe = recipe_of(steps=2)
    Trainer(recipe, CPU).run(sampler_of(recipe), [], Options(tmp_path))
    again = Trainer(recipe, CPU)
    again.resume(tmp_path / "checkpoint.safetensors")
    before = weights(again)
    assert again.run(sampler_of(recipe), [], Options(tmp_path))["finished"]
    assert same(before, weights(again))


def test_checkpoints_and_parts_are_written_as_asked(recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path) -> None:
    recipe = recipe_of(steps=5)
    trainer = Trainer(recipe, CPU)
    saved: list[int] = []
    save = trainer.save
    trainer.save = lambda path, validation: (saved.append(trainer.step), save(path, validation))[1]  # type: ignore[method-assign]
    trainer.run(sampler_of(recipe), [], Options(tmp_path, save_every=2, split_parts=True))
    assert saved == [2, 4, 5]
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.safetensors", "checkpoint.safetensors.part00", "log.jsonl"}


def test_a_checkpoint_has_the_figures_of_its_own_step_alone(recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path) -> None:
    """They follow the weights: what is written at a stop does not wait for them."""
    recipe, held = recipe_of(steps=5), [probe_picture(32, 32)]
    trainer = Trainer(recipe, CPU)
    saved: list[tuple[int, bool]] = []
    save = trainer.save
    trainer.save = lambda path, figures: (saved.append((trainer.step, bool(figures))), save(path, figures))[1]  # type: ignore[method-assign]
    options = Options(tmp_path, save_every=1, validate_every=2, should_stop=lambda: trainer.step == 4)
    trainer.run(sampler_of(recipe), held, options)
    assert saved == [(1, False), (2, False), (2, True), (3, False), (4, False), (4, True)]
    found = checkpoint.read(tmp_path / "checkpoint.safetensors")
    figures = {k: v for k, v in found.progress.items() if "psnr" in k}
    assert figures == validate(checkpoint.load_net(found, "c"), held)


@pytest.mark.parametrize("layers", [2, 4])
def test_pretraining_lowers_the_autoencoders_error(recipe_of: RecipeOf, layers: int) -> None:
    errors = []
    for steps in (1, 40):
        recipe = recipe_of("irn_m", net={"ae_layers": layers}, ae_pretrain_steps=steps)
        torch.manual_seed(0)
        errors.append(pretrain_autoencoder(build(recipe.net), recipe, CPU))
    assert errors[1] < 0.9 * errors[0]
    assert errors[1] < 1.1


def test_pretraining_needs_an_autoencoder(recipe_of: RecipeOf) -> None:
    with pytest.raises(ValueError, match="irn_a has no autoencoder"):
        pretrain_autoencoder(build(recipe_of("irn_a").net), recipe_of("irn_a"), CPU)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_autoencoder_does_not_change(recipe_of: RecipeOf, sampler_of: SamplerOf, frozen: bool) -> None:
    recipe = recipe_of("irn_m", ae_pretrain_steps=3, ae_frozen=frozen)
    trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
    before = {n: p.detach().clone() for n, p in trainer.net.named_parameters()}
    for _ in range(3):
        trainer.train_step(sampler)
    moved = {n for n, p in trainer.net.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in moved if n.startswith("levels.")}
    assert bool({n for n in moved if n.startswith("autoencoder.")}) is not frozen


def test_the_average_lags_behind_the_weights_and_is_what_ships(recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path) -> None:
    recipe = recipe_of("irn_a", steps=4)
    trainer = Trainer(recipe, CPU)
    trainer.run(sampler_of(recipe), [], Options(tmp_path))
    raw = weights(trainer)
    assert not same(raw, trainer.average)
    with trainer.averaged() as net:
        assert same([p.detach() for p in net.parameters()], trainer.average)
    assert same(raw, weights(trainer)), "put back"
    shipped = checkpoint.load_net(checkpoint.read(tmp_path / "checkpoint.safetensors"), "c")
    assert same([p.detach() for p in shipped.parameters()], trainer.average)


@pytest.mark.parametrize(("step", "decay"), [(0, 2.0 / 11.0), (10_000, 0.9)])
def test_the_average_follows_the_young_decay_up_to_the_recipes(
    recipe_of: RecipeOf, sampler_of: SamplerOf, step: int, decay: float
) -> None:
    recipe = recipe_of(steps=20_000, ema=0.9)
    trainer = Trainer(recipe, CPU)
    trainer.step = step
    before = weights(trainer)
    trainer.train_step(sampler_of(recipe))
    want = [b + (p - b) * (1.0 - decay) for b, p in zip(before, weights(trainer), strict=True)]
    assert max(float((w - b).abs().max()) for w, b in zip(want, before, strict=True)) > 1e-4
    for a, w in zip(trainer.average, want, strict=True):
        torch.testing.assert_close(a, w, atol=1e-7, rtol=0)


def test_without_an_average_the_raw_weights_ship(recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path) -> None:
    recipe = recipe_of(steps=2, ema=0.0)
    trainer = Trainer(recipe, CPU)
    trainer.run(sampler_of(recipe), [], Options(tmp_path))
    found = checkpoint.read(tmp_path / "checkpoint.safetensors")
    assert not [k for k in found.tensors if k.startswith("ema.")]
    assert same([p.detach() for p in checkpoint.load_net(found, "c").parameters()], weights(trainer))


@pytest.mark.parametrize("model", ["irn", "dlv_irn_a", "irn_m"])
@torch.no_grad()
def test_16_bit_subnets_leave_the_state_float32(
    net_of: Callable[..., RescalingNet], recipe_of: RecipeOf, as_batch: Callable[..., Tensor], model: str
) -> None:
    recipe = recipe_of(model, steps=10, subnet_dtype="bfloat16", float32_fraction=0.5)
    net = net_of(recipe.net, 0.05, True)
    x = as_batch(probe_picture(32, 32))
    want = net(x)
    with subnet_arithmetic(recipe, 0, CPU):
        got = net(x)
        again = net.inverse(*got)
    for g, w in zip((*got, again), (*want, x), strict=True):
        assert g.dtype == torch.float32
        assert g.isfinite().all()
        torch.testing.assert_close(g, w, atol=0.02, rtol=0)
    assert not torch.equal(got[0], want[0]), "the subnets were rounded"
    assert (again - x).abs().mean() < 1e-5, "the state was not"
    with subnet_arithmetic(recipe, 5, CPU):
        assert torch.equal(net(x)[0], want[0]), "the last part of a run is wholly float32"


def test_a_16_bit_step_keeps_float32_weights(recipe_of: RecipeOf, sampler_of: SamplerOf) -> None:
    recipe = recipe_of("irn_a", subnet_dtype="bfloat16", float32_fraction=0.0)
    trainer = Trainer(recipe, CPU)
    before = weights(trainer)
    assert trainer.train_step(sampler_of(recipe)) is not None
    assert not same(before, weights(trainer))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.net.parameters())


def test_initial_weights_are_taken(recipe_of: RecipeOf, net_of: Callable[..., RescalingNet]) -> None:
    net = net_of(recipe_of().net, 0.05, True)
    trainer = Trainer(recipe_of(), CPU, start=Start(net.state_dict(), "", None))
    assert same(weights(trainer), [p.detach() for p in net.parameters()])
    assert same(weights(trainer), trainer.average)


@pytest.mark.parametrize(
    ("key", "train"), [("final_batch", {"batch": 4, "final_batch": 3}), ("batch", {"batch": 3, "final_batch": 4})]
)
def test_a_batch_that_cannot_be_shared_is_refused(recipe_of: RecipeOf, key: str, train: dict[str, object]) -> None:
    with pytest.raises(RescaleError, match=rf"train\.{key}: a batch of 3 crops cannot be shared by 2 processes"):
        Trainer(recipe_of(final_fraction=0.1, **train), CPU, world=2)


def test_a_final_batch_that_never_comes_need_not_be_shared(recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda module, **options: module)
    assert Trainer(recipe_of(batch=4, final_batch=3, final_fraction=0.0), CPU, world=2).world == 2


def test_resuming_another_recipe_is_refused(recipe_of: RecipeOf, sampler_of: SamplerOf, tmp_path: Path) -> None:
    recipe = recipe_of(steps=1)
    Trainer(recipe, CPU).run(sampler_of(recipe), [], Options(tmp_path))
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(
        CheckpointError, match=r"checkpoint.safetensors: written by another recipe \(train.lr_peak 0.002, now 1.0\); .*--init-from"
    ):
        Trainer(with_overrides(recipe, lr_peak=1.0), CPU).resume(path)


def test_resuming_a_weights_file_is_refused(recipe_of: RecipeOf, tmp_path: Path) -> None:
    trainer = Trainer(recipe_of(), CPU)
    path = tmp_path / "w.safetensors"
    checkpoint.write(path, trainer.net.state_dict(), recipe_of(), {"step": 1, "seconds": 0.0})
    with pytest.raises(CheckpointError, match=r"w.safetensors: not a complete training checkpoint"):
        trainer.resume(path)


@pytest.mark.parametrize(("model", "scale"), [("irn", 2), ("dlv_irn_a", 4), ("irn_m", 2)])
def test_validation_is_the_closed_loop_with_8_bits_between(
    net_of: Callable[..., RescalingNet], recipe_of: RecipeOf, as_batch: Callable[..., Tensor], model: str, scale: int
) -> None:
    net = net_of(recipe_of(model, scale).net, 0.05, True)
    picture = probe_picture(9 * scale + 1, 8 * scale + 1)
    cut = picture[: 9 * scale, : 8 * scale]
    with torch.no_grad():
        down = net.downscale(as_batch(cut))
        up = net.upscale(down.lr, net.decode_z(down.lr, down.code))
    small = torch.round(down.lr[0, :3] * 255.0).permute(1, 2, 0).byte().numpy()
    large = torch.round(up[0].clamp(0, 1) * 255.0).permute(1, 2, 0).byte().numpy()
    got = restore(net, cut)
    np.testing.assert_array_equal(got[0], small)
    np.testing.assert_array_equal(got[1], large)
    figures = validate(net, [picture])
    assert figures["hr_psnr_y"] == pytest.approx(psnr_y(large, cut, scale))
    assert figures["hr_psnr_rgb"] == pytest.approx(psnr(large[scale:-scale, scale:-scale], cut[scale:-scale, scale:-scale]))
    assert figures["lr_psnr_y"] == pytest.approx(psnr_y(small, bicubic_picture(cut, scale), 1))
    other = probe_picture(8 * scale, 8 * scale, 4)
    mean = validate(net, [picture, other])["hr_psnr_y"]
    assert mean == pytest.approx((figures["hr_psnr_y"] + validate(net, [other])["hr_psnr_y"]) / 2)


def test_an_exact_picture_does_not_hide_the_others(net_of: Callable[..., RescalingNet], recipe_of: RecipeOf) -> None:
    net, flat, other = net_of(recipe_of("irn").net, 0.0), np.zeros((32, 32, 3), np.uint8), probe_picture(32, 32, 4)
    assert set(validate(net, [flat]).values()) == {CEILING}
    alone = validate(net, [other])
    assert validate(net, [flat, other]) == pytest.approx({k: (CEILING + v) / 2 for k, v in alone.items()})
