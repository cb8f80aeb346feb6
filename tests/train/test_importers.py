"""What is imported computes what the published network does, by a second implementation, and says where it came from."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_irn import NAMES, published, reference, save
from torch import Tensor
from torch.nn import functional

from rescale.backends import create
from rescale.bundle import Bundle
from rescale_export.cli import main as export_main
from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.cli import main
from rescale_train.importers import reading
from rescale_train.importers.convert import convert
from rescale_train.lineage import provenance


def imported(path: Path) -> checkpoint.Checkpoint:
    target = path.with_suffix(".out.safetensors")
    for place in (target, target.with_suffix(".json")):
        place.unlink(missing_ok=True)  # hypothesis draws many in one folder
    convert(path, target)
    return checkpoint.read(target)


@pytest.mark.parametrize("layout", NAMES)
@pytest.mark.parametrize("blocks", [(1,), (3,), (2, 1), (0, 2)])
def test_an_imported_network_computes_what_the_published_one_does(layout: str, blocks: tuple[int, ...], tmp_path: Path) -> None:
    state = published(layout, blocks, 5)
    net = checkpoint.load_net(imported(save(tmp_path / "a.pth", state)), "a")
    assert net.config.blocks == blocks
    size = 8 * 2 ** len(blocks)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        x = torch.rand(2, 3, size, size + 8, dtype=dtype, generator=torch.Generator().manual_seed(2))
        net = net.to(dtype)
        with torch.no_grad():
            y, z = net(x)
            wanted = reference(state, layout, x)
            torch.testing.assert_close(torch.cat((y, z), 1), wanted, rtol=0.0, atol=tolerance)
            given_z = torch.randn(z.shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
            back = reference(state, layout, torch.cat((y, given_z), 1), inverse=True)
            torch.testing.assert_close(net.inverse(y, given_z), back, rtol=0.0, atol=10 * tolerance)
    # The test would not see it if the network did next to nothing.
    plain = functional.avg_pool2d(x, 2 ** len(blocks))
    assert (y - plain).abs().max() > 0.1


@pytest.mark.parametrize(("layout", "blocks"), [("official", (2,)), ("official", (1, 1)), ("floros", (1, 1))])
def test_an_exported_bundle_makes_the_published_networks_bytes(layout: str, blocks: tuple[int, ...], tmp_path: Path) -> None:
    state = published(layout, blocks, 4)
    scale = 2 ** len(blocks)
    path = save(tmp_path / "published.pth", state, "legacy")
    weights, target = tmp_path / "w.safetensors", tmp_path / "bundle"
    assert main(["import", str(path), str(weights), "--licence", "CC-BY-4.0"]) == 0
    named = ["--model", "irn", "--scale", str(scale), "--checkpoint", str(weights)]
    assert export_main([*named, "--precision", "fp32", "--out", str(target)]) == 0
    hr = probe_picture(16 * scale, 24 * scale, 5)[None]
    bundle = Bundle(target)
    runner = create(bundle, "onnxruntime", 1, "fp32")
    lr = runner.run("downscale", {"hr": hr})["lr"]
    restored = runner.run("upscale", {"lr": lr})["hr"]
    runner.close()

    def planes(pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels.astype(np.float64)).permute(0, 3, 1, 2) / 255

    def check(came: np.ndarray, wanted: Tensor) -> None:
        """Equal bytes wherever the exact level is not so near to the middle of two that float32 decides."""
        levels = (wanted.clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
        clear = np.abs(levels - np.floor(levels) - 0.5) > 1e-3
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(came[clear], np.rint(levels)[clear])
        assert np.abs(came - levels).max() < 0.51

    y = reference(state, layout, planes(hr))
    check(lr, y[:, :3])
    low = planes(lr)
    zero = torch.zeros(1, y.shape[1] - 3, *low.shape[-2:], dtype=low.dtype)
    check(restored, reference(state, layout, torch.cat((low, zero), 1), inverse=True))
    assert len(np.unique(lr)) > 50
    card = bundle.manifest["weights"]["card"]
    assert (bundle.manifest["licence"], card["licence"]) == ("CC-BY-4.0", "CC-BY-4.0")
    assert card["imported"]["file"] == "published.pth"


@given(
    layout=st.sampled_from(sorted(NAMES)),
    blocks=st.one_of(st.tuples(st.integers(1, 3)), st.tuples(st.integers(0, 2), st.integers(1, 2))),
    growth=st.integers(1, 6),
    prefix=st.sampled_from(["", "module."]),
    wrapped=st.booleans(),
    container=st.sampled_from(["zip", "legacy", "safetensors"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_value_arrives_once_and_unchanged(
    layout: str,
    blocks: tuple[int, ...],
    growth: int,
    prefix: str,
    wrapped: bool,
    container: str,
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    state = {f"{prefix}{k}": v.to(dtype) for k, v in published(layout, blocks, growth).items()}
    wrap = wrapped and container != "safetensors"
    content = {"model_state_dict": OrderedDict(state), "optimizer_state_dict": {"lr": 0.1}} if wrap else state
    found = imported(save(tmp_path / "a.pth", content, container))
    assert (found.recipe.net.model, found.recipe.net.blocks, found.recipe.net.growth) == ("irn", blocks, growth)
    assert found.recipe.net.scale == 2 ** len(blocks)
    came = [v for k, v in state.items() if not k.endswith("haar_weights")]
    assert sum(v.numel() for v in found.tensors.values()) == sum(v.numel() for v in came)
    assert {v.dtype for v in found.tensors.values()} == {dtype}
    for (name, value), wanted in zip(sorted(found.tensors.items(), key=lambda item: order(item[0])), came, strict=True):
        assert torch.equal(value, wanted), name
    assert found.progress["imported"]["dtypes"] == [str(dtype).removeprefix("torch.")]


def order(name: str) -> list[Any]:
    """Sorts our names as `published` makes its own."""
    _, level, index, subnet, conv, kind = name.split(".")
    return [int(level), int(index), subnet, conv, kind == "bias"]


@pytest.mark.parametrize("layout", NAMES)
@pytest.mark.parametrize(("blocks", "count"), [((8,), 1_668_000), ((8, 8), 4_355_376)])
def test_the_published_sizes(layout: str, blocks: tuple[int, ...], count: int, tmp_path: Path) -> None:
    state = published(layout, blocks, 32)
    assert sum(v.numel() for v in state.values()) == count
    card = convert(save(tmp_path / "full.pth", state), tmp_path / "full.safetensors")
    constants = 48 if len(blocks) == 1 else 240
    assert (card["imported"]["values"], card["parameters"]) == (count, count - constants)
    assert (card["model"], card["scale"], card["size"]) == ("irn", 2 ** len(blocks), "full")
    net = checkpoint.load_net(checkpoint.read(tmp_path / "full.safetensors"), "full")
    assert checkpoint.weights_digest(net) == card["weights_sha256"]


def test_the_card_says_where_the_weights_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "IRN_x2.pth", published("official", (2,), 4))
    target = tmp_path / "w.safetensors"
    assert main(["import", str(path), str(target), "--json"]) == 0
    card = json.loads(target.with_suffix(".json").read_text())
    assert json.loads(capsys.readouterr().out) == card
    assert card["licence"] == "unknown"
    assert (card["figures"], card["steps"], card["note"]) == ({}, None, "imported; figures not measured here")
    source = card["imported"]
    assert (source["file"], source["layout"], source["bytes"]) == ("IRN_x2.pth", "IRN (pkuxmq)", path.stat().st_size)
    assert source["sha256"] == reading.read(path).sha256
    before = target.read_bytes()
    assert main(["import", str(path), str(target)]) == 1
    assert "w.safetensors: exists; remove it or choose another name" in capsys.readouterr().err
    assert target.read_bytes() == before
    target.unlink()
    assert main(["import", str(path), str(target)]) == 1
    assert "w.json: exists; remove it or choose another name" in capsys.readouterr().err
    target.with_suffix(".json").unlink()
    assert main(["import", str(path), str(target), "--licence", " "]) == 0
    text = capsys.readouterr().out
    assert "irn x2, blocks [2], growth 4, " in text
    assert "layout IRN (pkuxmq), licence unknown; figures not measured here" in text
    assert f"rescale-export --model irn --scale 2 --checkpoint {target}" in text


def test_where_weights_came_from_is_kept_in_what_is_made_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.pth", published("floros", (1,), 4))
    weights, rounded = tmp_path / "w.safetensors", tmp_path / "rounded.safetensors"
    card = convert(path, weights, "MIT")
    report = tmp_path / "report.json"

    def measured(file: Path) -> None:
        digest = checkpoint.weights_digest(checkpoint.load_net(checkpoint.read(file), file.name))
        row = {"set": "Set5", "count": 5, "weights": digest, "mean": {"hr_psnr_y": 40.0}}
        report.write_text(json.dumps({"results": [row]}))

    assert main(["ship", str(weights), str(rounded)]) == 0
    measured(rounded)
    assert main(["ship", str(weights), str(rounded), "--figures", str(report)]) == 0
    shipped = json.loads(rounded.with_suffix(".json").read_text())
    assert (shipped["licence"], shipped["imported"]) == ("MIT", card["imported"])
    assert main(["ship", str(weights), str(rounded), "--figures", str(report), "--licence", "CC0-1.0"]) == 1
    assert "the weights began with published ones, licence MIT; leave out --licence" in capsys.readouterr().err


def test_training_continues_from_imported_weights(tmp_path: Path, pictures: Path) -> None:
    weights = tmp_path / "w.safetensors"
    card = convert(save(tmp_path / "a.pth", published("official", (1,), 4)), weights, "MIT")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[net]\nmodel = "irn"\nscale = 2\nblocks = [1]\ngrowth = 4\n'
        "[train]\nsteps = 1\nbatch = 2\npatch = 16\nfinal_batch = 2\nfinal_patch = 16\nlr_peak = 0.0\n"
    )
    fixed = ["--data", str(pictures), "--threads", "1", "--device", "cpu", "--holdout", "1"]
    assert main(["run", str(recipe), *fixed, "--out", str(tmp_path / "out"), "--init-from", str(weights)]) == 0
    before, after = checkpoint.read(weights), checkpoint.read(tmp_path / "out" / "checkpoint.safetensors")
    for name, value in before.weights().items():
        assert torch.equal(after.weights()[name], value), name
    origin = {key: card[key] for key in ("weights_sha256", "steps", "minutes", "validation", "recipe", "imported")}
    assert after.progress["earlier"] == [origin]
    assert provenance(after.progress) == {"earlier": [origin], "licence": "MIT"}, "what the bundle of that checkpoint says"
