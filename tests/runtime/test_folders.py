"""Folders as a source: the same tree elsewhere, resumable, never half-written, and none of its own pictures replaced."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import rescale
from rescale import batch
from rescale.cli import main
from rescale.errors import InputError, LrFileError
from rescale.files import machine_mark
from rescale.rescaler import Rescaler


def files(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def told(capsys):
    """Runs a command with --json, and gives its exit code, its lines and what standard error was told."""

    def run(args) -> tuple[int, list[dict], str]:
        code = main([*map(str, args), "--json"])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return run


def test_sources_of_one_target_fail_and_the_rest_is_made(here, tmp_path, told, picture):
    os.mkdir("in")
    for name in ("gray.png", "gray.jpg", "other.png"):
        Image.fromarray(picture(8, 8)).save(f"in/{name}")
    code, lines, err = told(["down", "in", "out", *here])
    assert (code, lines[-1]) == (1, {"done": 1, "skipped": 0, "errors": 2, "ignored": 0})
    assert err.count("would both become out/gray.png; rename all but one") == 2
    assert {line["error"].split(" would")[0] for line in lines[:2]} == {
        "in/gray.jpg and gray.png",
        "in/gray.png and gray.jpg",
    }
    assert files(tmp_path / "out") == ["other.png"]


def test_a_folder_below_that_cannot_be_read_costs_no_other(here, tmp_path, told, picture, monkeypatch):
    (tmp_path / "in" / "closed").mkdir(parents=True)
    rescale.write_picture("in/x.png", picture(8, 8))
    listed = os.scandir

    def refuse(path):
        if isinstance(path, str | os.PathLike) and os.path.basename(path) == refused:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = "closed"
    code, lines, err = told(["down", "in", "out", *here])
    assert (code, lines[-1]) == (1, {"done": 1, "skipped": 0, "errors": 1, "ignored": 0})
    assert "error: in/closed: cannot read: Permission denied; make it readable" in err
    refused = "in"
    code, _, err = told(["down", "in", "new", *here])
    assert (code, err.startswith("error: in: cannot read: Permission denied")) == (1, True)


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_what_is_hidden_or_no_picture_is_counted_and_a_link_to_nothing_is_an_error(here, tmp_path, told, picture):
    os.makedirs("in/.thumbs")
    for name in ("a.jfif", "b.jpe", ".c.png", ".thumbs/d.png", ".thumbs/e.png"):
        Image.fromarray(picture(8, 8)).save(tmp_path / "in" / name, "PNG" if name.endswith("png") else "JPEG")
    (tmp_path / "in" / "notes.txt").write_text("")
    os.symlink("gone.png", "in/link.png")
    code, lines, err = told(["down", "in", "out", *here, "--carrier", "sidecar"])
    assert (code, lines[-1]) == (1, {"done": 2, "skipped": 0, "errors": 1, "ignored": 3})
    assert "in/link.png: a link to gone.png, which cannot be opened: " in err
    assert files(tmp_path / "out") == ["a.png", "a.png.rescale", "b.png", "b.png.rescale"]
    assert told(["up", "out", "back", *here])[1][-1]["ignored"] == 0, "a side-car is read with its picture"


def test_an_error_without_a_name_gets_that_of_its_source(tmp_path):
    def make(job):
        raise LrFileError("the device went away", "damaged") if job.source.name == "a.png" else InputError(f"{job.source}: bad")

    jobs = [batch.Job(tmp_path / name, tmp_path / "out" / name) for name in ("a.png", "b.png")]
    errors = [error for _, error in batch.run(jobs, make, overwrite=False).errors]
    assert [str(e) for e in errors] == [f"{tmp_path / 'a.png'}: the device went away", f"{tmp_path / 'b.png'}: bad"]
    assert errors[0].exit_code == 3


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_folder_tells_of_what_it_finished(here, tmp_path, told, picture, monkeypatch):
    os.mkdir("in")
    for n in range(12):
        rescale.write_picture(f"in/{n:02}.png", picture(8, 8, seed=n))
    down, begun = Rescaler.downscale, []

    def third(*args, **options):
        begun.append(1)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return down(*args, **options)

    monkeypatch.setattr(Rescaler, "downscale", third)
    code, lines, err = told(["down", "in", "out", *here])
    *made, summary, last = lines
    assert (code, err) == (130, "error: interrupted\n")
    assert last == {"status": "error", "error": "interrupted", "exit_code": 130}
    assert sorted(line["target"] for line in made) == [f"out/{name}" for name in files(tmp_path / "out")]
    assert summary == {"done": len(made), "skipped": 0, "errors": 0, "ignored": 0, "left": 12 - len(made)}
    assert 3 <= len(made) < 12


def test_a_result_that_ctrl_c_kept_from_being_told_is_told_then(tmp_path):
    jobs = [batch.Job(tmp_path / f"{n}.png", tmp_path / "out" / f"{n}.png") for n in range(3)]
    told = []

    def report(job, what):
        if job is jobs[1] and len(told) == 1:
            told.append("interrupted")
            raise KeyboardInterrupt
        told.append((job.source.name, what))

    outcome = batch.run(jobs, lambda job: None, overwrite=False, report=report)
    assert told == [("0.png", "done"), "interrupted", ("1.png", "done")]
    assert (outcome.done, outcome.left, outcome.interrupted) == (2, 1, True)


def test_ctrl_c_ends_a_folder_cleanly(here, tmp_path, picture):
    os.mkdir("many")
    for i in range(40):
        rescale.write_picture(f"many/{i:02}.png", picture(300, 300, seed=i))
    process = subprocess.Popen(
        [sys.executable, "-m", "rescale", "down", "many", "out", *here], stderr=subprocess.PIPE, start_new_session=True
    )
    while len(list((tmp_path / "out").glob("*.png"))) < 3:
        time.sleep(0.02)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().strip() == "error: interrupted"
    made = list((tmp_path / "out").iterdir())
    assert 3 <= len(made) < 40
    assert all(rescale.Small.open(p).state == "exact" for p in made)


def test_sigkill_at_any_moment_then_again_gives_the_same_files(here, tmp_path, picture):
    os.makedirs("many/sub")
    for i in range(12):
        rescale.write_picture(f"many/{'sub/' if i % 2 else ''}{i:02}.png", picture(200, 260, seed=i))
    assert main(["down", "many", "want", *here]) == 0
    for wait in (0.5, 0.8, 1.1):
        process = subprocess.Popen([sys.executable, "-m", "rescale", "down", "many", "out", *here], stdout=subprocess.DEVNULL)
        time.sleep(wait)
        process.kill()
        process.wait()
    # What a kill between writing and renaming leaves, by a process that is gone.
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / f".rescale.{machine_mark()}-{process.pid}-0123abcd.tmp").write_bytes(b"half")
    assert main(["down", "many", "out", *here]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "want")
    for name in files(tmp_path / "want"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "want" / name).read_bytes()


def test_folders_keep_their_tree_skip_finished_and_collect_errors(here, tmp_path, capsys, picture):
    os.makedirs("in/a b/ü")
    rescale.write_picture("in/one.png", picture(9, 8))
    rescale.write_picture("in/a b/ü/two.png", picture(7, 7))
    Image.fromarray(picture(12, 12)).save("in/a b/three.jpg")
    (tmp_path / "in" / "broken.png").write_bytes(b"no")
    (tmp_path / "in" / "Thumbs.db").write_bytes(b"junk")
    assert main(["down", "in", "out", *here, "--json"]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert lines[-1] == {"done": 3, "skipped": 0, "errors": 1, "ignored": 1}
    assert captured.err.count("error: ") == 1
    assert "in/broken.png: not a picture" in captured.err
    assert files(tmp_path / "out") == ["a b/three.png", "a b/ü/two.png", "one.png"]
    stamp = (tmp_path / "out" / "one.png").stat().st_mtime_ns
    (tmp_path / "in" / "broken.png").unlink()
    assert main(["down", "in", "out", *here]) == 0
    assert capsys.readouterr().out.strip() == "0 done, 3 skipped, 0 errors, 1 ignored"
    assert (tmp_path / "out" / "one.png").stat().st_mtime_ns == stamp
    assert main(["down", "in", "out", *here, "--overwrite"]) == 0
    assert (tmp_path / "out" / "one.png").stat().st_mtime_ns != stamp
    assert main(["up", "out", "back", *here]) == 0
    assert rescale.read_picture("back/a b/ü/two.png").shape == (7, 7, 3)


def test_folder_mistakes_are_refused(here, error_of):
    os.mkdir("in")
    for args, message in (
        (["down", "in", "out"], "in: no picture found"),
        (["down", "in", "photo.png"], "a folder is wanted for the results"),
        (["down", "in", "-"], "a folder is wanted for the results"),
        (["down", "in", "in/out"], "lies inside the source folder"),
    ):
        code, err = error_of([*args, *here])
        assert code == 1
        assert message in err


@pytest.mark.parametrize("link", ["file", "folder", "source below the target", "side-car"])
def test_a_folder_never_replaces_its_own_sources(here, tmp_path, error_of, picture, link):
    source, target, options = tmp_path / "in", tmp_path / "out", ["--overwrite"]
    (source / "sub").mkdir(parents=True)
    (target / "sub").mkdir(parents=True)
    original = source / "sub" / "p.png"
    rescale.write_picture(original, picture(12, 16))
    before = original.read_bytes()
    match link:
        case "file":
            (target / "sub" / "p.png").symlink_to(original)
        case "folder":
            (target / "sub").rmdir()
            (target / "sub").symlink_to(source / "sub")
        case "side-car":
            (target / "sub" / "p.png.rescale").symlink_to(original)
            options += ["--carrier", "sidecar"]
        case _:
            target, original = tmp_path, source / "p.png"
            (source / "in").mkdir()
            rescale.write_picture(source / "in" / "p.png", picture(8, 8))
            rescale.write_picture(original, picture(12, 16, seed=1))
            before = original.read_bytes()
    code, err = error_of(["down", source, target, *options, *here])
    assert code == 1
    assert f"is the source {original} itself; choose another folder for the results" in err
    assert original.read_bytes() == before


@pytest.mark.parametrize("vouched", [False, True], ids=["damaged", "cannot be loaded"])
@pytest.mark.parametrize(("command", "graph"), [("down", "downscale"), ("up", "upscale")])
def test_a_bundle_that_cannot_run_is_no_fault_of_the_pictures(here, tmp_path, told, picture, command, graph, vouched):
    broken = tmp_path / "broken"
    shutil.copytree(here[1], broken)
    data = (broken / f"{graph}.onnx").read_bytes()[:-9]
    (broken / f"{graph}.onnx").write_bytes(data)
    if vouched:
        manifest = json.loads((broken / "manifest.json").read_text())
        manifest["graphs"][graph]["sha256"] = hashlib.sha256(data).hexdigest()
        (broken / "manifest.json").write_text(json.dumps(manifest))
    os.mkdir("photos")
    for i in range(5):
        rescale.write_picture(f"photos/{i}.png", picture(8, 8, seed=i))
    assert told(["down", "photos", "small", *here])[0] == 0
    options = ["--backend", "onnxruntime", "-b", broken]
    code, lines, err = told([command, "photos" if command == "down" else "small", "out", *options])
    assert (code, err.count("\n"), [line.get("status") for line in lines]) == (1, 1, ["error"])
    assert err.startswith(f"error: {broken}: {graph} cannot be loaded" if vouched else f"error: {broken}/{graph}.onnx: SHA-256 ")
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(("number", "reason"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")])
def test_a_full_disk_ends_the_run_and_says_what_is_left(here, capsys, monkeypatch, picture, number, reason):
    """Else a network would run for every picture of thousands, and none be kept."""
    os.mkdir("many")
    for i in range(20):
        rescale.write_picture(f"many/{i:02}.png", picture(8, 8, seed=i))
    replace, runs, moved = os.replace, [], []

    def full(source, target):
        moved.append(target)
        if len(moved) > 3:
            raise OSError(number, reason)
        replace(source, target)

    down = Rescaler.downscale
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Rescaler, "downscale", lambda *a, **k: runs.append(1) or down(*a, **k))
    assert main(["down", "many", "out", *here, "--json"]) == 1
    told = capsys.readouterr()
    summary = json.loads(told.out.splitlines()[-1])
    assert summary["done"] == 3
    assert summary["done"] + summary["errors"] + summary["left"] == 20
    assert len(runs) <= 6
    assert told.err.splitlines()[0].endswith(f".png: cannot write: {reason}")
    assert f"out: nothing can be written there; {summary['left']} pictures are left: make room and run this again" in told.err
    monkeypatch.setattr(os, "replace", replace)
    assert main(["down", "many", "out", *here]) == 0
    assert capsys.readouterr().out.strip() == "17 done, 3 skipped, 0 errors, 0 ignored"


def test_strip_leaves_nothing_in_a_folder_and_is_resumed(here, told, picture):
    os.makedirs("in/below")
    for name in ("a.png", "below/b.png"):
        rescale.write_picture(f"in/{name}", picture(21, 33))
    for layout, carrier in (("alpha", "chunk"), ("strip", "sidecar"), ("chunk", "text")):
        lr = f"lr-{layout}"
        assert told(["down", "in", lr, *here, "--layout", layout, "--carrier", carrier])[0] == 0
        out = f"bare-{layout}"
        code, lines, _ = told(["strip", lr, out])
        assert (code, lines[-1]) == (0, {"done": 2, "skipped": 0, "errors": 0, "ignored": 0})
        bare = os.path.getsize(f"{out}/a.png")
        facts = {"source": f"{lr}/a.png", "target": f"{out}/a.png", "lr_size": [17, 11], "bytes": bare, "status": "done"}
        assert lines[0] == facts
        for name in ("a.png", "below/b.png"):
            left = rescale.Small.open(f"{out}/{name}")
            assert (left.state, left.block) == ("foreign", None)
            assert (left.rgb == rescale.Small.open(f"{lr}/{name}").rgb).all()
        assert told(["strip", lr, out])[1][-1] == {"done": 0, "skipped": 2, "errors": 0, "ignored": 0}


def test_strip_takes_nothing_that_can_be_restored_for_its_result(here, told, picture):
    os.mkdir("in")
    for name in ("alpha", "beside", "larger", "marked", "older", "torn"):
        rescale.write_picture(f"in/{name}.png", picture(8, 8))
    assert told(["down", "in", "lr", *here])[0] == 0
    assert told(["strip", "lr", "bare"])[0] == 0
    Image.open("bare/alpha.png").convert("RGBA").save("bare/alpha.png")
    with open("bare/beside.png.rescale", "wb") as f:
        f.write(b"x")
    rescale.write_picture("bare/larger.png", picture(8, 8))
    rescale.Small.open("lr/marked.png").save("bare/marked.png", layout="chunk")
    os.utime("bare/older.png", (0, 0))
    with open("bare/torn.png", "wb") as f:
        f.write(b"x")
    code, lines, _ = told(["strip", "lr", "bare"])
    assert (code, lines[-1]) == (1, {"done": 0, "skipped": 0, "errors": 6, "ignored": 0})
    cure = "remove it, or --overwrite makes all again"
    assert [line["error"] for line in lines[:-1]] == [
        f"bare/alpha.png: carries auxiliary data or an alpha channel: {cure}",
        "bare/beside.png.rescale: a side-car lies there and would make beside.png restorable; remove it",
        f"bare/larger.png: has 8x8 pixels, and lr/larger.png becomes 4x4: {cure}",
        f"bare/marked.png: carries auxiliary data or an alpha channel: {cure}",
        f"bare/older.png: older than lr/older.png, which may have changed since: {cure}",
        f"bare/torn.png: not a PNG file; it lies where what is left of lr/torn.png belongs: {cure}",
    ]
    code, lines, _ = told(["strip", "lr", "bare", "--overwrite"])
    assert (code, lines[-1]) == (1, {"done": 5, "skipped": 0, "errors": 1, "ignored": 0})
    os.remove("bare/beside.png.rescale")
    assert told(["strip", "lr", "bare"])[1][-1] == {"done": 0, "skipped": 6, "errors": 0, "ignored": 0}


def test_strip_of_a_folder_says_what_it_cannot_judge(here, told, picture):
    os.mkdir("in")
    rescale.write_picture("in/a.png", picture(8, 8))
    assert told(["down", "in", "lr", *here])[0] == 0
    rescale.write_picture("lr/foreign.png", picture(8, 8))
    code, lines, err = told(["strip", "lr", "bare"])
    assert (code, lines[-1]) == (3, {"done": 1, "skipped": 0, "errors": 1, "ignored": 0})
    assert "lr/foreign.png" in err
    assert "what of it is auxiliary data cannot be told" in err
    assert files(Path("bare")) == ["a.png"]
