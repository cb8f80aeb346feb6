"""Shared by all suites: small networks with random weights, exported once per session, and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rescale_export.bundles import write_bundle
from rescale_export.probe import probe_picture
from rescale_train.config import NetConfig
from rescale_train.models import RescalingNet, build

torch.set_num_threads(1)

ALL = [(m, s) for m in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m") for s in (2, 4)]


def random_net(model: str, scale: int, seed: int = 0) -> RescalingNet:
    """One block a level, growth 4, every parameter random: small enough for any machine, nothing in it is zero."""
    torch.manual_seed(seed)
    dlv = 3 if model.startswith("dlv") else 0
    gain = 8.0 if model.endswith("_a") else 1.0
    net = build(NetConfig(model, scale, (1,) * (scale // 2), 4, shared_trunk=True, dlv_channels=dlv, alpha_gain=gain))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return net.eval()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Path of a small random bundle of a model and scale, made once."""
    made: dict[tuple[str, int], Path] = {}

    def get(model: str, scale: int) -> Path:
        if (model, scale) not in made:
            target = tmp_path_factory.mktemp("bundles") / f"{model}_x{scale}"
            write_bundle(random_net(model, scale), target)
            made[model, scale] = target
        return made[model, scale]

    return get


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """Deterministic uint8 (height, width, 3) pictures."""
    return probe_picture


@pytest.fixture(scope="session")
def make_net() -> Callable[..., RescalingNet]:
    """`random_net` for suites, which cannot import this file."""
    return random_net
