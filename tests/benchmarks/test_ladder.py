from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rescale.errors import InputError
from rescale_bench import ladder
from rescale_bench.cli import main
from rescale_bench.ladder import mark_knee, quality, read_study
from rescale_export.probe import probe_picture
from rescale_train.cli import main as train

STUDY = """
title = "Small and less small"
recipe = "irn_x2_lite"
[set]
"train.steps" = 2
"train.batch" = 1
"train.patch" = 16
"train.final_batch" = 1
"train.final_patch" = 16
"train.subnet_dtype" = "float32"
"net.growth" = 4
[[arm]]
name = "one block"
set = { "net.blocks" = [1] }
[[arm]]
name = "three blocks"
set = { "net.blocks" = [3] }
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    (folder / "data").mkdir()
    for i in range(3):
        Image.fromarray(probe_picture(64, 64, i)).save(folder / "data" / f"{i}.png")
    (folder / "tiny.toml").write_text(STUDY)
    arguments = ["--data", str(folder / "data"), "--holdout", "1", "--out", str(folder / "runs"), "--threads", "1"]
    assert train(["study", str(folder / "tiny.toml"), *arguments]) == 0
    return folder / "runs"


def test_table_json_and_plot(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "ladder.json", tmp_path / "ladder.svg"
    options = ["--resolution", "64x48", "--repeats", "3", "--threads", "1"]
    assert main(["ladder", str(study), *options, "--out", str(out), "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert [r["name"] for r in report["rungs"]] == ["one block", "three blocks"]
    assert sum(r["knee"] for r in report["rungs"]) == 1
    for r in report["rungs"]:
        assert len(r["down"]) == len(r["up"]) == 3
        assert r["seconds"] == {way: sorted(r[way])[1] for way in ("down", "up")}
        assert f"| {r['macs_per_lr_pixel'] / 1e3:,.0f}k |" in text
    assert "64x48" in text
    assert "onnxruntime" in text
    assert plot.read_text().lstrip().startswith("<?xml")
    assert main(["ladder", str(study), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resolution"] == "64x48"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--backend", "abacus", "unknown backend 'abacus': choose auto or one of"), ("--precision", "fp8", "unknown precision 'fp8'")],
)
def test_a_wrong_name_is_told_before_anything_is_exported(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    monkeypatch.setattr(ladder, "write_bundle", lambda *_: pytest.fail("exported"))
    assert main(["ladder", str(study), option, value]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["mixed", "fp16"])
def test_other_precisions(study: Path, capsys: pytest.CaptureFixture[str], precision: str) -> None:
    options = ["--resolution", "64x48", "--repeats", "1", "--threads", "1", "--precision", precision, "--json"]
    assert main(["ladder", str(study), *options]) == 0
    assert precision in json.loads(capsys.readouterr().out)["backend"]


def test_only_sets_that_all_arms_have_count(study: Path, tmp_path: Path) -> None:
    content = json.loads((study / "study.json").read_text())
    first, second = content["arms"]
    first["figures"]["Set14"] = first["figures"]["held"]
    (tmp_path / "study.json").write_text(json.dumps(content))
    assert [list(a["figures"]) for a in read_study(tmp_path)["arms"]] == [["held"], ["held"]]
    second["figures"] = {"Set5": second["figures"]["held"]}
    (tmp_path / "study.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"study\.json: no set was measured on all 2 arms; run them again with one --measure"):
        read_study(tmp_path)


def rung(seconds: float, decibel: float) -> dict[str, Any]:
    return {"seconds": {"down": seconds / 2, "up": seconds / 2}, "figures": {"a": {"hr_psnr_y": decibel}}}


def test_the_knee_is_where_more_time_stops_to_pay() -> None:
    rungs = [rung(0.1, 40.0), rung(0.2, 44.0), rung(0.4, 44.4), rung(0.8, 44.6)]
    mark_knee(rungs)
    assert [r["knee"] for r in rungs] == [False, True, False, False]
    assert math.isclose(quality(rungs[1]), 44.0)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_a_network_that_is_dearer_and_worse_is_not_the_knee(order: list[int]) -> None:
    every = [rung(1.0, 40.0), rung(2.0, 45.0), rung(4.0, 39.0)]
    mark_knee([every[i] for i in order])
    assert [r["knee"] for r in every] == [False, True, False]
    every = [rung(1.0, 40.0), rung(2.0, 39.0)]
    mark_knee(every)
    assert [r["knee"] for r in every] == [True, False]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("figures", [1]),
        ("figures", 3),
        ("name", 3),
        ("parameters", "many"),
        ("figures", {"a": {"hr_psnr_y": 1}}),
    ],
)
def test_damaged_arms_are_one_line(study: Path, tmp_path: Path, key: str, value: object) -> None:
    content = json.loads((study / "study.json").read_text())
    content["arms"][1][key] = value
    (tmp_path / "study.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"study\.json: not the result of rescale-train study: "):
        read_study(tmp_path)


def test_equal_rungs_have_a_knee_too() -> None:
    rungs = [rung(0.1, 40.0), rung(0.1, 40.0)]
    mark_knee(rungs)
    assert sum(r["knee"] for r in rungs) == 1


def test_what_is_no_study_is_refused_by_name(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ladder", str(tmp_path)]) == 1
    assert "study.json: not the result of rescale-train study" in capsys.readouterr().err
    content = json.loads((study / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({**content, "arms": content["arms"][:1]}))
    assert main(["ladder", str(tmp_path)]) == 1
    assert "1 finished arm(s); a ladder has at least 2" in capsys.readouterr().err
    (tmp_path / "study.json").write_text(json.dumps(content))
    assert main(["ladder", str(tmp_path)]) == 1
    assert "checkpoint.safetensors: missing" in capsys.readouterr().err
    assert main(["ladder", str(study), "--resolution", "big"]) == 2 or "WIDTHxHEIGHT" in capsys.readouterr().err
