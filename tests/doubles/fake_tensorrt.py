"""A stand-in for TensorRT's Python bindings on `FakeCuda`, which computes by ONNX Runtime.

It has the real names and no others (a test compares them), and refuses what the real library refuses: shapes outside of the
profile, addresses that are not multiples of 256, scratch memory that is too small. Its engines are a line of JSON and the graph.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from rescale.bundle import Bundle
from rescale.cuda.fake import FakeCuda
from rescale.engine_file import EngineInfo, engine_name, sidecar, sidecar_bytes
from rescale_engines.profiles import parse_profile

VERSION = "9.8.7.6"


def write_engine(
    folder: Path, bundle: Bundle, graph: str, profile: str, backend: str = "tensorrt", precision: str = "fp32", **changes: Any
) -> Path:
    """An engine file of this fake with a true sidecar; `changes` are made to the sidecar."""
    entry = bundle.graph(graph, precision)
    p = parse_profile(profile, bundle.scale)
    shapes = {t.name: p.shapes(t, graph) for t in entry.inputs}
    dtypes = {t.name: t.dtype for t in (*entry.inputs, *entry.outputs)}
    head = {"inputs": [t.name for t in entry.inputs], "outputs": [t.name for t in entry.outputs], "dtypes": dtypes}
    head |= {"shapes": shapes, "scale": bundle.scale}
    data = json.dumps(head).encode() + b"\n" + bundle.read_graph(graph, precision)
    if backend == "tensorrt-rtx":
        data = struct.pack("<4s12xQ4B4xQ24x", b"vtrt", len(data) + 64, *map(int, VERSION.split(".")), 63) + data
    key = hashlib.sha256(data + profile.encode()).hexdigest()
    sizes = {n: (s.batch, s.height, s.width) for n, s in (("min", p.smallest), ("opt", p.best), ("max", p.largest))}
    folder.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "path": folder / engine_name(graph, precision, backend, profile.replace(":", "-"), key),
        "backend": backend,
        "library": VERSION,
        "graph": graph,
        "precision": precision,
        "model": bundle.variant.name,
        "scale": bundle.scale,
        "size": bundle.size,
        "weights": bundle.network,
        "onnx_sha256": entry.sha256,
        "engine_sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "profile": sizes,
        "compute_capabilities": (),
        "device": None,
        "inputs": entry.inputs,
        "outputs": entry.outputs,
        "census": {},
        "options": {},
        "key": key,
    }
    info = EngineInfo(**(fields | changes))
    info.path.write_bytes(data)
    sidecar(info.path).write_bytes(sidecar_bytes(info))
    return info.path


class Library:
    """One loaded library: `module` is what the bindings would be.

    Attributes:
        say: by call name, what the library logs before that call fails, once.
        blob: bytes of a serialised runtime cache.
        accepts_cache: whether a cache that is read is found good.
        validity: what `get_engine_validity` answers.
        configs: every runtime configuration that was made.
        loaded: number of engines that are alive.
    """

    def __init__(self, api: FakeCuda, rtx: bool = False) -> None:
        self.api, self.rtx = api, rtx
        self.say: dict[str, str] = {}
        self.blob = b"kernels"
        self.accepts_cache = True
        self.validity: tuple[str, int] = ("VALID", 0)
        self.configs: list[Any] = []
        self.read_caches: list[bytes] = []
        self.loaded = 0
        self.logger: Any = None
        self.module = _module(self)

    def fails(self, call: str) -> bool:
        text = self.say.pop(call, None)
        if text is not None:
            self.logger.log(self.module.ILogger.Severity.ERROR, text)
        return text is not None


def _module(library: Library) -> Any:
    api = library.api

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            pass

    class DataType(enum.Enum):
        FLOAT, HALF, UINT8, INT32 = range(4)

    class TensorIOMode(enum.Enum):
        NONE, INPUT, OUTPUT = range(3)

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._memory = (0, 0)
            self._running: set[object] = set()

        def __del__(self) -> None:
            if self._running:
                api.violations.append("an execution context ended while its work is under way")

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._engine._head["shapes"][name]
            if library.fails("set_input_shape") or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                library.logger.log(ILogger.Severity.ERROR, f"Set dimension of {name} does not satisfy the profile")
                return False
            self._shapes[name] = tuple(shape)
            return True

        def infer_shapes(self) -> list[str]:
            if library.fails("infer_shapes"):
                raise RuntimeError("shape inference failed")
            return [n for n in self._engine._head["inputs"] if n not in self._shapes]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._engine._shape(name, self._shapes)

        def update_device_memory_size_for_shapes(self) -> int:
            return 1000 + sum(math.prod(s) for s in self._shapes.values())

        def set_device_memory(self, memory: int, size: int) -> None:
            if size < self.update_device_memory_size_for_shapes() or memory % 256:
                raise RuntimeError(f"device memory of {size} bytes at {memory:#x}")
            self._memory = (memory, memory + size)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if library.fails("set_tensor_address") or memory % 256 or not memory:
                return False
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            if library.fails("execute_async_v3"):
                return False
            engine = self._engine
            sizes = {n: self.get_tensor_shape(n) for n in (*engine._head["inputs"], *engine._head["outputs"])}
            nbytes = {n: math.prod(s) * engine._dtype(n).itemsize for n, s in sizes.items()}
            spans = {n: (self._addresses[n], self._addresses[n] + k) for n, k in nbytes.items()}
            arrays = {n: api.at(self._addresses[n], k).view(engine._dtype(n)).reshape(sizes[n]) for n, k in nbytes.items()}
            low, high = self._memory
            scratch = api.at(low, high - low)
            inputs, outputs = engine._head["inputs"], engine._head["outputs"]

            token, running = object(), self._running

            def run() -> None:
                running.discard(token)
                # Whatever another run left there is gone.
                scratch[:] = 0x5A
                for name, value in zip(outputs, engine._session.run(outputs, {n: arrays[n] for n in inputs}), strict=True):
                    arrays[name][...] = value

            writes = [*(spans[n] for n in outputs), self._memory]
            api.kernel("execute", stream_handle, [spans[n] for n in inputs], writes, run)
            if not api.captures_into(stream_handle):
                running.add(token)
            return True

    class IRuntimeCache:
        def serialize(self) -> Any:
            return memoryview(library.blob)

        def deserialize(self, blob: bytes) -> bool:
            library.read_caches.append(bytes(blob))
            return library.accepts_cache

    class IRuntimeConfig:
        def __init__(self) -> None:
            self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
            self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self._allocation = strategy

        def create_runtime_cache(self) -> Any:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: Any) -> bool:
            return not library.fails("set_runtime_cache")

    class ICudaEngine:
        def __init__(self, data: bytes) -> None:
            head, _, model = data.partition(b"\n")
            self._head = json.loads(head)
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.enable_mem_pattern = 1, False
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._names = [*self._head["inputs"], *self._head["outputs"]]
            library.loaded += 1

        def __del__(self) -> None:
            library.loaded -= 1

        @property
        def num_io_tensors(self) -> int:
            return len(self._names)

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return TensorIOMode.INPUT if name in self._head["inputs"] else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return {"uint8": DataType.UINT8, "float32": DataType.FLOAT}[self._head["dtypes"][name]]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            assert profile_index == 0
            return [tuple(s) for s in self._head["shapes"][name]]

        def create_execution_context(self, **options: Any) -> Any:
            if library.fails("create_execution_context"):
                return None
            allocation = options.pop("runtime_config")._allocation if library.rtx else options.pop("strategy")
            assert not options
            assert allocation is ExecutionContextAllocationStrategy.USER_MANAGED
            return IExecutionContext(self)

        def _dtype(self, name: str) -> Any:
            return np.dtype(self._head["dtypes"][name])

        def _shape(self, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
            if name in shapes:
                return shapes[name]
            axes = {i.name: i.shape for i in self._session.get_inputs()}
            known = {a: n for i, shape in shapes.items() for a, n in zip(axes[i], shape, strict=True) if isinstance(a, str)}
            wanted = next(o.shape for o in self._session.get_outputs() if o.name == name)
            return tuple(a if isinstance(a, int) else known[a] if a in known else self._scaled(a, known) for a in wanted)

        def _scaled(self, axis: str, known: dict[str, int]) -> int:
            scale, side = self._head["scale"], axis.rpartition("_")[2]
            if axis.startswith("latent"):
                return -(-known[f"lr_{side}"] // 4)
            if f"latent_{side}" in known:
                return 4 * known[f"latent_{side}"]
            return known[side] // scale if axis.startswith("lr") else known[f"lr_{side}"] * scale

    class Runtime:
        def __init__(self, logger: Any) -> None:
            library.logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            if library.fails("deserialize_cuda_engine"):
                return None
            return ICudaEngine(serialized_engine[64 if library.rtx else 0 :])

    class CudaGraphStrategy(enum.Enum):
        DISABLED, WHOLE_GRAPH_CAPTURE = range(2)

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY, EAGER, NONE = range(3)

    class EngineValidity(enum.Enum):
        VALID, SUBOPTIMAL, INVALID = range(3)

    class EngineInvalidityDiagnostics(enum.IntEnum):
        VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER, OLD_CUDA_RUNTIME = 1, 2, 4, 8
        INSUFFICIENT_GPU_MEMORY, MALFORMED_ENGINE, CUDA_ERROR = 16, 32, 64

    names = dict(locals())
    common = ("ILogger", "DataType", "TensorIOMode", "ExecutionContextAllocationStrategy", "IExecutionContext", "ICudaEngine")
    module = SimpleNamespace(__version__=VERSION, Runtime=Runtime, **{n: names[n] for n in common})
    if library.rtx:

        def get_engine_validity(self: Any, buffer: bytes) -> tuple[Any, int]:
            return EngineValidity[library.validity[0]], library.validity[1]

        def create_runtime_config(self: Any) -> Any:
            library.configs.append(IRuntimeConfig())
            return library.configs[-1]

        Runtime.get_engine_validity = get_engine_validity  # type: ignore[attr-defined]
        ICudaEngine.create_runtime_config = create_runtime_config  # type: ignore[attr-defined]
        own = ("IRuntimeCache", "IRuntimeConfig", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy")
        for name in (*own, "EngineValidity", "EngineInvalidityDiagnostics"):
            setattr(module, name, names[name])
    return module
