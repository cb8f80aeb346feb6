"""`rescale-bench psnr`: what was measured here beside what others published."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescale.errors import UnknownModelError
from rescale.quality import psnr_y
from rescale.rescaler import load
from rescale_bench import quality
from rescale_bench.bundles import bundles_of
from rescale_bench.cli import main
from rescale_bench.paper import BICUBIC, SETS, TABLE_3, published, published_rows
from rescale_bench.pictures import folder_set, sample
from rescale_bench.quality import FIGURES, measure_bicubic, measure_picture, measure_set, measure_set_bicubic, ssim_rgb, ssim_y
from rescale_bench.quality_report import COLUMNS, MEASURED, PUBLISHED, as_markdown, spread, tables
from rescale_bench.store import Store
from rescale_export.probe import probe_picture
from rescale_train.bicubic import bicubic_picture, enlarge_picture

BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]


def run(*arguments: object) -> int:
    return main(["psnr", *map(str, arguments), "--threads", "1", "--backend", "onnxruntime"])


def report_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("scale", [2, 4])
def test_published_and_measured_rows_never_mix(
    bundle: BundleOf, folder_of: FolderOf, capsys: pytest.CaptureFixture[str], scale: int
) -> None:
    found = report_of(capsys, bundle("irn_a", scale), "--data", folder_of("BSD100", (40, 48)))
    (table,) = found["tables"]
    assert (table["set"], table["scale"], table["count"]) == ("BSD100", scale, 1)
    by_origin = {o: [r for r in table["rows"] if r["origin"] == o] for o in (MEASURED, PUBLISHED)}
    assert len(by_origin[MEASURED]) + len(by_origin[PUBLISHED]) == len(table["rows"])
    assert [r["method"] for r in by_origin[MEASURED]] == [f"irn_a x{scale} custom", "bicubic down and up"]
    assert [r["method"] for r in by_origin[PUBLISHED]] == ["bicubic", *TABLE_3[scale]]
    for row in by_origin[PUBLISHED]:
        assert set(row) == {"method", "origin", "source", "hr_psnr_y", "hr_ssim_y"}, "no figure that nobody published"
        figures = BICUBIC[scale][2] if row["method"] == "bicubic" else published(scale, "BSD100")[row["method"]]
        assert (row["hr_psnr_y"], row["hr_ssim_y"]) == figures
    for row in by_origin[MEASURED]:
        assert set(FIGURES) <= set(row)
        assert "arXiv" not in row["source"]


def test_every_line_of_the_table_says_where_it_is_from(
    bundle: BundleOf, folder_of: FolderOf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle("irn", 2), bundle("irn_a", 2), bundle("irn", 4), "--data", folder_of("Set5", (40, 44), (40, 40))) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if not line.startswith("|  |")]
    assert {row[1] for row in rows} == {MEASURED, PUBLISHED}
    assert all(row[0].startswith("**") == (row[1] == MEASURED) for row in rows)
    assert all(not any(row[i] for i in (3, 5, 6, 7, 8, 9, 10)) for row in rows if row[1] == PUBLISHED)
    spreads = [line for line in text.splitlines() if ", picture by picture: lowest " in line]
    assert [line.count("; over ") for line in spreads] == [1, 2, 1], "over bicubic, and over the first bundle of the scale"
    assert text.count("## Set5, x2 (2 pictures)") == text.count("## Set5, x4 (2 pictures)") == 1
    assert "- border: as many pixels as the scale are cropped on every side" in text
    assert "- rounding: LR and restored HR are rounded to 8 bits" in text
    assert "IRN, FGRN, DLV-IRN" in text
    assert ", as published" in text
    assert all(len(row) == len(COLUMNS) + 3 for row in rows)


def test_other_sets_have_measured_rows_only(bundle: BundleOf, folder_of: FolderOf, capsys: pytest.CaptureFixture[str]) -> None:
    found = report_of(capsys, bundle("irn", 2), "--data", folder_of("Kodak", (24, 24)))
    assert {r["origin"] for t in found["tables"] for r in t["rows"]} == {MEASURED}


@pytest.mark.parametrize("scale", [2, 4])
def test_bicubic_is_measured_as_everything_else(scale: int) -> None:
    picture = probe_picture(89, 102, 3)
    hr = picture[: 89 - 89 % scale, : 102 - 102 % scale]
    got = measure_bicubic(scale, "p", picture)
    lr = bicubic_picture(hr, scale)
    assert got.hr_psnr_y == psnr_y(enlarge_picture(lr, scale), hr, scale)
    assert (got.lr_psnr_y, got.lr_ssim_y) == (math.inf, pytest.approx(1.0))
    assert math.isnan(got.hr_psnr_y_forced)
    assert got.bits_per_lr_pixel == pytest.approx(8 * got.bytes / (lr.shape[0] * lr.shape[1]))


def test_bits_are_those_of_real_files_in_each_container(bundle: BundleOf) -> None:
    picture = probe_picture(40, 60)
    with load(bundle("irn_a", 2), "onnxruntime", 1) as net:
        got = measure_picture(net, "p", picture)
        small = net.downscale(picture)
    wanted = {"": "png", "_webp": "webp", "_jxl": "jxl"}
    for suffix, container in wanted.items():
        assert getattr(got, f"bits_per_lr_pixel{suffix}") == 8 * len(small.to_bytes(container)) / (20 * 30)


def test_a_container_that_is_not_installed_is_empty_and_named(
    bundle: BundleOf, folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "lr_containers", lambda: ["png"])
    found = report_of(capsys, bundle("irn", 2), "--data", folder_of("mine", (24, 24)))
    mean = found["results"][0]["mean"]
    assert (mean["bits_per_lr_pixel_webp"], mean["bits_per_lr_pixel_jxl"]) == (None, None)
    assert mean["bits_per_lr_pixel"] > 0


def test_ssim_of_rgb_is_the_mean_of_three_channels() -> None:
    a = sample("chelsea.png")[:40, :50]
    b = a.copy()
    b[..., 1] = np.roll(b[..., 1], 2, axis=0)
    assert ssim_rgb(a, a, 2) == pytest.approx(1.0)
    gray = [np.repeat(p[..., 1:2], 3, axis=2) for p in (a, b)]
    assert ssim_rgb(a, b, 2) == pytest.approx((2.0 + ssim_rgb(*gray, 2)) / 3.0)
    assert math.isnan(ssim_rgb(a[:12], a[:12], 2))
    assert ssim_rgb(a, b, 2) != ssim_y(a, b, 2)


def test_bicubic_of_the_authors_stands_first_and_apart() -> None:
    rows = published_rows(2, "set-5")
    assert (rows[0].method, rows[0].hr_psnr_y, rows[0].hr_ssim_y) == ("bicubic", 33.66, 0.9299)
    assert len({r.source for r in rows}) == 2
    assert rows[0].source not in {r.source for r in rows[1:]}
    assert published_rows(2, "Kodak") == published_rows(3, "Set5") == []
    assert all(len(figures) == len(SETS) for figures in BICUBIC.values())


def test_a_stopped_run_goes_on(bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, store = folder_set(folder_of("mine", (40, 40), (8, 8), (41, 50))), Store(tmp_path / "kept")
    with load(bundle("irn_a", 2), "onnxruntime", 1) as net:
        fresh = measure_set(net, pictures)

        def stop(name: str) -> None:
            if name == "p1.png":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure_set(net, pictures, stop, store)
        assert len(list((tmp_path / "kept").iterdir())) == 2
        again = measure_set(net, pictures, store=store)
        monkeypatch.setattr(quality, "measure_picture", None)
        kept = measure_set(net, pictures, store=store)
    assert repr(again) == repr(fresh) == repr(kept), "NaN and infinity too"
    assert repr(measure_set_bicubic(2, pictures, store=store)) == repr(measure_set_bicubic(2, pictures, store=store))


def test_what_other_versions_measured_is_measured_again(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, store = folder_set(folder_of("mine", (24, 24))), Store(tmp_path)
    measure_set_bicubic(2, pictures, store=store)
    monkeypatch.setattr(quality, "versions", lambda: {"pillow": "99.0"})
    measure_set_bicubic(2, pictures, store=store)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_what_other_corrections_or_another_precision_measured_is_measured_again(
    corrected_pair: tuple[Path, Path], folder_of: FolderOf, tmp_path: Path
) -> None:
    pictures, store = folder_set(folder_of("mine", (24, 24))), Store(tmp_path / "kept")
    corrected, plain = corrected_pair
    for count, (path, precision) in enumerate([(corrected, "fp32"), (corrected, "mixed"), (plain, "fp32")], 1):
        with load(path, "onnxruntime", 1, precision=precision) as net:
            measure_set(net, pictures, store=store)
        assert len(list((tmp_path / "kept").iterdir())) == count


@pytest.mark.parametrize(
    ("figure", "value"), [("bytes", -3), ("bytes", 3.5), ("bytes", None), ("hr_psnr_y", 1e9), ("lr_psnr_y", "x"), ("hr_ssim_y", [])]
)
def test_figures_that_no_picture_has_are_not_believed(
    folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: BundleOf, figure: str, value: object
) -> None:
    arguments = (bundle("irn", 2), "--data", folder_of("mine", (24, 24)), "--keep", tmp_path / "kept")
    assert run(*arguments) == 0
    for file in (tmp_path / "kept").iterdir():
        content = json.loads(file.read_text())
        content["value"][figure] = value
        file.write_text(json.dumps(content))
    capsys.readouterr()
    assert run(*arguments) == 1
    assert "json: not a measurement that this command kept: " in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names of files that are no text")
def test_a_name_that_is_no_text_is_measured_and_written(
    folder_of: FolderOf, bundle: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_of("mine", (24, 24))
    (data / "p0.png").rename(data / os.fsdecode(b"a\xff.png"))
    files = ("--keep", tmp_path / "kept", "--markdown", tmp_path / "r.md", "--out", tmp_path / "r.json")
    assert run(bundle("irn", 2), "--data", data, "--each", *files) == 0
    assert r"a\udcff.png" in (tmp_path / "r.md").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["pictures"][0]["name"] == os.fsdecode(b"a\xff.png")


def test_pictures_are_told_apart_by_more_than_their_names(folder_of: FolderOf) -> None:
    rows = measure_set_bicubic(2, folder_set(folder_of("mine", (24, 20), (24, 20))))["pictures"]
    assert [r["size"] for r in rows] == [[20, 24], [20, 24]]
    assert rows[0]["digest"] != rows[1]["digest"]


def test_refined_pictures_are_measured_and_named(
    refinable: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside what is kept of the same pictures without refining."""
    arguments = (refinable("irn_a", 2), "--data", folder_of("mine", (24, 24)), "--keep", tmp_path / "kept")
    plain, refined = report_of(capsys, *arguments), report_of(capsys, *arguments, "--refine", "5")
    assert refined["results"][0]["model"] == plain["results"][0]["model"] + ", refined in 5 steps"
    assert (plain["results"][0]["refined"], refined["results"][0]["refined"]) == (0, 5)
    assert refined["results"][0]["mean"]["hr_psnr_rgb"] > plain["results"][0]["mean"]["hr_psnr_rgb"]
    assert refined["bicubic"] == plain["bicubic"]


