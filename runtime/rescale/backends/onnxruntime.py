"""ONNX Runtime on the CPU: the default backend."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from rescale.bundle import Bundle
from rescale.errors import BackendError, OutOfMemoryError
from rescale.threads import usable_threads

_ALLOCATION = re.compile(r"bad_alloc|allocate memory|out of memory", re.I)
"""How ONNX Runtime words a failed allocation."""


class OnnxRuntimeRunner:
    """One session per graph, made on first use from verified bytes and shared by all threads."""

    def __init__(self, bundle: Bundle, threads: int | None = None, precision: str = "fp32") -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"threads: at least 1, got {threads}")
        self._bundle, self._precision = bundle, precision
        bundle.graph("downscale", precision)
        self._threads = threads or usable_threads()
        self._lock = threading.Lock()
        self._sessions: dict[str, ort.InferenceSession] | None = {}

    @property
    def name(self) -> str:
        return f"onnxruntime {ort.__version__} CPU, {self._precision}, {self._threads} thread(s)"

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        session = self._session(graph)
        names = [o.name for o in session.get_outputs()]
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as e:  # ONNX Runtime raises classes of its own that share no public base
            kind = OutOfMemoryError if isinstance(e, MemoryError) or _ALLOCATION.search(str(e)) else BackendError
            raise kind(f"{self._bundle.path}: {graph} failed in {self.name}: {e}") from None

    def close(self) -> None:
        with self._lock:
            self._sessions = None

    def _session(self, graph: str) -> ort.InferenceSession:
        with self._lock:
            if self._sessions is None:
                raise BackendError(f"{self._bundle.path}: used after close()")
            if graph not in self._sessions:
                options = ort.SessionOptions()
                options.intra_op_num_threads = self._threads
                options.log_severity_level = 3
                # A memory pattern is kept for every shape that ever came: 320 MB after 200 pictures of random sizes.
                options.enable_mem_pattern = False
                data = self._bundle.read_graph(graph, self._precision)
                try:
                    self._sessions[graph] = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
                except Exception as e:  # as above
                    raise BackendError(f"{self._bundle.path}: {graph} cannot be loaded by {self.name}: {e}") from None
            return self._sessions[graph]
