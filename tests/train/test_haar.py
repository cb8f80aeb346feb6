from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rescale_train.config import NetConfig
from rescale_train.models.haar import (
    BlockTransform,
    alpha_matrices,
    first_level_matrices,
    haar_inverse_matrix,
    haar_matrix,
)

CONFIGS = [
    NetConfig(model, 2, (1,), 4, dlv_channels=d, alpha_split=split, alpha_mean=mean, alpha_basis=basis)
    for model, split, mean, basis, d in itertools.product(
        ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m"),
        ("pre", "post"),
        (True, False),
        ("paper", "orthonormal"),
        (0, 3, 16),
    )
    if d == 0 or model.startswith("dlv")
]


@pytest.mark.parametrize("channels", [1, 3, 12, 15])
def test_haar_inverts_exactly(channels: int) -> None:
    np.testing.assert_array_equal(haar_inverse_matrix(channels) @ haar_matrix(channels), np.eye(4 * channels))


def test_the_low_band_is_the_mean_and_the_inverse_has_no_factor() -> None:
    assert set(np.unique(haar_inverse_matrix(3))) == {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(haar_matrix(3)[0], [0.25] * 4 + [0.0] * 8)


def test_first_level_inverts_in_every_configuration() -> None:
    for config in CONFIGS:
        forward, inverse = first_level_matrices(config)
        d = config.dlv_channels
        assert forward.shape == (12 + d, 12)
        np.testing.assert_allclose(inverse @ forward, np.eye(12), atol=1e-14)
        assert not forward[12:].any(), "z_d is zero"
        assert not inverse[:, 12:].any(), "z_d is discarded"
        np.testing.assert_array_equal(forward[:3], haar_matrix(3)[:3])


def test_the_orthonormal_basis_is_orthogonal_with_the_scaled_mean_first() -> None:
    split, merge = alpha_matrices(NetConfig("irn_a", 2, (1,), 4, alpha_basis="orthonormal"))
    np.testing.assert_allclose(split @ split.T, np.eye(9), atol=1e-15)
    np.testing.assert_allclose(split @ merge, np.eye(9), atol=1e-15)
    np.testing.assert_allclose(split[0], np.full(9, 1 / 3), atol=1e-15)


def test_the_paper_basis_is_mean_and_equation_1() -> None:
    split, merge = alpha_matrices(NetConfig("irn_a", 2, (1,), 4))
    h = np.arange(9.0) ** 2
    mixed = split @ h
    assert mixed[0] == pytest.approx(h.mean())
    np.testing.assert_array_equal(mixed[1:], h[1:])
    np.testing.assert_allclose(merge @ mixed, h, atol=1e-12)


@pytest.mark.parametrize("channels", [3, 15])
def test_a_block_transform_applies_its_matrix_to_2x2_blocks(channels: int) -> None:
    forward = haar_matrix(channels)
    transform = BlockTransform(forward, haar_inverse_matrix(channels))
    x = torch.rand(2, channels, 6, 8, generator=torch.Generator().manual_seed(0))
    y = transform(x)
    assert y.shape == (2, 4 * channels, 3, 4)
    np.testing.assert_allclose(y[1, :, 2, 1], forward @ x[1, :, 4:6, 2:4].reshape(-1).numpy(), atol=1e-6)
    torch.testing.assert_close(transform.inverse(y), x, atol=1e-6, rtol=0)


def test_a_block_transform_stays_float32_under_autocast() -> None:
    transform = BlockTransform(haar_matrix(3), haar_inverse_matrix(3))
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = transform.inverse(transform(x))
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, x, atol=1e-6, rtol=0)
