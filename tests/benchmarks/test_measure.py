from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rescale.errors import InputError
from rescale.quality import psnr, psnr_y
from rescale.rescaler import load
from rescale.variants import VARIANTS
from rescale_bench.cli import main
from rescale_bench.pictures import SAMPLE_FILES, folder_set, sample_set
from rescale_bench.quality import DEFINITIONS, FIGURES, measure_picture, measure_set
from rescale_export.bundles import write_bundle
from rescale_export.probe import probe_picture
from rescale_train.bicubic import bicubic_picture
from rescale_train.config import NetConfig
from rescale_train.models import RescalingNet, build
from rescale_train.validation import restore

MakeNet = Callable[..., RescalingNet]
BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]

CASES = [("irn", 2), ("irn_a", 2), ("irn_m", 2), ("dlv_irn_a", 4), ("dlv_irn_m", 4)]


@pytest.mark.parametrize(("model", "scale"), CASES)
def test_the_figures_are_those_of_the_closed_loop_in_pytorch(bundle: BundleOf, make_net: MakeNet, model: str, scale: int) -> None:
    picture = probe_picture(41, 61, 2)
    hr = picture[: 41 - 41 % scale, : 61 - 61 % scale]
    net = make_net(model, scale)
    lr, again = restore(net, hr)
    with load(bundle(model, scale), threads=1) as rescaler:
        assert rescaler.bundle.manifest["net"]["growth"] == net.config.growth
        got = measure_picture(rescaler, "p", picture)
    assert got.name == "p"
    assert got.hr_psnr_y == pytest.approx(psnr_y(again, hr, scale), abs=0.01)
    assert got.hr_psnr_rgb == pytest.approx(psnr(again[scale:-scale, scale:-scale], hr[scale:-scale, scale:-scale]), abs=0.01)
    assert got.lr_psnr_y == pytest.approx(psnr_y(lr, bicubic_picture(hr, scale), scale), abs=0.01)
    assert 0.0 < got.hr_ssim_y < 1.0
    assert got.bits_per_lr_pixel == pytest.approx(8 * got.bytes / (lr.shape[0] * lr.shape[1]))


@pytest.mark.parametrize(("model", "scale"), CASES)
@torch.no_grad()
def test_the_forced_figure_is_that_without_auxiliary_data(bundle: BundleOf, make_net: MakeNet, model: str, scale: int) -> None:
    hr = probe_picture(40, 60, 2)
    with load(bundle(model, scale), threads=1) as rescaler:
        got = measure_picture(rescaler, "p", hr).hr_psnr_y_forced
    if VARIANTS[model].auxiliary == "none":
        assert math.isnan(got)
        return
    net = make_net(model, scale)
    lr = net.downscale(torch.from_numpy(hr).permute(2, 0, 1)[None] / 255.0).lr
    lr[:, 3:] = 0.5
    again = torch.round(net.upscale(lr)[0].clamp(0, 1) * 255.0).permute(1, 2, 0).byte().numpy()
    assert got == pytest.approx(psnr_y(again, hr, scale), abs=0.01)


@pytest.mark.parametrize(("model", "scale"), CASES)
def test_bytes_are_those_of_the_file(bundle: BundleOf, tmp_path: Path, model: str, scale: int) -> None:
    picture = probe_picture(40, 60)
    with load(bundle(model, scale), threads=1) as rescaler:
        rescaler.downscale(picture).save(tmp_path / "lr.png")
        assert measure_picture(rescaler, "p", picture).bytes == (tmp_path / "lr.png").stat().st_size


def test_the_mean_is_of_the_pictures_decibels(bundle: BundleOf, folder_of: FolderOf) -> None:
    folder = folder_of("mine", (40, 40), (64, 48), (33, 57))
    seen: list[str] = []
    with load(bundle("irn_a", 2), threads=1) as rescaler:
        result = measure_set(rescaler, folder_set(folder), seen.append)
        alone = [measure_picture(rescaler, n, np.asarray(Image.open(folder / n))) for n in ("p0.png", "p1.png", "p2.png")]
    assert seen == [p["name"] for p in result["pictures"]] == ["p0.png", "p1.png", "p2.png"]
    assert (result["set"], result["count"], result["border"]) == ("mine", 3, 2)
    assert set(result["mean"]) == set(FIGURES) == set(DEFINITIONS)
    for figure in FIGURES:
        values = [getattr(p, figure) for p in alone]
        assert result["mean"][figure] == pytest.approx(sum(values) / 3)
        assert [p[figure] for p in result["pictures"]] == values
    assert result["paper"] == {}


@pytest.mark.parametrize("name", ["Set5", "set5", "SET14"])
def test_the_papers_rows_stand_beside_its_sets(bundle: BundleOf, folder_of: FolderOf, name: str) -> None:
    with load(bundle("irn", 2), threads=1) as rescaler:
        result = measure_set(rescaler, folder_set(folder_of(name, (24, 24))))
    assert set(result["paper"]) == {"CAR", "IRN", "FGRN", "DLV-IRN", "DLV-IRN-M", "DLV-IRN-A"}
    assert result["paper"]["IRN"]["hr_psnr_y"] == {"set5": 43.99, "set14": 40.79}[name.lower()]


