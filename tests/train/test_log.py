"""The log of a run, and its picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rescale_train.log import read_log, trim_log
from rescale_train.plot import loss_plot


def test_a_log_line_cut_short_is_ignored_and_later_ones_are_trimmed(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "to')
    assert read_log(log) == [{"step": 1}, {"step": 2}, {"step": 3}]
    trim_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert read_log(tmp_path / "gone.jsonl") == []
    trim_log(tmp_path / "gone.jsonl", 2)
    assert not (tmp_path / "gone.jsonl").exists()


@pytest.mark.parametrize("rest", [b"\0\0\0\n", b"\xff\xfe\n", b"[1]\n", b'{"total": 1.0}\n', b"3\n"])
def test_what_is_no_record_ends_no_run(tmp_path: Path, rest: bytes) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n' + rest)
    assert read_log(log) == [{"step": 1}]
    trim_log(log, 2)
    assert log.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "records", [[], [{"step": 1, "total": 2.0, "hr": 1.0, "z": 0.0}, {"step": 1, "hr_psnr_y": 30.0, "lr_psnr_y": 40.0}]]
)
def test_the_plot_takes_any_log(tmp_path: Path, records: list[dict[str, float]]) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    loss_plot(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_takes_an_infinite_figure_as_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[list[float]] = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **kw: drawn.append(list(y)) or plot(self, x, y, **kw))
    records = [{"step": s, "hr_psnr_y": v, "lr_psnr_y": v} for s, v in ((1, "inf"), (2, 40.0))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    loss_plot(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert drawn == [[math.inf, 40.0]] * 2
