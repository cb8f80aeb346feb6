from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from rescale.bundle import MAX_FIELD
from rescale.contract import graph_names
from rescale.errors import ConfigError
from rescale.variants import SCALES, VARIANTS
from rescale_export.graphs import receptive_field, split_graphs
from rescale_export.validate import check_contract, compare
from rescale_train.config import NetConfig, net_config
from rescale_train.models import RescalingNet

NetOf = Callable[..., RescalingNet]
ModelsOf = Callable[[RescalingNet], dict[str, onnx.ModelProto]]

QUICK = {("irn_a", 4), ("dlv_irn_m", 4)}
LITE = [
    pytest.param(m, s, "lite", marks=() if s == 2 or (m, s) in QUICK else pytest.mark.slow)
    for m, s in itertools.product(VARIANTS, SCALES)
]
ALLOWED = {
    *("Add", "Cast", "Clip", "Concat", "Conv", "DepthToSpace", "Div", "Exp", "Gather", "LeakyRelu", "MaxPool", "Mul"),
    *("Relu", "Resize", "Round", "Sigmoid", "Split", "Sub", "Tanh", "Transpose"),
}


def tiny(model: str, scale: int, **switches: object) -> NetConfig:
    dlv = 3 if model.startswith("dlv") else 0
    return NetConfig(model, scale, (2,) * (scale // 2), 4, **{"dlv_channels": dlv, "shared_trunk": True, **switches})


def nodes(model: onnx.ModelProto, prefix: str = "") -> list[str]:
    return [n.name for n in model.graph.node if n.name.startswith(prefix)]


@pytest.mark.parametrize(
    ("model", "scale", "size"), [*LITE, ("irn_a", 2, "full"), pytest.param("dlv_irn_a", 4, "full", marks=pytest.mark.slow)]
)
def test_the_graphs_agree_with_pytorch(net_of: NetOf, models_of: ModelsOf, model: str, scale: int, size: str) -> None:
    net = net_of(net_config(model, scale, size))
    writers, models = split_graphs(net), models_of(net)
    for name, proto in models.items():
        check_contract(proto, tuple(writers[name].inputs), tuple(writers[name].outputs))
    agreement = compare(net, {k: m.SerializeToString() for k, m in models.items()})
    assert set(agreement) == set(models)
    pixels = 2 * 1 + 2 * 11 * 7 + 3 * 96 * 128
    assert agreement["upscale"]["values"] == pixels * 3 * scale**2
    assert agreement["downscale"]["values"] == pixels * net.config.variant.lr_channels


SWITCHES = [
    ("irn", {"shared_trunk": False}),
    ("irn_a", {"alpha_split": "post"}),
    ("irn_a", {"alpha_split": "post", "shared_trunk": False, "alpha_gain": 8.0}),
    ("irn_a", {"alpha_mean": False}),
    ("dlv_irn_a", {"alpha_basis": "orthonormal", "alpha_gain": 8.0}),
    ("dlv_irn_a", {"dlv_channels": 0}),
    ("irn_m", {"ae_layers": 2}),
    ("dlv_irn_m", {"ae_layers": 2, "shared_trunk": False}),
    ("irn_m", {"latent_gain": 128.0}),
    ("dlv_irn_m", {"ae_layers": 2, "latent_gain": 0.5}),
]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("model", "switch"), SWITCHES, ids=[f"{m}-{'-'.join(map(str, s.items()))}" for m, s in SWITCHES])
def test_every_switch_agrees_with_pytorch(
    net_of: NetOf, models_of: ModelsOf, model: str, scale: int, switch: dict[str, object]
) -> None:
    net = net_of(tiny(model, scale, **switch), std=0.05)
    compare(net, {k: m.SerializeToString() for k, m in models_of(net).items()})


@pytest.mark.parametrize("model", VARIANTS)
def test_the_list_of_graphs(net_of: NetOf, models_of: ModelsOf, model: str) -> None:
    wanted = ["downscale", "upscale", "encoder", "decoder"] if model.endswith("_m") else ["downscale", "upscale"]
    models = models_of(net_of(tiny(model, 2)))
    assert list(models) == wanted == list(graph_names(VARIANTS[model]))
    assert [m.graph.name for m in models.values()] == wanted


def interface(values: list[onnx.ValueInfoProto]) -> list[tuple[str, int, tuple[int | str, ...]]]:
    out = []
    for v in values:
        t = v.type.tensor_type
        out.append((v.name, t.elem_type, tuple(d.dim_param or d.dim_value for d in t.shape.dim)))
    return out


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(VARIANTS, SCALES)))
def test_names_types_and_axes(net_of: NetOf, models_of: ModelsOf, model: str, scale: int) -> None:
    net = net_of(tiny(model, scale))
    v, uint8, float32 = VARIANTS[model], onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    hr = ("hr", uint8, ("batch", "height", "width", 3))
    lr = ("lr", uint8, ("batch", "lr_height", "lr_width", v.lr_channels))
    z = ("z", float32, ("batch", net.config.z_channels, "lr_height", "lr_width"))
    code = ("code", uint8, ("batch", 4, "latent_height", "latent_width"))
    wanted = {"downscale": ([hr], [lr]), "upscale": ([lr], [hr])}
    if v.latent:
        wanted = {"downscale": ([hr], [lr, z]), "upscale": ([lr, z], [hr]), "encoder": ([z], [code]), "decoder": ([code], [z])}
    found = {k: (interface(m.graph.input), interface(m.graph.output)) for k, m in models_of(net).items()}
    assert found == wanted


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(VARIANTS, SCALES)))
def test_only_plain_operators_occur(net_of: NetOf, models_of: ModelsOf, model: str, scale: int) -> None:
    for name, proto in models_of(net_of(tiny(model, scale))).items():
        assert {n.op_type for n in proto.graph.node} <= ALLOWED, name
        assert [(o.domain, o.version) for o in proto.opset_import] == [("", 17)]
        for node in proto.graph.node:
            if node.op_type == "Conv":
                assert {a.name: a.i for a in node.attribute}["group"] == 1
        names = nodes(proto)
        assert len(set(names)) == len(names)
        assert all(names)


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(VARIANTS, SCALES)))
def test_uint8_inputs_feed_a_cast_and_nothing_else(net_of: NetOf, models_of: ModelsOf, model: str, scale: int) -> None:
    for proto in models_of(net_of(tiny(model, scale))).values():
        for value in proto.graph.input:
            users = [n.op_type for n in proto.graph.node if value.name in n.input]
            if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
                assert users == ["Cast"]
            else:
                assert users