def test_folders_are_named_after_themselves_and_limited(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("Set5", (8, 8), (8, 8), (8, 8))
    (folder / "deep").mkdir()
    (folder / "p2.png").rename(folder / "deep" / "x.png")
    found = folder_set(folder)
    assert (found.name, [n for n, _ in found.pictures]) == ("Set5", ["deep/x.png", "p0.png", "p1.png"])
    assert len(folder_set(folder, 2).pictures) == 2
    monkeypatch.chdir(folder)
    assert folder_set(Path()).name == "Set5"
    with pytest.raises(InputError, match="not a folder"):
        folder_set(folder / "gone")


def test_the_sample_pictures_are_there() -> None:
    pictures = sample_set()
    assert (pictures.name, [n for n, _ in pictures.pictures]) == ("scikit-image", list(SAMPLE_FILES))
    for name, read in pictures.pictures:
        picture = read()
        assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3), name
        assert min(picture.shape[:2]) >= 300


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_report_as_text(bundle: BundleOf, folder_of: FolderOf, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of("Set5", (40, 44), (41, 47))
    assert (
        main(
            [
                "psnr",
                str(bundle("irn_a", 2)),
                str(bundle("irn", 2)),
                "--data",
                str(folder),
                "--each",
                "--threads",
                "1",
                "--backend",
                "onnxruntime",
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip(" *") for c in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert lines[0] == "## Set5, x2 (2 pictures)"
    named = [row[0] for row in rows]
    assert named[1:5] == ["irn_a x2 custom", "irn x2 custom", "bicubic down and up", "bicubic"]
    assert named.count("p0.png") == named.count("p1.png") == 2
    assert named.count("DLV-IRN-A") == 1
    for name, meaning in DEFINITIONS.items():
        assert f"- {name}: {meaning}" in lines
    with load(bundle("irn_a", 2), "onnxruntime", threads=1) as rescaler:
        mean = measure_set(rescaler, folder_set(folder))["mean"]
    assert rows[1][1:4] == ["measured", f"{mean['hr_psnr_y']:.2f}", f"{mean['hr_psnr_rgb']:.2f}"]


def test_the_report_as_json_is_valid_json(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("tiny", (8, 8), (40, 40))
    flat = Image.new("RGB", (40, 40))
    flat.save(folder / "flat.png")
    out = tmp_path / "report.json"
    command = ["psnr", str(bundle("irn", 2)), "--data", str(folder), "--json", "--out", str(out), "--threads", "1"]
    assert main(command) == 0
    text = capsys.readouterr().out
    report = strict_json(text)
    assert strict_json(out.read_text()) == report
    result = report["results"][0]
    assert (result["set"], result["count"], result["model"]) == ("tiny", 3, "irn x2 custom")
    by_name = {p["name"]: p for p in result["pictures"]}
    assert by_name["p0.png"]["hr_ssim_y"] is None, "smaller than the window"
    assert by_name["p1.png"]["hr_psnr_y_forced"] is None, "a plain model has nothing to lose"
    assert result["mean"]["hr_ssim_y"] == pytest.approx((by_name["p1.png"]["hr_ssim_y"] + by_name["flat.png"]["hr_ssim_y"]) / 2)
    assert report["definitions"] == DEFINITIONS


def test_a_lossless_restoration_is_infinite_in_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(build(NetConfig("irn", 2, (1,), 4)).eval(), tmp_path / "fresh")
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (40, 40), (10, 200, 77)).save(tmp_path / "flat" / "p.png")
    command = ["psnr", str(tmp_path / "fresh"), "--data", str(tmp_path / "flat"), "--threads", "1"]
    assert main([*command, "--json"]) == 0
    mean = strict_json(capsys.readouterr().out)["results"][0]["mean"]
    assert (mean["hr_psnr_y"], mean["hr_psnr_rgb"], mean["lr_psnr_y"]) == ("inf", "inf", "inf")
    assert mean["hr_ssim_y"] == pytest.approx(1.0)
    assert main(command) == 0
    assert "| **irn x2 custom** | measured | inf | inf | 1.0000 | 1.0000 | inf |" in capsys.readouterr().out


def test_limit_and_several_folders(bundle: BundleOf, folder_of: FolderOf, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [folder_of("a", (24, 24), (24, 24)), folder_of("b", (24, 24), (24, 24))]
    data = [x for f in folders for x in ("--data", str(f))]
    assert main(["psnr", str(bundle("irn", 2)), *data, "--limit", "1", "--json", "--threads", "1"]) == 0
    results = strict_json(capsys.readouterr().out)["results"]
    assert [(r["set"], r["count"]) for r in results] == [("a", 1), ("b", 1)]


def test_what_is_missing_is_named(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, data = str(bundle("irn", 2)), str(folder_of("mine", (24, 24)))
    (tmp_path / "none").mkdir()
    cases = [
        ([good, "--data", str(tmp_path / "gone")], "gone: not a folder; give a folder of pictures"),
        ([good, "--data", str(tmp_path / "none")], "none: no picture found"),
        ([str(tmp_path / "gone"), "--data", data], "gone: no bundle here (manifest.json is missing); make one with rescale-export"),
        ([good, "--data", data, "--backend", "abacus"], "unknown backend 'abacus'"),
        ([good, "--data", data, "--out", str(tmp_path / "gone" / "r.json")], "r.json: cannot write"),
    ]
    for arguments, message in cases:
        assert main(["psnr", *arguments, "--threads", "1"]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("error: ")
        assert message in errors


def test_a_damaged_picture_is_named(bundle: BundleOf, folder_of: FolderOf, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of("mine", (24, 24))
    (folder / "bad.png").write_text("no picture")
    assert main(["psnr", str(bundle("irn", 2)), "--data", str(folder)]) == 1
    assert "bad.png" in capsys.readouterr().err
