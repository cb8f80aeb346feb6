from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rescale.errors import ConfigError
from rescale_train import checkpoint
from rescale_train.cli import main
from rescale_train.config import NetConfig, Recipe, TrainConfig
from rescale_train.grow import grow
from rescale_train.loop import Trainer
from rescale_train.losses import Objective
from rescale_train.models import RescalingNet
from rescale_train.models.irn import Downscaled
from rescale_train.start import read_start

NetOf = Callable[..., RescalingNet]
SMALL = {
    "irn": NetConfig("irn", 2, (1,), 4, shared_trunk=True),
    "irn_x4": NetConfig("irn", 4, (1, 2), 4, shared_trunk=True),
    "irn_a": NetConfig("irn_a", 2, (2,), 4),
    "irn_m": NetConfig("irn_m", 2, (1,), 4, shared_trunk=True),
    "dlv_irn_a_x4": NetConfig("dlv_irn_a", 4, (1, 1), 4, dlv_channels=1, shared_trunk=True),
}
CASES = [
    ("irn", {}),
    ("irn", {"blocks": (3,)}),
    ("irn", {"growth": 7}),
    ("irn", {"shared_trunk": False}),
    ("irn", {"model": "dlv_irn", "dlv_channels": 3}),
    ("irn", {"model": "irn_m"}),
    ("irn", {"model": "dlv_irn_m", "dlv_channels": 2, "blocks": (2,), "growth": 6, "shared_trunk": False}),
    ("irn_x4", {"model": "dlv_irn", "dlv_channels": 3, "blocks": (2, 3), "growth": 5}),
    ("irn_x4", {"lr_growth": 7}),
    ("irn_x4", {"model": "irn_m"}),
    ("irn_a", {"model": "dlv_irn_a", "dlv_channels": 2, "growth": 6}),
    ("irn_m", {"growth": 5, "blocks": (2,)}),
    ("dlv_irn_a_x4", {"dlv_channels": 3, "blocks": (1, 2), "shared_trunk": False}),
    ("dlv_irn_a_x4", {"lr_growth": 6}),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_grown_network_computes_what_the_small_one_did(net_of: NetOf, name: str, changes: dict[str, object]) -> None:
    small = net_of(SMALL[name], 0.1, True).double()
    config = replace(SMALL[name], **changes)  # type: ignore[arg-type]
    large = grow(small.float(), config).double().eval()
    small = small.double()
    assert large.config == config
    side = 16 * config.scale
    x = torch.rand(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = small.downscale(x), large.downscale(x)
        torch.testing.assert_close(b.lr_raw, a.lr_raw, rtol=0, atol=1e-9)
        torch.testing.assert_close(b.lr, a.lr, rtol=0, atol=0)
        up = [net.upscale(down.lr, net.decode_z(down.lr, down.code)) for net, down in ((small, a), (large, b))]
        torch.testing.assert_close(up[1], up[0], rtol=0, atol=1e-9)


def test_every_new_parameter_learns(net_of: NetOf) -> None:
    """A few steps reach all of them: what starts at zero on one side of a channel is not zero on the other."""
    config = replace(SMALL["irn"], model="dlv_irn_m", dlv_channels=3, blocks=(2,), growth=6)
    net = grow(net_of(SMALL["irn"], 0.1, True), config).train()
    objective = Objective(net, Recipe(config, TrainConfig(steps=1, patch=64, final_patch=64)))
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        x = torch.rand(2, 3, 64, 64, generator=generator)
        optimiser.zero_grad()
        objective(x, torch.nn.functional.avg_pool2d(x, 2))["total"].backward()
        optimiser.step()
    moved = {n: (p.detach() != before[n]).reshape(p.shape[0], -1) for n, p in net.named_parameters() if n.startswith("levels.")}
    assert [n for n, changed in moved.items() if not changed.any(-1).all()] == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("irn", {"model": "irn_a"}, "differ in alpha"),
        ("irn_x4", {"blocks": (2, 1)}, r"more than \(2, 1\)"),
        ("irn", {"growth": 3}, "its growth is 4"),
        ("irn_x4", {"lr_growth": 3}, "its growth is 4, more than 3"),
        ("irn_a", {"shared_trunk": True}, "its G and H are separate"),
        ("irn_a", {"alpha_gain": 8.0}, "net.alpha_gain is 1.0, not 8.0"),
        ("irn_m", {"model": "dlv_irn_m", "dlv_channels": 3}, "an autoencoder cannot be grown"),
        ("irn_m", {"latent_gain": 2.0}, "an autoencoder cannot be grown; start from the network without one"),
        ("irn_x4", {"scale": 2, "blocks": (3,)}, "it is x4, not x2"),
        ("irn_m", {"scale": 4, "blocks": (1, 1)}, "only a plain irn x2 can be applied twice for x4, not irn_m"),
        ("irn", {"scale": 4, "blocks": (0, 1), "growth": 4}, r"it has \(1, 1\) blocks"),
    ],
)
def test_what_does_not_grow_is_refused(net_of: NetOf, name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grow(net_of(SMALL[name]), replace(SMALL[name], **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{}, {"blocks": (2, 3), "growth": 6, "shared_trunk": False}, {"model": "dlv_irn", "dlv_channels": 3}, {"model": "irn_m"}],
)
def test_x4_from_x2_applies_it_twice(net_of: NetOf, changes: dict[str, object]) -> None:
    small = net_of(SMALL["irn"], 0.1, True)
    large = grow(small, replace(SMALL["irn"], scale=4, **({"blocks": (1, 1)} | changes))).double().eval()  # type: ignore[arg-type]
    small = small.double()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        lr = small(small(x)[0])[0]
        torch.testing.assert_close(large(x)[0], lr, rtol=0, atol=1e-9)
        torch.testing.assert_close(large.upscale(lr), small.upscale(small.upscale(lr)), rtol=0, atol=1e-9)


def assert_same_without_auxiliary(small: RescalingNet, large: RescalingNet) -> tuple[Downscaled, torch.Tensor]:
    """Both float64: one LR, and one HR from z-hat = 0. Gives what `small` makes of the picture, and the HR of `large`."""
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = small.downscale(x), large.downscale(x)
        restored = large.upscale(b.lr)
        torch.testing.assert_close(b.lr_raw, a.lr_raw, rtol=0, atol=1e-9)
        torch.testing.assert_close(restored, small.upscale(a.lr), rtol=0, atol=1e-9)
    return a, restored


@pytest.mark.parametrize("name", ["dlv_irn_a_x4", "dlv_irn"])
def test_a_dual_latent_variable_can_be_left_out(net_of: NetOf, name: str) -> None:
    """Exact as long as nothing was written to its channels; otherwise all that reads and writes the others stays."""
    small = net_of(SMALL[name] if name in SMALL else replace(SMALL["irn"], model=name, dlv_channels=3), 0.1, True)
    d, low = small.config.dlv_channels, small.config.low_channels
    with torch.no_grad():
        for level, (_, blocks) in enumerate(small.stages()):
            width = (12 + d) * 4**level
            written = [c - low for c in range(width) if c % (12 + d) >= 12]
            for block in blocks:
                for rows in (written, [block.high + c for c in written]):
                    block.GH.conv5.weight[rows] = 0
                    block.GH.conv5.bias[rows] = 0
    config = replace(small.config, model=small.config.model.removeprefix("dlv_"), dlv_channels=0)
    large = grow(small, config).double()
    assert_same_without_auxiliary(small.double(), large)


@pytest.mark.parametrize("changes", [{}, {"model": "dlv_irn", "dlv_channels": 2, "growth": 6}])
def test_an_autoencoder_can_be_left_out(net_of: NetOf, changes: dict[str, object]) -> None:
    """The LR stays, and is restored as where the latent code is lost."""
    small = net_of(SMALL["irn_m"], 0.1, True)
    large = grow(small, replace(SMALL["irn_m"], **({"model": "irn"} | changes))).double()  # type: ignore[arg-type]
    down, restored = assert_same_without_auxiliary(small.double(), large)
    with torch.no_grad():
        with_code = small.upscale(down.lr, small.decode_z(down.lr, down.code))
    assert (with_code - restored).abs().max() > 1e-3, "the code of this network says something"


def test_a_start_tells_what_was_left_out(net_of: NetOf, tmp_path: Path) -> None:
    config = replace(SMALL["irn_m"], model="dlv_irn_m", dlv_channels=3, corrections=2, correction_growth=4)
    recipe, path = Recipe(config, TrainConfig(steps=1, flow_frozen=True)), tmp_path / "m.safetensors"
    checkpoint.write(path, net_of(config, 0.1, True).state_dict(), recipe, {"step": 1, "seconds": 0.0})
    told = read_start(path, Recipe(SMALL["irn"], TrainConfig(steps=1))).grown
    assert told.endswith(", left without its dual latent variable, left without its autoencoder, left without its corrections")


@pytest.fixture
def small_weights(net_of: NetOf, tmp_path: Path) -> Path:
    """Trained-looking weights of the small plain network."""
    path = tmp_path / "small.safetensors"
    recipe = Recipe(SMALL["irn"], TrainConfig(steps=1))
    checkpoint.write(path, net_of(SMALL["irn"], 0.1, True).state_dict(), recipe, {"step": 1, "seconds": 0.0})
    return path


def test_fresh_filters_follow_the_recipes_seed_alone(small_weights: Path) -> None:
    config = replace(SMALL["irn"], model="dlv_irn_m", dlv_channels=2, blocks=(3,), growth=7)
    found = []
    for seed, at_start in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(at_start)
        found.append(read_start(small_weights, Recipe(config, TrainConfig(steps=1, seed=seed))).weights)
        assert torch.initial_seed() == at_start, "the caller's generator is left alone"
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert any(not torch.equal(value, found[2][key]) for key, value in found[0].items())


@pytest.mark.parametrize("train", [{"ae_pretrain_steps": 3, "ae_frozen": True}, {"ae_pretrain_steps": 0}])
@pytest.mark.parametrize("zero_init", [True, False])
def test_a_fresh_autoencoder_begins_as_the_recipe_says(
    small_weights: Path, recipe_of: Callable[..., Recipe], train: dict[str, int], zero_init: bool
) -> None:
    recipe = recipe_of("irn_m", net={"shared_trunk": True, "ae_zero_init": zero_init}, **train)
    trainer = Trainer(recipe, torch.device("cpu"), start=read_start(small_weights, recipe))
    assert bool(trainer.net.autoencoder.decoder[-1].weight.any()) == (train["ae_pretrain_steps"] > 0 or not zero_init)
    small = checkpoint.load_net(checkpoint.read(small_weights), "small").state_dict()
    assert all(torch.equal(trainer.net.state_dict()[key], value) for key, value in small.items())


def test_a_trained_autoencoder_is_not_pre_trained_again(net_of: NetOf, recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, path = recipe_of("irn_m", ae_pretrain_steps=3), tmp_path / "m.safetensors"
    net = net_of(recipe.net, 0.05, True)
    checkpoint.write(path, net.state_dict(), recipe, {"step": 1, "seconds": 0.0})
    again = Trainer(recipe, torch.device("cpu"), start=read_start(path, recipe)).net.state_dict()
    assert all(torch.equal(again[key], value) for key, value in net.state_dict().items())


def test_from_the_command_line(small_weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "large.toml"
    recipe.write_text("""
        [net]
        model = "dlv_irn"
        scale = 2
        blocks = [2]
        growth = 4
        dlv_channels = 3
        shared_trunk = true
        [train]
        steps = 1
        batch = 1
        patch = 16
        final_batch = 1
        final_patch = 16
    """)
    run = [
        "run",
        str(recipe),
        "--data",
        str(pictures),
        "--out",
        str(tmp_path / "out"),
        "--init-from",
        str(small_weights),
        "--holdout",
        "1",
    ]
    assert main(run) == 0
    assert "grown from irn x2 with 1 block" in capsys.readouterr().out
    recipe.write_text(recipe.read_text().replace("growth = 4", "growth = 3"))
    run[5] = str(tmp_path / "other")
    assert main(run) == 1
    assert (
        "small.safetensors: the network to start from does not grow into the recipe's: its growth is 4" in capsys.readouterr().err
    )
