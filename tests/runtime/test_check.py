"""`rescale down --check`: what each picture comes back as, told when it is made; and `--least`, which refuses the rest."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import rescale
from rescale.cli import main


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_figures_are_those_of_up_with_the_source_as_reference(here, capsys):
    assert main(["down", "photo.png", "s.png", *here, "--check", "--json"]) == 0
    [made] = lines(capsys)
    assert main(["up", "s.png", "again.png", *here, "--reference", "photo.png", "--json"]) == 0
    [restored] = lines(capsys)
    assert made["psnr_y"] > 0
    assert [made[k] for k in ("psnr_y", "psnr_rgb", "border")] == [restored[k] for k in ("psnr_y", "psnr_rgb", "border")]
    assert main(["down", "photo.png", "s.png", *here, "--check"]) == 0
    assert f"restored at Y-PSNR {made['psnr_y']:.2f} dB (BT.601, 2 px cropped), RGB-PSNR" in capsys.readouterr().out
    assert main(["down", "photo.png", "plain.png", *here, "--json"]) == 0
    assert "psnr_y" not in lines(capsys)[0]


@pytest.mark.parametrize("target", ["s.png", "-"])
def test_below_the_least_nothing_is_written(here, capsys, tmp_path, target):
    assert main(["down", "photo.png", target, *here, "--least", "99"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: photo.png: would be restored at Y-PSNR " in told.err
    assert " dB, below --least 99, so nothing was written; keep the picture" in told.err
    assert "RGB-PSNR" in told.err
    assert os.listdir(tmp_path) == ["photo.png"]
    assert main(["down", "photo.png", "s.png", *here, "--least", "1", "--carrier", "sidecar"]) == 0
    assert "restored at Y-PSNR" in capsys.readouterr().out


def test_a_folder_is_checked_picture_by_picture(here, capsys, picture):
    os.mkdir("in")
    rescale.write_picture("in/a.png", np.zeros((16, 16, 3), np.uint8))
    rescale.write_picture("in/b.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    assert main(["down", "in", "out", *here, "--check", "--json"]) == 0
    flat, noise, _ = lines(capsys)
    assert flat["psnr_y"] > noise["psnr_y"]
    assert main(["down", "in", "out", *here, "--check", "--overwrite"]) == 0
    assert [row.split(": ")[0] for row in capsys.readouterr().out.splitlines()[:2]] == ["out/a.png", "out/b.png"]
    between = str((flat["psnr_y"] + noise["psnr_y"]) / 2)
    assert main(["down", "in", "new", *here, "--least", between, "--json"]) == 1
    _, bad, summary = lines(capsys)
    assert (bad["status"], summary["done"], summary["errors"]) == ("error", 1, 1)
    assert os.listdir("new") == ["a.png"]
