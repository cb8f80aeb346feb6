"""What `rescale doctor` asks of each library, in a process of its own: `python -m rescale.probes NAME [ARGUMENT]`.

One JSON object goes to standard output; whatever a library prints goes to standard error. A library that crashes or hangs ends
this process, not the command.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rescale.console import PACKAGE
from rescale.extras import import_quietly

WORKS, INSTALLED, ABSENT, BROKEN = "works", "installed", "not installed", "broken"
NO_DEVICE, BUILDS = "no device", "builds only"

DRIVER_CURE = "install the NVIDIA driver of your system: 580 or later for CUDA 13, which the wheels of these extras bring"
IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a080801"
    "12040a02080142040a001011"
)
"""An ONNX model that gives back one float."""

Facts = dict[str, Any]


def finding(state: str, version: str = "", detail: str = "", cure: str = "", **facts: Any) -> Facts:
    """One library's state, version, explanation in words, what to do, and what else is known."""
    return {"state": state, "version": version, "detail": detail, "cure": cure, **facts}


def install(extra: str) -> str:
    """The line that installs an extra."""
    return f"pip install '{PACKAGE}[{extra}]'"


def version_of(*distributions: str) -> str:
    """Version of the first of some distributions that is installed, from its metadata; empty if none is."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def is_installed(module: str) -> bool:
    """Whether a module can be found; nothing of it runs."""
    return importlib.util.find_spec(module) is not None


def driver(library: str = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1") -> Facts:
    """NVIDIA's driver and the devices it shows, without any package."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return finding(ABSENT, detail=f"{library} is not on this machine", cure=DRIVER_CURE, devices=[])
    version = _kernel_module_version()
    error = cuda.cuInit(0)
    if error:
        cure = "see whether nvidia-smi works; in a container, start it with the GPU (docker run --gpus all)"
        return finding(NO_DEVICE, version, f"cuInit failed: {_error_name(cuda, error)}", cure, devices=[])
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    cuda_version = _dotted(number.value)
    number = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(number))
    devices = [_device(cuda, i) for i in range(number.value)]
    state = WORKS if devices else NO_DEVICE
    return finding(state, version, f"CUDA up to {cuda_version}", "", cuda=cuda_version, devices=devices)


def _device(cuda: Any, index: int) -> Facts:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    text = name.value.decode(errors="replace")
    return {"name": text, "compute_capability": "{}.{}".format(*capability), "memory_bytes": memory.value}


def _error_name(cuda: Any, error: int) -> str:
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(error, ctypes.byref(name))
    return f"{name.value.decode()} ({error})" if name.value else f"error {error}"


def _kernel_module_version() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""


