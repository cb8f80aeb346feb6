"""The runs that led to weights: told by the weights themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rescale.errors import CheckpointError
from rescale_train import checkpoint, lineage
from rescale_train.cli import main
from rescale_train.config import Recipe
from rescale_train.models import RescalingNet

Run = Callable[..., int]
RecipeOf = Callable[..., Recipe]
STAGE = {"weights_sha256": "a", "steps": 3, "minutes": 0.1, "validation": {}, "recipe": {}}


def earlier(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = checkpoint.read(path).progress.get("earlier", [])
    return found


def test_a_chain_of_runs_is_in_the_card_of_the_last(run: Run, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("out", "second", "third")]
    files = [folder / "checkpoint.safetensors" for folder in folders]
    assert run("--set", "train.steps=2") == 0
    assert earlier(files[0]) == []
    assert run("--out", str(folders[1]), "--init-from", str(files[0]), "--set", "train.steps=3") == 0
    shipped = tmp_path / "w.safetensors"
    assert main(["ship", str(files[1]), str(shipped)]) == 0
    assert run("--out", str(folders[2]), "--init-from", str(shipped), "--set", "train.steps=4", "--max-minutes", "0") == 0
    assert run("--out", str(folders[2]), "--resume", "--set", "train.steps=4") == 0
    told = earlier(files[2])
    assert [stage["steps"] for stage in told] == [2, 3]
    assert [stage["recipe"]["train"]["steps"] for stage in told] == [2, 3]
    assert [stage["weights_sha256"] for stage in told] == [
        checkpoint.weights_digest(checkpoint.read_net(p)) for p in (files[0], shipped)
    ]
    target, report = tmp_path / "last.safetensors", tmp_path / "report.json"
    assert main(["ship", str(files[2]), str(target)]) == 0
    digest = checkpoint.weights_digest(checkpoint.read_net(target))
    report.write_text(json.dumps({"results": [{"set": "Set5", "count": 5, "weights": digest, "mean": {"hr_psnr_y": 40.0}}]}))
    assert main(["ship", str(files[2]), str(target), "--figures", str(report)]) == 0
    card = json.loads(target.with_suffix(".json").read_text())
    assert (card["earlier"], card["licence"]) == (told, "unknown")
    assert main(["ship", str(files[2]), str(target), "--figures", str(report), "--licence", "CC0-1.0 "]) == 0
    assert json.loads(target.with_suffix(".json").read_text())["licence"] == "CC0-1.0"


@pytest.mark.parametrize("whose", ["its own", "another's", "none"])
def test_weights_that_do_not_tell_have_what_their_card_tells(
    tmp_path: Path, tiny_net: RescalingNet, recipe_of: RecipeOf, whose: str
) -> None:
    path, digest = tmp_path / "w.safetensors", checkpoint.weights_digest(tiny_net)
    checkpoint.write(path, tiny_net.state_dict(), recipe_of("irn_a"), {"step": 1})
    card = {"weights_sha256": digest if whose == "its own" else "b", "earlier": [STAGE]}
    path.with_suffix(".json").write_text("{" if whose == "none" else json.dumps(card))
    assert lineage.earlier_of(path, {"step": 1}, digest) == ([STAGE] if whose == "its own" else [])
    assert lineage.earlier_of(path, {"step": 1, "earlier": []}, digest) == [], "the file goes before the card"


@pytest.mark.parametrize("value", [None, 3, {}, [3], [{"steps": 1}], [{**STAGE, "recipe": "x" * lineage.MAX_EARLIER}]])
def test_earlier_runs_that_no_card_can_hold_are_refused(
    tmp_path: Path, tiny_net: RescalingNet, recipe_of: RecipeOf, value: object
) -> None:
    path = tmp_path / "w.safetensors"
    checkpoint.write(path, tiny_net.state_dict(), recipe_of("irn_a"), {"step": 1, "earlier": value})
    with pytest.raises(CheckpointError, match=r"w.safetensors: not readable: earlier") as caught:
        checkpoint.read(path)
    assert len(str(caught.value)) < 300


def test_a_start_whose_history_would_not_fit_is_refused_before_the_run(
    run: Run, tmp_path: Path, tiny_net: RescalingNet, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.safetensors"
    full = {**STAGE, "recipe": "x" * (lineage.MAX_EARLIER - 300)}
    checkpoint.write(path, tiny_net.state_dict(), recipe_of("irn_a"), {"step": 1, "earlier": [full]})
    checkpoint.read(path)
    assert run("--init-from", str(path)) == 1
    assert "w.safetensors: not readable: earlier, 2 runs, has more than" in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()