def test_the_command_keeps_and_writes(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_of("mine", (24, 24), (30, 30))
    command = (bundle("irn", 2), "--data", data, "--keep", tmp_path / "kept", "--markdown", tmp_path / "r.md")
    assert run(*command) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "r.md").read_text() == text
    assert len(list((tmp_path / "kept").iterdir())) == 4, "two pictures by the network, two by bicubic"
    assert run(*command) == 0
    assert capsys.readouterr().out == text


def test_bundles_of_one_title_are_told_apart(
    corrected_pair: tuple[Path, Path], folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one network with and without corrections, or before and after more training."""
    report = tmp_path / "r.json"
    assert run(*corrected_pair, "--data", folder_of("mine", (24, 24)), "--out", report) == 0
    text = capsys.readouterr().out
    titles = ["irn_a x2 custom", "irn_a x2 custom (2)"]
    assert [r["model"] for r in json.loads(report.read_text())["results"]] == titles
    for title, path in zip(titles, corrected_pair, strict=True):
        assert f"| **{title}** | measured |" in text
        assert f"- {title}: {path}\n" in text
    assert "; over irn_a x2 custom " in text
    assert main(["compare", str(report), str(report)]) == 0


@pytest.mark.parametrize("command", [["psnr"], ["rate"], ["parity", "--backend", "onnxruntime"]])
def test_sets_of_one_name_are_refused_before_the_work(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Set5/HR and Set14/HR: reports tell sets apart by the names of their folders."""
    data = []
    for name in ("Set5", "Set14"):
        folder_of(name)
        folder_of(f"{name}/HR", (16, 16))
        data += ["--data", str(tmp_path / name / "HR")]
    assert main([*command, str(bundle("irn", 2)), *data]) == 1
    assert f"{tmp_path}/Set5/HR: two sets would be called 'HR' after their folders; rename one" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["psnr"], ["rate", "--codec", "jpeg420"], ["parity", "--backend", "onnxruntime"]])
