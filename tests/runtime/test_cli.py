"""Commands as a user meets them: what they print, their exit codes, and what they leave on the disk."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale.cli import main


def files(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_down_up_info_verify_strip(here, capsys, tmp_path):
    assert main(["down", "photo.png", "s.png", *here]) == 0
    assert "s.png: 17x11 from 33x21, dlv_irn_a x2 custom" in capsys.readouterr().out
    assert main(["verify", "s.png", *here]) == 0
    out = capsys.readouterr().out
    assert out.startswith("s.png: exact: undamaged; ")
    assert "not the source" in out, "a picture that its network restores badly is exact as well"
    assert main(["info", "s.png", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["model"], facts["hr_size"], facts["layout"]) == ("exact", "dlv_irn_a", [33, 21], "alpha")
    assert main(["up", "s.png", "again.png", *here, "--reference", "photo.png", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["psnr_y"] == rescale.psnr_y(rescale.read_picture("again.png"), rescale.read_picture("photo.png"), 2)
    assert main(["strip", "s.png", "bare.png"]) == 0
    size = (tmp_path / "bare.png").stat().st_size
    assert capsys.readouterr().out == f"bare.png: 17x11, {size} bytes, without auxiliary data and marker\n"
    assert main(["verify", "bare.png", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state"] == "foreign"
    assert files(tmp_path) == ["again.png", "bare.png", "photo.png", "s.png"]


@pytest.mark.parametrize(("model", "kept"), [("irn", "all"), ("irn_m", "nearly all"), ("irn_a", "")])
def test_strip_says_what_the_pixels_still_hold(here, bundle, capsys, model, kept):
    which = ["-b", str(bundle(model, 2))]
    rescale.write_picture("even.png", rescale.read_picture("photo.png")[:20, :32])
    assert main(["down", "even.png", "s.png", *which]) == 0
    assert main(["strip", "s.png", "bare.png"]) == 0
    left = f"{model} keeps {kept} that it restores from in the pixels, which stay: `rescale up --force` restores them"
    assert capsys.readouterr().err == (f"warning: s.png: {left}\n" if kept else "")
    assert main(["up", "bare.png", "again.png", *which]) == 3
    assert ("(--force restores from its pixels, unverified)" in capsys.readouterr().err) == (model == "irn")
    assert main(["up", "bare.png", "again.png", *which, "--force"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: bare.png: it carries no marker of this toolkit; restored ")
    assert said.endswith("restored from its pixels, unverified\n") == (model == "irn")
    if model == "irn":
        assert main(["up", "s.png", "first.png", *which]) == 0
        assert np.array_equal(rescale.read_picture("first.png"), rescale.read_picture("again.png"))


def test_a_replaced_file_keeps_its_permissions(here):
    assert main(["down", "photo.png", "s.png", *here]) == 0
    Path("private.png").touch(0o600)
    assert main(["up", "s.png", "private.png", *here]) == 0
    assert stat.S_IMODE(os.stat("private.png").st_mode) == 0o600
    assert os.path.getsize("private.png") > 0


LONG = "n" * 251 + ".png"
"""A legal name, whose side-car's would not be one."""


def test_names_too_long_for_a_side_car_are_names_like_others(here, capsys):
    os.mkdir("in")
    shutil.copy("photo.png", f"in/{LONG}")
    for words in (["down", "in", "small", *here], ["up", "small", "large", *here], ["strip", "small", "bare"]):
        for said in ("1 done, 0 skipped", "0 done, 1 skipped"):
            assert main(words) == 0, capsys.readouterr().err
            assert said in capsys.readouterr().out
    shutil.copy("photo.png", f"small/a{LONG[1:]}")
    assert main(["verify", "small"]) == 3
    assert "1 exact, 1 not exact, 0 errors" in capsys.readouterr().out
    assert main(["info", f"small/a{LONG[1:]}"]) == 0


