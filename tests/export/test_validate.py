from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rescale.contract import Tensor
from rescale.errors import ParityError
from rescale.parity import Comparison
from rescale_export.bundles import write_bundle
from rescale_export.graphs import split_graphs
from rescale_export.probe import probe_picture
from rescale_export.validate import FORBIDDEN, check_contract, compare, probe_sizes, reference
from rescale_train.models import RescalingNet

MakeNet = Callable[..., RescalingNet]
ModelsOf = Callable[[RescalingNet], dict[str, onnx.ModelProto]]

IMAGE = (Tensor("x", "float32", ("batch", 4, "h", "w")),)
SAME = (Tensor("y", "float32", ("batch", 4, "h", "w")),)


def one_node(node: onnx.NodeProto, *constants: onnx.TensorProto) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4, "h", "w"]) for n in "xy"]
    return helper.make_model(helper.make_graph([node], "test", [values[0]], [values[1]], list(constants)))


@pytest.mark.parametrize("kind", sorted(FORBIDDEN))
def test_a_forbidden_operator_is_named(kind: str) -> None:
    model = one_node(helper.make_node(kind, ["x"], ["y"], name="bad.node"))
    with pytest.raises(ParityError, match=f"test: node bad.node is a {kind}, which is not allowed"):
        check_contract(model, IMAGE, SAME)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_grouped_convolution_is_named(kind: str, group: int) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4 // group, 1, 1), np.float32), "w")
    model = one_node(helper.make_node(kind, ["x", "w"], ["y"], name="bad.conv", group=group), weight)
    if group == 1:
        check_contract(model, IMAGE, SAME)
        return
    with pytest.raises(ParityError, match=f"test: node bad.conv is a convolution with {group} groups"):
        check_contract(model, IMAGE, SAME)


@pytest.mark.parametrize(
    "wanted",
    [
        Tensor("other", "float32", ("batch", 4, "h", "w")),
        Tensor("x", "uint8", ("batch", 4, "h", "w")),
        Tensor("x", "float32", ("batch", 4, "height", "w")),
        Tensor("x", "float32", ("batch", 5, "h", "w")),
        Tensor("x", "float32", (1, 4, "h", "w")),
        Tensor("x", "float32", ("batch", 4, "h")),
    ],
    ids=["name", "dtype", "axis name", "channels", "fixed batch", "rank"],
)
def test_another_interface_is_refused(wanted: Tensor) -> None:
    model = one_node(helper.make_node("Relu", ["x"], ["y"], name="relu"))
    check_contract(model, IMAGE, SAME)
    with pytest.raises(ParityError, match=r"test: interface .* wanted"):
        check_contract(model, (wanted,), SAME)
    with pytest.raises(ParityError, match=r"test: interface .* wanted"):
        check_contract(model, IMAGE, (wanted,))
    with pytest.raises(ParityError, match=r"test: interface .* wanted"):
        check_contract(model, (*IMAGE, wanted), SAME)


def bytes_of(models: dict[str, onnx.ModelProto]) -> dict[str, bytes]:
    return {k: m.SerializeToString() for k, m in models.items()}


