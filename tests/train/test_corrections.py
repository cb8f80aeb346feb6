"""Corrections of the encoder: what they see, what they leave as it is, how they are trained and grown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rescale.errors import ConfigError
from rescale.quality import error_metric
from rescale_train import checkpoint
from rescale_train.config import NetConfig, Recipe, TrainConfig
from rescale_train.cost import correction_macs, macs_per_lr_pixel, step_flop
from rescale_train.data import CropSampler
from rescale_train.grow import grow
from rescale_train.loop import Trainer
from rescale_train.models import RescalingNet, spared
from rescale_train.models.irn import code_range
from rescale_train.models.quantise import logit
from rescale_train.recipe import load_recipe
from rescale_train.shipped import weights_folder
from rescale_train.start import read_start
from rescale_train.tables import from_dict, to_dict
from rescale_train.validation import validate

ALL = [(m, s) for m in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m") for s in (2, 4)]


def corrected(net: RescalingNet, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y corrected for what the decoder of x's latent code will have."""
    return net.correct(x, y, net.decode_z(y, net.downscale(x).code))


@pytest.mark.parametrize(("model", "scale"), ALL)
def test_the_slope_is_that_of_the_restored_error(make_net, model, scale):
    net = make_net(model, scale, corrections=2).double()
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 6 * scale, 5 * scale, generator=g, dtype=torch.float64)
    y, _ = net(x)
    z_hat = net.decode_z(y, net.downscale(x).code).detach()
    assert (z_hat != 0.0).any() == net.config.variant.latent
    y = y.detach() + 0.05 * torch.randn(y.shape, generator=g, dtype=torch.float64)
    metric = torch.from_numpy(error_metric()).double()

    @torch.no_grad()
    def error(at: torch.Tensor) -> float:
        e = net.inverse(at, z_hat) - x
        return float(0.5 * torch.einsum("bchw,cd,bdhw->", e, metric, e))

    way = torch.randn(y.shape, generator=g, dtype=torch.float64)
    found = float((net.slope(x, y, z_hat) * way).sum())
    assert found == pytest.approx((error(y + 1e-6 * way) - error(y - 1e-6 * way)) / 2e-6, rel=1e-4)


