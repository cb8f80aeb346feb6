"""`rescale info` and `rescale verify` of several files and folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rescale
from rescale.cli import main
from rescale.errors import DamagedPictureError


@pytest.fixture
def many(here, picture, capsys):
    """lr/ with a.png, sub/b.webp with its side-car, a broken file, others; and photo.png, which is no LR."""
    os.makedirs("lr/sub")
    assert main(["down", "photo.png", "lr/a.png", *here]) == 0
    assert main(["down", "photo.png", "lr/sub/b.webp", "--carrier", "sidecar", *here]) == 0
    for name in ("notes.txt", ".hidden.png", "sub/photo.jpg"):
        open(f"lr/{name}", "wb").close()
    capsys.readouterr()

    def run(*args):
        code = main([str(a) for a in args])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_verify_tells_of_each_file_and_the_exit_code_is_the_worst(many, here):
    code, out, err = many("verify", "lr")
    assert (code, err) == (0, "")
    assert [line.split(": ")[:2] for line in out.splitlines()[:2]] == [["lr/a.png", "exact"], ["lr/sub/b.webp", "exact"]]
    assert out.splitlines()[2:] == ["2 exact, 0 not exact, 0 errors, 3 ignored"]
    code, out, err = many("verify", "photo.png", "lr/a.png", *here)
    assert (code, err.count("\n"), out.splitlines()[-1]) == (3, 1, "1 exact, 1 not exact, 0 errors, 0 ignored")
    assert err.startswith("error: photo.png: foreign: ")
    code, out, err = many("verify", "photo.png", "none.png", "lr/a.png")
    assert (code, out.splitlines()[-1]) == (1, "1 exact, 1 not exact, 1 errors, 0 ignored")
    assert "error: none.png: no such file" in err


def test_verify_in_json_is_a_line_for_each_file_and_the_counts(many):
    open("cut.png", "wb").close()
    code, out, err = many("verify", "cut.png", "none.png", "lr", "photo.png", "--json")
    *lines, counts = map(json.loads, out.splitlines())
    assert code == 1
    assert [(line["source"], line.get("state"), line.get("restorable")) for line in lines] == [
        ("cut.png", "damaged", False),
        ("none.png", None, None),
        ("lr/a.png", "exact", True),
        ("lr/sub/b.webp", "exact", True),
        ("photo.png", "foreign", False),
    ]
    assert lines[1] == {"source": "none.png", "status": "error", "error": "none.png: no such file"}
    assert err == "error: none.png: no such file\n"
    assert counts == {"exact": 2, "not_exact": 2, "errors": 1, "ignored": 3}


def test_verify_compares_all_files_with_one_bundle(many, bundle):
    code, out, _ = many("verify", "lr", "--json", "-b", bundle("irn_a", 2))
    assert (code, [json.loads(line).get("state") for line in out.splitlines()]) == (3, ["other-model", "other-model", None])


def test_info_of_several_files(many):
    code, out, err = many("info", "lr", "photo.png")
    blocks = out.split("\n\n")
    assert (code, err, [b.splitlines()[0] for b in blocks]) == (
        0,
        "",
        ["source: lr/a.png", "source: lr/sub/b.webp", "source: photo.png", "3 done, 0 errors, 3 ignored"],
    )
    code, out, err = many("info", "lr/a.png", "none.png", "--json")
    line, error, counts = map(json.loads, out.splitlines())
    assert (code, line["state"], error["status"], counts) == (1, "exact", "error", {"done": 1, "errors": 1, "ignored": 0})


def test_a_single_file_is_told_of_as_before(many):
    code, out, _ = many("verify", "lr/a.png")
    assert (code, out.count("\n"), out.startswith("lr/a.png: exact: undamaged; ")) == (0, 1, True)
    code, out, _ = many("info", "lr/a.png")
    assert (code, out.startswith("source: lr/a.png\nstate: exact\n"), "\n\n" in out) == (0, True, False)
    assert many("verify", "none.png", "--json")[1].count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("command", ["info", "verify"])
def test_standard_output_that_fails_is_no_fault_of_a_file(many, monkeypatch, command, options):
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    words = [sys.executable, "-m", "rescale", command, "lr/a.png", "lr/sub/b.webp", "lr", *options]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: output: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_is_no_picture_is_told_what_lr_files_are(many):
    Path("junk").write_text("junk")
    assert many("info", "junk") == (1, "", "error: junk: not a picture that can be read (.png .webp .jxl are)\n")
    with pytest.raises(DamagedPictureError, match=r"^LR picture: empty, "):
        rescale.Small.from_bytes(b"")


def test_a_folder_without_lr_files_is_an_error_and_no_success(many):
    os.mkdir("empty")
    for command in ("info", "verify"):
        assert many(command, "empty") == (1, "", "error: empty: no picture found; wanted are .png .webp .jxl\n")
        assert many(command)[0] == 2


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_what_cannot_be_read_in_a_folder_is_told(many):
    os.symlink("gone.png", "lr/link.png")
    code, out, err = many("verify", "lr", "--json")
    assert (code, json.loads(out.splitlines()[-1])) == (1, {"exact": 2, "not_exact": 0, "errors": 1, "ignored": 3})
    assert "lr/link.png: a link to gone.png, which cannot be opened" in err
    assert rescale.Small.open("lr/a.png").state == "exact"
