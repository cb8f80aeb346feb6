"""Checkpoints and shipped weights: safetensors with the configuration in the header. Nothing is ever unpickled.

A training checkpoint holds ``model.*``, ``ema.*``, ``optim.<name>.<moment>`` and ``state.*``; a weights file holds the bare
parameter names. Both carry ``format``, ``recipe`` and ``progress`` as JSON in the safetensors metadata.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rescale.errors import CheckpointError, ConfigError, UnknownModelError
from rescale.files import atomic_write
from rescale.json_text import as_json, without_nan
from rescale_train import lineage
from rescale_train.config import NetConfig, Recipe, TrainConfig
from rescale_train.models import RescalingNet, build
from rescale_train.tables import from_dict, to_dict

FORMAT = "rescale-checkpoint/1"
MAX_NUMBER = 1e12
"""Steps or seconds that no run has."""
PART_BYTES = 14_000_000
MAX_IMPORTED = 1 << 16
"""Characters that a file may hold of where its weights came from, indented as in the manifests and cards that take it over; what
`rescale-train import` writes has under a thousand."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint or weights file.

    Attributes:
        recipe: network and run.
        progress: steps done, seconds trained, validation figures.
        tensors: every tensor in the file by name.
    """

    recipe: Recipe
    progress: dict[str, Any]
    tensors: dict[str, Tensor]

    def stored(self) -> dict[str, Tensor]:
        """Parameters to use, as the file holds them: the average of the weights where there is one."""
        for prefix in ("ema.", "model."):
            found = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
            if found:
                return found
        return dict(self.tensors)

    def weights(self) -> dict[str, Tensor]:
        """`stored` in float32."""
        return {k: v.float() for k, v in self.stored().items()}


def to_bytes(tensors: Mapping[str, Tensor], recipe: Recipe, progress: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint or weights file."""
    metadata = {"format": FORMAT, "recipe": json.dumps(to_dict(recipe)), "progress": json.dumps(without_nan(dict(progress)))}
    return _ordered(save({k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}, metadata))


def _ordered(file: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes it in another one each time."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + file[end:]


def write(path: Path, tensors: Mapping[str, Tensor], recipe: Recipe, progress: Mapping[str, Any]) -> None:
    """Write a file atomically: an interrupted write leaves the old file.

    Raises:
        OutputError: the file cannot be written.
    """
    atomic_write(path, to_bytes(tensors, recipe, progress))


def read(path: Path) -> Checkpoint:
    """Read a checkpoint or weights file, or the first of its parts (``NAME.part00``).

    Raises:
        CheckpointError: missing, truncated, not safetensors, without our header, of an unknown format, or with a header that no
            card can take over.
    """
    if path.name.endswith(".part00"):
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole"
            whole.write_bytes(join(path))
            return _read(whole, f"{path} and its other parts")
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; give the checkpoint.safetensors in it")
    return _read(path, str(path))


def _read(path: Path, name: str) -> Checkpoint:
    """`read` of a whole file; errors call it by `name`."""
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format", "none")
                raise CheckpointError(f"{name}: checkpoint format {found!r}, wanted {FORMAT!r}; train or import it again")
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        table = _table(metadata["recipe"], "recipe")
        recipe = Recipe(from_dict(NetConfig, table["net"], "net"), from_dict(TrainConfig, table["train"], "train"))
        progress = _table(metadata["progress"], "progress")
        if len(as_json(progress.get("imported"))) > MAX_IMPORTED:
            raise ValueError(f"progress.imported has more than {MAX_IMPORTED} characters")
        for key in ("step", "seconds"):
            value = progress.get(key, 0)
            if not (isinstance(value, int | float) and 0 <= value < MAX_NUMBER):
                raise ValueError(f"progress.{key} is not a number from 0 to {MAX_NUMBER:.0e}")
        lineage.check(progress.get("earlier", []), name)
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such checkpoint") from None
    except SafetensorError as e:
        cure = "a published .pth is for `rescale-train import`"
        raise CheckpointError(f"{name}: not a readable checkpoint: no whole safetensors file ({e}); {cure}") from None
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError, ConfigError, UnknownModelError) as e:
        raise CheckpointError(f"{name}: not a readable checkpoint: {e}") from None
    return Checkpoint(recipe, progress, tensors)


def _table(text: str, what: str) -> dict[str, Any]:
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError(f"{what} is not a table")
    if without_nan(table) != table:
        raise ValueError(f"{what} holds NaN or an infinity, which no card can hold")
    return table


def held_out(checkpoint: Checkpoint, name: str) -> list[str] | None:
    """SHA-256 of each file kept from training, by the run and those that it started from; None if the checkpoint does not say, as
    where it began with weights that do not.

    Args:
        checkpoint: what `read` returned.
        name: of the file, for the error message.

    Raises:
        CheckpointError: the entry is not a list of digests.
    """
    return _digests(checkpoint, "held_out", name)


