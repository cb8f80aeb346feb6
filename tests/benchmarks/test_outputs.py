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


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    (tmp_path / "broken").symlink_to(tmp_path / "none" / "x")
    check_files(tmp_path / "old", None, tmp_path / "new", tmp_path / "link", Path(os.devnull))
    assert {p.name: p.is_file() and p.read_text() for p in tmp_path.iterdir()} == {"old": "old", "link": "old", "broken": False}
    with pytest.raises(OutputError, match="broken: cannot write: No such file or directory"):
        check_files(tmp_path / "broken")
