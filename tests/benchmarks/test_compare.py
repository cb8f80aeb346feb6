from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale.errors import InputError
from rescale_bench.cli import main
from rescale_bench.compare import Options, compare
from rescale_bench.compare_read import read
from rescale_bench.formats import FORMAT
from rescale_bench.report_cli import REGRESSION, THRESHOLD, THRESHOLD_DB
from rescale_bench.speed_report import spread

Write = Callable[..., Path]
LIMITS = Options(THRESHOLD, THRESHOLD_DB)
DEFINITIONS = {"hr_psnr_y": "Y-PSNR", "bytes": "size"}


def direction(times: list[float]) -> dict[str, Any]:
    return {"run": spread(times), "whole": spread([2 * t for t in times]), "peak_rss": 1 << 20}


def speed_report(times: dict[str, list[float]], on: tuple[int, int] = (64, 48), **changes: Any) -> dict[str, Any]:
    rows = [{"name": n, "directions": {"downscale": direction(t)}, "failed": {}} for n, t in times.items()]
    case = {
        "model": "irn x2 lite",
        "resolution": list(on),
        "product": {"seconds": spread([1.0])},
        "missing": {},
        "competitors": rows,
    }
    return {"machine": {"cpu": "a", "threads": 2}, "versions": {"rescale": "1"}, "cases": [case | changes], "sweeps": []}


