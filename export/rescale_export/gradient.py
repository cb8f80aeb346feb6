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
import torch
from torch import Tensor

from rescale import contract
from rescale.codes import ALPHA_MAX, ALPHA_MIN, LOGIT_MARGIN
from rescale.errors import ParityError
from rescale.quality import LUMA_DIRECTION, LUMA_WEIGHT, error_metric
from rescale_export import graphs
from rescale_export.adjoint import Adjoint
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
    g.name = "gradient"
    forward = list(g.nodes)
    clip = next(node for node in forward if node.name == "hr.clip")
    target = g.op("Div", [graphs.to_planes(g, g.input(contract.target()), "target"), g.scalar(255.0)], "target.unit")
    error = g.op("Sub", [clip.output[0], target], "error")
    seed = g.conv(error, _metric()[:, :, None, None], None, "error.metric")
    adjoint = Adjoint(g, forward, net.config.alpha_gain)
    g.output(adjoint.of("lr", {clip.input[0]: seed}), contract.gradient(v))
    return g


def _metric() -> npt.NDArray[np.float32]:
    """dE/dx = 2 * 255^2 * (1 + 3 n n^T) e, with x and e in [0, 1]."""
    return np.float32(2.0 * 255.0**2) * error_metric()


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
