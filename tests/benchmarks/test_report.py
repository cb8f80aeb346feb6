from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from rescale.bundle import Bundle
from rescale.rescaler import load
from rescale_bench import report
from rescale_bench.cli import main
from rescale_bench.compare import Options as Limits
from rescale_bench.compare import compare
from rescale_bench.compare_read import read
from rescale_bench.formats import FORMAT
from rescale_bench.parity import check
from rescale_bench.pictures import folder_set
from rescale_bench.report import FILES, Found, Options, measure
from rescale_bench.report_html import page
from rescale_bench.report_pictures import BLOCK, CROP, heat_map, panels, shares
from rescale_bench.report_plots import SERIES, VARIABLES
from rescale_bench.report_text import busy, findings, markdown, milliseconds, not_run, parts_check
from rescale_bench.speed_report import spread
from rescale_export.probe import probe_picture

BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]

VOID = {"meta", "img", "input", "br"}
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def found(full_bundle: BundleOf) -> Found:
    """A small network on the two pictures of a quick report, two sizes, peers included."""
    options = Options(
        bundle=full_bundle("irn_a", 2),
        backends=["onnxruntime"],
        resolutions=["64x48", "96x64"],
        minutes=0.01,
        quick=True,
        compiled=False,
        threads=1,
    )
    made = measure(options)
    made.report["machine"]["load_average"] = [0.0, 0.0, 0.0]  # whatever else runs beside the tests
    return made


