"""What a bundle's speed is compared with: PyTorch eager, torch.compile, and a plain ONNX export on ONNX Runtime.

All take and give the arrays that `rescale.network.Network` takes and gives, whole pictures at once. PyTorch is imported by what
needs it, so that a process that runs the plain export holds ONNX Runtime only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from rescale.codes import ALPHA_NEUTRAL
from rescale.errors import BackendError
from rescale.extras import import_library
from rescale.variants import Variant, variant

if TYPE_CHECKING:
    from rescale_train.models import RescalingNet

Array = npt.NDArray[np.uint8]
Arrays = tuple[Array, ...]
NAMES = ("eager", "compiled", "naive")
"""PyTorch eager; the same through torch.compile; the plain export on ONNX Runtime."""

TRACED = ("compiled", "naive")
"""Peers that cannot take a gradient within the network, as an encoder's corrections do."""

OPTIONAL = ("compiled",)
"""Peers that a machine may lack."""

COMPILERS = ("g++", "c++", "clang++")
"""What torch.compile looks for where ``CXX`` names no C++ compiler."""


class Directions(Protocol):
    """Both directions on arrays: `rescale.network.Network`, or a `Peer`."""

    def down(self, image: Array) -> tuple[Array, Array | None]:
        """As `rescale.network.Network.down`."""

    def up(self, rgb: Array, alpha: Array | None, latent: Array | None) -> Array:
        """As `rescale.network.Network.up`."""


class Peer:
    """Arrays to arrays by two functions on bytes.

    Args:
        v: which network.
        scale: 2 or 4.
        down: ``hr`` (1, H, W, 3) -> ``lr`` (1, h, w, 3 or 4) [, ``code`` (1, 4, ceil(h/4), ceil(w/4)) for -M].
        up: ``lr`` [, ``code``] -> ``hr``.
    """

    def __init__(self, v: Variant, scale: int, down: Callable[[Arrays], Arrays], up: Callable[[Arrays], Arrays]) -> None:
        self._variant, self._scale, self._down, self._up = v, scale, down, up

    def watch(self, wrap: Callable[[Callable[[Arrays], Arrays]], Callable[[Arrays], Arrays]]) -> None:
        """Put something around both functions, such as a stopwatch."""
        self._down, self._up = wrap(self._down), wrap(self._up)

    def down(self, image: Array) -> tuple[Array, Array | None]:
        """As `rescale.network.Network.down`."""
        bottom, right = (-n % self._scale for n in image.shape[:2])
        padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else image
        out = self._down((np.ascontiguousarray(padded)[None],))
        return out[0][0], out[1][0] if self._variant.latent else None

    def up(self, rgb: Array, alpha: Array | None, latent: Array | None) -> Array:
        """As `rescale.network.Network.up`; for -M a latent is wanted."""
        lr = rgb
        if self._variant.alpha:
            lr = np.dstack([rgb, np.full(rgb.shape[:2], ALPHA_NEUTRAL, np.uint8) if alpha is None else alpha])
        inputs: Arrays = (np.ascontiguousarray(lr)[None],)
        if self._variant.latent:
            if latent is None:
                raise BackendError(f"{self._variant.name}: peers need the latent code")
            inputs += (latent[None],)
        hr: Array = self._up(inputs)[0][0]
        return hr


def eager(net: RescalingNet, threads: int) -> Peer:
    """`net.downscale` and `net.upscale` under `torch.no_grad`, in PyTorch's default memory format."""
    return _torch(net, threads, lambda module: module)


def compiled(net: RescalingNet, threads: int, cache: Path) -> Peer:
    """As `eager`, through `torch.compile` with its defaults; a first run of each size compiles.

    Args:
        net: in evaluation mode.
        threads: CPU threads.
        cache: folder for what is compiled.

    Raises:
        BackendError: there is no C++ compiler, or it cannot build what PyTorch writes.
    """
    wanted = [name for name in (os.environ.get("CXX"),) if name] or COMPILERS
    if os.name == "posix" and not any(shutil.which(name) for name in wanted):
        raise BackendError(
            f"torch.compile needs a C++ compiler, and there is no {' or '.join(wanted)}: install one, or name it in CXX"
        )
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    import torch

    try:
        torch.compile(_probe)(torch.ones(8))
    except Exception as e:  # the compiler's, the linker's and PyTorch's own share no base
        said = str(e).strip().splitlines() or [type(e).__name__]
        raise BackendError(f"torch.compile does not work here: {said[0]}") from None
    return _torch(net, threads, torch.compile)


def _probe(x: Any) -> Any:
    return x * 2 + 1


def _torch(net: RescalingNet, threads: int, wrap: Callable[[Any], Any]) -> Peer:
    import torch

    from rescale_bench.peers_torch import BytesDown, BytesUp

    torch.set_num_threads(threads)

    def function(plain: torch.nn.Module) -> Callable[[Arrays], Arrays]:
        module = wrap(plain)

        def call(inputs: Arrays) -> Arrays:
            with torch.no_grad():
                found = module(*(torch.from_numpy(a) for a in inputs))
            return tuple(t.numpy() for t in (found if isinstance(found, tuple) else (found,)))

        return call

    return Peer(net.config.variant, net.config.scale, function(BytesDown(net)), function(BytesUp(net)))


def naive(folder: Path, model: str, scale: int, threads: int) -> Peer:
    """What `rescale_bench.peers_torch.export_naive` wrote, on ONNX Runtime as it comes; sessions are made on first use.

    Raises:
        BackendError: at the first run, if ONNX Runtime cannot load the graph.
    """
    ort = import_library("onnxruntime")

    def function(name: str) -> Callable[[Arrays], Arrays]:
        made: list[Any] = []

        def call(inputs: Arrays) -> Arrays:
            if not made:
                options = ort.SessionOptions()
                options.intra_op_num_threads = threads
                options.log_severity_level = 3
                path = folder / naive_file(name)
                try:
                    made.append(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
                except Exception as e:  # ONNX Runtime raises classes of its own that share no public base
                    raise BackendError(f"{path}: cannot be loaded: {e}") from None
            names = [i.name for i in made[0].get_inputs()]
            return tuple(made[0].run(None, dict(zip(names, inputs, strict=True))))

        return call

    return Peer(variant(model), scale, function("downscale"), function("upscale"))


def naive_file(graph: str) -> str:
    """File name of a plain export."""
    return f"naive.{graph}.onnx"
