"""TensorRT and TensorRT for RTX: engines that `rescale-engine build` made, on a GPU.

docs/gpu.md shows how to embed it. Precision is in the engine; nothing is chosen here.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale import flavour as libraries
from rescale.bundle import Bundle
from rescale.contract import GRADIENT, Tensor, graph_names
from rescale.cuda import CudaApi, open_api
from rescale.cuda.arrays import View, view
from rescale.cuda.engine import LoadedEngine, Shape, told
from rescale.cuda.executor import Executor, Ticket
from rescale.cuda.notes import Notes
from rescale.cuda.rtx import STRATEGIES
from rescale.engine_file import EngineInfo, build_command, engines_folder, find_engines, read_engine
from rescale.errors import BackendError, EngineError, OutOfMemoryError, RescaleError
from rescale.variants import LATENT_STRIDE

MAX_CHOICES = 1024
"""Sets of shapes whose engine is remembered."""

Arrays = Mapping[str, npt.NDArray[Any]]
Outputs = dict[str, npt.NDArray[np.generic]]


class TensorRTRunner:
    """Runs a bundle's graphs by engines. Thread-safe; threads share the device's streams and memory.

    Args:
        bundle: whose graphs.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        precision: of the engines.
        engines: folder with the engines; None for the bundle's folder in the cache.
        only: files of that folder that may run, by name; None for all.
        cuda: ``cuda-python``, ``pycuda`` or ``torch``, or an opened `CudaApi`, which stays the caller's to close.
        device: ordinal of the GPU.
        slots: runs under way at once: 2 copy while the device computes.
        cuda_graphs: replay captured graphs for shapes that come again. TensorRT for RTX does that by itself.
        strategy: of `rescale.cuda.rtx.STRATEGIES`; TensorRT for RTX only.
        runtime_cache: keep compiled kernels beside the engine; TensorRT for RTX only.

    Raises:
        BundleError: the bundle does not hold that precision.
        MissingExtraError: a package is not installed.
        BackendError: no device, or the library cannot be loaded.
        EngineError: no engine of this bundle, backend and precision is there, or none that may run.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "tensorrt",
        precision: str = "mixed",
        *,
        engines: str | os.PathLike[str] | None = None,
        only: Iterable[str | os.PathLike[str]] | None = None,
        cuda: str | CudaApi = "cuda-python",
        device: int = 0,
        slots: int = 2,
        cuda_graphs: bool = False,
        strategy: str = "lazy",
        runtime_cache: bool = True,
    ) -> None:
        if slots < 1:
            raise BackendError(f"slots: at least 1, got {slots}")
        if strategy not in STRATEGIES:
            raise BackendError(f"unknown strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
        bundle.graph("downscale", precision)
        self._bundle, self._backend, self._precision = bundle, backend, precision
        self._named, self._folder = engines, engines_folder(bundle, engines).absolute()  # read later, maybe from another folder
        self._only = None if only is None else frozenset(Path(p).name for p in only)
        self._options: dict[str, Any] = {"strategy": strategy, "cuda_graphs": cuda_graphs, "runtime_cache": runtime_cache}
        self._flavour = libraries.load(backend)
        names = graph_names(bundle.variant)
        if not any(self._found(g) for g in names):
            raise EngineError(f"{self._folder}: no {precision} engine of {bundle.path} for {backend}; {self._build('hd')}")
        self._notes = Notes()
        self._api = open_api(cuda, device) if isinstance(cuda, str) else cuda
        self._loading = threading.Lock()
        self._engines: dict[Path, LoadedEngine] = {}
        self._chosen: dict[Any, LoadedEngine] = {}
        self._parts: dict[Any, int] = {}
        with self._api.current():
            self._device = libraries.device().name
            with told(self._flavour, backend):
                self._runtime = self._flavour.module.Runtime(libraries.logger(self._flavour))
        self._slots = slots
        self._executor = Executor(self._api, slots, self._notes)
        # Also for who forgets: device memory is not this process's to waste. At the interpreter's end CUDA may be gone.
        self._finalizer = weakref.finalize(self, _close, self._executor, self._engines, None if self._api is cuda else self._api)
        self._finalizer.atexit = False

    @property
    def name(self) -> str:
        return f"{self._flavour.title}, {self._precision}, {self._device}, {self._api.name}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not go as asked: captures that failed, caches that were refused, engines that were passed over."""
        return self._notes.lines()

    def run(self, graph: str, inputs: Arrays) -> Outputs:
        """Run a graph on arrays of this process; a batch larger than any engine's runs in parts, overlapping.

        Raises:
            EngineError: no engine covers the size; the message holds the command that builds one.
            OutOfMemoryError: the device or the host is short of memory.
            BackendError: wrong inputs, closed, or the device failed.
        """
        arrays, shapes = self._check(graph, inputs)
        batch = next(iter(shapes.values()))[0]
        part = self._part(graph, shapes, batch)
        pieces = [{n: a[i : i + part] for n, a in arrays.items()} for i in range(0, batch, part)]
        found = list(self._pipeline(graph, pieces))
        return found[0] if len(found) == 1 else {name: np.concatenate([f[name] for f in found]) for name in found[0]}

    def run_many(self, graph: str, items: Iterable[Arrays]) -> Iterator[Outputs]:
        """Run a graph on one item after another: the next is copied in while the device computes. Results come in order.

        Raises:
            as `run`; items before the failing one were yielded.
        """
        return self._pipeline(graph, (self._check(graph, item)[0] for item in items))

    def run_device(
        self, graph: str, inputs: Mapping[str, Any], stream: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run a graph on arrays of the device, in the order of a stream. Returns at once: the device may still work.

        Args:
            graph: by name.
            inputs: objects with ``__dlpack__`` or ``__cuda_array_interface__``, C-contiguous, aligned to 256 bytes. They must
                stay alive until the stream has passed the run.
            stream: the caller's: a handle, an object with ``__cuda_stream__``, a PyTorch, CuPy or PyCUDA stream; None for
                PyTorch's current stream with ``cuda="torch"``, else for the legacy default stream.
            outputs: arrays to write to, by name; those that are missing are allocated.

        Returns:
            All outputs by name: the given arrays, and `rescale.cuda.arrays.DeviceArray` for the others.

        Raises:
            as `run`; a batch larger than an engine's is refused.
        """
        entry = self._bundle.graph(graph, self._precision)
        self._names(graph, inputs, entry.inputs)
        given = dict(outputs or {})
        unknown = set(given) - {t.name for t in entry.outputs}
        if unknown:
            raise BackendError(f"{graph}: no output {sorted(unknown)[0]!r}, only {', '.join(t.name for t in entry.outputs)}")
        with self._executor.entered():
            order = self._api.caller_stream(stream)
            views = {n: view(self._api, v, f"{graph}: {n}", order) for n, v in inputs.items()}
            targets = {n: view(self._api, v, f"{graph}: {n}", order) for n, v in given.items()}
            self._interface(graph, views)
            for name, target in targets.items():
                if target.readonly:
                    raise BackendError(f"{graph}: {name} is read-only")
            shapes = {n: v.shape for n, v in views.items()}
            engine = self._engine(graph, shapes)
            with self._telling(graph, shapes, engine):
                made = self._executor.run_device(engine, views, order, targets)
        return {t.name: given.get(t.name, made.get(t.name)) for t in entry.outputs}

    def close(self) -> None:
        """Wait for what runs, keep the runtime caches, and free everything. Arrays that `run_device` returned stay valid."""
        self._finalizer()

    def _pipeline(self, graph: str, items: Iterable[Arrays]) -> Iterator[Outputs]:
        window: deque[tuple[Ticket, dict[str, Shape], LoadedEngine]] = deque()
        try:
            for item in items:
                shapes = {n: a.shape for n, a in item.items()}
                engine = self._engine(graph, shapes)
                ticket = None
                while ticket is None:
                    with self._telling(graph, shapes, engine):
                        # Who has a slot does not wait for a second one: another thread may do the same.
                        ticket = self._executor.submit(engine, item, wait=not window)
                    if ticket is None:
                        yield self._collect(graph, *window.popleft())
                window.append((ticket, shapes, engine))
                if len(window) >= self._slots:
                    yield self._collect(graph, *window.popleft())
            while window:
                yield self._collect(graph, *window.popleft())
        finally:
            for ticket, _, _ in window:
                self._executor.abandon(ticket)

    def _collect(self, graph: str, ticket: Ticket, shapes: dict[str, Shape], engine: LoadedEngine) -> Outputs:
        with self._telling(graph, shapes, engine):
            return self._executor.collect(ticket)

    @contextlib.contextmanager
    def _telling(self, graph: str, shapes: Mapping[str, Shape], engine: LoadedEngine) -> Iterator[None]:
        """Errors name the graph, the shapes and the engine."""
        try:
            yield
        except EngineError:
            raise
        except BackendError as e:
            what = ", ".join(f"{n} {s}" for n, s in shapes.items())
            kind = OutOfMemoryError if isinstance(e, OutOfMemoryError) else BackendError
            raise kind(f"{engine.info.path}: {graph} of {self._bundle.path} at {what}: {e}") from None

    def _check(self, graph: str, inputs: Arrays) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Shape]]:
        """Inputs as C-contiguous arrays, and their shapes."""
        if graph == GRADIENT:
            raise BackendError(f"{self.name}: there are no engines of the gradient graph; refine on onnxruntime or openvino")
        self._names(graph, inputs, self._bundle.graph(graph, self._precision).inputs)
        arrays = {n: np.asarray(a) for n, a in inputs.items()}
        self._interface(graph, arrays)
        return {n: np.ascontiguousarray(a) for n, a in arrays.items()}, {n: a.shape for n, a in arrays.items()}

    def _names(self, graph: str, inputs: Mapping[str, Any], tensors: tuple[Tensor, ...]) -> None:
        if set(inputs) != {t.name for t in tensors}:
            raise BackendError(f"{graph}: inputs {sorted(inputs)} given, wanted are {sorted(t.name for t in tensors)}")

    def _interface(self, graph: str, arrays: Mapping[str, npt.NDArray[Any]] | Mapping[str, View]) -> None:
        """Raises BackendError where dtypes, axes, or sizes that have to be equal do not fit the graph."""
        sizes: dict[str, int] = {}
        for t in self._bundle.graph(graph, self._precision).inputs:
            dtype, shape = arrays[t.name].dtype, arrays[t.name].shape
            fits = len(shape) == len(t.axes) and dtype == np.dtype(t.dtype)
            for axis, n in zip(t.axes, shape, strict=False):
                fits = fits and n >= 1 and n == (axis if isinstance(axis, int) else sizes.setdefault(axis, n))
            if not fits:
                axes = ", ".join(map(str, t.axes))
                raise BackendError(f"{graph}: {t.name} is {dtype} {tuple(shape)}, wanted is {t.dtype} ({axes})")

    def _part(self, graph: str, shapes: Mapping[str, Shape], batch: int) -> int:
        """Pictures a run: all, or as many as an engine takes."""
        key = (graph, *shapes.items())
        if key not in self._parts:
            _remember(self._parts, key, self._find_part(graph, shapes, batch))
        return self._parts[key]

    def _find_part(self, graph: str, shapes: Mapping[str, Shape], batch: int) -> int:
        if self._find(graph, shapes) is not None:
            return batch
        for engine in self._candidates(graph, shapes, any_batch=True):
            most = min(high[0] for _, high in engine.limits.values())
            sizes = {min(most, batch), batch % most or most}
            if all(engine.covers({n: (b, *s[1:]) for n, s in shapes.items()}) for b in sizes):
                return most
        self._engine(graph, shapes)  # says why not
        return batch

    def _engine(self, graph: str, shapes: Mapping[str, Shape]) -> LoadedEngine:
        """The smallest engine that covers some shapes."""
        passed: list[str] = []
        engine = self._find(graph, shapes, passed)
        if engine is not None:
            return engine
        what = ", ".join(f"{n} {s}" for n, s in shapes.items())
        also = f" ({'; '.join(passed)})" if passed else ""
        message = f"{self._folder}: no {self._precision} {self._backend} engine of {graph} covers {what}{also}"
        size = "x".join(map(str, self._pixels(graph, shapes)))
        raise EngineError(f"{message}; {self._build(size)}, or run in smaller tiles")

    def _find(self, graph: str, shapes: Mapping[str, Shape], passed: list[str] | None = None) -> LoadedEngine | None:
        """As `_engine`, None where there is none. The folder is looked at for shapes that are new."""
        key = (graph, *shapes.items())
        if key in self._chosen:
            return self._chosen[key]
        for engine in self._candidates(graph, shapes, passed):
            if engine.covers(shapes):
                _remember(self._chosen, key, engine)
                return engine
        return None

    def _found(self, graph: str) -> list[EngineInfo]:
        """Engines of a graph that may run, the smallest first."""
        found = find_engines(self._folder, self._bundle, self._backend, self._precision, graph)
        return [info for info in found if self._only is None or info.path.name in self._only]

    def _candidates(
        self, graph: str, shapes: Mapping[str, Shape], passed: list[str] | None = None, any_batch: bool = False
    ) -> Iterator[LoadedEngine]:
        """Loaded engines that may cover some shapes, the smallest first."""
        batch, height, width = self._pixels(graph, shapes)
        grid = LATENT_STRIDE * self._bundle.scale if graph in ("encoder", "decoder") else 1
        for info in self._found(graph):
            low, high = info.profile["min"], info.profile["max"]
            # The -M graphs' sizes are rounded up to the latent's grid; the engine itself knows exactly.
            fits = all(
                a - a % grid <= n <= -(-b // grid) * grid for a, n, b in zip(low[1:], (height, width), high[1:], strict=True)
            )
            if not fits or not (any_batch or low[0] <= batch <= high[0]):
                continue
            reason = self._unusable(info)
            if reason is None:
                yield self._load(graph, info)
            else:
                self._notes.add(reason)
                if passed is not None:
                    passed.append(reason)

    def _unusable(self, info: EngineInfo) -> str | None:
        if info.library != self._flavour.version:
            return f"{info.path.name} was built by version {info.library}, installed is {self._flavour.version}"
        if info.device is not None and info.device != self._device:
            return f"{info.path.name} was built for {info.device}, this is {self._device}"
        return None

    def _load(self, graph: str, info: EngineInfo) -> LoadedEngine:
        with self._loading:
            if info.path not in self._engines:
                with self._executor.entered():
                    _, data = read_engine(info.path, self._bundle)
                    entry = self._bundle.graph(graph, self._precision)
                    arguments = (self._flavour, self._runtime, info, data, entry, self._device, self._notes)
                    self._engines[info.path] = LoadedEngine(*arguments, **self._options)
            return self._engines[info.path]

    def _pixels(self, graph: str, shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
        """Batch, and HR height and width that some shapes stand for."""
        factors = {"height": 1, "width": 1}
        factors |= {f"lr_{side}": self._bundle.scale for side in ("height", "width")}
        factors |= {f"latent_{side}": self._bundle.scale * LATENT_STRIDE for side in ("height", "width")}
        found = {"batch": 1, "height": 0, "width": 0}
        for t in self._bundle.graph(graph, self._precision).inputs:
            for axis, n in zip(t.axes, shapes[t.name], strict=True):
                if axis == "batch":
                    found["batch"] = n
                elif isinstance(axis, str):
                    found[axis.rpartition("_")[2]] = n * factors[axis]
        return found["batch"], found["height"], found["width"]

    def _build(self, profile: str) -> str:
        return f"build one with {build_command(self._bundle, self._named, self._backend, self._precision, profile)}"


def _remember(table: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep a choice; pictures of ever new sizes do not fill the memory."""
    if len(table) >= MAX_CHOICES:
        table.clear()
    table[key] = value


def _close(executor: Executor, engines: dict[Path, LoadedEngine], api: CudaApi | None) -> None:
    """Free what a runner holds: everything on the device, then the library's objects, then the device itself."""
    executor.close()
    with executor.api.current():
        while engines:
            with contextlib.suppress(RescaleError):
                engines.popitem()[1].close()
    if api is not None:
        api.close()
