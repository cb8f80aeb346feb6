"""The README's commands are run as they stand; the wheel holds what it should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def shell(command: str, folder: Path) -> str:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder like a fresh clone, as far as the README's commands look, and the output of the first command after its install."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "docs", folder / "docs")
    install, _, rest = blocks("sh")[0].partition(" &&\n")
    assert install.startswith("python3 -m venv .venv && .venv/bin/pip install")
    return folder, shell(rest, folder)


def test_first_command_restores_a_real_picture_and_prints_its_psnr(workplace):
    _, out = workplace
    assert float(re.search(r"Y-PSNR ([0-9.]+) dB", out).group(1)) > 45
    assert f"```\n{out}```" in README or out.splitlines()[-1] in README, out


def test_second_command_is_what_ci_runs():
    assert blocks("sh")[1].strip().endswith("&& .venv/bin/pytest -q -n auto --dist worksteal")
    assert "<!-- test command -->\n```sh\n" + blocks("sh")[1] in README
    assert "test command" in (ROOT / ".ci" / "run").read_text()


def test_other_shell_blocks_run(workplace):
    folder, _ = workplace
    rest = blocks("sh")[2:]
    assert rest
    for block in rest:
        shell(block, folder)


def test_python_blocks_run(workplace):
    folder, _ = workplace
    for block in blocks("python"):
        subprocess.run([sys.executable, "-c", block], cwd=folder, check=True)


def test_files_that_the_readme_names_exist():
    for link in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_wheel_holds_the_packages_weights_and_recipes(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    packages = {n.split("/")[0] for n in names if not n.startswith("rescale_toolkit-")}
    assert packages == {"rescale", "rescale_train", "rescale_export", "rescale_engines", "rescale_bench"}
    for wanted in (
        "rescale/py.typed",
        "rescale_train/recipes/dlv_irn_a_x2_lite.toml",
        "rescale_train/weights/dlv_irn_a_x2_lite.safetensors",
        "rescale_train/weights/dlv_irn_a_x2_lite.json",
    ):
        assert wanted in names
    assert not [n for n in names if "test" in n.lower() or n.endswith((".toml.orig", ".pyc"))]
