from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from rescale.errors import CheckpointError, OutputError
from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.config import NetConfig, Recipe
from rescale_train.models import RescalingNet, build
from rescale_train.tables import to_dict


@pytest.fixture
def recipe(recipe_of: Callable[..., Recipe]) -> Recipe:
    return recipe_of("irn_a")


@pytest.fixture
def net(net_of: Callable[..., RescalingNet], recipe: Recipe) -> RescalingNet:
    return net_of(recipe.net, 0.05, True)


@pytest.fixture
def weights_file(tmp_path: Path, net: RescalingNet, recipe: Recipe) -> Path:
    path = tmp_path / "w.safetensors"
    checkpoint.write(path, net.state_dict(), recipe, {"step": 3})
    return path


def odd_file(folder: Path, recipe: str, progress: str = "{}") -> Path:
    path = folder / "odd.safetensors"
    path.write_bytes(save({"a": torch.zeros(2)}, {"format": checkpoint.FORMAT, "recipe": recipe, "progress": progress}))
    return path


def test_write_and_read_round_trip(weights_file: Path, net: RescalingNet, recipe: Recipe) -> None:
    found = checkpoint.read(weights_file)
    assert (found.recipe, found.progress) == (recipe, {"step": 3})
    again = checkpoint.load_net(found, "w").state_dict()
    assert all(torch.equal(again[k], v) for k, v in net.state_dict().items())
    assert not checkpoint.load_net(found, "w").training


def test_equal_weights_make_equal_files(weights_file: Path, net: RescalingNet, recipe: Recipe) -> None:
    written = {checkpoint.to_bytes(net.state_dict(), recipe, {"step": 3}) for _ in range(20)}
    assert written == {weights_file.read_bytes()}
    length = int.from_bytes(weights_file.read_bytes()[:8], "little")
    assert length % 8 == 0


def test_the_average_is_preferred_to_the_raw_weights(net: RescalingNet, recipe: Recipe) -> None:
    state = net.state_dict()
    raw = {f"model.{k}": v for k, v in state.items()}
    average = {f"ema.{k}": v + 1.0 for k, v in state.items()}
    key = next(iter(state))
    for tensors, offset in ((raw | average, 1.0), (raw, 0.0), (state, 0.0)):
        assert torch.equal(checkpoint.Checkpoint(recipe, {}, tensors).weights()[key], state[key] + offset)


@torch.no_grad()
def test_float16_weights_load_as_float32(
    tmp_path: Path, net: RescalingNet, recipe: Recipe, as_batch: Callable[..., Tensor]
) -> None:
    path = tmp_path / "half.safetensors"
    checkpoint.write(path, {k: v.half() for k, v in net.state_dict().items()}, recipe, {})
    again = checkpoint.load_net(checkpoint.read(path), "half")
    for key, value in net.state_dict().items():
        got = again.state_dict()[key]
        assert (got.dtype, got.shape) == (torch.float32, value.shape)
        assert torch.equal(got, value.half().float())
    assert again(as_batch(probe_picture(16, 16)))[0].isfinite().all()


