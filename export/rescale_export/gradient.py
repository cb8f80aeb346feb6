"""The gradient of a restored picture's error by the LR codes, as a graph: what `rescale.refine` descends.

    gradient    lr [, z], target uint8 (batch, height, width, 3)  ->  hr, gradient float32 (batch, lr_height, lr_width, 3 or 4)

`hr` is what the upscale graph makes of the same input. With e its difference to the target in levels, before rounding, and n the
direction of luma, the error is E = sum(|e|^2 + 3 (n.e)^2), which the last run of the shipped weights minimised too; `gradient` is
dE by one level of a code. It passes straight through rounding and clamping, as in training.

The graph is the upscale graph and, behind it, the adjoints of its operators from the error back to `lr`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper, shape_inference
from torch import Tensor

from rescale import contract
from rescale.codes import ALPHA_MAX, ALPHA_MIN, LOGIT_MARGIN
from rescale.errors import ParityError
from rescale.quality import LUMA_DIRECTION
from rescale.refine import LUMA_WEIGHT
from rescale_export import graphs
from rescale_export.probe import probe_picture
from rescale_export.session import session_of
from rescale_export.validate import probe_sizes, reference
from rescale_export.writer import GraphWriter
from rescale_train.models import RescalingNet
from rescale_train.models.quantise import straight_through

MAX_RELATIVE_ERROR = 1e-2
"""Largest difference to PyTorch's gradient, both as root mean squares. A leaky ReLU whose input rounds to the other side of zero
changes its slope by four fifths, so that single values may be some levels apart.
"""


def gradient(net: RescalingNet) -> GraphWriter:
    """The gradient graph, in float32."""
    v = net.config.variant
    g = graphs.upscale(net)
    channels = _channels(g.model({}))
    g.name = "gradient"
    forward = list(g.nodes)
    clip = next(node for node in forward if node.name == "hr.clip")
    target = g.op("Div", [graphs.to_planes(g, g.input(contract.target()), "target"), g.scalar(255.0)], "target.unit")
    error = g.op("Sub", [clip.output[0], target], "error")
    seed = g.conv(error, _metric()[:, :, None, None], None, "error.metric")
    adjoint = _Adjoint(g, forward, channels, net.config.alpha_gain)
    g.output(adjoint.of("lr", {clip.input[0]: seed}), contract.gradient(v))
    return g


def _metric() -> npt.NDArray[np.float32]:
    """dE/dx = 2 * 255^2 * (1 + 3 n n^T) e, with x and e in [0, 1]."""
    luma = np.outer(LUMA_DIRECTION, LUMA_DIRECTION)
    return np.asarray(2.0 * 255.0**2 * (np.eye(3) + LUMA_WEIGHT * luma), np.float32)


def compare_gradient(net: RescalingNet, model: bytes) -> dict[str, float]:
    """Run the graph on ONNX Runtime and compare with PyTorch's gradient.

    Args:
        net: float32 network on the CPU, whose parameters' gradients are left alone.
        model: the graph's bytes.

    Returns:
        The difference's root mean square in that of PyTorch's gradient, for the manifest.

    Raises:
        ParityError: they do not agree.
    """
    session = session_of(model)
    worst = 0.0
    for size in probe_sizes(net.config.scale)[:2]:
        hr = np.stack([probe_picture(*size, seed) for seed in range(2)])
        made = reference(net, hr)
        feed = {"lr": made["lr"], "target": hr} | ({"z": made["z_hat"]} if "z_hat" in made else {})
        found = session.run(["gradient"], feed)[0]
        wanted = torch_gradient(net, **{k: torch.from_numpy(v) for k, v in feed.items()}).numpy()
        worst = float(np.maximum(worst, np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1.0)))
    if not worst <= MAX_RELATIVE_ERROR:
        raise ParityError(f"gradient: differs from PyTorch's by {worst:.3g} of its size, allowed is {MAX_RELATIVE_ERROR}")
    return {"relative_error": worst}


def torch_gradient(net: RescalingNet, lr: Tensor, target: Tensor, z: Tensor | None = None) -> Tensor:
    """What the graph has to give, by PyTorch: arguments as the graph's inputs."""
    codes = lr.float().requires_grad_()
    rgb, alpha = codes[..., :3] / 255.0, (codes[..., 3:] - ALPHA_MIN) / (ALPHA_MAX - ALPHA_MIN)
    if net.config.variant.alpha:
        # The slope at the clamp, beyond it too.
        alpha = straight_through(alpha, alpha.clamp(LOGIT_MARGIN, 1.0 - LOGIT_MARGIN))
    restored = net.upscale(torch.cat([rgb, alpha], 3).permute(0, 3, 1, 2), z).permute(0, 2, 3, 1)
    error = 255.0 * straight_through(restored, restored.clamp(0.0, 1.0)) - target
    along = error @ torch.tensor(LUMA_DIRECTION)
    total = error.square().sum() + LUMA_WEIGHT * along.square().sum()
    return torch.autograd.grad(total, codes)[0]