def test_a_name_with_blanks_is_told_as_it_is(here, error_of):
    Path("e  f.png").touch()
    assert error_of(["down", "e  f.png", "s.png", *here]) == (1, "error: e  f.png: empty")


def test_a_link_to_itself_is_no_target_for_a_folder(here, error_of):
    os.mkdir("in")
    shutil.copy("photo.png", "in")
    os.symlink("loop", "loop")
    code, said = error_of(["down", "in", "loop", *here])
    assert code == 1
    assert said.startswith("error: loop")


@pytest.mark.parametrize(("side", "border"), [(4, 0), (5, 2)])
def test_the_border_that_is_told_is_the_one_that_was_cropped(here, capsys, side, border):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, 9, 3), np.uint8)).save("low.png")
    assert main(["down", "low.png", "s.png", *here]) == 0
    capsys.readouterr()
    assert main(["up", "s.png", "again.png", *here, "--reference", "low.png"]) == 0
    assert f"(BT.601, {border} px cropped)" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["alpha", "chunk", "strip"])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("carrier", ["chunk", "text", "sidecar"])
def test_every_form_restores_the_same_picture(here, layout, suffix, carrier):
    assert main(["down", "photo.png", "plain.png", *here]) == 0
    assert main(["down", "photo.png", f"s{suffix}", *here, "--layout", layout, "--carrier", carrier]) == 0
    for name in ("plain.png", f"s{suffix}"):
        assert main(["up", name, f"{name}.hr.png", *here]) == 0
    assert np.array_equal(rescale.read_picture("plain.png.hr.png"), rescale.read_picture(f"s{suffix}.hr.png"))


def test_bad_input_is_one_line_and_leaves_no_file(here, capsys, error_of, tmp_path, bundle):
    main(["down", "photo.png", "s.png", *here])
    capsys.readouterr()
    data = (tmp_path / "photo.png").read_bytes()
    (tmp_path / "short.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("hello")
    rescale.write_picture("other.png", np.zeros((5, 4, 3), np.uint8))
    (tmp_path / "empty.png").write_bytes(b"")
    lr = (tmp_path / "s.png").read_bytes()
    (tmp_path / "short_lr.png").write_bytes(lr[:-30])
    before = files(tmp_path)
    other = ["-b", bundle("irn_a", 2)]
    cases = [
        (1, ["down", "none.png", "o.png", *here], "none.png: no such file"),
        (1, ["down", "text.png", "o.png", *here], "text.png: not a picture that can be read"),
        (1, ["down", "empty.png", "o.png", *here], "empty.png: empty"),
        (1, ["down", "short.png", "o.png", *here], "short.png: truncated PNG"),
        (1, ["down", "photo.png", "o.jpg", *here], "an LR file is lossless"),
        (1, ["down", "photo.png", "nowhere/o.png", *here], "the folder nowhere does not exist"),
        (1, ["down", "photo.png", "photo.png", *here], "is the source itself"),
        (1, ["down", "photo.png", "o.png", "-b", "none"], "none: no bundle here"),
        (1, ["down", "photo.png", "o.png", *here, "--max-pixels", "10"], "33x21 is above the limit of 10 pixels"),
        (3, ["up", "short_lr.png", "o.png", *here], "short_lr.png: truncated"),
        (1, ["up", "s.png", "o.jpg", *here], "o.jpg: restored pictures are .png or .webp"),
        (3, ["up", "photo.png", "o.png", *here], "photo.png: it carries no marker of this toolkit"),
        (3, ["up", "s.png", "o.png", *other], "s.png: made by dlv_irn_a x2"),
        (3, ["verify", "s.png", *other], "s.png: other-model"),
        (3, ["verify", "photo.png"], "photo.png: foreign"),
        (1, ["up", "s.png", "o.png", *here, "--reference", "other.png"], "other.png: 4x5, the restored picture is not"),
    ]
    for code, args, message in cases:
        got, err = error_of(args)
        assert (got, err[:7]) == (code, "error: "), (args, err)
        assert message in err, (args, err)
        assert files(tmp_path) == before, args


def test_usage_errors_are_exit_code_2(here):
    assert main(["down", "photo.png"]) == 2
    assert main(["fly"]) == 2
    assert main(["down", "--threads", "many", "a", "b", *here]) == 2
    assert main(["--help"]) == 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("backend", "x", "unknown backend 'x': choose auto or one of onnxruntime, "),
        ("memory", "lots", "memory 'lots': a size is wanted"),
        ("precision", "fp64", "fp64"),
        ("threads", "4097", "at most 4096, got 4097"),
        ("least", "nan", "a number of dB is wanted, got nan"),
        ("least", "inf", "a number of dB is wanted, got inf"),
        ("raw", "33", "size '33': WIDTHxHEIGHT is wanted"),
        ("raw", "9" * 5000 + "x4", "9999...': WIDTHxHEIGHT is wanted"),
    ],
)
def test_values_that_no_run_could_use_are_wrong_usage(here, capsys, option, value, message):
    assert main(["down", "photo.png", "s.png", f"--{option}", value, *here]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["layout", "carrier", "alpha", "container"])
