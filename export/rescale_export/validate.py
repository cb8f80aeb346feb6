"""Comparison of written graphs with PyTorch: an export is not done until names, axes, shapes and values agree."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from rescale.backends import create
from rescale.bundle import Bundle
from rescale.contract import Tensor
from rescale.errors import ParityError
from rescale.half import HalfRunner
from rescale.image import pad_planes
from rescale.parity import Comparison, Parity, measure
from rescale.variants import LATENT_STRIDE
from rescale_export.probe import photograph, probe_picture
from rescale_export.session import session_of
from rescale_train.models import RescalingNet

MAX_DIFFERENT = 1e-4
"""Largest share of uint8 values that may differ from PyTorch's; each by one level at most."""

MAX_DIFFERENT_CORRECTED = 5e-3
"""The same for LR codes of an encoder with corrections: a leaky ReLU whose input rounds to the other side of 0 changes its slope,
and with it the gradient that they follow, by more than rounding does."""

MAX_DIFFERENT_CODES = 1e-3
"""The same for the latent code, of which a check has fewer values: one at a rounding boundary must not refuse an export."""

MAX_FLOAT_ERROR = 1e-3
"""Largest difference of a z value."""

FORBIDDEN = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Reshape"}
GOLDEN_SIZE = (60, 92)
PHOTOGRAPH_SIZE = (192, 288)


