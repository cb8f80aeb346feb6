"""A loaded engine and its execution contexts: the calls of TensorRT's runtime, their failures as our errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rescale.bundle import Graph
from rescale.cuda import rtx
from rescale.cuda.notes import Notes
from rescale.engine_file import AGAIN, EngineInfo
from rescale.errors import BackendError, EngineError, OutOfMemoryError, RescaleError
from rescale.flavour import Flavour, collected, errors

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_SHORT = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|bad_alloc|fail\w* to allocate|allocation fail", re.I)
"""How TensorRT words a failed allocation."""

_DTYPES = {"UINT8": np.uint8, "FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32}


@dataclass(frozen=True)
class Plan:
    """One set of input shapes: the outputs' shapes, and the bytes of scratch memory that a run needs."""

    inputs: Shapes
    outputs: Shapes
    scratch: int


@contextlib.contextmanager
def told(flavour: Flavour, what: str, kind: type[BackendError] = BackendError) -> Iterator[None]:
    """Failures of TensorRT's calls in the block, with what its log says, as `kind` or OutOfMemoryError.

    Its own exceptions, and `Failed`, which `need` raises.
    """
    with collected(flavour) as messages:
        try:
            yield
        except RescaleError:
            raise
        except MemoryError:
            raise OutOfMemoryError(f"{what}: not enough memory") from None
        except Failed as e:
            reason = errors(messages)
            short = OutOfMemoryError if _SHORT.search(reason) else kind
            raise short(f"{what}: {e} failed: {reason or 'no message'}") from None
        except (RuntimeError, TypeError, ValueError) as e:
            reason = "; ".join(filter(None, (str(e), errors(messages))))
            raise (OutOfMemoryError if _SHORT.search(reason) else kind)(f"{what}: {reason}") from None


class Failed(Exception):
    """A call of TensorRT answered with False or nothing: a signal to the `told` around it."""


def need(answer: Any, call: str) -> Any:
    """A call's answer; raises Failed if it is None or False."""
    if answer is None or answer is False:
        raise Failed(call)
    return answer


class Context:
    """An execution context whose scratch memory is given to it. Not thread-safe, and not on two streams at once."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._engine = engine
        strategy = engine.flavour.module.ExecutionContextAllocationStrategy.USER_MANAGED
        with told(engine.flavour, str(engine.info.path)):
            if engine.config is None:
                context = engine.cuda_engine.create_execution_context(strategy=strategy)
            else:
                engine.config.set_execution_context_allocation_strategy(strategy)
                context = engine.cuda_engine.create_execution_context(runtime_config=engine.config)
            self._context = need(context, "create_execution_context")
        self._plan: Plan | None = None

    def plan(self, shapes: Shapes) -> Plan:
        """Set the inputs' shapes.

        Raises:
            BackendError: TensorRT refuses them.
        """
        if self._plan is not None and self._plan.inputs == shapes:
            return self._plan
        self._plan = None
        with told(self._engine.flavour, "shapes"):
            for name, shape in shapes.items():
                need(self._context.set_input_shape(name, shape), f"set_input_shape({name!r}, {shape})")
            missing = self._context.infer_shapes()
            if missing:
                raise Failed(f"infer_shapes ({', '.join(missing)} not known)")
            outputs = {t.name: tuple(self._context.get_tensor_shape(t.name)) for t in self._engine.graph.outputs}
            if any(n < 1 for shape in outputs.values() for n in shape):
                raise Failed(f"infer_shapes (outputs {outputs})")
            scratch = int(self._context.update_device_memory_size_for_shapes())
        self._plan = Plan(dict(shapes), outputs, scratch)
        return self._plan

    def bind(self, addresses: Mapping[str, int], scratch: int, nbytes: int) -> None:
        """Say where inputs and outputs are, and the scratch memory."""
        with told(self._engine.flavour, "addresses"):
            self._context.set_device_memory(scratch, nbytes)
            for name, pointer in addresses.items():
                need(self._context.set_tensor_address(name, pointer), f"set_tensor_address({name!r})")

    def execute(self, stream: int) -> None:
        """Put one run into a stream."""
        with told(self._engine.flavour, "execution"):
            need(self._context.execute_async_v3(stream), "execute_async_v3")


class LoadedEngine:
    """One engine on the device, with one context for ordinary runs.

    Attributes:
        info: its sidecar.
        graph: the bundle's entry: names, dtypes and axes of inputs and outputs.
        limits: by input, the smallest and the largest shape.
        captures: whether its runs may be captured by us: never on TensorRT for RTX, whose kernels change behind a capture.
    """

    def __init__(
        self,
        flavour: Flavour,
        runtime: Any,
        info: EngineInfo,
        data: bytes,
        graph: Graph,
        device: str,
        notes: Notes,
        strategy: str = "lazy",
        cuda_graphs: bool = False,
        runtime_cache: bool = True,
    ) -> None:
        """Deserialise. The device has to be the current one.

        Raises:
            EngineError: of another version, for another GPU, or not what its sidecar says.
            OutOfMemoryError: it does not fit.
        """
        self.flavour, self.info, self.graph = flavour, info, graph
        self.captures = flavour.name == "tensorrt" and cuda_graphs
        self.config: Any = None
        self._cache: rtx.RuntimeCache | None = None
        with told(flavour, str(info.path), EngineError):
            if flavour.name == "tensorrt-rtx":
                rtx.check_validity(flavour, runtime, info, data, notes)
            self.cuda_engine = need(runtime.deserialize_cuda_engine(data), "deserialize_cuda_engine")
            self._check_interface()
            self.limits = {t.name: self._limits(t.name) for t in graph.inputs}
            if flavour.name == "tensorrt-rtx":
                self.config = rtx.configure(flavour, self.cuda_engine, strategy, cuda_graphs)
                if runtime_cache:
                    self._cache = rtx.RuntimeCache(self.config, info, device, notes)
        self.context = Context(self)

    def covers(self, shapes: Shapes) -> bool:
        """Whether inputs of these shapes lie in the engine's profile."""
        return all(
            all(low <= n <= high for low, n, high in zip(self.limits[name][0], shape, self.limits[name][1], strict=True))
            for name, shape in shapes.items()
        )

    def close(self) -> None:
        """Keep the runtime cache and let go of the library's objects, contexts first."""
        if self._cache is not None:
            with told(self.flavour, str(self.info.path)):
                self._cache.save()
        self._cache = None
        del self.context, self.config, self.cuda_engine

    def _check_interface(self) -> None:
        engine, modes = self.cuda_engine, self.flavour.module.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for mode, tensors in ((modes.INPUT, self.graph.inputs), (modes.OUTPUT, self.graph.outputs)):
            found = {n: engine.get_tensor_dtype(n).name for n in names if engine.get_tensor_mode(n) == mode}
            named = {n: np.dtype(_DTYPES[d]).name if d in _DTYPES else d for n, d in found.items()}
            wanted = {t.name: t.dtype for t in tensors}
            if named != wanted:
                raise EngineError(f"{self.info.path}: has {named}, the bundle's graph {wanted}; {AGAIN}")

    def _limits(self, name: str) -> tuple[Shape, Shape]:
        low, _, high = self.cuda_engine.get_tensor_profile_shape(name, 0)
        return tuple(low), tuple(high)
