"""Reports that nobody measured: damaged by accident, or written by somebody who means harm."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rescale.errors import ConfigError, InputError
from rescale_bench.cli import main
from rescale_bench.compare import Options, run
from rescale_bench.report_cli import REGRESSION, THRESHOLD, THRESHOLD_DB
from rescale_bench.speed_report import spread

Write = Callable[..., Path]
LIMITS = Options(THRESHOLD, THRESHOLD_DB)
DEEP = json.loads("[" * 900 + "]" * 900)


def speed_report(seconds: float = 1.0) -> dict[str, Any]:
    times = spread([seconds] * 3)
    row = {"name": "x", "directions": {"downscale": {"run": times, "whole": times, "peak_rss": 1 << 20}}, "failed": {}}
    case = {"model": "irn x2 lite", "resolution": [64, 48], "product": {"seconds": times}, "missing": {}, "competitors": [row]}
    sizes = {"downscale": {"sizes": [{"resolution": [64, 48], "run": times, "whole": times}]}}
    swept = [{"name": "x", "directions": sizes, "failed": {}}]
    sweep = {"model": "irn x2 lite", "resolutions": [[64, 48]], "missing": {}, "competitors": swept}
    head = {"machine": {"cpu": "a", "threads": 2}, "versions": {"rescale": "1"}, "definitions": {"peak": "bytes"}, "memory": None}
    return {**head, "cases": [case], "sweeps": [sweep]}


def quality_report() -> dict[str, Any]:
    mean = {"hr_psnr_y": 40.0, "bytes": 1000.0, "hr_ssim_y": 0.9}
    pictures = [{"name": "a", "size": [8, 8], "digest": "00"}, {"name": "b"}]
    row = {"model": "irn x2 lite", "set": "Set5", "border": 2, "mean": mean, "pictures": pictures}
    return {"definitions": {"bytes": "size"}, "results": [row]}


def parity_report() -> dict[str, Any]:
    graphs = {"hr": {"values": 100, "different": 1}}
    group = {"name": "golden", "limit_holds_for": "each", "psnr_lost": 0.0, "psnr_lost_mean": 0.0, "graphs": graphs}
    group |= {"cases": [{"width": 64, "height": 64, "name": "a", "digest": "00"}]}
    result = {"backend": "openvino", "precision": "mixed", "refused": None, "groups": [group]}
    missing = [{"backend": "tensorrt", "precision": "mixed", "reason": "no GPU"}]
    return {"definitions": {}, "bundles": [{"model": "irn x2 lite", "missing": missing, "results": [result]}]}


REPORTS = (speed_report, quality_report, parity_report)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(content: Any) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return make


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a report something stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(report: Any, place: tuple[Any, ...], value: Any) -> Any:
    at = found = json.loads(json.dumps(report))  # parts of it may be one object
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return found


def refused(write: Write, capsys: pytest.CaptureFixture[str], good: Any, bad: Any, message: str = "a damaged report: ") -> None:
    assert main(["compare", str(write(good)), str(write(bad))]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert message in found.err
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert len(found.err) < 500
    assert found.err[:-1].isprintable()


@pytest.mark.parametrize("value", [5, "\x1b[/x]", [], {}, None, -1e308, 10**400, DEEP], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("report", REPORTS)
def test_nothing_in_a_report_is_a_traceback(
    write: Write, capsys: pytest.CaptureFixture[str], report: Callable[[], dict[str, Any]], value: Any
) -> None:
    good = report()
    ours, bad = write(good), write("")
    for place in places(good)[1:]:
        bad.write_text(json.dumps(changed(good, place, value)))
        for pair in ((ours, bad), (bad, bad)):
            with contextlib.suppress(InputError):
                run(*pair, LIMITS, True, None, False)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bytes", 0),
        ("bytes", -5.0),
        ("bytes", "inf"),
        ("bytes", 1e300),
        ("hr_psnr_y", 10**400),
        ("hr_psnr_y", -1e308),
        ("hr_psnr_y", 1e308),
        ("hr_psnr_y", "-inf"),
        ("hr_psnr_y", "40"),
        ("hr_psnr_y", True),
        ("hr_ssim_y", 1.5),
    ],
    ids=lambda value: repr(value)[:9],
)
def test_quality_that_nobody_measured_is_refused(write: Write, capsys: pytest.CaptureFixture[str], name: str, value: Any) -> None:
    refused(write, capsys, quality_report(), changed(quality_report(), ("results", 0, "mean", name), value))


def test_numbers_beyond_the_range_of_floats_are_refused(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(quality_report())
    for number in ("1" + "0" * 400, "1e999", "-1e308"):
        refused(write, capsys, quality_report(), text.replace("40.0", number))


@pytest.mark.parametrize(
    ("report", "place", "value"),
    [
        (quality_report, ("results", 0, "model"), 5),
        (quality_report, ("results", 0, "set"), ["Set5"]),
        (quality_report, ("results", 0, "border"), -1),
        (quality_report, ("results", 0, "pictures", 0, "digest"), 0),
        (quality_report, ("results", 0, "pictures", 0, "size"), [8, 8, 8]),
        (quality_report, ("results", 0, "pictures", 1, "name"), "a"),
        (quality_report, ("definitions",), {"bytes": 5}),
        (speed_report, ("cases", 0, "model"), 5),
        (speed_report, ("cases", 0, "resolution"), [64.5, 48]),
        (speed_report, ("cases", 0, "missing"), {"y": {}}),
        (speed_report, ("cases", 0, "competitors", 0, "failed"), {"upscale": 5}),
        (speed_report, ("cases", 0, "competitors", 0, "directions", "downscale", "peak_rss"), 0),
        (speed_report, ("machine", "cpu"), ["a"]),
        (speed_report, ("sweeps", 0, "resolutions", 0), [0, 48]),
        (parity_report, ("bundles", 0, "model"), None),
        (parity_report, ("bundles", 0, "results", 0, "groups", 0, "psnr_lost"), 1e308),
        (parity_report, ("bundles", 0, "results", 0, "groups", 0, "cases", 0, "digest"), 0),
        (parity_report, ("bundles", 0, "results", 0, "groups", 0, "cases", 0, "name"), ["a"]),
        (parity_report, ("bundles", 0, "results", 0, "groups", 0, "graphs", "hr", "different"), 101),
    ],
)
def test_damage_is_told(
    write: Write, capsys: pytest.CaptureFixture[str], report: Callable[[], Any], place: tuple[Any, ...], value: Any
) -> None:
    refused(write, capsys, report(), changed(report(), place, value))


def test_damaged_times_are_refused(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    times = ("cases", 0, "competitors", 0, "directions", "downscale", "run")
    for change in ({"median": "1"}, {"median": 7.0}, {"times": []}, {"times": [0.0, 1.0, 1.0]}, {"times": [True, 1, 1]}):
        refused(write, capsys, speed_report(), changed(speed_report(), times, spread([1.0] * 3) | change))
    for seconds in (1e-300, 1e300):
        refused(write, capsys, speed_report(), changed(speed_report(), times, spread([seconds] * 3)))


def test_texts_are_shown_as_they_are(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "irn[/x] :smile: \x1b]0;owned\x07\x1b[2J"
    reports = []
    for seconds in (1.0, 2.0):
        report = speed_report(seconds)
        report["cases"][0] |= {"model": evil, "missing": {"y": evil}}
        report["machine"]["cpu"] = f"{evil} {seconds}"
        report["cases"][0]["competitors"].append({"name": f"z{evil}", "directions": {}, "failed": {"upscale": evil}})
        reports.append(report)
    gone = copy.deepcopy(reports[0]["cases"][0]["competitors"][0]) | {"name": "y"}
    reports[0]["cases"][0]["competitors"].append(gone)
    assert main(["compare", *(str(write(r)) for r in reports)]) == REGRESSION
    out = capsys.readouterr().out
    shown = "irn[/x] :smile: \\x1b]0;owned\\x07\\x1b[2J"
    assert f"cpu: {shown} 1.0 -> {shown} 2.0\n" in out
    assert f"only in A: {shown} 64x48 y: {shown}\n" in out
    assert any(line.split()[0:2] == ["irn[/x]", ":smile:"] and "regression" in line for line in out.splitlines())
    assert out.replace("\n", "").isprintable()


def test_json_is_ascii_whatever_the_locale(write: Write, tmp_path: Path) -> None:
    other = json.dumps(changed(speed_report(), ("machine", "cpu"), "hé")).replace('"rescale": "1"', '"rescale": "\\ud800"')
    out = tmp_path / "out"
    command = ["compare", str(write(speed_report())), str(write(other)), "--json", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from rescale_bench.cli import main; sys.exit(main())", *command],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=250,
        check=True,
    )
    found = json.loads(done.stdout.decode("ascii"))
    assert found["context"] == {"cpu": ["a", "hé"], "rescale": ["1", "\ud800"]}
    assert json.loads(out.read_bytes().decode("ascii")) == found


@pytest.mark.parametrize("option", ["--threshold", "--threshold-db"])
@pytest.mark.parametrize("limit", ["inf", "1e999"])
def test_limits_are_numbers(write: Write, capsys: pytest.CaptureFixture[str], option: str, limit: str) -> None:
    path = str(write(quality_report()))
    assert main(["compare", path, path, option, limit, "--json"]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == f"error: {option} {float(limit):g}: a finite number of 0 or more is wanted, such as 0.05\n"
    with pytest.raises(ConfigError, match="nan: a finite number"):
        run(Path(path), Path(path), Options(math.nan, 0.0), False, None, False)
