"""ONNX Runtime as the checks of an export use it: a graph as it is, on the CPU."""

from __future__ import annotations

from typing import Any

from rescale.extras import import_library

ort = import_library("onnxruntime")


def session_of(model: bytes) -> Any:
    """A session of a graph's bytes, which prints errors only."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