def test_a_picture_that_cannot_be_measured_is_told_before_the_work(
    bundle: BundleOf,
    folder_of: FolderOf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    data = folder_of("mine", (24, 24), (24, 24))
    (data / "p1.png").write_text("no picture")
    monkeypatch.setattr("rescale.network.Network.down", lambda *_: pytest.fail("measured"))
    assert main([*command, str(bundle("irn", 2)), "--data", str(data)]) == 1
    assert "p1.png: not a picture that can be read" in capsys.readouterr().err


@pytest.mark.usefixtures("only_irn_ships")
def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(UnknownModelError, match=r"no weights ship for dlv_irn_m \(shipped: irn x2 lite\)"):
        bundles_of([], ["dlv_irn_m"], [])


def spread_report(bicubic: list[float], **models: list[float]) -> dict[str, Any]:
    """A report of one set with these HR Y-PSNR of its pictures."""

    def result(values: list[float]) -> dict[str, Any]:
        pictures = [{"name": f"p{i}.png", "hr_psnr_y": v} for i, v in enumerate(values)]
        mean = dict.fromkeys(FIGURES, math.nan) | {"hr_psnr_y": math.fsum(values) / len(values)}
        return {"scale": 2, "set": "mine", "count": len(values), "mean": mean, "pictures": pictures, "backend": "b"}

    report = {"results": [{"model": m, **result(v)} for m, v in models.items()], "bicubic": [result(bicubic)]}
    return report | {"tables": tables(report), "protocol": {}, "definitions": {}, "missing": []}


def test_a_picture_that_comes_back_broken_is_seen_beside_a_good_mean() -> None:
    """Corrections that diverged on 2 of 143 pictures raised the means of three sets (docs/corrections.md)."""
    found = spread_report([20.0, 30.0, 35.0], plain=[30.0, 38.0, 44.0], corrected=[30.5, 16.0, 45.75])
    plain, corrected = spread(found, 2, "mine")
    over_bicubic = {"over": "bicubic", "least": ("p1.png", 8.0), "median": 9.0, "most": ("p0.png", 10.0)}
    assert plain == {"method": "plain", "lowest": ("p0.png", 30.0), "gains": [over_bicubic]}
    over_bicubic = {"over": "bicubic", "least": ("p1.png", -14.0), "median": 10.5, "most": ("p2.png", 10.75)}
    over_plain = {"over": "plain", "least": ("p1.png", -22.0), "median": 0.5, "most": ("p2.png", 1.75)}
    assert corrected == {"method": "corrected", "lowest": ("p1.png", 16.0), "gains": [over_bicubic, over_plain]}
    assert spread(found, 4, "mine") == spread(found, 2, "yours") == []
    (line,) = (row for row in as_markdown(found, each=False).splitlines() if row.startswith("- corrected"))
    assert line == (
        "- corrected, picture by picture: lowest 16.00 dB (p1.png)"
        "; over bicubic -14.00 (p1.png) to +10.75 (p2.png), median +10.50"
        "; over plain -22.00 (p1.png) to +1.75 (p2.png), median +0.50"
    )


def test_a_picture_without_error_is_no_gain_over_another_without_error() -> None:
    (found,) = spread(spread_report([math.inf, 40.0], m=[math.inf, 40.0]), 2, "mine")
    assert found["gains"] == [{"over": "bicubic", "least": ("p0.png", 0.0), "median": 0.0, "most": ("p1.png", 0.0)}]


def test_tables_keep_the_order_of_scales_and_sets() -> None:
    mean = dict.fromkeys(FIGURES, 1.0)

    def result(scale: int, name: str, **head: str) -> dict[str, Any]:
        pictures = [{"name": "p", "hr_psnr_y": 30.0}]
        return {"scale": scale, "set": name, "count": 1, "mean": mean, "pictures": pictures, "backend": "b", **head}

    results = [result(s, n, model=f"m{s}") for s in (2, 4) for n in ("Set5", "mine")]
    bicubic = [result(s, n) for s in (2, 4) for n in ("Set5", "mine")]
    found = tables({"results": results, "bicubic": bicubic})
    assert [(t["scale"], t["set"]) for t in found] == [(2, "Set5"), (2, "mine"), (4, "Set5"), (4, "mine")]
    assert [len(t["rows"]) for t in found] == [2 + 1 + 6, 2, 2 + 1 + 7, 2]
