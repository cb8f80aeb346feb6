"""Which pictures a run trains on, which it validates on, and what it says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.cli import main
from rescale_train.data import file_digest, find_pictures
from rescale_train.log import read_log
from rescale_train.options import spread

Run = Callable[..., int]


def held_by(path: Path) -> list[str]:
    held: list[str] = checkpoint.read(path).progress["held_out"]
    return held


def test_weights_are_validated_on_what_they_were_not_trained_on(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = find_pictures([pictures])[0]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / kept.name).write_bytes(kept.read_bytes())
    weights, target = tmp_path / "first" / "checkpoint.safetensors", tmp_path / "out" / "checkpoint.safetensors"
    assert run("--max-minutes", "0", "--val", str(tmp_path / "val"), "--out", str(weights.parent)) == 0
    assert held_by(weights) == [file_digest(kept)]
    capsys.readouterr()
    assert run("--max-minutes", "0", "--holdout", "2", "--init-from", str(weights)) == 0
    told = capsys.readouterr()
    assert "3 pictures to train on, 1 held out" in told.out
    assert "warning" not in told.err
    assert held_by(target) == held_by(weights)
    assert run("--resume", "--holdout", "2") == 0
    assert "3 pictures to train on, 1 held out" in capsys.readouterr().out, "as before"
    assert held_by(target) == held_by(weights)
    assert run("--max-minutes", "0", "--holdout", "0", "--init-from", str(weights), "--out", str(tmp_path / "none")) == 0
    assert "4 pictures to train on, 0 held out" in capsys.readouterr().out


def test_a_run_goes_on_with_the_pictures_it_began_with(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Callable[[], str]
) -> None:
    first = tmp_path / "out" / "checkpoint.safetensors"
    assert run("--max-minutes", "0") == 0
    trained_on = checkpoint.read(first).progress["trained_on"]
    assert run("--max-minutes", "0", "--resume") == 0
    assert checkpoint.read(first).progress["trained_on"] == trained_on
    Image.fromarray(probe_picture(40, 40, 9)).save(pictures / "new.png")
    capsys.readouterr()
    assert run("--max-minutes", "0", "--resume") == 1
    assert "checkpoint.safetensors: its run trained on other pictures; give the --data, --val and --holdout" in error()


def test_a_run_from_weights_of_other_pictures_goes_on(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that ship name pictures that no user has: what the run holds out, and may not call so, is held out again."""
    assert run("--max-minutes", "0", "--out", str(tmp_path / "first")) == 0
    found = checkpoint.read(tmp_path / "first" / "checkpoint.safetensors")
    path, target = tmp_path / "foreign.safetensors", tmp_path / "out" / "checkpoint.safetensors"
    progress = found.progress | {"held_out": ["0" * 64]}
    checkpoint.write(path, checkpoint.load_net(found, "first").state_dict(), found.recipe, progress)
    capsys.readouterr()
    assert run("--max-minutes", "0", "--init-from", str(path)) == 0
    for _ in range(2):
        assert run("--max-minutes", "0", "--resume") == 0
        assert held_by(target) == []
    assert capsys.readouterr().out.count("3 pictures to train on, 1 held out") == 3


