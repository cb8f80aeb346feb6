"""The published IRN layouts, written down a second time from their description: files with random values, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
HAAR = [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
NAMES = {"official": "IRN (pkuxmq)", "floros": "andreasfloros"}
SUBNETS = {"official": ("F", "G", "H"), "floros": ("phi", "eta", "rho")}


def haar_weights(channels: int) -> Tensor:
    return torch.tensor(HAAR, dtype=torch.float32).reshape(4, 1, 2, 2).repeat(channels, 1, 1, 1)


def subnet_keys(layout: str, prefix: str) -> list[str]:
    """Names of the five convolutions of a subnet."""
    official = layout == "official"
    return [f"{prefix}.conv{k}" if official else f"{prefix}.blocks.{k - 1}" if k < 5 else f"{prefix}.conv_out" for k in range(1, 6)]


def published(layout: str, blocks: tuple[int, ...], growth: int, seed: int = 1) -> State:
    """A checkpoint in a published layout with random values; no parameter is zero, as a trained one."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    index = 0
    for level, count in enumerate(blocks):
        channels = 3 * 4**level
        state[f"operations.{index}.haar_weights" if layout == "official" else f"haars.{level}.haar_weights"] = haar_weights(
            channels
        )
        index += 1
        for j in range(count):
            where = f"operations.{index}" if layout == "official" else f"transforms.{level}.blocks.{j}"
            index += 1
            low, high = 3, 4 * channels - 3
            for name, (c_in, c_out) in zip(SUBNETS[layout], [(high, low), (low, high), (low, high)], strict=True):
                for k, key in enumerate(subnet_keys(layout, f"{where}.{name}")):
                    shape = (growth if k < 4 else c_out, c_in + k * growth, 3, 3)
                    state[f"{key}.weight"] = torch.randn(shape, generator=generator) * 0.6 / (9 * shape[1]) ** 0.5
                    state[f"{key}.bias"] = torch.randn(shape[0], generator=generator) * 0.05
    return state


def dense(state: State, layout: str, prefix: str, x: Tensor) -> Tensor:
    for key in subnet_keys(layout, prefix)[:4]:
        grown = functional.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)
        x = torch.cat((x, torch.where(grown > 0, grown, 0.2 * grown)), 1)
    last = subnet_keys(layout, prefix)[4]
    return functional.conv2d(x, state[f"{last}.weight"], state[f"{last}.bias"], padding=1)


def haar(weights: Tensor, x: Tensor, inverse: bool) -> Tensor:
    """Grouped convolution with the stored constants, then from channel-major to sub-band-major; or back."""
    b, c, h, w = x.shape
    if not inverse:
        bands = functional.conv2d(x, weights, stride=2, groups=c) / 4
        return bands.view(b, c, 4, h // 2, w // 2).transpose(1, 2).reshape(b, 4 * c, h // 2, w // 2)
    bands = x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
    return functional.conv_transpose2d(bands, weights, stride=2, groups=c // 4)


def block(state: State, layout: str, where: str, x: Tensor, inverse: bool) -> Tensor:
    a, b = x[:, :3], x[:, 3:]
    first, shift, scale = (lambda v, n=n: dense(state, layout, f"{where}.{n}", v) for n in SUBNETS[layout])

    def factor(low: Tensor) -> Tensor:
        raw = scale(low)
        return torch.exp(torch.sigmoid(raw) * 2 - 1) if layout == "official" else torch.exp(torch.tanh(raw / 2))

    if not inverse:
        a = a + first(b)
        return torch.cat((a, b * factor(a) + shift(a)), 1)
    b = (b - shift(a)) / factor(a)
    return torch.cat((a - first(b), b), 1)


def reference(state: State, layout: str, x: Tensor, inverse: bool = False) -> Tensor:
    """The published network: HR to LR and z in one tensor, or back."""
    state = {k: v.to(x.dtype) for k, v in state.items()}
    if layout == "official":
        steps = [f"operations.{i}" for i in range(1 + max(int(k.split(".")[1]) for k in state))]
    else:
        steps = []
        for level in range(sum(k.endswith("haar_weights") for k in state)):
            count = len({k.split(".")[3] for k in state if k.startswith(f"transforms.{level}.")})
            steps += [f"haars.{level}", *(f"transforms.{level}.blocks.{j}" for j in range(count))]
    for step in reversed(steps) if inverse else steps:
        weights = state.get(f"{step}.haar_weights")
        x = block(state, layout, step, x, inverse) if weights is None else haar(weights, x, inverse)
    return x


def save(path: Path, state: Any, container: str = "zip") -> Path:
    if container == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "zip")
    return path
