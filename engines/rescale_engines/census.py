"""The census of a parsed network: which layer computes in which dtype, and whether that is the precision asked for.

Read from the network, never from the request: a builder that drops a precision flag in silence builds float32, and only the
network's own dtypes tell. Strongly typed networks keep them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from rescale.errors import EngineError

HALF, FLOAT = "HALF", "FLOAT"
WHOLE = frozenset({"INT32", "INT64", "UINT8", "BOOL"})
"""Dtypes of shapes and pixels, which no precision speaks of."""


class Layer(NamedTuple):
    """One layer: TensorRT's type, the ONNX node's name (or TensorRT's own for a helper), and the dtype of its first output."""

    type: str
    name: str
    dtype: str
    helper: bool = False


# Names as rescale_export.graphs gives them; the first pattern that fits decides. What a correction's adjoint adds up behind a cast
# out of a subnet has that cast in its name.
_PARTS = {
    "subnet": re.compile(
        r"(correction\d+\.)?level\d+\.block\d+\.(F|G|H|GH)\.(?!.*\.float32)[\w.]+|correction\d+\.(conv|act|cat)\d[\w.]*"
        r"|(correction\.)?(encoder|decoder)\.[\w.]+"
    ),
    "correction": re.compile(r"correction\d*\.[\w.]+"),
    "stream": re.compile(r"level\d+\.[\w.]+"),
    "edge": re.compile(r"(input|alpha|lr|hr|latent)\.[\w.]+"),
}
_BY_ONNX = re.compile(r"\[ONNX Layer: ([^\]]+)\]")

_EXPECTED = {
    "fp32": {"subnet": FLOAT, "stream": FLOAT, "edge": FLOAT, "correction": FLOAT},
    "mixed": {"subnet": HALF, "stream": FLOAT, "edge": FLOAT, "correction": FLOAT},
    "fp16": {"subnet": HALF, "stream": HALF, "edge": FLOAT, "correction": FLOAT},
}


def layers(network: Any) -> list[Layer]:
    """All layers of a parsed ``INetworkDefinition``."""
    out = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        named = _BY_ONNX.search(layer.metadata or "")
        dtype = layer.get_output(0).dtype.name if layer.num_outputs else "NONE"
        out.append(Layer(layer.type.name, named.group(1) if named else layer.name, dtype, named is None))
    return out


def count(found: Iterable[Layer]) -> dict[str, dict[str, int]]:
    """Layers by type and dtype, both in alphabetical order."""
    tally = Counter((layer.type, layer.dtype) for layer in found)
    out: dict[str, dict[str, int]] = {}
    for (kind, dtype), n in sorted(tally.items()):
        out.setdefault(kind, {})[dtype] = n
    return out


def part(name: str) -> str | None:
    """The part that an ONNX node belongs to, None for an unknown name; ``correction`` is what of one is outside of its subnets."""
    return next((kind for kind, pattern in _PARTS.items() if pattern.fullmatch(name)), None)


def require_precision(found: Iterable[Layer], precision: str, what: str) -> None:
    """Check that a network computes in a precision.

    Subnets (and the -M autoencoder) are float16 in ``mixed`` and ``fp16``; the coupling stream, exp, tanh and Haar are float16 in
    ``fp16`` only; what stands between bytes and the stream (scaling, sigmoid, logit, clamping, rounding) is float32 in all, and so
    is what an encoder's corrections have outside of subnets. Casts change dtype and comparisons give none, so both are left out,
    and so are the sizes that corrections of -M compute; in ``fp32`` no layer at all is float16.

    Raises:
        EngineError: a layer of another dtype, a layer of unknown part, or none that computes, naming the first.
    """
    expected = _EXPECTED[precision]
    convolutions = 0
    for layer in found:
        if layer.dtype not in WHOLE and (layer.dtype not in (FLOAT, HALF) or (precision == "fp32" and layer.dtype == HALF)):
            raise EngineError(f"{what}: layer {layer.name} ({layer.type}) gives {layer.dtype}, which {precision} has nowhere")
        # Helpers are TensorRT's own: sizes, and scalars brought to their neighbour's shape.
        if layer.helper or layer.type == "CAST" or layer.dtype == "BOOL":
            continue
        belongs = part(layer.name)
        if belongs is None:
            raise EngineError(f"{what}: layer {layer.name} ({layer.type}) is of no known part; its precision cannot be proved")
        if belongs == "correction" and layer.dtype in WHOLE:
            continue  # of sizes
        if layer.dtype != expected[belongs]:
            message = f"is of the {belongs} and gives {layer.dtype}, {precision} wants {expected[belongs]}"
            cure = "the graph is not what its name says; export the bundle again"
            raise EngineError(f"{what}: layer {layer.name} ({layer.type}) {message}: {cure}")
        convolutions += layer.type == "CONVOLUTION"
    if not convolutions:
        raise EngineError(f"{what}: no convolution in the network; it is not one of ours")
