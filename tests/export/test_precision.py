"""Precision is in the graph: what is float16, that it runs, and that the gate sees what it costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from rescale.backends import create
from rescale.bundle import PRECISIONS, Bundle
from rescale.errors import ParityError
from rescale.half import HalfRunner
from rescale.parity import MAX_LOSS_DB, MIN_PSNR_DB, golden_vectors, measure
from rescale.variants import SCALES, VARIANTS
from rescale_export import validate
from rescale_export.bundles import write_bundle
from rescale_export.graphs import split_graphs
from rescale_train import checkpoint
from rescale_train.models import RescalingNet
from rescale_train.shipped import Shipped, list_shipped

MakeNet = Callable[..., RescalingNet]
BundleOf = Callable[[str, int], Path]
Alter = Callable[..., Path]

ALL = [(m, s) for m in VARIANTS for s in SCALES]
SUBNET = re.compile(r"level\d+\.block\d+\.(F|G|H|GH)\.(conv|act|cat)\d|(encoder|decoder)\.\d+")
STREAM = re.compile(
    r"level\d+\.(block\d+\.(low|high|shift|scale|split|tanh|clamp|exp|\w+\.split)|haar|split|cat|space)$|input\.high$"
)
EDGE = re.compile(r"(input|alpha|lr|hr|latent)\b")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
EXACT_STREAM = {"Add", "Sub", "Mul", "Exp", "Tanh", "Conv", "Concat", "Split", "DepthToSpace"}


def dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of a graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


def role(node: onnx.NodeProto) -> str:
    for name, pattern in (("subnet", SUBNET), ("stream", STREAM), ("edge", EDGE)):
        if pattern.match(node.name):
            return name
    raise AssertionError(f"{node.name}: neither subnet nor stream nor edge")


def census(model: onnx.ModelProto) -> dict[str, Counter[tuple[str, str]]]:
    """How many nodes of a kind give values of a dtype, by role; casts apart."""
    types = dtypes(model)
    found: dict[str, Counter[tuple[str, str]]] = {"subnet": Counter(), "stream": Counter(), "edge": Counter()}
    for node in model.graph.node:
        given = {types[i] for i in node.input if types.get(i) in FLOATS}
        if node.op_type == "Cast":
            continue
        if node.op_type != "Resize":
            assert len(given) <= 1, f"{node.name} takes both: a strongly typed parser refuses it"
        kind = {types[o] for o in node.output}
        assert len(kind) == 1
        found[role(node)][node.op_type, TensorProto.DataType.Name(kind.pop())] += 1
    return found


@pytest.mark.parametrize(("model", "scale"), ALL)
def test_the_census_is_what_the_document_says(make_net: MakeNet, model: str, scale: int) -> None:
    net = make_net(model, scale)
    convolutions = {}
    for precision in PRECISIONS:
        subnets = "FLOAT" if precision == "fp32" else "FLOAT16"
        stream = "FLOAT16" if precision == "fp16" else "FLOAT"
        seen = Counter[str]()
        for name, writer in split_graphs(net, precision).items():
            graph = writer.model({})
            onnx.checker.check_model(graph, full_check=True)
            found = census(graph)
            assert {dtype for _, dtype in found["subnet"]} == {subnets}, (precision, name)
            assert {dtype for _, dtype in found["edge"]} <= {"FLOAT", "UINT8"}, (precision, name)
            if name in ("downscale", "upscale"):
                assert {dtype for _, dtype in found["stream"]} == {stream}, (precision, name)
                assert {op for op, _ in found["stream"]} <= EXACT_STREAM
                assert found["stream"]["Exp", stream] == found["stream"]["Tanh", stream]
                assert found["stream"]["Exp", stream] > 0 or name == "downscale", "a single block that drops z has no exp"
                assert {op for op, _ in found["edge"]} >= {"Round", "Clip", "Transpose"}
            else:
                assert not found["stream"]
            if VARIANTS[model].alpha:
                types = dtypes(graph)
                last = {"downscale": "alpha.code.out", "upscale": "alpha.logit.out"}[name]
                assert types[last] == TensorProto.FLOAT
            weights = {t.name: t.data_type for t in graph.graph.initializer}
            for node in graph.graph.node:
                if node.op_type == "Conv":
                    wanted = {"subnet": subnets, "stream": stream, "edge": "FLOAT"}[role(node)]
                    assert {TensorProto.DataType.Name(weights[w]) for w in node.input[1:]} == {wanted}, node.name
                    seen[role(node)] += 1
        convolutions[precision] = seen
    assert convolutions["mixed"] == convolutions["fp16"]
    assert convolutions["fp32"].keys() == convolutions["mixed"].keys()


@pytest.mark.parametrize(("model", "scale"), [pytest.param(m, s, marks=[pytest.mark.slow] * (s == 4)) for m, s in ALL])
def test_every_precision_runs_and_passes_the_gate(full_bundle: BundleOf, altered: Alter, model: str, scale: int) -> None:
    bundle = Bundle(full_bundle(model, scale))
    cases = golden_vectors(bundle)
    recorded = bundle.manifest["precision_parity"]
    for precision in ("mixed", "fp16"):
        plain = measure(bundle, create(bundle, "onnxruntime", 1, precision).run, cases)
        half = measure(bundle, HalfRunner(bundle, precision, 1).run, cases)
        assert plain.failure() is None
        assert half.failure() is None
        assert recorded[precision]["psnr_lost"] == pytest.approx(half.lost, abs=1e-3)
        assert all(c.psnr >= MIN_PSNR_DB + 8 for c in half.total().values()), "the floor is far below what float16 gives"
        assert half.total()["hr"].different > 0
    tampered = Bundle(altered(bundle.path, scaled(1.01), "downscale.mixed.onnx", "upscale.mixed.onnx"))
    assert measure(tampered, HalfRunner(tampered, "mixed", 1).run, cases).failure() is not None


@pytest.mark.parametrize(
    ("judged", "named"), [("create", r"thread\(s\)"), ("HalfRunner", "every float16 result rounded")], ids=["as it is", "rounded"]
)
def test_an_export_is_judged_as_a_cpu_computes_it_and_with_float16_rounded(
    full_bundle: BundleOf, altered: Alter, monkeypatch: pytest.MonkeyPatch, judged: str, named: str
) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    tampered = Bundle(altered(bundle.path, scaled(1.02), "downscale.mixed.onnx", "upscale.mixed.onnx"))
    make = getattr(validate, judged)
    cases = golden_vectors(bundle)
    validate.compare_precision(bundle, "mixed", cases)
    monkeypatch.setattr(validate, judged, lambda _, *arguments, **options: make(tampered, *arguments, **options))
    with pytest.raises(ParityError, match=f"irn x2 custom in mixed on onnxruntime .*{named}: refused at"):
        validate.compare_precision(bundle, "mixed", cases)


def scaled(factor: float) -> Callable[[str, bytes], bytes]:
    def apply(_: str, data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        for t in model.graph.initializer:
            if t.data_type == TensorProto.FLOAT16 and t.name.endswith(".weight"):
                array = numpy_helper.to_array(t).astype(np.float32) * factor
                t.CopyFrom(numpy_helper.from_array(array.astype(np.float16), t.name))
        out: bytes = model.SerializeToString()
        return out

    return apply


@pytest.mark.parametrize("graph", ["downscale", "upscale"])
@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_one_tampered_graph_of_trained_weights_is_refused(
    shipped_bundle: Callable[[str], Path], altered: Alter, graph: str, factor: float
) -> None:
    bundle = Bundle(altered(shipped_bundle("dlv_irn_a"), scaled(factor), f"{graph}.mixed.onnx"))
    bundle.verify()
    with pytest.raises(ParityError, match="mixed: refused at"):
        measure(bundle, HalfRunner(bundle, "mixed", 1).run).require("mixed")


@pytest.mark.parametrize("model", VARIANTS)
def test_trained_weights_keep_their_quality(
    shipped_bundle: Callable[[str], Path], model: str, record_property: Callable[[str, object], None]
) -> None:
    bundle = Bundle(shipped_bundle(model))
    lost = {}
    for precision in ("mixed", "fp16"):
        parity = measure(bundle, HalfRunner(bundle, precision, 1).run)
        assert parity.failure(MAX_LOSS_DB) is None
        photograph = parity.cases[3]
        assert (photograph.width, photograph.height) == (288, 192)
        assert photograph.psnr_reference > 38.0
        assert max(c.largest for c in photograph.graphs.values()) == 1
        lost[precision] = photograph.lost
        record_property(f"{precision}_lost_db", photograph.lost)
    assert lost["mixed"] <= 0.005, lost
    assert lost["fp16"] <= 0.02, lost


@pytest.mark.slow
@pytest.mark.parametrize("shipped", list_shipped(), ids=lambda s: s.title.replace(" ", "_"))
def test_all_weights_that_ship_pass_the_gate_in_mixed(shipped: Shipped, tmp_path: Path) -> None:
    made = write_bundle(checkpoint.read_net(shipped.path), tmp_path / "b")
    assert made.title == shipped.title
    assert made.manifest["precision_parity"]["mixed"]["psnr_lost"] <= 0.01


@pytest.mark.parametrize("value", ["weight", "bias"])
@pytest.mark.parametrize("precision", ["mixed", "fp16"])
def test_a_weight_that_float16_cannot_hold_is_named(tmp_path: Path, make_net: MakeNet, precision: str, value: str) -> None:
    net = make_net("irn_a", 2)
    with torch.no_grad():
        getattr(net.stages()[0][1][0].F.convs[1], value).view(-1)[0] = -70000.0
    message = rf"downscale: level0.block0.F.conv2(\.0)?.{value} holds values that float16 cannot; export it as fp32"
    with pytest.raises(ParityError, match=message):
        write_bundle(net, tmp_path / "b", None, (precision,))
    assert not list(tmp_path.iterdir())
    split_graphs(net, "fp32")


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, make_net: MakeNet, broken: float) -> None:
    net = make_net("irn_a", 2)
    with torch.no_grad():
        net.stages()[0][1][0].F.convs[4].weight.view(-1)[5] = broken
    for precisions in ((), ("mixed",)):
        with pytest.raises(ParityError, match=r"downscale: level0.block0.F.conv5(\.\d)?.weight holds values that are not finite"):
            write_bundle(net, tmp_path / "b", None, precisions)
    assert not list(tmp_path.iterdir())


def test_features_that_overflow_float16_are_refused(tmp_path: Path, make_net: MakeNet) -> None:
    """All weights fit; a feature does not, and the next layer multiplies it by zero: right in float32, NaN in float16."""
    net = make_net("irn", 2)
    block = net.stages()[0][1][0].F
    with torch.no_grad():
        block.convs[0].bias[0] = 60000.0
        block.convs[1].weight.zero_()
        block.convs[1].weight[0, block.convs[1].weight.shape[1] - block.convs[0].weight.shape[0], 1, 1] = 2.0
        for conv in (*block.convs[2:],):
            conv.weight[:, block.convs[0].weight.shape[1] :].zero_()
    write_bundle(net, tmp_path / "single", None, ())
    with pytest.raises(ParityError, match=r"irn x2 custom in mixed on onnxruntime .*: refused at"):
        write_bundle(net, tmp_path / "half", None, ("mixed",))
    assert [p.name for p in tmp_path.iterdir()] == ["single"]