def psnr_report(psnr: float | str | None, size: float = 1000.0, pictures: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    mean = {"hr_psnr_y": psnr, "bytes": size, "hr_ssim_y": 0.9}
    row = {"model": "irn x2 lite", "set": "Set5", "border": 2, "mean": mean, "pictures": [{"name": n} for n in pictures]}
    return {"definitions": dict(DEFINITIONS), "results": [row]}


def parity_report(lost: float, refused: str | None = None, average: bool = False) -> dict[str, Any]:
    graphs = {"hr": {"values": 100, "different": 1, "largest": 1, "psnr": 60.0}}
    group = {"name": "golden", "limit_holds_for": "mean" if average else "each", "psnr_lost": lost, "psnr_lost_mean": lost / 2}
    group |= {"graphs": graphs, "cases": [{"width": 64, "height": 64}]}
    result = {"backend": "openvino", "precision": "mixed", "refused": refused, "groups": [group]}
    return {"definitions": {}, "bundles": [{"model": "irn x2 lite", "missing": [], "results": [result]}]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(content: Any, name: str | None = None) -> Path:
        path = tmp_path / (name or f"{len(list(tmp_path.iterdir()))}.json")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return make


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {row["key"][-1]: row["verdict"] for row in found["figures"]}


def judged(write: Write, a: Any, b: Any, options: Options = LIMITS) -> dict[str, Any]:
    return compare(read(write(a)), read(write(b)), options)


@given(st.lists(st.floats(1e-4, 1e3), min_size=3, max_size=30), st.lists(st.floats(1e-4, 1e3), min_size=3, max_size=30))
def test_overlapping_runs_are_the_same_and_regressions_are_not_mutual(
    tmp_path_factory: pytest.TempPathFactory, a: list[float], b: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("compare")
    for name, times in (("a", a), ("b", b)):
        (folder / name).write_text(json.dumps(speed_report({"x fp32": times})))

    def run_row(first: str, second: str) -> dict[str, Any]:
        found = compare(read(folder / first), read(folder / second), LIMITS)
        return next(r for r in found["figures"] if r["key"][-1] == "run")

    there, back = run_row("a", "b"), run_row("b", "a")
    assert there["ratio"] * back["ratio"] == pytest.approx(1.0)
    assert there["low"] * back["high"] == pytest.approx(1.0)
    assert (there["verdict"] == "same") == (back["verdict"] == "same")
    if max(a) < min(b):
        assert there["verdict"] in ("regression", "worse")
        assert back["verdict"] == "better"
    if len(a) < 20 and len(b) < 20 and min(b) <= max(a) and min(a) <= max(b):
        assert there["verdict"] == "same"
    assert run_row("a", "a")["verdict"] == "same"


@pytest.mark.parametrize(
    ("b", "verdict"),
    [
        ([0.9, 1.2, 1.3], "same"),  # a fifth slower at the median, and yet within the spread
        ([1.11, 1.12, 1.13], "regression"),
        ([0.7, 0.75, 0.8], "better"),
        ([1.5, 1.6], "unjudged"),
    ],
)
def test_a_regression_is_beyond_the_spread(write: Write, b: list[float], verdict: str) -> None:
    found = judged(write, speed_report({"x fp32": [0.95, 1.0, 1.1], "y": [1, 1, 1]}), speed_report({"x fp32": b, "y": [1, 1, 1]}))
    rows = {tuple(r["key"][2:]): r["verdict"] for r in found["figures"]}
    assert rows["x fp32", "downscale", "run"] == verdict
    assert found["regressions"] == (2 if verdict == "regression" else 0)
    assert rows["x fp32", "downscale", "peak memory"] == rows["", "matrix product"] == "unjudged"


def test_a_small_loss_beyond_the_spread_is_worse_and_no_regression(write: Write) -> None:
    a, b = speed_report({"x": [1.0, 1.001, 1.002]}), speed_report({"x": [1.02, 1.021, 1.022]})
    assert verdicts(judged(write, a, b))["run"] == "worse"
    assert verdicts(judged(write, a, b, Options(0.01, 0.02)))["run"] == "regression"


def test_one_run_that_was_held_up_hides_nothing_among_many(write: Write) -> None:
    a, b = speed_report({"x": [1.0] * 39 + [9.0]}), speed_report({"x": [1.3] * 40})
    assert verdicts(judged(write, a, b))["run"] == "regression"


@pytest.mark.parametrize(
    ("a", "b", "name", "verdict"),
    [
        (psnr_report(40.0), psnr_report(39.97), "hr_psnr_y", "regression"),
        (psnr_report(40.0), psnr_report(39.99), "hr_psnr_y", "worse"),
        (psnr_report(40.0), psnr_report(41.0), "hr_psnr_y", "better"),
        (psnr_report(40.0), psnr_report(40.0), "hr_psnr_y", "same"),
        (psnr_report(40.0, 1000), psnr_report(40.0, 1051), "bytes", "regression"),
        (psnr_report(40.0, 1000), psnr_report(40.0, 1049), "bytes", "worse"),
        (psnr_report(40.0), psnr_report(40.0), "hr_ssim_y", "unjudged"),
        (parity_report(0.001), parity_report(0.03), "dB lost", "regression"),
        (parity_report(0.001, average=True), parity_report(0.03, average=True), "dB lost", "worse"),
    ],
)
def test_figures_that_are_the_same_in_every_run(write: Write, a: Any, b: Any, name: str, verdict: str) -> None:
    assert verdicts(judged(write, a, b))[name] == verdict


def test_what_fails_in_b_alone_is_a_regression(write: Write) -> None:
    a, b = (speed_report({"x": [1, 1, 1], "y": [1, 1, 1]}) for _ in range(2))
    b["cases"][0]["competitors"][1] |= {"directions": {}, "failed": {"downscale": "it died"}}
    found = judged(write, a, b)
    assert found["broken"] == [{"key": ["irn x2 lite", "64x48", "y", "downscale"], "reason": "it died"}]
    assert found["regressions"] == 1
    assert judged(write, b, b)["regressions"] == judged(write, b, a)["regressions"] == 0
    refused = judged(write, parity_report(0.01), parity_report(0.01, "golden at 64x64: lost"))
    assert refused["regressions"] == 1


def test_what_fails_in_the_sweep_of_b_alone_is_a_regression(write: Write) -> None:
    def swept(**failed: str) -> dict[str, Any]:
        sizes = [{"resolution": size, **direction([1, 1, 1])} for size in ([64, 48], [128, 96])]
        there = {d: {"sizes": sizes[:1] if d in failed else sizes} for d in ("downscale", "upscale")}
        row = {"name": "x", "directions": there, "failed": failed}
        sweep = {"model": "irn x2 lite", "resolutions": [[64, 48], [128, 96]], "missing": {}, "competitors": [row]}
        return speed_report({}) | {"sweeps": [sweep]}

    a, b = swept(), swept(upscale="short of memory")
    found = judged(write, a, b)
    assert found["broken"] == [{"key": ["irn x2 lite", "sweep 128x96", "x", "upscale"], "reason": "short of memory"}]
    assert found["regressions"] == 1
    assert judged(write, b, b)["regressions"] == judged(write, b, a)["regressions"] == 0
    del b["sweeps"][0]["competitors"][0]["directions"]["upscale"]
    assert [e["key"][1] for e in judged(write, a, b)["broken"]] == ["sweep 64x48", "sweep 128x96"]


def test_what_is_in_one_file_only_is_told_and_no_regression(write: Write) -> None:
    a = speed_report({"x": [1, 1, 1], "y": [1, 1, 1]})
    b = speed_report({"x": [1, 1, 1]}, missing={"y": "not installed"})
    found = judged(write, a, b)
    assert found["only_a"] == [{"key": ["irn x2 lite", "64x48", "y"], "reason": "not installed"}]
    assert found["only_b"] == []
    assert found["regressions"] == 0


def test_an_infinite_psnr_is_compared(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    infinite, finite = psnr_report("inf"), psnr_report(20.0)
    assert verdicts(judged(write, infinite, infinite))["hr_psnr_y"] == "same"
    assert verdicts(judged(write, infinite, finite))["hr_psnr_y"] == "regression"
    assert verdicts(judged(write, finite, infinite))["hr_psnr_y"] == "better"
    assert main(["compare", str(write(infinite)), str(write(finite)), "--json"]) == REGRESSION
    row = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))["figures"][0]
    assert (row["a"], row["b"], row["ratio"], row["low"], row["high"]) == ("inf", 20.0, "-inf", "-inf", "-inf")
    assert main(["compare", str(write(infinite)), str(write(finite))]) == REGRESSION
    assert re.search(r"inf dB +20.000 dB +-inf dB +regression", capsys.readouterr().out)


@pytest.mark.parametrize("how", ["null", "missing"])
def test_a_judged_figure_that_b_lacks_is_a_regression(write: Write, capsys: pytest.CaptureFixture[str], how: str) -> None:
    whole, part = psnr_report(40.0), psnr_report(None)
    if how == "missing":
        del part["results"][0]["mean"]["hr_psnr_y"]
    key = ["irn x2 lite", "Set5", "", "hr_psnr_y"]
    found = judged(write, whole, part)
    assert found["lost"] == [{"key": key, "reason": None}]
    assert (found["regressions"], found["only_a"]) == (1, [])
    back = judged(write, part, whole)
    assert (back["lost"], back["regressions"], back["only_a"]) == ([], 0, [])
    assert back["only_b"] == [{"key": key, "reason": None}]
    assert main(["compare", str(write(whole)), str(write(part))]) == REGRESSION
    assert "regression: irn x2 lite Set5 hr_psnr_y is not in B\n" in capsys.readouterr().out
    assert main(["compare", str(write(part)), str(write(whole))]) == 0
    assert "only in B: irn x2 lite Set5 hr_psnr_y\n" in capsys.readouterr().out


def test_all_judged_figures_may_be_lost(write: Write) -> None:
    part = psnr_report(None)
    part["results"][0]["mean"] = {}
    found = judged(write, psnr_report(40.0), part)
    assert [e["key"][-1] for e in found["lost"]] == ["hr_psnr_y", "bytes"]
    assert [e["key"][-1] for e in found["only_a"]] == ["hr_ssim_y"]  # shown and not judged
    lost = parity_report(0.01)
    lost["bundles"][0]["results"][0]["groups"][0]["psnr_lost"] = None
    assert [e["key"][-1] for e in judged(write, parity_report(0.01), lost)["lost"]] == ["dB lost"]


def test_times_that_b_lacks_are_regressions_unless_a_failure_says_so(write: Write) -> None:
    a, b = (speed_report({"x": [1, 1, 1], "y": [1, 1, 1]}) for _ in range(2))
    a["cases"][0]["competitors"][0]["directions"]["downscale"]["compute"] = spread([1.0] * 3)
    b["cases"][0]["competitors"][1]["directions"] = {}
    b["cases"][0]["missing"] = {"y": "no compiler"}
    found = judged(write, a, b)
    lost = [("x", "compute", None), ("y", "run", "no compiler"), ("y", "whole", "no compiler")]
    assert [(e["key"][2], e["key"][-1], e["reason"]) for e in found["lost"]] == lost
    assert [tuple(e["key"][2:]) for e in found["only_a"]] == [("y", "downscale", "peak memory")]
    assert found["regressions"] == 3
    b["cases"][0]["competitors"][1]["failed"] = {"downscale": "it died"}
    found = judged(write, a, b)
    assert [e["key"][2] for e in found["lost"]] == ["x"]
    assert [e["key"][2] for e in found["broken"]] == ["y"]
    assert found["only_a"] == []
    assert {"key": ["irn x2 lite", "64x48", "y", "downscale"], "reason": "it died"} in judged(write, b, a)["only_b"]


def test_a_set_of_one_file_only_is_told(write: Write) -> None:
    a, b = psnr_report(40.0), psnr_report(40.0)
    a["results"].append(copy.deepcopy(a["results"][0]) | {"set": "Set14"})
    found = judged(write, a, b)
    assert found["only_a"] == [{"key": ["irn x2 lite", "Set14", ""], "reason": None}]
    assert found["regressions"] == 0


def test_two_competitors_of_one_file(write: Write) -> None:
    path = write(speed_report({"x fp32": [1, 1, 1], "y fp32": [2, 2, 2]}))
    found = compare(read(path), read(path), Options(0.05, 0.02, "x fp32", "y fp32"))
    assert {r["ratio"] for r in found["figures"] if r["key"][-1] == "run"} == {2.0}
    assert compare(read(path), read(path), Options(0.05, 0.02, "y fp32", "x fp32"))["regressions"] == 0


def test_another_competitor_need_not_have_all_parts(write: Write) -> None:
    a = speed_report({"x": [1, 1, 1], "y": [1, 1, 1]}, missing={"x": "never"})
    a["cases"][0]["competitors"][0]["directions"]["downscale"]["compute"] = spread([1.0] * 3)
    found = judged(write, a, a, Options(0.05, 0.02, "x", "y"))
    assert (found["regressions"], found["lost"]) == (0, [])
    assert found["only_a"] == [{"key": ["irn x2 lite", "64x48", "x", "downscale", "compute"], "reason": None}]
    b = copy.deepcopy(a)
    del b["cases"][0]["competitors"][0]["directions"]["downscale"]["compute"]
    assert judged(write, a, b, Options(0.05, 0.02, "x", "x"))["regressions"] == 1


def test_a_report_is_compared_with_its_parts(write: Write) -> None:
    whole = {"format": FORMAT, "speed": speed_report({"x": [1, 1, 1]}), "quality": psnr_report(40), "parity": parity_report(0.0)}
    for part in (speed_report({"x": [2, 2, 2]}), psnr_report(39), parity_report(1.0)):
        assert judged(write, whole, part)["regressions"] >= 1
    assert set(verdicts(judged(write, whole, whole))) >= {"run", "hr_psnr_y", "dB lost"}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (speed_report({"x": [1, 1, 1]}), psnr_report(40), "holds speed and .* quality: nothing to compare"),
        (speed_report({"x": [1, 1, 1]}), speed_report({"x": [1, 1, 1]}, (65, 48)), "share no sizes or sets: 64x48 against 65x48"),
        (speed_report({"x": [1, 1, 1]}), speed_report({"y": [1, 1, 1]}), "share no competitors: x against y; --name-a"),
        (
            speed_report({"x": [1, 1, 1]}),
            speed_report({"x": [1, 1, 1]}, model="irn x4 lite"),
            "no models: irn x2 lite against irn x4 lite",
        ),
        (speed_report({"x": [1]}), speed_report({"x": [1]}), "too few runs"),
        (psnr_report(40), psnr_report(40, pictures=("a", "c")), "Set5: other pictures"),
        (speed_report({"x": [1, 1, 1]}), "text", "not JSON"),
        (speed_report({"x": [1, 1, 1]}), '{"cases": NaN}', "NaN is not JSON"),
        (speed_report({"x": [1, 1, 1]}), [], "a table is wanted, this is a list"),
        (speed_report({"x": [1, 1, 1]}), {"a": 1}, "neither a report nor"),
        (speed_report({"x": [1, 1, 1]}), {"format": "rescale-report/2"}, "reads rescale-report/1; compare it with the version"),
        (speed_report({"x": [1, 1, 1]}), {"format": "zip"}, "another program"),
        (speed_report({"x": [1, 1, 1]}), {"format": "rescale-rate/1"}, "a file of rescale-bench rate, which is not compared"),
        (speed_report({"x": [1, 1, 1]}), {"cases": [{}], "sweeps": []}, "a damaged report: lacks 'resolution'"),
        (speed_report({"x": [1, 1, 1]}), {"cases": 3, "sweeps": []}, "a damaged report"),
    ],
)
def test_what_cannot_be_compared_is_refused(write: Write, capsys: pytest.CaptureFixture[str], a: Any, b: Any, message: str) -> None:
    assert main(["compare", str(write(a)), str(write(b))]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert re.search(message, found.err)


def test_quality_defined_otherwise_is_left_out(write: Write) -> None:
    other = psnr_report(30)
    other["definitions"]["hr_psnr_y"] = "of RGB"
    found = judged(write, psnr_report(40), other)
    assert "hr_psnr_y" not in verdicts(found)
    assert found["not_compared"] == [{"key": ["", "", "", "hr_psnr_y"], "reason": "defined otherwise"}]


def test_speed_and_parity_defined_otherwise_are_left_out(write: Write) -> None:
    a = speed_report({"x": [1, 1, 1]}) | {"definitions": {"decode, run, encode": "seconds", "x eager": "ratio", "peak": "bytes"}}
    b = speed_report({"x": [9, 9, 9]}) | {"definitions": {"decode, run, encode": "milliseconds", "x eager": "other", "p95": "new"}}
    found = judged(write, a, b)
    assert found["not_compared"] == [{"key": ["", "", "", "run"], "reason": "defined otherwise"}]
    assert set(verdicts(found)) == {"whole", "peak memory", "matrix product"}
    with pytest.raises(InputError, match="run: defined otherwise"):
        judged(write, a | {"definitions": {"order": "in turn", "run": "1"}}, b | {"definitions": {"order": "at once", "run": "2"}})
    lost = [parity_report(0.01) | {"definitions": {"lost": text}} for text in ("dB", "dB of Y")]
    with pytest.raises(InputError, match="dB lost: defined otherwise"):
        judged(write, *lost)
    whole = [{"format": FORMAT, "speed": part, "quality": psnr_report(40)} for part in (a, b)]
    assert judged(write, *whole)["not_compared"] == found["not_compared"]


def test_other_pictures_of_the_same_names_are_refused(write: Write) -> None:
    def of(**marks: Any) -> dict[str, Any]:
        report = psnr_report(40.0)
        report["results"][0]["pictures"] = [{"name": "a", **marks}, {"name": "b", "size": [8, 8], "digest": "00"}]
        return report

    mine = of(size=[64, 48], digest="0a")
    for other in (of(size=[64, 48], digest="0b"), of(size=[48, 64], digest="0a")):
        with pytest.raises(InputError, match="Set5: other pictures under the same names, such as a"):
            judged(write, mine, other)
    for same in (mine, of(), psnr_report(40.0)):  # of an older version: names are all that it tells
        assert judged(write, mine, same)["counts"]["same"] == judged(write, same, mine)["counts"]["same"] == 2


def test_other_pictures_behind_a_parity_are_refused(write: Write) -> None:
    def of(**case: Any) -> dict[str, Any]:
        report = parity_report(0.01)
        report["bundles"][0]["results"][0]["groups"][0] |= {"name": "mine", "cases": [{"width": 64, "height": 48, **case}]}
        return report

    mine = of(name="a.png", digest="0a")
    for other, message in (
        (of(name="b.png", digest="0b"), "other pictures"),
        (of(name="a.png", digest="0a", width=48, height=64), "other pictures"),
        (of(name="a.png", digest="0b"), "other pictures under the same names, such as a.png"),
    ):
        with pytest.raises(InputError, match=f"parity, mine openvino mixed: {message}"):
            judged(write, mine, other)
    for same in (mine, of(name="a.png")):  # of an older version: names and sizes are all that it tells
        assert judged(write, mine, same)["counts"]["same"] == judged(write, same, mine)["counts"]["same"] == 1


def test_two_results_of_the_same_are_refused(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    twice = psnr_report(40)
    twice["results"] *= 2
    assert main(["compare", str(write(twice)), str(write(psnr_report(40)))]) == 1
    assert "holds irn x2 lite Set5 hr_psnr_y twice" in capsys.readouterr().err


def test_the_command(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(speed_report({"x": [1, 1, 1], "y": [1, 1, 1]})), write(speed_report({"x": [2, 2, 2], "y": [1, 1, 1]}))
    out = tmp_path / "out.json"
    assert REGRESSION not in (0, 1, 2, 3, 130)
    assert main(["compare", str(a), str(b), "--json", "--out", str(out)]) == REGRESSION
    text = capsys.readouterr().out
    assert json.loads(text) == json.loads(out.read_text())
    assert json.loads(text)["counts"] == {"same": 2, "better": 0, "worse": 0, "regression": 2, "unjudged": 3}
    assert main(["compare", str(b), str(a)]) == 0
    text = capsys.readouterr().out
    assert "0.500" in text
    assert "better" in text
    assert " y " not in text
    assert main(["compare", str(a), str(b), "--all", "--threshold", "1.5"]) == 0
    assert " y " in capsys.readouterr().out
    assert main(["compare", str(a), str(b), "--name-a", "x"]) == 1
    assert "--name-a and --name-b belong together" in capsys.readouterr().err
    assert main(["compare", str(a), str(b), "--name-a", "x", "--name-b", "z"]) == 1
    assert "no competitor 'z' (there is x, y)" in capsys.readouterr().err
    assert main(["compare", str(a), str(tmp_path / "none.json")]) == 1
    assert "none.json: cannot read: No such file" in capsys.readouterr().err
