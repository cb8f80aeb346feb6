"""What a rate run measures of gray pictures, and what it takes from a folder of an earlier run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale.cli import main as rescale_main
from rescale.errors import InputError
from rescale.picture import Picture
from rescale.quality import psnr, psnr_y
from rescale.rescaler import load
from rescale_bench import rate
from rescale_bench.cli import main
from rescale_bench.pictures import sample
from rescale_bench.rate import Tools, measure_picture
from rescale_bench.rate_codecs import LOSSLESS, LOSSY
from rescale_bench.rate_curve import Point
from rescale_bench.rate_kept import fitting, read_points, read_rescaled, read_size
from rescale_bench.rate_pictures import source_sets
from rescale_bench.store import Store
from rescale_export.probe import probe_picture

BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]
RESCALED: dict[str, Any] = {"files": {"png": 300, "webp": 200}, "psnr_y": 40.0, "psnr_rgb": "inf", "lr_size": [12, 13]}


def run(*arguments: object) -> int:
    return main(["rate", *map(str, arguments), "--threads", "1", "--backend", "onnxruntime", "--codec", "jpeg420"])


def test_a_gray_picture_is_measured_as_rescale_up_writes_it(
    bundle: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gray"
    folder.mkdir()
    Image.fromarray(sample("chelsea.png")[100:148, 100:164]).convert("L").save(folder / "a.png")
    path = bundle("irn_a", 2)
    assert run(path, "--data", folder, "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)["sets"][0]["pictures"][0]["rescaled"]

    lr, again = tmp_path / "lr.png", tmp_path / "again.png"
    options = ["--bundle", str(path), "--backend", "onnxruntime", "--threads", "1"]
    assert rescale_main(["down", str(folder / "a.png"), str(lr), *options]) == 0
    assert rescale_main(["up", str(lr), str(again), *options]) == 0
    written = rescale.open_picture(again)
    assert written.gray
    source = rescale.open_picture(folder / "a.png")
    assert entry["files"]["png"] == lr.stat().st_size
    assert entry["psnr_y"] == psnr_y(written.pixels, source.pixels)
    assert entry["psnr_rgb"] == psnr(written.pixels, source.pixels)


def test_gray_and_rgb_of_the_same_pixels_are_kept_apart(bundle: BundleOf, tmp_path: Path) -> None:
    pixels = np.repeat(probe_picture(32, 40)[:, :, :1], 3, 2)
    tools = Tools([], LOSSLESS[:2], ["png", "webp"], Store(tmp_path / "points"))
    with load(bundle("irn", 2), "onnxruntime", 1) as net:
        colour, gray = (measure_picture([net], "p", Picture(pixels, is_gray), tools) for is_gray in (False, True))
        again = [measure_picture([net], "p", Picture(pixels, is_gray), tools) for is_gray in (False, True)]
    assert colour["rescaled"][0]["psnr_rgb"] < gray["rescaled"][0]["psnr_rgb"]
    assert again == [colour, gray]
    kept = [json.loads(f.read_text()) for f in (tmp_path / "points").iterdir()]
    keys = [k["key"] for k in kept if k["key"]["what"] == "rescaled"]
    assert sorted(k.pop("gray", False) for k in keys) == [False, True], "the key of other pictures is what it was"
    assert keys[0] == keys[1]


def test_sources_are_opened_as_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(probe_picture(9, 8)).save(folder / "a.png")
    Image.fromarray(probe_picture(9, 8)).convert("L").save(folder / "below" / "b.png")
    (found,) = source_sets([folder])
    assert found.name == "mixed"
    assert [(name, load().gray, load().size) for name, load in found.pictures] == [
        ("a.png", False, (8, 9)),
        (str(Path("below", "b.png")), True, (8, 9)),
    ]
    (samples,) = source_sets([], 1)
    assert (samples.name, [name for name, _ in samples.pictures]) == ("scikit-image", ["astronaut.png"])
    assert samples.pictures[0][1]().size == (512, 512)


@pytest.mark.parametrize("found", [0, -3, 1.5, True, "12", None, [1], {"a": 1}])
def test_bytes_are_a_number_above_0(found: Any) -> None:
    assert read_size(12) == 12
    with pytest.raises(ValueError, match="for bytes, a whole number above 0 is wanted"):
        read_size(found)


@pytest.mark.parametrize(
    "found",
    [
        {"a": 1},
        "x",
        7,
        [7],
        [[1, 2]],
        [[0, -3, 40.0, 38.0]],
        [[0, 12, 1e9, 38.0]],
        [[0, 12, 40.0, -1.0]],
        [[0, 12, None, 38.0]],
        [[0, 12, "40", 38.0]],
        [[0, 12, math.nan, 38.0]],
        [[100, 12, 40.0, 38.0]],
        [[-1, 12, 40.0, 38.0]],
        [[True, 12, 40.0, 38.0]],
        [[0, 12, 40.0, 38.0], [0, 13, 41.0, 39.0]],
    ],
)
def test_points_that_no_codec_has_are_refused(found: Any) -> None:
    assert read_points([[0, 12, 40, 38.5], [99, 13, "inf", "inf"]], 100) == [
        Point(0, 12, 40.0, 38.5),
        Point(99, 13, math.inf, math.inf),
    ]
    with pytest.raises(ValueError, match=r"wanted|of a codec with 100 steps|two points"):
        read_points(found, 100)


@pytest.mark.parametrize(
    "found",
    [
        "x",
        [1],
        {"files": []},
        RESCALED | {"files": {"png": 300}},
        RESCALED | {"files": {"png": 300, "webp": 0}},
        RESCALED | {"files": {"png": 300, "webp": 200, "gif": 100}},
        RESCALED | {"psnr_y": 1e9},
        RESCALED | {"psnr_rgb": None},
        RESCALED | {"lr_size": [1, 1]},
        {k: v for k, v in RESCALED.items() if k != "psnr_y"},
    ],
)
def test_figures_that_no_lr_file_has_are_refused(found: Any) -> None:
    assert read_rescaled(RESCALED, ["png", "webp"], [12, 13]) == RESCALED | {"psnr_rgb": math.inf}
    with pytest.raises(ValueError, match=r"wanted|not the figures of an LR file"):
        read_rescaled(found, ["png", "webp"], [12, 13])


def test_webp_has_no_room_for_long_sides() -> None:
    assert fitting(["png", "webp", "jxl"], [16383, 1]) == ["png", "webp", "jxl"]
    assert fitting(["png", "webp", "jxl"], [1, 16384]) == ["png", "jxl"]
    long = RESCALED | {"files": {"png": 300}, "lr_size": [16384, 1]}
    assert read_rescaled(long, ["png", "webp"], [16384, 1])["files"] == {"png": 300}


def test_what_other_corrections_precisions_or_versions_measured_is_measured_again(
    corrected_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, tools = Picture(probe_picture(24, 32)), Tools([], LOSSLESS[:2], ["png", "webp"], Store(tmp_path / "points"))
    corrected, plain = corrected_pair

    def kept_after(path: Path, precision: str) -> int:
        with load(path, "onnxruntime", 1, precision=precision) as net:
            measure_picture([net], "p", picture, tools)
        return sum(json.loads(f.read_text())["key"]["what"] == "rescaled" for f in (tmp_path / "points").iterdir())

    assert [kept_after(p, precision) for p, precision in ((corrected, "fp32"), (corrected, "mixed"), (plain, "fp32"))] == [1, 2, 3]
    monkeypatch.setattr(rate, "__version__", "99.0")
    assert kept_after(plain, "fp32") == 4


@pytest.mark.parametrize("what", ["lossless", "rescaled", "curve", "residual"])
def test_damaged_measurements_end_with_the_name_of_the_file(bundle: BundleOf, tmp_path: Path, what: str) -> None:
    picture = Picture(probe_picture(32, 40))
    codecs = [c for c in LOSSY if c.name == "jpeg420"]
    tools = Tools(codecs, LOSSLESS[:2], ["png", "webp"], Store(tmp_path / "points"))
    with load(bundle("irn", 2), "onnxruntime", 1) as net:
        fresh = measure_picture([net], "p", picture, tools)
        kept = {f: json.loads(f.read_text()) for f in (tmp_path / "points").iterdir()}
        file = next(f for f, k in kept.items() if k["key"]["what"] == what)
        for value in ({"a": 1}, [[1, 2]], "x", -3, None, [[0, -3, 40.0, 38.0]], [[0, 3, 1e9, 38.0]]):
            file.write_text(json.dumps(kept[file] | {"value": value}))
            with pytest.raises(InputError, match="not a measurement that this command kept") as e:
                measure_picture([net], "p", picture, tools)
            assert str(file) in str(e.value), value
            assert str(e.value).endswith("; delete it")
        file.unlink()
        assert measure_picture([net], "p", picture, tools) == fresh


def test_the_command_says_which_measurement_is_damaged(
    bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (bundle("irn", 2), "--data", folder_of("mine", (24, 24)), "--out", tmp_path / "out")
    assert run(*command) == 0
    kept = {f: json.loads(f.read_text()) for f in (tmp_path / "out" / "points").iterdir()}
    file = next(f for f, k in kept.items() if k["key"]["what"] == "curve")
    file.write_text(json.dumps(kept[file] | {"value": [[0, -3, 1e9, 38.0]]}))
    capsys.readouterr()
    assert run(*command) == 1
    expected = (
        f"error: {file}: not a measurement that this command kept: -3 for bytes, a whole number above 0 is wanted; delete it\n"
    )
    assert capsys.readouterr().err.endswith(expected)
