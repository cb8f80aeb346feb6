"""Writing model repositories: what is replaced, what is refused, engines, and the command."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rescale import engine_file
from rescale.bundle import MANIFEST, Bundle
from rescale.errors import BackendError, ConfigError, EngineError, OutputError
from rescale_export import bundles, triton
from rescale_export.cli import main
from rescale_export.triton import check_repository, repository_models, title, write_repository
from rescale_export.triton_config import TYPES, Model, dims
from rescale_train import checkpoint
from rescale_train.checkpoint import weights_digest
from rescale_train.config import Recipe, TrainConfig


def test_several_bundles_share_a_repository_and_a_second_write_replaces_the_first(bundle, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "foreign" / "1").mkdir(parents=True)
    (repository / "foreign" / "config.pbtxt").write_text("name: 'foreign'")
    plain, latent = Bundle(bundle("irn", 2)), Bundle(bundle("irn_m", 2))
    write_repository(plain, repository)
    write_repository(latent, repository)
    both = {m.name for b in (plain, latent) for m in repository_models(b)}
    assert {p.name for p in repository.iterdir()} == both | {"foreign"}
    write_repository(latent, repository, "python")
    now = {m.name for m in repository_models(plain)} | {m.name for m in repository_models(latent, "python")}
    assert {p.name for p in repository.iterdir()} == now | {"foreign"}
    assert [p.name for p in tmp_path.iterdir()] == ["repository"]


def test_a_title_that_begins_anothers_leaves_its_models(bundle, tmp_path: Path) -> None:
    """irn_x2_lite and irn_x2_lite2."""
    short, long = Bundle(bundle("irn", 2)), Bundle(bundle("irn", 2))
    long.size += "2"
    both = {m.name for b in (short, long) for m in repository_models(b)}
    for b in (long, short, short):
        write_repository(b, tmp_path / "repository")
    assert {p.name for p in (tmp_path / "repository").iterdir()} == both


@pytest.mark.parametrize("kind", ["folder", "file", "other", "changed", "link"])
def test_what_others_put_there_is_never_replaced(bundle, tmp_path: Path, kind: str) -> None:
    b = Bundle(bundle("irn", 2))
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    write_repository(b, repository)
    victim = repository / f"{title(b)}_upscale"
    if kind == "changed":
        (victim / "notes.txt").write_text("mine")
    elif kind == "other":
        config = victim / "config.pbtxt"
        config.write_text(config.read_text().replace("rescale-triton/1", "theirs"))
    else:
        victim.rename(elsewhere)
        if kind == "link":
            victim.symlink_to(elsewhere)
        elif kind == "file":
            victim.write_text("mine")
        else:
            victim.mkdir()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(OutputError, match=r"_upscale: exists and is no model that rescale-export wrote"):
        write_repository(b, repository)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("failing", range(1, 9))
def test_an_error_or_interrupt_while_models_move_leaves_the_old_repository(bundle, tmp_path, monkeypatch, failing: int) -> None:
    b = Bundle(bundle("irn", 2))
    repository = tmp_path / "repository"
    write_repository(b, repository, "python")
    before = {p: p.read_bytes() for p in repository.rglob("*") if p.is_file()}
    rename, calls = Path.rename, itertools.count(1)

    def stumble(self: Path, target: Path) -> Path:
        if next(calls) == failing:
            raise KeyboardInterrupt if failing % 2 else OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stumble)
    with pytest.raises(KeyboardInterrupt if failing % 2 else OutputError):
        write_repository(b, repository)
    assert {p: p.read_bytes() for p in repository.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["repository"]


def test_writers_at_one_time_all_succeed_and_the_last_one_wins(bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Bundle(bundle("irn", 2))
    repository, swap = tmp_path / "repository", triton._swap

    def slow(*arguments: Any) -> None:
        time.sleep(0.01)  # for others to change what this writer has just looked at
        swap(*arguments)

    monkeypatch.setattr(triton, "_swap", slow)

    def write(number: int) -> list[list[str]]:
        return [write_repository(b, repository, ("onnxruntime", "python")[(number + turn) % 2]) for turn in range(8)]

    with ThreadPoolExecutor(3) as pool:
        sets = [set(names) for done in [pool.submit(write, n) for n in range(3)] for names in done.result()]
    assert {p.name for p in repository.iterdir()} in sets
    assert os.listdir(tmp_path) == ["repository"], "no lock is left"


@pytest.mark.parametrize("name", ["r" * 240, "r"])
def test_a_repository_may_have_any_legal_name(bundle, tmp_path: Path, name: str) -> None:
    assert write_repository(Bundle(bundle("irn", 2)), tmp_path / name)


def test_places_that_cannot_be_a_repository(bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Bundle(bundle("irn", 2))
    with pytest.raises(OutputError, match="is a bundle; choose another folder"):
        write_repository(b, b.path)
    with pytest.raises(OutputError, match=f"models: lies in a bundle, {re.escape(str(b.path))}; choose another folder"):
        check_repository(b.path / "models")
    (tmp_path / MANIFEST).write_text('{"name": "a page that can be installed"}')
    with pytest.raises(OutputError, match=r"holds the bundle, .*, which Triton would take for a broken model; choose another"):
        write_repository(b, b.path.parent)
    assert not list(b.path.parent.glob("*_downscale"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        write_repository(b, tmp_path / "file")
    with pytest.raises(OutputError, match=rf"none/here: cannot write the model repository: there is no folder {tmp_path}/none"):
        write_repository(b, tmp_path / "none" / "here")
    (tmp_path / "new").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for place in (tmp_path / "new", tmp_path / "link", tmp_path / "new" / "models"):
        with pytest.raises(
            OutputError, match=r"is or lies in the folder of the bundle, .*link; choose another folder for --triton"
        ):
            check_repository(place, tmp_path / "link")
    assert check_repository(tmp_path / "new models", tmp_path / "new") == tmp_path / "new models"
    with pytest.raises(OutputError, match="/: cannot write the model repository: it is the root folder; choose another --triton"):
        check_repository(Path("/"))
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OutputError, match="circle: cannot write the model repository: this symbolic link leads back to itself"):
        check_repository(tmp_path / "circle")
    (tmp_path / "there").mkdir()
    for shut, message in (
        (tmp_path, f"there: cannot write the model repository: {tmp_path} is not writable; choose another --triton"),
        (tmp_path / "there", "there: is not writable; choose another folder for --triton"),
    ):
        monkeypatch.setattr(os, "access", lambda path, mode, shut=shut: path != shut)
        with pytest.raises(OutputError, match=message):
            check_repository(tmp_path / "there")
    monkeypatch.undo()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "there")
    with pytest.raises(OutputError, match="there: cannot write the model repository: it is a mount point"):
        check_repository(tmp_path / "there")


def test_arguments_that_do_not_fit(bundle, tmp_path: Path) -> None:
    b = Bundle(bundle("irn", 2))
    with pytest.raises(ConfigError, match="unknown Triton backend 'openvino': choose onnxruntime, tensorrt, python"):
        repository_models(b, "openvino")
    with pytest.raises(ConfigError, match="the Python backend runs float32 graphs, not 'mixed'"):
        repository_models(b, "python", "mixed")
    with pytest.raises(ConfigError, match="would serve fp16, the bundle holds fp32, mixed: add --precision fp16"):
        repository_models(b, "onnxruntime", "fp16")
    with pytest.raises(ConfigError, match="unknown precision 'int8': choose one of fp32, mixed, fp16"):
        repository_models(b, "tensorrt", "int8")
    b.size = "../../x"
    with pytest.raises(ConfigError, match="cannot name a model"):
        repository_models(b)
    with pytest.raises(ConfigError, match="only printable ASCII without quotes"):
        Model("m", "python", (), (), {"key": 'a"b'}).config()


def put_engines(b: Bundle, folder: Path, backend: str = "tensorrt", precision: str = "mixed", **changes: Any) -> list[Path]:
    """Engine files whose contents only Triton would look into."""
    folder.mkdir(exist_ok=True)
    made = []
    for name, g in b.precisions[precision].items():
        data = f"plan of {name} {changes}".encode()
        profile = {"min": (1, 2, 2), "opt": (1, 64, 64), "max": (1, 128, 128)}
        info = engine_file.EngineInfo(
            path=folder / engine_file.engine_name(name, precision, backend, "p", hashlib.sha256(data).hexdigest()),
            backend=backend,
            library=changes.get("library", "11.4.0"),
            graph=name,
            precision=precision,
            model=b.variant.name,
            scale=b.scale,
            size=b.size,
            weights=b.weights,
            onnx_sha256=g.sha256,
            engine_sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            profile=profile,
            compute_capabilities=(),
            device=changes.get("device", "NVIDIA X"),
            inputs=g.inputs,
            outputs=g.outputs,
            census={},
            options={},
            key=hashlib.sha256(data).hexdigest(),
        )
        info.path.write_bytes(data)
        engine_file.sidecar(info.path).write_bytes(engine_file.sidecar_bytes(info))
        made.append(info.path)
    return made


def test_tensorrt_models_are_the_engines_of_one_set(bundle, tmp_path: Path) -> None:
    b = Bundle(bundle("irn_m", 2))
    engines = tmp_path / "engines"
    put_engines(b, engines)
    names = write_repository(b, tmp_path / "repository", "tensorrt", engines=engines)
    assert names == [m.name for m in repository_models(b)], "the same models as for ONNX Runtime"
    for graph in b.graphs:
        folder = tmp_path / "repository" / f"{title(b)}_graph_{graph}"
        assert (folder / "1" / "model.plan").read_bytes() == f"plan of {graph} {{}}".encode()
        text = (folder / "config.pbtxt").read_text()
        assert 'backend: "tensorrt"' in text
        for key, value in (("tensorrt", "11.4.0"), ("device", "NVIDIA X"), ("profile_max", "1x128x128"), ("precision", "mixed")):
            assert f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' in text
        for t in (*b.graph(graph, "mixed").inputs, *b.graph(graph, "mixed").outputs):
            assert f'name: "{t.name}" data_type: {TYPES[t.dtype]} dims: {dims(t)}'.replace("[", "[ ").replace("]", " ]") in text


def test_tensorrt_refuses_what_triton_could_not_serve(bundle, tmp_path: Path) -> None:
    b = Bundle(bundle("irn", 2))
    engines, repository = tmp_path / "engines", tmp_path / "repository"

    def refusal() -> str:
        with pytest.raises(BackendError) as e:
            write_repository(b, repository, "tensorrt", engines=engines)
        assert not repository.exists()
        return str(e.value)

    command = f"rescale-engine build {b.path} --backend tensorrt --precision mixed --out {engines}"
    assert refusal() == (
        f"{engines}: no tensorrt engines of {b.title} in mixed for downscale, upscale; build them on the server's GPU with the "
        f"server's version of TensorRT: {command}"
    )
    put_engines(b, engines, "tensorrt-rtx")
    # Bytes of such an engine are not looked at: it is the wrong kind.
    assert "; the engines of TensorRT for RTX there are not for Triton; build them" in refusal()
    made = put_engines(b, engines)
    made[0].rename(tmp_path / "aside")
    (engines / made[0].name.replace(".engine", ".engine.json")).rename(tmp_path / "aside.json")
    assert "for downscale, upscale, there are only upscale;" in refusal()
    put_engines(b, engines)
    more = put_engines(b, engines, device="NVIDIA Y")
    assert "several sets of engines" in refusal()
    assert more[0].name in refusal()
    for path in more:
        path.unlink()
        engine_file.sidecar(path).unlink()
    made[1].write_bytes(b"short")
    with pytest.raises(EngineError, match="truncated"):
        write_repository(b, repository, "tensorrt", engines=engines)


def test_the_command_writes_a_repository_beside_the_bundle(tmp_path: Path, make_net, capsys: pytest.CaptureFixture[str]) -> None:
    net = make_net("irn_m", 2)
    checkpoint.write(tmp_path / "w.safetensors", net.state_dict(), Recipe(net.config, TrainConfig(steps=1)), {})
    base = ["--model", "irn_m", "--checkpoint", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "b")]
    assert main([*base, "--triton", str(tmp_path / "r"), "--triton-precision", "mixed"]) == 0
    b = Bundle(tmp_path / "b")
    names = [m.name for m in repository_models(b)]
    assert capsys.readouterr().out.splitlines()[-1] == f"triton: {tmp_path / 'r'}: {', '.join(names)}"
    graph = tmp_path / "r" / f"{title(b)}_graph_encoder" / "1" / "model.onnx"
    assert graph.read_bytes() == b.read_graph("encoder", "mixed")
    assert main([*base, "--triton", str(tmp_path / "r"), "--triton-backend", "python", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["triton"]
    names = [m.name for m in repository_models(b, "python")]
    assert report == {"repository": str(tmp_path / "r"), "backend": "python", "models": names}


def test_what_triton_cannot_have_is_said_before_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--model", "irn", "--out", str(tmp_path / "b")]
    (tmp_path / "file").write_text("in the way")
    wrong = [
        (["--triton-backend", "torch"], 2, "unknown Triton backend 'torch': choose onnxruntime, tensorrt, python"),
        (["--triton-precision", "fp16"], 1, "add --precision fp16"),
        (["--triton-backend", "tensorrt", "--precision", "fp32"], 1, "the bundle holds fp32: add --precision mixed"),
        (["--triton", str(tmp_path / "file")], 1, "file: is not a folder; choose another one for --triton"),
        (["--triton", "/"], 1, "/: cannot write the model repository: it is the root folder"),
        (["--triton", str(tmp_path / "b")], 1, "b: is or lies in the folder of the bundle"),
        (["--triton", str(tmp_path)], 1, "choose another folder for --triton or --out"),
        (
            ["--triton-engines", "/none", "--triton-backend", "python", "--triton", str(tmp_path / "r")],
            2,
            "is for --triton-backend tensorrt, not python",
        ),
        (["--triton-precision", "mixed"], 2, "are for --triton, which is missing"),
        (["--triton-backend", "onnxruntime"], 2, "are for --triton, which is missing"),
        (["--triton-engines", "/none"], 2, "are for --triton, which is missing"),
        (["--triton-backend", "tensorrt", "--precision", "fp32"], 2, "are for --triton, which is missing"),
    ]
    for arguments, code, message in wrong:
        extra = [] if "--triton" in arguments or code == 2 else ["--triton", str(tmp_path / "r")]
        assert main([*base, *extra, *arguments]) == code
        assert message in " ".join(capsys.readouterr().err.split()) + "\n"
    assert main(["--model", "irn", "--out", str(tmp_path / "none" / "b")]) == 1
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    assert main(["--model", "irn", "--out", str(tmp_path / "file")]) == 1
    assert "exists and is not a bundle" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"file"}, "nothing is written"


def test_the_default_place_of_the_bundle_is_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", "irn", "--size", "lite", "--triton", "irn_x2_lite"]) == 1
    assert "irn_x2_lite: is or lies in the folder of the bundle, irn_x2_lite; choose another" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_repository_that_fails_late_does_not_hide_the_bundle(
    bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    b = Bundle(bundle("irn", 2))
    monkeypatch.setattr(bundles, "write_bundle", lambda *args: b)
    engines = ["--triton-backend", "tensorrt", "--triton-engines", str(tmp_path)]
    assert main(["--model", "irn", "--size", "lite", "--triton", str(tmp_path / "r"), *engines]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"bundle: {b.path}"
    assert "no tensorrt engines" in err
    assert main(["--model", "irn", "--size", "lite", "--triton", str(tmp_path / "r"), *engines, "--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["bundle"], report["graphs"]) == (str(b.path), b.manifest["graphs"])
    assert report["triton"].keys() == {"repository", "backend", "error"}
    assert err == f"error: {report['triton']['error']}\n"


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_another_export_to_the_same_place_does_not_reach_the_repository(
    tmp_path: Path, make_net, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    mine, theirs = make_net("irn", 2), make_net("irn", 2, seed=3)
    write = bundles.write_bundle

    def overtaken(net: Any, target: Path, *arguments: Any) -> Bundle:
        made = write(net, target, *arguments)
        write(theirs, target, None, ())
        return made

    monkeypatch.setattr(bundles, "write_bundle", overtaken)
    checkpoint.write(tmp_path / "w.safetensors", mine.state_dict(), Recipe(mine.config, TrainConfig(steps=1)), {})
    place = ["--out", str(tmp_path / "b"), "--triton", str(tmp_path / "r"), "--triton-backend", backend]
    assert main(["--model", "irn", "--checkpoint", str(tmp_path / "w.safetensors"), *place]) == 0
    assert Bundle(tmp_path / "b").weights == weights_digest(theirs)
    for model in (tmp_path / "r").iterdir():
        assert f'"{weights_digest(mine)}"' in (model / "config.pbtxt").read_text()
        for served in model.glob("1/bundle"):
            copy = Bundle(served)
            copy.verify()
            assert copy.weights == weights_digest(mine)


def test_templates_travel_with_the_package() -> None:
    for name in ("steps.py", "runtime.py"):
        assert b"class TritonPythonModel" in triton._template(name)
