"""A report keeps to its minutes: sizes that nobody named and that would take longer are left out, and it says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rescale_bench import report
from rescale_bench.report import Options, measure_speed
from rescale_bench.report_text import not_run
from rescale_bench.speed_report import spread

HD = "3 runs of each would take about 6 minutes; --resolution 1920x1080 takes them"


def competitor(kind: str, seconds: float) -> dict[str, Any]:
    times = {"whole": spread([seconds] * 3)}
    return {"kind": kind, "directions": {"downscale": times, "upscale": times}}


@pytest.mark.parametrize(
    ("seconds", "options", "sizes", "left_out"),
    [
        # A warm-up and 3 runs both ways are 32 times one way at 640x360 for 1280x720, and 72 times for 1920x1080.
        (3.0, {}, ["640x360", "1280x720", "1920x1080"], {}),
        (5.0, {}, ["640x360", "1280x720"], {"1920x1080": HD}),
        (5.0, {"minutes": 7.0}, ["640x360", "1280x720", "1920x1080"], {}),
        (500.0, {"quick": True}, ["640x360"], {}),
        (500.0, {"resolutions": ["1280x720", "1920x1080"]}, ["1280x720", "1920x1080"], {}),
    ],
)
def test_sizes_that_would_take_too_long_are_left_out(
    monkeypatch: pytest.MonkeyPatch, seconds: float, options: dict[str, Any], sizes: list[str], left_out: dict[str, str]
) -> None:
    def timed(asked: Any) -> dict[str, Any]:
        (resolution,) = asked.resolutions
        width, height = map(int, resolution.split("x"))
        # torch.compile is at the first size only: what it takes there is nothing that others would wait for.
        ran = [competitor("backend", seconds * width * height / (640 * 360)), competitor("compiled", 9999.0)]
        return {"cases": [{"resolution": [width, height], "competitors": ran}], "sweeps": []}

    monkeypatch.setattr(report.speed, "measure", timed)
    bundle: Any = SimpleNamespace(path=Path("b"), precisions={"fp32": {}})
    found = measure_speed(bundle, Options(**options))
    assert ["{}x{}".format(*case["resolution"]) for case in found["cases"]] == sizes
    assert found["left_out"] == left_out


def test_what_was_left_out_is_told() -> None:
    data = {"speed": {"left_out": {"1920x1080": HD}, "cases": []}, "parity": {"bundles": []}}
    assert not_run(data) == [f"Left out: 1920x1080: {HD}"]
