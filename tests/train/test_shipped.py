from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from rescale.errors import CheckpointError, UnknownModelError
from rescale_train import checkpoint, lineage
from rescale_train.shipped import Shipped, find_shipped, list_shipped, make_card, weights_file, weights_folder
from rescale_train.start import read_start
from rescale_train.tables import to_dict


def add(folder: Path, model: str, scale: int, size: str, **figures: float) -> Path:
    path = folder / f"{model}_x{scale}_{size}.safetensors"
    path.write_bytes(b"")
    card: dict[str, Any] = {"model": model, "scale": scale, "size": size, "steps": 1}
    card["figures"] = {name: {"hr_psnr_y": value} for name, value in figures.items()}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add(tmp_path, "irn", 2, "full", BSD100=30.0, Set5=50.0)
    add(tmp_path, "irn", 2, "lite", BSD100=31.0, Set5=20.0)
    add(tmp_path, "irn_a", 4, "lite", Kodak=33.0, Set5=34.5)
    return tmp_path


def test_weights_are_named_by_path_or_as_they_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "dlv_irn_a_x2_lite"
    shipped = weights_folder() / f"{name}.safetensors"
    assert weights_file(name) == shipped
    (tmp_path / name).mkdir()  # the bundle that `rescale-export` makes of them
    assert weights_file(name) == shipped
    (tmp_path / "latest").mkdir()
    for given in ("latest", "runs/latest/checkpoint.safetensors", f"./{name}.pt", "missing.safetensors", "below/it"):
        assert weights_file(given) == Path(given)
    (tmp_path / "irn_x2_lite").write_bytes(b"")
    assert weights_file("irn_x2_lite") == Path("irn_x2_lite")
    with pytest.raises(UnknownModelError, match=r"nothing: no such file, and .* \(there are .*dlv_irn_a_x2_lite, "):
        weights_file("nothing")


def test_of_the_default_sizes_the_first_that_ships_is_taken(folder: Path) -> None:
    add(folder, "irn", 2, "medium", BSD100=28.0)
    assert find_shipped("irn", 2, folder=folder).size == "medium"


def test_the_default_size_is_taken_even_if_another_is_better(folder: Path) -> None:
    add(folder, "irn", 2, "lite", BSD100=29.0)
    found = find_shipped("irn", 2, folder=folder)
    assert (found.size, found.headline(), found.title) == ("lite", ("BSD100", 29.0), "irn x2 lite")
    assert found.path == folder / "irn_x2_lite.safetensors"
    assert found.card["steps"] == 1


def test_without_the_default_size_the_best_measured_weights_are_taken(folder: Path) -> None:
    add(folder, "irn_m", 2, "full", BSD100=30.0)
    add(folder, "irn_m", 2, "custom", BSD100=31.0)
    assert find_shipped("irn_m", 2, folder=folder).size == "custom"


def test_a_named_size_is_found(folder: Path) -> None:
    assert find_shipped("irn", 2, "full", folder).size == "full"


def test_the_headline_prefers_the_first_known_set(folder: Path) -> None:
    assert find_shipped("irn_a", 4, folder=folder).headline() == ("Set5", 34.5)
    add(folder, "irn_m", 2, "lite", Manga=40.0)
    assert find_shipped("irn_m", 2, folder=folder).headline() == ("", 0.0)


@pytest.mark.parametrize(("model", "scale", "size"), [("irn_m", 2, None), ("irn", 4, None), ("irn_a", 4, "full")])
def test_weights_that_do_not_ship_list_those_that_do(folder: Path, model: str, scale: int, size: str | None) -> None:
    with pytest.raises(UnknownModelError) as e:
        find_shipped(model, scale, size, folder)
    wanted = f"{model} x{scale}" + (f" {size}" if size else "")
    there = "shipped: irn x2 full, irn x2 lite, irn_a x4 lite"
    assert str(e.value) == f"no weights ship for {wanted} ({there}); train them with rescale-train and give --checkpoint"


def test_an_empty_folder_ships_none(tmp_path: Path) -> None:
    assert list_shipped(tmp_path) == []
    with pytest.raises(UnknownModelError, match=r"shipped: none"):
        find_shipped("irn", 2, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("esrgan", 2, None), "unknown model 'esrgan': choose one of irn, irn_a"),
        (("irn", 3, None), "unknown scale 3: choose one of 2, 4"),
        (("irn", 2, "huge"), "unknown size 'huge': choose one of full, medium, lite"),
    ],
)
def test_unknown_names_list_the_known_ones(folder: Path, arguments: tuple[str, int, str | None], message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        find_shipped(*arguments, folder=folder)


@pytest.mark.parametrize("card", [None, "{", "[1]", '{"model": "irn"}', '{"model": "irn", "scale": "x", "size": "lite"}'])
def test_weights_without_a_readable_card_are_named(folder: Path, card: str | None) -> None:
    (folder / "odd.safetensors").write_bytes(b"")
    if card is not None:
        (folder / "odd.json").write_text(card)
    with pytest.raises(CheckpointError, match=r"odd.json: no readable card for odd.safetensors"):
        list_shipped(folder)


def test_what_the_package_ships_is_complete_and_loads() -> None:
    for shipped in list_shipped():
        config = checkpoint.read(shipped.path).recipe.net
        assert (config.model, config.scale) == (shipped.model, shipped.scale)
        assert shipped.headline()[1] > 20.0
        checkpoint.load_net(checkpoint.read(shipped.path), shipped.title)


def test_a_card_keeps_what_the_training_started_from(tmp_path: Path) -> None:
    source = list_shipped()[0]
    found = checkpoint.read(source.path)
    net = checkpoint.load_net(found, source.title)
    report = tmp_path / "report.json"
    row = {"set": "Set5", "count": 5, "weights": source.card["weights_sha256"], "mean": {"hr_psnr_y": 40.0}}
    report.write_text(json.dumps({"results": [row]}))
    start = read_start(source.path, found.recipe)
    progress = found.progress | {"earlier": start.earlier}
    card = make_card(found.recipe, progress, net, report, "data", "machine")
    # The card may be older than a key of recipes: it stands for the key's default.
    told = {key: source.card[key] for key in lineage.KEYS} | {"recipe": to_dict(found.recipe)}
    assert card["earlier"] == [*source.card["earlier"], told]
    for part, values in source.card["recipe"].items():
        assert told["recipe"][part].items() >= values.items()


def flow(stage: dict[str, Any]) -> dict[str, Any]:
    """The network of a run without its corrections."""
    return {k: v for k, v in stage["recipe"]["net"].items() if not k.startswith("correction")}


@pytest.mark.parametrize("shipped", list_shipped(), ids=lambda s: s.title)
def test_the_flow_under_frozen_corrections_is_that_of_the_run_before(shipped: Shipped) -> None:
    for before, stage in itertools.pairwise(shipped.stages):
        if stage["recipe"]["train"].get("flow_frozen"):
            assert flow(before) == flow(stage), "a run is missing between the two"
