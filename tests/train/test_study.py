from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from rescale.errors import CheckpointError, ConfigError
from rescale.files import machine_mark
from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.cli import main
from rescale_train.data import file_digest, find_pictures, load_held
from rescale_train.lock import sole_writer
from rescale_train.loop import DivergedError, Options, Trainer
from rescale_train.options import spread
from rescale_train.study import load_study, run_arm, samplers, study_names, table
from rescale_train.validation import validate

CPU = torch.device("cpu")
TINY = """
title = "Tiny"
recipe = "irn_x2_lite"
[set]
"net.blocks" = [1]
"net.growth" = 4
"train.steps" = 4
"train.batch" = 1
"train.patch" = 16
"train.final_batch" = 1
"train.final_patch" = 16
"train.warmup" = 1
"train.ema" = 0.0
"train.subnet_dtype" = "float32"
[[arm]]
name = "first"
paper = 30.0
[[arm]]
name = "other rate"
paper = 30.5
set = { "train.lr_peak" = 1e-5 }
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    """A folder of two pictures to measure on."""
    (folder := tmp_path / "tests").mkdir()
    for i in range(2):
        Image.fromarray(probe_picture(40, 48, 10 + i)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", study_names())
def test_shipped_studies_differ_where_they_say(name: str) -> None:
    study = load_study(name)
    assert len(study.arms) >= 2
    recipes = [a.recipe for a in study.arms]
    assert all(r not in recipes[:i] for i, r in enumerate(recipes)), "two arms are the same run"
    assert len({r.train.steps for r in recipes}) == 1, "arms of unequal length say nothing"


def test_the_papers_ablations_are_all_there() -> None:
    """Rows of tables 1 and 2, with the paper's figures for BSD100."""
    first, second = load_study("paper_table1"), load_study("paper_table2")
    assert [(a.recipe.net.alpha_split, a.recipe.net.alpha_mean, a.recipe.net.alpha_gain, a.paper) for a in first.arms] == [
        ("post", False, 1.0, 32.66),
        ("pre", False, 1.0, 33.02),
        ("pre", True, 1.0, 33.12),
        ("pre", True, 8.0, None),
    ]
    assert all(a.recipe.net.latent_gain == 1.0 for a in second.arms[:5])
    rows = [(a.recipe.net.ae_layers, a.recipe.train.ae_pretrain_steps > 0, a.recipe.train.ae_frozen, a.paper) for a in second.arms]
    assert rows[:5] == [
        (2, False, False, 31.41),
        (2, True, True, 31.58),
        (2, True, False, 31.65),
        (4, False, False, 28.15),
        (4, True, False, 31.69),
    ]