@pytest.mark.parametrize("switch", [{}, {"alpha_split": "post"}, {"shared_trunk": False}])
@pytest.mark.parametrize(("model", "scale"), list(itertools.product(VARIANTS, SCALES)))
def test_no_node_and_no_constant_is_dead(
    net_of: NetOf, models_of: ModelsOf, model: str, scale: int, switch: dict[str, object]
) -> None:
    for name, proto in models_of(net_of(tiny(model, scale, **switch))).items():
        needed = {v.name for v in proto.graph.output}
        for node in reversed(proto.graph.node):
            assert needed & set(node.output), f"{name}: {node.name} is used by nobody"
            needed |= set(node.input)
        assert {i.name for i in proto.graph.initializer} <= needed


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("model", "scale"), list(itertools.product(VARIANTS, SCALES)))
def test_branches_that_only_make_a_dropped_z_are_absent(
    net_of: NetOf, models_of: ModelsOf, model: str, scale: int, shared: bool
) -> None:
    proto = models_of(net_of(tiny(model, scale, shared_trunk=shared)))["downscale"]
    subnets = ["GH"] if shared else ["G", "H"]
    last = scale // 2 - 1
    for level, block, subnet in itertools.product(range(last + 1), range(2), subnets):
        dropped = (level, block) == (last, 1) and not VARIANTS[model].latent
        assert bool(nodes(proto, f"level{level}.block{block}.{subnet}.")) is not dropped
        assert nodes(proto, f"level{level}.block{block}.F.")


