"""Backends: each runs a bundle's graphs on arrays. A backend that was asked for and is missing is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rescale.bundle import Bundle
from rescale.errors import BackendError

NAMES = ("onnxruntime",)


class Runner(Protocol):
    """Runs the graphs of one bundle. Thread-safe."""

    @property
    def name(self) -> str:
        """What runs, for reports: backend, version, device."""

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Run a graph by name on named arrays; returns all outputs by name."""

    def close(self) -> None:
        """Free sessions and memory. Running afterwards is an error."""


def create(bundle: Bundle, backend: str = "auto", threads: int | None = None, precision: str = "fp32") -> Runner:
    """A runner for a bundle.

    Args:
        bundle: what to run.
        backend: ``auto`` or one of `NAMES`.
        threads: CPU threads; None for all that this process may use.
        precision: which of the bundle's graphs run.

    Raises:
        BundleError: the bundle does not hold that precision.
        BackendError: unknown, not installed, or it cannot load the graphs.
    """
    if backend == "auto":
        backend = "onnxruntime"
    if backend == "onnxruntime":
        from rescale.backends.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(bundle, threads, precision)
    raise BackendError(f"unknown backend {backend!r}: choose auto or one of {', '.join(NAMES)}")
