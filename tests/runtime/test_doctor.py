"""`rescale doctor`: every state of every library, with stand-ins and with those that are installed here."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rescale import doctor, flavour, probes
from rescale.backends import NAMES, auto_backend
from rescale.bundle import GOLDEN, MANIFEST
from rescale.cli import main

ROOT = Path(__file__).resolve().parents[2]
STATES = {probes.WORKS, probes.INSTALLED, probes.ABSENT, probes.BROKEN, probes.NO_DEVICE, probes.BUILDS}


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """Put modules in front of the installed ones, for this process and those it starts. Dots are written as __."""
    for name, code in modules.items():
        path = folder.joinpath(*name.split("__"))
        for parent in [*reversed(path.relative_to(folder).parents)][1:]:
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent / "__init__.py").touch()
        path.mkdir(exist_ok=True)
        (path / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["doctor", *arguments])
    return code, capsys.readouterr().out


def test_what_is_installed_here(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["default"]) == (0, True, auto_backend())
    libraries = report["libraries"]
    assert set(libraries) == set(probes.PROBES) - {"driver"}
    for name, found in libraries.items():
        assert found["state"] in STATES - {probes.BROKEN}, (name, found)
        module = {"cuda-python": "cuda.bindings", "tensorrt-rtx": "tensorrt_rtx"}.get(name, name)
        missing = importlib.util.find_spec(module.split(".")[0]) is None or importlib.util.find_spec(module) is None
        assert (found["state"] == probes.ABSENT) == missing, (name, found)
        assert bool(found["version"]) != missing
        assert found["cure"] or found["state"] in (probes.WORKS, probes.INSTALLED)
    assert "CPUExecutionProvider" in libraries["onnxruntime"]["providers"]
    assert libraries["tensorrt-rtx"]["state"] in (probes.BUILDS, probes.WORKS), "the development extra has it"
    assert report["cpu"]["usable_threads"] >= 1
    assert report["memory"]["available_bytes"] > 1 << 20
    assert report["backends"]["onnxruntime"] == {"works": True, "why": "", "cure": ""}
    assert set(report["backends"]) == set(NAMES)
    if not report["driver"]["devices"]:
        assert report["driver"]["cure"]
        assert not any(b["works"] for name, b in report["backends"].items() if name.startswith("tensorrt"))

    code, out = run(capsys)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("rescale ")
    for name, found in libraries.items():
        row = next(line for line in lines if line.startswith(f"  {name} "))
        assert found["state"] in row
        assert found["version"] in row


def test_every_line_that_installs_an_extra_names_one_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    source = Path(probes.__file__).read_text()
    named = set(re.findall(r'install\("([\w-]+)"\)', source)) | {"tensorrt", "tensorrt-rtx"}
    assert named <= set(project["optional-dependencies"])
    assert project["name"] == probes.PACKAGE


def test_backends_and_their_libraries_are_those_of_the_package() -> None:
    assert set(doctor.NEEDS) == set(NAMES)
    assert {library for needed in doctor.NEEDS.values() for library in needed} <= set(probes.PROBES)


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import ctypes; ctypes.string_at(0)", "crashed: SIGSEGV"),
        ("import os; os.abort()", "crashed: SIGABRT"),
        ("import os; os._exit(3)", "ended with exit code 3 and no report"),
        ("import os, sys; print('no such symbol', file=sys.stderr, flush=True); os._exit(3)", "and no report: no such symbol"),
        ("raise ImportError('libnvinfer.so.11:\\n cannot open')", "libnvinfer.so.11: cannot open"),
        ("raise SystemExit('go away')", "ended with exit code 1 and no report: go away"),
    ],
)
def test_a_library_that_crashes_takes_nothing_down(tmp_path, monkeypatch, code: str, detail: str) -> None:
    fake(tmp_path, monkeypatch, openvino=code)
    found = doctor.ask("openvino")
    assert found["state"] == probes.BROKEN
    assert detail in found["detail"]


def test_a_library_that_hangs_is_given_up(tmp_path, monkeypatch) -> None:
    fake(tmp_path, monkeypatch, openvino="import time; time.sleep(600)")
    assert doctor.ask("openvino", limit=2) == probes.finding(probes.BROKEN, detail="no answer within 2 s")


def test_what_a_library_prints_does_not_disturb(tmp_path, monkeypatch) -> None:
    chatty = (
        "import os; print('hello'); os.write(1, b'{}')\nclass Core:\n    available_devices = ['X']\n"
        "    def get_property(self, *names): return ['FP32']\n__version__ = '1'"
    )
    fake(tmp_path, monkeypatch, openvino=chatty)
    found = doctor.ask("openvino")
    assert (found["state"], found["devices"]) == (probes.WORKS, ["X"])


def test_torch_is_not_imported(tmp_path, monkeypatch) -> None:
    fake(tmp_path, monkeypatch, torch="raise RuntimeError('imported')")
    assert doctor.ask("torch")["state"] == probes.INSTALLED


def test_a_broken_default_backend_is_exit_code_1_and_crashing_others_are_not(tmp_path, monkeypatch, capsys) -> None:
    fake(tmp_path, monkeypatch, tensorrt="import ctypes; ctypes.string_at(0)")
    code, out = run(capsys, "--json")
    report = json.loads(out)
    assert (code, report["libraries"]["tensorrt"]["detail"]) == (0, "crashed: SIGSEGV")
    assert report["backends"]["tensorrt"]["why"] == "tensorrt broken: crashed: SIGSEGV"
    assert report["backends"]["tensorrt"]["cure"] == "pip install 'rescale-toolkit[tensorrt]'"
    default = auto_backend()
    fake(tmp_path, monkeypatch, **{default: "raise ImportError('lib.so: wrong ELF class')"})
    code, out = run(capsys)
    assert code == 1
    assert re.search(rf"{default} +broken +[\d.]+ ImportError: lib.so: wrong ELF class", out)
    assert f"pip install --force-reinstall {default}" in out
    assert re.search(rf"{default} +unusable +default: {default} broken: ImportError: lib.so", out), "the cause beside the default"


@pytest.mark.parametrize(("there", "default"), [(True, "openvino"), (False, "onnxruntime")])
def test_the_default_is_what_a_bundle_is_loaded_with(monkeypatch, capsys, there: bool, default: str) -> None:
    if there and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "openvino" and not there else real(n, *a))
    code, out = run(capsys)
    assert code == 0
    assert re.search(rf"{default} +works +default\n", out)
    assert out.count(" default\n") == 1


IN_PROCESS = {
    "cuda-python": ("cuda", probes.cuda_python),
    "pycuda": ("pycuda", probes.pycuda),
    "tensorrt": ("tensorrt", probes.tensorrt),
    "tensorrt-rtx": ("tensorrt_rtx", lambda: probes.tensorrt("tensorrt-rtx")),
    "onnxruntime": ("onnxruntime", probes.onnxruntime),
    "openvino": ("openvino", probes.openvino),
    "torch": ("torch", probes.torch),
}


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_missing_library_has_the_line_that_installs_it(monkeypatch, name: str) -> None:
    module, probe = IN_PROCESS[name]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n.split(".")[0] == module else real(n, *a))
    found = probe()
    assert found["state"] == probes.ABSENT
    assert found["cure"].startswith("pip install ")


class FakeCuda:
    """libcuda.so.1 with two devices; every function gives `error`."""

    def __init__(self, error: int = 0) -> None:
        self.error = error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuGetErrorName(self, error: int, out: Any) -> int:
        out._obj.value = b"CUDA_ERROR_NO_DEVICE" if error == 100 else None
        return 0

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = 13040
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = 2
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, out: Any, size: int, device: Any) -> int:
        out.value = f"NVIDIA {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:
        out._obj.value = 80 << 30
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
        out._obj.value = {75: 9, 76: device.value}[attribute]
        return 0


def test_the_driver_and_its_devices(monkeypatch) -> None:
    assert probes.driver("libnone.so.1")["detail"] == "libnone.so.1 is not on this machine"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda(100))
    found = probes.driver()
    assert (found["state"], found["detail"]) == (probes.NO_DEVICE, "cuInit failed: CUDA_ERROR_NO_DEVICE (100)")
    assert "nvidia-smi" in found["cure"]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda(999))
    assert probes.driver()["detail"] == "cuInit failed: error 999"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda())
    found = probes.driver()
    assert (found["state"], found["cuda"]) == (probes.WORKS, "13.4")
    assert found["devices"] == [{"name": f"NVIDIA {i}", "compute_capability": f"9.{i}", "memory_bytes": 80 << 30} for i in range(2)]


CRASHING_BUILDER = """
import ctypes
__version__ = "11.4.0.106"
class ILogger:
    class Severity:
        INTERNAL_ERROR = ERROR = WARNING = 0
