"""What the importer refuses: other networks, files that are incomplete, wrong, damaged or hold code, and impossible targets."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_irn import State, haar_weights, published, save

from rescale.errors import CheckpointError, OutputError
from rescale_train.cli import main
from rescale_train.importers import reading
from rescale_train.importers.convert import convert
from rescale_train.importers.layouts import translate
from rescale_train.models import build


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
        ("official", lambda s: s.update({OFFICIAL: s[OFFICIAL].to_sparse()}), "names torch._utils._rebuild_sparse_tensor, which"),
        (
            "official",
            lambda s: s.update({OFFICIAL: s[OFFICIAL].to("meta")}),
            "names torch._utils._rebuild_meta_tensor_no_storage, w",
        ),
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


def sized_by_a_number(name: str, count: int, container: str) -> bytes:
    """A file of 200 bytes whose pickle calls something with a number."""
    number = b"\x8a\x08" + count.to_bytes(8, "little")
    pickled = b"\x80\x02}X\x01\x00\x00\x00ac" + name.replace(".", "\n").encode() + b"\n" + number + b"\x85Rs."
    out = io.BytesIO()
    if container == "legacy":
        torch.save({}, out, _use_new_zipfile_serialization=False)
        empty = b"\x80\x02}q\x00."
        assert empty in out.getvalue()
        return out.getvalue().replace(empty, pickled, 1)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/DATA.PKL" if container == "capitals" else "a/data.pkl", pickled)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return out.getvalue()


@pytest.mark.parametrize("container", ["zip", "capitals", "legacy"])
@pytest.mark.parametrize("name", ["builtins.bytearray", "__builtin__.bytearray", "torch.Tensor", "torch.FloatTensor"])
def test_a_pickle_does_not_get_memory_for_a_number(name: str, container: str, tmp_path: Path) -> None:
    """PyTorch's restricted unpickler gives it: 186 bytes took 6.3 GB."""
    path = tmp_path / "a.pth"
    path.write_bytes(sized_by_a_number(name, 1000, container))
    torch.load(path, weights_only=True)
    assert f"the pickle in it names {name}, which is code and is not run" in refusal(path)


def test_other_ways_to_name_something_in_a_pickle_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93.")
    assert "the pickle in it names something on a way of its own, which is code and is not run" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02(ios\nmkdir\n.")
    assert "the pickle in it names os.mkdir, which is code and is not run" in refusal(path)
    monkeypatch.setattr(reading, "MAX_STEPS", 100)
    assert "a pickle of more than 100 steps" in refusal(save(path, published("official", (1,), 1)))


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
    twice = tmp_path / "twice.pth"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(twice, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        with pytest.warns(UserWarning, match="Duplicate name"):
            target.writestr(source.namelist()[0], b"")
    assert "two of its entries have one name" in refusal(twice)
    monkeypatch.setattr(reading, "MAX_BYTES", good.stat().st_size - 1)
    assert f"good.pth: {good.stat().st_size} bytes; a checkpoint of these networks has at most" in refusal(good)


def test_of_two_lists_of_entries_the_one_that_was_checked_is_read(tmp_path: Path) -> None:
    """`zipfile` takes the list before the end record, PyTorch the one at the place that the record names."""
    state = published("official", (1,), 1)
    parts = []
    for name, values, method in (
        ("hidden", {k: v * 2 for k, v in state.items()}, zipfile.ZIP_DEFLATED),
        ("shown", state, zipfile.ZIP_STORED),
    ):
        out = io.BytesIO()
        with zipfile.ZipFile(save(tmp_path / name, values)) as source, zipfile.ZipFile(out, "w", method) as target:
            for entry in source.namelist():
                target.writestr("a/" + entry.split("/", 1)[1], source.read(entry))
        data = out.getvalue()
        size, start = struct.unpack_from("<II", data, len(data) - 10)
        parts.append((data[:start], bytearray(data[start : start + size]), data[start + size :]))
    (hidden, first, end), (shown, second, _) = parts
    assert len(first) == len(second)
    at = 0
    while at < len(second):
        (offset,) = struct.unpack_from("<I", second, at + 42)
        struct.pack_into("<I", second, at + 42, offset + len(hidden) - len(first))
        at += 46 + sum(struct.unpack_from("<HHH", second, at + 28))
    end = bytearray(end)
    struct.pack_into("<I", end, 16, len(hidden) + len(shown))
    path = tmp_path / "two.pth"
    path.write_bytes(hidden + shown + first + second + end)
    key = "operations.1.F.conv1.weight"
    assert torch.equal(torch.load(path, weights_only=True)[key], state[key] * 2), "what PyTorch would read"
    assert torch.equal(reading.read(path).tensors[key], state[key])


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
    with pytest.raises(OutputError, match=r"w.json: exists; remove it or choose another name"):
        convert(source, tmp_path / "w.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "w.json"], "weights without their card are not left"
    assert source.read_bytes() == before
