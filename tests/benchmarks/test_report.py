"""`rescale-bench report`: what it says in words and tables, and the command."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rescale
from rescale import Rescaler
from rescale.bundle import Bundle
from rescale_bench import report
from rescale_bench.cli import main
from rescale_bench.compare import Options as Limits
from rescale_bench.compare import compare
from rescale_bench.compare_read import read
from rescale_bench.formats import FORMAT
from rescale_bench.report import FILES, Found, Options
from rescale_bench.report_html import page
from rescale_bench.report_text import busy, findings, markdown, milliseconds, not_run, parts_check
from rescale_bench.speed_report import spread

BundleOf = Callable[[str, int], Path]


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
        (["--resolution", "64x48", "--resolution", "large"], "--resolution large: wanted is WIDTHxHEIGHT"),
        (["--model", "nonesuch"], "unknown model 'nonesuch'"),
        (["--model", "irn_m", "--scale", "4"], "no weights ship for irn_m x4 (shipped: irn x2 lite)"),
        (["--bundle", "nonesuch"], "nonesuch"),
    ],
)
@pytest.mark.usefixtures("only_irn_ships")
def test_wrong_options_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(report, "measure_speed", lambda *_: pytest.fail("measured"))
    assert main(["report", "--out", str(tmp_path / "out"), *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["report", "speed"])
def test_a_budget_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--memory", "plenty"]) == 2
    assert "memory 'plenty': a size is wanted, such as 2GB or 512MB" in " ".join(capsys.readouterr().err.split())


def test_the_budget_is_that_of_the_quality_too(bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int | None] = []

    def load(*arguments: Any, memory: int | None, **others: Any) -> Rescaler:
        budgets.append(memory)
        return rescale.load(*arguments, memory=memory, **others)

    monkeypatch.setattr(report, "load", load)
    options = Options(quick=True, memory=96 << 20, backends=("onnxruntime",))
    found, _ = report.measure_quality(Bundle(bundle("irn", 2)), options)
    assert budgets == [96 << 20]
    assert len(found["results"][0]["pictures"]) == 2


def test_a_folder_that_cannot_be_written_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "measure", lambda options: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    assert main(["report", "--out", str(tmp_path / "file")]) == 1
    assert "cannot make this folder" in capsys.readouterr().err
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    assert main(["report", "--out", str(tmp_path / "out")]) == 1
    assert f"{tmp_path / 'out' / 'report.html'}: cannot write: Is a directory" in capsys.readouterr().err
