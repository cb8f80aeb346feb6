"""From the names of a published layout to a network of ours.

    IRN (pkuxmq)      operations.{i}.haar_weights, operations.{i}.{F,G,H}.conv{1..5}.{weight,bias}; i counts Haar steps and blocks
    andreasfloros     haars.{l}.haar_weights, transforms.{l}.blocks.{j}.{phi,eta,rho}.{blocks.{0..3},conv_out}.{weight,bias}
    ours              levels.{l}.{j}.{F,G,H}.conv{1..5}.{weight,bias}; Haar is built in

phi = F, eta = G (shift), rho = H (scale). All three have the same arithmetic, so that no value is changed: Haar divides by 4 and
orders its channels sub-band-major, LeakyReLU has slope 0.2, and s = 2 * sigmoid(H) - 1 = tanh(H / 2). The layers are read off the
names and shapes; nothing but these is in a file, so that a network trained with another slope or clamp is not told apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rescale.errors import CheckpointError, ConfigError
from rescale.variants import SCALES
from rescale_train.config import NetConfig
from rescale_train.importers.reading import MAX_BYTES, Source
from rescale_train.models import build
from rescale_train.models.haar import HAAR

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Network:
    """A checkpoint in our terms.

    Attributes:
        layout: name of the layout it came in.
        config: the network.
        parameters: by our names, in the dtype of the file.
        values: numbers in the file, those of the Haar steps among them.
    """

    layout: str
    config: NetConfig
    parameters: dict[str, Tensor]
    values: int


@dataclass(frozen=True)
class _Plan:
    """What a layout makes of a file's names: blocks per Haar level, and the names that a file with these has."""

    blocks: tuple[int, ...]
    haars: tuple[str, ...]
    parameters: Mapping[str, str]


def _official(names: Iterable[str]) -> _Plan | None:
    """Haar steps and blocks are in one list: a step begins a level."""
    parsed = [m for m in (re.match(r"operations\.(0|[1-9]\d{0,2})\.(\w+)", n) for n in names) if m]
    if not parsed:
        return None
    steps = {int(m[1]) for m in parsed if m[2] == "haar_weights"}
    blocks: list[int] = []
    haars = []
    parameters = {}
    for i in range(max(int(m[1]) for m in parsed) + 1):
        if i in steps or i == 0:
            haars.append(f"operations.{i}.haar_weights")
            blocks.append(0)
            continue
        for subnet in "FGH":
            for k in range(1, 6):
                for kind in ("weight", "bias"):
                    ours = f"levels.{len(blocks) - 1}.{blocks[-1]}.{subnet}.conv{k}.{kind}"
                    parameters[ours] = f"operations.{i}.{subnet}.conv{k}.{kind}"
        blocks[-1] += 1
    return _Plan(tuple(blocks), tuple(haars), parameters)


def _floros(names: Iterable[str]) -> _Plan | None:
    """Levels and blocks are counted apart."""
    names = list(names)
    parsed = [m for m in (re.match(r"transforms\.(\d)\.blocks\.(0|[1-9]\d{0,2})\.(?:phi|eta|rho)\.", n) for n in names) if m]
    haars = [m for m in (re.fullmatch(r"haars\.(\d)\.haar_weights", n) for n in names) if m]
    if not parsed:
        return None
    levels = max(int(m[1]) for m in (*parsed, *haars)) + 1
    blocks = tuple(max((int(m[2]) + 1 for m in parsed if int(m[1]) == level), default=0) for level in range(levels))
    parameters = {}
    for level, count in enumerate(blocks):
        for j in range(count):
            for ours, theirs in (("F", "phi"), ("G", "eta"), ("H", "rho")):
                for k in range(1, 6):
                    conv = f"blocks.{k - 1}" if k < 5 else "conv_out"
                    for kind in ("weight", "bias"):
                        name = f"levels.{level}.{j}.{ours}.conv{k}.{kind}"
                        parameters[name] = f"transforms.{level}.blocks.{j}.{theirs}.{conv}.{kind}"
    return _Plan(blocks, tuple(f"haars.{level}.haar_weights" for level in range(levels)), parameters)


LAYOUTS: dict[str, Callable[[Iterable[str]], _Plan | None]] = {"IRN (pkuxmq)": _official, "andreasfloros": _floros}
"""Readers of the layouts by name."""

