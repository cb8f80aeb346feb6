"""What a command and the Python interface tell of their progress on one picture, and where."""

from __future__ import annotations

import io
import itertools
import threading
import time
from contextlib import contextmanager, redirect_stderr

import numpy as np
import pytest

import rescale
from rescale import console
from rescale.cli import main
from rescale.errors import OutOfMemoryError


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
        tell(0, 1, "downscaling")
        tell(0, 4, "re\x1bfining")
        tell(3, 4, "re\x1bfining")
        terminal.wait_for("re\\x1bfining")
    assert "\x1bscaling" not in terminal.getvalue()
    assert "\x1bfining" not in terminal.getvalue()


def test_short_work_shows_nothing(terminal):
    with redirect_stderr(terminal), console.work_bar("downscaling") as tell:
        tell(1, 2, "downscaling")
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


class Rows(list):
    """What a progress callback was told, without what was only told again while a part ran."""

    def __call__(self, done: int, count: int, stage: str) -> None:
        if self[-1:] != [(stage, done, count)]:
            self.append((stage, done, count))


@pytest.fixture
def told(monkeypatch):
    """What commands say of one picture: (stage, done, count)."""
    rows = Rows()

    @contextmanager
    def bar(what):
        yield rows

    monkeypatch.setattr("rescale.cli_files.work_bar", bar)
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
    assert told == [("downscaling", 0, 1), ("downscaling", 1, 1), *(("refining", i, 4) for i in range(5))]
    told.clear()
    assert main(["down", str(source), str(tmp_path / "s.png"), "-b", path, "--check", "--threads", "1"]) == 0
    assert told == [(what, i, 1) for what in ("downscaling", "checking") for i in range(2)]


def test_tiles_are_told_in_python_in_the_thread_that_asked(bundle):
    image = np.zeros((40, 40, 3), np.uint8)
    with rescale.load(bundle("irn", 2), tile=(10, 20)) as net:
        rows, threads = Rows(), set()

        def tell(*args):
            threads.add(threading.current_thread())
            rows(*args)

        small = net.downscale(image, progress=tell)
        net.upscale(small, progress=tell)
        net.restore(small, progress=tell)
    parts = [(0, 2), (1, 2), (2, 2)]
    assert rows == [(stage, *part) for stage in ("downscaling", "restoring", "restoring") for part in parts]
    assert threads == {threading.current_thread()}


def test_refining_tells_of_all_its_tiles(refinable, picture):
    with rescale.load(refinable("dlv_irn_m", 2), tile=(8, 16), threads=1) as net:
        rows = Rows()
        net.downscale(picture(32, 32), 2, rows)
    stages = {stage: [row[1:] for row in found] for stage, found in itertools.groupby(rows, key=lambda row: row[0])}
    assert stages == {"downscaling": [(i, 2) for i in range(3)], "refining": [(i, 6) for i in range(7)]}


def test_what_finds_no_memory_is_told_again_from_the_start(bundle, picture, monkeypatch):
    with rescale.load(bundle("irn", 2), "onnxruntime", memory=1 << 30) as net:
        run, rows = net.runner._run, Rows()

        def scarce(graph, inputs, options):
            if inputs["hr"].shape[1] * inputs["hr"].shape[2] == 600 * 600:
                raise OutOfMemoryError("no memory")
            return run(graph, inputs, options)

        monkeypatch.setattr(net.runner, "_run", scarce)
        monkeypatch.setattr("rescale.network.choose_tile", lambda *args: None if args[-1] == 1 << 30 else (150, 300))
        net.downscale(picture(600, 600), progress=rows)
    assert rows == [("downscaling", *part) for part in ((0, 1), (0, 2), (1, 2), (2, 2))]
