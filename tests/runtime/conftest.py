"""Shared by the tests of the runtime."""

from __future__ import annotations

import pytest

import rescale
from rescale.backends.onnxruntime import OnnxRuntimeRunner
from rescale.bundle import Bundle
from rescale.cli import main


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


@pytest.fixture
def here(tmp_path, monkeypatch, bundle, picture):
    """A folder with photo.png (odd size), and the options that name an -A bundle."""
    monkeypatch.chdir(tmp_path)
    rescale.write_picture("photo.png", picture(21, 33))
    return ["-b", str(bundle("dlv_irn_a", 2))]


@pytest.fixture
def error_of(capsys):
    """Runs a command, and gives its exit code and the one line on standard error."""

    def run(args) -> tuple[int, str]:
        code = main([str(a) for a in args])
        err = capsys.readouterr().err.strip()
        assert "\n" not in err, err
        return code, err

    return run
