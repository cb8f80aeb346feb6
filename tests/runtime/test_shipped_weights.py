"""What the shipped weights reach, through the exported graphs and the LR file, on photographs that scikit-image ships."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import skimage
from safetensors import safe_open

import rescale
from rescale import Rescaler, Small
from rescale_export.bundles import write_bundle
from rescale_export.validate import MAX_DIFFERENT, MAX_DIFFERENT_CORRECTED, reference
from rescale_train import checkpoint
from rescale_train.models import RescalingNet
from rescale_train.shipped import find_shipped, list_shipped

DATA = Path(skimage.__file__).parent / "data"
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


class Opened(NamedTuple):
    """Shipped weights in PyTorch and as the runtime has them, and what that makes of the photographs."""

    torch: RescalingNet
    runtime: Rescaler
    small: list[Small]
    restored: list[np.ndarray]


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """`Opened` of shipped weights, exported once: an encoder with corrections takes seconds for a picture."""
    made = {}

    def get(shipped):
        if shipped.title not in made:
            net = checkpoint.read_net(shipped.path)
            path = tmp_path_factory.mktemp("shipped") / "bundle"
            write_bundle(net, path, shipped.card, precisions=())
            runtime = rescale.load(path)
            small = [Small.from_bytes(runtime.downscale(p).to_bytes()) for p in photographs()]
            made[shipped.title] = Opened(net, runtime, small, [runtime.upscale(s) for s in small])
        return made[shipped.title]

    yield get
    for found in made.values():
        found.runtime.close()


def photographs() -> list[np.ndarray]:
    return [np.ascontiguousarray(rescale.read_picture(DATA / name)[:300, :400]) for name in PICTURES]


def test_quality_does_not_fall(opened, shipped_weights, recorded):
    """Mean Y-PSNR of the restored HR, and of the LR against bicubic, at most 0.1 dB below what was measured."""
    from rescale_train.bicubic import bicubic_picture

    made, scale = opened(shipped_weights), shipped_weights.scale
    pictures = photographs()
    hr = [rescale.psnr_y(again, picture, scale) for again, picture in zip(made.restored, pictures, strict=True)]
    lr = [rescale.psnr_y(s.rgb, bicubic_picture(picture, scale), scale) for s, picture in zip(made.small, pictures, strict=True)]
    found = [statistics.fmean(hr), statistics.fmean(lr)]
    floors = recorded(shipped_weights.title, "photographs", found)
    assert found[0] >= floors[0] - 0.1, (found, floors)
    assert found[1] >= floors[1] - 0.1, (found, floors)


@pytest.mark.parametrize("weights", list_shipped(), ids=lambda s: s.title)
def test_every_card_is_true(weights):
    net = checkpoint.read_net(weights.path)
    assert weights.card["weights_sha256"] == checkpoint.weights_digest(net)
    assert weights.card["parameters"] == sum(p.numel() for p in net.parameters())
    assert {"data", "machine", "steps", "minutes", "recipe", "figures"} <= set(weights.card)
    assert weights.path.stem == weights.title.replace(" ", "_")


@pytest.mark.parametrize("weights", list_shipped(), ids=lambda s: s.title)
def test_every_card_says_what_its_weights_file_says(weights):
    """The run before is in the file of later weights only; of the others the card alone knows it."""
    card = weights.card
    with safe_open(weights.path, "pt") as file:
        recipe, progress = (json.loads(file.metadata()[key]) for key in ("recipe", "progress"))
    assert card["recipe"] == recipe
    assert card["steps"] == progress["step"] == recipe["train"]["steps"]
    assert card["minutes"] == pytest.approx(progress["seconds"] / 60, abs=0.0501)
    figures = {key: value for key, value in progress.items() if "_psnr_" in key}
    assert figures
    assert card["validation"] == pytest.approx(figures, abs=0.0000501)
    assert card.get("earlier", []) == progress.get("earlier", card.get("earlier", []))


def result_rows():
    """Rows of README's two tables of results that are not the paper's: scale, sets, first cell, other cells."""
    rows = []
    for scale, sets, body in re.findall(r"^\| x([24]): HR / LR .*?\|(.*)\|\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.M):
        for row in body.splitlines():
            first, *cells = (cell.strip() for cell in row.strip("|").split("|"))
            if not first.startswith("paper: "):
                rows.append(pytest.param(int(scale), [s.strip() for s in sets.split("|")], first, cells, id=f"x{scale} {first}"))
    return rows


def test_both_tables_of_results_are_found():
    assert {row.values[0] for row in result_rows()} == {2, 4}


@pytest.mark.parametrize(("scale", "sets", "first", "cells"), result_rows())
def test_the_results_in_the_readme_are_those_of_the_cards(scale, sets, first, cells):
    model, size, rest = re.fullmatch(r"\*\*(\w+) (\w+)\*\* \((.*)\)", first).groups()
    card = find_shipped(model, scale, size).card
    assert f"{card['parameters'] / 1e6:.2f} M" in rest
    figures = {name: card["figures"][name] for name in sets}
    assert cells == [f"**{f['hr_psnr_y']:.2f}** / {f['lr_psnr_y']:.2f} / {f['bytes'] / 1000:.0f}" for f in figures.values()]


def test_runtime_agrees_with_pytorch_in_9999_of_10000_bytes(opened, shipped_weights):
    net, runtime, smalls, _ = opened(shipped_weights)
    tally = {"lr": [0, 0], "hr": [0, 0]}
    for picture, small in zip(photographs(), smalls, strict=True):
        want = reference(net, picture[None])
        lr = want["lr"][0]
        code = want["code"][0] if "code" in want else None
        found = {
            "lr": (small.rgb if small.alpha is None else np.dstack([small.rgb, small.alpha]), lr),
            # The HR of the same LR: where an LR byte differs, its surroundings in the HR may too.
            "hr": (
                runtime.network.up(lr[:, :, :3], lr[:, :, 3] if small.alpha is not None else None, code),
                want["restored"][0],
            ),
        }
        for kind, (got, right) in found.items():
            assert np.abs(got.astype(int) - right).max() <= 1
            tally[kind][0] += right.size
            tally[kind][1] += int(np.count_nonzero(got != right))
    allowed = {"lr": MAX_DIFFERENT_CORRECTED if net.corrections else MAX_DIFFERENT, "hr": MAX_DIFFERENT}
    for kind, (values, different) in tally.items():
        assert different <= allowed[kind] * values, tally


def test_alpha_buys_three_decibels(opened):
    mean = {}
    for model in ("dlv_irn_a", "irn"):
        restored = opened(find_shipped(model, 2, "lite")).restored
        mean[model] = statistics.fmean(rescale.psnr_y(r, p, 2) for r, p in zip(restored, photographs(), strict=True))
    assert mean["dlv_irn_a"] - mean["irn"] >= 3.0, mean


def test_odd_sizes_lose_less_than_a_third_of_a_decibel(opened, shipped_weights):
    made = opened(shipped_weights)
    less = 1 - shipped_weights.scale
    loss = []
    for picture, again in zip(photographs(), made.restored, strict=True):
        odd = np.ascontiguousarray(picture[:less, :less])
        loss.append(rescale.psnr_y(again, picture) - rescale.psnr_y(made.runtime.upscale(made.runtime.downscale(odd)), odd))
    assert max(loss) < 0.3
