"""ONNX Runtime: the default backend, on the CPU or with any of its execution providers."""

from __future__ import annotations

import importlib
import importlib.util
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.backends.watched import watched
from rescale.bundle import Bundle
from rescale.errors import BackendError, BundleError, LoadError, OutOfMemoryError
from rescale.extras import import_library
from rescale.graph_file import require_self_contained
from rescale.threads import usable_threads

ort = import_library("onnxruntime")

LOG_FATAL = 4
"""What ONNX Runtime may print: its errors come as exceptions, and its log has names of the graph's nodes as they are."""

_ALLOCATION = re.compile(r"bad_alloc|allocate memory|out of memory", re.I)
"""How ONNX Runtime words a failed allocation."""


CPU = "CPUExecutionProvider"
_PLUGINS = {"NvTensorRTRTXExecutionProvider": "onnxruntime_ep_nv_tensorrt_rtx"}
"""Providers that come as packages of their own and have to be registered."""


class OnnxRuntimeRunner:
    """One session per graph, made on first use from verified bytes and shared by all threads.

    Args:
        bundle: what to run.
        threads: CPU threads; None for all that this process may use.
        precision: which of the bundle's graphs run.
        provider: an execution provider by name; None for the CPU.
        provider_options: its options, by ONNX Runtime's names.

    Raises:
        BackendError: this build of ONNX Runtime does not have the provider.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        precision: str = "fp32",
        provider: str | None = None,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"threads: at least 1, got {threads}")
        self._bundle, self._precision = bundle, precision
        self._provider, self._options = provider or CPU, dict(provider_options or {})
        _require_provider(self._provider)
        bundle.graph("downscale", precision)
        self._threads = threads or usable_threads()
        self._lock = threading.Lock()
        self._sessions: dict[str, Any] | None = {}

    @property
    def name(self) -> str:
        device = self._provider.removesuffix("ExecutionProvider")
        return f"onnxruntime {ort.__version__} {device}, {self._precision}, {self._threads} thread(s)"

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        return self._run(graph, inputs, None)

    def run_watched(
        self, graph: str, inputs: Mapping[str, npt.NDArray[Any]], alive: Callable[[], object]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """`run`, with `alive` called about ten times a second; what it raises stops the run and is passed on."""
        options = ort.RunOptions()

        def stop() -> None:
            options.terminate = True  # looked at between the graph's nodes

        return watched(lambda: self._run(graph, inputs, options), stop, alive)

    def _run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]], options: Any) -> dict[str, npt.NDArray[np.generic]]:
        session = self._session(graph)
        names = [o.name for o in session.get_outputs()]
        try:
            return dict(zip(names, session.run(names, dict(inputs), options), strict=True))
        except Exception as e:  # ONNX Runtime raises classes of its own that share no public base
            kind = OutOfMemoryError if isinstance(e, MemoryError) or _ALLOCATION.search(str(e)) else BackendError
            raise kind(f"{self._bundle.path}: {graph} failed in {self.name}: {_said(e)}") from None

    def close(self) -> None:
        with self._lock:
            self._sessions = None

    def _session(self, graph: str) -> Any:
        with self._lock:
            if self._sessions is None:
                raise BackendError(f"{self._bundle.path}: used after close()")
            if graph not in self._sessions:
                options = ort.SessionOptions()
                options.intra_op_num_threads = self._threads
                options.log_severity_level = LOG_FATAL
                # A memory pattern is kept for every shape that ever came: 320 MB after 200 pictures of random sizes.
                options.enable_mem_pattern = False
                # Waiting threads must not burn the CPU of the program that embeds this; it costs nothing (docs/speed.md).
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                # Bytes are ONNX, never ONNX Runtime's own format, which nothing here looks into.
                options.add_session_config_entry("session.load_model_format", "ONNX")
                data = self._bundle.read_graph(graph, self._precision)
                try:
                    require_self_contained(data, str(self._bundle.path / self._bundle.graph(graph, self._precision).file))
                    session = self._open(data, options)
                except BundleError:
                    raise
                except Exception as e:  # as above
                    raise LoadError(f"{self._bundle.path}: {graph} cannot be loaded by {self.name}: {_said(e)}") from None
                # ONNX Runtime only warns where a provider cannot be used, and runs on the CPU.
                used = session.get_providers()
                if self._provider not in used:
                    raise LoadError(f"{self._provider} cannot run {graph}: ONNX Runtime would use {', '.join(used)} instead")
                self._sessions[graph] = session
            return self._sessions[graph]

    def _open(self, data: bytes, options: Any) -> Any:
        if self._provider in ort.get_available_providers():
            return ort.InferenceSession(data, options, providers=[(self._provider, self._options)])
        devices = [d for d in _devices() if d.ep_name == self._provider]
        options.add_provider_for_devices(devices, self._options)
        return ort.InferenceSession(data, options)


def _said(error: Exception) -> str:
    """Text of an error, which may hold names out of a graph, on one line."""
    from rescale.console import printable  # a program that embeds this needs no command line

    return printable(" ".join(str(error).split()))


def _devices() -> list[Any]:
    """Devices of registered providers; versions before 1.23 have none."""
    return list(ort.get_ep_devices()) if hasattr(ort, "get_ep_devices") else []


def _require_provider(name: str) -> None:
    """Check that a provider can be had, registering it where it is a package of its own.

    Raises:
        BackendError: it cannot; the message lists those that can.
    """
    module = _PLUGINS.get(name)
    if module is not None and importlib.util.find_spec(module) is not None:
        plugin = importlib.import_module(module)
        try:
            ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        except Exception as e:
            if "already" not in str(e):
                raise BackendError(f"{name}: its library cannot be loaded: {_said(e)}") from None
    available = [*ort.get_available_providers(), *(d.ep_name for d in _devices())]
    if name not in available:
        have = ", ".join(dict.fromkeys(available))
        raise BackendError(f"{name}: this ONNX Runtime {ort.__version__} does not have it, only {have}")
