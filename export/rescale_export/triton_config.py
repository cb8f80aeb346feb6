"""Triton's model configurations (config.pbtxt): what a model of a repository is, and its protobuf text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rescale.contract import Tensor
from rescale.errors import ConfigError

TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
CONFIG = "config.pbtxt"
VERSION = "1"
"""Folder of a model's only version."""

_TEXT = re.compile(r"[ !#-\[\]-~]*")


@dataclass(frozen=True)
class Step:
    """One step of an ensemble: tensor names of the model to those of the ensemble."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Model:
    """One folder of a repository.

    Attributes:
        name: of the folder and of the model.
        backend: ``onnxruntime``, ``tensorrt``, ``python`` or ``ensemble``.
        inputs, outputs: interface; axes that are names are dynamic.
        parameters: strings by name; what the model is made of, and the options of Python models.
        steps: of an ensemble.
        files: contents by path below the version folder.
    """

    name: str
    backend: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]
    steps: tuple[Step, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    def config(self) -> str:
        """The text of config.pbtxt. Batches are an axis like others: ``max_batch_size`` is 0, nothing is merged or split."""
        kind = 'platform: "ensemble"' if self.backend == "ensemble" else f"backend: {_quoted(self.backend)}"
        lines = [f"name: {_quoted(self.name)}", kind, "max_batch_size: 0"]
        for key, tensors in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"{key} {{ {_tensor(t)} }}" for t in tensors]
        if self.backend == "python":
            # numpy and the runtime's CPU backend: an instance on each GPU would be a waste.
            lines += ["instance_group { kind: KIND_CPU count: 1 }"]
        if self.steps:
            lines.append("ensemble_scheduling {")
            for step in self.steps:
                lines += ["  step {", f"    model_name: {_quoted(step.model)}", "    model_version: -1"]
                for key, names in (("input_map", step.inputs), ("output_map", step.outputs)):
                    lines += [f"    {key} {{ key: {_quoted(k)} value: {_quoted(v)} }}" for k, v in names.items()]
                lines.append("  }")
            lines.append("}")
        lines += [f"parameters {{ key: {_quoted(k)} value {{ string_value: {_quoted(v)} }} }}" for k, v in self.parameters.items()]
        return "\n".join(lines) + "\n"


def dims(tensor: Tensor) -> list[int]:
    """Sizes as Triton writes them: -1 for a dynamic one."""
    return [axis if isinstance(axis, int) else -1 for axis in tensor.axes]


def _tensor(t: Tensor) -> str:
    return f"name: {_quoted(t.name)} data_type: {TYPES[t.dtype]} dims: [ {', '.join(map(str, dims(t)))} ]"


def _quoted(text: str) -> str:
    """A protobuf string.

    Raises:
        ConfigError: it holds characters that would need an escape; none of ours does.
    """
    if not _TEXT.fullmatch(text):
        raise ConfigError(f"{text!r}: only printable ASCII without quotes and backslashes can be put into {CONFIG}")
    return f'"{text}"'
