"""What `rescale-bench speed` measures: competitors, pictures and their sides, bundles and models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rescale import png
from rescale_bench.peers_torch import random_net
from rescale_bench.speed_plan import Competitor, Options, competitors, minutes_of, sample_picture, side_lengths, subjects, within
from rescale_train.config import net_config

BundleOf = Callable[[str, int], Path]


def test_random_networks_are_zero_nowhere() -> None:
    a, b = (random_net(net_config("irn", 2, "lite")) for _ in range(2))
    weights = [p for name, p in a.named_parameters() if name.endswith("weight")]
    assert all((p != 0).all() for p in weights)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_default_competitors() -> None:
    names = [c.name for c in competitors(Options())]
    assert names[0] == "onnxruntime fp32"
    assert names[-3:] == ["eager", "compiled", "naive"]
    assert "compiled" not in [c.name for c in competitors(Options(compiled=False))]
    assert "onnxruntime mixed" not in names
    assert not any(c.asked for c in competitors(Options(precisions=["mixed"])))
    found = competitors(Options(backends=["onnxruntime"], precisions=["mixed", "mixed"], peers=False))
    assert found == [Competitor("backend", "onnxruntime", "mixed", True)]
    assert all(c.kind == "backend" for c in competitors(Options(sweep=True)))


@given(st.integers(1, 300), st.integers(1, 300))
def test_sample_pictures_have_any_size(height: int, width: int) -> None:
    picture = sample_picture(height, width)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8


def test_sample_pictures_do_not_repeat_for_a_codec() -> None:
    once, often = len(png.encode(sample_picture(192, 288))), len(png.encode(sample_picture(768, 1152)))
    assert often == pytest.approx(16 * once, rel=0.1)


@given(st.floats(0.001, 200.0))
def test_sides_make_the_megapixels(megapixels: float) -> None:
    height, width = side_lengths(megapixels)
    assert height % 16 == width % 16 == 0
    if megapixels > 0.05:
        assert height * width / 1e6 == pytest.approx(megapixels, rel=0.1)


@pytest.mark.usefixtures("only_irn_ships")
def test_subjects_are_bundles_and_models(bundle: BundleOf, tmp_path: Path) -> None:
    path = bundle("irn", 2)
    only = list(subjects(Options(bundles=[path]), competitors(Options()), tmp_path))
    assert [(s.bundle.path, s.weights) for s in only] == [(path, "unknown")]
    wanted = competitors(Options(backends=["onnxruntime"], precisions=["fp32"]))
    both = list(subjects(Options(models=["irn"], scales=[2]), wanted, tmp_path))
    assert [(s.bundle.title, s.weights) for s in both] == [("irn x2 lite", "same")]
    again = list(subjects(Options(bundles=[both[0].bundle.path]), wanted, tmp_path))
    assert again[0].weights == "same"
    assert all(torch.equal(p, q) for p, q in zip(again[0].net.parameters(), both[0].net.parameters(), strict=True))


@pytest.mark.usefixtures("only_irn_ships")
def test_models_without_weights_get_random_ones(tmp_path: Path) -> None:
    wanted = competitors(Options(backends=["onnxruntime"], precisions=["mixed"]))
    told: list[str] = []
    (subject,) = subjects(Options(models=["irn_a"], sizes=["lite"]), wanted, tmp_path, lambda *row: told.append(row[2]))
    assert told[0] == "irn_a x2 lite: writing graphs"
    assert (subject.weights, list(subject.bundle.precisions)) == ("random", ["fp32", "mixed"])


@pytest.mark.parametrize(
    ("minutes", "kept", "expected", "left_out"),
    [
        # A warm-up and 3 runs of 15 s are a minute at the first size, 4 at the second and 16 at the third.
        (21.0, 3, 21.0, {}),
        (20.9, 2, 5.0, {"640x480": "3 runs of each would take about 16 minutes; --minutes 21 takes them"}),
        (
            0.5,
            1,
            1.0,
            {
                "320x240": "3 runs of each would take about 4 minutes; --minutes 5 takes them",
                "640x480": "3 runs of each would take about 16 minutes; --minutes 21 takes them",
            },
        ),
        (0.0, 3, 21.0, {}),
    ],
)
def test_a_sweep_keeps_to_its_minutes(minutes: float, kept: int, expected: float, left_out: dict[str, str]) -> None:
    sizes = [(120, 160), (240, 320), (480, 640)]
    assert minutes_of(3, 15.0, sizes[0], sizes[2]) == 16.0
    assert within(minutes, sizes, 15.0, 3) == (sizes[:kept], expected, left_out)
    assert within(minutes, sizes, 0.0, 3) == (sizes, 0.0, {}), "where every run failed nothing is known"
