"""Backends: each runs a bundle's graphs on arrays. A backend that was asked for and is missing is an error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rescale.bundle import Bundle
from rescale.errors import BackendError

NAMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
HALF = "half"
"""A measuring instrument that `create` knows too; see `rescale.half`."""


class Runner(Protocol):
    """Runs the graphs of one bundle. Thread-safe."""

    @property
    def name(self) -> str:
        """What runs, for reports: backend, version, device."""

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Run a graph by name on named arrays; returns all outputs by name."""

    def close(self) -> None:
        """Free sessions and memory. Running afterwards is an error."""


def run_each(
    runner: Runner, graph: str, items: Iterable[Mapping[str, npt.NDArray[Any]]], alive: Callable[[], object] | None = None
) -> Generator[Mapping[str, npt.NDArray[np.generic]]]:
    """Run a graph on one item after another; a backend with a ``run_many`` copies the next while it computes.

    Args:
        runner, graph: what runs.
        items: inputs by name.
        alive: called now and then while the graph runs, in this thread, where the backend has a ``run_watched``; what it raises
            stops the run.
    """
    watched = None if alive is None else getattr(runner, "run_watched", None)
    if watched is not None:
        return (watched(graph, item, alive) for item in items)
    many = getattr(runner, "run_many", None)
    return many(graph, items) if many is not None else (runner.run(graph, item) for item in items)


MAX_THREADS = 4096
"""More than any machine runs; the backends fail in ways of their own on absurd numbers."""


def auto_backend(precision: str = "fp32") -> str:
    """What ``auto`` is on this machine.

    OpenVINO is the faster one (docs/speed.md), and an extra: who installed it wants it.
    """
    return "openvino" if importlib.util.find_spec("openvino") and precision in ("fp32", "mixed") else "onnxruntime"


def check_name(backend: str) -> None:
    """Check what names a backend, for who would learn of it after long work only.

    Args:
        backend: as for `create`.

    Raises:
        BackendError: unknown.
    """
    if backend.partition(":")[0] not in ("auto", HALF, *NAMES):
        raise BackendError(f"unknown backend {backend!r}: choose auto or one of {', '.join(NAMES)}")


def create(
    bundle: Bundle,
    backend: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
) -> Runner:
    """A runner for a bundle.

    Args:
        bundle: what to run.
        backend: ``auto`` or one of `NAMES`; ``onnxruntime:PROVIDER,KEY=VALUE,...`` names an execution provider with its options.
        threads: CPU threads; None for all that this process may use.
        precision: which of the bundle's graphs run; None for ``mixed`` on TensorRT, where it is what engines are built in, and
            ``fp32`` elsewhere.
        provider: an execution provider of ONNX Runtime by name; ``auto`` is ONNX Runtime then.
        provider_options: its options.

    Raises:
        BundleError: the bundle does not hold that precision.
        MissingExtraError: not installed.
        BackendError: unknown, installed but broken, or it cannot load the graphs; fewer than 1 or more than `MAX_THREADS` threads;
            options of no provider.
    """
    if threads is not None and threads > MAX_THREADS:
        raise BackendError(f"threads: at most {MAX_THREADS}, got {threads}")
    check_name(backend)
    backend, colon, rest = backend.partition(":")
    if colon:
        provider, *pairs = rest.split(",")
        options = dict(pair.partition("=")[::2] for pair in pairs)
        if not provider or not all(options) or not all("=" in pair for pair in pairs):
            raise BackendError(f"backend {backend}:{rest}: wanted is {backend}:PROVIDER or {backend}:PROVIDER,KEY=VALUE")
        provider_options = options | dict(provider_options or {})
    if precision is None:
        precision = "mixed" if backend in ("tensorrt", "tensorrt-rtx") else "fp32"
    if provider is not None:
        if backend not in ("auto", "onnxruntime"):
            raise BackendError(f"provider {provider}: only the onnxruntime backend has providers, not {backend}")
        backend = "onnxruntime"
    if provider_options and provider is None:
        raise BackendError("provider_options are for an execution provider: name it with provider=")
    if backend == "auto":
        backend = auto_backend(precision)
    if backend == "onnxruntime":
        from rescale.backends.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(bundle, threads, precision, provider, provider_options)
    if backend == "openvino":
        from rescale.backends.openvino import OpenVinoRunner

        return OpenVinoRunner(bundle, threads, precision)
    if backend in ("tensorrt", "tensorrt-rtx"):
        from rescale.backends.tensorrt import TensorRTRunner

        return TensorRTRunner(bundle, backend, precision)
    from rescale.half import HalfRunner

    return HalfRunner(bundle, precision, threads)
