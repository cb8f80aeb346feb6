from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rescale_export.probe import probe_picture
from rescale_train.bicubic import bicubic_batch
from rescale_train.config import LossConfig, Recipe
from rescale_train.losses import Objective
from rescale_train.models import RescalingNet

MODELS = ["irn", "irn_a", "irn_m", "dlv_irn_a", "dlv_irn_m"]


@pytest.fixture
def batch(as_batch: Callable[..., Tensor]) -> Tensor:
    return as_batch(probe_picture(32, 32, 1), probe_picture(32, 32, 2))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_terms_are_those_of_equation_2(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor, model: str, scale: int
) -> None:
    weights = LossConfig(hr=2.0, lr=3.0, z=5.0, z_mse=7.0)
    recipe = recipe_of(model, scale, loss=weights)
    net = net_of(recipe.net, 0.05, True)
    reference = bicubic_batch(batch, scale)
    got = {k: float(v) for k, v in Objective(net, recipe)(batch, reference).items()}

    down = net.downscale(batch)
    z_hat = net.decode_z(down.lr, down.code).numpy()
    restored, z = net.upscale(down.lr, torch.from_numpy(z_hat)).numpy(), down.z.numpy()
    want = {
        "hr": np.sqrt((restored - batch.numpy()).astype(np.float64) ** 2 + 1e-6).sum() / 2,
        "lr": ((down.lr_raw.numpy() - reference.numpy()).astype(np.float64) ** 2).sum() / 2,
        "z": (z.astype(np.float64) ** 2).sum() / 2,
    }
    want["total"] = 2.0 * want["hr"] + 3.0 * want["lr"] + 5.0 * want["z"]
    if model.endswith("_m"):
        want["z_mse"] = ((z - z_hat).astype(np.float64) ** 2).sum() / 2
        want["total"] += 7.0 * want["z_mse"]
    assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_lr_weight_is_scale_squared_by_default(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], scale: int
) -> None:
    assert Objective(net_of(recipe_of("irn", scale).net), recipe_of("irn", scale)).lr_weight == scale**2
    assert Objective(net_of(recipe_of("irn", scale).net), recipe_of("irn", scale, loss=LossConfig(lr=3.0))).lr_weight == 3.0


def test_only_the_total_carries_a_gradient(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor
) -> None:
    recipe = recipe_of("dlv_irn_m")
    net = net_of(recipe.net, 0.05, True)
    terms = Objective(net, recipe)(batch, bicubic_batch(batch, 2))
    assert [k for k, v in terms.items() if v.requires_grad] == ["total"]
    terms["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@torch.no_grad()
def test_noise_changes_the_restored_picture_only_and_comes_from_the_generator(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor
) -> None:
    reference = bicubic_batch(batch, 2)
    net = net_of(recipe_of().net, 0.05, True)
    plain = Objective(net, recipe_of())(batch, reference)
    noisy = Objective(net, recipe_of(lr_noise=0.05, lr_noise_share=1.0))
    first, again, other = (noisy(batch, reference, generator(s)) for s in (1, 1, 2))
    assert (first["lr"], first["z"]) == (plain["lr"], plain["z"])
    assert first["hr"] == again["hr"]
    assert first["hr"] != other["hr"]
    assert first["hr"] > plain["hr"]
    silent = Objective(net, recipe_of(lr_noise=0.05, lr_noise_share=0.0))
    assert silent(batch, reference, generator(1))["hr"] == plain["hr"]


@torch.no_grad()
def test_random_z_comes_from_the_generator(
    net_of: Callable[..., RescalingNet], recipe_of: Callable[..., Recipe], batch: Tensor
) -> None:
    reference = bicubic_batch(batch, 2)
    net = net_of(recipe_of().net, 0.05, True)
    zero = Objective(net, recipe_of())(batch, reference)["hr"]
    drawn = Objective(net, recipe_of(z="random"))
    first, again, other = (drawn(batch, reference, generator(s))["hr"] for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first > zero
