"""The rescale-engine command, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rescale.parity import Choice, Parity
from rescale_engines.cli import main

pytestmark = pytest.mark.usefixtures("rtx")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def bundle(full_bundle):
    return str(full_bundle("irn_a", 2).path)


def run(capsys, *argv):
    """(exit code, stdout, stderr)."""
    code = main([*map(str, argv)])
    return code, *capsys.readouterr()


def test_build_list_inspect_clean(bundle, capsys, cache):
    code, out, err = run(capsys, "build", bundle, "--profile", "2x2:64x64:128x128", "--json")
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert (made["wanted"], made["precision"], made["backend"]) == ("mixed", "mixed", "tensorrt-rtx")
    assert [e["engine"]["graph"] for e in made["engines"]] == ["downscale", "upscale"]
    assert made["engine_parity"] == {}
    assert "no CUDA device" in made["engine_parity_missing"]["1x2x2-1x64x64-1x128x128"]
    path = made["engines"][1]["path"]

    code, out, _ = run(capsys, "build", bundle, "--profile", "2x2:64x64:128x128")
    assert code == 0
    assert out.count(", kept\n") == 2
    assert "dB lost against PyTorch" in out
    assert "the engines of profile 1x2x2-1x64x64-1x128x128 were not run: no CUDA device here" in out

    code, out, _ = run(capsys, "list", bundle)
    assert [line.rpartition(": ")[2] for line in out.splitlines()] == ["ready", "ready"]

    code, out, _ = run(capsys, "inspect", path)
    assert code == 0
    for text in ("irn_a x2 custom, upscale, mixed", "CONVOLUTION", "HALF", "min 1x2x2, opt 1x64x64", "8.9", "whole: size"):
        assert text in out
    found = json.loads(run(capsys, "inspect", path + ".json", "--json")[1])
    convolutions = found["engine"]["census"]["CONVOLUTION"]
    assert convolutions["FLOAT"] == 1
    assert convolutions["HALF"] >= 10
    assert found["header"]["bytes"] == found["engine"]["bytes"] == os.path.getsize(path)
    assert found["problem"] is None

    os.truncate(path, 100_000)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 1
    assert "cannot be used: " in out
    assert "truncated: 100000 bytes" in out
    assert "upscale" in run(capsys, "list", bundle)[1].splitlines()[1]
    (row,) = json.loads(run(capsys, "clean", "--dry-run", "--json")[1])
    assert (row["path"], row["deleted"]) == (path, False)
    assert os.path.exists(path)
    code, out, _ = run(capsys, "clean", bundle)
    assert code == 0
    assert out.startswith(f"{path}: deleted (truncated")
    assert run(capsys, "clean")[1] == "nothing to delete\n"

    side = Path(made["engines"][0]["path"] + ".json")
    text = side.read_text()
    side.write_text(json.dumps(json.loads(text) | {"weights": "0" * 64}))
    assert "foreign" in run(capsys, "list", bundle)[1]
    for more in ([], ["--all"], ["--out", side.parent, "--all"]):
        assert run(capsys, "clean", bundle, *more)[:2] == (0, "nothing to delete\n"), "another bundle's engine"
    side.write_text(text)
    assert "deleted (in order)" in run(capsys, "clean", "--all")[1]
    assert not [*cache.rglob("*.engine*")] or all(p.name.endswith(".lock") for p in cache.rglob("*.engine*"))
    assert "no engines; make some with rescale-engine build" in run(capsys, "list", bundle)[1]


def test_a_folder_that_is_not_there_is_not_taken_for_an_empty_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "clean", "--out", tmp_path / "nowhere")
    assert (code, err) == (1, f"error: --out {tmp_path}/nowhere: no such folder\n")


def test_clean_leaves_what_no_build_named(bundle, capsys, tmp_path):
    run(capsys, "build", bundle, "--graph", "upscale", "--profile", "64x64", "--out", tmp_path)
    (engine,) = tmp_path.glob("*.engine")
    engine.with_name(engine.name + ".json").unlink()
    others = [
        "yolov8n.engine",
        "settings.engine.json",
        "upscale.engine",
        f"my.{engine.name}",
        engine.name.replace("1x64x64", "b", 1),
    ]
    for name in others:
        (tmp_path / name).write_bytes(b"somebody else's")
    for argv in (["clean", bundle], ["clean", bundle, "--all"], ["clean", "--all"]):
        assert run(capsys, *argv, "--out", tmp_path)[0] == 0
    assert not engine.exists()
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == set(others)
    assert "no engines" in run(capsys, "list", bundle, "--out", tmp_path)[1]


def test_inspect_without_a_sidecar_or_an_engine(bundle, capsys, tmp_path):
    run(capsys, "build", bundle, "--graph", "upscale", "--profile", "64x64", "--out", tmp_path)
    (engine,) = tmp_path.glob("*.engine")
    sidecar = engine.with_name(engine.name + ".json")
    text = sidecar.read_text()
    sidecar.unlink()
    code, out, _ = run(capsys, "inspect", engine)
    assert code == 1
    assert "header: " in out
    assert "half-written" in out
    sidecar.write_text(text)
    engine.unlink()
    code, out, _ = run(capsys, "inspect", sidecar)
    assert code == 1
    assert "there is a sidecar but no engine" in out
    sidecar.unlink()
    assert run(capsys, "inspect", engine)[::2] == (1, f"error: {engine}: no such engine; make one with rescale-engine build\n")


def test_inspect_of_another_file_says_that_it_is_none_of_ours(capsys, tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    code, out, _ = run(capsys, "inspect", photo)
    assert code == 1
    assert f"cannot be used: {photo}: another file, wanted an engine, NAME.engine; rescale-engine list BUNDLE" in out
    assert "half-written" not in out


def test_a_forged_sidecar_is_shown_without_harm(bundle, capsys, tmp_path):
    run(capsys, "build", bundle, "--graph", "upscale", "--profile", "64x64", "--out", tmp_path)
    (engine,) = tmp_path.glob("*.engine")
    sidecar = engine.with_name(engine.name + ".json")
    good = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(good | {"library": "\x1b]0;owned\x07", "model": "\x1b[2Jirn\nfake line"}))
    for argv in (["inspect", engine], ["list", bundle, "--out", tmp_path], ["clean", bundle, "--out", tmp_path, "--dry-run"]):
        _, out, err = run(capsys, *argv)
        assert "\x1b" not in out + err
        assert "\nfake line" not in out + err
    sidecar.write_text(json.dumps(good | {"parity": {"x": 1}}))
    code, out, _ = run(capsys, "inspect", engine)
    assert code == 1
    assert "cannot be used" in out


def test_a_forged_manifest_is_shown_without_harm(bundle, capsys, tmp_path, monkeypatch):
    forged = tmp_path / "forged"
    shutil.copytree(bundle, forged)
    manifest = json.loads((forged / "manifest.json").read_text())
    (forged / "manifest.json").write_text(json.dumps(manifest | {"size": "\x1b[2Jlite\nfake line"}))
    outcome = SimpleNamespace(choice="mixed, as wanted", precision="mixed", engines=(), parity={}, unmeasured={}, refused={})
    monkeypatch.setattr("rescale_engines.gate.build_checked", lambda *a, **k: outcome)
    monkeypatch.setattr("rescale_engines.cli.load", lambda *a, **k: None)
    code, out, err = run(capsys, "build", forged)
    assert (code, out, err) == (0, "irn_a x2 \\x1b[2Jlite\\nfake line: mixed, as wanted\n", "")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["build", "nowhere"], 1, "nowhere: no bundle here"),
        (["build", "{}", "--precision", "int8"], 1, "unknown precision 'int8': choose one of fp32, mixed, fp16"),
        (["build", "{}", "--graph", "decoder"], 1, "no graph 'decoder'"),
        (["build", "{}", "--profile", "64"], 1, "'64' is not HxW"),
        (["build", "{}", "--profile", "63x64"], 1, "height 63 is not a multiple of 2"),
        (["build", "{}", "--profile", "64x64:32x32:64x64"], 1, "must not decrease"),
        (["build", "{}", "--profile", "32768x32768"], 1, "--max-memory"),
        (["build", "{}", "--max-memory", "many"], 2, "a size is wanted"),
        (["build", "{}", "--max-memory", "1"], 1, "MB at 1x1088x1920, allowed are 0 MB: choose a smaller largest size"),
        (["build", "{}", "--workspace", "0"], 2, "memory '0': a size is wanted"),
        (["build", "{}", "--compute-capability", "9.0"], 1, "can target"),
        (["build", "{}", "--compute-capability", "8..9"], 1, "compute capability '8..9'"),
        (["build", "{}", "--backend", "cuda"], 1, "unknown backend 'cuda'"),
        (["build", "{}", "--fp16"], 2, "No such option"),
        (["inspect", "nowhere.engine"], 1, "no such engine"),
        (["inspect", "{}"], 1, "a folder, wanted an engine"),
        (["inspect", "."], 1, ".: a folder, wanted an engine"),
        (["list", "nowhere"], 1, "no bundle here"),
        (["list", "{}", "--out", "nowhere"], 1, "--out nowhere: no such folder"),
        (["list", "{}", "--out", "{}/manifest.json"], 1, "manifest.json: no such folder"),
        (["clean", "{}", "--out", "nowhere"], 1, "--out nowhere: no such folder"),
        (["clean", "--out", "nowhere"], 1, "--out nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(bundle, capsys, cache, argv, code, message):
    found, out, err = run(capsys, *[a.format(bundle) for a in argv])
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert code == 2 or err.count("\n") == 1
    assert not [*cache.rglob("*.engine")] if cache.exists() else True


def test_what_cannot_be_built_is_known_before_the_gate(bundle, capsys, monkeypatch):
    monkeypatch.setattr("rescale_engines.gate.build_checked", lambda *a, **k: pytest.fail("the gate takes seconds"))
    code, _, err = run(capsys, "build", bundle, "--compute-capability", "9.0")
    assert (code, "can target 7.5, 8.0" in err) == (1, True)


def test_a_hint_builds_where_one_looked(bundle, capsys, tmp_path):
    code, out, _ = run(capsys, "list", bundle, "--out", tmp_path)
    assert (code, out) == (0, f"{tmp_path}: no engines; make some with rescale-engine build {bundle} --out {tmp_path}\n")


def test_all_that_was_refused_is_told(bundle, capsys, monkeypatch):
    """Engines of fp16 on the device, then the mixed graphs by the gate."""
    choice = Choice("mixed", "fp32", "a runner", {"fp32": Parity()}, {"mixed": "x"})
    outcome = SimpleNamespace(choice=choice, precision="fp32", engines=(), parity={}, unmeasured={}, refused={"fp16": "at 2x2"})
    monkeypatch.setattr("rescale_engines.gate.build_checked", lambda *a, **k: outcome)
    code, _, err = run(capsys, "build", bundle, "--precision", "mixed")
    assert code == 0
    said = "fp16 engines refused at 2x2; mixed refused x; use fp32: 0.000 dB lost against PyTorch (a runner)"
    assert err.replace("\n", " ").rstrip().endswith(said)


INTERRUPTED = """
import os, signal, sys, threading
from rescale_engines import gate
from rescale_engines.cli import main

ensure = gate.ensure

def struck(*args):
    args = [*args]
    steps = []
    def progress(phase, done, total):
        steps.append(phase)
        if len(steps) == 30:
            os.kill(os.getpid(), signal.SIGINT)
    args[6] = progress
    return ensure(*args)

gate.ensure = struck
raise SystemExit(main(sys.argv[1:]))
"""


def test_ctrl_c(bundle, cache):
    command = [sys.executable, "-c", INTERRUPTED, "build", bundle]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
    assert all(p.name.endswith(".lock") for p in cache.rglob("*") if p.is_file())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_progress_on_a_terminal(bundle):
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "rescale_engines.cli", "build", bundle, "--graph", "upscale"]
    env = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=env)
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 65536)
        except OSError:  # how Linux says that the other side has closed
            break
        if process.poll() is not None and not shown.endswith(b"\n") and b"built" in shown:
            break
    assert process.communicate(timeout=60)[0].count(b"built in") == 1
    assert process.returncode == 0
    os.close(master)
    assert b"Checking the graphs" in shown
    assert b"upscale mixed: built" in shown
