"""Shared by the engine tests: bundles that hold all precisions, the real TensorRT for RTX, a small profile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rescale.bundle import Bundle
from rescale.flavour import Flavour, load
from rescale_engines.profiles import Profile, parse_profile
from rescale_export.bundles import write_bundle


@pytest.fixture(scope="session")
def full_bundle(tmp_path_factory: pytest.TempPathFactory, make_net: Callable[..., object]) -> Callable[[str, int], Bundle]:
    """A small random bundle of a model and scale in all precisions, made once."""
    made: dict[tuple[str, int], Bundle] = {}

    def get(model: str, scale: int) -> Bundle:
        if (model, scale) not in made:
            target = tmp_path_factory.mktemp("full") / f"{model}_x{scale}"
            made[model, scale] = write_bundle(make_net(model, scale), target, precisions=("mixed", "fp16"))
        return made[model, scale]

    return get


@pytest.fixture
def own_bundle(full_bundle: Callable[[str, int], Bundle], tmp_path: Path) -> Bundle:
    """A copy of a -A x2 bundle that a test may change."""
    return Bundle(shutil.copytree(full_bundle("irn_a", 2).path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    """The installed TensorRT for RTX."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    return load("tensorrt-rtx", needs_device=False)


@pytest.fixture
def profile() -> Profile:
    """Small pictures at scale 2."""
    return parse_profile("2x2:64x64:128x128", 2)
