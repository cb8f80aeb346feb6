"""The published layouts are written down here a second time, from their description, and what is imported must compute the same."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from rescale.backends import create
from rescale.bundle import Bundle
from rescale.errors import CheckpointError, OutputError
from rescale_export.cli import main as export_main
from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.cli import main
from rescale_train.importers import reading
from rescale_train.importers.convert import convert
from rescale_train.importers.layouts import translate
from rescale_train.models import build
from rescale_train.shipped import make_card

State = dict[str, Tensor]
HAAR = [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
NAMES = {"official": "IRN (pkuxmq)", "floros": "andreasfloros"}
SUBNETS = {"official": ("F", "G", "H"), "floros": ("phi", "eta", "rho")}


def haar_weights(channels: int) -> Tensor:
    return torch.tensor(HAAR, dtype=torch.float32).reshape(4, 1, 2, 2).repeat(channels, 1, 1, 1)


def subnet_keys(layout: str, prefix: str) -> list[str]:
    """Names of the five convolutions of a subnet."""
    official = layout == "official"
    return [f"{prefix}.conv{k}" if official else f"{prefix}.blocks.{k - 1}" if k < 5 else f"{prefix}.conv_out" for k in range(1, 6)]


def published(layout: str, blocks: tuple[int, ...], growth: int, seed: int = 1) -> State:
    """A checkpoint in a published layout with random values; no parameter is zero, as a trained one."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    index = 0
    for level, count in enumerate(blocks):
        channels = 3 * 4**level
        state[f"operations.{index}.haar_weights" if layout == "official" else f"haars.{level}.haar_weights"] = haar_weights(
            channels
        )
        index += 1
        for j in range(count):
            where = f"operations.{index}" if layout == "official" else f"transforms.{level}.blocks.{j}"
            index += 1
            low, high = 3, 4 * channels - 3
            for name, (c_in, c_out) in zip(SUBNETS[layout], [(high, low), (low, high), (low, high)], strict=True):
                for k, key in enumerate(subnet_keys(layout, f"{where}.{name}")):
                    shape = (growth if k < 4 else c_out, c_in + k * growth, 3, 3)
                    state[f"{key}.weight"] = torch.randn(shape, generator=generator) * 0.6 / (9 * shape[1]) ** 0.5
                    state[f"{key}.bias"] = torch.randn(shape[0], generator=generator) * 0.05
    return state


def dense(state: State, layout: str, prefix: str, x: Tensor) -> Tensor:
    for key in subnet_keys(layout, prefix)[:4]:
        grown = functional.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)
        x = torch.cat((x, torch.where(grown > 0, grown, 0.2 * grown)), 1)
    last = subnet_keys(layout, prefix)[4]
    return functional.conv2d(x, state[f"{last}.weight"], state[f"{last}.bias"], padding=1)