def test_a_post_split_keeps_the_last_block_whole(net_of: NetOf, models_of: ModelsOf) -> None:
    proto = models_of(net_of(tiny("irn_a", 2, alpha_split="post")))["downscale"]
    assert nodes(proto, "level0.block1.GH.")


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(VARIANTS, SCALES)))
def test_upscale_makes_no_zeros(net_of: NetOf, models_of: ModelsOf, model: str, scale: int) -> None:
    proto = models_of(net_of(tiny(model, scale)))["upscale"]
    last = scale // 2 - 1
    latent = VARIANTS[model].latent
    assert bool(nodes(proto, f"level{last}.block1.shift")) is latent, "-G * exp(-s) without z"
    assert nodes(proto, f"level{last}.block0.shift")
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        assert value.any() or value.shape == (), f"{tensor.name} is all zero"


def test_metadata_is_written(net_of: NetOf) -> None:
    proto = split_graphs(net_of(tiny("irn", 2)))["downscale"].model({"model": "irn", "scale": "2"})
    assert {p.key: p.value for p in proto.metadata_props} == {"model": "irn", "scale": "2"}
    assert proto.producer_name == "rescale-toolkit"


def reach(change: torch.Tensor, at: int) -> int:
    """Largest distance from (at, at), along an axis, at which a (C, h, w) change is not zero."""
    places = change.abs().amax(0).nonzero() - at
    return int(places.abs().max())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("model", ["irn", "irn_a", "dlv_irn_m"])
@torch.no_grad()
def test_a_value_depends_on_no_more_than_the_receptive_field(net_of: NetOf, model: str, scale: int) -> None:
    dlv = 3 if model.startswith("dlv") else 0
    net = net_of(NetConfig(model, scale, (1,) * (scale // 2), 2, dlv_channels=dlv), 0.2, True).double()
    field = receptive_field(net)["upscale"]
    assert receptive_field(net)["downscale"] == field
    assert field == {2: 10, 4: 15}[scale]
    side, at = 2 * field + 7, field + 3
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, side * scale, side * scale, generator=g, dtype=torch.float64)
    other, block = x.clone(), slice(at * scale, (at + 1) * scale)
    other[..., block, block] = torch.rand(1, 3, scale, scale, generator=g, dtype=torch.float64)
    (y, z), (y2, z2) = net(x), net(other)
    assert 0 < reach((y2 - y)[0], at) <= field
    assert reach((z2 - z)[0], at) == field, "the bound is tight"

    changed = y.clone()
    changed[..., at, at] += 0.5
    delta = (net.inverse(changed, z) - net.inverse(y, z))[0]
    assert reach(delta.reshape(3, side, scale, side, scale).abs().amax((2, 4)), at) == field


FIELDS = [("irn", 2, "lite", 40), ("irn", 2, "full", 80), ("irn_a", 4, "lite", 60), ("irn", 4, "full", 120)]


@pytest.mark.parametrize(("model", "scale", "size", "field"), FIELDS)
def test_receptive_fields_of_the_named_sizes(net_of: NetOf, model: str, scale: int, size: str, field: int) -> None:
    assert receptive_field(net_of(net_config(model, scale, size))) == {"downscale": field, "upscale": field}


def test_a_manifest_can_hold_the_receptive_field_of_the_deepest_network() -> None:
    config = NetConfig("irn_m", 4, (64, 64), 1, corrections=8)
    net: Any = SimpleNamespace(config=config, corrections=range(config.corrections), stages=lambda: [(None, range(64))] * 2)
    assert receptive_field(net)["downscale"] <= MAX_FIELD
    for more in ({"blocks": (64, 65)}, {"corrections": 9}):
        with pytest.raises(ConfigError):
            dataclasses.replace(config, **more)