def test_a_picture_of_a_test_set_is_left_out(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = find_pictures([pictures])[1]
    monkeypatch.setattr("rescale_train.data.TEST_PICTURES", {file_digest(path): "this is a picture of a test set"})
    assert run("--max-minutes", "0") == 0
    told = capsys.readouterr()
    assert "2 pictures to train on, 1 held out" in told.out
    assert f"warning: {path}: left out, since this is a picture of a test set" in told.err


def test_all_pictures_that_cannot_be_taken_are_told_at_once(run: Run, pictures: Path, error: Callable[[], str]) -> None:
    for path in find_pictures([pictures]):
        Image.open(path).convert("CMYK").save(path.with_suffix(".jpg"))
        path.unlink()
    assert run("--holdout", "2") == 1
    said = error()
    assert [said.count(f"{p.name}: ") for p in find_pictures([pictures])] == [1, 1, 1, 1]


def test_a_run_that_held_out_nothing_goes_on_so(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else half of what it trained on would be what it is validated on."""
    assert run("--max-minutes", "0", "--holdout", "0") == 0
    assert run("--max-minutes", "0", "--resume") == 0
    assert capsys.readouterr().out.count("4 pictures to train on, 0 held out") == 2
    assert held_by(tmp_path / "out" / "checkpoint.safetensors") == []


@pytest.mark.parametrize("below", [".", "run"])
def test_the_plot_of_a_run_is_not_trained_on(run: Run, pictures: Path, capsys: pytest.CaptureFixture[str], below: str) -> None:
    out = ["--set", "train.steps=1", "--log-every", "1", "--out", str(pictures / below)]
    assert run(*out) == 0
    assert (pictures / below / "loss.png").exists()
    assert run(*out, "--resume") == 0
    assert capsys.readouterr().out.count("3 pictures to train on, 1 held out") == 2


def test_weights_that_do_not_say_what_they_were_trained_on_are_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--max-minutes", "0", "--out", str(tmp_path / "first")) == 0
    found = checkpoint.read(tmp_path / "first" / "checkpoint.safetensors")
    path = tmp_path / "silent.safetensors"
    checkpoint.write(path, checkpoint.load_net(found, "first").state_dict(), found.recipe, {})
    capsys.readouterr()
    assert run("--max-minutes", "0", "--init-from", str(path)) == 0
    assert f"warning: validation: {path} does not say what it was trained on; if on these pictures" in capsys.readouterr().err
    # Nor can what comes of them, however many runs later.
    for before, after in (("out", "second"), ("second", "third")):
        made = tmp_path / before / "checkpoint.safetensors"
        assert checkpoint.held_out(checkpoint.read(made), "made") is None
        assert checkpoint.validated_on(checkpoint.read(made), "made") == held_by(tmp_path / "first" / "checkpoint.safetensors")
        assert run("--max-minutes", "0", "--init-from", str(made), "--out", str(tmp_path / after)) == 0
        assert f"warning: validation: {made} does not say what it was trained on" in capsys.readouterr().err
    assert run("--max-minutes", "0", "--resume") == 0


def test_a_run_says_where_its_weights_may_know_the_validation(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Callable[[], str]
) -> None:
    weights = tmp_path / "first" / "checkpoint.safetensors"
    assert run("--max-minutes", "0", "--out", str(weights.parent)) == 0
    capsys.readouterr()
    assert run("--max-minutes", "0", "--val", str(pictures), "--init-from", str(weights)) == 1
    assert f"{pictures}: nothing to train on: all pictures are in --val; give others as well" in error()
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    for i, path in enumerate(find_pictures([pictures])):
        path.rename(tmp_path / ("val" if i < 3 else "train") / path.name)
    arguments = ["--max-minutes", "0", "--init-from", str(weights), "--data", str(tmp_path / "train")]
    run_apart = lambda *extra: main(["run", str(tmp_path / "tiny.toml"), *arguments, "--out", str(tmp_path / "out"), *extra])  # noqa: E731
    assert run_apart("--val", str(tmp_path / "val")) == 0
    assert f"warning: validation: {weights} may have been trained on 2 of 3 pictures" in capsys.readouterr().err
    (held,) = held_by(tmp_path / "out" / "checkpoint.safetensors")
    assert held in held_by(weights)
    arguments[2:4] = ["--resume", "--val", str(tmp_path / "val")]
    assert run_apart() == 0, "the same pictures, although the weights know some of those to validate on"


def test_validation_pictures_can_be_given(run: Run, pictures: Path, error: Callable[[], str]) -> None:
    assert run("--max-minutes", "0", "--val", str(pictures)) == 1
    assert f"{pictures}: nothing to train on: all pictures are in --val; give others as well" in error()


def test_without_held_out_pictures_nothing_is_validated(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--max-minutes", "0", "--holdout", "0") == 0
    assert "4 pictures to train on, 0 held out" in capsys.readouterr().out
    assert not [r for r in read_log(tmp_path / "out" / "log.jsonl") if "hr_psnr_y" in r]


def test_an_unreadable_picture_is_named(run: Run, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "bad.png").write_text("no picture")
    assert run() == 1
    assert "bad.png: not a picture that can be read" in capsys.readouterr().err


def test_pictures_too_small_to_validate_on(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Callable[[], str]
) -> None:
    (val := tmp_path / "val").mkdir()
    Image.new("RGB", (200, 15)).save(val / "low.png")
    assert run("--val", str(val)) == 1
    assert "val: 1 of 1 pictures too small to validate on: a side below 16 pixels; take them out" in error()
    for path in pictures.iterdir():
        path.unlink()
    for value in range(4):
        Image.new("RGB", (200, 15), (value, 0, 0)).save(pictures / f"{value}.png")
    assert run("--max-minutes", "0") == 0
    assert "warning: held out: 1 of 1 pictures too small to validate on" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "wanted"), [(0, []), (1, [5]), (2, [2, 7]), (5, [1, 3, 5, 7, 9]), (99, [1, 3, 5, 7, 9])])
def test_held_out_pictures_are_spread(count: int, wanted: list[int]) -> None:
    paths = [Path(str(i)) for i in range(10)]
    assert spread(paths, count) == [paths[i] for i in wanted]
    assert spread(paths[:1], count) == []
