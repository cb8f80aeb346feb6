"""docs/weights.md says what the cards say."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rescale_bench.weights_page import history, page
from rescale_train.config import Recipe
from rescale_train.options import overrides_of
from rescale_train.recipe import load_recipe
from rescale_train.shipped import list_shipped
from rescale_train.tables import from_dict

PAGE = Path(__file__).parents[2] / "docs/weights.md"


def test_the_page_is_what_the_cards_say() -> None:
    assert PAGE.read_text() == page(list_shipped()), "run python -m rescale_bench.weights_page docs/weights.md"


@pytest.mark.parametrize("weights", list_shipped(), ids=lambda s: s.title)
def test_the_last_command_is_the_run_that_made_the_weights(weights) -> None:
    words = shlex.split(history(weights)[-1].split("`")[1])
    assert words[:2] == ["rescale-train", "run"]
    overrides = overrides_of([words[i + 1] for i, word in enumerate(words) if word == "--set"])
    assert load_recipe(words[2], overrides) == from_dict(Recipe, weights.card["recipe"], "recipe")


def test_weights_that_were_continued_name_every_run() -> None:
    weights = next(s for s in list_shipped() if s.card.get("earlier"))
    steps = history(weights)
    assert len(steps) >= 2
    assert "--init-from" not in steps[0]
    runs = [shlex.split(step.split("`")[1]) for step in steps]
    outs = [run[run.index("--out") + 1] for run in runs]
    assert len(set(outs)) == len(outs)
    assert [run[run.index("--init-from") + 1] for run in runs[1:]] == [f"{out}/checkpoint.safetensors" for out in outs[:-1]]


def test_a_network_of_no_recipe_is_refused() -> None:
    weights = list_shipped()[0]
    weights.card["recipe"]["net"]["growth"] += 1
    with pytest.raises(ValueError, match="no shipped recipe trains"):
        history(weights)
