"""The runtime in an environment that holds its declared dependencies and nothing else: torch is not installed there."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

import rescale

ROOT = Path(__file__).resolve().parents[2]


def closure(name: str) -> set[str]:
    """Distributions that `name` needs without extras, by name."""
    found: set[str] = set()
    todo = [name]
    while todo:
        here = todo.pop().lower().replace("_", "-")
        if here in found:
            continue
        found.add(here)
        for requirement in metadata.requires(here) or []:
            wanted, _, marker = requirement.partition(";")
            if "extra ==" not in marker and not (
                "platform_system" in marker or "sys_platform" in marker or "python_version" in marker
            ):
                todo.append(re.split(r"[ <>=!~\[(]", wanted.strip())[0])
    return found - {name}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """An interpreter that sees the base dependencies (linked, not copied) and our runtime only."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    for name in sorted(closure("rescale-toolkit")):
        for file in metadata.distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(metadata.distribution(name).locate_file(top))
    (site / "rescale").symlink_to(ROOT / "runtime" / "rescale")
    return folder / "bin" / "python"


def test_torch_is_not_there(bare_python):
    for module in ("torch", "onnx", "safetensors", "skimage", "rescale_train"):
        assert subprocess.run([bare_python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("model", ["dlv_irn_a", "irn_m", "irn"])
def test_down_and_up_without_torch(bare_python, bundle, picture, tmp_path, model):
    path = bundle(model, 2)
    image = picture(33, 47)
    rescale.write_picture(tmp_path / "photo.png", image)
    for args in (["down", "photo.png", "s.png", "-b", path], ["up", "s.png", "again.png", "-b", path], ["verify", "s.png"]):
        done = subprocess.run([bare_python, "-m", "rescale", *args], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    with rescale.load(path) as net:
        assert np.array_equal(rescale.read_picture(tmp_path / "again.png"), net.upscale(net.downscale(image)))


def test_two_reports_are_compared_without_torch(bare_python, tmp_path):
    code = "import sys; sys.path[:0] = [{!r}]; from rescale_bench.cli import main; raise SystemExit(main(['compare', 'a', 'b']))"
    command = [bare_python, "-c", code.format(str(ROOT / "benchmarks"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: a: cannot read: No such file or directory\n")


def test_commands_without_their_extra_name_the_cure(bare_python, tmp_path):
    code = "import sys; sys.path[:0] = [{!r}, {!r}]; from rescale_export.cli import main; raise SystemExit(main([]))"
    code = code.format(str(ROOT / "export"), str(ROOT / "train"))
    done = subprocess.run([bare_python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: torch, safetensors, onnx not installed: pip install 'rescale-toolkit[export]'"