def validated_on(checkpoint: Checkpoint, name: str) -> list[str] | None:
    """SHA-256 of each file that the run validates on, with those that the weights it started from may have been trained on, which
    `held_out` leaves out; None if the checkpoint does not say.

    Raises:
        CheckpointError: as `held_out`.
    """
    return _digests(checkpoint, "validated_on", name) or held_out(checkpoint, name)


def _digests(checkpoint: Checkpoint, key: str, name: str) -> list[str] | None:
    found = checkpoint.progress.get(key)
    if found is not None and not (isinstance(found, list) and all(isinstance(d, str) for d in found)):
        raise CheckpointError(f"{name}: not a readable checkpoint: {key} is not a list of digests")
    return found


def read_net(path: Path) -> RescalingNet:
    """The network of a file alone; see `read` and `load_net`."""
    return load_net(read(path), str(path))


def load_net(checkpoint: Checkpoint, name: str) -> RescalingNet:
    """Network with a checkpoint's weights, in evaluation mode, float32 on the CPU.

    Args:
        checkpoint: what `read` returned.
        name: of the file, for the error message.

    Raises:
        CheckpointError: a parameter is missing, superfluous, of another shape, no floating-point number, or not finite; or there
            is no memory for the network.
    """
    config, stored = checkpoint.recipe.net, checkpoint.stored()
    # A header may claim a network of gigabytes: none is built before the file is known to hold it.
    with torch.device("meta"):
        wanted = build(config).state_dict()
    for key, value in wanted.items():
        if key not in stored:
            raise CheckpointError(f"{name}: parameter {key} is missing; it is not a {config.model} checkpoint")
        if stored[key].shape != value.shape:
            raise CheckpointError(f"{name}: parameter {key} is {tuple(stored[key].shape)}, wanted {tuple(value.shape)}")
        if not stored[key].is_floating_point():
            found = str(stored[key].dtype).removeprefix("torch.")
            raise CheckpointError(f"{name}: parameter {key} is {found}, wanted float32, float16 or bfloat16")
    extra = sorted(set(stored) - set(wanted))
    if extra:
        raise CheckpointError(f"{name}: unknown parameter {extra[0]}; it is of another network")
    try:
        net, weights = build(config), checkpoint.weights()
    except RuntimeError as e:  # how PyTorch says that there is no memory
        raise CheckpointError(f"{name}: the network cannot be built: {str(e).splitlines()[0]}") from None
    for key, value in weights.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name}: parameter {key} is not finite; the training diverged")
    net.load_state_dict(weights)
    return net.eval()


LATER = {"latent_gain": 1.0, "lr_growth": 0, "corrections": 0, "correction_limit": 0.0}
"""Values of a network's later options that stand for how networks were before; the digests of those stay as they were."""


def weights_digest(net: RescalingNet) -> str:
    """SHA-256 over the network's parameters in order of their names: identifies the weights in cards and reports."""
    return _digest(net.state_dict(), net.config)


def flow_digest(net: RescalingNet) -> str:
    """The same of the network without its corrections: identifies in bundles and LR files what is needed to restore a picture."""
    flow = {name: value for name, value in net.state_dict().items() if not name.startswith("corrections.")}
    return _digest(flow, dataclasses.replace(net.config, corrections=0))


def _digest(tensors: Mapping[str, Tensor], config: NetConfig) -> str:
    h = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        h.update(f"{name} {tuple(value.shape)}\n".encode())
        h.update(value.detach().cpu().float().numpy().tobytes())
    table = {key: value for key, value in to_dict(config).items() if LATER.get(key) != value}
    if not config.corrections:
        table = {key: value for key, value in table.items() if not key.startswith("correction_")}
    h.update(json.dumps(table, sort_keys=True).encode())
    return h.hexdigest()


def split(path: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Cut a file into ``NAME.part00``, ``NAME.part01``, ... of at most `part_bytes` bytes."""
    data = path.read_bytes()
    parts = []
    for old in path.parent.glob(f"{glob.escape(path.name)}.part[0-9][0-9]"):
        old.unlink()
    for index, start in enumerate(range(0, len(data), part_bytes)):
        part = path.with_name(f"{path.name}.part{index:02d}")
        atomic_write(part, data[start : start + part_bytes])
        parts.append(part)
    return parts


def join(first: Path) -> bytes:
    """The bytes of a file that `split` has cut.

    Raises:
        CheckpointError: a part is missing.
    """
    stem = first.name.removesuffix(".part00")
    parts = sorted(first.parent.glob(f"{glob.escape(stem)}.part[0-9][0-9]"))
    if not parts or [int(p.name[-2:]) for p in parts] != list(range(len(parts))):
        raise CheckpointError(f"{first}: parts are missing; found {', '.join(p.name for p in parts) or 'none'}")
    return b"".join(p.read_bytes() for p in parts)
