from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rescale.codes import LOGIT_MARGIN
from rescale_train.models.quantise import logit, quantise_alpha, quantise_latent, quantise_rgb

Quantiser = Callable[[Tensor], Tensor]

CASES: list[tuple[Quantiser, int, int]] = [(quantise_rgb, 0, 255), (quantise_alpha, 0, 254), (quantise_latent, -127, 127)]
IDS = ["rgb", "alpha", "latent"]


def around(levels: np.ndarray, top: int) -> np.ndarray:
    """float32 inputs at the given fractional levels and their three neighbours on either side."""
    centre = (levels / top).astype(np.float32)
    out = [centre]
    up = down = centre
    for _ in range(3):
        up, down = np.nextafter(up, np.float32(2)), np.nextafter(down, np.float32(-2))
        out += [up, down]
    return np.concatenate(out)


@pytest.mark.parametrize(("quantise", "low", "top"), CASES, ids=IDS)
def test_rounds_half_to_even_at_every_boundary(quantise: Quantiser, low: int, top: int) -> None:
    x = around(np.arange(low, top) + 0.5, top)
    scaled = np.clip(x, low / top, 1.0).astype(np.float32) * np.float32(top)
    ties = scaled - np.floor(scaled) == 0.5
    assert np.unique(scaled[ties]).size == top - low, "every boundary is hit exactly"
    got = quantise(torch.from_numpy(x)).numpy() * top
    np.testing.assert_allclose(got, np.rint(scaled), atol=2e-4)
    assert not np.any(np.rint(got[ties]).astype(int) % 2)


@pytest.mark.parametrize(("quantise", "low", "top"), CASES, ids=IDS)
def test_keeps_every_level_and_clamps(quantise: Quantiser, low: int, top: int) -> None:
    levels = np.arange(low, top + 1)
    x = torch.from_numpy((levels / top).astype(np.float32))
    np.testing.assert_array_equal(np.rint(quantise(x).numpy() * top), levels)
    for offset in (-0.4, 0.4):
        near = torch.from_numpy(((levels + offset) / top).astype(np.float32))
        np.testing.assert_array_equal(np.rint(quantise(near).numpy() * top), levels)
    far = quantise(torch.tensor([-7.0, 9.0])).numpy() * top
    np.testing.assert_allclose(far, [low, top], atol=1e-3)


@pytest.mark.parametrize(("quantise", "low", "top"), CASES, ids=IDS)
def test_the_gradient_passes_rounding_and_clamp(quantise: Quantiser, low: int, top: int) -> None:
    x = torch.tensor([-3.0, low / top, 0.1234, 0.5, 1.0, 3.0], requires_grad=True)
    weights = torch.arange(1.0, 7.0)
    (quantise(x) * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weights)


def test_logit_inverts_the_sigmoid_within_the_margin_and_clamps_outside() -> None:
    limit = math.log((1.0 - LOGIT_MARGIN) / LOGIT_MARGIN)
    a = torch.linspace(-2.0 * limit, 2.0 * limit, 4001)
    torch.testing.assert_close(logit(torch.sigmoid(a)), a.clamp(-limit, limit), atol=1e-3, rtol=0)
    ends = logit(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(ends, torch.tensor([-limit, -limit, limit, limit]), atol=1e-4, rtol=0)


def test_the_neutral_alpha_and_latent_are_exact() -> None:
    assert logit(quantise_alpha(torch.tensor([0.5, 0.501]))).tolist() == [0.0, 0.0]
    assert quantise_latent(torch.tensor([0.0])).tolist() == [0.0]
