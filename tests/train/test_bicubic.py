from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rescale_export.probe import probe_picture
from rescale_train.bicubic import bicubic_batch, bicubic_matrix, bicubic_picture

sizes = st.integers(1, 40)
scales = st.sampled_from([2, 4])
calm = settings(deadline=None, max_examples=50)


@calm
@given(count=sizes, scale=scales)
def test_rows_sum_to_1_and_are_symmetric(count: int, scale: int) -> None:
    m = bicubic_matrix(count * scale, scale)
    assert m.shape == (count, count * scale)
    np.testing.assert_allclose(m.sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(m, m[::-1, ::-1], atol=1e-12)


def test_the_weights_are_those_of_matlab() -> None:
    half = [-0.01171875, -0.03515625, 0.11328125, 0.43359375]
    np.testing.assert_allclose(bicubic_matrix(32, 2)[8, 13:21], half + half[::-1], atol=1e-12)
    assert np.count_nonzero(bicubic_matrix(32, 2)[8]) == 8


@calm
@given(height=sizes, width=sizes, scale=scales, level=st.integers(0, 255))
def test_a_constant_picture_stays_constant(height: int, width: int, scale: int, level: int) -> None:
    picture = np.full((height * scale, width * scale, 3), level, np.uint8)
    np.testing.assert_array_equal(bicubic_picture(picture, scale), np.full((height, width, 3), level))
    batch = torch.full((1, 3, height * scale, width * scale), level / 255.0)
    torch.testing.assert_close(bicubic_batch(batch, scale), torch.full((1, 3, height, width), level / 255.0))


@pytest.mark.parametrize("scale", [2, 4])
def test_agrees_with_torch_away_from_the_border(scale: int) -> None:
    x = torch.rand(2, 3, 24 * scale, 20 * scale, generator=torch.Generator().manual_seed(1))
    want = functional.interpolate(x, scale_factor=1 / scale, mode="bicubic", antialias=True, align_corners=False)
    got = bicubic_batch(x, scale)
    torch.testing.assert_close(got[..., 2:-2, 2:-2], want[..., 2:-2, 2:-2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_ramp_is_sampled_at_the_centres_of_the_blocks(scale: int) -> None:
    ramp = torch.arange(20.0 * scale, dtype=torch.float64).expand(1, 1, 4 * scale, -1)
    want = (torch.arange(20.0, dtype=torch.float64) + 0.5) * scale - 0.5
    got = bicubic_batch(ramp, scale)[0, 0, 1]
    torch.testing.assert_close(got[2:-2], want[2:-2])


@pytest.mark.parametrize("scale", [2, 4])
def test_the_border_repeats_the_edge(scale: int) -> None:
    picture = probe_picture(8 * scale, 6 * scale)
    mirrored = np.pad(picture, ((8 * scale,) * 2, (6 * scale,) * 2, (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(bicubic_picture(picture, scale), bicubic_picture(mirrored, scale)[8:16, 6:12])


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_picture_and_batch_agree(scale: int, seed: int) -> None:
    picture = probe_picture(9 * scale, 7 * scale, seed)
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    want = bicubic_batch(batch, scale)[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    np.testing.assert_array_equal(bicubic_picture(picture, scale), want)


def test_overshoot_is_clamped_in_pictures_only() -> None:
    edge = np.zeros((16, 16, 3), np.uint8)
    edge[:, 7:] = 255
    batch = bicubic_batch(torch.from_numpy(edge).permute(2, 0, 1)[None] / 255.0, 2)
    assert batch.min() < 0.0
    assert batch.max() > 1.0
    assert set(np.unique(bicubic_picture(edge, 2))) >= {0, 255}
