"""A small ONNX graph writer: named nodes, deduplicated constants, no exporter in between.

Graphs are written operator by operator from the network's parameters. This keeps them free of frozen sizes, random
operators, grouped convolutions and dead branches by construction, and makes an export take milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from rescale import __version__
from rescale.contract import Tensor
from rescale.errors import ParityError

OPSET = 17
IR_VERSION = 8

_ELEMENT = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


FILTER_VALUES = 64
"""Constants of this many values are looked up by what they hold."""


class GraphWriter:
    """Collects nodes and constants. Every method that adds a node returns the name of its output.

    Attributes:
        name: of the graph.
        element: dtype of the floating-point constants and weights that are added now.
        stream: dtype of the coupling stream and of the Haar transforms.
        inner: dtype inside the subnets.
    """

    def __init__(self, name: str, precision: str = "fp32") -> None:
        self.name = name
        self.element = "float32"
        self.stream = "float16" if precision == "fp16" else "float32"
        self.inner = "float32" if precision == "fp32" else "float16"
        self._casts: dict[tuple[str, str], str] = {}
        self._filters: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.known: list[Tensor] = []

    def input(self, tensor: Tensor) -> str:
        """Declare a graph input."""
        self.inputs.append(tensor)
        return tensor.name

    def output(self, value: str, tensor: Tensor) -> None:
        """Make a value a graph output under a name of its own."""
        name = tensor.name
        # Renamed where it is made, not copied: TensorRT takes uint8 out of a cast only, and a copy behind it is refused.
        for node in self.nodes:
            node.input[:] = [name if x == value else x for x in node.input]
            node.output[:] = [name if x == value else x for x in node.output]
        self.outputs.append(tensor)

    def declare(self, value: str, tensor: Tensor) -> str:
        """Say what a value is where it hangs on sizes that shape inference does not follow. Returns the value."""
        self.known.append(dataclasses.replace(tensor, name=value))
        return value

    @contextlib.contextmanager
    def stream_in_float32(self) -> Iterator[None]:
        """What is added in the block has a float32 stream, whatever the graph's precision."""
        before, self.stream = self.stream, "float32"
        try:
            yield
        finally:
            self.stream = before

    @contextlib.contextmanager
    def using(self, element: str) -> Iterator[None]:
        """Constants and weights added in the block are of this dtype."""
        before, self.element = self.element, element
        try:
            yield
        finally:
            self.element = before

    def cast(self, value: str, have: str, want: str) -> str:
        """A value in another floating-point dtype; the same value is converted once."""
        if have == want:
            return value
        if (value, want) not in self._casts:
            self._casts[value, want] = self.op("Cast", [value], f"{value}.{want}", to=_ELEMENT[want])
        return self._casts[value, want]

    def constant(self, name: str, value: npt.ArrayLike, dtype: Any = None) -> str:
        """Add a constant, of the current floating-point dtype unless another is named.

        Raises:
            ParityError: a value that the dtype cannot hold.
        """
        if name not in self.constants:
            with np.errstate(over="ignore"):
                array = np.asarray(value, dtype=dtype or self.element, order="C")
            if not np.isfinite(np.asarray(value)).all():
                raise ParityError(f"{self.name}: {name} holds values that are not finite; the weights are broken, train them again")
            if not np.isfinite(array).all():
                raise ParityError(f"{self.name}: {name} holds values that {array.dtype} cannot; export it as fp32")
            if array.size >= FILTER_VALUES:
                # Filters that several parts of a graph use are stored once.
                known = self._filters.setdefault((array.dtype.name, array.shape, array.tobytes()), name)
                if known != name:
                    return known
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def scalar(self, value: float) -> str:
        """A scalar constant of the current dtype, shared by all who need the same value."""
        return self.constant(f"scalar_{value:.9g}" + ("" if self.element == "float32" else f"_{self.element}"), value)

    def op(self, kind: str, inputs: Sequence[str], name: str, *, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output."""
        out = output or f"{name}.out"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=name, **attributes))
        return out

    def split(self, value: str, sizes: Sequence[int], name: str) -> list[str]:
        """Cut the channel axis into parts."""
        names = [f"{name}.out{i}" for i in range(len(sizes))]
        lengths = self.constant(f"{name}.sizes", list(sizes), np.int64)
        self.nodes.append(helper.make_node("Split", [value, lengths], names, name=name, axis=1))
        return names

    def concat(self, values: Sequence[str], name: str) -> str:
        """Join along the channel axis; one value is returned as it is."""
        return values[0] if len(values) == 1 else self.op("Concat", values, name, axis=1)

    def conv(
        self,
        value: str,
        weight: npt.NDArray[Any],
        bias: npt.NDArray[Any] | None,
        name: str,
        *,
        stride: int = 1,
    ) -> str:
        """Dense convolution, zero padding that keeps the size (odd kernels) or none (stride 2)."""
        kernel = weight.shape[2]
        inputs = [value, self.constant(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias))
        pad = (kernel - 1) // 2 if stride == 1 else 0
        return self.op("Conv", inputs, name, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4, group=1)

    def values(self) -> dict[str, tuple[str, int]]:
        """Dtype and channels of each floating-point NCHW value that has been made so far."""
        inferred = shape_inference.infer_shapes(self._unchecked(), strict_mode=True, data_prop=True).graph
        names: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
        kinds = {v.name: v.type.tensor_type for v in (*inferred.input, *inferred.output, *inferred.value_info)}
        return {
            name: (names[kind.elem_type], kind.shape.dim[1].dim_value)
            for name, kind in kinds.items()
            if len(kind.shape.dim) == 4 and kind.elem_type in names
        }

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model, checked with full shape inference."""
        model = self._unchecked()
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _unchecked(self) -> onnx.ModelProto:
        def info(t: Tensor) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(t.name, _ELEMENT[t.dtype], list(t.axes))

        graph = helper.make_graph(
            self.nodes,
            self.name,
            [info(t) for t in self.inputs],
            [info(t) for t in self.outputs],
            list(self.constants.values()),
            value_info=[info(t) for t in self.known],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="rescale-toolkit",
            producer_version=__version__,
        )
