"""Shared by the tests of the runtime."""

from __future__ import annotations

import pytest

from rescale.backends.onnxruntime import OnnxRuntimeRunner
from rescale.bundle import Bundle


@pytest.fixture
def reference(bundle):
    """ONNX Runtime on one thread, as the fake has it."""
    made = {}

    def get(model, scale):
        if (model, scale) not in made:
            made[model, scale] = OnnxRuntimeRunner(Bundle(bundle(model, scale)), 1)
        return made[model, scale]

    yield get
    for runner in made.values():
        runner.close()
