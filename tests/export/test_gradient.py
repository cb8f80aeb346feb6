"""The gradient graph: PyTorch's gradient for every network, and a bundle that holds it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rescale.bundle import MANIFEST, Bundle
from rescale.contract import GRADIENT, gradient_interface
from rescale.errors import ParityError
from rescale.quality import LUMA_DIRECTION
from rescale.refine import LUMA_WEIGHT
from rescale.variants import SCALES, VARIANTS
from rescale_export import graphs
from rescale_export.bundles import write_bundle
from rescale_export.cli import main
from rescale_export.gradient import compare_gradient, gradient, torch_gradient
from rescale_export.validate import check_contract
from rescale_export.writer import GraphWriter
from rescale_train.config import NetConfig, net_config
from rescale_train.models import RescalingNet

NetOf = Callable[..., RescalingNet]

SWITCHES = [
    {},
    {"shared_trunk": False},
    {"alpha_split": "post", "alpha_mean": False},
    {"alpha_basis": "orthonormal", "alpha_gain": 8.0},
    {"lr_growth": 6},
]


def session(writer: GraphWriter) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(writer.model({}).SerializeToString(), providers=["CPUExecutionProvider"])


def inputs(net: RescalingNet, height: int, width: int) -> dict[str, np.ndarray]:
    """Random codes, the first and last of alpha among them, for a batch of two."""
    rng = np.random.default_rng(height)
    v, scale = net.config.variant, net.config.scale
    lr = rng.integers(0, 256, (2, height, width, v.lr_channels), dtype=np.uint8)
    if v.alpha:
        lr[..., 3] = rng.choice(np.array([1, 2, 128, 254, 255], np.uint8), lr.shape[:3])
    feed = {"lr": lr, "target": rng.integers(0, 256, (2, height * scale, width * scale, 3), dtype=np.uint8)}
    if v.latent:
        feed["z"] = rng.normal(0.0, 0.1, (2, net.config.z_channels, height, width)).astype(np.float32)
    return feed


def check(net: RescalingNet) -> None:
    found, up = session(gradient(net)), session(graphs.upscale(net))
    for height, width in ((1, 1), (11, 7)):
        feed = inputs(net, height, width)
        hr, by_code = found.run(["hr", "gradient"], feed)
        assert (hr == up.run(None, {k: x for k, x in feed.items() if k != "target"})[0]).all()
        wanted = torch_gradient(net, **{k: torch.from_numpy(x) for k, x in feed.items()}).numpy()
        assert by_code.shape == feed["lr"].shape
        assert np.abs(by_code - wanted).max() <= 1e-4 * np.abs(wanted).max()
        assert (np.abs(wanted).reshape(-1, wanted.shape[-1]).max(0) > 0).all()


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(VARIANTS, SCALES)))
def test_the_graph_gives_pytorchs_gradient(make_net: NetOf, model: str, scale: int) -> None:
    check(make_net(model, scale))


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: ", ".join(s) or "none")
def test_every_switch_of_a_network_has_its_gradient(net_of: NetOf, switches: dict[str, object]) -> None:
    check(net_of(NetConfig("irn_a", 4, (2, 1), 4, **switches), std=0.05))


def test_a_gradient_is_the_slope_of_the_error(net_of: NetOf) -> None:
    """Of a network near the plain Haar transform, which leaves the range of pictures nowhere: one code a level up and down."""
    net = net_of(NetConfig("irn", 4, (1, 1), 4), std=0.01)
    rng = np.random.default_rng(0)
    lr = rng.integers(118, 138, (1, 6, 5, 3), dtype=np.uint8)
    target = rng.integers(118, 138, (1, 24, 20, 3), dtype=np.uint8)
    by_code = session(gradient(net)).run(["gradient"], {"lr": lr, "target": target})[0]

    def error(codes: np.ndarray) -> float:
        with torch.no_grad():
            restored = net.upscale(torch.from_numpy(codes / np.float32(255.0)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        assert ((restored >= 0.0) & (restored <= 1.0)).all()
        e = 255.0 * restored.astype(np.float64) - target
        return float((e**2).sum() + LUMA_WEIGHT * ((e @ np.array(LUMA_DIRECTION)) ** 2).sum())

    at = np.unravel_index(np.abs(by_code).argmax(), by_code.shape)
    up, down = lr.copy(), lr.copy()
    up[at] += 1
    down[at] -= 1
    assert (error(up) - error(down)) / 2.0 == pytest.approx(float(by_code[at]), rel=0.01)


def test_the_interface_is_the_contracts(make_net: NetOf) -> None:
    for model in VARIANTS:
        net = make_net(model, 2)
        check_contract(gradient(net).model({}), *gradient_interface(VARIANTS[model], net.config.z_channels))


def test_a_graph_of_wrong_weights_is_refused(make_net: NetOf) -> None:
    right, other = make_net("irn_a", 2), make_net("irn_a", 2, seed=1)
    assert compare_gradient(right, gradient(right).model({}).SerializeToString())["relative_error"] < 1e-4
    with pytest.raises(ParityError, match=r"gradient: differs from PyTorch's by .* of its size, allowed is 0.01"):
        compare_gradient(right, gradient(other).model({}).SerializeToString())


def test_an_operator_without_an_adjoint_is_named(make_net: NetOf, monkeypatch: pytest.MonkeyPatch) -> None:
    upscale = graphs.upscale

    def curved(net: RescalingNet) -> GraphWriter:
        g = upscale(net)
        node = next(n for n in g.nodes if n.op_type == "Tanh")
        node.op_type = "Sin"
        return g

    monkeypatch.setattr(graphs, "upscale", curved)
    with pytest.raises(TypeError, match="no adjoint for Sin"):
        gradient(make_net("irn", 2))


def test_a_bundle_holds_it_on_demand(make_net: NetOf, tmp_path: Path) -> None:
    net, target = make_net("irn_a", 2), tmp_path / "b"
    with_it = write_bundle(net, target, None, (), refine=True)
    assert with_it.gradient is not None
    m = json.loads((target / MANIFEST).read_text())
    assert m["parity"][GRADIENT]["relative_error"] < 1e-4
    assert m[GRADIENT]["memory_per_lr_pixel"] > m["graphs"]["upscale"]["memory_per_lr_pixel"] == with_it.memory("upscale")
    onnx.checker.check_model(onnx.load_from_string(with_it.read_graph(GRADIENT)), full_check=True)
    without = write_bundle(net, target, None, ())
    assert without.gradient is None
    assert not (target / "gradient.onnx").exists()
    assert (m["weights"], m["graphs"]) == (without.manifest["weights"], without.manifest["graphs"])
    assert Bundle(target).manifest == without.manifest


@pytest.mark.slow
@pytest.mark.parametrize("model", VARIANTS)
def test_lite_networks_at_x4_pass_the_check(net_of: NetOf, model: str) -> None:
    net = net_of(net_config(model, 4, "lite"))
    compare_gradient(net, gradient(net).model({}).SerializeToString())


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "irn", "--scale", "2", "--size", "lite", "--precision", "fp32", "--refine"]
    assert main([*arguments, "--out", str(tmp_path / "b"), "--json"]) == 0
    said, made = json.loads(capsys.readouterr().out), Bundle(tmp_path / "b")
    assert "relative_error" in said["parity"][GRADIENT]
    assert said[GRADIENT] == made.manifest[GRADIENT]
    assert made.gradient is not None
