"""OpenVINO on the CPU, in float32 or with bfloat16 subnets.

``mixed`` runs the float32 graphs with the subnets' convolutions in bfloat16: their sums are float32, and everything that is not
inside a subnet stays float32. So do the convolutions of a subnet's input, whose 24 bits matter (docs/speed.md has what each
costs). OpenVINO's own precision hint would also round the coupling stream, which costs more than a dB; nodes are therefore
marked, and what the compiled model really does is checked.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import queue
import re
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.backends.watched import BEAT
from rescale.bundle import Bundle
from rescale.errors import BackendError, BundleError, LoadError, OutOfMemoryError
from rescale.extras import import_library
from rescale.graph_file import require_self_contained
from rescale.threads import usable_threads

_ALLOCATION = re.compile(r"bad_alloc|allocate|out of memory", re.I)
_IN_SUBNET = re.compile(r"\.block\d+\.(F|G|H|GH)\.")
_OF_INPUT = re.compile(r"\.conv\d+\.0(/|$)")
"""Convolutions of a subnet's input: the first part of a sum of convolutions, see rescale_export.graphs."""

_MOVES = {"Reorder", "Convert", "Const", "Input", "Output", "Transpose", "Reshape"}
"""Kinds of node that compute nothing; 8-bit inputs pass through bfloat16 unchanged."""

PRECISIONS = ("fp32", "mixed")

_INSTEAD = "--backend onnxruntime does without it; rescale doctor says more"


_home: int | None = None
"""The process in which OpenVINO first compiled a model, and made threads that no forked process has."""


@functools.cache
def _core(module: Any) -> Any:
    """OpenVINO's plugin registry, one for the life of the process.

    Its CPU plugin gives the thread that first uses it another signal stack, and frees that stack with the last registry,
    on whatever thread that happens; the next signal (Ctrl-C) that the first thread gets would then end the process with
    SIGSEGV (seen in 2026.4; docs/speed.md).
    """
    return module.Core()


@dataclass
class _Compiled:
    """A compiled model with its idle requests. One thread at a time runs it: it has one stream, which takes turns anyway.

    A run that is cancelled leaves it with the shapes of some nodes changed and of others not (seen in 2026.4): it is `spoilt`,
    and nobody may run it again.
    """

    model: Any
    idle: queue.LifoQueue[Any] = field(default_factory=queue.LifoQueue)
    turn: threading.Lock = field(default_factory=threading.Lock)
    spoilt: bool = False


