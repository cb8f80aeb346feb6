from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale_export.probe import probe_picture
from rescale_train.data import CropSampler
from rescale_train.detail import CELL, HardPlaces, detail_map

CPU = torch.device("cpu")


def half_noise(height: int = 96, width: int = 128) -> np.ndarray:
    """Flat on the left, noise on the right."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[:, width // 2 :] = np.random.default_rng(0).integers(0, 256, (height, width - width // 2, 3))
    return picture


@pytest.mark.parametrize("scale", [2, 4])
def test_detail_is_what_reducing_loses(scale: int) -> None:
    flat, noise = np.split(detail_map(half_noise(), scale), 2, axis=1)
    assert flat.shape == (12, 8)
    assert flat[:, :-2].max() < 1e-9, "a flat place loses nothing"
    assert noise.min() > 1e-3
    ramp = np.repeat(np.mgrid[0:96, 0:128].sum(0).astype(np.uint8)[..., None], 3, 2)
    assert detail_map(ramp, scale)[2:-2, 2:-2].max() < 1e-6, "nor does a ramp"


@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (30, 7), (8, 9), (23, 90)])
@pytest.mark.parametrize("scale", [2, 4])
def test_any_size_has_a_map(shape: tuple[int, int], scale: int) -> None:
    assert detail_map(probe_picture(*shape), scale).shape == (shape[0] // CELL, shape[1] // CELL)


def test_crops_follow_detail_by_their_share() -> None:
    """Crops of one cell: half of the picture has all the detail, and so all of the density's share."""
    for share, wanted in ((0.5, 0.75), (0.8, 0.9)):
        places = HardPlaces(half_noise(96, 128), 2, share)
        rng = np.random.default_rng(0)
        right = np.mean([places.draw(rng, 0, 8, 88, 120)[1] >= 64 - 4 for _ in range(4000)])
        assert abs(right - wanted) < 0.05, "cells at the edge between both, and what 35 dB adds to every place, are the rest"


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    patches=st.lists(st.sampled_from([8, 12, 32, 60, 64, 68]), min_size=2, max_size=2),
    margin=st.sampled_from([0, 8, 16]),
)
def test_a_place_lies_within_the_picture(height: int, width: int, patches: list[int], margin: int) -> None:
    """For crops of one size after those of another too, as at the end of a run."""
    places = HardPlaces(probe_picture(height, width), 4, 0.5)
    rng = np.random.default_rng(0)
    for patch in patches:
        rows, cols = (max(0, n - patch - 2 * margin) for n in (height, width))
        found = np.array([places.draw(rng, margin, patch, rows, cols) for _ in range(50)])
        assert found.min() >= 0
        assert found[:, 0].max() <= rows
        assert found[:, 1].max() <= cols


def test_the_last_row_and_column_are_within_reach() -> None:
    places = HardPlaces(probe_picture(45, 43), 4, 0.5)
    rng = np.random.default_rng(0)
    places.draw(rng, 0, 28, 17, 15)
    found = {places.draw(rng, 0, 24, 21, 19) for _ in range(20000)}
    assert {r for r, _ in found} == set(range(22))
    assert {c for _, c in found} == set(range(20))


def test_hard_crops_depend_on_seed_step_and_rank_only() -> None:
    pictures = [probe_picture(90, 70), probe_picture(20, 100, 1)]
    one, other = (CropSampler(pictures, 2, 0, CPU, hard=0.9) for _ in range(2))
    want = one.batch(3, 1, 6, 32)
    other.batch(9, 0, 3, 16)
    for a, b in zip(want, other.batch(3, 1, 6, 32), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.batch(4, 1, 6, 32)[0], want[0])


def test_harder_places_come_more_often() -> None:
    picture = half_noise(160, 320)
    spread = [float(CropSampler([picture], 4, 0, CPU, hard=h).batch(0, 0, 300, 32)[0].std((1, 2, 3)).mean()) for h in (0.0, 0.9)]
    assert spread[1] > 1.5 * spread[0]
