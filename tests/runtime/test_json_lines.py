"""With --json standard output is lines of JSON: results, and what ended a command; none goes to the bar of a terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

import rescale
from rescale.cli import main


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["down", "none.png", "s.png", "BUNDLE"], 1, "none.png: no such file"),
        (["up", "photo.png", "o.png", "BUNDLE"], 3, "photo.png: it carries no marker of this toolkit"),
        (["info", "none.png"], 1, "none.png: no such file"),
        (["verify", "none.png"], 1, "none.png: no such file"),
        (["doctor", "-b", "none"], 1, "none: no bundle here"),
        (["down", "empty", "out", "BUNDLE"], 1, "empty: no picture found"),
        (["down", "photo.png", "s.png", "BUNDLE", "--threads", "many"], 2, "Invalid value for '--threads'"),
        (["down", "photo.png", "s.png", "BUNDLE", "--fly"], 2, "No such option"),
    ],
)
def test_what_ends_a_command_is_a_line_of_json_and_of_text(here, capsys, command, code, message):
    os.mkdir("empty")
    args = [a for word in command for a in (here if word == "BUNDLE" else [word])]
    assert main([*args, "--json"]) == code
    told = capsys.readouterr()
    assert told.out.count("\n") == 1
    line = json.loads(told.out)
    assert (line["status"], line["exit_code"], sorted(line)) == ("error", code, ["error", "exit_code", "status"])
    assert line["error"].startswith(message)
    assert message in told.err
    assert main(args) == code
    assert capsys.readouterr().out == ""


def test_where_standard_output_is_a_picture_the_line_goes_beside_it(here, capsys):
    assert main(["down", "none.png", "-", *here, "--json"]) == 1
    assert main(["down", "photo.png", "-", *here, "--least", "99", "--json"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert [json.loads(line)["status"] for line in told.err.splitlines() if line[0] == "{"] == ["error", "error"]


def test_each_result_is_one_line(here, capsys):
    assert main(["down", "photo.png", "s.png", *here]) == 0
    capsys.readouterr()
    for command in (["info", "s.png"], ["verify", "s.png"], ["verify", "photo.png"]):
        main([*command, "--json"])
        told = capsys.readouterr()
        assert told.out.count("\n") == 1
        assert json.loads(told.out)["source"] == command[1]
        assert told.err == ""


def test_lines_of_a_folder_reach_a_file_though_there_is_a_bar(here, capsys, monkeypatch, picture):
    """The bar takes what is printed to its terminal, for it to stay whole."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    os.mkdir("in")
    for n in range(3):
        rescale.write_picture(f"in/{n}.png", picture(8, 8, seed=n))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Terminal())
        assert main(["down", "in", "out", *here, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("source") for line in lines] == ["in/0.png", "in/1.png", "in/2.png", None]


def test_an_error_onto_a_full_disk_is_told_on_standard_error(here):
    if not os.path.exists("/dev/full"):
        pytest.skip("no disk that is always full")
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "rescale", "info", "none.png", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"error: none.png: no such file\n")