class OpenVinoRunner:
    """One compiled model per graph, made on first use from verified bytes; requests are shared by all threads.

    Args:
        bundle: what to run.
        threads: CPU threads; None for all that this process may use.
        precision: ``fp32``, or ``mixed`` for bfloat16 subnets.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: a precision that is not offered, a CPU without bfloat16, or an installation that does not work.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, precision: str = "fp32") -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"threads: at least 1, got {threads}")
        if precision not in PRECISIONS:
            raise BackendError(f"openvino runs {' and '.join(PRECISIONS)}, not {precision!r}")
        self._ov = import_library("openvino", "openvino", _INSTEAD)
        try:
            self._core = _core(self._ov)
            capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except Exception as e:  # where a plugin cannot be loaded it raises classes of several kinds
            raise BackendError(f"openvino: finds no CPU to run on: {e}; {_INSTEAD}") from None
        if precision == "mixed" and "BF16" not in capabilities:
            raise BackendError("openvino: this CPU has no bfloat16 instructions (AVX512-BF16 or AMX); use --precision fp32")
        self._bundle, self._precision = bundle, precision
        self._threads = threads or usable_threads()
        self._lock = threading.Lock()
        self._models: dict[str, _Compiled] | None = {}

    @property
    def name(self) -> str:
        version = self._ov.get_version().split("-")[0]
        kind = "mixed (bfloat16)" if self._precision == "mixed" else "fp32"
        return f"openvino {version} CPU, {kind}, {self._threads} thread(s)"

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        return self._run(graph, inputs, None)

    def run_watched(
        self, graph: str, inputs: Mapping[str, npt.NDArray[Any]], alive: Callable[[], object]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """`run`, with `alive` called about ten times a second; what it raises stops the run and is passed on."""
        return self._run(graph, inputs, alive)

    def _run(
        self, graph: str, inputs: Mapping[str, npt.NDArray[Any]], alive: Callable[[], object] | None
    ) -> dict[str, npt.NDArray[np.generic]]:
        stopped: BaseException | None = None
        with self._turn(graph, alive) as compiled:
            try:
                try:
                    request = compiled.idle.get_nowait()
                except queue.Empty:
                    request = compiled.model.create_infer_request()
                request.start_async({name: np.ascontiguousarray(value) for name, value in inputs.items()}, share_inputs=True)
                try:
                    while alive is not None and not request.wait_for(round(1000 * BEAT)):
                        alive()
                except BaseException as e:
                    stopped, compiled.spoilt = e, True
                    request.cancel()
                request.wait()
                # A request owns the memory of its outputs and is used again.
                out = {output.get_any_name(): np.array(request.results[output]) for output in compiled.model.outputs}
                compiled.idle.put(request)
            except Exception as e:
                if stopped is None:
                    kind = OutOfMemoryError if isinstance(e, MemoryError) or _ALLOCATION.search(str(e)) else BackendError
                    raise kind(f"{self._bundle.path}: {graph} failed in {self.name}: {e}") from None
        if stopped is not None:
            raise stopped
        return out

    @contextlib.contextmanager
    def _turn(self, graph: str, alive: Callable[[], object] | None) -> Iterator[_Compiled]:
        """A graph's model, which nobody else runs meanwhile."""
        while True:
            compiled = self._model(graph)
            while not compiled.turn.acquire(timeout=-1 if alive is None else BEAT):
                if alive is not None:
                    alive()
            if not compiled.spoilt:
                break
            compiled.turn.release()
        try:
            yield compiled
        finally:
            compiled.turn.release()

    def close(self) -> None:
        with self._lock:
            self._models = None

    def _model(self, graph: str) -> _Compiled:
        global _home
        if _home not in (None, os.getpid()):  # it would wait for its threads for ever
            cure = "load the bundle in the new process only, or start it with the spawn method of multiprocessing"
            raise BackendError(f"openvino: this process was forked from one that had used it already; {cure}; {_INSTEAD}")
        _home = os.getpid()
        with self._lock:
            if self._models is None:
                raise BackendError(f"{self._bundle.path}: used after close()")
            if graph not in self._models or self._models[graph].spoilt:
                data = self._bundle.read_graph(graph)
                try:
                    require_self_contained(data, str(self._bundle.path / self._bundle.graph(graph).file))
                    self._models[graph] = _Compiled(self._compile(graph, data))
                except (BackendError, BundleError):
                    raise
                except Exception as e:
                    raise LoadError(f"{self._bundle.path}: {graph} cannot be loaded by {self.name}: {e}") from None
            return self._models[graph]

    def _compile(self, graph: str, data: bytes) -> Any:
        options = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
            # A cache for every shape that ever came: 400 MB after 300 pictures of random sizes, and no faster.
            "CPU_RUNTIME_CACHE_CAPACITY": 0,
        }
        model = self._core.read_model(data)  # from memory: a service may have no folder that it can write to
        # The -M autoencoder has no coupling stream beside it and is small.
        if self._precision == "fp32" or graph in ("encoder", "decoder"):
            return self._core.compile_model(model, "CPU", options)
        # Constants are folded first: a node that takes the place of a marked one would not be marked.
        importlib.import_module("openvino._offline_transformations").apply_moc_transformations(model, cf=False)
        with tempfile.TemporaryDirectory() as folder:
            marked = Path(folder) / "marked.xml"
            self._ov.serialize(model, str(marked), str(marked.with_suffix(".bin")))
            tree = ET.parse(marked)
            _mark(tree)
            tree.write(marked)
            options["INFERENCE_PRECISION_HINT"] = "bf16"
            compiled = self._core.compile_model(self._core.read_model(marked), "CPU", options)
        _check(compiled, f"{self._bundle.path}: {graph} in {self.name}")
        return compiled


def _mark(tree: ET.ElementTree[Any]) -> None:
    """Mark every node that must keep float32, in OpenVINO's serialised form; there is no other way to do so from Python."""
    layers = tree.getroot().find("layers")
    for layer in layers if layers is not None else ():
        kind, name = layer.get("type", ""), layer.get("name", "")
        if kind in ("Parameter", "Result", "Const"):
            continue
        half = bool(_IN_SUBNET.search(name)) and (kind == "PReLU" or (kind == "Convolution" and not _OF_INPUT.search(name)))
        if not half:
            info = layer.find("rt_info")
            if info is None:
                info = ET.SubElement(layer, "rt_info")
            ET.SubElement(info, "attribute", name="DisablePrecisionConversion", version="0", value="dynamic:f16")


def _check(compiled: Any, what: str) -> None:
    """Refuse a compiled model that rounds the coupling stream, or that has no bfloat16 at all.

    Raises:
        LoadError: so it is; this version of OpenVINO treats the marks in another way.
    """
    half = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(value.value) for key, value in node.get_rt_info().items()}
        kind, name = info.get("layerType", ""), node.get_friendly_name()
        if info.get("runtimePrecision") != "bf16" or kind in _MOVES:
            continue
        if kind != "Convolution" or not _IN_SUBNET.search(name) or _OF_INPUT.search(name):
            raise LoadError(f"{what}: {name} ({kind}) would run in bfloat16, outside the subnets; use --precision fp32")
        half += 1
    if not half:
        raise LoadError(f"{what}: no convolution would run in bfloat16; use --precision fp32")
