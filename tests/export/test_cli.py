from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rescale.bundle import Bundle
from rescale.variants import SCALES, VARIANTS
from rescale_export import bundles
from rescale_export.cli import main, print_bundle
from rescale_train import checkpoint, shipped
from rescale_train.checkpoint import weights_digest
from rescale_train.config import SIZES, Recipe, TrainConfig, net_config
from rescale_train.models import RescalingNet
from rescale_train.shipped import find_shipped

MakeNet = Callable[..., RescalingNet]


def save(path: Path, net: RescalingNet) -> Path:
    recipe = Recipe(net.config, TrainConfig(steps=1))
    checkpoint.write(path, net.state_dict(), recipe, {})
    return path


@pytest.fixture
def weights(tmp_path: Path, make_net: MakeNet) -> Path:
    return save(tmp_path / "w.safetensors", make_net("irn_a", 2))


@pytest.fixture
def folder(tmp_path: Path, net_of: MakeNet, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder of its own: lite IRN-A x2 weights with their card."""
    path = tmp_path / "shipped"
    path.mkdir()
    save(path / "irn_a_x2_lite.safetensors", net_of(net_config("irn_a", 2, "lite")))
    card: dict[str, Any] = {
        "model": "irn_a",
        "scale": 2,
        "size": "lite",
        "steps": 77,
        "parameters": 187_000,
        "recipe": {"net": {}, "train": {}},
    }
    card["earlier"] = [{"steps": 23}, {"steps": 1_000}]
    card["figures"] = {"Set5": {"hr_psnr_y": 41.236}, "BSD100": {"hr_psnr_y": 39.5}}
    (path / "irn_a_x2_lite.json").write_text(json.dumps(card))
    monkeypatch.setattr(shipped, "weights_folder", lambda: path)
    return path


def error(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1, "one line"
    return text


def test_a_checkpoint_is_exported_to_the_default_folder(
    tmp_path: Path, weights: Path, make_net: MakeNet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", "irn_a", "--scale", "2", "--checkpoint", str(weights)]) == 0
    text = capsys.readouterr().out
    made = Bundle(tmp_path / "irn_a_x2_custom")
    made.verify()
    assert made.weights == weights_digest(make_net("irn_a", 2))
    lines = text.splitlines()
    assert lines[0] == f"irn_a x2: weights of {weights}"
    assert lines[1].startswith(f"  downscale.onnx: {made.manifest['graphs']['downscale']['bytes']} bytes, ")
    assert "values differ from PyTorch, by at most" in lines[2]
    assert lines[-1] == "bundle: irn_a_x2_custom"

    save(weights, make_net("irn_a", 2, seed=3))
    assert main(["--model", "irn_a", "--scale", "2", "--checkpoint", str(weights)]) == 0
    assert Bundle(tmp_path / "irn_a_x2_custom").weights == weights_digest(make_net("irn_a", 2, seed=3)), "replaced"


@pytest.mark.parametrize("theirs", [True, False])
def test_a_bundle_has_the_licence_that_the_card_beside_its_weights_states(
    tmp_path: Path, weights: Path, make_net: MakeNet, theirs: bool
) -> None:
    digest = weights_digest(make_net("irn_a", 2))
    card = {"weights_sha256": digest if theirs else "0" * 64, "licence": "CC-BY-4.0", "machine": "a desk"}
    weights.with_suffix(".json").write_text(json.dumps(card))
    assert main(["--model", "irn_a", "--scale", "2", "--checkpoint", str(weights), "--out", str(tmp_path / "b")]) == 0
    manifest = Bundle(tmp_path / "b").manifest
    assert manifest["licence"] == ("CC-BY-4.0" if theirs else "unknown")
    assert manifest["weights"]["card"] == (card if theirs else {})


def test_json_names_the_bundle_and_the_agreement(tmp_path: Path, make_net: MakeNet, capsys: pytest.CaptureFixture[str]) -> None:
    weights = save(tmp_path / "m.safetensors", make_net("irn_m", 4))
    out = tmp_path / "made"
    assert main(["--model", "irn_m", "--scale", "4", "--checkpoint", str(weights), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle"] == str(out)
    assert set(report["graphs"]) == {"downscale", "upscale", "encoder", "decoder"}
    assert report["parity"]["downscale"]["largest_z_error"] < 1e-3
    assert report["graphs"] == Bundle(out).manifest["graphs"]


def test_shipped_weights_are_taken_with_their_card(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "irn_a", "--out", str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.startswith("irn_a x2: shipped weights irn_a x2 lite, 39.50 dB Y-PSNR on BSD100\n")
    made = Bundle(tmp_path / "b")
    assert made.manifest["weights"]["card"]["steps"] == 77
    assert made.size == "lite"


def test_a_card_stays_whole_where_there_are_no_corrections_to_leave_out(
    folder: Path, bundle: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards: list[dict[str, Any]] = []

    def write(net: RescalingNet, target: Path, card: dict[str, Any], *options: Any) -> Bundle:
        cards.append(card)
        return Bundle(bundle("irn_a", 2))

    monkeypatch.setattr(bundles, "write_bundle", write)
    assert main(["--model", "irn_a", "--corrections", "0"]) == 0
    assert cards == [find_shipped("irn_a", 2).card]
    said = capsys.readouterr().out.splitlines()[0]
    assert said.endswith("39.50 dB Y-PSNR on BSD100; they have no corrections to leave out")


def test_the_gradient_is_reported(refinable: Callable[[str, int], Path], capsys: pytest.CaptureFixture[str]) -> None:
    made = Bundle(refinable("irn", 2))
    print_bundle(made)
    line = next(line for line in capsys.readouterr().out.splitlines() if "gradient" in line)
    assert line.startswith(f"  gradient.onnx: {made.manifest['gradient']['bytes']} bytes, differs from PyTorch's gradient by ")


def test_weights_that_do_not_ship_are_an_error(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "b")]
    assert main(["--model", "irn_m", *out]) == 1
    wanted = "no weights ship for irn_m x2 (shipped: irn_a x2 lite); train them with rescale-train and give --checkpoint"
    assert wanted in error(capsys)
    assert main(["--model", "irn_a", "--size", "full", *out]) == 1
    assert "no weights ship for irn_a x2 full" in error(capsys)
    assert not (tmp_path / "b").exists()


def test_the_list_names_every_model_and_scale(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    *lines, note = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == [f"{m} x{s} ({v.title}), sizes full, medium, lite" for m, v in VARIANTS.items() for s in SCALES]
    at = lines.index("irn_a x2 (IRN-A), sizes full, medium, lite")
    assert lines[at + 1] == "    shipped: lite (default), 0.19 M parameters, 1,100 steps; Y-PSNR Set5 41.24 dB, BSD100 39.50 dB"
    assert note.startswith("(default): what is taken without --size")
    assert len(lines) == len(heads) + 1


def test_the_list_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["model"], r["scale"]) for r in rows] == [(m, s) for m in VARIANTS for s in SCALES]
    assert all(r["sizes"] == list(SIZES) for r in rows)
    weights = {(r["model"], r["scale"]): r["weights"] for r in rows}
    assert [w["size"] for w in weights["irn_a", 2]] == ["lite"]
    assert [k for k, w in weights.items() if w] == [("irn_a", 2)]


def test_the_list_says_what_is_taken_and_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        default = find_shipped(row["model"], row["scale"])
        assert [w["size"] for w in row["weights"] if w["default"]] == [default.size]
        (taken,) = (w for w in row["weights"] if w["default"])
        assert taken["parameters"] == default.card["parameters"]
        assert taken["steps"] == default.steps >= default.card["steps"]
        assert taken["corrections"] == default.card["recipe"]["net"].get("corrections", 0)
        assert taken["nested"] == default.card["recipe"]["train"].get("nested", False)
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    card = find_shipped("irn_a", 2, "medium").card
    assert not card["recipe"]["train"].get("nested"), "an example of either kind is wanted here"
    assert f"medium (default), {card['parameters'] / 1e6:.2f} M parameters, 0 or 3 corrections, " in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "irn"], "w.safetensors: holds irn_a x2, not irn x2; give --model and --scale so"),
        (["--model", "irn_a", "--scale", "4"], "w.safetensors: holds irn_a x2, not irn_a x4"),
        (["--model", "irn_a", "--size", "full"], "w.safetensors: is of size custom, not full"),
        (["--model", "irn_a", "--out", "/dev/null/b"], "/dev/null/b: cannot write the bundle"),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    weights: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--checkpoint", str(weights)]) == 1
    assert message in error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "esrgan"], "unknown model 'esrgan': choose one of irn, irn_a, irn_m"),
        (["--scale", "3"], "unknown scale 3: choose one of 2, 4"),
        (["--size", "huge"], "unknown size 'huge': choose one of full, medium, lite"),
        (["--precision", "nope"], "unknown precision 'nope': choose one of fp32, mixed"),
    ],
)
def test_unknown_names_are_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--checkpoint", "/nowhere/w.safetensors"]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", "/nowhere/w.safetensors"]) == 1
    assert "/nowhere/w.safetensors: no such checkpoint" in error(capsys)


def test_a_corrupt_checkpoint_is_named(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights.write_bytes(weights.read_bytes()[:-9])
    assert main(["--model", "irn_a", "--checkpoint", str(weights)]) == 1
    assert "w.safetensors: not a readable checkpoint" in error(capsys)


@pytest.mark.parametrize("arguments", [["--scale", "two"], ["--no-such-option"], ["stray"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert arguments[0] in capsys.readouterr().err or "two" in arguments
