"""What a float16 graph gives where float16 exists: ONNX Runtime on the CPU, with every float16 result rounded.

ONNX Runtime has no float16 arithmetic on x86: it computes such operators in float32 and drops the conversions that it put between
them itself, so whole stretches of a float16 graph run in float32, and a comparison on it proves nothing about a GPU. Here every
float16 operator becomes a float32 one followed by a conversion to float16 and back that is part of the graph, which it keeps.
Sums inside a convolution are float32, as on tensor cores; a kernel that adds up in float16 must be measured itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.backends.onnxruntime import OnnxRuntimeRunner
from rescale.bundle import Bundle
from rescale.console import require
from rescale.errors import BackendError

_MOVES = ("Concat", "Split", "Transpose", "DepthToSpace", "Identity")
"""Operators that give values they took."""


def rounded(data: bytes) -> bytes:
    """An ONNX graph whose float16 operators are float32 ones with rounded results; one without float16 comes back unchanged.

    Raises:
        MissingExtraError: the onnx package is not installed.
        BackendError: not a valid graph, or float16 at its edge.
    """
    require(("onnx",), "export")
    onnx = importlib.import_module("onnx")
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), strict_mode=True)
    except Exception as e:  # protobuf's and ONNX's errors share no public base
        raise BackendError(f"not a valid ONNX graph: {e}") from None
    graph = model.graph
    edge = [v.name for v in (*graph.input, *graph.output) if v.type.tensor_type.elem_type == half]
    if edge:
        raise BackendError(f"{graph.name}: {edge[0]} is float16; a bundle's graphs take and give uint8 and float32")
    values = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == half}
    weights = [t for t in graph.initializer if t.data_type == half]
    if not values and not weights:
        return data
    for tensor in weights:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type in _MOVES:
            continue
        for i, value in enumerate(node.output):
            if value not in values:
                continue
            node.output[i] = f"{value}.exact"
            narrow = onnx.helper.make_node("Cast", [f"{value}.exact"], [f"{value}.half"], name=f"{value}.half", to=half)
            nodes += [narrow, onnx.helper.make_node("Cast", [f"{value}.half"], [value], name=f"{value}.single", to=single)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as e:  # as above
        raise BackendError(f"{graph.name}: cannot be written with rounded results: {e}") from None
    written: bytes = model.SerializeToString()
    return written


class _RoundedBundle(Bundle):
    """A bundle whose graphs are read as `rounded`."""

    def read_graph(self, name: str, precision: str = "fp32") -> bytes:
        return rounded(super().read_graph(name, precision))


class HalfRunner:
    """Runs a bundle's graphs of one precision as a device with float16 would. Thread-safe."""

    def __init__(self, bundle: Bundle, precision: str, threads: int | None = None) -> None:
        """As `rescale.backends.create`.

        Raises:
            MissingExtraError: the onnx package is not installed.
            BundleError: the bundle does not hold that precision.
        """
        require(("onnx",), "export")
        self._inner = OnnxRuntimeRunner(_RoundedBundle(bundle.path), threads, precision)

    @property
    def name(self) -> str:
        """What runs, for reports."""
        return f"{self._inner.name}, every float16 result rounded"

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Run a graph by name on named arrays; returns all outputs by name."""
        return self._inner.run(graph, inputs)

    def close(self) -> None:
        """Free sessions and memory."""
        self._inner.close()
