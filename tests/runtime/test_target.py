"""`rescale down --target`: an LR of a wanted size, by resizing the source, which is told."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale import png
from rescale.cli import main
from rescale.errors import InputError
from rescale.picture import Picture
from rescale.resize import Target, hr_size, parse_target, resized


@pytest.mark.parametrize(
    ("source", "target", "scale", "size"),
    [
        ((1920, 1080), "640x360", 2, (1280, 720)),
        ((1920, 1080), "480x", 4, (1920, 1080)),
        ((1920, 1080), "x270", 2, (960, 540)),
        ((1366, 768), "640x360", 2, (1280, 720)),
        ((33, 21), "17x11", 2, (33, 21)),  # what it has without resizing
        ((33, 21), "17x", 2, (33, 21)),
        ((33, 21), "16x", 2, (32, 20)),
        ((33, 21), "X5", 2, (16, 10)),
        ((4000, 1), "100x", 4, (400, 1)),
        ((1, 1), "1x1", 4, (1, 1)),
    ],
)
def test_the_size_to_which_a_source_is_resized(source, target, scale, size):
    wanted = parse_target(target)
    assert hr_size(source, wanted, scale, "p") == size
    assert wanted.fits(tuple(-(-side // scale) for side in size))


@pytest.mark.parametrize("source", [(w, h) for w in (5, 33, 640, 641) for h in (7, 33, 480)])
@pytest.mark.parametrize("scale", [2, 4])
def test_every_size_that_is_not_refused_is_met_and_nothing_grows(source, scale):
    for side in range(1, 170):
        for target in (Target(side, None), Target(None, side), Target(side, max(1, round(side * source[1] / source[0])))):
            try:
                size = hr_size(source, target, scale, "p")
            except InputError as e:
                assert "nothing is enlarged" in str(e)  # noqa: PT017
                continue
            assert target.fits((-(-size[0] // scale), -(-size[1] // scale)))
            assert 1 <= size[0] <= source[0]
            assert 1 <= size[1] <= source[1]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ((33, 21), "18x11", "p: 33x21, and --target 18x11 needs 36x22 at x2: nothing is enlarged; choose a smaller one"),
        ((33, 21), "18x", "needs 36x23 at x2: nothing is enlarged"),
        ((4000, 3000), "640x360", "p: 4000x3000 would be squeezed by --target 640x360; --target 640x or x360 keeps its shape"),
    ],
)
def test_what_would_grow_or_be_squeezed_is_refused(source, target, message):
    with pytest.raises(InputError) as raised:
        hr_size(source, parse_target(target), 2, "p")
    assert message in str(raised.value)


def test_a_pixel_of_the_lr_is_no_squeeze():
    assert hr_size((400, 300), parse_target("101x76"), 2, "p") == (202, 152)
    with pytest.raises(InputError, match="p: 400x300 would be squeezed by --target 100x76; "):
        hr_size((400, 300), parse_target("100x76"), 2, "p")


@pytest.mark.parametrize("text", ["", "x", "640", "0x5", "5x0", "640x360x2", "-4x4", "640 x 360", "70000x", "9" * 5000 + "x"])
def test_what_is_no_size_is_wrong_usage(here, capsys, text):
    assert main(["down", "photo.png", "s.png", "--target", text, *here]) == 2
    assert "640x360, 640x or x360" in " ".join(capsys.readouterr().err.split())


def test_all_that_a_picture_carries_stays_and_invisible_colours_do_not_bleed(picture):
    pixels, alpha = np.full((40, 40, 3), 200, np.uint8), np.full((40, 40), 255, np.uint8)
    pixels[:, 20:], alpha[:, 20:] = 0, 0
    chunks = ((b"gAMA", b"\0\0\xb1\x8f"),)
    small = resized(Picture(pixels, False, alpha, chunks), (20, 20))
    assert (small.size, small.colour, small.alpha.shape) == ((20, 20), chunks, (20, 20))
    assert small.pixels[small.alpha > 128].min() >= 198
    gray = resized(Picture(np.repeat(picture(40, 40)[:, :, :1], 3, 2), gray=True), (20, 20))
    assert gray.gray
    assert np.array_equal(gray.planes(), gray.pixels[:, :, 2])
    assert resized(gray, (20, 20)) is gray


def test_the_lr_has_the_size_and_the_resized_picture_is_what_comes_back(here, capsys, picture):
    wide = picture(90, 160)
    with open("wide.png", "wb") as f:
        f.write(png.insert(png.encode(wide), [(b"gAMA", b"\0\0\xb1\x8f")]))
    assert main(["down", "wide.png", "s.png", "--target", "40x", "--check", "--json", *here]) == 0
    told = capsys.readouterr()
    facts = json.loads(told.out)
    assert [facts[k] for k in ("source_size", "hr_size", "lr_size")] == [[160, 90], [80, 45], [40, 23]]
    assert told.err == "warning: wide.png: resized from 160x90 to 80x45 (Lanczos), and comes back in that size\n"
    assert rescale.Small.open("s.png").block.hr_size == (80, 45)
    Image.fromarray(wide).resize((80, 45), Image.Resampling.LANCZOS).save("want.png")
    assert main(["up", "s.png", "o.png", "--reference", "want.png", "--json", *here]) == 0
    assert json.loads(capsys.readouterr().out)["psnr_y"] == facts["psnr_y"]
    assert rescale.open_picture("o.png").colour == ((b"gAMA", b"\0\0\xb1\x8f"),)
    assert main(["down", "wide.png", "s.png", "--target", "40x", *here]) == 0
    assert "s.png: 40x23 from 80x45 (resized from 160x90 to 80x45), " in capsys.readouterr().out
    assert main(["down", "wide.png", "s.png", "--target", "80x45", "--json", *here]) == 0
    told = capsys.readouterr()
    assert (told.err, "source_size" in json.loads(told.out)) == ("", False)


def test_folders_are_resized_told_once_and_resumed_by_size(here, capsys, picture):
    os.mkdir("in")
    for name, height, width in (("a", 60, 80), ("b", 80, 60), ("c", 10, 10)):
        rescale.write_picture(f"in/{name}.png", picture(height, width))
    run = ["down", "in", "out", *here, "--json", "--target"]
    assert main([*run, "x20"]) == 1
    told = capsys.readouterr()
    a, b, c, summary = map(json.loads, told.out.splitlines())
    assert ([a["lr_size"], b["lr_size"]], a["source_size"], summary["errors"]) == ([[27, 20], [15, 20]], [80, 60], 1)
    assert "nothing is enlarged" in c["error"]
    assert told.err.splitlines()[0].startswith("warning: --target x20: larger pictures are resized first (Lanczos), and come back")
    os.unlink("in/c.png")
    assert main([*run, "x20"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped"] == 2
    assert main([*run, "x10"]) == 1
    assert "out/a.png: has 27x20 pixels, not --target x10: remove it, or --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--target", "4x4"], ["--to-8-bit"], ["--first-frame"]])
def test_raw_frames_have_no_use_for_it(here, capsys, option):
    open("f.raw", "wb").close()
    assert main(["down", "f.raw", "o.raw", "--raw", "8x8", *option, *here]) == 2
    assert f"{option[0]}: has no meaning for raw frames; leave it out" in capsys.readouterr().err
