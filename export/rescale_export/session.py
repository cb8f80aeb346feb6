"""ONNX Runtime as the checks of an export use it: a graph as it is, on the CPU."""

from __future__ import annotations

from typing import Any

from onnxruntime import InferenceSession, SessionOptions


def session_of(model: bytes) -> Any:
    """A session of a graph's bytes, which prints errors only."""
    options = SessionOptions()
    options.log_severity_level = 3
    return InferenceSession(model, options, providers=["CPUExecutionProvider"])
