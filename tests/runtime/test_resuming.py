"""A folder run again: what lies where a result belongs is skipped only if it is that result."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import rescale
from rescale.cli import main
from rescale.rescaler import Rescaler


@pytest.fixture
def again(here, bundle, picture, monkeypatch, capsys):
    """Runs `down` or `up` with its one target made before and then changed; gives exit code, status and error.

    No network may run, and the target stays as it is.
    """
    os.mkdir("in")
    rescale.write_picture("in/p.png", picture(12, 16))
    assert main(["down", "in", "lr", *here]) == 0
    assert main(["up", "lr", "hr", *here]) == 0
    capsys.readouterr()
    for verb in ("downscale", "upscale"):
        monkeypatch.setattr(Rescaler, verb, lambda *a, **k: pytest.fail("the network ran"))

    def run(folders, change, *options) -> tuple[int, str, str]:
        target = f"{folders[1]}/p.png"
        change(target)
        before = Path(target).read_bytes()
        code = main(["down" if folders[1] == "lr" else "up", *folders, *here, "--json", *options])
        line, summary = map(json.loads, capsys.readouterr().out.splitlines())
        assert Path(target).read_bytes() == before
        assert summary == {"done": 0, "skipped": int(code == 0), "errors": int(code == 1), "ignored": 0}
        return code, line["status"], line.get("error", "")

    return run


DOWN, UP = ("in", "lr"), ("lr", "hr")


def empty(path):
    open(path, "wb").close()


def cut(path):
    os.truncate(path, os.path.getsize(path) - 20)


def older(path):
    os.utime(path, (1, 1))


def unrelated(path):
    rescale.write_picture(path, rescale.read_picture("photo.png"))


@pytest.mark.parametrize("folders", [DOWN, UP])
def test_a_finished_target_is_skipped(again, folders):
    assert again(folders, lambda path: None) == (0, "skipped", "")


@pytest.mark.parametrize(
    ("folders", "change", "message"),
    [
        (DOWN, empty, "lr/p.png: empty; it lies where the LR of in/p.png belongs"),
        (DOWN, cut, "lr/p.png: truncated"),
        (DOWN, unrelated, "lr/p.png: no LR file, since it has no marker"),
        (DOWN, older, "lr/p.png: older than in/p.png, which may have changed since"),
        (UP, empty, "hr/p.png: empty; it lies where what lr/p.png becomes belongs"),
        (UP, cut, "hr/p.png: truncated"),
        (UP, unrelated, "hr/p.png: has 33x21 pixels, and lr/p.png becomes 16x12"),
        (UP, older, "hr/p.png: older than lr/p.png"),
    ],
)
def test_anything_else_is_an_error_that_says_what_it_is(again, folders, change, message):
    code, status, error = again(folders, change)
    assert (code, status) == (1, "error")
    assert error.startswith(message)
    assert error.endswith("remove it, or --overwrite makes all again")


def test_the_lr_of_another_bundle_is_an_error(again, bundle):
    def other(path):
        shutil.copy("other.png", path)

    with rescale.load(bundle("irn", 2)) as net:
        made = net.network.down(rescale.read_picture("in/p.png"))[0]
        small = rescale.Small.create(
            made[:, :, :3], None, None, model="irn", scale=2, weights=net.bundle.weights,
            source=rescale.open_picture("in/p.png"),
        )  # fmt: skip
        small.save("other.png")
    code, _, error = again(DOWN, other)
    assert code == 1
    assert error.startswith("lr/p.png: made by irn x2 with weights ")
    assert ", not by dlv_irn_a x2 custom with weights " in error


def test_a_marker_in_a_sidecar_counts_and_with_force_no_size_is_expected(again, here):
    def bare(path):
        small = rescale.Small.open(path)
        small.save(path, carrier="sidecar")

    assert again(DOWN, bare)[0] == 0
    assert again(UP, unrelated, "--force")[0] == 0