def scaled(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """The model with one of its constants multiplied."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    tensor = next(t for t in out.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return out


@pytest.mark.parametrize(
    ("graph", "constant"),
    [
        ("downscale", "level0.block0.F.conv1.0.weight"),
        ("downscale", "level0.block0.GH.conv5.0.bias"),
        ("upscale", "level0.block0.GH.conv3.1.weight"),
        ("upscale", "level0.haar.weight"),
        ("encoder", "encoder.0.weight"),
        ("encoder", "encoder.7.bias"),
        ("decoder", "decoder.1.weight"),
        ("decoder", "decoder.8.bias"),
    ],
)
def test_perturbed_weights_are_refused(make_net: MakeNet, models_of: ModelsOf, graph: str, constant: str) -> None:
    net = make_net("irn_m", 2)
    models = models_of(net)
    compare(net, bytes_of(models))
    with pytest.raises(ParityError, match=graph):
        compare(net, bytes_of(models | {graph: scaled(models[graph], constant, 1.5)}))


def test_a_graph_that_gives_no_number_is_refused(make_net: MakeNet, models_of: ModelsOf) -> None:
    net = make_net("irn_m", 2)
    models = models_of(net)
    with pytest.raises(ParityError, match=r"decoder: z differs from PyTorch by nan, allowed is 0\.001"):
        compare(net, bytes_of(models | {"decoder": scaled(models["decoder"], "decoder.8.bias", float("nan"))}))


@pytest.mark.parametrize(
    ("graph", "after", "corrections"),
    [("downscale", "lr.round", 0), ("downscale", "lr.round", 2), ("upscale", "hr.round", 0), ("encoder", "latent.round", 0)],
)
def test_a_graph_off_by_one_level_is_refused(
    make_net: MakeNet, models_of: ModelsOf, graph: str, after: str, corrections: int
) -> None:
    net = make_net("irn_m", 2, corrections=corrections)
    models = models_of(net)
    rounded, off = f"{after}.out", onnx.ModelProto()
    off.CopyFrom(models[graph])
    for node in off.graph.node:
        node.input[:] = ["shifted" if i == rounded else i for i in node.input]
    at = 1 + next(i for i, n in enumerate(off.graph.node) if n.name == after)
    one = numpy_helper.from_array(np.float32(1.0), "one")
    off.graph.initializer.append(one)
    moved = [helper.make_node("Sub", [rounded, "one"], ["moved"]), helper.make_node("Abs", ["moved"], ["shifted"])]
    for node in reversed(moved):
        off.graph.node.insert(at, node)
    onnx.checker.check_model(off)
    with pytest.raises(ParityError, match=rf"{graph}: \d+ of \d+ values differ from PyTorch, by up to [12]"):
        compare(net, bytes_of(models | {graph: off}))


def test_a_graph_of_another_shape_is_refused(make_net: MakeNet, models_of: ModelsOf) -> None:
    net, other = make_net("irn", 2), make_net("irn", 4)
    models = bytes_of(models_of(net)) | {"upscale": bytes_of(models_of(other))["upscale"]}
    with pytest.raises(ParityError, match=r"upscale at 2x2: uint8 \(2, 4, 4, 3\), PyTorch gives uint8 \(2, 2, 2, 3\)"):
        compare(net, models)


def test_the_weights_of_another_net_are_refused(make_net: MakeNet, models_of: ModelsOf) -> None:
    with pytest.raises(ParityError):
        compare(make_net("irn_a", 2, seed=1), bytes_of(models_of(make_net("irn_a", 2, seed=2))))


def counted(values: int, different: int, by: int) -> Comparison:
    want = np.full(values, 100, np.uint8)
    got = want.copy()
    got[:different] += by
    c = Comparison()
    c.add(got[: values // 2], want[: values // 2], "part")
    c.add(got[values // 2 :], want[values // 2 :], "part")
    return c


@pytest.mark.parametrize(
    ("different", "by", "ok"), [(0, 0, True), (10, 1, True), (11, 1, False), (1, 2, False), (100_000, 1, False)]
)
def test_few_values_may_differ_by_one_level(different: int, by: int, ok: bool) -> None:
    c = counted(100_000, different, by)
    assert {k: v for k, v in c.to_dict().items() if k != "psnr"} == {"values": 100_000, "different": different, "largest": by}
    if ok:
        c.require("graph", 1e-4)
        return
    with pytest.raises(ParityError, match=f"graph: {different} of 100000 values differ from PyTorch, by up to {by}"):
        c.require("graph", 1e-4)


def test_differences_do_not_wrap_around() -> None:
    c = Comparison()
    c.add(np.array([0, 255], np.uint8), np.array([255, 0], np.uint8), "x")
    assert c.largest == 255


def test_the_reference_takes_one_picture_at_a_time(make_net: MakeNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With corrections three at a time took 9 GB for the full-size network at x4."""
    net = make_net("irn_m", 2)
    taken: list[int] = []
    downscale = net.downscale

    def watched(x: torch.Tensor) -> object:
        taken.append(len(x))
        return downscale(x)

    monkeypatch.setattr(net, "downscale", watched)
    hr = np.stack([probe_picture(8, 12, seed) for seed in range(3)])
    found = reference(net, hr)
    assert taken == [1, 1, 1]
    for i in range(3):
        alone = reference(net, hr[i : i + 1])
        assert all(np.array_equal(found[name][i], alone[name][0]) for name in alone)
    assert np.array_equal(found["hr"], hr)


def test_the_reference_is_in_the_graphs_terms(make_net: MakeNet) -> None:
    hr = np.stack([probe_picture(20, 28, s) for s in range(2)])
    for model in ("irn", "irn_a", "irn_m"):
        net = make_net(model, 2)
        out = reference(net, hr)
        assert out["hr"] is hr
        assert (out["lr"].dtype, out["lr"].shape) == (np.uint8, (2, 10, 14, net.config.variant.lr_channels))
        assert (out["restored"].dtype, out["restored"].shape) == (np.uint8, hr.shape)
        assert set(out) == {"hr", "lr", "restored"} | ({"z", "code", "z_hat"} if net.config.variant.latent else set())
        if net.config.variant.alpha:
            assert out["lr"][..., 3].min() >= 1
        if net.config.variant.latent:
            assert (out["code"].dtype, out["code"].shape) == (np.uint8, (2, 4, 3, 4))
            assert out["code"].min() >= 1
            assert out["z"].shape == out["z_hat"].shape == (2, 9, 10, 14)


def test_a_network_that_gives_no_number_is_refused_and_not_written(make_net: MakeNet, tmp_path: Path) -> None:
    """As bytes its NaN would agree with the graphs' NaN."""
    net = make_net("irn", 2)
    for p in net.parameters():
        p.data *= 1e30
    with pytest.raises(ParityError, match="LR of a picture of 2x2 is not finite: the weights are broken; train or import again"):
        write_bundle(net, tmp_path / "b", precisions=())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("part", "named"), [("decode_z", "decoded z"), ("upscale", "restored HR")])
def test_a_value_that_is_no_number_is_named(make_net: MakeNet, monkeypatch: pytest.MonkeyPatch, part: str, named: str) -> None:
    net = make_net("irn_m", 2)
    whole = getattr(net, part)

    def broken(*args: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = whole(*args)
        values[0, 0, 0, 0] = torch.inf
        return values

    monkeypatch.setattr(net, part, broken)
    with pytest.raises(ParityError, match=f"PyTorch's {named} of a picture of 8x4 is not finite"):
        reference(net, probe_picture(4, 8)[None])


@pytest.mark.parametrize("scale", [2, 4])
def test_sizes_hold_the_smallest_and_an_uneven_one(scale: int) -> None:
    sizes = probe_sizes(scale)
    assert sizes[0] == (scale, scale)
    assert all(h % scale == 0 and w % scale == 0 for h, w in sizes)
    assert any((h // scale) % 4 and (w // scale) % 4 and h != w for h, w in sizes)


def test_graphs_of_a_writer_pass_their_own_contract(make_net: MakeNet) -> None:
    writer = split_graphs(make_net("irn_m", 4))["upscale"]
    check_contract(writer.model({}), tuple(writer.inputs), tuple(writer.outputs))
    with pytest.raises(ParityError, match="upscale: interface"):
        check_contract(writer.model({}), tuple(reversed(writer.inputs)), tuple(writer.outputs))
