"""What commands take for a source and a target, and what they find out before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import rescale
from rescale.cli import main
from rescale.rescaler import Rescaler


@pytest.fixture
def no_network(monkeypatch):
    for verb in ("downscale", "upscale"):
        monkeypatch.setattr(Rescaler, verb, lambda *a, **k: pytest.fail("the network ran"))


@pytest.mark.parametrize("command", [["down", "photo.png", "out/s.png"], ["down", "in", "out"], ["down", "in", "new"]])
def test_a_folder_that_takes_no_files_is_found_before_the_work(here, error_of, no_network, monkeypatch, picture, command):
    os.mkdir("out")
    os.mkdir("in")
    rescale.write_picture("in/p.png", picture(8, 8))
    closed = os.path.realpath("." if command[2] == "new" else "out")
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, *a, **k: os.path.realpath(p) != closed and access(p, *a, **k))
    code, err = error_of([*command, *here])
    assert code == 1
    assert f"error: {command[2]}: cannot write: the folder " in err


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_into_no_folder_is_told_before_the_work(here, error_of, no_network):
    Path("lost.png").symlink_to("no/such/new.png")
    folder = Path("no/such").resolve()
    wanted = f"error: lost.png: is a link into the folder {folder}, which does not exist; make it, or remove the link"
    assert error_of(["down", "photo.png", "lost.png", *here]) == (1, wanted)


def test_strip_takes_one_file_to_a_lossless_one(here, error_of):
    assert main(["down", "photo.png", "s.png", *here]) == 0
    for name in ("bare.jpg", "bare.jxl", "bare"):
        assert error_of(["strip", "s.png", name]) == (1, f"error: {name}: stripped pictures are .png or .webp; name it bare.png")
    assert sorted(os.listdir()) == ["photo.png", "s.png"]
    assert main(["strip", "s.png", "bare.png", "--no-overwrite"]) == 0
    code, err = error_of(["strip", "s.png", "bare.png", "--no-overwrite"])
    assert (code, "bare.png: exists, and --no-overwrite keeps it" in err) == (1, True)
    assert main(["strip", "s.png", "bare.png"]) == 0


def test_one_picture_goes_into_a_folder_under_its_own_name(here, capsys, error_of):
    os.mkdir("od")
    for options, name in ((), "photo.png"), (("--container", "webp"), "photo.webp"):
        assert main(["down", "photo.png", "od", *options, *here]) == 0
        assert rescale.Small.open(f"od/{name}").state == "exact"
        assert main(["up", f"od/{name}", ".", *here]) == 0
        assert rescale.read_picture("photo.png").shape == (21, 33, 3)
    assert main(["strip", "od/photo.webp", "."]) == 0
    capsys.readouterr()
    code, err = error_of(["down", "photo.png", "od", "--no-overwrite", *here])
    assert (code, "od/photo.png: exists, and --no-overwrite keeps it" in err) == (1, True)
    code, err = error_of(["down", "-", "od", *here])
    assert (code, "od: is a folder, and standard input has no name" in err) == (1, True)


def test_a_single_target_that_may_not_be_replaced_stays(here, error_of, no_network):
    Path("s.png").write_bytes(b"old")
    for command in (["down", "photo.png", "s.png"], ["up", "photo.png", "s.png", "--force"]):
        code, err = error_of([*command, "--no-overwrite", *here])
        assert (code, "s.png: exists, and --no-overwrite keeps it" in err) == (1, True)
    assert Path("s.png").read_bytes() == b"old"


@pytest.mark.parametrize("options", [["s.webp", "--container", "png"], ["s.png", "--container", "webp"]])
def test_a_container_against_the_name_of_the_file_is_refused(here, capsys, no_network, options):
    assert main(["down", "photo.png", *options, *here]) == 2
    assert f"{options[0]}: its name asks for {options[0][2:]}, and --container for {options[2]}" in capsys.readouterr().err
    assert not Path(options[0]).exists()


@pytest.mark.parametrize(
    "command",
    [["down", "", "s.png"], ["down", "photo.png", ""], ["up", "", "o.png"], ["info", ""], ["verify", ""], ["strip", "", "o.png"]],
)
def test_an_empty_argument_is_not_the_folder_one_stands_in(here, capsys, command):
    assert main([*command, *(here if command[0] in ("down", "up") else [])]) == 2
    assert "is empty; name a file or folder" in capsys.readouterr().err
    assert os.listdir() == ["photo.png"]


def test_a_slash_at_the_end_means_a_folder(here, error_of, no_network, picture):
    os.mkdir("in")
    Path("file").write_bytes(b"old")
    for command in (["down", "photo.png"], ["down", "-", "--raw", "8x8"], ["up", "photo.png"], ["strip", "photo.png"]):
        for target in ("new/", "new.png/", "file/"):
            where = here if command[0] != "strip" else []
            assert error_of([*command, target, *where]) == (1, f"error: {target}: no such folder")
    for command in ("info", "verify"):
        assert error_of([command, "photo.png/"]) == (1, "error: photo.png/: no such folder")
    assert sorted(os.listdir()) == ["file", "in", "photo.png"]
    assert Path("file").read_bytes() == b"old"


def test_folders_are_named_with_a_slash_or_without(here):
    os.mkdir("od")
    assert main(["down", "photo.png", "od/", *here]) == 0
    assert main(["up", "od/", "new/", *here]) == 0
    assert main(["strip", "od/photo.png", "new/"]) == 0
    assert main(["verify", "od/", "-b", f"{here[1]}/"]) == 0
    assert os.listdir("od") == os.listdir("new") == ["photo.png"]


@pytest.mark.skipif(os.name == "nt", reason="names of POSIX")
def test_a_file_whose_name_is_a_dash_is_no_stream(here):
    os.replace("photo.png", "-")
    assert main(["down", "./-", "s.png", *here]) == 0
    os.replace("s.png", "-")
    assert main(["strip", "./-", "bare.png"]) == 0
    assert main(["info", "./-"]) == 0


def test_a_file_that_cannot_be_read_is_one_line_and_no_wrong_usage(here, error_of, monkeypatch):
    """Root may read everything, so the system's answers are made up."""
    opened, access = Path.open, os.access

    def refuse(self, *args, **options):
        if self.name == "photo.png":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "access", lambda p, *a, **k: Path(p).name != "photo.png" and access(p, *a, **k))
    for command in (["down", "photo.png", "s.png", *here], ["up", "photo.png", "s.png", *here], ["info", "photo.png"]):
        assert error_of(command) == (1, "error: photo.png: cannot read: Permission denied")


def test_the_bundle_of_the_environment_counts_for_verify_and_doctor(here, capsys, monkeypatch, bundle):
    assert main(["down", "photo.png", "s.png", *here]) == 0
    monkeypatch.setenv("RESCALE_BUNDLE", here[1])
    assert main(["verify", "s.png"]) == 0
    monkeypatch.setenv("RESCALE_BUNDLE", str(bundle("irn_a", 2)))
    assert main(["verify", "s.png"]) == 3
    assert "s.png: other-model" in capsys.readouterr().err
    monkeypatch.setenv("RESCALE_BUNDLE", "none")
    assert main(["doctor"]) == 1
    assert "none: no bundle here" in capsys.readouterr().err


def test_a_reference_of_another_size_is_told_before_the_work(here, error_of, no_network, picture, capsys):
    rescale.write_picture("small.png", picture(10, 12))
    rescale.write_picture("other.png", picture(5, 4))
    code, err = error_of(["up", "small.png", "o.png", "--force", "--reference", "other.png", *here])
    assert code == 1
    assert "other.png: 4x5, the restored picture is not of that size but 24x20" in err
