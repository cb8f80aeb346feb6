"""What only TensorRT for RTX has: a verdict on an engine before it is loaded, and a cache of the kernels that it compiled.

An RTX engine holds no kernels: the library compiles them on the user's GPU. The runtime cache keeps them for the next start.
"""

from __future__ import annotations

import re
from typing import Any

from rescale.cuda import optional
from rescale.cuda.notes import Notes
from rescale.engine_file import ENGINE_SUFFIX, EngineInfo
from rescale.errors import BackendError, EngineError, OutOfMemoryError, OutputError
from rescale.files import atomic_write, read_regular
from rescale.flavour import Flavour

MAX_CACHE_BYTES = 100 << 20
LOCK_SECONDS = 10.0
STRATEGIES = ("lazy", "eager", "none")
"""Kernels for a new shape: compiled in the background, compiled before the first run, or the general ones only."""

_REASONS = {
    "VERSION_MISMATCH": "built by another version of the library: build it again with rescale-engine build",
    "UNSUPPORTED_CC": "this GPU's compute capability is not among those that it was built for",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old for it: update the driver",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "not enough GPU memory for it",
    "MALFORMED_ENGINE": "not an engine of this library",
    "CUDA_ERROR": "CUDA failed while it was looked at",
}


def check_validity(flavour: Flavour, runtime: Any, info: EngineInfo, data: bytes, notes: Notes) -> None:
    """Ask the library whether an engine can run here. Only with a device: without one every engine is invalid.

    Raises:
        EngineError: it cannot, with the reasons.
        OutOfMemoryError: it could, with more memory.
    """
    verdict, bits = runtime.get_engine_validity(data)
    flags = flavour.module.EngineInvalidityDiagnostics
    reasons = [text for name, text in _REASONS.items() if int(bits) & int(getattr(flags, name))]
    if verdict == flavour.module.EngineValidity.INVALID:
        message = f"{info.path}: {flavour.title} refuses it: {'; '.join(reasons) or 'no reason given'}"
        if int(bits) == int(flags.INSUFFICIENT_GPU_MEMORY):
            raise OutOfMemoryError(message)
        raise EngineError(message)
    if verdict == flavour.module.EngineValidity.SUBOPTIMAL:
        notes.add(f"{info.path.name}: {flavour.title} calls it suboptimal here: {'; '.join(reasons) or 'no reason given'}")


def configure(flavour: Flavour, engine: Any, strategy: str, cuda_graphs: bool) -> Any:
    """A runtime configuration for an engine's contexts.

    Args:
        flavour: TensorRT for RTX.
        engine: what was loaded.
        strategy: one of `STRATEGIES`.
        cuda_graphs: the library captures and replays whole graphs by itself, with dynamic shapes as well.
    """
    module = flavour.module
    config = engine.create_runtime_config()
    kinds = module.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = getattr(kinds, strategy.upper())
    graphs = module.CudaGraphStrategy
    config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if cuda_graphs else graphs.DISABLED
    return config


class RuntimeCache:
    """The cache file of one engine on one kind of GPU. What cannot be used or kept is said in `notes`; nothing fails for it."""

    def __init__(self, config: Any, info: EngineInfo, device: str, notes: Notes) -> None:
        """Read the file if there is one, and give the cache to a runtime configuration."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-").lower()
        self.path = info.path.with_name(f"{info.path.name.removesuffix(ENGINE_SUFFIX)}.{slug}.cache")
        self._notes = notes
        self._cache = config.create_runtime_cache()
        data = self._read()
        self._refused = b""
        # The library checks version, GPU and driver by itself.
        if data and not self._cache.deserialize(data):
            self._refused = data
            notes.add(f"{self.path}: of another GPU, driver or version, or damaged: kernels are compiled again")
        if not config.set_runtime_cache(self._cache):
            notes.add(f"{self.path}: the library takes no runtime cache")

    def save(self) -> None:
        """Write what was compiled, unless another process has written more that is of use here."""
        memory = self._cache.serialize()
        data = b"" if memory is None else bytes(memory)
        if not data:
            return
        if len(data) > MAX_CACHE_BYTES:
            self._notes.add(f"{self.path}: not written: {len(data) >> 20} MB, at most {MAX_CACHE_BYTES >> 20} MB are kept")
            return
        try:
            filelock = optional("filelock", "filelock")
            with filelock.FileLock(str(self.path.with_name(f".{self.path.name}.lock")), timeout=LOCK_SECONDS):
                there = self._read()
                if len(there) < len(data) or there == self._refused:
                    atomic_write(self.path, data)
        except (OutputError, OSError, BackendError) as e:  # filelock's Timeout is an OSError
            self._notes.add(f"{self.path}: not written: {e}")

    def _read(self) -> bytes:
        try:
            return read_regular(self.path, MAX_CACHE_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as e:
            self._notes.add(f"{self.path}: not read: {e.strerror}")
            return b""
