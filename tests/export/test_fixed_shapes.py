"""ONNX Runtime's own tool gives graphs fixed shapes, as docs/edge.md says; no level of a picture changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from rescale_export.graphs import split_graphs
from rescale_train.config import NetConfig
from rescale_train.models import RescalingNet

CASES = [("irn", 4, 0), ("dlv_irn_a", 2, 0), ("dlv_irn_m", 2, 0), ("irn_a", 2, 2), ("dlv_irn_m", 4, 1)]


def fix(source: Path, target: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs fixed shapes, one after the other."""
    for name, shape in shapes.items():
        command = [sys.executable, "-m", "onnxruntime.tools.make_dynamic_shape_fixed", "--input_name", name]
        subprocess.run([*command, "--input_shape", ",".join(map(str, shape)), str(source), str(target)], check=True)
        source = target


@pytest.mark.parametrize(("model", "scale", "corrections"), CASES)
def test_fixed_shapes_change_no_level(
    net_of: Callable[..., RescalingNet], tmp_path: Path, model: str, scale: int, corrections: int
) -> None:
    dlv, blocks = (3 if model.startswith("dlv") else 0), (1,) * (scale // 2)
    net = net_of(NetConfig(model, scale, blocks, 4, dlv_channels=dlv, corrections=corrections, correction_growth=4))
    rng, side = np.random.default_rng(0), 16
    sizes = {"batch": 1, "height": scale * side, "width": 2 * scale * side, "lr_height": side, "lr_width": 2 * side}
    sizes |= {"latent_height": side // 4, "latent_width": side // 2}
    for graph, writer in split_graphs(net).items():
        dynamic, fixed = tmp_path / f"{graph}.onnx", tmp_path / f"{graph}_fixed.onnx"
        dynamic.write_bytes(writer.model({}).SerializeToString())
        feeds = {}
        for put in writer.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in put.axes]
            values = rng.integers(0, 256, shape).astype(put.dtype)
            feeds[put.name] = values if put.dtype == "uint8" else values / np.float32(1e4)
        fix(dynamic, fixed, {name: values.shape for name, values in feeds.items()})
        one, other = ort.InferenceSession(dynamic), ort.InferenceSession(fixed)
        assert all(isinstance(n, int) for put in (*other.get_inputs(), *other.get_outputs()) for n in put.shape), graph
        for a, b in zip(one.run(None, feeds), other.run(None, feeds), strict=True):
            if a.dtype == np.uint8:
                assert np.array_equal(a, b), graph
            else:  # with other shapes ONNX Runtime may add up in another order
                assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max(), graph