def haar(weights: Tensor, x: Tensor, inverse: bool) -> Tensor:
    """Grouped convolution with the stored constants, then from channel-major to sub-band-major; or back."""
    b, c, h, w = x.shape
    if not inverse:
        bands = functional.conv2d(x, weights, stride=2, groups=c) / 4
        return bands.view(b, c, 4, h // 2, w // 2).transpose(1, 2).reshape(b, 4 * c, h // 2, w // 2)
    bands = x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
    return functional.conv_transpose2d(bands, weights, stride=2, groups=c // 4)


def block(state: State, layout: str, where: str, x: Tensor, inverse: bool) -> Tensor:
    a, b = x[:, :3], x[:, 3:]
    first, shift, scale = (lambda v, n=n: dense(state, layout, f"{where}.{n}", v) for n in SUBNETS[layout])

    def factor(low: Tensor) -> Tensor:
        raw = scale(low)
        return torch.exp(torch.sigmoid(raw) * 2 - 1) if layout == "official" else torch.exp(torch.tanh(raw / 2))

    if not inverse:
        a = a + first(b)
        return torch.cat((a, b * factor(a) + shift(a)), 1)
    b = (b - shift(a)) / factor(a)
    return torch.cat((a - first(b), b), 1)


def reference(state: State, layout: str, x: Tensor, inverse: bool = False) -> Tensor:
    """The published network: HR to LR and z in one tensor, or back."""
    state = {k: v.to(x.dtype) for k, v in state.items()}
    if layout == "official":
        steps = [f"operations.{i}" for i in range(1 + max(int(k.split(".")[1]) for k in state))]
    else:
        steps = []
        for level in range(sum(k.endswith("haar_weights") for k in state)):
            count = len({k.split(".")[3] for k in state if k.startswith(f"transforms.{level}.")})
            steps += [f"haars.{level}", *(f"transforms.{level}.blocks.{j}" for j in range(count))]
    for step in reversed(steps) if inverse else steps:
        weights = state.get(f"{step}.haar_weights")
        x = block(state, layout, step, x, inverse) if weights is None else haar(weights, x, inverse)
    return x


def save(path: Path, state: Any, container: str = "zip") -> Path:
    if container == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "zip")
    return path


def imported(path: Path) -> checkpoint.Checkpoint:
    target = path.with_suffix(".out.safetensors")
    target.unlink(missing_ok=True)  # hypothesis draws many in one folder
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
    assert main(["import", str(path), str(target), "--licence", " "]) == 0
    text = capsys.readouterr().out
    assert "irn x2, blocks [2], growth 4, " in text
    assert "layout IRN (pkuxmq), licence unknown; figures not measured here" in text
    assert f"rescale-export --model irn --scale 2 --checkpoint {target}" in text


def test_where_weights_came_from_is_kept_in_what_is_made_of_them(tmp_path: Path) -> None:
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
    # Trained further: the run's own checkpoint does not know, the card of the first weights does.
    found = checkpoint.read(weights)
    measured(weights)
    progress = {"step": 7, "seconds": 60.0}
    net = checkpoint.load_net(found, weights.name)
    later = make_card(found.recipe, progress, net, report, "data", "machine", weights.with_suffix(".json"))
    assert (later["licence"], later["steps"]) == ("MIT", 7)
    assert later["continued_from"]["imported"] == card["imported"]


def test_training_continues_from_imported_weights(tmp_path: Path, pictures: Path) -> None:
    weights = tmp_path / "w.safetensors"
    convert(save(tmp_path / "a.pth", published("official", (1,), 4)), weights)
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


def refusal(path: Path) -> str:
    """The message with which a file is refused; it names the file, is one line, and nothing is left behind."""
    target = path.parent / "never.safetensors"
    with pytest.raises(CheckpointError) as e:
        convert(path, target)
    text = str(e.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert not list(path.parent.glob("never*"))
    return text


Change = Callable[[State], object]
OFFICIAL, FLOROS = "operations.1.F.conv1.weight", "transforms.0.blocks.0.eta.conv_out.bias"


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (
            "official",
            lambda s: s.pop("operations.1.H.conv3.bias"),
            "operations.1.H.conv3.bias is missing; the others make x2 with 2 b",
        ),
        ("official", lambda s: [s.pop(k) for k in list(s) if ".H." in k], r"operations.1.H.conv1.bias \(and 19 more\) is missing"),
        (
            "official",
            lambda s: [s.pop(k) for k in list(s) if k.startswith("operations.1.")],
            r"1.F.conv1.bias \(and 29 more\) is mis",
        ),
        ("official", lambda s: s.pop("operations.0.haar_weights"), "operations.0.haar_weights is missing"),
        (
            "official",
            lambda s: s.update({"operations.1.I.conv1.bias": torch.ones(4)}),
            "1.I.conv1.bias is not known in this layout",
        ),
        ("official", lambda s: s.update({"operations.01.F.conv1.bias": torch.ones(4)}), "01.F.conv1.bias is not known in this lay"),
        ("official", lambda s: s.update(published("floros", (1,), 4)), r"haars.0.haar_weights \(and 30 more\) is not known"),
        ("floros", lambda s: s.pop(FLOROS), f"{FLOROS} is missing"),
        ("floros", lambda s: s.pop("haars.0.haar_weights"), "haars.0.haar_weights is missing"),
        (
            "floros",
            lambda s: s.update({"transforms.0.blocks.0.phi.blocks.4.bias": torch.ones(4)}),
            "phi.blocks.4.bias is not known",
        ),
        ("official", lambda s: s[OFFICIAL].view(-1)[3:4].fill_(torch.nan), f"{OFFICIAL} is not finite; its training div"),
        ("floros", lambda s: s[FLOROS].fill_(torch.inf), f"{FLOROS} is not finite"),
        (
            "official",
            lambda s: s.update({OFFICIAL: s[OFFICIAL].double()}),
            f"{OFFICIAL} is float64 .*wanted one of float32, float16, b",
        ),
        ("official", lambda s: s.update({OFFICIAL: s[OFFICIAL].to_sparse()}), f"{OFFICIAL} is float32 .torch.sparse_coo, cpu"),
        ("official", lambda s: s.update({OFFICIAL: s[OFFICIAL].to("meta")}), f"{OFFICIAL} is float32 .torch.strided, meta"),
        (
            "official",
            lambda s: s.update({OFFICIAL: torch.ones(4, 9, 5, 5)}),
            r"is \(4, 9, 5, 5\), wanted \(4, 9, 3, 3\) with growth 4",
        ),
        ("official", lambda s: s.update({OFFICIAL: torch.ones(())}), r"net.growth: 1 to 256, got 0"),
        ("official", lambda s: s.update({OFFICIAL: torch.ones(300, 9, 3, 3)}), r"x2 with 2 blocks .*net.growth: 1 to 256, got 300"),
        ("official", lambda s: s["operations.0.haar_weights"].mul_(0.5), "0.haar_weights is not the Haar transform of 1 and -1"),
        (
            "floros",
            lambda s: s.update({"haars.0.haar_weights": s["haars.0.haar_weights"].flip(0)}),
            "haars.0.haar_weights is not the",
        ),
        ("floros", lambda s: s.update({"haars.0.haar_weights": haar_weights(1)}), r"is \(4, 1, 2, 2\), wanted \(12, 1, 2, 2\)"),
        ("official", lambda s: s.update({f"module.{OFFICIAL}": s[OFFICIAL]}), f"{OFFICIAL} is there twice, with and without"),
        ("official", lambda s: s.update({"step": 3}), "entry step is a int, wanted a tensor with a name"),
        ("official", lambda s: s.update({7: s[OFFICIAL]}), "entry 7 is a Tensor, wanted a tensor with a name"),
        ("official", lambda s: s.update({"\x1b[1m\na": s[OFFICIAL]}), r"entry \\x1b\[1m\\na is a Tensor, wanted a tensor with a n"),
    ],
)
def test_a_file_that_is_not_exactly_such_a_network_is_refused(layout: str, change: Change, message: str, tmp_path: Path) -> None:
    state = published(layout, (2,), 4)
    change(state)
    assert re.search(message, refusal(save(tmp_path / "a.pth", state)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"operations.0.conv_weights": torch.eye(9)},
            "cannot be imported: learnable downsampling (ConvDownsampling), as IRN x3: only",
        ),
        ({"down_operations.0.E.conv1.weight": torch.ones(2)}, "cannot be imported: T-IRN, another network than the six"),
        ({"comp_operations.0.F.conv1.weight": torch.ones(2), "haar_operations.0.haar_weights": torch.ones(2)}, "imported: SAIN"),
        ({"flow.layers.1.affine.f.conv1.weight": torch.ones(2)}, "cannot be imported: HCFlow"),
        ({"levels.0.0.F.conv1.weight": torch.ones(2)}, "a file of this toolkit; give it to rescale-export --checkpoint as it is"),
        ({"conv.weight": torch.ones(2)}, "unknown layout with 1 names such as conv.weight; known are IRN (pkuxmq), andreasfloros"),
        (
            {"epoch": 3, "optimizers": []},
            "no parameters by name, only the entries epoch, optimizers; wanted a state dict or model_st",
        ),
        ({}, "only the entries none"),
        ([torch.ones(2)], "holds a list, wanted parameters by name"),
        (published("official", (1, 1, 1), 1), "x8 (3 Haar steps); here are x2, x4 only"),
        (published("floros", (1, 1, 1), 1), "x8 (3 Haar steps); here are x2, x4 only"),
        (published("official", (1, 0), 1), "x4 with 1, 0 blocks after its Haar steps: net.blocks: each level takes"),
        (published("official", (65,), 1), "net.blocks: each level takes"),
    ],
)
def test_other_networks_are_refused_by_name(content: Any, message: str, tmp_path: Path) -> None:
    assert message in refusal(save(tmp_path / "a.pth", content))