class Builder:
    def __init__(self, logger):
        {body}
class ComputeCapability:
    __members__ = {{"NONE": 0, "CURRENT": 1, "SM75": 75, "SM120": 120}}
"""
RUNTIME = """
class E(int):
    name = "cudaErrorX"
def cudaGetDeviceCount(): return E({error}), {count}
def cudaRuntimeGetVersion(): return E(0), 13040
def cudaGetErrorString(e): return E(0), b"no driver"
"""


def test_tensorrt_is_not_touched_without_a_device(tmp_path, monkeypatch) -> None:
    code, runtime = CRASHING_BUILDER.format(body="ctypes.string_at(0)"), RUNTIME.format(error=35, count=None)
    fake(tmp_path, monkeypatch, tensorrt=code, cuda__bindings__runtime=runtime)
    found = doctor.ask("tensorrt")
    assert (found["state"], found["version"]) == (probes.NO_DEVICE, "11.4.0.106")
    assert found["detail"] == "neither builds nor runs engines here: cudaErrorX: no driver"
    assert found["cure"] == probes.DRIVER_CURE


def test_tensorrt_is_tried_with_a_device(tmp_path, monkeypatch) -> None:
    runtime = RUNTIME.format(error=0, count=1)
    fake(tmp_path, monkeypatch, tensorrt=CRASHING_BUILDER.format(body="pass"), cuda__bindings__runtime=runtime)
    found = doctor.ask("tensorrt")
    assert (found["state"], found["detail"], found["cure"]) == (probes.WORKS, "builds and runs engines", "")
    found = doctor.ask("cuda-python")
    assert (found["state"], found["detail"]) == (probes.WORKS, "CUDA runtime 13.4, 1 device(s)")
    fake(tmp_path, monkeypatch, tensorrt=CRASHING_BUILDER.format(body="ctypes.string_at(0)"))
    assert doctor.ask("tensorrt")["detail"] == "crashed: SIGSEGV"


@pytest.mark.parametrize(("capability", "state"), [("9.0", probes.BUILDS), ("12.0", probes.WORKS)])
def test_rtx_says_when_the_device_is_none_it_builds_for(monkeypatch, capability: str, state: str) -> None:
    module = types.ModuleType("tensorrt_rtx")
    exec(CRASHING_BUILDER.format(body="pass"), module.__dict__)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    module.__spec__ = importlib.util.spec_from_loader("tensorrt_rtx", None)
    monkeypatch.setattr(flavour, "_loggers", {})
    monkeypatch.setattr(flavour, "probe", lambda *_: (1, ""))
    monkeypatch.setattr(probes, "driver", lambda: {"devices": [{"compute_capability": capability}]})
    found = probes.tensorrt("tensorrt-rtx")
    assert (found["state"], found["builds_for"]) == (state, ["7.5", "12.0"])
    if state == probes.BUILDS:
        assert found["detail"] == "builds engines for compute capability 7.5, 12.0; this device has 9.0"
        assert found["cure"].endswith("pip install 'rescale-toolkit[tensorrt]'")


def test_pycuda_without_a_driver_and_with_a_device(tmp_path, monkeypatch) -> None:
    fake(tmp_path, monkeypatch, pycuda="", pycuda__driver="raise ImportError('undefined symbol: cuArrayCreate_v2')")
    found = doctor.ask("pycuda")
    assert (found["state"], found["cure"]) == (probes.NO_DEVICE, probes.DRIVER_CURE)
    assert "undefined symbol" in found["detail"]
    device = "def init(): pass\nclass Device:\n    count = staticmethod(lambda: 1)"
    fake(tmp_path, monkeypatch, pycuda__driver=device)
    assert doctor.ask("pycuda")["state"] == probes.WORKS


def test_the_model_of_one_operator_is_what_onnx_writes() -> None:
    h = onnx.helper
    values = [h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = h.make_graph([h.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    model = h.make_model(graph, ir_version=8, opset_imports=[h.make_opsetid("", 17)], producer_name="")
    assert onnx.load_from_string(probes.IDENTITY) == model
    onnx.checker.check_model(model, full_check=True)


def test_an_onnxruntime_that_computes_nonsense_is_broken(monkeypatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *a: [np.zeros(1, np.float32)])
    found = probes.onnxruntime()
    assert (found["state"], found["detail"]) == (probes.BROKEN, "identity of 1 gave [0.0]")


def test_the_cpu(tmp_path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nmodel name\t: Example 1\nflags\t\t: fpu avx2 amx_bf16 avx512_bf16 lm\n")
    found = doctor.cpu(path)
    assert (found["model"], found["flags"]) == ("Example 1", ["avx2", "avx512_bf16", "amx_bf16"])
    path.write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert doctor.cpu(path)["flags"] == ["asimd", "bf16"]
    assert doctor.cpu(tmp_path / "none")["flags"] == []


def test_a_bundle_is_run_on_what_works(bundle, capsys) -> None:
    path = bundle("irn_m", 2)
    code, out = run(capsys, "--bundle", str(path), "--json")
    report = json.loads(out)["bundle"]
    assert code == 0
    assert {"onnxruntime fp32", "onnxruntime mixed"} <= set(report["results"])
    for found in report["results"].values():
        assert found["state"] == probes.WORKS
        assert found["parity"]["psnr_lost"] <= 0.02
        assert set(found["seconds"]) == {"downscale", "upscale", "encoder", "decoder"}
        assert min(found["seconds"].values()) > 0
        assert found["runner"].startswith(("onnxruntime ", "openvino "))
        assert found["hr_pixels"] > 192 * 288
    code, out = run(capsys, "-b", str(path))
    assert code == 0
    assert re.search(r"onnxruntime fp32 +works +loses -?\d\.\d{4} dB to PyTorch; lr \d+ of \d+ values", out)


def test_a_forged_manifest_is_shown_without_harm(bundle, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "b"
    shutil.copytree(bundle("irn", 2), folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"size": "\x1b[2Jlite\nfake line"}))
    monkeypatch.setattr(doctor, "ask", lambda *a, **k: probes.finding(probes.WORKS, detail="\x1b]0;said\x07"))
    code, out = run(capsys, "-b", str(folder))
    assert code == 0
    assert f"bundle {folder}: irn x2 \\x1b[2Jlite\\nfake line\n" in out
    assert "\x1b" not in out


def test_a_bundle_that_does_not_agree_is_exit_code_1(bundle, tmp_path, capsys) -> None:
    folder = tmp_path / "b"
    shutil.copytree(bundle("irn", 2), folder)
    with np.load(folder / GOLDEN) as f:
        arrays = {k: (255 - f[k] if k.endswith(".restored") else f[k]) for k in f.files}
    np.savez(folder / GOLDEN, **arrays)
    code = main(["doctor", "-b", str(folder)])
    captured = capsys.readouterr()
    assert (code, captured.out) == (1, "")
    assert re.fullmatch(r"error: .*golden\.npz: SHA-256 .*\n", captured.err)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["golden"]["sha256"] = hashlib.sha256((folder / GOLDEN).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    code, out = run(capsys, "-b", str(folder), "--json")
    found = json.loads(out)["bundle"]["results"]["onnxruntime fp32"]
    assert (code, found["state"]) == (1, probes.BROKEN)
    assert found["detail"]
    assert "parity" in found
    assert main(["doctor", "-b", str(tmp_path / "none")]) == 1
    assert "no bundle here" in capsys.readouterr().err