def test_from_the_command_line_and_taken_up_again(
    tiny: Path, pictures: Path, tests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    command = ["study", str(tiny), "--data", str(pictures), "--measure", str(tests), "--out", str(out), "--holdout", "1"]
    assert main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [a["name"] for a in content["arms"]] == ["first", "other rate"]
    assert content["arms"] == json.loads((out / "study.json").read_text())["arms"]
    for arm in content["arms"]:
        assert set(arm["figures"]) == {"held", "tests"}
        assert arm["steps"] == 4
        assert arm["ms"] > 0
    weights = (out / "first" / "checkpoint.safetensors").read_bytes()
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "| other rate |" in text
    assert "30.50 (+0.50)" in text
    assert text.strip() in (out / "study.md").read_text()
    assert (out / "first" / "checkpoint.safetensors").read_bytes() == weights, "a finished arm is not run again"


def test_an_arm_can_be_run_alone(
    tiny: Path, pictures: Path, tests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    arguments = ["study", str(tiny), "--data", str(pictures), "--out", str(out), "--holdout", "1", "--arm"]
    assert main([*arguments, "other rate", "--json"]) == 0
    assert [a["name"] for a in json.loads(capsys.readouterr().out)["arms"]] == ["other rate"]
    assert main([*arguments, "nothing"]) == 2
    assert "the study has first, other rate" in capsys.readouterr().err
    assert main([*arguments, "first", "--json", "--measure", str(tests)]) == 0
    both = json.loads(capsys.readouterr().out)["arms"]
    assert [a["name"] for a in both] == ["first", "other rate"], "what the other arm reached stays in the results"
    assert [set(a["figures"]) for a in both] == [{"held", "tests"}, {"held"}]
    assert both == json.loads((out / "study.json").read_text())["arms"]
    for nothing in ('{"arms": 3}', "[]", '{"arms": [3]}'):
        (out / "study.json").write_text(nothing)
        assert main([*arguments, "first"]) == 1
        assert "study.json: not the results of a study" in capsys.readouterr().err


def test_results_of_other_settings_do_not_stay(
    tiny: Path, pictures: Path, tests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table compares arms of one length, trained on the same pictures and measured on the same."""
    out = tmp_path / "study"
    first = [
        "study",
        str(tiny),
        "--data",
        str(pictures),
        "--out",
        str(out),
        "--holdout",
        "1",
        "--measure",
        str(tests),
        "--arm",
        "first",
    ]
    other = [*first[:-1], "other rate", "--json"]
    assert main(first) == 0
    (tests / "0.png").rename(tests / "2.png")
    capsys.readouterr()
    assert main(other) == 0, "the same pictures in another order"
    assert [a["name"] for a in json.loads(capsys.readouterr().out)["arms"]] == ["other rate"]
    assert main(first) == 0
    tiny.write_text(TINY.replace('"train.ema" = 0.0', '"train.ema" = 0.5'))
    capsys.readouterr()
    assert main(other) == 1, "its own checkpoint is of another recipe too"
    assert "written by another recipe" in capsys.readouterr().err
    assert json.loads((out / "study.json").read_text())["arms"] == []


def test_arms_of_a_study_are_trained_on_the_same_pictures(
    tiny: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    arguments = ["study", str(tiny), "--data", str(pictures), "--out", str(out), "--holdout", "1", "--arm"]
    assert main([*arguments, "first"]) == 0
    before = (out / "study.json").read_text()
    held = checkpoint.read(out / "first" / "checkpoint.safetensors").progress["held_out"]
    spare = next(p for p in find_pictures([pictures]) if file_digest(p) not in held)
    (tmp_path / "spare").mkdir()
    spare.rename(tmp_path / "spare" / spare.name)
    capsys.readouterr()
    assert main([*arguments, "other rate"]) == 1
    assert "study.json: its arms were trained on other pictures; give the --data, --holdout" in capsys.readouterr().err
    assert (out / "study.json").read_text() == before
    assert not (out / "other_rate").exists()


def test_what_is_measured_on_is_not_trained_on(
    tiny: Path, pictures: Path, tests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, both = tmp_path / "study", find_pictures([pictures])[:2]
    for path in both:
        (tests / f"copy of {path.name}").write_bytes(path.read_bytes())
    command = ["study", str(tiny), "--data", str(pictures), "--out", str(out), "--holdout", "1", "--arm", "first", "--measure"]
    assert main([*command, str(tests)]) == 0
    held = checkpoint.read(out / "first" / "checkpoint.safetensors").progress["held_out"]
    assert {file_digest(p) for p in both} < set(held)
    assert len(held) == 3, "and one of the two others"
    capsys.readouterr()
    assert main([*command, str(pictures)]) == 1
    assert "4 picture(s), 4 of them in --measure; a study wants at least 2 others" in capsys.readouterr().err


def test_a_study_says_what_it_cannot_measure_on(
    tiny: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (200, 15)).save(pictures / "1.png")  # held out are the second and the fourth
    command = ["study", str(tiny), "--data", str(pictures), "--out", str(tmp_path / "study"), "--holdout", "2", "--arm", "first"]
    code = main(command)
    assert "warning: held out: 1 of 2 pictures too small to validate on" in capsys.readouterr().err
    assert code == 0


def test_a_study_names_what_it_held_out(tiny: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    arguments = ["study", str(tiny), "--data", str(pictures), "--out", str(out), "--arm", "first", "--holdout"]
    assert main([*arguments, "1"]) == 0
    held = checkpoint.read(out / "first" / "checkpoint.safetensors").progress["held_out"]
    assert held == [file_digest(p) for p in spread(find_pictures([pictures]), 1)]
    (next(p for p in pictures.iterdir() if file_digest(p) == held[0])).rename(tmp_path / "away.png")
    (out / "study.json").unlink()
    capsys.readouterr()
    assert main([*arguments, "1"]) == 1
    assert "its run held out other pictures" in capsys.readouterr().err


def test_an_arm_that_diverges_is_told(
    tiny: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverges(self: Trainer, sampler: object) -> None:
        raise DivergedError("step 50: 50 steps in a row were not finite; lower train.lr_peak")

    monkeypatch.setattr(Trainer, "train_step", diverges)
    command = ["study", str(tiny), "--data", str(pictures), "--out", str(tmp_path / "study"), "--holdout", "1", "--arm", "first"]
    assert main(command) == 1
    told = capsys.readouterr()
    assert "| step 50: 50 steps in a row were not finite; lower train.lr_peak |" in told.out
    assert told.err.endswith("error: first: step 50: 50 steps in a row were not finite; lower train.lr_peak\n")


def test_what_a_killed_study_left_goes_with_the_next_one(tiny: Path, pictures: Path, tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / "study" / "first" / f".rescale.{machine_mark()}-{gone.pid}-0123abcd.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    command = ["study", str(tiny), "--data", str(pictures), "--out", str(tmp_path / "study"), "--holdout", "1", "--arm", "first"]
    assert main(command) == 0
    assert not left.exists()


def test_what_cannot_be_measured_on_is_refused(
    tiny: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", str(tiny), "--data", str(pictures), "--out", str(tmp_path / "study"), "--holdout", "1", "--measure"]
    (small := tmp_path / "a" / "small").mkdir(parents=True)
    Image.new("RGB", (40, 15)).save(small / "low.png")
    Image.new("RGB", (15, 40)).save(small / "thin.png")
    assert main([*command, str(small)]) == 1
    said = capsys.readouterr().err
    for picture in ("low.png: 40x15", "thin.png: 15x40"):
        assert f"{picture} is too small to measure; at least 16 pixels a side are wanted" in said
    (tmp_path / "b" / "small").mkdir(parents=True)
    assert main([*command, str(small), "--measure", str(tmp_path / "b" / "small")]) == 2
    assert "two sets would be called 'small'" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "held").mkdir()
    assert main([*command, str(tmp_path / "held")]) == 2
    assert not (tmp_path / "study").exists()


def test_a_stopped_arm_goes_on_and_says_so(tiny: Path, tmp_path: Path) -> None:
    study = load_study(str(tiny))
    arm, picture = study.arms[0], probe_picture(64, 64)
    sampler = samplers(study, [picture], CPU)["first"]
    sets = {"held": [picture]}
    stopped = run_arm(arm, tmp_path, sampler, [], sets, CPU, Options(tmp_path, should_stop=lambda: True))
    assert stopped["unfinished"] == 1
    assert "| stopped at step 1 |" in table(study, [stopped]), "although there are no figures, and no columns for them"
    done = run_arm(arm, tmp_path, sampler, [], sets, CPU, Options(tmp_path))
    assert done["steps"] == 4
    assert "stopped at step 1" in table(study, [done, {**stopped, "name": "x"}])


def test_an_arm_whose_recipe_changed_is_refused(tiny: Path, tmp_path: Path) -> None:
    study = load_study(str(tiny))
    picture = probe_picture(64, 64)
    sampler = samplers(study, [picture], CPU)["first"]
    run_arm(study.arms[0], tmp_path, sampler, [], {}, CPU, Options(tmp_path))
    tiny.write_text(TINY.replace('"train.warmup" = 1', '"train.warmup" = 2'))
    with pytest.raises(CheckpointError, match="written by another recipe"):
        run_arm(load_study(str(tiny)).arms[0], tmp_path, sampler, [], {}, CPU, Options(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('recipe = "irn_x2_lite"', "", "wants a recipe and at least one"),
        ('recipe = "irn_x2_lite"', 'recipe = "nothing"', "unknown recipe 'nothing'"),
        ('title = "Tiny"', 'titel = "Tiny"', "unknown key.s. titel"),
        ('name = "other rate"', 'name = "first"', "arms 'first' and 'first' would have one folder"),
        ('name = "first"', 'name = "other?rate"', "arms 'other.rate' and 'other rate' would have one folder"),
        ("paper = 30.5", 'paper = "much"', "arm 2: paper: a figure in dB was expected, got 'much'"),
        ("paper = 30.5", "group = 3", "arm 2: group: text was expected, got 3"),
        ('set = { "train.lr_peak" = 1e-5 }', "set = 3", "arm 2: set: a table was expected, got 3"),
        ('recipe = "irn_x2_lite"\n[set]', 'recipe = "irn_x2_lite"\nset = 3\n[x]', "unknown key.s. x"),
        ('name = "other rate"', "", "arm 2: wants a name"),
        ('"train.lr_peak" = 1e-5', '"train.lr_peek" = 1e-5', "tiny.toml: arm 'other rate': train.lr_peek: unknown key"),
        ('"train.lr_peak" = 1e-5', '"train.steps" = 2026-11-27', "arm 'other rate': a value .* list of these, got datetime"),
        ('name = "other rate"', 'name = ".."', "arm 2: '..' cannot be the name of a folder"),
        ("[[arm]]", "[[arm", "not valid TOML"),
        ('title = "Tiny"', f"title = {'[' * 5000}", "not valid TOML: tables or lists nested too deep"),
        ("paper = 30.5", f"paper = {'1' * 5000}", "not valid TOML: "),
        ("paper = 30.5", f"group = 0x{'1' * 9000}", "not valid TOML: "),
    ],
)
def test_errors_of_a_study_name_what_is_wrong(tiny: Path, old: str, new: str, message: str) -> None:
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_study(str(tiny))


def test_a_study_does_not_replace_the_results_of_another(
    tiny: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both with the default --out, for instance."""
    out = tmp_path / "study"
    arguments = ["study", str(tiny), "--data", str(pictures), "--out", str(out), "--holdout", "1", "--arm", "first"]
    assert main(arguments) == 0
    kept = (out / "study.json").read_bytes()
    tiny.write_text(TINY.replace('title = "Tiny"', 'title = "Small"'))
    assert main(arguments) == 1
    assert "study.json: results of another study, 'Tiny', not 'Small'; give another --out" in capsys.readouterr().err
    assert (out / "study.json").read_bytes() == kept


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked on Windows")
def test_two_studies_do_not_write_to_one_folder(tiny: Path, pictures: Path, tmp_path: Path, error: Callable[[], str]) -> None:
    out = tmp_path / "study"
    with sole_writer(out):
        assert main(["study", str(tiny), "--data", str(pictures), "--out", str(out), "--holdout", "1"]) == 1
        assert "study: another run is writing here; wait for its end, or choose another --out" in error()
        assert not list(out.iterdir())


def test_an_unknown_study_lists_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "nothing"]) != 0
    assert "recipe" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot read the study"):
        load_study(str(tmp_path / "none.toml"))
    assert main(["study", "list"]) == 0
    assert "paper_table1: The paper" in capsys.readouterr().out


def test_data_is_asked_for(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(tiny)]) == 2
    assert "--data" in capsys.readouterr().err