def test_words_that_an_option_does_not_know_are_wrong_usage(here, capsys, tmp_path, option):
    assert main(["down", "photo.png", "s.png", f"--{option}", "bmp", *here]) == 2
    assert f"--{option}" in capsys.readouterr().err
    assert files(tmp_path) == ["photo.png"]


@pytest.mark.parametrize(
    "args", [["in", "out", "--container", "jxl"], ["photo.png", "s.jxl"], ["photo.png", "-", "--container", "jxl"]]
)
def test_a_container_whose_package_is_missing_is_refused_before_the_network_runs(
    here, error_of, tmp_path, monkeypatch, picture, args
):
    os.mkdir("in")
    rescale.write_picture("in/one.png", picture(8, 8))
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imagecodecs" else known(name))
    monkeypatch.setattr(rescale.Rescaler, "downscale", lambda *args: pytest.fail("the network ran"))
    code, err = error_of(["down", *args, *here])
    assert (code, err) == (1, "error: imagecodecs not installed: pip install 'rescale-toolkit[jxl]'")
    assert files(tmp_path) == ["in/one.png", "photo.png"]


def test_unwritable_target_keeps_the_old_file(here, error_of, tmp_path, monkeypatch):
    (tmp_path / "o.png").write_bytes(b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    code, err = error_of(["down", "photo.png", "o.png", *here])
    assert (code, err) == (1, "error: o.png: cannot write: No space left on device")
    assert (tmp_path / "o.png").read_bytes() == b"old"
    assert files(tmp_path) == ["o.png", "photo.png"]


def test_force_restores_a_foreign_picture_and_says_so(here, capsys):
    assert main(["up", "photo.png", "big.png", *here, "--force"]) == 0
    assert "photo.png: it carries no marker of this toolkit; restored without auxiliary data" in capsys.readouterr().err
    assert rescale.read_picture("big.png").shape == (42, 66, 3)


def test_trust_alpha_restores_what_lost_its_marker(here, capsys, tmp_path):
    main(["down", "photo.png", "s.png", *here])
    main(["up", "s.png", "want.png", *here])
    Image.open("s.png").save("bare.png")
    capsys.readouterr()
    assert main(["up", "bare.png", "got.png", *here]) == 3
    assert main(["up", "bare.png", "got.png", *here, "--trust-alpha"]) == 0
    assert "restored by its alpha channel, unverified" in capsys.readouterr().err
    assert np.array_equal(rescale.read_picture("got.png")[:21, :33], rescale.read_picture("want.png"))


def test_strip_refuses_a_sidecar_at_its_target(here, capsys, error_of, tmp_path):
    main(["down", "photo.png", "s.png", *here])
    (tmp_path / "bare.png.rescale").write_bytes(b"x")
    capsys.readouterr()
    code, err = error_of(["strip", "s.png", "bare.png"])
    assert code == 1
    assert "a side-car lies there and would make bare.png restorable; remove it" in err
    assert not (tmp_path / "bare.png").exists()


def run(args, stdout=subprocess.PIPE, **kwargs):
    command = [sys.executable, "-m", "rescale", *map(str, args)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False, **kwargs)


def test_standard_streams(here, tmp_path):
    down = run(["down", "-", "-", *here], input=(tmp_path / "photo.png").read_bytes())
    assert down.returncode == 0, down.stderr
    up = run(["up", "-", "-", *here], input=down.stdout)
    assert up.returncode == 0, up.stderr
    main(["down", "photo.png", "s.png", *here])
    assert down.stdout == (tmp_path / "s.png").read_bytes()
    assert rescale.read_picture(up.stdout).shape == (21, 33, 3)
    webp = run(["down", "photo.png", "-", "--container", "webp", *here])
    assert rescale.Small.from_bytes(webp.stdout).state == "exact"


def test_raw_frames_down_and_up(here, bundle, picture, tmp_path):
    frames = [picture(21, 33, seed=i) for i in range(7)]
    raw = b"".join(f.tobytes() for f in frames)
    down = run(["down", "-", "-", "--raw", "33x21", *here], input=raw)
    assert down.returncode == 0, down.stderr
    assert len(down.stdout) == 7 * 17 * 11 * 4
    up = run(["up", "-", "-", "--raw", "33x21", *here], input=down.stdout)
    assert up.returncode == 0, up.stderr
    with rescale.load(bundle("dlv_irn_a", 2)) as net:
        want = b"".join(net.upscale(net.downscale(f)).tobytes() for f in frames)
    assert up.stdout == want


def test_raw_mistakes(here, bundle, error_of, tmp_path):
    (tmp_path / "f.raw").write_bytes(bytes(33 * 21 * 3 + 5))
    for args, message in (
        (["down", "f.raw", "o.raw", "--raw", "33x21", *here], "frame 1: the stream ends after 5 of 2079 bytes"),
        (["down", "f.raw", "o.raw", "--raw", "33x21", "-b", bundle("irn_m", 2)], "raw frames cannot carry its latent code"),
    ):
        code, err = error_of(args)
        assert code == 1
        assert message in err
        assert files(tmp_path) == ["f.raw", "photo.png"]


def test_a_frame_leaves_before_the_next_comes_and_a_reader_that_goes_away_ends_the_stream(here, picture):
    process = subprocess.Popen(
        [sys.executable, "-m", "rescale", "down", "-", "-", "--raw", "33x21", *here],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    frame = picture(21, 33).tobytes()
    late = threading.Timer(60.0, process.kill)
    late.start()
    for _ in range(3):
        process.stdin.write(frame)
        process.stdin.flush()
        assert len(process.stdout.read(17 * 11 * 4)) == 17 * 11 * 4
    late.cancel()
    process.stdout.close()
    try:
        for _ in range(2000):
            process.stdin.write(frame)
            process.stdin.flush()
    except BrokenPipeError:
        pass
    assert process.wait(timeout=30) == 1
    assert b"Traceback" not in process.stderr.read()


def test_frames_wait_in_bounded_queues(bundle, picture):
    from rescale.frames import QUEUE_FRAMES, down_frames

    taken = 0

    class Endless(io.RawIOBase):
        def read(self, size=-1):
            nonlocal taken
            taken += 1
            return bytes(size)

    class Stuck(io.RawIOBase):
        def write(self, data):
            time.sleep(0.5)
            raise OSError(28, "No space left on device")

    with rescale.load(bundle("irn", 2)) as net, pytest.raises(OSError, match="No space left"):
        down_frames(net, (8, 8), Endless(), Stuck())
    assert taken <= 3 * QUEUE_FRAMES + 4


def test_force_works_for_weights_without_a_measured_cost(here, tmp_path, bundle):
    import shutil

    shutil.copytree(bundle("irn", 2), tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    for card in ({"figures": {"Set5": {"hr_psnr_y": 42.0, "hr_psnr_y_forced": None}}}, None):
        manifest["weights"]["card"] = card
        (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
        assert main(["up", "photo.png", "big.png", "-b", "b", "--force"]) == 0


def test_system_errors_are_one_line(here, error_of):
    code, err = error_of(["info", "x" * 300])
    assert code == 1
    assert err.startswith("error: ")


def test_what_a_decoder_warns_of_is_told_in_the_one_line(here, tmp_path, picture):
    whole = io.BytesIO()
    Image.fromarray(picture(40, 40)).save(whole, "TIFF")
    (tmp_path / "short.tif").write_bytes(whole.getvalue()[:100])  # within its tags
    done = run(["down", "short.tif", "s.png", *here])
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: short.tif: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", [["strip", "s.png", "-"], ["info", "s.png"], ["down", "photo.png", "-"], ["--help"]])
def test_output_onto_a_full_disk_is_one_error_line(here, monkeypatch, command, unbuffered):
    """Buffered output fails late: when the command is done, or at the interpreter's end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    main(["down", "photo.png", "s.png", *here])
    with open("/dev/full", "wb") as full:
        done = run([*command, *(here if command[0] == "down" else [])], stdout=full)
    assert (done.returncode, done.stderr.decode().splitlines()[-1]) == (1, "error: output: No space left on device")
    assert b"Traceback" not in done.stderr


def test_a_picture_that_would_become_too_large_is_refused_before_it_does(here, error_of):
    code, err = error_of(["up", "photo.png", "big.png", *here, "--force", "--max-pixels", "1000"])
    assert code == 1
    assert "would become larger than 1000 pixels" in err


def test_what_was_made_under_a_limit_is_restored_under_it(here, error_of):
    """The HR picture counts, not what it is padded to: 33x21 are 693 pixels, 34x22 are 748."""
    limit = ["--max-pixels", "693", *here]
    assert main(["down", "photo.png", "s.png", *limit]) == 0
    assert main(["up", "s.png", "again.png", *limit]) == 0
    code, err = error_of(["up", "s.png", "b.png", *here, "--max-pixels", "692"])
    assert (code, "would become larger than 692 pixels" in err) == (1, True)


def test_equal_is_said_of_equal_pictures_alone(here, capsys, tmp_path, picture):
    assert main(["down", "photo.png", "s.png", *here]) == 0
    assert main(["up", "s.png", "again.png", *here]) == 0
    again = np.array(Image.open("again.png"))
    Image.fromarray(again).save("same.png")
    again[0, 0] ^= 255
    Image.fromarray(again).save("corner.png")
    capsys.readouterr()
    assert main(["up", "s.png", "again.png", "--reference", "same.png", *here]) == 0
    assert "equal to the reference" in capsys.readouterr().out
    assert main(["up", "s.png", "again.png", "--reference", "corner.png", *here]) == 0
    out = capsys.readouterr().out
    assert "equal" not in out
    assert "Y-PSNR infinite (BT.601, 2 px cropped), RGB-PSNR " in out


@pytest.mark.parametrize("left", [0, 4, 60, 0.5, 0.99])
def test_a_file_that_was_copied_in_part_cannot_be_restored(here, capsys, error_of, tmp_path, left):
    assert main(["down", "photo.png", "s.png", *here]) == 0
    data = (tmp_path / "s.png").read_bytes()
    (tmp_path / "part.png").write_bytes(data[: left if isinstance(left, int) else int(left * len(data))])
    capsys.readouterr()
    for command in (["verify", "part.png"], ["up", "part.png", "again.png", *here]):
        code, err = error_of(command)
        assert code == 3
        assert err.endswith("take an undamaged copy")
    assert main(["verify", "part.png", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["restorable"]) == ("damaged", False)
    for command in (["verify", "none.png"], ["verify", "s.png", "--max-pixels", "10"]):
        assert error_of(command)[0] == 1
    assert not (tmp_path / "again.png").exists()