FOREIGN = {
    r"operations\.\d+\.conv_weights": "learnable downsampling (ConvDownsampling), as IRN x3: only Haar steps are known here",
    r"(comp_operations|gmm)\.": "SAIN, another network than the six of this toolkit",
    r"(haar|down)_operations(_2)?\.": "T-IRN, another network than the six of this toolkit (three branches, YCbCr inside)",
    r"flow\.": "HCFlow, another network than the six of this toolkit",
    r"(levels|model\.levels|ema\.levels)\.": "a file of this toolkit; give it to rescale-export --checkpoint as it is",
}
"""Other files that people have, by the beginning of a name in them, and why they are not imported."""


def translate(source: Source) -> Network:
    """Find the layout and the network of a file and name its parameters as ours.

    Raises:
        CheckpointError: another network, an unknown layout, a name too many or missing, another shape or dtype, Haar steps with
            other constants, or a value that is not finite.
    """
    path, tensors = source.path, source.tensors
    for beginning, reason in FOREIGN.items():
        if any(re.match(beginning, name) for name in tensors):
            raise CheckpointError(f"{path}: cannot be imported: {reason}")
    plans = {layout: plan for layout, reader in LAYOUTS.items() if (plan := reader(tensors)) is not None}
    if not plans:
        there = ", ".join(name for name in list(tensors)[:3])
        raise CheckpointError(f"{path}: unknown layout with {len(tensors)} names such as {there}; known are {', '.join(LAYOUTS)}")
    layout, plan = next(iter(plans.items()))
    config = _config(source, plan)
    for level, name in enumerate(plan.haars):
        _check_haar(source, name, 3 * 4**level)
    _check_parameters(source, plan, config)
    parameters = {ours: tensors[theirs] for ours, theirs in plan.parameters.items()}
    return Network(layout, config, parameters, sum(t.numel() for t in tensors.values()))


def _config(source: Source, plan: _Plan) -> NetConfig:
    path, tensors = source.path, source.tensors
    scale = 2 ** len(plan.blocks)
    shown = f"x{scale} with {', '.join(map(str, plan.blocks))} blocks after its Haar steps"
    if scale not in SCALES:
        raise CheckpointError(
            f"{path}: x{scale} ({len(plan.blocks)} Haar steps); here are {', '.join(f'x{s}' for s in SCALES)} only"
        )
    wanted = {*plan.haars, *plan.parameters.values()}
    missing = sorted(wanted - set(tensors))
    extra = sorted(set(tensors) - wanted)
    for names, what in ((missing, "missing"), (extra, "not known in this layout")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"{path}: {names[0]}{more} is {what}; the others make {shown}")
    for name, value in tensors.items():
        # Also whatever is no plain array in memory, such as a sparse, nested or meta tensor.
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
        if value.dtype not in DTYPES or not plain:
            known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name} is {kind} ({value.layout}, {value.device}), wanted one of {known}")
    first = next((theirs for ours, theirs in plan.parameters.items() if ours.endswith(".F.conv1.weight")), None)
    growth = tensors[first].shape[0] if first is not None and tensors[first].ndim else 0
    try:
        return NetConfig("irn", scale, plan.blocks, growth)
    except ConfigError as e:
        raise CheckpointError(f"{path}: {shown}: {e}") from None


def _check_haar(source: Source, name: str, channels: int) -> None:
    value = source.tensors[name]
    wanted = torch.from_numpy(HAAR).float().reshape(4, 1, 2, 2).repeat(channels, 1, 1, 1)
    _check_shape(source, name, wanted.shape)
    if not torch.equal(value.float(), wanted):
        raise CheckpointError(f"{source.path}: {name} is not the Haar transform of 1 and -1; the network would be another one")


def _check_parameters(source: Source, plan: _Plan, config: NetConfig) -> None:
    """Shapes before values: a few bytes of a file can claim a tensor of any size."""
    with torch.device("meta"):
        wanted = build(config).state_dict()
    total = sum(4 * t.numel() for t in wanted.values())
    if total > MAX_BYTES:
        raise CheckpointError(
            f"{source.path}: blocks {config.blocks} of growth {config.growth} take {total} bytes, over {MAX_BYTES}"
        )
    for ours, theirs in plan.parameters.items():
        _check_shape(source, theirs, wanted[ours].shape, f" with growth {config.growth}")
    for theirs in plan.parameters.values():
        if not torch.isfinite(source.tensors[theirs]).all():
            raise CheckpointError(f"{source.path}: {theirs} is not finite; its training diverged or the file is damaged")


def _check_shape(source: Source, name: str, wanted: torch.Size, given: str = "") -> None:
    came = source.tensors[name].shape
    if came != wanted:
        raise CheckpointError(f"{source.path}: {name} is {tuple(came)}, wanted {tuple(wanted)}{given}")