def _dotted(number: int) -> str:
    """CUDA's 13040 as 13.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def cuda_python() -> Facts:
    """cuda-python: the CUDA runtime, as TensorRT and every backend of ours uses it."""
    cure = install("tensorrt-rtx")
    if not is_installed("cuda") or not is_installed("cuda.bindings"):
        return finding(ABSENT, cure=cure)
    version = version_of("cuda-python", "cuda-bindings")
    runtime = importlib.import_module("cuda.bindings.runtime")
    _, number = runtime.cudaRuntimeGetVersion()
    count, reason = _flavour().probe()
    facts = {"cuda": _dotted(int(number)), "devices": count}
    if not count:
        return finding(NO_DEVICE, version, reason, DRIVER_CURE, **facts)
    return finding(WORKS, version, f"CUDA runtime {_dotted(int(number))}, {count} device(s)", **facts)


def pycuda() -> Facts:
    """pycuda, which is built from source against a CUDA toolkit."""
    if not is_installed("pycuda"):
        return finding(ABSENT, detail="optional; a source build that needs a CUDA toolkit", cure=install("pycuda"))
    version = version_of("pycuda")
    try:
        api = importlib.import_module("pycuda.driver")
        api.init()
        count = api.Device.count()
    except Exception as e:  # its own classes, and ImportError where the driver's library is missing
        return finding(NO_DEVICE, version, f"{type(e).__name__}: {e}", DRIVER_CURE)
    return finding(WORKS if count else NO_DEVICE, version, f"{count} device(s)", "" if count else DRIVER_CURE)


def _flavour() -> Any:
    return importlib.import_module("rescale.flavour")


def tensorrt(name: str = "tensorrt") -> Facts:
    """TensorRT, or TensorRT for RTX: imported, and its builder and runtime made where that is safe."""
    module = name.replace("-", "_")
    if not is_installed(module):
        return finding(ABSENT, cure=install(name))
    libraries = _flavour()
    # Without a device nothing of `tensorrt` is constructed: its objects would not be what they seem.
    flavour = libraries.load(name, needs_device=False)
    version = str(flavour.version)
    count, reason = libraries.probe()
    if not count and not flavour.builds_without_gpu:
        return finding(NO_DEVICE, version, f"neither builds nor runs engines here: {reason}", DRIVER_CURE)
    with libraries.collected(flavour) as messages:
        if not flavour.module.Builder(libraries.logger(flavour)):
            return finding(BROKEN, version, f"no builder: {libraries.errors(messages)}", install(name))
    if not count:
        return finding(BUILDS, version, f"builds engines; runs none here: {reason}", DRIVER_CURE)
    facts: Facts = {}
    if name == "tensorrt-rtx":
        named = [c.removeprefix("SM") for c in flavour.module.ComputeCapability.__members__ if c.startswith("SM")]
        facts["builds_for"] = [f"{c[:-1]}.{c[-1]}" for c in named]
        own = [d["compute_capability"] for d in driver()["devices"]]
        if own and not set(own) & set(facts["builds_for"]):
            detail = f"builds engines for compute capability {', '.join(facts['builds_for'])}; this device has {', '.join(own)}"
            return finding(BUILDS, version, detail, f"use TensorRT itself on such a device: {install('tensorrt')}", **facts)
    return finding(WORKS, version, "builds and runs engines", **facts)


def onnxruntime() -> Facts:
    """ONNX Runtime: a model of one operator is run."""
    cure = "pip install onnxruntime"
    if not is_installed("onnxruntime"):
        return finding(ABSENT, cure=cure)
    # The wheels for GPUs hold the same module under other names.
    version = version_of("onnxruntime-gpu", "onnxruntime", "onnxruntime-directml", "onnxruntime-openvino")
    ort, numpy = import_quietly("onnxruntime"), importlib.import_module("numpy")
    providers = list(ort.get_available_providers())
    session = ort.InferenceSession(IDENTITY, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"x": numpy.ones(1, numpy.float32)})
    if out.tolist() != [1.0]:
        return finding(BROKEN, version, f"identity of 1 gave {out.tolist()}", cure, providers=providers)
    return finding(WORKS, version or str(ort.__version__), ", ".join(providers), providers=providers)


def openvino() -> Facts:
    """OpenVINO and its devices."""
    if not is_installed("openvino"):
        return finding(ABSENT, detail="optional; the faster backend on CPUs", cure="pip install openvino")
    module = import_quietly("openvino")
    devices = list(module.Core().available_devices)
    half = "BF16" in module.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    detail = f"devices {', '.join(devices)}; {'fp32 and mixed (bfloat16)' if half else 'fp32'} on this CPU"
    return finding(WORKS, version_of("openvino") or str(module.__version__), detail, devices=devices)


def torch() -> Facts:
    """PyTorch, from its metadata: importing it takes seconds, and running models needs none."""
    if not is_installed("torch"):
        return finding(ABSENT, detail="needed to train and export, not to run", cure=install("export"))
    return finding(INSTALLED, version_of("torch"), "needed to train and export, not to run; not imported")


def parity(argument: str) -> Facts:
    """Golden vectors of a bundle on one backend and precision, twice: the second run is timed."""
    folder, backend, precision = json.loads(argument)
    import numpy as np

    from rescale.backends import create
    from rescale.bundle import Bundle
    from rescale.errors import RescaleError
    from rescale.parity import measure

    seconds: dict[str, float] = {}
    pixels = 0
    try:
        bundle = Bundle(folder)
        runner = create(bundle, backend, precision=precision)
        try:
            found = measure(bundle, runner.run)

            def timed(graph: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
                nonlocal pixels
                start = time.perf_counter()
                out = runner.run(graph, inputs)
                seconds[graph] = seconds.get(graph, 0.0) + time.perf_counter() - start
                pixels += int(np.prod(inputs["hr"].shape[:3])) if graph == "downscale" else 0
                return out

            measure(bundle, timed)
            name = runner.name
        finally:
            runner.close()
    except RescaleError as e:
        return finding(BROKEN, detail=str(e))
    failure = found.failure()
    return finding(
        BROKEN if failure else WORKS,
        detail=failure or "",
        runner=name,
        hr_pixels=pixels,
        seconds={k: round(v, 4) for k, v in seconds.items()},
        parity=found.to_dict(),
    )


PROBES: dict[str, Callable[[], Facts]] = {
    "driver": driver,
    "cuda-python": cuda_python,
    "pycuda": pycuda,
    "tensorrt": tensorrt,
    "tensorrt-rtx": lambda: tensorrt("tensorrt-rtx"),
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch": torch,
}


def main(argv: list[str]) -> int:
    """Run one probe and print what it found."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name, *rest = argv
    try:
        found = parity(rest[0]) if name == "parity" else PROBES[name]()
    except Exception as e:  # a library's own classes; whatever it is, it is the finding
        text = re.sub(r"\s+", " ", f"{type(e).__name__}: {e}")
        found = finding(BROKEN, version_of(name), text, "" if name in ("driver", "parity") else f"reinstall it: {_again(name)}")
    out.write(json.dumps(found))
    out.flush()
    # Not by the usual way: some libraries crash when the interpreter unloads them.
    os._exit(0)


def _again(name: str) -> str:
    extras = {
        "cuda-python": "tensorrt-rtx",
        "pycuda": "pycuda",
        "tensorrt": "tensorrt",
        "tensorrt-rtx": "tensorrt-rtx",
        "torch": "export",
    }
    wanted = f"'{PACKAGE}[{extras[name]}]'" if name in extras else name
    return f"pip install --force-reinstall {wanted}"


if __name__ == "__main__":
    main(sys.argv[1:])