def refuse(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError) as e:
        checkpoint.read_net(path)
    assert str(path) in str(e.value)
    assert message in str(e.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(weights_file: Path, keep: int) -> None:
    weights_file.write_bytes(weights_file.read_bytes()[:keep])
    refuse(weights_file, "not a readable checkpoint")


def test_a_damaged_header_is_refused(weights_file: Path) -> None:
    data = bytearray(weights_file.read_bytes())
    data[8:16] = b"\xff" * 8
    weights_file.write_bytes(data)
    refuse(weights_file, "not a readable checkpoint")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "gone.safetensors", "no such checkpoint")
    refuse(tmp_path, "a folder; give the checkpoint.safetensors in it")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "checkpoint format 'none', wanted 'rescale-checkpoint/1'"),
        ({"format": "pt"}, "checkpoint format 'pt', wanted 'rescale-checkpoint/1'; train or import it again"),
        ({"format": "rescale-checkpoint/2"}, "checkpoint format 'rescale-checkpoint/2'"),
        ({"format": checkpoint.FORMAT}, "not a readable checkpoint: 'recipe'"),
    ],
)
def test_foreign_safetensors_are_refused(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(save({"a": torch.zeros(2)}, metadata))
    refuse(path, message)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", "[" * 100_000, '{"net": 3, "train": {}}', '{"net": {"model": "esrgan"}, "train": {"steps": 1}}'],
    ids=["cut", "list", "empty", "deep", "number", "missing keys"],
)
def test_a_damaged_recipe_is_refused(tmp_path: Path, text: str) -> None:
    refuse(odd_file(tmp_path, text), "not a readable checkpoint")


@pytest.mark.parametrize("change", [{"model": "esrgan"}, {"scale": 3}, {"colour": 1}, {"growth": "4"}])
def test_a_recipe_of_an_unknown_network_is_refused(tmp_path: Path, recipe: Recipe, change: dict[str, Any]) -> None:
    table = to_dict(recipe)
    table["net"] |= change
    refuse(odd_file(tmp_path, json.dumps(table)), "not a readable checkpoint")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_no_card_can_hold_are_refused(tmp_path: Path, recipe: Recipe, number: str) -> None:
    refuse(
        odd_file(tmp_path, json.dumps(to_dict(recipe)), f'{{"imported": {{"x": {number}}}}}'), "progress holds NaN or an infinity"
    )


@pytest.mark.parametrize("value", ["1" + "0" * 400, "null", '"3"', "-1", "1e13", "{}"])
@pytest.mark.parametrize("key", ["step", "seconds"])
def test_progress_that_no_run_makes_is_refused(tmp_path: Path, recipe: Recipe, key: str, value: str) -> None:
    refuse(odd_file(tmp_path, json.dumps(to_dict(recipe)), f'{{"{key}": {value}}}'), "not a readable checkpoint")


def test_a_whole_number_too_large_for_a_float_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    table = to_dict(recipe)
    table["train"]["lr_peak"] = 10**400
    refuse(odd_file(tmp_path, json.dumps(table)), "train.lr_peak: a number of 401 digits")


def test_a_source_too_long_for_a_card_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    text = json.dumps({"step": 1, "imported": {"licence": "MIT", "x": "y" * checkpoint.MAX_IMPORTED}})
    refuse(odd_file(tmp_path, json.dumps(to_dict(recipe)), text), "progress.imported has more than 65536 characters")


def test_progress_that_is_no_table_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    refuse(odd_file(tmp_path, json.dumps(to_dict(recipe)), "[]"), "progress is not a table")


KEY = "levels.0.0.F.conv1.weight"


def without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != KEY}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, f"parameter {KEY} is missing; it is not a irn_a checkpoint"),
        (lambda s: s | {"levels.9.bias": torch.zeros(1)}, "unknown parameter levels.9.bias; it is of another network"),
        (lambda s: s | {KEY: torch.zeros(4, 8, 1, 1)}, f"parameter {KEY} is (4, 8, 1, 1), wanted (4, 8, 3, 3)"),
        (lambda s: s | {KEY: s[KEY].to(torch.complex64)}, f"parameter {KEY} is complex64, wanted float32, float16 or bfloat16"),
        (lambda s: s | {KEY: s[KEY].to(torch.int8)}, f"parameter {KEY} is int8, wanted float32"),
        (lambda s: s | {KEY: s[KEY] * torch.nan}, f"parameter {KEY} is not finite; the training diverged"),
        (lambda s: s | {KEY: s[KEY] / 0.0}, f"parameter {KEY} is not finite"),
    ],
    ids=["missing", "extra", "shape", "complex", "whole", "nan", "inf"],
)
def test_wrong_parameters_are_named(
    tmp_path: Path, net: RescalingNet, recipe: Recipe, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    path = tmp_path / "w.safetensors"
    checkpoint.write(path, change(net.state_dict()), recipe, {})
    refuse(path, message)


@pytest.mark.parametrize("tensors", [{}, {KEY: torch.zeros(1)}], ids=["missing", "shape"])
def test_no_network_is_built_that_the_file_does_not_hold(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor]
) -> None:
    """A recipe of a few bytes may claim gigabytes."""
    made: list[RescalingNet] = []
    monkeypatch.setattr(checkpoint, "build", lambda config: made.append(build(config)) or made[-1])
    with pytest.raises(CheckpointError, match="w: parameter"):
        checkpoint.load_net(checkpoint.Checkpoint(recipe, {}, tensors), "w")
    assert all(p.is_meta for net in made for p in net.parameters())


