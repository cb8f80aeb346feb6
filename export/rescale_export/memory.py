"""How much memory a graph needs, from its tensors' lifetimes: bytes per LR pixel at the widest point.

ONNX Runtime frees a tensor after its last reader. Walking the nodes in order with shapes at one concrete size gives the peak
of what is alive; docs/measurements.md compares it with the resident memory of real runs.
"""

from __future__ import annotations

import math

import onnx
from onnx import ModelProto, TensorProto, shape_inference

from rescale.variants import LATENT_STRIDE

SIDE = 64
"""LR pixels a side of the size at which lifetimes are walked: a multiple of the latent stride, large enough that constants do not
matter."""

_BYTES = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT64: 8, TensorProto.INT32: 4}
_BYTES |= {TensorProto.UINT8: 1, TensorProto.BOOL: 1}


def bytes_per_lr_pixel(model: ModelProto, scale: int) -> int:
    """Peak bytes of live tensors per LR pixel, inputs and outputs included, weights not."""
    concrete = onnx.ModelProto()
    concrete.CopyFrom(model)
    known = {"batch": 1, "height": SIDE * scale, "width": SIDE * scale, "lr_height": SIDE, "lr_width": SIDE}
    known |= {"latent_height": SIDE // LATENT_STRIDE, "latent_width": SIDE // LATENT_STRIDE}
    known |= {"padded_height": SIDE, "padded_width": SIDE}
    for value in (*concrete.graph.input, *concrete.graph.output, *concrete.graph.value_info):
        for d in value.type.tensor_type.shape.dim:
            if d.HasField("dim_param"):
                d.dim_value = known[d.dim_param]
    graph = shape_inference.infer_shapes(concrete, strict_mode=True, data_prop=True).graph
    size: dict[str, int] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        size[value.name] = math.prod(d.dim_value for d in kind.shape.dim) * _BYTES[kind.elem_type]
    last_reader = {name: i for i, node in enumerate(graph.node) for name in node.input}
    kept = {v.name for v in (*graph.input, *graph.output)}
    live = sum(size[v.name] for v in graph.input)
    peak = live
    for i, node in enumerate(graph.node):
        live += sum(size[name] for name in node.output)
        peak = max(peak, live)
        gone = {name for name in node.input if name in size and last_reader[name] == i and name not in kept}
        live -= sum(size[name] for name in gone)
    return -(-peak // SIDE**2)
