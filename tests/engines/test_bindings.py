"""The names that our builder and runner use exist in NVIDIA's real bindings of TensorRT 10 and 11, and of RTX.

TensorRT's library cannot be installed everywhere; its bindings can. They import over empty libraries of the right names: enums,
dtypes and class attributes are the real ones, and nothing of them can be constructed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("10.16.1.11", "11.4.0.106")

SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL", "getPluginRegistry"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "initLibNvInferPlugins"),
)

USED = {
    "ILogger": ["log", "Severity.INTERNAL_ERROR", "Severity.ERROR", "Severity.WARNING"],
    "Builder": ["create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"],
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
    "INetworkDefinition": [
        *("num_layers", "get_layer", "num_inputs", "get_input", "num_outputs", "get_output", "get_flag"),
    ],
    "ILayer": ["type", "name", "metadata", "num_outputs", "get_output"],
    "ITensor": ["name", "dtype", "shape"],
    "OnnxParser": ["parse", "num_errors", "get_error"],
    "ParserError": ["node_name", "node_operator", "desc"],
    "IBuilderConfig": ["clear_flag", "set_memory_pool_limit", "add_optimization_profile", "progress_monitor"],
    "BuilderFlag": ["TF32"],
    "MemoryPoolType": ["WORKSPACE"],
    "IOptimizationProfile": ["set_shape"],
    "IProgressMonitor": ["phase_start", "phase_finish", "step_complete"],
    "IHostMemory": ["nbytes"],
    "Runtime": ["deserialize_cuda_engine"],
    "ICudaEngine": [
        *("create_execution_context", "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype"),
        *("get_tensor_shape", "get_tensor_profile_shape", "create_runtime_config"),
    ],
    "IExecutionContext": [
        *("execute_async_v3", "set_tensor_address", "set_input_shape", "infer_shapes", "get_tensor_shape"),
        *("update_device_memory_size_for_shapes", "set_device_memory"),
    ],
    "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
    "IRuntimeConfig": ["set_execution_context_allocation_strategy"],
    "TensorIOMode": ["INPUT", "OUTPUT"],
    "DataType": ["FLOAT", "HALF", "UINT8", "INT32", "INT64", "BOOL"],
}
"""By class; checked in all three."""

ONLY_RTX = {
    "ComputeCapability": ["SM75", "SM80", "SM86", "SM89", "SM120"],
    "IBuilderConfig": ["num_compute_capabilities", "set_compute_capability"],
    "Runtime": ["get_engine_validity", "engine_header_size"],
    "IRuntimeConfig": [
        *("create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"),
    ],
    "IRuntimeCache": ["serialize", "deserialize"],
    "CudaGraphStrategy": ["DISABLED", "WHOLE_GRAPH_CAPTURE"],
    "DynamicShapesKernelSpecializationStrategy": ["LAZY", "EAGER", "NONE"],
    "EngineValidity": ["VALID", "SUBOPTIMAL", "INVALID"],
    "EngineInvalidityDiagnostics": [
        *("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY"),
        *("MALFORMED_ENGINE", "CUDA_ERROR"),
    ],
}

GONE_IN_11 = {"BuilderFlag": ["FP16", "INT8"], "ILayer": ["precision", "set_output_type"], "Builder": ["platform_has_fast_fp16"]}

PROBE = """
import importlib, json, operator, sys

trt = importlib.import_module(sys.argv[1])

def held(owner, name):
    try:
        operator.attrgetter(f"{owner}.{name}")(trt)
    except AttributeError:
        return False
    return True

wanted = json.loads(sys.argv[2])
missing = [f"{owner}.{name}" for owner, names in wanted.items() for name in names if not held(owner, name)]

from rescale.flavour import Flavour, collected, logger
from rescale_engines.network import _monitor

flavour = Flavour("tensorrt", trt, trt.__version__, False)
with collected(flavour) as said:
    ours = logger(flavour)
    ours.log(trt.ILogger.Severity.ERROR, "broken")
    ours.log(trt.ILogger.Severity.INFO, "chatter")
steps = []
monitor = _monitor(flavour, lambda *step: steps.append(step), None)
monitor.phase_start("a", None, 2)
go_on = monitor.step_complete("a", 0)
monitor.phase_finish("a")
print(json.dumps({
    "version": trt.__version__,
    "missing": missing,
    "strongly_typed": int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
    "said": said,
    "steps": steps,
    "go_on": go_on,
    "monitor": isinstance(monitor, trt.IProgressMonitor),
}))
"""


def probe(module: str, wanted: dict[str, list[str]], env: dict[str, str] | None = None) -> dict[str, object]:
    command = [sys.executable, "-c", PROBE, module, json.dumps(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | (env or {}), check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """(version, environment) in which ``tensorrt_bindings`` of that version can be imported."""
    version, folder = request.param, tmp_path_factory.mktemp("bindings")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the empty libraries")
    if importlib.util.find_spec("pip") is None:
        pytest.skip("no pip to install NVIDIA's bindings with")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--target", str(folder / "site")]
    done = subprocess.run(
        [*install, f"tensorrt-cu13-bindings=={version}"], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        pytest.skip(f"NVIDIA's bindings cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"lib{library}.so.{version.split('.')[0]}"
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run([compiler, *flags, str(source)], check=True, capture_output=True)
    return version, {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder / "site")}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the empty libraries are Linux's")
def test_bindings_of_10_and_11(bindings):
    version, env = bindings
    found = probe("tensorrt_bindings", USED, env)
    assert found["version"] == version
    assert found["missing"] == []
    assert found["strongly_typed"] == (1 if version.startswith("10.") else 0)
    assert found["said"] == [["error", "broken"]]
    assert found["steps"] == [["a", 0, 2], ["a", 1, 2], ["a", 2, 2]]
    assert found["go_on"] is True
    assert found["monitor"] is True
    absent = probe("tensorrt_bindings", {k: v for d in (GONE_IN_11, ONLY_RTX) for k, v in d.items()}, env)["missing"]
    assert set(absent) >= {f"{k}.{v}" for k, names in ONLY_RTX.items() for v in names}
    assert ("BuilderFlag.FP16" in absent) == version.startswith("11.")


def test_bindings_of_rtx(rtx):
    found = probe("tensorrt_rtx", {k: [*USED.get(k, []), *ONLY_RTX.get(k, [])] for k in {**USED, **ONLY_RTX}})
    assert found["missing"] == []
    assert found["strongly_typed"] == 0


def test_every_name_that_our_code_takes_from_tensorrt_is_listed():
    runtime = ROOT / "runtime" / "rescale"
    files = [*(ROOT / "engines").rglob("*.py"), *(runtime / "cuda").rglob("*.py"), runtime / "backends" / "tensorrt.py"]
    taken: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr[0].isupper() and _is_tensorrt(node.value):
                taken.add(node.attr)
    assert {"Builder", "OnnxParser", "BuilderFlag", "Runtime", "TensorIOMode"} <= taken
    assert taken - {*USED, *ONLY_RTX} == set()


def _is_tensorrt(node: ast.expr) -> bool:
    """``trt``, ``module`` or ``flavour.module``."""
    return getattr(node, "id", None) in ("trt", "module") or getattr(node, "attr", None) == "module"


def test_no_precision_flag_is_ever_named():
    words = (
        "FP16",
        "BF16",
        "INT8",
        "platform_has_fast",
        "set_calibration",
        "OBEY_PRECISION",
        "PREFER_PRECISION",
        "set_dynamic_range",
    )
    for path in (ROOT / "engines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith(words), f"{path}: {node.attr}"
