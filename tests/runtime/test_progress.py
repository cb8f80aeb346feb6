"""What a command shows of its progress on one picture, and where."""

from __future__ import annotations

import io
import time
from contextlib import contextmanager, redirect_stderr

import numpy as np
import pytest

import rescale
from rescale import console
from rescale.cli import main


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 30
        while text not in self.getvalue():
            assert time.monotonic() < end, self.getvalue()
            time.sleep(0.01)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_long_work_shows_what_it_does_and_for_how_long(terminal, monkeypatch):
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    with redirect_stderr(terminal), console.work_bar("down\x1bscaling") as tell:
        terminal.wait_for("down\\x1bscaling")
        terminal.wait_for("0:00:0")
        tell(0, 1)
        tell(0, 4)
        tell(3, 4)
    assert "\x1bscaling" not in terminal.getvalue()


def test_short_work_shows_nothing(terminal):
    with redirect_stderr(terminal), console.work_bar("downscaling") as tell:
        tell(1, 2)
    assert terminal.getvalue() == ""


def test_the_bar_goes_away_with_an_error(terminal, monkeypatch):
    monkeypatch.setattr(console, "PATIENCE", 0.0)

    def work():
        with redirect_stderr(terminal), console.work_bar("downscaling"):
            terminal.wait_for("downscaling")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    shown = terminal.getvalue()
    time.sleep(0.3)
    assert terminal.getvalue() == shown


@pytest.fixture
def told(monkeypatch):
    """What commands say of one picture: (what, done, count)."""
    rows = []

    @contextmanager
    def bar(what):
        yield lambda done, count: rows.append((what, done, count))

    monkeypatch.setattr("rescale.cli.work_bar", bar)
    return rows


def test_each_tile_of_one_picture_is_told(bundle, picture, tmp_path, told):
    path = ["-b", str(bundle("dlv_irn_a", 2)), "--tile", "8", "--threads", "1"]
    (tmp_path / "in").mkdir()
    rescale.write_picture(tmp_path / "in" / "p.png", picture(21, 33))
    source, small = str(tmp_path / "in" / "p.png"), str(tmp_path / "s.png")
    assert main(["down", source, small, *path]) == 0
    assert told == [("downscaling", i, 6) for i in range(7)]  # 17 x 11 LR pixels
    told.clear()
    assert main(["up", small, str(tmp_path / "a.png"), *path]) == 0
    assert told == [("restoring", i, 6) for i in range(7)]
    told.clear()
    assert main(["down", str(tmp_path / "in"), str(tmp_path / "out"), *path]) == 0
    assert not told


def test_each_step_of_refining_is_told(refinable, picture, tmp_path, told):
    source = tmp_path / "p.png"
    rescale.write_picture(source, picture(16, 16))
    path = str(refinable("irn", 2))
    assert main(["down", str(source), str(tmp_path / "s.png"), "-b", path, "--refine", "3", "--threads", "1"]) == 0
    assert told == [("downscaling", i, 3) for i in range(4)]


def test_tiles_are_told_in_python(bundle):
    image = np.zeros((40, 40, 3), np.uint8)
    with rescale.load(bundle("irn", 2), tile=(10, 20)) as net:
        rows = []
        net.network.tile_done = lambda done, count: rows.append((done, count))
        small = net.downscale(image)
        net.upscale(small)
    assert rows == [(0, 2), (1, 2), (2, 2)] * 2
