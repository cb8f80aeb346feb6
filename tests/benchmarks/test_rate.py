"""Rate and distortion: pictures, means, the command and its page."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from rescale import carrier
from rescale.container import Small
from rescale.picture import Picture
from rescale.quality import psnr, psnr_y
from rescale.rescaler import load
from rescale_bench import rate
from rescale_bench.bicubic import reduce
from rescale_bench.cli import app, main
from rescale_bench.pictures import sample
from rescale_bench.rate import Tools, measure_picture, measure_set
from rescale_bench.rate_codecs import LOSSLESS, LOSSY, Codec
from rescale_bench.rate_pictures import source_sets
from rescale_bench.store import Store
from rescale_export.probe import probe_picture
from rescale_train.bicubic import enlarge_picture

BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]

DOCS = Path(__file__).resolve().parents[2] / "docs"
CODECS = {c.name: c for c in LOSSY}
QUICK = ("jpeg420", "webp")


def tools(*codecs: str, folder: Path | None = None) -> Tools:
    chosen = [CODECS[c] for c in codecs or QUICK]
    return Tools(chosen, LOSSLESS[:2], ["png", "webp"], Store(folder))


def small_photograph() -> np.ndarray:
    return np.ascontiguousarray(sample("chelsea.png")[100:164, 120:217])


@pytest.fixture(scope="module")
def nets(bundle: BundleOf) -> Any:
    with load(bundle("irn_a", 2), "onnxruntime", 1) as a, load(bundle("irn", 4), "onnxruntime", 1) as plain:
        yield [a, plain]


@pytest.fixture(scope="module")
def measured(nets: Any) -> dict[str, Any]:
    return measure_picture(nets, "p", Picture(small_photograph()), tools("jpeg420", "jpeg444", "webp"))


def test_files_and_figures_are_those_of_the_real_files(nets: Any, measured: dict[str, Any]) -> None:
    picture = small_photograph()
    assert measured["size"] == [97, 64]
    for net, entry in zip(nets, measured["rescaled"], strict=True):
        small = net.downscale(picture)
        for container in ("png", "webp"):
            file = small.to_bytes(container)
            assert carrier.container_of(file) == container
            assert entry["files"][container] == len(file)
            again = net.upscale(Small.from_bytes(file))
            assert (entry["psnr_y"], entry["psnr_rgb"]) == (psnr_y(again, picture), psnr(again, picture))
    assert measured["lossless"] == {c.name: len(c.encode(picture)) for c in LOSSLESS[:2]}


def test_the_points_around_a_match_are_files_of_the_codec(measured: dict[str, Any]) -> None:
    picture = small_photograph()
    seen = 0
    for entry in measured["rescaled"]:
        for container, codecs in entry["same_bytes"].items():
            for name, match in codecs.items():
                assert match["target"] == entry["files"][container]
                for end in ("lower", "upper"):
                    if match[end] is None:
                        continue
                    data = CODECS[name].encode(picture, match[end]["step"])
                    assert match[end]["bytes"] == len(data)
                    assert match[end]["psnr_y"] == psnr_y(CODECS[name].decode(data), picture)
                    seen += 1
    assert seen >= 12


def test_a_residual_counts_the_bytes_of_its_lr_and_restores_with_it(measured: dict[str, Any]) -> None:
    picture = small_photograph()
    entry = measured["rescaled"][0]
    lr = reduce(picture, 2)
    base = enlarge_picture(lr, 2)[:64, :97]
    residual = np.clip(picture.astype(int) - base + 128, 0, 255).astype(np.uint8)
    assert set(entry["residual"]["png"]) == {"jpeg420", "webp"}, "full chroma is not tried on residuals"
    for container, codec in (("png", LOSSLESS[0]), ("webp", LOSSLESS[1])):
        size = codec.size(lr)
        assert entry["bicubic_lr"][container] == size
        for name, match in entry["residual"][container].items():
            assert match["target"] == entry["files"][container]
            assert match["reached"] == "bracketed"
            upper = match["upper"]
            data = CODECS[name].encode(residual, upper["step"])
            assert upper["bytes"] == size + len(data)
            again = np.clip(base.astype(int) + CODECS[name].decode(data) - 128, 0, 255).astype(np.uint8)
            assert upper["psnr_y"] == psnr_y(again, picture)


def test_a_codec_that_refuses_a_picture_is_reported_and_the_others_go_on(nets: Any) -> None:
    def refuse(picture: np.ndarray, step: int) -> bytes:
        raise OSError("out of ink")

    base = tools()
    broken = replace(CODECS["webp"], encode=refuse)
    found = measure_picture(nets[:1], "p", Picture(probe_picture(24, 32)), replace(base, lossy=[broken, CODECS["jpeg420"]]))
    assert found["failed"] == {"webp": "WebP, step 0: out of ink"}
    assert set(found["curves"]) == set(found["rescaled"][0]["same_bytes"]["png"]) == {"jpeg420"}


def test_a_picture_that_comes_back_whole_asks_for_no_psnr(
    tmp_path: Path, bundle: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(bundle("irn", 2), "onnxruntime", 1) as net:
        monkeypatch.setattr(rate, "psnr_y", lambda a, b: math.inf)
        found = measure_picture([net], "p", Picture(probe_picture(24, 32)), tools("jpeg420"))
    entry = found["rescaled"][0]
    assert entry["psnr_y"] == math.inf
    assert entry["same_psnr"] == {}
    assert entry["same_bytes"]["png"]["jpeg420"]["psnr_y"] == math.inf


def test_a_stopped_run_goes_on_and_ends_with_the_same_figures(
    nets: Any, folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures,) = source_sets([folder_of("mine", (32, 40), (40, 33))])
    fresh = measure_set(nets, pictures, tools())
    count = 0

    def interrupting(codec: Codec) -> Codec:
        def encode(picture: np.ndarray, step: int) -> bytes:
            nonlocal count
            count += 1
            if count == 30:
                raise KeyboardInterrupt
            return codec.encode(picture, step)

        return replace(codec, encode=encode)

    halting = replace(tools(folder=tmp_path / "points"), lossy=[interrupting(CODECS[c]) for c in QUICK])
    with pytest.raises(KeyboardInterrupt):
        measure_set(nets, pictures, halting)
    stored = sum(len(json.loads(f.read_text())["value"]) for f in (tmp_path / "points").iterdir() if '"curve"' in f.read_text())
    assert stored > 0, "the points of the curve that was interrupted are kept too"
    assert not list((tmp_path / "points").glob("*.tmp")), "and nothing half-written"
    count = 100
    assert measure_set(nets, pictures, halting) == fresh
    assert count > 100
    count = 100
    monkeypatch.setattr(nets[0], "downscale", None)
    assert measure_set(nets, pictures, halting) == fresh
    assert count == 100, "nothing is measured twice, by codec or network"


def run(*arguments: object) -> int:
    return main(["rate", *map(str, arguments), "--threads", "1", "--backend", "onnxruntime"])


def test_the_command_writes_report_plots_and_points(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = folder_of("Mine", (40, 44), (41, 47)), tmp_path / "out"
    command = (bundle("irn_a", 2), bundle("irn", 4), "--data", data, "--out", out, "--codec", "jpeg420", "--codec", "webp")
    assert run(*command) == 0
    text = capsys.readouterr().out
    assert (out / "rate.md").read_text().replace("![", "").count("\n") >= text.count("\n")
    assert text.startswith("## Mine, 2 pictures\n")
    assert "### irn_a x2 custom on Mine" in text
    plots = sorted(p.name for p in out.glob("*.svg"))
    assert plots == ["rate_mine.svg", "rate_mine_irn_a_x2_custom.svg", "rate_mine_irn_x4_custom.svg"]
    for name in plots:
        assert ET.fromstring((out / name).read_text()).tag.endswith("svg")
        assert f"]({name})" in (out / "rate.md").read_text()
    first = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    assert run(*command, "--json") == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert printed == json.loads((out / "rate.json").read_text())
    assert printed["format"] == "rescale-rate/1"
    assert [len(s["pictures"]) for s in printed["sets"]] == [2]
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == first, "a second run draws the same bytes"


@pytest.mark.usefixtures("no_imagecodecs")
def test_the_command_names_what_is_not_installed(bundle: BundleOf, folder_of: FolderOf, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (bundle("irn", 2), "--data", folder_of("mine", (24, 24)))
    assert run(*arguments, "--codec", "jpeg420") == 0
    captured = capsys.readouterr()
    assert "warning: not measured: JPEG XL: imagecodecs is not installed: pip install 'rescale-toolkit[jxl]'" in captured.err
    assert "Not measured, because it is not installed:" in captured.out
    assert "| | PNG | WebP |" in captured.out.replace("|  |", "| |")
    assert run(*arguments, "--codec", "jxl") == 1
    assert "error: JPEG XL: imagecodecs is not installed" in capsys.readouterr().err


@pytest.mark.usefixtures("only_irn_ships")
def test_what_the_command_cannot_do_is_said(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    data = ("--data", folder_of("mine", (24, 24)))
    cases = [
        ((bundle("irn", 2), *data, "--codec", "gif"), "unknown codec 'gif': choose one of jpeg420, jpeg444, webp, avif420"),
        ((bundle("irn", 2), "--data", tmp_path / "gone"), "gone: not a folder"),
        ((tmp_path / "gone", *data), "gone: no bundle here"),
        ((bundle("irn", 2), *data, "--out", tmp_path / "file"), "file: cannot make this folder"),
        (("--model", "irn_z", *data), "unknown model 'irn_z'"),
        (("--model", "dlv_irn_m", *data), "no weights ship for dlv_irn_m (shipped: "),
        (("--scale", "3", *data), "scale"),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 1, arguments
        assert message in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_writes_no_report(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rate, "measure_set", interrupt)
    assert run(bundle("irn", 2), "--data", folder_of("mine", (24, 24)), "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["points"]


def test_the_page_shows_plots_that_are_there_and_says_how_to_draw_them() -> None:
    page = DOCS / "rate.md"
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert shown
    assert all((DOCS / file).is_file() for file in shown)
    for command in re.findall(r"`(rescale-bench (?:rate|psnr)[^`]*)`", text):
        options = {f"--{p.name}".replace("_", "-").rstrip("-") for p in get_command(app).commands[command.split()[1]].params}
        assert {w for w in command.split() if w.startswith("--")} <= options, command


def test_all_pictures_that_cannot_be_read_are_named_at_once(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("mine", (16, 16))
    for name in ("broken.png", "cut.png"):
        (folder / name).write_bytes(b"nothing")
    assert main(["rate", str(bundle("irn", 2)), "--data", str(folder), "--codec", "jpeg420"]) == 1
    message = capsys.readouterr().err
    assert "broken.png" in message
    assert "cut.png" in message
