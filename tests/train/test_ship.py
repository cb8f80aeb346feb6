"""`rescale-train ship`: what it writes, and which weights may replace others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.cli import main
from rescale_train.config import Recipe
from rescale_train.content.cast import Cast
from rescale_train.content.report import Fidelity
from rescale_train.data import file_digest, find_pictures
from rescale_train.log import read_log
from rescale_train.models import RescalingNet, build
from rescale_train.options import spread
from rescale_train.recipe import load_recipe
from rescale_train.replace import COLOUR_SHARE, LOSS, Verdict, judge

Run = Callable[..., int]
RecipeOf = Callable[..., Recipe]
WriteNet = Callable[[str, float], Path]
PICTURE = {"p": probe_picture(32, 32)}


def error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.fixture
def write_net(tmp_path: Path, tiny_net: RescalingNet, recipe_of: RecipeOf) -> WriteNet:
    """A weights file of the tiny network with noise of a given deviation on every parameter; the noisier, the worse it restores."""

    def write(name: str, noise: float) -> Path:
        torch.manual_seed(3)
        tensors = {k: v + noise * torch.randn_like(v) for k, v in tiny_net.state_dict().items()}
        path = tmp_path / name
        checkpoint.write(path, tensors, recipe_of("irn_a"), {"step": 1})
        return path

    return write


def test_ship_writes_the_averaged_weights_as_float16(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    source, target = tmp_path / "out" / "checkpoint.safetensors", tmp_path / "w.safetensors"
    capsys.readouterr()
    assert main(["ship", str(source), str(target)]) == 0
    assert f"{target}: {target.stat().st_size} bytes" in capsys.readouterr().out
    whole, small = checkpoint.read(source), checkpoint.read(target)
    assert (small.recipe, small.progress) == (whole.recipe, whole.progress)
    assert {v.dtype for v in small.tensors.values()} == {torch.float16}
    want = checkpoint.load_net(whole, "source").state_dict()
    got = checkpoint.load_net(small, "target").state_dict()
    assert all(torch.equal(got[k], v.half().float()) for k, v in want.items())
    assert target.stat().st_size < source.stat().st_size / 4


def test_ship_names_a_bad_source_and_a_bad_target(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ship", str(tmp_path / "gone.safetensors"), str(tmp_path / "w.safetensors")]) == 1
    assert "gone.safetensors: no such checkpoint" in error(capsys)
    assert run("--max-minutes", "0") == 0
    capsys.readouterr()
    source = str(tmp_path / "out" / "checkpoint.safetensors")
    assert main(["ship", source, str(tmp_path / "none" / "w.safetensors")]) == 1
    assert "w.safetensors: cannot write" in error(capsys)
    assert main(["ship", source, source, "--held", str(pictures)]) == 1
    assert "checkpoint.safetensors: is the checkpoint itself, from which a run could not be resumed afterwards" in error(capsys)


def test_weights_and_card_are_written_together_or_not_at_all(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--max-minutes", "0") == 0
    source, target = str(tmp_path / "out" / "checkpoint.safetensors"), tmp_path / "w.safetensors"
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"results": [{"set": "Set5", "count": 5, "weights": "other", "mean": {"hr_psnr_y": 40.0}}]}))
    capsys.readouterr()
    assert main(["ship", source, str(target), "--figures", str(report)]) == 1
    assert "report.json: Set5 was measured on other weights" in error(capsys)
    shipped = tmp_path / "shipped.safetensors"
    assert main(["ship", source, str(shipped)]) == 0
    same = checkpoint.weights_digest(checkpoint.read_net(shipped))
    result = {"set": "Set5", "count": 5, "weights": same, "refined": 3, "mean": {"hr_psnr_y": 40.0}}
    report.write_text(json.dumps({"results": [result]}))
    assert main(["ship", source, str(target), "--figures", str(report)]) == 1
    assert "report.json: Set5 was measured with refined LR pictures" in error(capsys)
    assert not target.exists()
    assert main(["ship", source, str(target), "--machine", "a desk"]) == 2
    assert "wants --figures" in capsys.readouterr().err
    assert not target.exists()


def test_better_weights_replace_and_worse_ones_do_not(
    write_net: WriteNet, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, target = write_net("good.safetensors", 0.0), write_net("bad.safetensors", 0.3), tmp_path / "w.safetensors"
    held = ["--held", str(pictures), "--holdout", "2"]
    assert main(["ship", str(bad), str(target)]) == 0
    assert main(["ship", str(bad), str(target)]) == 0, "the same weights again, as with --figures for the card"
    assert main(["ship", str(good), str(target)]) == 1
    assert "w.safetensors: exists; choose another path, or give --held DIR" in error(capsys)
    before = target.read_bytes()
    assert main(["ship", str(good), str(target), *held]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| held out | HR dB | new | change | HR RGB dB | new | change | LR dB | new | change |"
    assert [row.split(" | ")[0] for row in table[2:4]] == ["| photographs", "| generated pictures"]
    assert all(float(row.split(" | ")[3]) > 0 for row in table[2:4])
    after = target.read_bytes()
    assert after != before
    assert main(["ship", str(bad), str(target), *held]) == 1
    assert "w.safetensors: kept as it is: photographs lose" in error(capsys)
    assert target.read_bytes() == after


def test_a_file_that_cannot_be_compared_is_not_replaced(
    write_net: WriteNet, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write_net("new.safetensors", 0.0), write_net("old.safetensors", 0.3)
    before = target.read_bytes()
    single = tmp_path / "single"
    single.mkdir()
    (single / "0.png").write_bytes((pictures / "0.png").read_bytes())
    assert main(["ship", str(source), str(target), "--held", str(single)]) == 1
    told = error(capsys)
    assert f"nothing to tell by in {single}: 1 picture(s), 0 of them held out; give what the run had" in told
    assert "2 or more, of at least 16 pixels a side" in told
    assert main(["ship", str(source), str(target), "--held", str(tmp_path / "none")]) == 1
    assert "none: not a folder" in error(capsys)
    assert target.read_bytes() == before
    target.write_bytes(b"no weights")
    assert main(["ship", str(source), str(target), "--held", str(pictures)]) == 1
    assert "old.safetensors: " in error(capsys)
    assert target.read_bytes() == b"no weights"


def test_weights_of_another_model_are_not_replaced(
    write_net: WriteNet, recipe_of: RecipeOf, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write_net("new.safetensors", 0.0), tmp_path / "plain.safetensors"
    recipe = recipe_of("irn")
    checkpoint.write(target, build(recipe.net).state_dict(), recipe, {"step": 1})
    assert main(["ship", str(source), str(target), "--held", str(pictures)]) == 1
    assert "plain.safetensors: holds irn x2 custom, not irn_a x2 custom; choose another path" in error(capsys)


def test_full_weights_do_not_take_the_place_of_lite_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {}
    for size in ("lite", "full"):
        recipe = load_recipe(f"dlv_irn_a_x2_{size}")
        paths[size] = tmp_path / f"{size}.safetensors"
        checkpoint.write(paths[size], build(recipe.net).state_dict(), recipe, {"step": 1})
    assert main(["ship", str(paths["full"]), str(paths["lite"])]) == 1
    assert "lite.safetensors: holds dlv_irn_a x2 lite, not dlv_irn_a x2 full; choose another path" in error(capsys)


def test_old_and_new_are_compared_on_what_the_run_held_out(
    write_net: WriteNet, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def judged(old: RescalingNet, new: RescalingNet, groups: dict[str, dict[str, object]]) -> Verdict:
        seen.append(set(groups["photographs"]))
        return Verdict("", "")

    monkeypatch.setattr("rescale_train.replace.judge", judged)
    for count in (1, 2):
        target = write_net(f"w{count}.safetensors", 0.3 * count)
        new = write_net(f"n{count}.safetensors", 0.1 * count)
        assert main(["ship", str(new), str(target), "--held", str(pictures), "--holdout", str(count)]) == 0
    paths = find_pictures([pictures])
    assert seen == [{str(p) for p in spread(paths, count)} for count in (1, 2)]
    assert all(len(s) < len(paths) for s in seen)


def test_a_checkpoint_names_what_was_kept_from_training(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ship` measures on these and no others, and a run continued from weights names only what neither of the two saw."""
    seen: list[set[str]] = []

    def judged(old: RescalingNet, new: RescalingNet, groups: dict[str, dict[str, object]]) -> Verdict:
        seen.append({Path(p).name for p in groups["photographs"]})
        return Verdict("", "")

    monkeypatch.setattr("rescale_train.replace.judge", judged)
    made, target = tmp_path / "out" / "checkpoint.safetensors", tmp_path / "w.safetensors"
    assert run("--holdout", "2", "--max-minutes", "0") == 0
    first = spread(find_pictures([pictures]), 2)
    assert checkpoint.read(made).progress["held_out"] == [file_digest(p) for p in first]
    assert main(["ship", str(made), str(target)]) == 0
    made.unlink()
    assert run("--holdout", "2", "--init-from", str(target)) == 0
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    (renamed / f"copy of {first[1].name}").write_bytes(first[1].read_bytes())
    capsys.readouterr()
    assert main(["ship", str(made), str(target), "--held", str(renamed)]) == 1
    assert f"1 of the 2 pictures that the run held out are in {renamed}; name all its folders" in error(capsys)
    for path in find_pictures([pictures]):
        (renamed / f"copy of {path.name}").write_bytes(path.read_bytes())
    assert main(["ship", str(made), str(target), "--held", str(renamed)]) == 0
    assert seen == [{f"copy of {p.name}" for p in first}]
    made.unlink()
    (other,) = spread(find_pictures([pictures]), 1)
    assert other not in first
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / other.name).write_bytes(other.read_bytes())
    assert run("--val", str(tmp_path / "val"), "--init-from", str(target)) == 0
    assert checkpoint.read(made).progress["held_out"] == []
    capsys.readouterr()
    assert main(["ship", str(made), str(target), "--held", str(pictures)]) == 1
    assert "picture(s), 0 of them held out; give what the run had" in error(capsys)


