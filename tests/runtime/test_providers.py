"""Execution providers of ONNX Runtime by name: used, or an error."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

import rescale
from rescale.backends import create
from rescale.backends import onnxruntime as module
from rescale.bundle import Bundle
from rescale.errors import BackendError

FRAME = {"hr": np.zeros((1, 8, 8, 3), np.uint8)}


def test_the_cpu_by_name_with_an_option(bundle):
    b = Bundle(bundle("irn", 2))
    runner = create(b, provider="CPUExecutionProvider", provider_options={"use_arena": "0"})
    assert runner.run("downscale", FRAME)["lr"].shape == (1, 4, 4, 3)
    assert "CPU" in runner.name


def test_a_missing_provider_is_an_error_that_lists_the_others(bundle):
    with pytest.raises(
        BackendError, match=r"CUDAExecutionProvider: this ONNX Runtime .* does not have it, only .*CPUExecutionProvider"
    ):
        rescale.load(bundle("irn", 2), provider="CUDAExecutionProvider")


def test_a_provider_that_onnxruntime_would_ignore_is_an_error(bundle, monkeypatch):
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", lambda data, options, providers: real(data, options, ["CPUExecutionProvider"]))
    runner = create(Bundle(bundle("irn", 2)), provider="CUDAExecutionProvider")
    with pytest.raises(
        BackendError, match="CUDAExecutionProvider cannot run downscale: ONNX Runtime would use CPUExecutionProvider"
    ):
        runner.run("downscale", FRAME)


def test_only_onnxruntime_has_providers(bundle):
    with pytest.raises(BackendError, match="only the onnxruntime backend has providers, not openvino"):
        create(Bundle(bundle("irn", 2)), "openvino", provider="CPUExecutionProvider")


def test_threads_do_not_spin(bundle, monkeypatch):
    entries = {}

    class Options(ort.SessionOptions):
        def add_session_config_entry(self, key, value):
            entries[key] = value
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(module.ort, "SessionOptions", Options)
    create(Bundle(bundle("irn", 2)), "onnxruntime").run("downscale", FRAME)
    assert entries["session.intra_op.allow_spinning"] == "0"


def test_idle_sessions_use_no_cpu(bundle, picture):
    """Both directions hold a pool of threads; neither may burn time while the program does something else."""
    import time

    with rescale.load(bundle("irn_a", 2), backend="onnxruntime", threads=2) as net:
        net.upscale(net.downscale(picture(200, 200)))
        before, start = time.process_time(), time.perf_counter()
        while time.perf_counter() - start < 0.4:
            time.sleep(0.02)
        assert time.process_time() - before < 0.1


def test_a_provider_can_be_part_of_the_backends_name(bundle):
    b = Bundle(bundle("irn", 2))
    assert create(b, "onnxruntime:CPUExecutionProvider,use_arena=0").run("downscale", FRAME)["lr"].shape == (1, 4, 4, 3)
    with pytest.raises(BackendError, match="TensorrtExecutionProvider: this ONNX Runtime"):
        create(b, "onnxruntime:TensorrtExecutionProvider,device_id=0")
    for wrong in ("onnxruntime:", "onnxruntime:CPUExecutionProvider,use_arena", "onnxruntime:CPUExecutionProvider,=1"):
        with pytest.raises(BackendError, match="wanted is onnxruntime:PROVIDER or"):
            create(b, wrong)


def test_the_parity_gate_takes_providers(bundle, capsys):
    from rescale_bench.cli import main

    command = ["parity", str(bundle("irn", 2)), "--precision", "fp32", "--backend"]
    assert main([*command, "onnxruntime:CPUExecutionProvider"]) == 0
    assert main([*command, "onnxruntime:CUDAExecutionProvider"]) == 1
    assert "does not have it, only" in capsys.readouterr().err
