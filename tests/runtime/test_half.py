"""float16 as a device computes it: every result rounded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rescale.backends import create
from rescale.bundle import Bundle
from rescale.errors import BackendError, ConfigError, MissingExtraError
from rescale.half import HalfRunner, rounded
from rescale.parity import choose_precision, golden_vectors

BundleOf = Callable[[str, int], Path]


def half_graph() -> bytes:
    """y = ((half(x) * 3.1) + 2050) - 2050, all in float16."""
    half = [numpy_helper.from_array(np.float16(v), n) for n, v in (("a", 3.1), ("b", 2050.0))]
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "a"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Sub", ["s", "b"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    graph = helper.make_graph(nodes, "test", [values[0]], [values[1]], half)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def test_every_float16_operator_rounds_as_numpy_does() -> None:
    session = onnxruntime.InferenceSession(rounded(half_graph()), providers=["CPUExecutionProvider"])
    x = np.linspace(-30, 30, 4001, dtype=np.float32)
    h = x.astype(np.float16)
    want = h * np.float16(3.1) + np.float16(2050) - np.float16(2050)
    assert want.dtype == np.float16
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], want.astype(np.float32))
    exact = h.astype(np.float32) * np.float32(np.float16(3.1))
    assert np.abs(exact - want.astype(np.float32)).max() >= 0.9, "the rounding shows"


@pytest.mark.parametrize("graph", ["downscale", "upscale"])
@pytest.mark.parametrize("precision", ["mixed", "fp16"])
def test_onnx_runtime_keeps_every_rounding(full_bundle: BundleOf, tmp_path: Path, graph: str, precision: str) -> None:
    data = Bundle(full_bundle("dlv_irn_a", 2)).read_graph(graph, precision)
    source = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    half = {v.name for v in source.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    moves = ("Concat", "Split", "DepthToSpace", "Cast")
    wanted = sum(1 for n in source.graph.node if n.output[0] in half and n.op_type not in moves)
    assert wanted > 5
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(rounded(data), options, providers=["CPUExecutionProvider"])
    found = [n for n in onnx.load(tmp_path / "optimised.onnx").graph.node if n.op_type == "Cast"]
    assert sum(1 for n in found if n.attribute[0].i == TensorProto.FLOAT16) >= wanted


def test_a_graph_without_float16_is_left_alone(full_bundle: BundleOf) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    data = bundle.read_graph("upscale")
    assert rounded(data) is data
    cases = golden_vectors(bundle)
    a, b = (
        make.run("upscale", {"lr": cases[3]["lr"]})["hr"]
        for make in (HalfRunner(bundle, "fp32", 1), create(bundle, "onnxruntime", 1))
    )
    np.testing.assert_array_equal(a, b)


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(BackendError, match="not a valid ONNX graph"):
        rounded(b"no graph")
    model = onnx.load_model_from_string(half_graph())
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(BackendError, match="test: x is float16; a bundle's graphs take and give uint8 and float32"):
        rounded(model.SerializeToString())


def test_onnx_is_asked_for_by_name(full_bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else find(name, *a))
    with pytest.raises(MissingExtraError, match=r"onnx not installed: pip install 'rescale-toolkit\[export\]'"):
        HalfRunner(bundle, "mixed")
    with pytest.raises(MissingExtraError, match="onnx not installed"):
        choose_precision(bundle, "tensorrt-rtx", "mixed")
    assert choose_precision(bundle, "onnxruntime", "mixed", threads=1)[0] == "mixed"


def test_the_half_runner_is_a_runner(full_bundle: BundleOf) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    runner = create(bundle, "half", 1, "fp16")
    assert runner.name.endswith("CPU, fp16, 1 thread(s), every float16 result rounded")
    runner.close()
    with pytest.raises(BackendError, match="used after close"):
        runner.run("downscale", {"hr": np.zeros((1, 2, 2, 3), np.uint8)})
    with pytest.raises(ConfigError, match="unknown precision 'int8': choose one of fp32, mixed, fp16"):
        create(bundle, "half", 1, "int8")
