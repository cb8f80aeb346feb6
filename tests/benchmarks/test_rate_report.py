"""What a rate report says: means, sentences and plots."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rescale.console import printable
from rescale_bench import rate_plots
from rescale_bench.cli import main
from rescale_bench.rate_curve import Match
from rescale_bench.rate_plots import plots
from rescale_bench.rate_report import as_markdown, verdict
from rescale_bench.rate_summary import summary

BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]


def match(reached: str, y: float, rgb: float, size: float = 90.0) -> dict[str, Any]:
    return Match(100.0, reached, size, y, rgb, None, None).to_dict()


def entry(y: float, rgb: float, **matches: dict[str, Any]) -> dict[str, Any]:
    head = {
        "model": "m",
        "scale": 2,
        "weights": "w",
        "runner": "r",
        "lr_size": [4, 5],
        "files": {"png": 100},
        "bicubic_lr": {"png": 60},
    }
    return head | {"psnr_y": y, "psnr_rgb": rgb, "same_bytes": {"png": matches}, "residual": {"png": {}}, "same_psnr": matches}


def pictures_of(*entries: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {"name": f"p{i}", "size": [8, 10], "lossless": {"png": 300}, "curves": {}, "rescaled": [e], "failed": {}}
        for i, e in enumerate(entries)
    ]
    return {"set": "mine", "count": len(rows), "pictures": rows}


def test_means_are_of_the_pictures_where_there_is_a_comparison() -> None:
    found = summary(
        pictures_of(
            entry(40.0, 38.0, webp=match("bracketed", 42.0, 37.0, 80.0)),
            entry(44.0, 41.0, webp=match("above", 43.0, 42.0)),
            entry(30.0, 29.0, webp=match("below", 20.0, 19.0)),
        )
    )
    model = found["models"][0]
    assert (model["psnr_y"], model["psnr_rgb"], model["files"]) == (38.0, 36.0, {"png": 100})
    assert model["bits_per_lr_pixel"] == {"png": 40.0}
    stat = model["same_bytes"]["png"]["webp"]
    assert (stat["count"], stat["above"], stat["below"]) == (2, 1, 1)
    assert (stat["psnr_y"], stat["psnr_rgb"]) == (42.5, 39.5)
    assert stat["gain_y"] == {"mean": -0.5, "least": -2.0, "most": 1.0}
    assert (stat["better_y"], stat["better_rgb"]) == (1, 1)
    need = model["same_psnr"]["webp"]
    assert (need["count"], need["above"], need["below"], need["bytes"], need["share"]) == (1, 1, 1, 80.0, {"png": 0.8})


def test_a_share_is_the_mean_of_the_pictures_shares() -> None:
    small, large = entry(40.0, 38.0, webp=WEBP), entry(40.0, 38.0, webp=WEBP) | {"files": {"png": 400}}
    assert summary(pictures_of(small, large))["models"][0]["same_psnr"]["webp"]["share"] == {"png": pytest.approx((0.8 + 0.2) / 2)}


def test_gains_that_are_infinite_both_ways_have_no_mean() -> None:
    whole = entry(math.inf, math.inf, webp=match("bracketed", 42.0, 37.0)) | {"same_psnr": {}}
    lossy = entry(40.0, 38.0, webp=match("bracketed", math.inf, math.inf, 80.0))
    gain = summary(pictures_of(whole, lossy))["models"][0]["same_bytes"]["png"]["webp"]["gain_y"]
    assert math.isnan(gain["mean"])
    assert (gain["least"], gain["most"]) == (-math.inf, math.inf)
    assert verdict_of(whole, lossy)[0].startswith(
        "In the bytes of the PNG LR file WebP has no mean distance from the restored HR (each is without loss on some pictures);"
    )


def test_a_codec_that_failed_on_one_picture_has_no_mean() -> None:
    whole = entry(40.0, 38.0, webp=match("bracketed", 42.0, 37.0), jpeg420=match("bracketed", 42.0, 37.0))
    assert set(
        summary(pictures_of(whole, entry(40.0, 38.0, jpeg420=match("bracketed", 1.0, 1.0))))["models"][0]["same_bytes"]["png"]
    ) == {"jpeg420"}


def test_a_bound_is_marked_as_one() -> None:
    found = pictures_of(entry(44.0, 41.0, webp=match("above", 43.0, 42.0)), entry(40.0, 38.0, webp=match("below", 20.0, 19.0)))
    report = {"summary": [summary(found)], "sets": [found], "definitions": {}, "settings": {}, "versions": {}, "missing": []}
    text = as_markdown(report)
    assert "| WebP | > 43.00 (42.00) 1 / 0 of 1; 1 at its best quality, 1 not in so few bytes | not reached |" in text
    where = "on 1 of 2 pictures, the others are not reached; at its best quality on 1"
    assert f"In the bytes of the PNG LR file WebP has < 1.00 dB less than the restored HR (Y, mean {where})." in text


WEBP = match("bracketed", 41.0, 37.0, 80.0)


def verdict_of(*entries: dict[str, Any]) -> list[str]:
    return verdict(summary(pictures_of(*entries))["models"][0])


def test_a_codec_that_has_some_pictures_only_is_not_the_best_one() -> None:
    """JPEG 4:4:4 has 60 dB on the one picture that it can code in so few bytes, WebP 41 dB on all."""
    some = [entry(40.0, 38.0, webp=WEBP, jpeg444=match("below", 20.0, 19.0)) for _ in range(3)]
    one = entry(40.0, 38.0, webp=WEBP, jpeg444=match("bracketed", 60.0, 57.0))
    assert verdict_of(*some, one) == [
        "In the bytes of the PNG LR file WebP has 1.00 dB more than the restored HR (Y, mean); it needs 80 % of those bytes for the"
        " same Y-PSNR.",
        "Not compared, for having only some of the pictures in so few bytes: JPEG 4:4:4 (1 of 4).",
    ]


def test_sentences_say_of_how_many_pictures_they_are() -> None:
    both = {"jpeg420": match("bracketed", 39.0, 37.0), "webp": match("above", 41.0, 37.0, 80.0)}
    rest = {"jpeg420": match("below", 20.0, 19.0), "webp": match("bracketed", 43.0, 41.0, 70.0)}
    assert verdict_of(entry(40.0, 38.0, **both), entry(40.0, 38.0, **rest)) == [
        "In the bytes of the PNG LR file WebP has > 2.00 dB more than the restored HR (Y, mean; at its best quality on 1); it needs"
        " 70 % of those bytes for the same Y-PSNR on 1 of 2 pictures, the others are not reached.",
        "JPEG 4:2:0 has 1.00 dB less than it (Y, mean on 1 of 2 pictures, the others are not reached).",
        "Not compared, for having only some of the pictures in so few bytes: JPEG 4:2:0 (1 of 2).",
    ]


def test_there_is_no_best_codec_where_none_has_every_picture() -> None:
    first = {"jpeg420": match("below", 20.0, 19.0), "webp": match("bracketed", 43.0, 41.0)}
    second = {"jpeg420": match("bracketed", 39.0, 37.0), "webp": match("below", 20.0, 19.0)}
    entries = [entry(40.0, 38.0, **first), entry(40.0, 38.0, **second)]
    for e, matches in zip(entries, (first, second), strict=True):
        e["residual"] = {"png": matches}
    assert verdict_of(*entries) == [
        "In the bytes of the PNG LR file no codec has every picture; the table counts those that each has.",
        "JPEG 4:2:0 has 1.00 dB less than the restored HR (Y, mean on 1 of 2 pictures, the others are not reached).",
        "With no codec do a bit-exact bicubic PNG and a residual fit into those bytes on every picture.",
    ]


def test_a_residual_that_has_some_pictures_only_is_not_the_best_one() -> None:
    entries = [entry(40.0, 38.0), entry(40.0, 38.0)]
    entries[0]["residual"] = {"png": {"webp": match("bracketed", 38.0, 37.0), "jpeg420": match("bracketed", 50.0, 37.0)}}
    entries[1]["residual"] = {"png": {"webp": match("above", 38.0, 37.0), "jpeg420": match("below", 50.0, 37.0)}}
    assert verdict_of(*entries) == [
        "A bit-exact bicubic PNG and a residual in WebP have < 2.00 dB less than the restored HR (Y, mean; at its best quality"
        " on 1).",
        "Not compared, for having only some of the pictures in so few bytes: JPEG 4:2:0 (1 of 2).",
    ]


def test_pictures_restored_without_loss_are_counted_where_a_psnr_is_asked_for() -> None:
    whole = entry(math.inf, math.inf, webp=match("bracketed", 42.0, 37.0)) | {"same_psnr": {}}
    found = pictures_of(whole, entry(40.0, 38.0, webp=WEBP))
    need = summary(found)["models"][0]["same_psnr"]["webp"]
    assert (need["count"], need["above"], need["below"], need["whole"], need["share"]) == (1, 0, 0, 1, {"png": 0.8})
    assert "80 % of those bytes for the same Y-PSNR on 1 of 2 pictures" in verdict(summary(found)["models"][0])[0]
    assert "| 80 % (1 pictures; 1 not reached) |" in text_of(found)
    assert re.search(r"\| WebP \|.*\| not reached \|", text_of(pictures_of(whole))), "nothing failed there"


def report_of(*sets: dict[str, Any]) -> dict[str, Any]:
    head: dict[str, Any] = {"definitions": {}, "settings": {}, "versions": {}, "missing": []}
    return head | {"summary": [summary(s) for s in sets], "sets": list(sets)}


def text_of(*sets: dict[str, Any]) -> str:
    return as_markdown(report_of(*sets))


def drawn_texts(svg: bytes) -> set[str]:
    return {e.text for e in ET.fromstring(svg).iter() if e.tag.endswith("}text") and e.text}


def test_every_section_has_a_plot_of_its_own() -> None:
    names = ["set 5", "set-5", "写真", "絵", "set", "set 5 m", "a" * 255]
    report = report_of(*(pictures_of(entry(40.0, 38.0, webp=WEBP)) | {"set": name} for name in names))
    found = plots(report)
    files = [file for file, _ in found.values()]
    assert len(files) == len(set(files)) == 2 * len(names)
    assert all(re.fullmatch(r"[a-z0-9_]{1,200}\.svg", file) for file in files)
    assert files[:4] == ["rate_set_5.svg", "rate_set_5_m.svg", "rate_set_5_2.svg", "rate_set_5_m_2.svg"]
    text = as_markdown(report, {k: file for k, (file, _) in found.items()})
    assert sorted(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)) == sorted(files)
    for name in names:
        for key in ("curves", "m"):
            assert any(name in drawn for drawn in drawn_texts(found[f"{name}/{key}"][1])), (name, key)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["dollar_$\\x$", "a$b", r"\$", "$$", "写真", "tab\tline\n", "\x1b[0m", "not text \udcff", "_", "^{"]
)
def test_a_set_may_have_any_name(name: str) -> None:
    found = plots(report_of(pictures_of(entry(40.0, 38.0, webp=WEBP) | {"model": f"m {name}"}) | {"set": name}))
    curves, gains = (drawn_texts(svg) for _, svg in found.values())
    shown = printable(name)
    assert f"{shown}, 1 picture: HR from an LR file, and the HR coded as it is" in curves
    assert f"m {shown}, PNG" in curves
    assert f"m {shown} on {shown}: each picture, and the mean; LR file as PNG" in gains


def run(*arguments: object) -> int:
    return main(["rate", *map(str, arguments), "--threads", "1", "--backend", "onnxruntime", "--codec", "jpeg420"])


def test_the_command_tells_bundles_of_one_title_apart(bundle: BundleOf, folder_of: FolderOf, tmp_path: Path) -> None:
    data, out = folder_of("$x\\y$", (24, 24)), tmp_path / "out"
    assert run(bundle("irn", 2), bundle("irn", 2), "--data", data, "--out", out) == 0
    assert sorted(p.name for p in out.glob("*.svg")) == [
        "rate_x_y.svg",
        "rate_x_y_irn_x2_custom.svg",
        "rate_x_y_irn_x2_custom_2.svg",
    ]
    text = (out / "rate.md").read_text()
    assert "### irn x2 custom on $x\\y$" in text
    assert "### irn x2 custom (2) on $x\\y$" in text


def test_figures_are_written_before_anything_is_drawn(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(report: object) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(rate_plots, "plots", fail)
    with pytest.raises(RuntimeError, match="out of ink"):
        run(bundle("irn", 2), "--data", folder_of("mine", (24, 24)), "--out", tmp_path / "out")
    assert '"format": "rescale-rate/1"' in (tmp_path / "out" / "rate.json").read_text()
