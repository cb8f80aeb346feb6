"""Who imports whom, and what `import rescale` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "rescale": "runtime",
    "rescale_engines": "engines",
    "rescale_train": "train",
    "rescale_export": "export",
    "rescale_bench": "benchmarks",
}
MAY_IMPORT = {
    "rescale": {"rescale"},
    "rescale_engines": {"rescale", "rescale_engines"},
    "rescale_train": {"rescale", "rescale_train"},
    "rescale_export": {"rescale", "rescale_train", "rescale_export"},
    "rescale_bench": set(FOLDERS),
}
LIGHT = {"rescale": {"torch", "onnx", "tensorrt", "polygraphy", "pycuda", "skimage"}, "rescale_engines": {"torch"}}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FOLDERS)
def test_packages_import_only_what_they_may(package):
    files = sorted((ROOT / FOLDERS[package] / package).rglob("*.py"))
    assert files
    for path in files:
        found = imports(path)
        assert found & set(FOLDERS) <= MAY_IMPORT[package], path
        assert not found & LIGHT.get(package, set()), path


@pytest.mark.parametrize("package", FOLDERS)
def test_libraries_are_imported_without_their_telemetry(package):
    """By `rescale.extras`, which keeps them from it."""
    files = sorted((ROOT / FOLDERS[package] / package).rglob("*.py"))
    assert [path for path in files if {"onnxruntime", "openvino"} & imports(path)] == []


@pytest.mark.parametrize("package", FOLDERS)
def test_packages_are_typed(package):
    assert (ROOT / FOLDERS[package] / package / "py.typed").exists()


def test_import_rescale_is_light():
    code = "import rescale, sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert "rescale" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "tensorrt", "polygraphy", "pycuda", "PIL", "numpy", "typer", "rich"}


def test_hardly_anything_is_loaded_before_ctrl_c_is_told_in_one_line():
    code = "import sys; before = set(sys.modules); import rescale.__main__; print(*set(sys.modules) - before)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert {m for m in loaded if m.partition(".")[0] == "rescale"} == {"rescale", "rescale.__main__", "rescale.start"}
    assert not loaded & {"typing", "dataclasses", "re", "json"}


def test_public_names_all_resolve():
    import rescale

    assert rescale.errors.InputError is rescale.InputError
    assert all(getattr(rescale, name) is not None for name in rescale.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rescale.nothing


def test_no_file_is_too_long_to_be_one_thing():
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path
