"""What all commands have in common, and what none of them does behind a user's back."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rescale
from rescale import flavour
from rescale.console import PACKAGE
from rescale.errors import MissingExtraError

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("rescale.cli", "rescale_export.cli", "rescale_train.cli", "rescale_bench.cli", "rescale_engines.cli")


@pytest.mark.parametrize("module", MODULES)
def test_every_command_says_its_version(module, capsys):
    assert importlib.import_module(module).main(["--version"]) == 0
    assert capsys.readouterr().out == f"{rescale.__version__}\n"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_is_one_line_while_modules_are_loaded(module, tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    package = module.partition(".")[0]
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values()
    (entry,) = (e.partition(":") for e in entries if e.startswith(f"{package}."))
    installed = f"import sys; from {entry[0]} import {entry[2]}; sys.exit({entry[2]}())"  # what an installer writes
    for start in (["-c", installed], ["-m", package]):
        done = run(*start, "--help", home=tmp_path, PYTHONPATH=path)
        assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_is_a_line_of_json_too_while_modules_are_loaded(tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    line = {"status": "error", "error": "interrupted", "exit_code": 130}
    for words, wanted in ((["--json"], [line]), (["--", "--json"], []), ([], [])):
        done = run("-m", "rescale", "info", *words, home=tmp_path, PYTHONPATH=path)
        assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
        assert [json.loads(text) for text in done.stdout.splitlines()] == wanted
    assert run("-m", "rescale_export", "--json", home=tmp_path, PYTHONPATH=path).stdout == ""


def test_every_install_line_names_an_extra_that_exists():
    """In the messages of all packages, and in the documentation."""
    extras = set(importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or ())
    named = {}
    for path in [*ROOT.glob("*/rescale*/**/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        text = path.read_text(encoding="utf-8")
        for words in re.findall(r"(?:rescale-toolkit|'\.)\[([\w,-]+)\]|require\(\([^)]*\), \"(\w+)\"\)", text):
            named |= dict.fromkeys(filter(None, re.split(",", words[0] or words[1])), path)
    assert len(named) > 5
    assert {name: path for name, path in named.items() if name not in extras} == {}


@pytest.mark.parametrize("name", flavour.NAMES)
def test_a_backend_that_is_not_installed_names_its_own_extra(name, monkeypatch):
    for module in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=re.escape(f"pip install 'rescale-toolkit[{name}]'")):
        flavour.load(name)


def run(*command: object, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "ORT_DISABLE_TELEMETRY") and not k.startswith("XDG_")}
    environment = kept | {"HOME": str(home)} | variables
    return subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("home", ["home", "no such/place"])
def test_nothing_is_kept_or_told_of_the_machine(bundle, picture, tmp_path, home):
    """ONNX Runtime from 1.32 on writes an identity of the machine below HOME, or a warning where it cannot."""
    place = tmp_path / home
    if home == "home":
        place.mkdir()
    rescale.write_picture(tmp_path / "photo.png", picture(21, 33))
    arguments = ("-b", bundle("irn", 2), "--backend", "onnxruntime")
    down = run("-m", "rescale", "down", tmp_path / "photo.png", tmp_path / "s.png", *arguments, home=place)
    up = run("-m", "rescale", "up", tmp_path / "s.png", tmp_path / "again.png", *arguments, home=place)
    doctor = run("-m", "rescale", "doctor", "--json", home=place)
    assert [(done.returncode, done.stderr) for done in (down, up, doctor)] == [(0, "")] * 3
    assert [str(p.relative_to(place)) for p in place.rglob("*") if "Microsoft" in str(p) or "onnxruntime" in str(p)] == []


def test_the_environments_word_on_telemetry_counts(tmp_path):
    code = (
        "import os; from rescale.extras import set_environment as s; s('onnxruntime'); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    assert run("-c", code, home=tmp_path).stdout == "1\n"
    assert run("-c", code, home=tmp_path, ORT_DISABLE_TELEMETRY="0").stdout == "0\n"


@pytest.mark.parametrize(("first", "told"), [("", []), ("import openvino_telemetry; ", ["openvino_telemetry"])])
def test_openvino_is_kept_from_telling_of_its_import(tmp_path, first, told):
    """Its wheels bring a package for that, which sends by a process of its own; a program that imports it itself has it."""
    pytest.importorskip("openvino")
    code = f"{first}import sys; from rescale.extras import import_library as i; i('openvino', 'openvino'); "
    code += "print([m for m in sys.modules if m == 'openvino_telemetry'], file=sys.stderr)"
    done = run("-c", code, home=tmp_path, CI="true")  # where it sends nothing, even if it is there
    assert done.stderr.splitlines()[-1] == str(told)


def test_the_doctor_does_not_take_folders_that_one_stands_in_for_packages(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("open('ran', 'w'); raise SystemExit(3)")
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text("open('ran', 'w')")
    code = "import sys; sys.path.remove(''); from rescale.cli import main; raise SystemExit(main(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["libraries"]["onnxruntime"]["state"] == "works"
    assert not (tmp_path / "ran").exists()
