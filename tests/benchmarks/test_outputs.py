"""What cannot be written is told before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rescale.errors import OutputError
from rescale_bench.cli import main
from rescale_bench.outputs import check_files

COMMANDS = [
    ["psnr", "none", "--out"],
    ["psnr", "none", "--markdown"],
    ["speed", "none", "--out"],
    ["parity", "none", "--out"],
    ["survival", "none", "--out"],
    ["ladder", "none", "--out"],
    ["ladder", "none", "--plot"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c[0]} {c[2]}")
def test_it_is_told_before_the_bundle_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    for place, reason in ((tmp_path / "none" / "x", "No such file or directory"), (tmp_path, "Is a directory")):
        assert main([*command, str(place)]) == 1
        assert capsys.readouterr().err == f"error: {place}: cannot write: {reason}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["showcase", "none", "{}"], "{}: cannot write: Is a directory"),
        (["showcase", "none", "{}/x/y.png"], "{}/x/y.png: cannot write: No such file or directory"),
        (["showcase", "none", "{}/y.txt"], ".txt"),
        (["psnr", "none", "--out", "{}/x", "--markdown", "{}/./x"], "two outputs would be written to it"),
        (["ladder", "none", "--out", "{}/x", "--plot", "{}/x"], "two outputs would be written to it"),
    ],
)
def test_so_is_a_target_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], said: str) -> None:
    assert main([word.format(tmp_path) for word in command]) == 1
    err = capsys.readouterr().err
    assert said.format(tmp_path) in err
    assert "no bundle" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["rate.json", "rate.md"])
def test_a_folder_in_the_place_of_a_rate_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    (tmp_path / file).mkdir()
    assert main(["rate", "none", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith(f"error: {tmp_path / file}: cannot write: Is a directory\n")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["report", "--bundle", "none", "--model", "irn"], 1, "--bundle is the network that is measured"),
        (["speed", "none", "--sizes-sweep", "--resolution", "64x64"], 2, "--resolution is not for --sizes-sweep"),
        (["parity", "none", "--limit", "3"], 1, "--limit is for --data; leave it out"),
        (["parity", "none", "--graph", "upscale"], 1, "--graph is for Polygraphy's files; leave it out"),
        (["parity", "none", "--save-inputs", "i.json", "--json"], 1, "--json does nothing where Polygraphy's files are written"),
        (
            ["parity", "none", "--load-outputs", "o.json", "--backend", "half"],
            1,
            "--backend does nothing where Polygraphy's outputs",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == code
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    (tmp_path / "broken").symlink_to(tmp_path / "none" / "x")
    check_files(tmp_path / "old", None, tmp_path / "new", Path(os.devnull), Path(os.devnull))
    check_files(tmp_path / "link")
    assert {p.name: p.is_file() and p.read_text() for p in tmp_path.iterdir()} == {"old": "old", "link": "old", "broken": False}
    with pytest.raises(OutputError, match="broken: cannot write: No such file or directory"):
        check_files(tmp_path / "broken")