@pytest.mark.parametrize(("model", "scale"), [("irn_a", 4), ("dlv_irn_m", 2)])
@torch.no_grad()
def test_a_spared_slope_is_the_same_and_keeps_little(make_net, model, scale):
    net = make_net(model, scale, corrections=1, blocks=(3,) * (scale // 2))
    x = torch.rand(1, 3, 8 * scale, 8 * scale, generator=torch.Generator().manual_seed(0))
    y, z = net(x)
    kept = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[-1] += t.nbytes
        return t

    def slope() -> torch.Tensor:
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            return net.slope(x, y, z)

    plain = slope()
    with spared(net):
        assert torch.equal(slope(), plain)
    assert torch.equal(slope(), plain)
    assert kept[1] < kept[0] / 5
    assert kept[2] == kept[0]


@torch.no_grad()
def test_validation_spares_memory(make_net, picture, monkeypatch):
    net = make_net("irn_a", 2, corrections=1)
    found = []
    monkeypatch.setattr(type(net), "slope", lambda net, x, y, z: found.append(net.sparing) or torch.zeros_like(y))
    validate(net, [picture(16, 16)])
    assert found == [True]
    assert not net.sparing
    net.downscale(torch.rand(1, 3, 8, 8))
    assert found == [True, False]


@pytest.mark.parametrize(("model", "scale"), ALL)
@torch.no_grad()
def test_fresh_ones_change_nothing_and_trained_ones_only_the_encoder(make_net, model, scale):
    plain = make_net(model, scale)
    fresh = grow(plain, dataclasses.replace(plain.config, corrections=2))
    x = torch.rand(1, 3, 8 * scale, 8 * scale)
    assert torch.equal(fresh.downscale(x).lr, plain.downscale(x).lr)
    net = make_net(model, scale, corrections=2)
    down = net.downscale(x)
    assert not torch.equal(down.lr, plain.downscale(x).lr)
    z_hat, code = net.decode_z(down.lr, down.code), plain.downscale(x).code
    assert torch.equal(net.upscale(down.lr, z_hat), plain.upscale(down.lr, z_hat))
    assert (down.code is None and code is None) or torch.equal(down.code, code), "the latent code is the flow's"
    assert torch.equal(net.with_corrections(0).downscale(x).lr, plain.downscale(x).lr)
    assert checkpoint.flow_digest(net) == checkpoint.weights_digest(plain) == checkpoint.weights_digest(net.with_corrections(0))
    assert checkpoint.weights_digest(net) != checkpoint.flow_digest(net)


def test_digests_tell_corrections_apart(make_net):
    one, other = make_net("irn_a", 2, corrections=2), make_net("irn_a", 2, corrections=2)
    with torch.no_grad():
        other.corrections[1].conv1.bias[0] += 1.0
    assert checkpoint.weights_digest(one) != checkpoint.weights_digest(other)
    assert checkpoint.flow_digest(one) == checkpoint.flow_digest(other)


@torch.no_grad()
def test_a_step_is_held_to_its_limit(make_net):
    net = make_net("irn_a", 2, corrections=1)
    x = torch.rand(1, 3, 16, 16)
    y = net.held(net(x)[0])
    free = corrected(net, x, y) - y
    most = float(free.abs().max()) / 2
    before = checkpoint.weights_digest(net), checkpoint.flow_digest(net)
    net.config = dataclasses.replace(net.config, correction_limit=255.0 * most)
    assert torch.allclose(corrected(net, x, y) - y, free.clamp(-most, most), atol=1e-7)
    assert checkpoint.weights_digest(net) != before[0]
    assert checkpoint.flow_digest(net) == checkpoint.weights_digest(net.with_corrections(0)) == before[1]


def test_weights_without_a_limit_keep_the_digest_that_they_had():
    for name in ("irn_x2_medium", "dlv_irn_a_x4_medium"):
        card = json.loads((weights_folder() / f"{name}.json").read_text())
        found = checkpoint.read(weights_folder() / f"{name}.safetensors")
        assert checkpoint.weights_digest(checkpoint.load_net(found, name)) == card["weights_sha256"]


@pytest.fixture(params=["dlv_irn_a", "dlv_irn_m"])
def recipe(request):
    changes = {"blocks": [1], "growth": 4, "corrections": 1, "correction_growth": 4}
    net = {**to_dict(load_recipe(f"{request.param}_x2_lite", {}).net), **changes}
    base = load_recipe(f"{request.param}_x2_lite", {"train.steps": 4, "train.batch": 2, "train.patch": 64, "train.warmup": 1})
    train = dataclasses.replace(base.train, flow_frozen=True, final_fraction=0.0, optimiser="soap", lr_peak=1e-2)
    return dataclasses.replace(base, net=from_dict(NetConfig, net, "net"), train=train)


def sampler() -> CropSampler:
    rng = np.random.default_rng(0)
    return CropSampler([rng.integers(0, 255, (80, 80, 3), np.uint8)], 2, 0, torch.device("cpu"))


def test_with_a_frozen_flow_only_they_are_trained(recipe, tmp_path: Path):
    trainer = Trainer(recipe, torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.net.state_dict().items()}
    for _ in range(3):
        assert trainer.train_step(sampler()) is not None
    after = trainer.net.state_dict()
    for name, value in before.items():
        moved = not torch.equal(after[name], value)
        assert moved == name.startswith("corrections.") or name.endswith("conv1.weight"), name
        assert name.startswith("corrections.") or not moved
    trainer.save(tmp_path / "c.safetensors", {})
    again = Trainer(recipe, torch.device("cpu"))
    again.resume(tmp_path / "c.safetensors")
    one, other = trainer.train_step(sampler()), again.train_step(sampler())
    assert one == other


def test_nested_ones_are_made_in_turn(recipe, tmp_path, monkeypatch):
    """All of them, one, all, two, ...; also where a run goes on, and the same for every process."""
    net = dataclasses.replace(recipe.net, corrections=3)
    nested = dataclasses.replace(recipe, net=net, train=dataclasses.replace(recipe.train, nested=True, steps=9, optimiser="adamw"))
    made, correct = [], RescalingNet.correct
    monkeypatch.setattr(RescalingNet, "correct", lambda self, *args: made.append(args[3]) or correct(self, *args))
    trainer, taught = Trainer(nested, torch.device("cpu")), []
    for _ in range(6):
        trainer.train_step(sampler())
        taught.append(sum(b.convs[-1].weight.grad is not None for b in trainer.net.corrections))
    trainer.save(tmp_path / "c.safetensors", {})
    again = Trainer(nested, torch.device("cpu"))
    again.resume(tmp_path / "c.safetensors")
    again.train_step(sampler())
    assert made == [3, 1, 3, 2, 3, 1, 3]
    assert taught == made[:6], "what is not made learns nothing from that step"
    assert trainer.net.downscale(torch.rand(1, 3, 16, 16)).lr.shape == (1, nested.net.variant.lr_channels, 8, 8)
    assert made[-1] is None, "all of them where nothing is trained"


def test_another_limit_is_no_other_network(make_net, tmp_path):
    net, path = make_net("irn", 2, corrections=2), tmp_path / "w.safetensors"
    checkpoint.write(path, net.state_dict(), Recipe(net.config, TrainConfig(steps=1, flow_frozen=True)), {})
    limited = dataclasses.replace(net.config, correction_limit=4.0)
    start = read_start(path, Recipe(limited, TrainConfig(steps=1, flow_frozen=True)))
    assert start.grown == ""
    assert all(torch.equal(start.weights[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("model", "scale"), ALL)
@torch.no_grad()
def test_the_first_of_them_can_be_had_alone(make_net, model, scale):
    net, x = make_net(model, scale, corrections=3), torch.rand(1, 3, 8 * scale, 8 * scale)
    found = [net.with_corrections(count).downscale(x) for count in range(4)]
    for count, down in enumerate(found):
        assert torch.equal(down.lr_raw, net.downscale(x, count).lr_raw)
        assert not down.lr_raw.requires_grad
    assert torch.equal(found[3].lr, net.downscale(x).lr)
    assert len({f.lr_raw.sum().item() for f in found}) == 4, "each of them does something"
    assert len({checkpoint.weights_digest(net.with_corrections(count)) for count in range(4)}) == 4
    assert {checkpoint.flow_digest(net.with_corrections(count)) for count in range(4)} == {checkpoint.flow_digest(net)}


def test_they_grow_in_number_and_not_otherwise(make_net):
    net = make_net("irn_a", 2, corrections=2)
    more = grow(net, dataclasses.replace(net.config, corrections=3, growth=6))
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(more(x)[0], net(x)[0], atol=1e-5)
        assert torch.allclose(corrected(more, x, more(x)[0]), corrected(net, x, net(x)[0]), atol=1e-5)
    for change, reason in (({"corrections": 1}, "it has 2 corrections, more than 1"), ({"correction_growth": 8}, "and growth 4")):
        with pytest.raises(ConfigError, match=reason):
            grow(net, dataclasses.replace(net.config, **change))
    plain = make_net("irn", 2, corrections=2)
    with pytest.raises(ConfigError, match="its corrections are of x2"):
        grow(plain, dataclasses.replace(plain.config, scale=4, blocks=(1, 1)))


@pytest.mark.parametrize(("model", "scale"), ALL)
@torch.no_grad()
def test_a_flow_goes_on_without_them(make_net, tmp_path, model, scale):
    net = make_net(model, scale, corrections=2)
    wider = dataclasses.replace(net.config, corrections=0, growth=6)
    x = torch.rand(1, 3, 8 * scale, 8 * scale)
    grown, flow = grow(net, wider).downscale(x), net.with_corrections(0).downscale(x)
    assert torch.allclose(grown.lr, flow.lr, atol=1e-5)
    path = tmp_path / "corrected.safetensors"
    checkpoint.write(path, net.state_dict(), Recipe(net.config, TrainConfig(steps=1, flow_frozen=True)), {})
    start = read_start(path, Recipe(net.with_corrections(0).config, TrainConfig(steps=1)))
    assert start.grown.endswith("left without its corrections")
    assert start.digest == checkpoint.weights_digest(net), "cards find what a run began with by the whole network's digest"
    assert start.weights.keys() == net.with_corrections(0).state_dict().keys()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dlv_irn_a_x2_lite", {"net.corrections": 9}, "net.corrections: 0 to 8, got 9"),
        ("dlv_irn_a_x2_lite", {"net.correction_growth": 0}, "net.correction_growth: 1 to 256, got 0"),
        ("dlv_irn_a_x2_lite", {"net.correction_limit": 256.0}, "net.correction_limit: 0 to 255, got 256.0"),
        (
            "dlv_irn_a_x2_lite",
            {"train.flow_frozen": "true"},
            "train.flow_frozen: true is wanted with net.corrections and not without",
        ),
        ("dlv_irn_a_x2_lite", {"net.corrections": 1}, "train.flow_frozen: true is wanted with net.corrections and not without"),
        (
            "dlv_irn_a_x2_lite",
            {"net.corrections": 1, "train.flow_frozen": "true", "train.compile": '"default"'},
            'train.compile: "none" is wanted',
        ),
        ("dlv_irn_a_x2_lite", {"train.nested": "true"}, "train.nested: is of net.corrections, and there are none"),
    ],
)
def test_what_makes_no_sense_is_refused(name, values, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(name, values)


def test_their_arithmetic_is_counted():
    plain = load_recipe("dlv_irn_a_x4_medium_robust", {})
    recipe = load_recipe("dlv_irn_a_x4_medium_corrected", {})
    flow = macs_per_lr_pixel(recipe.net)
    assert flow == macs_per_lr_pixel(plain.net)
    dense = 9 * (8 * 48 + 56 * 48 + 104 * 48 + 152 * 48 + 200 * 4)
    assert correction_macs(recipe.net) == 2 * flow + dense
    pixels = 2 * 24**2
    assert recipe.net.corrections == 3
    assert step_flop(recipe, 2, 96) == 2 * pixels * (3 * flow + 3 * (2 * flow + 3 * dense))
    nested = load_recipe("dlv_irn_a_x4_medium_corrected", {"train.nested": "true"})
    assert step_flop(nested, 2, 96) == 2 * pixels * (3 * flow + 2.25 * (2 * flow + 3 * dense)), "3, 1, 3, 2 of them"


@pytest.mark.parametrize("model", ["irn", "dlv_irn_a"])
@torch.no_grad()
def test_each_step_begins_at_codes_that_a_file_can_hold(make_net, monkeypatch, model):
    """The decoder was trained on nothing else: beyond them its slopes, and with them the steps, grew without bounds."""
    net = make_net(model, 2, corrections=2)
    x = torch.rand(1, 3, 16, 12)
    y = 4.0 * net(x)[0] - 1.0
    seen = []
    slope = net.slope
    monkeypatch.setattr(net, "slope", lambda x, y, z: seen.append(y) or slope(x, y, z))
    z = net.decode_z(y, None)
    found = net.correct(x, y, z)
    least, most = (torch.tensor(v).view(1, -1, 1, 1) for v in code_range(net.config))
    assert len(seen) == 2
    assert all(((at >= least - 1e-6) & (at <= most + 1e-6)).all() for at in seen)
    assert torch.allclose(found, net.correct(x, torch.minimum(torch.maximum(y, least), most), z), atol=1e-5)
    if model == "dlv_irn_a":
        extremes = logit(torch.tensor([0.0, 1.0])) / net.config.alpha_gain
        assert [least[0, 3].item(), most[0, 3].item()] == pytest.approx(extremes.tolist(), rel=1e-5)


def test_what_lies_beyond_is_still_pulled_back(make_net):
    net = make_net("irn_a", 2, corrections=1)
    x = torch.rand(1, 3, 8, 8)
    y = (net(x)[0].detach() + 3.0).requires_grad_()
    corrected(net, x, y).square().sum().backward()
    assert (y.grad != 0.0).all()
