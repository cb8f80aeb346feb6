"""A bundle in Triton's Python backend, run by the `rescale` package: any size, tiled where memory asks for it.

    downscale   hr uint8 (N, H, W, 3)                                  -> lr uint8 (N, h, w, 3 or 4) [, code uint8 (N, 4, h/4, w/4)]
    upscale     lr [, code]                                            -> hr uint8 (N, h * scale, w * scale, 3)
    encode      hr uint8 (H, W, 3)                                     -> file uint8 (bytes): a whole LR file
    decode      file uint8 (bytes)                                     -> hr uint8 (H, W, 3), the first shape exactly

A request that cannot be right is answered with INVALID_ARG (400 over HTTP), a lack of memory with UNAVAILABLE (503).
"""

from __future__ import annotations

import ctypes
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

import rescale
from rescale.errors import BundleError, InputError, LrFileError, OutOfMemoryError, RescaleError
from rescale.image import check_rgb
from rescale.memory import parse_memory
from rescale.variants import LATENT_CHANNELS, LATENT_STRIDE

pb_utils = importlib.import_module("triton_python_backend_utils")

Array = npt.NDArray[np.uint8]


class TritonPythonModel:
    """One of the four tasks, as the parameter ``task`` says."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and verify the bundle beside this file, and run it once: a model that is READY works.

        Parameters of the configuration: ``task``, ``weights_sha256``, ``runtime_backend``, ``threads`` (0: all that the process
        may use), ``memory`` (such as 2GB; empty: half of what is available), ``max_pixels`` (of a request, in HR pixels),
        ``container`` (of the files that encode makes).
        """
        config = json.loads(args["model_config"])
        p = {k: v["string_value"] for k, v in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        budget = parse_memory(p["memory"]) if p["memory"] else None
        self.net = rescale.load(folder, backend=p["runtime_backend"], threads=int(p["threads"]) or None, memory=budget)
        self.net.bundle.verify()
        if self.net.bundle.weights != p["weights_sha256"]:
            raise BundleError(f"{folder}: holds weights {self.net.bundle.weights[:12]}..., config.pbtxt says otherwise")
        self.max_pixels, self.container = int(p["max_pixels"]), p["container"]
        self.inputs = [t["name"] for t in config["input"]]
        tasks: dict[str, Callable[..., dict[str, Array]]] = {
            "downscale": self.downscale,
            "upscale": self.upscale,
            "encode": self.encode,
            "decode": self.decode,
        }
        self.task = tasks[p["task"]]
        self._warm(p["task"])

    def finalize(self) -> None:
        """Called when the model is unloaded."""
        self.net.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; one that fails does not touch the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            arrays = [_take(request, name) for name in self.inputs]
            out = self.task(*arrays)
        except (InputError, LrFileError) as e:
            return _error(e, pb_utils.TritonError.INVALID_ARG)
        except OutOfMemoryError as e:
            return _error(e, pb_utils.TritonError.UNAVAILABLE)
        except MemoryError:
            return _error(OutOfMemoryError("not enough memory"), pb_utils.TritonError.UNAVAILABLE)
        except RescaleError as e:
            return _error(e, pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=[_give(k, v) for k, v in out.items()])

    def downscale(self, hr: Array) -> dict[str, Array]:
        """Pictures to LR codes, and for -M latent codes."""
        self._check_pixels("hr", hr.shape, 1)
        made = [self.net.network.down(check_rgb(image)) for image in hr]
        out = {"lr": np.stack([lr for lr, _ in made])}
        codes = [code for _, code in made if code is not None]
        return out | ({"code": np.stack(codes)} if codes else {})

    def upscale(self, lr: Array, code: Array | None = None) -> dict[str, Array]:
        """LR codes, and for -M latent codes, to pictures."""
        self._check_pixels("lr", lr.shape, self.net.bundle.scale)
        n, height, width = lr.shape[:3]
        if code is not None:
            wanted = (n, LATENT_CHANNELS, -(-height // LATENT_STRIDE), -(-width // LATENT_STRIDE))
            if code.shape != wanted:
                raise InputError(f"code: shape {list(code.shape)} does not belong to lr of shape {list(lr.shape)}: {list(wanted)}")
        alpha = self.net.bundle.variant.alpha
        made = [
            self.net.network.up(
                np.ascontiguousarray(lr[i, :, :, :3]), lr[i, :, :, 3] if alpha else None, None if code is None else code[i]
            )
            for i in range(n)
        ]
        return {"hr": np.stack(made)}

    def encode(self, hr: Array) -> dict[str, Array]:
        """A picture to the bytes of its LR file."""
        self._check_pixels("hr", (1, *hr.shape), 1)
        return {"file": np.frombuffer(self.net.downscale(hr).to_bytes(self.container), np.uint8)}

    def decode(self, file: Array) -> dict[str, Array]:
        """The bytes of an LR file to its picture."""
        small = rescale.Small.from_bytes(file.tobytes(), "file", self.max_pixels)
        self._check_pixels("file", (1, small.size[1], small.size[0]), self.net.bundle.scale)
        return {"hr": self.net.upscale(small)}

    def _check_pixels(self, name: str, shape: tuple[int, ...], factor: int) -> None:
        n, height, width = shape[:3]
        if min(n, height, width) < 1:
            raise InputError(f"{name}: at least one picture of 1x1 pixels is wanted, got shape {list(shape)}")
        pixels = n * height * width * factor**2
        if pixels > self.max_pixels:
            raise InputError(f"{name}: shape {list(shape)} stands for {pixels} HR pixels, allowed are {self.max_pixels}")

    def _warm(self, task: str) -> None:
        small = np.zeros((1, self.net.bundle.scale, self.net.bundle.scale, 3), np.uint8)
        if task in ("downscale", "encode"):
            self.downscale(small)
        else:
            v = self.net.bundle.variant
            code = np.full((1, LATENT_CHANNELS, 1, 1), 128, np.uint8) if v.latent else None
            self.upscale(np.full((1, 1, 1, v.lr_channels), 128, np.uint8), code)


def _error(e: Exception, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(e), code))


# By DLPack: with numpy 2 the arrays of servers of 2024 have wrong strides, and their outputs hold no bytes.
def _take(request: Any, name: str) -> Array:
    return cast(Array, np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)))


def _give(name: str, array: Array) -> Any:
    capsule = np.require(array, requirements=["C", "W"]).__dlpack__()
    # Triton owns the array from now on, but marks the capsule in a way that numpy's destructor complains about.
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return pb_utils.Tensor.from_dlpack(name, capsule)