def test_a_lack_of_memory_is_told_in_a_line(net: RescalingNet, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(config: NetConfig) -> RescalingNet:
        if torch.get_default_device().type == "cpu":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore of it")
        return build(config)

    monkeypatch.setattr(checkpoint, "build", scarce)
    with pytest.raises(CheckpointError, match=r"w: the network cannot be built: DefaultCPUAllocator: can't allocate memory$"):
        checkpoint.load_net(checkpoint.Checkpoint(recipe, {}, net.state_dict()), "w")


def test_a_published_file_is_sent_to_import(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "published.pth")
    refuse(tmp_path / "published.pth", "no whole safetensors file")
    refuse(tmp_path / "published.pth", "a published .pth is for `rescale-train import`")


def test_a_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    class Bomb:
        def __init__(self, target: Path) -> None:
            self.target = target

        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(self.target),)

    pickle.loads(pickle.dumps(Bomb(tmp_path / "proof")))
    assert (tmp_path / "proof").is_dir(), "the bomb works"
    torch.save({"w": torch.zeros(2), "bomb": Bomb(tmp_path / "harm")}, tmp_path / "torch.safetensors")
    (tmp_path / "plain.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "harm")))
    for name in ("torch", "plain"):
        refuse(tmp_path / f"{name}.safetensors", "not a readable checkpoint")
    assert not (tmp_path / "harm").exists()


def test_a_write_that_cannot_happen_is_an_output_error(tmp_path: Path, net: RescalingNet, recipe: Recipe) -> None:
    path = tmp_path / "gone" / "w.safetensors"
    with pytest.raises(OutputError, match=r"w.safetensors: cannot write: No such file"):
        checkpoint.write(path, net.state_dict(), recipe, {})


def test_a_failed_write_leaves_the_old_file(
    weights_file: Path, net: RescalingNet, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights_file.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        checkpoint.write(weights_file, net.state_dict(), recipe, {"step": 4})
    assert weights_file.read_bytes() == before
    assert os.listdir(weights_file.parent) == [weights_file.name]


@pytest.mark.parametrize("name", ["w.safetensors", "w[1] *.safetensors"])
def test_parts_join_to_the_same_file(weights_file: Path, name: str) -> None:
    path = weights_file.rename(weights_file.with_name(name))
    data = path.read_bytes()
    parts = checkpoint.split(path, 10_000)
    assert [p.name for p in parts] == [f"{name}.part{i:02d}" for i in range(-(-len(data) // 10_000))]
    assert max(p.stat().st_size for p in parts) == 10_000
    path.write_bytes(b"a newer one")
    assert checkpoint.read(parts[0]).progress == {"step": 3}
    assert checkpoint.join(parts[0]) == data
    assert path.read_bytes() == b"a newer one"


def test_splitting_again_removes_the_old_parts(weights_file: Path) -> None:
    first = checkpoint.split(weights_file, 5_000)
    second = checkpoint.split(weights_file, 20_000)
    assert len(second) < len(first)
    assert sorted(weights_file.parent.glob("*.part*")) == second


@pytest.mark.parametrize("lost", [0, 1, -1])
def test_a_missing_part_is_refused(weights_file: Path, lost: int) -> None:
    parts = checkpoint.split(weights_file, 10_000)
    assert len(parts) > 2
    weights_file.unlink()
    parts[lost].unlink()
    with pytest.raises(CheckpointError, match=r"w.safetensors.*(parts are missing|not a readable checkpoint)"):
        checkpoint.read(parts[0])


def test_damaged_parts_are_named(weights_file: Path) -> None:
    parts = checkpoint.split(weights_file, 10_000)
    weights_file.unlink()
    parts[0].write_bytes(b"x" * 10_000)
    with pytest.raises(CheckpointError) as e:
        checkpoint.read(parts[0])
    assert str(e.value).startswith(f"{parts[0]} and its other parts: not a readable checkpoint")


@torch.no_grad()
def test_the_digest_changes_with_any_weight(net: RescalingNet) -> None:
    digests = {checkpoint.weights_digest(net)}
    for parameter in net.parameters():
        before = parameter.flatten()[-1].clone()
        parameter.view(-1)[-1] += 1e-3
        digests.add(checkpoint.weights_digest(net))
        parameter.view(-1)[-1] = before
    assert len(digests) == len(list(net.parameters())) + 1
    assert checkpoint.weights_digest(net) in digests


def test_the_digest_changes_with_the_configuration_alone(net_of: Callable[..., RescalingNet]) -> None:
    configs = [NetConfig("irn_a", 2, (1,), 4, **kw) for kw in ({}, {"alpha_gain": 8.0}, {"alpha_basis": "orthonormal"}, {})]
    digests = [checkpoint.weights_digest(net_of(c)) for c in configs]
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3
