"""Steps between a bundle's graphs in an ensemble of Triton: padding to the network's grid and cropping. Needs numpy only.

    grid     hr uint8 (N, H, W, 3)                     -> hr_padded, sides multiples of the scale
    latent   z float32 (N, C, h, w)                    -> z_padded, sides multiples of 4
    crop     z_padded, lr uint8 (N, h, w, 3)           -> z float32 (N, C, h, w)

Padding repeats the last row and column. What cannot be right is answered with INVALID_ARG, which is 400 over HTTP.
"""

from __future__ import annotations

import ctypes
import importlib
import json
from typing import Any, cast

import numpy as np
import numpy.typing as npt

pb_utils = importlib.import_module("triton_python_backend_utils")

Array = npt.NDArray[Any]


class WrongShapeError(Exception):
    """The request's fault, in words."""


class TritonPythonModel:
    """One of the steps, as the parameter ``step`` says."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters: ``step``, ``multiple`` (of the grid) and ``max_pixels`` (of a request)."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self.step, self.multiple = parameters["step"], int(parameters["multiple"])
        self.max_pixels = int(parameters["max_pixels"])
        self.inputs = [t["name"] for t in config["input"]]
        self.output = config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            arrays = [_take(request, name) for name in self.inputs]
            out = self._run(*arrays)
        except WrongShapeError as e:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(e), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse(output_tensors=[_give(self.output, out)])

    def _run(self, first: Array, lr: Array | None = None) -> Array:
        if self.step == "grid":
            n, height, width = first.shape[:3]
            if min(n, height, width) < 1:
                raise WrongShapeError(f"hr: at least one picture of 1x1 pixels is wanted, got shape {list(first.shape)}")
            if n * height * width > self.max_pixels:
                raise WrongShapeError(
                    f"hr: {n * height * width} pixels in shape {list(first.shape)}, allowed are {self.max_pixels}"
                )
            return self._padded(first, 1)
        if self.step == "latent":
            return self._padded(first, 2)
        assert lr is not None
        n, height, width = lr.shape[:3]
        wanted = (n, -(-height // self.multiple), -(-width // self.multiple))
        got = (first.shape[0], first.shape[2] // self.multiple, first.shape[3] // self.multiple)
        if got != wanted or min(wanted) < 1:
            name = "(pictures, height, width)"
            raise WrongShapeError(f"code: {got} {name} does not belong to lr of shape {list(lr.shape)}, which wants {wanted}")
        return first[:, :, :height, :width]

    def _padded(self, array: Array, axis: int) -> Array:
        widths = [(0, 0)] * array.ndim
        for i in (axis, axis + 1):
            widths[i] = (0, -array.shape[i] % self.multiple)
        return np.pad(array, widths, mode="edge")


# By DLPack: with numpy 2 the arrays of servers of 2024 have wrong strides, and their outputs hold no bytes.
def _take(request: Any, name: str) -> Array:
    return cast(Array, np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)))


def _give(name: str, array: Array) -> Any:
    capsule = np.require(array, requirements=["C", "W"]).__dlpack__()
    # Triton owns the array from now on, but marks the capsule in a way that numpy's destructor complains about.
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return pb_utils.Tensor.from_dlpack(name, capsule)
