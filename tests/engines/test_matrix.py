"""Every variant, scale, graph and precision becomes a real engine, and its census is that of the ONNX graph."""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest

from rescale.engine_file import read_engine, read_header
from rescale.variants import SCALES, VARIANTS
from rescale_engines.build import Options, ensure
from rescale_engines.profiles import parse_profile

ELEMENTS = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
TYPES = {
    "Conv": "CONVOLUTION",
    "MaxPool": "POOLING",
    "Resize": "RESIZE",
    "Concat": "CONCATENATION",
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), "ELEMENTWISE"),
    **dict.fromkeys(("Exp", "Log", "Round"), "UNARY"),
    **dict.fromkeys(("LeakyRelu", "Relu", "Tanh", "Sigmoid", "Clip"), "ACTIVATION"),
}
"""What TensorRT makes of an operator."""


def dtypes(data: bytes) -> dict[str, Counter[str]]:
    """ONNX's own inference: how many nodes of an operator give which dtype."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True)
    values = (*model.graph.value_info, *model.graph.output)
    element = {v.name: ELEMENTS.get(v.type.tensor_type.elem_type, "other") for v in values}
    found: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        found.setdefault(node.op_type, Counter())[element[node.output[0]]] += 1
    return found


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("model", VARIANTS)
def test_every_graph_and_precision_becomes_an_engine(full_bundle, rtx, tmp_path, model, scale):
    bundle = full_bundle(model, scale)
    profile = parse_profile("hd", scale)

    def make(precision, graph):
        return ensure(bundle, graph, profile, "tensorrt-rtx", precision, Options(folder=tmp_path))

    jobs = [(p, g) for p in ("fp32", "mixed", "fp16") for g in bundle.precisions[p]]
    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(jobs, pool.map(lambda job: make(*job), jobs), strict=True))
    for (precision, graph), built in made.items():
        info, data = read_engine(built.info.path, bundle)
        assert not built.reused
        assert read_header(data).version == rtx.version
        assert info.engine_sha256 == hashlib.sha256(data).hexdigest()
        assert info.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
        operators = dtypes(bundle.read_graph(graph, precision))
        expected: dict[str, Counter[str]] = {}
        for operator, row in operators.items():
            if operator in TYPES:
                expected.setdefault(TYPES[operator], Counter()).update(row)
        # TensorRT adds layers of its own for sizes, which are whole numbers.
        for kind in set(TYPES.values()):
            found = {d: n for d, n in info.census.get(kind, {}).items() if d in ELEMENTS.values()}
            assert found == dict(expected.get(kind, {})), (precision, graph, kind)
        halves = {kind for kind, row in info.census.items() if "HALF" in row}
        convolutions = info.census["CONVOLUTION"]
        if precision == "fp32":
            assert not halves
        else:
            assert convolutions["HALF"] >= 4
        if precision == "mixed":
            assert convolutions.get("FLOAT", 0) == (scale // 2 if graph in ("downscale", "upscale") else 0)
            for operator in ("Exp", "Tanh", "Sigmoid", "Log", "Round", "Mul", "Sub", "Div", "Clip", "DepthToSpace"):
                assert set(operators.get(operator, {})) <= {"FLOAT"}


def test_engines_of_one_size_are_equal_byte_for_byte(full_bundle, rtx, tmp_path):
    bundle = full_bundle("irn", 2)
    fixed = parse_profile("64x64", 2)
    one, two = (ensure(bundle, "upscale", fixed, options=Options(folder=tmp_path / name)).info for name in "ab")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.to_dict() == two.to_dict()