def reference(net: RescalingNet, hr: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    """What PyTorch makes of a batch, in the graphs' terms. One picture at a time: a correction keeps all that its gradient needs,
    gigabytes for a large network.

    Args:
        net: float32 network on the CPU.
        hr: uint8 (B, H, W, 3), sides multiples of the scale.

    Returns:
        ``hr`` (the input), ``lr``, ``restored``, and for -M ``z``, ``code`` and ``z_hat``.

    Raises:
        ParityError: a value is infinite or not a number: bytes would hide it, on both sides of a comparison.
    """
    each = [_reference(net, hr[i : i + 1]) for i in range(len(hr))]
    return {"hr": hr} | {name: np.concatenate([one[name] for one in each]) for name in each[0]}


@torch.no_grad()
def _reference(net: RescalingNet, hr: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    x = torch.from_numpy(hr).permute(0, 3, 1, 2).float() / 255.0
    down = net.downscale(x)
    rgb = torch.round(down.lr[:, :3] * 255.0)
    parts = [rgb]
    if net.config.variant.alpha:
        parts.append(torch.round(down.lr[:, 3:4] * 254.0) + 1.0)
    out: dict[str, npt.NDArray[Any]] = {"lr": _nhwc(torch.cat(parts, 1))}
    z_hat = net.decode_z(down.lr, down.code)
    restored = net.upscale(down.lr, z_hat)
    for name, values in (("LR", down.lr), ("z", down.z), ("decoded z", z_hat), ("restored HR", restored)):
        if not values.isfinite().all():
            where = f"{hr.shape[2]}x{hr.shape[1]}"
            raise ParityError(
                f"PyTorch's {name} of a picture of {where} is not finite: the weights are broken; train or import again"
            )
    if down.code is not None:
        out["z"] = down.z.numpy()
        out["code"] = (torch.round(down.code * 127.0) + 128.0).byte().numpy()
        out["z_hat"] = z_hat.numpy()
    out["restored"] = _nhwc(torch.round(restored.clamp(0.0, 1.0) * 255.0))
    return out


def _nhwc(t: torch.Tensor) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(t.permute(0, 2, 3, 1).byte().numpy())


def probe_sizes(scale: int) -> list[tuple[int, int]]:
    """(height, width) of the checks: the smallest legal one, an uneven one, a larger one."""
    return [(scale, scale), (11 * scale, 7 * scale), (96 * scale, 128 * scale)]


def check_contract(model: onnx.ModelProto, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Check operators, names, dtypes and axes of a graph.

    Raises:
        ParityError: a forbidden operator, a grouped convolution, or an interface that is not the contract's.
    """
    for node in model.graph.node:
        if node.op_type in FORBIDDEN:
            raise ParityError(f"{model.graph.name}: node {node.name} is a {node.op_type}, which is not allowed")
        if node.op_type in ("Conv", "ConvTranspose"):
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            if group != 1:
                raise ParityError(f"{model.graph.name}: node {node.name} is a convolution with {group} groups")
    for values, wanted in ((model.graph.input, inputs), (model.graph.output, outputs)):
        found = tuple(_tensor(v) for v in values)
        if found != wanted:
            raise ParityError(f"{model.graph.name}: interface {found}, wanted {wanted}")


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    axes = tuple(d.dim_param if d.HasField("dim_param") else d.dim_value for d in kind.shape.dim)
    return Tensor(value.name, dtype, axes)


def compare(net: RescalingNet, models: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Run every graph on ONNX Runtime at sizes never seen at export and compare with PyTorch.

    Returns:
        Agreement per graph, for the manifest.

    Raises:
        ParityError: a graph does not agree.
    """
    sessions = {name: session_of(model) for name, model in models.items()}
    latent = net.config.variant.latent
    tally = {name: Comparison() for name in models if name != "decoder"}
    z_error = z_hat_error = 0.0
    for i, (height, width) in enumerate(probe_sizes(net.config.scale)):
        batch = np.stack([probe_picture(height, width, seed) for seed in range(2 + (i == 2))])
        want = reference(net, batch)
        where = f"at {width}x{height}"
        got = sessions["downscale"].run(None, {"hr": batch})
        tally["downscale"].add(got[0], want["lr"], f"downscale {where}")
        feed = {"lr": want["lr"]}
        if latent:
            z_error = float(np.maximum(z_error, np.abs(got[1] - want["z"]).max()))
            code = sessions["encoder"].run(None, {"z": pad_planes(want["z"], LATENT_STRIDE)})[0]
            tally["encoder"].add(code, want["code"], f"encoder {where}")
            z_hat = sessions["decoder"].run(None, {"code": want["code"]})[0]
            z_hat = z_hat[:, :, : want["z_hat"].shape[2], : want["z_hat"].shape[3]]
            z_hat_error = float(np.maximum(z_hat_error, np.abs(z_hat - want["z_hat"]).max()))
            feed["z"] = want["z_hat"]
        tally["upscale"].add(sessions["upscale"].run(None, feed)[0], want["restored"], f"upscale {where}")
    allowed = {"encoder": MAX_DIFFERENT_CODES} | ({"downscale": MAX_DIFFERENT_CORRECTED} if net.corrections else {})
    for name, comparison in tally.items():
        comparison.require(name, allowed.get(name, MAX_DIFFERENT))
    result: dict[str, dict[str, Any]] = {name: c.to_dict() for name, c in tally.items()}
    if latent:
        for name, error in (("downscale", z_error), ("decoder", z_hat_error)):
            if not error <= MAX_FLOAT_ERROR:
                raise ParityError(f"{name}: z differs from PyTorch by {error:.3g}, allowed is {MAX_FLOAT_ERROR}")
            result.setdefault(name, {})["largest_z_error"] = error
    return result


def golden_cases(net: RescalingNet) -> list[dict[str, npt.NDArray[Any]]]:
    """PyTorch's results for four pictures: the smallest one, an uneven one, one whose LR is no multiple of 4, a photograph."""
    scale = net.config.scale
    height, width = (side - side % (4 * scale) + scale for side in GOLDEN_SIZE)
    smallest, uneven, _ = probe_sizes(scale)
    pictures = [probe_picture(*size, seed=7) for size in (smallest, uneven, (height, width))]
    pictures.append(photograph(*PHOTOGRAPH_SIZE))
    return [reference(net, picture[None]) for picture in pictures]


def compare_precision(bundle: Bundle, precision: str, cases: list[dict[str, npt.NDArray[Any]]]) -> Parity:
    """Run a bundle's graphs of one precision on ONNX Runtime, as they are and with every float16 result rounded.

    Returns:
        Agreement of the rounded results with PyTorch in float32: as they are, a CPU may compute them in float32.

    Raises:
        ParityError: the gate of `rescale.parity` refuses either.
    """
    for make in (partial(create, bundle, "onnxruntime", precision=precision), partial(HalfRunner, bundle, precision)):
        with contextlib.closing(make()) as runner:
            parity = measure(bundle, runner.run, cases)
            parity.require(f"{bundle.title} in {precision} on {runner.name}")
    return parity