def test_many_seeds_are_refused(tiny: Path, recipe_of: Callable[..., object]) -> None:
    arms = "".join(f'[[arm]]\nname = "{i}"\nset = {{ "train.seed" = {i} }}\n' for i in range(5))
    tiny.write_text(TINY.split("[[arm]]")[0] + arms)
    from rescale.errors import RescaleError

    with pytest.raises(RescaleError, match="5 combinations of scale, seed"):
        samplers(load_study(str(tiny)), [probe_picture(64, 64)], CPU)


def test_arms_start_from_weights_and_are_measured_on_what_those_held_out(
    tiny: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, kept = tmp_path / "first", find_pictures([pictures])[1]
    changes = [f"--set={k}" for k in ("net.blocks=[1]", "net.growth=3", "train.steps=1", "train.batch=1", "train.final_batch=1")]
    crops = [f"--set=train.{k}=16" for k in ("patch", "final_patch")]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / kept.name).write_bytes(kept.read_bytes())
    run = ["run", "irn_x2_lite", "--data", str(pictures), "--val", str(tmp_path / "val"), "--out", str(first)]
    assert main([*run, *changes, *crops]) == 0
    capsys.readouterr()

    weights, out = first / "checkpoint.safetensors", tmp_path / "study"
    tiny.write_text(TINY.replace('"train.steps" = 4', '"train.steps" = 1').replace("1e-5", "0.0"))
    study = ["study", str(tiny), "--data", str(pictures), "--out", str(out), "--holdout", "2", "--json"]
    assert main([*study, "--init-from", str(weights)]) == 0
    content = json.loads(capsys.readouterr().out)
    found = checkpoint.read(out / "other_rate" / "checkpoint.safetensors")
    assert found.progress["held_out"] == [file_digest(kept)]
    start = checkpoint.load_net(checkpoint.read(weights), "first")
    after = validate(checkpoint.load_net(found, "arm"), list(load_held([kept], 2).values()))
    assert after == content["arms"][1]["figures"]["held"]
    assert after["hr_psnr_y"] == pytest.approx(validate(start, list(load_held([kept], 2).values()))["hr_psnr_y"], abs=0.02)
    assert json.loads((out / "study.json").read_text())["start"] == checkpoint.weights_digest(start)

    (tmp_path / "known").mkdir()
    known = find_pictures([pictures])[2]
    (tmp_path / "known" / known.name).write_bytes(known.read_bytes())
    told = [*study[:4], "--out", str(tmp_path / "told"), "--measure", str(tmp_path / "known"), "--init-from", str(weights)]
    assert main(told) == 0
    assert f"{weights} may have been trained on 1 of the 2 pictures to measure on" in capsys.readouterr().err
    assert checkpoint.read(tmp_path / "told" / "other_rate" / "checkpoint.safetensors").progress["held_out"] == [file_digest(kept)]

    assert main(study) == 1
    assert "its arms began with weights" in capsys.readouterr().err
    (tmp_path / "some").mkdir()
    for path in find_pictures([pictures]):
        if path != kept:
            (tmp_path / "some" / path.name).write_bytes(path.read_bytes())
    elsewhere = ["study", str(tiny), "--data", str(tmp_path / "some"), "--out", str(tmp_path / "other")]
    capsys.readouterr()
    assert main([*elsewhere, "--init-from", str(weights)]) == 1
    assert "none of the pictures that it was not trained on is in" in capsys.readouterr().err
