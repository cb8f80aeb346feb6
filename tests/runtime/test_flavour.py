"""Loading TensorRT: nothing is touched before the driver is asked, and what the library says reaches who listens."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from rescale import extras, flavour
from rescale.errors import BackendError, MissingExtraError
from rescale.flavour import Flavour, Message, clean, collected, device, device_count, errors, load, logger, probe


class Error(int):
    name = "cudaErrorSomething"


DONE = Error(0)


def cuda(monkeypatch, count=(DONE, 1), index=(DONE, 0), properties=None):
    """A CUDA runtime that answers so."""

    def get():
        if isinstance(count, Exception):
            raise count
        return count

    found = SimpleNamespace(name=b"GPU A", major=9, minor=0) if properties is None else properties
    runtime = SimpleNamespace(
        cudaGetDeviceCount=get,
        cudaGetErrorString=lambda e: (Error(0), b"words"),
        cudaGetDevice=lambda: index,
        cudaGetDeviceProperties=lambda i: (Error(0), found),
    )
    # import_module returns what sys.modules holds under the dotted name.
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)


def fake(monkeypatch, name="tensorrt", **names):
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    class ILogger:
        def __init__(self):
            pass

    ILogger.Severity = Severity
    module = SimpleNamespace(__version__="10.16.1.11", ILogger=ILogger, **names)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(flavour, "_loggers", {})
    return module


def test_probe_on_every_kind_of_machine(monkeypatch):
    cuda(monkeypatch)
    assert probe() == (1, "")
    assert device_count() == 1
    cuda(monkeypatch, (Error(0), 0))
    assert probe() == (0, "no CUDA device")
    cuda(monkeypatch, (Error(35), None))
    assert probe() == (0, "cudaErrorSomething: words")
    cuda(monkeypatch, RuntimeError("libcuda is not there"))
    assert probe() == (0, "RuntimeError: libcuda is not there")


def test_the_real_probe_agrees_with_the_driver():
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    count, reason = probe()
    assert (count > 0) == (reason == "")
    if not count:
        with pytest.raises(BackendError, match="no CUDA device"):
            device()


def test_device(monkeypatch):
    cuda(monkeypatch)
    assert device() == flavour.Device("GPU A", "9.0")
    cuda(monkeypatch, properties=SimpleNamespace(name="GPU B", major=8, minor=6))
    assert device() == flavour.Device("GPU B", "8.6")
    cuda(monkeypatch, index=(Error(3), None))
    with pytest.raises(BackendError, match="does not answer: cudaErrorSomething"):
        device()
    cuda(monkeypatch, (Error(35), None))
    with pytest.raises(BackendError, match=r"no CUDA device \(cudaErrorSomething: words\)"):
        device()


def test_loading(monkeypatch):
    with pytest.raises(BackendError, match="unknown backend 'trt': choose one of tensorrt, tensorrt-rtx"):
        load("trt")
    module = fake(monkeypatch)
    cuda(monkeypatch)
    found = load("tensorrt")
    assert found == Flavour("tensorrt", module, "10.16.1.11", builds_without_gpu=False)
    assert found.title == "tensorrt 10.16.1.11"
    cuda(monkeypatch, (Error(35), None))
    with pytest.raises(BackendError, match=r"^tensorrt: no CUDA device"):
        load("tensorrt")
    assert load("tensorrt", needs_device=False) == found


@pytest.mark.parametrize(("name", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_what_is_not_installed_is_one_pip_line(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"^{module} not installed: pip install 'rescale-toolkit\[{name}\]'$"):
        load(name, needs_device=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=r"^cuda.bindings.runtime not installed: pip install"):
        device_count()


def test_an_installation_that_is_broken(monkeypatch):
    def broken(name):
        raise failure

    monkeypatch.setattr(extras.importlib, "import_module", broken)
    failure: Exception = ImportError("libnvinfer.so.10: cannot open shared object file")
    with pytest.raises(BackendError, match=r"tensorrt: installed, but cannot be imported: ImportError: libnvinfer.so.10"):
        load("tensorrt", needs_device=False)
    failure = ModuleNotFoundError("No module named 'numpy'", name="numpy")
    with pytest.raises(BackendError, match="tensorrt: cannot be imported: No module named 'numpy'"):
        load("tensorrt", needs_device=False)


def test_one_logger_and_a_list_for_each_listener(monkeypatch):
    module = fake(monkeypatch)
    found = Flavour("tensorrt", module, "10", False)
    ours, severity = logger(found), module.ILogger.Severity
    assert logger(found) is ours
    seen = {}

    def listen(name):
        with collected(found) as messages:
            barrier.wait(10)
            ours.log(severity.ERROR, name)
            ours.log(severity.INFO, "chatter")
            barrier.wait(10)
            seen[name] = messages

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=listen, args=(n,)) for n in "ab"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert seen == {"a": [Message("error", "a")], "b": [Message("error", "b")]}
    assert flavour._active == []


def test_threads_of_the_library_and_nested_listeners(monkeypatch):
    module = fake(monkeypatch)
    found = Flavour("tensorrt", module, "10", False)
    severity = module.ILogger.Severity
    with collected(found) as outer:
        with collected(found) as inner:
            logger(found).log(severity.WARNING, "inside")
        logger(found).log(severity.INTERNAL_ERROR, "outside")
        thread = threading.Thread(target=logger(found).log, args=(severity.ERROR, "elsewhere"))
        thread.start()
        thread.join()
    assert inner == [Message("warning", "inside")]
    assert outer == [Message("internal_error", "outside"), Message("error", "elsewhere")]


def test_nothing_is_lost_where_nobody_listens(monkeypatch, caplog):
    module = fake(monkeypatch)
    with caplog.at_level(logging.WARNING, "rescale.tensorrt"):
        logger(Flavour("tensorrt", module, "10", False)).log(module.ILogger.Severity.ERROR, "100% broken")
    assert caplog.messages == ["100% broken"]


def test_a_log_without_end_is_cut(monkeypatch):
    module = fake(monkeypatch)
    found = Flavour("tensorrt", module, "10", False)
    with collected(found) as messages:
        for i in range(flavour.MAX_MESSAGES + 10):
            logger(found).log(module.ILogger.Severity.ERROR, str(i))
    assert len(messages) == flavour.MAX_MESSAGES


NOISE = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)"


def test_noise_of_a_missing_driver(monkeypatch):
    said = [Message("error", f"real\n{NOISE}\ncause"), Message("error", NOISE), Message("warning", "hm"), Message("warning", "hm")]
    cuda(monkeypatch, (Error(35), None))
    assert clean(said) == [Message("error", "real\ncause"), Message("warning", "hm")]
    assert errors(said) == "real cause"
    # Where there is a device, a driver that is too old is no noise.
    cuda(monkeypatch)
    assert clean(said) == said[:3]
    assert errors(said).count("insufficient") == 2
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert errors(said) == "real cause"


def test_importing_it_is_light():
    code = "import rescale.flavour, rescale.engine_file, sys; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"tensorrt", "tensorrt_rtx", "cuda", "torch", "onnx", "typer", "polygraphy"}