class Trap:
    """Unpickles to a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_code_in_a_pickle_is_not_run(container: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    path = save(tmp_path / "a.pth", published("official", (1,), 1) | {"x": Trap(sprung)}, container)
    text = refusal(path)
    assert f"the pickle in it names {os.mkdir.__module__}.mkdir, which is code and is not run; save torch.save(" in text
    assert "weights_only" not in text, "no advice to load it unsafely"
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap works"


def test_a_file_is_bounded_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = published("official", (1,), 1)
    good = save(tmp_path / "good.pth", state)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "data.pkl in it is compressed, as no file of torch.save is; not unpacked" in refusal(packed)
    data = bytearray(good.read_bytes())
    start = data.rindex(b"PK\x01\x02")
    data[start + 20 : start + 28] = (10**9).to_bytes(4, "little") * 2
    swollen = tmp_path / "swollen.pth"
    swollen.write_bytes(data)
    assert re.search(r"its entries say 10000\d{5} bytes, the file has \d{5}$", refusal(swollen))
    # One number repeated by a stride of zero: 300 bytes that claim to be 5 GB.
    huge = state | {"operations.1.F.conv2.weight": torch.zeros(1).expand(10**6, 1280)}
    assert "conv2.weight is (1000000, 1280), wanted (1, 10, 3, 3) with growth 1" in refusal(save(tmp_path / "huge.pth", huge))
    wide = {
        k: torch.zeros(1).expand(256 if v.shape[0] == 1 else v.shape[0], *v.shape[1:])
        for k, v in published("floros", (64,), 1).items()
    }
    wide["haars.0.haar_weights"] = haar_weights(3)
    assert re.search(r"blocks \(64,\) of growth 256 take \d+ bytes, over \d+", refusal(save(tmp_path / "wide.pth", wide)))
    monkeypatch.setattr(reading, "MAX_BYTES", good.stat().st_size - 1)
    assert f"good.pth: {good.stat().st_size} bytes; a checkpoint of these networks has at most" in refusal(good)


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_damage_is_an_error_that_names_the_file(container: str, tmp_path: Path) -> None:
    data = save(tmp_path / "good", published("official", (1,), 1), container).read_bytes()
    path = tmp_path / "damaged.pth"
    for length in (1, 8, 9, 20, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refusal(path)
    generator = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(data)
        for place in generator.integers(0, len(data), 3):
            changed[place] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        try:
            network = translate(reading.read(path))
        except CheckpointError as e:
            said = str(e)
        else:
            # A bit of a value was hit, which nothing can show.
            build(network.config).load_state_dict({k: v.float() for k, v in network.parameters.items()})
            continue
        assert said.startswith(f"{path}: ")


def test_what_is_no_checkpoint_at_all_is_named(tmp_path: Path) -> None:
    assert "missing.pth: no such file" in refusal(tmp_path / "missing.pth")
    (tmp_path / "folder").mkdir()
    assert "folder: not a file" in refusal(tmp_path / "folder")
    for name, data in (("empty", b""), ("text", b"hello there"), ("tar", b"storages" + bytes(600))):
        (tmp_path / name).write_bytes(data)
        assert f"neither a PyTorch file (.pth) nor safetensors; it begins with {data[:8]!r}" in refusal(tmp_path / name)
    script = save(tmp_path / "script.pth", published("official", (1,), 1))
    with zipfile.ZipFile(script, "a") as archive:
        archive.writestr("script/constants.pkl", b"")
    assert "script.pth: a TorchScript program, which is code; wanted a state dict" in refusal(script)


def test_a_target_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "a.safetensors", published("official", (1,), 1), "safetensors")
    before = source.read_bytes()
    with pytest.raises(OutputError, match=r"a.safetensors: is the file to be imported; choose another name"):
        convert(source, source)
    with pytest.raises(OutputError, match=r"w.pth: weights are written as .safetensors"):
        convert(source, tmp_path / "w.pth")
    assert main(["import", str(source), str(tmp_path / "no" / "w.safetensors")]) == 1
    assert f"w.safetensors: there is no folder {tmp_path / 'no'}\n" in capsys.readouterr().err
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"d.safetensors: is a folder"):
        convert(source, tmp_path / "d.safetensors")
    (tmp_path / "d.safetensors").rmdir()
    (tmp_path / "w.json").mkdir()
    with pytest.raises(OutputError, match=r"w.json: cannot write"):
        convert(source, tmp_path / "w.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "w.json"], "weights without their card are not left"
    assert source.read_bytes() == before
