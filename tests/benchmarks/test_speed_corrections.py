"""Speed of a bundle whose encoder has corrections: its own arithmetic, peers that can take a gradient, the weights it is of."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rescale.bundle import Bundle
from rescale_bench import speed, speed_plan
from rescale_bench.speed_plan import Competitor, Options, Subject, competitors, subjects
from rescale_bench.speed_report import show
from rescale_bench.speed_worker import DIRECTIONS
from rescale_export.bundles import write_bundle
from rescale_train import checkpoint
from rescale_train.cost import correction_macs, macs_per_lr_pixel
from rescale_train.models import RescalingNet
from rescale_train.recipe import load_recipe
from rescale_train.tables import to_dict


@pytest.fixture
def net(make_net) -> RescalingNet:
    """That of `corrected_pair`."""
    return make_net("irn_a", 2, corrections=2)


def test_peers_that_take_no_gradient_are_missing_and_told_why(net, corrected_pair, tmp_path, capsys):
    subject = Subject(Bundle(corrected_pair[0]), net, "same")
    wanted = [Competitor("backend", "onnxruntime", "fp32"), Competitor("eager"), Competitor("naive")]
    with contextlib.closing(speed.Session(1, 1, None, tmp_path)) as session:
        case = speed.measure_case(subject, wanted, (48, 64), session)
    assert [c["name"] for c in case["competitors"]] == ["onnxruntime fp32", "eager"]
    assert "--corrections 0" in case["missing"]["naive"]
    for c in case["competitors"]:
        assert list(c["directions"]) == list(DIRECTIONS)
        for d in c["directions"].values():
            assert d["agreement"]["largest"] <= 1
    flow, pixels = macs_per_lr_pixel(net.config), 24 * 32
    up = 2 * pixels * flow
    assert case["flops"] == {"downscale": up + 4 * pixels * correction_macs(net.config), "upscale": up}
    machine = {"cpu": "", "simd": [], "threads": 1, "cpus": 1, "load_average": 0.0}
    show({"machine": machine, "versions": {}, "cases": [case], "sweeps": []})
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{case['flops']['downscale'] / 1e9:.1f} GFLOP down, {up / 1e9:.1f} up" in printed


def test_a_bundle_with_fewer_of_them_is_known(net, corrected_pair, tmp_path: Path, monkeypatch):
    base = load_recipe("irn_a_x2_lite", {})
    recipe = dataclasses.replace(base, net=net.config, train=dataclasses.replace(base.train, flow_frozen=True))
    checkpoint.write(tmp_path / "w.safetensors", net.state_dict(), recipe, {"step": 1, "seconds": 1.0})
    card = {"weights_sha256": checkpoint.weights_digest(net), "recipe": to_dict(recipe)}
    monkeypatch.setattr(speed_plan, "list_shipped", lambda: [SimpleNamespace(card=card, path=tmp_path / "w.safetensors")])
    write_bundle(net.with_corrections(1), tmp_path / "one", None, ())
    found = list(subjects(Options(bundles=[*corrected_pair, tmp_path / "one"]), competitors(Options()), tmp_path))
    assert [s.weights for s in found] == ["same", "same", "same"]
    assert [len(s.net.corrections) for s in found] == [2, 0, 1]
    for s in found:
        assert all(torch.equal(p, q) for p, q in zip(s.net.levels.parameters(), net.levels.parameters(), strict=True))