def test_weights_of_unknown_pictures_are_judged_on_what_the_run_held_out(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, target = tmp_path / "out" / "checkpoint.safetensors", tmp_path / "w.safetensors"
    assert run("--max-minutes", "0") == 0
    found = checkpoint.read(made)
    checkpoint.write(target, checkpoint.load_net(found, "made").state_dict(), found.recipe, {})
    made.unlink()
    assert run("--init-from", str(target)) == 0
    capsys.readouterr()
    main(["ship", str(made), str(target), "--held", str(pictures)])
    told = capsys.readouterr()
    assert f"{made}: the weights that it began with do not say what they were trained on" in told.err
    assert "| photographs" in told.out


def test_weights_are_named_so(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target that ends in .json would be overwritten by its own card."""
    assert run("--max-minutes", "0") == 0
    assert main(["ship", str(tmp_path / "out" / "checkpoint.safetensors"), str(tmp_path / "w.json")]) == 1
    assert "w.json: weights are a .safetensors file" in error(capsys)
    assert not (tmp_path / "w.json").exists()


@pytest.mark.parametrize("how", ["absolute path", "link", "copy"])
def test_a_held_out_picture_is_not_trained_on_by_another_name(
    run: Run, pictures: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    first, second = find_pictures([pictures])[:2]
    if how == "copy":
        (pictures / "copy.png").write_bytes(first.read_bytes())
    for path in (first, second):
        (held / path.name).symlink_to(path) if how == "link" else (held / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run("--val", "held" if how != "absolute path" else str(held), "--max-minutes", "0") == 0
    assert "2 pictures to train on, 2 held out" in capsys.readouterr().out
    named = checkpoint.read(tmp_path / "out" / "checkpoint.safetensors").progress["held_out"]
    assert named == [file_digest(first), file_digest(second)]


def test_a_run_is_not_resumed_with_pictures_that_it_held_out(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "out" / "checkpoint.safetensors"
    assert run("--holdout", "2", "--max-minutes", "0") == 0
    held = checkpoint.read(made).progress["held_out"]
    assert run("--holdout", "0", "--resume") == 1
    assert "its run held out other pictures, some of which would now be trained on" in error(capsys)
    assert run("--holdout", "1", "--resume") == 0
    assert checkpoint.read(made).progress["held_out"] == held
    assert len(held) == 2


def test_a_list_of_held_out_pictures_that_is_none_is_refused(
    tiny_net: RescalingNet, recipe_of: RecipeOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, tiny_net.state_dict(), recipe_of("irn_a"), {"step": 1, "held_out": [3]})
    (tmp_path / "w.safetensors").write_bytes(path.read_bytes())
    assert main(["ship", str(path), str(tmp_path / "w.safetensors")]) == 1
    assert "c.safetensors: not a readable checkpoint: held_out is not a list of digests" in error(capsys)


@pytest.mark.parametrize(
    ("photographs", "generated", "refusal"),
    [
        (0.1, 0.1, ""),
        (0.5, -0.2, ""),
        (-0.2, 2.0, ""),
        (-LOSS - 0.01, 5.0, "photographs lose 0.26 dB of HR, at most 0.25 is allowed"),
        (5.0, -1.0, "generated pictures lose 1.00 dB of HR, at most 0.25 is allowed"),
        (0.0, 0.0, "the mean HR changes by +0.000 dB, a gain is wanted"),
        (0.1, -0.2, "the mean HR changes by -0.050 dB, a gain is wanted"),
    ],
)
def test_what_counts_as_better(
    monkeypatch: pytest.MonkeyPatch, tiny_net: RescalingNet, photographs: float, generated: float, refusal: str
) -> None:
    """Groups weigh the same, and none may lose much."""
    nothing = Cast(0.0, 0.0)
    turns = iter([40.0, 40.0 + photographs, 30.0, 30.0 + generated])
    monkeypatch.setattr("rescale_train.replace.measure", lambda net, p: {"p": Fidelity(next(turns), 39.0, 40.0, nothing, nothing)})
    verdict = judge(tiny_net, tiny_net, {"photographs": PICTURE, "generated pictures": PICTURE})
    assert verdict.refusal == refusal
    assert verdict.table.splitlines()[2].startswith(
        f"| photographs | 40.00 | {40 + photographs:.2f} | {photographs:+.2f} | 39.00 | 39.00"
    )


@pytest.mark.parametrize(
    ("gained", "lost", "refusal"),
    [
        (2.0, 0.95, ""),
        (2.0, 1.1, "photographs lose 1.10 dB of RGB HR, at most 1.00 is allowed"),
        (0.1, 0.2, ""),
        (0.1, 0.3, "photographs lose 0.30 dB of RGB HR, at most 0.25 is allowed"),
    ],
)
def test_luma_may_be_bought_with_half_as_much_colour(
    monkeypatch: pytest.MonkeyPatch, tiny_net: RescalingNet, gained: float, lost: float, refusal: str
) -> None:
    assert COLOUR_SHARE == 0.5
    nothing = Cast(0.0, 0.0)
    turns = iter([(47.0, 43.0), (47.0 + gained, 43.0 - lost)])
    monkeypatch.setattr("rescale_train.replace.measure", lambda net, p: {"p": Fidelity(*next(turns), 40.0, nothing, nothing)})
    assert judge(tiny_net, tiny_net, {"photographs": PICTURE}).refusal == refusal


def test_a_continued_run_says_where_it_starts(run: Run, write_net: WriteNet, tmp_path: Path) -> None:
    """So that its log tells whether it improved the weights at all."""
    weights = write_net("w.safetensors", 0.0)
    assert run("--init-from", str(weights)) == 0
    records = read_log(tmp_path / "out" / "log.jsonl")
    first, last = records[0], records[-1]
    assert first["step"] == 0
    assert set(first) == set(last) == {"step", "hr_psnr_y", "hr_psnr_rgb", "lr_psnr_y"}
    (tmp_path / "out" / "checkpoint.safetensors").unlink()
    assert run("--init-from", str(weights), "--validate-every", "0") == 0
    assert min(r["step"] for r in read_log(tmp_path / "out" / "log.jsonl")) > 0