class Outline(HTMLParser):
    """Tags in their order; raises where they are not nested."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    parsed.close()
    assert parsed.open == []
    return parsed


def test_the_page_asks_the_network_for_nothing(found: Found) -> None:
    text = page(found)
    parsed = outline(text)
    links = [
        v for _, a in parsed.seen for k, v in a.items() if k in ("src", "href", "xlink:href", "srcset", "action", "data") and v
    ]
    assert links
    assert all(v.startswith(("data:image/", "#")) for v in links)
    names = {v for _, a in parsed.seen for k, v in a.items() if k.startswith("xmlns")}
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= names
    assert not re.search(r"url\((?!#)|@import", text)
    (policy,) = (a["content"] for a in parsed.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not any(k.startswith("on") for _, a in parsed.seen for k in a)


def test_the_page_can_be_used_without_eyes_mouse_or_script(found: Found) -> None:
    parsed = outline(page(found))
    assert all("alt" in a for a in parsed.of("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in parsed.of("svg"))
    sliders = [a for a in parsed.of("input") if a["type"] == "range"]
    assert len(sliders) == len(found.pictures) == 2
    assert all(a["aria-label"] for a in sliders)
    assert all("hidden" in a for a in parsed.of("div") if a.get("class") == "viewer")
    assert all("open" in a for a in parsed.of("details")[:2])
    ids = [a["id"] for _, a in parsed.seen if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {(a["href"] or "")[1:] for a in parsed.of("a")}
    assert targets == {"quality", "speed", "latency", "parity", "bytes"} <= set(ids)
    crops = [a for a in parsed.of("img") if a.get("data-key")]
    for picture in found.pictures:
        mine = [a for a in crops if (a["alt"] or "").startswith(picture.name)]
        assert [a["data-key"] for a in mine] == ["source", "restored", "lr", "bicubic", "difference"]


def test_plots_take_the_pages_colours(found: Found) -> None:
    text = page(found)
    drawn = re.findall(r"<svg .*?</svg>", text, re.S)
    assert len(drawn) == 6 + (found.heat is not None)
    for svg in drawn:
        root = ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        assert not any(c in svg for c in VARIABLES)
        assert "var(--ink)" in svg
        assert root.findall(".//{*}text")
    assert "var(--s0)" in drawn[0]
    assert len(set(SERIES)) == len(SERIES)


def test_texts_from_elsewhere_are_escaped(found: Found) -> None:
    evil = copy.deepcopy(found.report)
    evil["bundle"]["model"] = evil["command"] = evil["machine"]["cpu"] = "<script>alert(1)</script>"
    for case in evil["speed"]["cases"]:
        case["model"] = "<b>x</b>"
        case["missing"] = {"x": "<i>why</i>"}
        for c in case["competitors"]:
            c["name"] = "<u>&amp; y"
    evil["findings"] = findings(evil)
    text = page(Found(evil, found.pictures, found.heat))
    outline(text)
    assert text.count("<script>") == 1
    assert not re.search(r"<(b|i)>\w", text.replace('<b class="', ""))
    assert "<u>" not in text


def test_the_three_files_say_the_same(found: Found) -> None:
    text, plain = page(found), markdown(found.report)
    for sentence in found.report["findings"].values():
        assert f"- {sentence}." in plain
        assert sentence.replace("'", "&#39;") in text
    assert plain.count("| ONNX Runtime fp32 | down |") == 2
    for line in not_run(found.report):
        assert f"- {line}" in plain
    columns = {line.count(" | ") for line in plain.split("### 64x48")[1].split("###")[0].splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_speed_has_every_part_and_peer(found: Found) -> None:
    small, large = found.report["speed"]["cases"]
    assert [small["resolution"], large["resolution"]] == [[64, 48], [96, 64]]
    assert [c["name"] for c in small["competitors"]] == ["onnxruntime fp32", "eager", "naive"]
    for c in small["competitors"]:
        for d in c["directions"].values():
            assert set(d) >= {"decode", "run", "encode", "whole", "compute", "first", "parts_of_whole"}
            assert 3 <= len(d["whole"]["times"]) <= 5
    said = parts_check(found.report["speed"]["cases"])
    assert "not to be trusted" not in said
    broken = copy.deepcopy(found.report["speed"]["cases"])
    broken[0]["competitors"][0]["directions"]["upscale"]["parts_of_whole"] = [0.93, 0.94, 1.0]
    assert "not to be trusted" in parts_check(broken)


def test_quality_has_crops_at_their_place(found: Found) -> None:
    (result,) = found.report["quality"]["results"]
    for row, shown in zip(result["pictures"], found.pictures, strict=True):
        assert row["name"] == shown.name
        assert row["source_png"] == shown.source_png > 1000
        left, top, width, height = shown.box
        assert left >= 0
        assert left + width <= shown.size[0]
        assert top >= 0
        assert top + height <= shown.size[1]
        assert left % 2 == top % 2 == 0
        sizes = {p.key: decoded(p.uri).shape for p in shown.panels}
        assert sizes.pop("lr") == (CROP // 2, CROP // 2, 3)
        assert set(sizes.values()) == {(CROP, CROP, 3)}


def test_the_crop_is_where_the_picture_is_worst(full_bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = probe_picture(400, 300, 0)
    with load(full_bundle("irn", 2), "onnxruntime", 1) as net:
        good = net.upscale

        def spoil(small: Any) -> Any:
            again = good(small)
            again[350:360, 10:20] ^= 255
            return again

        monkeypatch.setattr(net, "upscale", spoil)
        found = panels(net, "p", picture, {})
    left, top, width, height = found.box
    assert left <= 10
    assert left + width >= 20
    assert top <= 350
    assert top + height >= 360


@pytest.mark.parametrize("size", [(2, 2), (3, 500), (161, 159), (160, 160)])
def test_crops_of_small_pictures(bundle: BundleOf, size: tuple[int, int]) -> None:
    with load(bundle("irn", 2), "onnxruntime", 1) as net:
        found = panels(net, "p", probe_picture(*size, 0), {})
    left, top, width, height = found.box
    shape = decoded(found.panels[0].uri).shape
    assert shape == (height, width, 3)
    assert left + width <= size[1]
    assert top + height <= size[0]


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20).map(lambda s: (*s, 3))), st.data())
def test_shares_are_of_each_square(a: np.ndarray, data: st.DataObject) -> None:
    b = data.draw(hnp.arrays(np.uint8, a.shape))
    found = shares(a, b)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            here = np.s_[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            assert found[i, j] == pytest.approx((a[here] != b[here]).mean())


def test_the_heat_map_is_of_the_worst_picture(full_bundle: BundleOf, folder_of: FolderOf) -> None:
    bundle = Bundle(full_bundle("irn_a", 2))
    sets = [folder_set(folder_of("mine", (150, 170), (200, 130)))]
    checked = check(bundle, ["half"], ["fp16"], sets, max_loss=60.0, threads=1)
    found = heat_map(bundle, checked, sets, 1)
    assert found is not None
    cases = [c for g in checked.results[0].groups for c in g.parity.cases if c.height * c.width >= 128 * 128]
    worst = min(cases, key=lambda c: c.graphs["hr"].psnr)
    assert found.found.to_dict() == worst.graphs["hr"].to_dict()
    assert found.values.shape == (-(-worst.height // BLOCK), -(-worst.width // BLOCK))
    assert worst.worst is not None
    assert found.worst == worst.worst.to_dict()
    same = check(bundle, ["onnxruntime"], ["fp32"], [], threads=1)
    for group in same.results[0].groups:
        for case in group.parity.cases:
            case.worst = None
    assert heat_map(bundle, same, [], 1) is None


def competitor(name: str, times: list[float]) -> dict[str, Any]:
    part = spread(times)
    directions = {d: {"run": part, "whole": part} for d in ("downscale", "upscale")}
    trip = dict.fromkeys(("run", "whole"), 2 * part["median"])
    return {"name": name, "kind": "backend", "directions": directions, "round_trip": trip, "times_faster": {}}


def test_a_tie_is_called_one(found: Found) -> None:
    data = copy.deepcopy(found.report)
    case = data["speed"]["cases"][-1]
    case["competitors"] = [competitor("openvino fp32", [1.0, 1.1, 1.2]), competitor("onnxruntime fp32", [1.15, 1.3, 1.4])]
    assert "OpenVINO fp32 and ONNX Runtime fp32 are equally fast within their spread" in findings(data)["speed"]
    case["competitors"][1] = competitor("onnxruntime fp32", [1.21, 1.3, 1.4])
    assert "OpenVINO fp32 is fastest" in findings(data)["speed"]
    case["competitors"] = []
    assert "No backend" in findings(data)["speed"]


def test_a_report_without_a_run_that_went_well_can_be_written(found: Found) -> None:
    data = copy.deepcopy(found.report)
    for case in data["speed"]["cases"]:
        for c in case["competitors"]:
            c |= {
                "failed": dict.fromkeys(c["directions"], "too little memory"),
                "directions": {},
                "round_trip": None,
                "times_faster": {},
            }
    data["findings"] = findings(data)
    assert "Nothing was timed: every run failed." in markdown(data)
    text = page(replace(found, report=data))
    outline(text)
    assert "Nothing was timed: every run failed." in text
    assert "too little memory" in text


def test_a_refusal_is_the_headline(found: Found) -> None:
    data = copy.deepcopy(found.report)
    data["parity"]["bundles"][0]["results"][0] |= {"refused": "golden at 64x64: too bad", "advice": "use fp32"}
    assert findings(data)["parity"].startswith("The parity gate refuses ")
    assert any("too bad; use fp32" in line for line in not_run(data))


def test_times_for_people() -> None:
    assert [milliseconds(s) for s in (0.0012, 0.0834, 0.834, 9.99, 12.34)] == ["1.2 ms", "83.4 ms", "834 ms", "9990 ms", "12.3 s"]


def test_the_command(found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Options] = []

    def known(options: Options) -> Found:
        asked.append(options)
        return found

    monkeypatch.setattr(report, "measure", known)
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    assert asked[-1] == Options()
    told = capsys.readouterr().out.splitlines()
    assert told[:5] == list(found.report["findings"].values())
    assert [Path(line).name for line in told[5:]] == ["report.html", "report.md", "report.json"]
    folder = tmp_path / "rescale-report"
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    data = json.loads((folder / "report.json").read_text())
    assert data["format"] == FORMAT
    same = compare(read(folder / "report.json"), read(folder / "report.json"), Limits(0.05, 0.02))
    assert same["regressions"] == 0
    assert same["counts"]["same"] > 10
    options = ["--out", "x/y", "--backend", "onnxruntime", "--quick", "--minutes", "2", "--no-compile", "--json"]
    assert main(["report", *options]) == 0
    assert asked[-1] == Options(backends=["onnxruntime"], quick=True, minutes=2.0, compiled=False)
    assert json.loads(capsys.readouterr().out) == data
    broken = copy.deepcopy(found.report)
    broken["speed"]["cases"][0]["competitors"][0]["failed"] = {"upscale": "it died"}
    broken["speed"]["left_out"] = {"96x64": "too long"}
    broken["machine"] |= {"load_average": [3.0, 0.0, 0.0], "cpus": 4}
    broken["command"] = "rescale-bench --bundle \udcff"  # a name that is no text
    monkeypatch.setattr(report, "measure", lambda options: Found(broken, found.pictures, None))
    assert main(["report", "--out", "z"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "Left out: 96x64: too long" in told
    warning = busy(broken["machine"])
    assert warning.startswith("Other programs were at work when this began (load average 3.0, 4 CPUs): ")
    assert warning in told
    text = (tmp_path / "z" / "report.html").read_text()
    assert "Failed: ONNX Runtime fp32, upscale at 64x48: it died" in text
    assert "rescale-bench --bundle \\udcff" in text
    assert warning in text
    assert f"\n{warning}.\n" in (tmp_path / "z" / "report.md").read_text()
    assert busy({"load_average": None, "cpus": 4}) == busy({"load_average": [1.0, 9.0, 9.0], "cpus": 4}) == ""


def test_an_interruption_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_bundle: BundleOf) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "report.json").write_text("old")
    monkeypatch.setattr(report, "measure_speed", interrupt)
    assert main(["report", "--bundle", str(full_bundle("irn_a", 2)), "--out", str(tmp_path)]) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes 0: wanted is more than 0"),
        (["--minutes", "nan"], "--minutes nan: wanted is more than 0"),
        (["--model", "nonesuch"], "unknown model 'nonesuch'"),
        (["--model", "irn_m", "--scale", "4"], "no weights ship for irn_m x4 (shipped: irn x2 lite)"),
        (["--bundle", "nonesuch"], "nonesuch"),
    ],
)
@pytest.mark.usefixtures("only_irn_ships")
def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["report", "--out", str(tmp_path / "out"), *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "measure", lambda options: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    assert main(["report", "--out", str(tmp_path / "file")]) == 1
    assert "cannot write there" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_slider(found: Found, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(found))
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    parsed = outline(done.stdout)
    viewers = [a for a in parsed.of("div") if a.get("class") == "viewer"]
    assert len(viewers) == 2
    assert not any("hidden" in a for a in viewers)
    stages = [a for a in parsed.of("img") if a.get("class") == "over"]
    assert all((a["src"] or "").startswith("data:image/png") and "inset" in (a["style"] or "") for a in stages)
