"""What is measured on a GPU beside one picture after another: the device alone, pictures in a row, streams and CUDA graphs.

Engines run a picture in three nested ways: on data that is on the device already (``compute``), from arrays of this process to
arrays (``run``), and from file to file (``whole``). Each ends when the device has finished, not when the host has asked for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale import flavour
from rescale.backends.tensorrt import TensorRTRunner
from rescale.bundle import Bundle
from rescale.cuda import CudaApi, open_api
from rescale.cuda.arrays import DeviceArray, to_device
from rescale.network import Network

MODES = {"tensorrt": ("", "CUDA graphs", "one stream"), "tensorrt-rtx": ("", "one stream")}
"""By backend: as it comes, with copies and compute on streams of their own and two pictures under way; replaying captured CUDA
graphs; one picture at a time, nothing overlapping. TensorRT for RTX captures graphs by itself."""

IN_A_ROW = 8
"""Pictures of the ``pipelined`` figure."""

Item = tuple[str, Mapping[str, npt.NDArray[Any]]]


def is_gpu(backend: str) -> bool:
    """Whether a backend runs engines."""
    return backend in MODES


class _Noted:
    """A runner that keeps what its graphs were given last."""

    def __init__(self, runner: TensorRTRunner) -> None:
        self._runner = runner
        self.items: list[Item] = []

    @property
    def name(self) -> str:
        return self._runner.name

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        self.items.append((graph, inputs))
        return self._runner.run(graph, inputs)

    def run_many(
        self, graph: str, items: Iterable[Mapping[str, npt.NDArray[Any]]]
    ) -> Iterator[Mapping[str, npt.NDArray[np.generic]]]:
        def noted() -> Iterator[Mapping[str, npt.NDArray[Any]]]:
            for item in items:
                self.items.append((graph, item))
                yield item

        return self._runner.run_many(graph, noted())

    def close(self) -> None:
        self._runner.close()


class GpuCase:
    """Engines of a bundle in one mode.

    Args:
        bundle: whose engines.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        precision: of the engines.
        mode: one of `MODES`.
        memory: budget in bytes; None for the default.
        cuda: an opened `CudaApi`, which stays the caller's; None opens one.
        options: for `TensorRTRunner`.

    Raises:
        BackendError, EngineError, MissingExtraError: as `TensorRTRunner`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        precision: str,
        mode: str = "",
        memory: int | None = None,
        cuda: CudaApi | None = None,
        **options: Any,
    ) -> None:
        with contextlib.ExitStack() as stack:
            flavour.load(backend)  # says what is missing better than CUDA does
            self._api = cuda or stack.enter_context(contextlib.closing(open_api()))
            options |= {"slots": 1 if mode == "one stream" else 2, "cuda_graphs": mode == "CUDA graphs"}
            self._runner = TensorRTRunner(bundle, backend, precision, cuda=self._api, **options)
            stack.callback(self._runner.close)
            self._noted = _Noted(self._runner)
            self.network = Network(bundle, self._noted, memory=memory)
            self._stack = stack.pop_all()

    @property
    def name(self) -> str:
        """What runs, in words."""
        return self._runner.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not go as asked, such as a capture that failed."""
        return self._runner.notes

    def measure(self) -> dict[str, float]:
        """Seconds of the last picture's graphs on the device alone, and a picture of `IN_A_ROW` that follow each other.

        Call it after a run of `network`, whose inputs it takes; a second time for the same picture it finds none.
        """
        items, self._noted.items = self._noted.items, []
        return {"compute": self._device(items), "pipelined": self._in_a_row(items)}

    def _device(self, items: list[Item]) -> float:
        with self._api.current():
            stream = self._api.create_stream()
        arrays: list[DeviceArray] = []
        results: list[dict[str, Any]] = [{} for _ in items]
        try:
            feeds = [(graph, {n: to_device(self._api, a, stream) for n, a in inputs.items()}) for graph, inputs in items]
            arrays += [a for _, inputs in feeds for a in inputs.values()]
            # A graph is captured once the same addresses come a second time, and replayed from the third run on.
            for _ in range(3):
                self._wait()
                start = time.perf_counter()
                for i, (graph, inputs) in enumerate(feeds):
                    results[i] = self._runner.run_device(graph, inputs, stream, results[i])
                self._wait()
                seconds = time.perf_counter() - start
            return seconds
        finally:
            for array in (*arrays, *(a for found in results for a in found.values())):
                array.free()
            with self._api.current():
                self._api.synchronize()
                self._api.destroy_stream(stream)

    def _in_a_row(self, items: list[Item]) -> float:
        """Through the graph of the direction; the latent's small graphs of -M are not among it."""
        mine = [(graph, inputs) for graph, inputs in items if graph in ("downscale", "upscale")]
        graph = mine[0][0]
        start = time.perf_counter()
        for _ in self._runner.run_many(graph, [inputs for _ in range(IN_A_ROW) for _, inputs in mine]):
            pass
        return (time.perf_counter() - start) / IN_A_ROW

    def _wait(self) -> None:
        with self._api.current():
            self._api.synchronize()

    def close(self) -> None:
        """Free the engines."""
        self._stack.close()
