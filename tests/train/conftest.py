"""Tiny recipes, nets with random weights, and folders of generated pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rescale_export.probe import probe_picture
from rescale_train.cli import main
from rescale_train.config import NetConfig, Recipe, TrainConfig
from rescale_train.data import CropSampler
from rescale_train.models import RescalingNet, build

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def calm_process() -> Iterator[None]:
    """One thread, and no trace left of the process-wide settings that a training run makes."""
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)


def _net_of(config: NetConfig, std: float = 0.02, every: bool = False, seed: int = 5) -> RescalingNet:
    """A net whose zero parameters (or all of them) are normal with the given deviation."""
    torch.manual_seed(seed)
    net = build(config)
    with torch.no_grad():
        for p in net.parameters():
            if every or not p.any():
                p.normal_(std=std)
    return net.eval()


@pytest.fixture(scope="session")
def net_of() -> Callable[..., RescalingNet]:
    return _net_of


@pytest.fixture(scope="session")
def tiny_net() -> RescalingNet:
    """IRN-A x2, one block of growth 4, all weights random. Do not modify."""
    return _net_of(NetConfig("irn_a", 2, (1,), 4), std=0.05, every=True)


@pytest.fixture(scope="session")
def as_batch() -> Callable[..., Tensor]:
    """uint8 pictures of one size as (B, 3, H, W) in [0, 1]."""
    return lambda *pictures: torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255.0


@pytest.fixture(scope="session")
def recipe_of() -> Callable[..., Recipe]:
    """A tiny recipe of a model; keyword arguments override its [train] values, `net` those of its [net]."""

    def make(model: str = "irn", scale: int = 2, net: dict[str, object] | None = None, **train: object) -> Recipe:
        side = 8 * scale * (4 if model.endswith("_m") else 1)
        dlv = 3 if model.startswith("dlv") else 0
        config = {"blocks": (1,) * (scale // 2), "growth": 4, "dlv_channels": dlv, **(net or {})}
        run = {"steps": 12, "batch": 2, "patch": side, "final_batch": 2, "final_patch": side, "warmup": 3, "lr_peak": 2e-3}
        return Recipe(NetConfig(model, scale, **config), TrainConfig(**{**run, **train}))

    return make


@pytest.fixture(scope="session")
def sampler_of() -> Callable[..., CropSampler]:
    """A sampler over one generated picture for a recipe."""
    return lambda recipe: CropSampler([probe_picture(96, 80, 3)], recipe.net.scale, recipe.train.seed, CPU)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of four generated PNG pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(probe_picture(48 + 8 * i, 72, i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A tiny IRN-A x2 recipe as a TOML file."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        '[net]\nmodel = "irn_a"\nscale = 2\nblocks = [1]\ngrowth = 4\n'
        "[train]\nsteps = 4\nbatch = 2\npatch = 16\nfinal_batch = 2\nfinal_patch = 16\nwarmup = 1\n"
    )
    return path


@pytest.fixture
def run(tmp_path: Path, pictures: Path, recipe_file: Path) -> Callable[..., int]:
    """`rescale-train run` of the tiny recipe into tmp_path/out, with further arguments."""

    def call(*extra: str) -> int:
        fixed = ["--data", str(pictures), "--out", str(tmp_path / "out"), "--threads", "1", "--device", "cpu", "--holdout", "1"]
        return main(["run", str(recipe_file), *fixed, *extra])

    return call


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line that a command has said on standard error."""

    def read() -> str:
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert text.count("\n") == 1, "one line"
        return text

    return read
