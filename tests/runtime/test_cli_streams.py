"""Outputs that are no plain files, streams that are closed, signals, names that cannot be printed, and options that say nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import rescale
from rescale import batch
from rescale.cli import main
from rescale.errors import RescaleError
from rescale.files import ABANDONED, atomic_write, machine_mark

posix = pytest.mark.skipif(os.name == "nt", reason="pipes, links and signals of POSIX")


def told(capsys, args) -> tuple[int, str]:
    code = main([str(a) for a in args])
    return code, capsys.readouterr().err.strip()


def spawn(args, **kwargs):
    return subprocess.Popen([sys.executable, "-m", "rescale", *args], stdin=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


@posix
def test_a_pipe_is_written_to_and_stays_a_pipe(here):
    os.mkfifo("pipe.png")
    process = spawn(["down", "photo.png", "pipe.png", *here])
    with open("pipe.png", "rb") as f:
        data = f.read()
    assert process.wait(60) == 0
    assert rescale.Small.from_bytes(data).state == "exact"
    assert os.path.exists("pipe.png")
    assert not os.path.isfile("pipe.png")
    atomic_write(batch.Path(os.devnull), b"x")
    assert not os.path.isfile(os.devnull)


@posix
def test_a_link_stays_and_what_it_points_to_is_replaced(here, tmp_path):
    (tmp_path / "far").mkdir()
    os.symlink("far/real.png", "link.png")
    assert main(["down", "photo.png", "link.png", *here]) == 0
    assert os.readlink("link.png") == "far/real.png"
    assert sorted(os.listdir("far")) == ["real.png"]
    assert rescale.Small.open("far/real.png").state == "exact"


def test_only_files_of_ours_that_nothing_writes_are_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    gone, mine, other = process.pid, machine_mark(), "0" * 8
    made = {
        "left over": (f".rescale.{mine}-{gone}-0123abcd.tmp", 0.0),
        "being written": (f".rescale.{mine}-{os.getpid()}-0123abcd.tmp", 0.0),
        "of another machine, young": (f".rescale.{other}-{gone}-0123abcd.tmp", 0.0),
        "of another machine, old": (f".rescale.{other}-{gone}-9123abcd.tmp", 2 * ABANDONED),
        "of another program": (f".notes.{gone}-0123abcd.tmp", 2 * ABANDONED),
    }
    for name, age in made.values():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert batch.remove_leftovers(tmp_path) == (1 if os.name == "nt" else 2)
    kept = {what for what, (name, _) in made.items() if (tmp_path / name).exists()}
    assert kept - {"left over"} == {"being written", "of another machine, young", "of another program"}


def test_containers_of_one_name_do_not_take_each_other_for_one_machine(tmp_path, monkeypatch):
    marks = []
    for name in ("one", "two", "two"):
        (tmp_path / name).touch()
        monkeypatch.setattr("rescale.files.PROCESS_NAMESPACE", tmp_path / name)
        marks.append(machine_mark())
    assert marks[0] != marks[1] == marks[2]
    for boot in ("a", "b", "b"):
        (tmp_path / "boot").write_text(boot)
        monkeypatch.setattr("rescale.files.BOOT", tmp_path / "boot")
        marks.append(machine_mark())
    assert marks[3] != marks[4] == marks[5], "nor machines of one name"
    monkeypatch.setattr("rescale.files.PROCESS_NAMESPACE", tmp_path / "none")
    assert len(machine_mark()) == 8


def test_a_folder_in_the_place_of_a_result_is_an_error_and_a_defect_costs_one_picture(here, tmp_path, capsys):
    os.makedirs("in")
    os.makedirs("out/photo.png")
    os.replace("photo.png", "in/photo.png")
    code, err = told(capsys, ["down", "in", "out", *here])
    assert (code, "photo.png: cannot write" in err) == (1, True)

    def make(job):
        raise IndexError("list index out of range")

    plan = batch.plan(tmp_path / "in", tmp_path / "new", [".png"], ".png")
    [(source, error)] = batch.run(plan.jobs, make, overwrite=False).errors
    assert isinstance(error, RescaleError)
    assert str(error) == f"{source}: unexpected IndexError: list index out of range; please report it with the picture"


def test_a_folder_of_lrs_that_cannot_be_restored_has_exit_code_3(here, picture):
    os.makedirs("lr")
    for n in range(2):
        rescale.write_picture(f"lr/{n}.png", picture(8, 8, seed=n))
    assert main(["up", "lr", "hr", *here]) == 3
    (batch.Path("lr") / "broken.png").write_bytes(b"no")
    assert main(["up", "lr", "hr", *here]) == 3
    rescale.write_picture("lr/large.png", picture(20, 20))
    assert main(["up", "lr", "hr", *here, "--max-pixels", "300"]) == 1, "with an error of another kind"


@posix
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_half_written(here, tmp_path, sent, code):
    process = spawn(["down", "-", "frames.raw", "--raw", "33x21", *here])
    process.stdin.write(bytes(33 * 21 * 3))
    process.stdin.flush()
    limit = time.monotonic() + 60
    while not list(tmp_path.glob(".rescale.*")) and time.monotonic() < limit:
        time.sleep(0.05)
    assert list(tmp_path.glob(".rescale.*"))
    process.send_signal(sent)
    assert process.wait(60) == code
    assert process.stderr.read().decode().strip() == "error: interrupted"
    assert sorted(os.listdir(tmp_path)) == ["photo.png"]


@posix
@pytest.mark.parametrize("target", ["-", "pipe.raw"])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_whose_frames_nobody_takes(here, target, sent, code):
    batch.Path("f.raw").write_bytes(bytes(60 * 320 * 240 * 3))  # an LR frame is more than a pipe holds
    os.mkfifo("pipe.raw")
    process = spawn(["down", "f.raw", target, "--raw", "320x240", *here], stdout=subprocess.PIPE)
    with process.stdout if target == "-" else open(target, "rb") as frames:
        assert len(frames.read(1)) == 1
        time.sleep(1.5)  # the queues fill
        process.send_signal(sent)
        try:
            assert process.wait(20) == code
        finally:
            process.kill()
    assert process.stderr.read().decode().strip() == "error: interrupted"


@posix
def test_streams_that_do_not_block_lose_no_frame(here):
    """They have nothing to read, or no room, now and then, which is not their end."""
    (source, feed), (out, target) = os.pipe(), os.pipe()
    for end in (source, target):
        os.set_blocking(end, False)
    process = subprocess.Popen(
        [sys.executable, "-m", "rescale", "down", "-", "-", "--raw", "320x240", *here],
        stdin=source, stdout=target, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(source)
    os.close(target)
    size = 160 * 120 * 4
    with open(feed, "wb", buffering=0) as frames, open(out, "rb") as results:
        for _ in range(2):
            frames.write(bytes(320 * 240 * 3 // 2))
            time.sleep(0.5)
            frames.write(bytes(320 * 240 * 3 // 2))
            assert len(results.read(size)) == size
        frames.close()
        assert results.read() == b""
    assert (process.wait(60), process.stderr.read()) == (0, b"2 frames\n")


@posix
@pytest.mark.parametrize(
    ("shell", "code", "message"),
    [
        ("info - <&-", 1, "error: standard input is closed"),
        ("down photo.png - {b} >&-", 1, "error: standard output is closed"),
        ("down photo.png s.png {b} >&-", 0, ""),
        ("down photo.png s.png {b} >&- 2>&- <&-", 0, ""),
        ("info none.png 2>&-", 1, ""),
    ],
)
def test_closed_streams(here, shell, code, message):
    line = f"{sys.executable} -m rescale {shell.format(b=' '.join(here))}"
    done = subprocess.run(line, shell=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode().strip(), done.stdout if code else b"") == (code, message, b"")
    if "s.png" in shell:
        assert rescale.Small.open("s.png").state == "exact"


@posix
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_that_cannot_be_printed(here, encoding):
    name = os.fsdecode("ü 写".encode() + b"\xff.png")
    os.replace("photo.png", name)
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for options in ([], ["--json"]):
        command = [sys.executable, "-m", "rescale", "down", name, "s.png", *here, *options]
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["source"] == name


def test_a_forged_name_does_not_reach_the_terminal(here, capsys, monkeypatch):
    main(["down", "photo.png", "s.png", *here])
    honest = rescale.Small.open("s.png")
    forged = rescale.container.replace(honest, block=rescale.container.replace(honest.block, model="\x1b[31mred\n"))
    monkeypatch.setattr(rescale.Small, "open", lambda *a: forged)
    capsys.readouterr()
    assert main(["info", "s.png"]) == 0
    assert "model: \\x1b[31mred\\n\n" in capsys.readouterr().out
    for command in (["verify", "s.png"], ["up", "s.png", "o.png"], ["up", "s.png", "o.png", "--force"]):
        assert main([*command, *here]) == (0 if "--force" in command else 3)
        err = capsys.readouterr().err
        assert "made by \\x1b[31mred x2" in err
        assert err.count("\n") == 1


def test_a_name_with_control_characters_does_not_reach_the_terminal(here, capsys):
    assert main(["down", "photo.png", "s\x1b[31m.png", *here]) == 0
    assert main(["verify", "s\x1b[31m.png", *here]) == 0
    assert capsys.readouterr().out.count("s\\x1b[31m.png: ") == 2


@pytest.mark.parametrize(
    ("args", "wanted", "message"),
    [
        (["down", "f.raw", "o.raw", "--raw", "33x21", "--layout", "strip"], 2, "--layout: has no meaning for raw frames"),
        (["down", "f.raw", "o.raw", "--raw", "33x21", "--overwrite"], 2, "--overwrite: has no meaning for raw frames"),
        (["down", "f.raw", "o.raw", "--raw", "33x21", "--max-pixels", "600"], 1, "--raw 33x21: 693 pixels, at most 600"),
        (["down", "empty.raw", "o.raw", "--raw", "33x21"], 1, "empty.raw: holds no frame"),
        (["up", "f.raw", "o.raw", "--raw", "33x21", "--reference", "photo.png"], 2, "--reference: has no meaning for raw frames"),
        (["down", "photo.png", "-", "--carrier", "sidecar"], 2, "--carrier sidecar: needs a file to lie beside"),
        (["up", "lr", "hr", "--reference", "photo.png"], 1, "--reference photo.png: is one picture"),
        (["up", "photo.png", "hr.png", "--reference", "none.png"], 1, "none.png"),
        (["down", "f.raw", "o.raw", "--raw", "33x21", "--least", "40"], 2, "--check: has no meaning for raw frames"),
        (["down", "f.raw", "o.raw", "--raw", "33x21", "--no-overwrite"], 1, "o.raw: exists, and --no-overwrite keeps it"),
        (["down", "photo.png", "o.webp", "--container", "png"], 2, "o.webp: its name asks for webp, and --container for png"),
    ],
)
def test_options_that_would_say_nothing_are_refused(here, capsys, args, wanted, message):
    os.mkdir("lr")
    batch.Path("f.raw").write_bytes(bytes(33 * 21 * 3))
    batch.Path("empty.raw").write_bytes(b"")
    batch.Path("o.raw").write_bytes(b"old")
    code, err = told(capsys, [*args, *here])
    assert code == wanted
    assert message in err
    assert batch.Path("o.raw").read_bytes() == b"old"
    assert not os.path.exists("hr.png")


def test_options_for_another_variant_are_refused(here, capsys, bundle):
    plain = ["-b", str(bundle("irn", 2))]
    code, err = told(capsys, ["down", "photo.png", "s.png", "--layout", "strip", *plain])
    assert (code, "--layout strip: irn x2" in err) == (1, True)
    code, err = told(capsys, ["up", "photo.png", "o.png", "--trust-alpha", *plain])
    assert (code, "--trust-alpha: irn x2" in err) == (1, True)


def test_raw_frames_are_told_as_json(here, capsys):
    batch.Path("f.raw").write_bytes(np.zeros(2 * 33 * 21 * 3, np.uint8).tobytes())
    assert main(["down", "f.raw", "o.raw", "--raw", "33x21", "--json", *here]) == 0
    assert json.loads(capsys.readouterr().out) == {"source": "f.raw", "target": "o.raw", "frames": 2}


def test_kept_transparency_is_measured_against_its_source(here, capsys, picture):
    from PIL import Image

    Image.fromarray(np.dstack([picture(20, 24), picture(20, 24)[:, :, 0]])).save("clear.png")
    assert main(["down", "clear.png", "s.png", "--alpha", "keep", *here]) == 0
    capsys.readouterr()
    assert main(["up", "s.png", "o.png", "--reference", "clear.png", "--json", *here]) == 0
    assert json.loads(capsys.readouterr().out)["psnr_y"] > 10


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that opens and cannot be read")
def test_a_source_of_frames_that_cannot_be_read_is_named(here, capsys):
    assert main(["down", "/proc/self/mem", "out.raw", "--raw", "4x4", *here]) == 1
    assert capsys.readouterr().err == "error: /proc/self/mem: cannot read frame 0: Input/output error\n"
    assert not Path("out.raw").exists()


@pytest.mark.parametrize("library", ["openvino", "onnxruntime"])
def test_a_broken_library_is_one_line(here, tmp_path, library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    (tmp_path / "fake" / library).mkdir(parents=True)
    (tmp_path / "fake" / library / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    command = [sys.executable, "-m", "rescale", "down", "photo.png", "s.png", "--backend", library, *here]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "fake"), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    cause = f"error: {library}: installed, but cannot be imported: ImportError: libtbb.so.12: cannot open shared object file"
    instead = "; --backend onnxruntime does without it; rescale doctor says more" if library == "openvino" else ""
    assert done.stderr == f"{cause}{instead}\n"
