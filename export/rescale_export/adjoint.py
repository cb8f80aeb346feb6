"""The adjoint of a graph's operators, written into the same graph: gradients without a framework that differentiates.

Used twice: for the graph that `rescale.refine` descends, and inside a downscale graph with corrections. The adjoint of an operator
computes in that operator's dtype.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from rescale.codes import ALPHA_MAX, ALPHA_MIN, LOGIT_MARGIN
from rescale_export.writer import GraphWriter


def _alpha_slopes(gain: float) -> npt.NDArray[np.float32]:
    """d alpha / d code for each of 256 codes. Where the logit is clamped, it is that at the clamp: no code is stuck there."""
    steps = float(ALPHA_MAX - ALPHA_MIN)
    u = np.clip((np.arange(256) - ALPHA_MIN) / steps, LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
    return np.asarray(1.0 / (u * (1.0 - u) * gain * steps), np.float32)


class Adjoint:
    """Reverse accumulation over a graph's nodes, written into the same graph.

    Args:
        g: holds the nodes.
        nodes: in order.
        alpha_gain: of the table that alpha is looked up in.
    """

    def __init__(self, g: GraphWriter, nodes: list[onnx.NodeProto], alpha_gain: float) -> None:
        self._g, self._nodes, self._values, self._alpha_gain = g, nodes, g.values(), alpha_gain
        self._found: dict[str, str] = {}

    def of(self, source: str, seeds: dict[str, str]) -> str:
        """The gradient by `source`, given those by some values, which depend on it and on which no other of them depends."""
        self._found = dict(seeds)
        depends = {source}
        for node in self._nodes:
            if depends.intersection(node.input):
                depends.update(node.output)
        for node in reversed(self._nodes):
            if any(name in self._found for name in node.output):
                with self._g.using(self._element(node.output[0])):
                    parts = self._node(node, depends)
                for value, part in parts:
                    self._add(value, part)
        return self._found[source]

    def _element(self, value: str) -> str:
        """Dtype of a value's gradient: its own, or of a code float32."""
        return self._values[value][0] if value in self._values else "float32"

    def _add(self, value: str, part: str) -> None:
        before = self._found.get(value)
        self._found[value] = part if before is None else self._g.op("Add", [before, part], f"{part}.more")

    def _node(self, node: onnx.NodeProto, depends: set[str]) -> list[tuple[str, str]]:
        """Contributions of a node: inputs that depend on the source, each with its part of the gradient."""
        g, name = self._g, f"{node.name}.back"
        inputs = [i for i in node.input if i in depends]
        if node.op_type == "Split":
            return [(node.input[0], g.concat([self._found[o] for o in node.output], name))]
        by_out = self._found[node.output[0]]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        match node.op_type:
            case "Add":
                return [(i, by_out) for i in inputs]
            case "Mul":
                a, b = node.input
                return [(i, g.op("Mul", [by_out, b if i == a else a], f"{name}.{i}")) for i in inputs]
            case "Conv":
                return [(inputs[0], self._conv(node, by_out, name))]
            case "LeakyRelu":
                positive = g.op("Greater", [node.output[0], g.scalar(0.0)], f"{name}.positive")
                damped = g.op("Mul", [by_out, g.scalar(attributes["alpha"])], f"{name}.damped")
                return [(inputs[0], g.op("Where", [positive, by_out, damped], name))]
            case "Tanh":
                square = g.op("Mul", [node.output[0], node.output[0]], f"{name}.square")
                slope = g.op("Sub", [g.scalar(1.0), square], f"{name}.slope")
                return [(inputs[0], g.op("Mul", [by_out, slope], name))]
            case "Exp":
                return [(inputs[0], g.op("Mul", [by_out, node.output[0]], name))]
            case "Concat":
                parts = g.split(by_out, [self._values[i][1] for i in node.input], name)
                return [(i, part) for i, part in zip(node.input, parts, strict=True) if i in depends]
            case "DepthToSpace":
                return [(inputs[0], self._to_depth(by_out, self._values[node.output[0]][1], name))]
            case "Transpose":
                order = [int(k) for k in np.argsort(attributes["perm"])]
                return [(inputs[0], g.op("Transpose", [by_out], name, perm=order))]
            case "Gather":
                slopes = g.constant("alpha.slopes", _alpha_slopes(self._alpha_gain))
                slope = g.op("Gather", [slopes, node.input[1]], f"{name}.slope", axis=0)
                return [(node.input[1], g.op("Mul", [by_out, slope], name))]
            case "Cast":
                return [(inputs[0], g.cast(by_out, self._element(node.output[0]), self._element(inputs[0])))]
        raise TypeError(f"no adjoint for {node.op_type}")

    def _conv(self, node: onnx.NodeProto, by_out: str, name: str) -> str:
        """Adjoint of a convolution that keeps the size: one with the filters turned around and their channels exchanged."""
        weight = numpy_helper.to_array(self._g.constants[node.input[1]])
        return self._g.conv(by_out, np.ascontiguousarray(weight[:, :, ::-1, ::-1].swapaxes(0, 1)), None, name)

    def _to_depth(self, by_out: str, channels: int, name: str) -> str:
        """Adjoint of DepthToSpace of 2x2 blocks in mode CRD; ONNX's SpaceToDepth has the other order of channels only."""
        pick = np.eye(4 * channels, dtype=np.float32).reshape(4 * channels, channels, 2, 2)
        return self._g.conv(by_out, pick, None, name, stride=2)