def _alpha_slopes(gain: float) -> npt.NDArray[np.float32]:
    """d alpha / d code for each of 256 codes. Where the logit is clamped, it is that at the clamp: no code is stuck there."""
    steps = float(ALPHA_MAX - ALPHA_MIN)
    u = np.clip((np.arange(256) - ALPHA_MIN) / steps, LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
    return np.asarray(1.0 / (u * (1.0 - u) * gain * steps), np.float32)


def _channels(model: onnx.ModelProto) -> dict[str, int]:
    """Channels of every NCHW value of a graph."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info)
    return {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in values if len(v.type.tensor_type.shape.dim) == 4}


class _Adjoint:
    """Reverse accumulation over a graph's nodes, written into the same graph.

    Args:
        g: holds the nodes.
        nodes: in order.
        channels: of their values.
        alpha_gain: of the table that alpha is looked up in.
    """

    def __init__(self, g: GraphWriter, nodes: list[onnx.NodeProto], channels: dict[str, int], alpha_gain: float) -> None:
        self._g, self._nodes, self._channels, self._alpha_gain = g, nodes, channels, alpha_gain
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
                for value, part in self._node(node, depends):
                    self._add(value, part)
        return self._found[source]

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
                parts = g.split(by_out, [self._channels[i] for i in node.input], name)
                return [(i, part) for i, part in zip(node.input, parts, strict=True) if i in depends]
            case "DepthToSpace":
                return [(inputs[0], self._to_depth(by_out, self._channels[node.output[0]], name))]
            case "Transpose":
                order = [int(k) for k in np.argsort(attributes["perm"])]
                return [(inputs[0], g.op("Transpose", [by_out], name, perm=order))]
            case "Gather":
                slopes = g.constant("alpha.slopes", _alpha_slopes(self._alpha_gain))
                slope = g.op("Gather", [slopes, node.input[1]], f"{name}.slope", axis=0)
                return [(node.input[1], g.op("Mul", [by_out, slope], name))]
            case "Cast":
                return [(inputs[0], by_out)]
        raise TypeError(f"no adjoint for {node.op_type}")

    def _conv(self, node: onnx.NodeProto, by_out: str, name: str) -> str:
        """Adjoint of a convolution that keeps the size: one with the filters turned around and their channels exchanged."""
        weight = numpy_helper.to_array(self._g.constants[node.input[1]])
        return self._g.conv(by_out, np.ascontiguousarray(weight[:, :, ::-1, ::-1].swapaxes(0, 1)), None, name)

    def _to_depth(self, by_out: str, channels: int, name: str) -> str:
        """Adjoint of DepthToSpace of 2x2 blocks in mode CRD; ONNX's SpaceToDepth has the other order of channels only."""
        pick = np.eye(4 * channels, dtype=np.float32).reshape(4 * channels, channels, 2, 2)
        return self._g.conv(by_out, pick, None, name, stride=2)
