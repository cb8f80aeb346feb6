from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import avg_pool2d

from rescale.errors import InputError
from rescale_export.probe import probe_picture
from rescale_train.bicubic import bicubic_batch
from rescale_train.data import CropSampler, find_pictures, load_all, load_picture

CPU = torch.device("cpu")


def sampler(*pictures: np.ndarray, scale: int = 2, seed: int = 0) -> CropSampler:
    return CropSampler(pictures or [probe_picture(90, 70)], scale, seed, CPU)


def test_a_batch_depends_on_seed_step_and_rank_only() -> None:
    one, other = sampler(), sampler()
    want = one.batch(3, 1, 2, 16)
    for step in (9, 0, 4):
        other.batch(step, 0, 3, 32)
    got = other.batch(3, 1, 2, 16)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    for changed in (one.batch(4, 1, 2, 16), one.batch(3, 0, 2, 16), sampler(seed=1).batch(3, 1, 2, 16)):
        assert not torch.equal(changed[0], want[0])


@pytest.mark.parametrize("scale", [2, 4])
def test_lr_is_the_bicubic_reduction_of_hr(scale: int) -> None:
    hr, lr = sampler(scale=scale).batch(0, 0, 4, 16 * scale)
    assert hr.shape == (4, 3, 16 * scale, 16 * scale)
    assert lr.shape == (4, 3, 16, 16)
    assert hr.min() >= 0.0
    assert hr.max() <= 1.0
    torch.testing.assert_close(lr[..., 2:-2, 2:-2], bicubic_batch(hr, scale)[..., 2:-2, 2:-2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_border_of_an_lr_crop_sees_the_picture_around_it(scale: int) -> None:
    y, x = np.mgrid[0:120, 0:120].astype(np.uint8)
    hr, lr = sampler(np.stack([y, x, y], 2), scale=scale).batch(0, 0, 4, 8 * scale)
    torch.testing.assert_close(lr, avg_pool2d(hr, scale), atol=1e-6, rtol=0, msg="a ramp stays a ramp up to the border")


def test_crops_are_unresampled_pieces_in_all_eight_orientations() -> None:
    y, x = np.mgrid[0:60, 0:60].astype(np.uint8)
    hr, _ = sampler(np.stack([y, x, y], 2)).batch(0, 0, 64, 16)
    levels = torch.round(hr * 255.0).int()
    seen = set()
    for crop in levels:
        down, right = crop[:2, 1, 0] - crop[:2, 0, 0], crop[:2, 0, 1] - crop[:2, 0, 0]
        rows, cols = torch.arange(16)[:, None], torch.arange(16)
        for c in range(2):
            assert torch.equal(crop[c], crop[c, 0, 0] + down[c] * rows + right[c] * cols)
        seen.add((*down.tolist(), *right.tolist()))
    straight = {(s, 0, 0, t) for s in (-1, 1) for t in (-1, 1)}
    assert seen == straight | {(0, s, t, 0) for s in (-1, 1) for t in (-1, 1)}


@pytest.mark.parametrize(("power", "share"), [(1.0, 0.8), (0.5, 2 / 3), (0.0, 0.5)])
def test_pictures_are_drawn_in_proportion_to_a_power_of_their_area(power: float, share: float) -> None:
    pictures = [np.zeros((24, 24, 3), np.uint8), np.full((48, 48, 3), 255, np.uint8)]
    hr, _ = CropSampler(pictures, 2, 0, CPU, area_power=power).batch(0, 0, 1000, 8)
    assert abs(hr.mean() - share) < 0.04


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 12), count=st.integers(12, 60))
def test_short_axes_are_mirrored(size: int, count: int) -> None:
    want = np.pad(np.arange(size), (0, count - size), mode="reflect" if size > 1 else "edge")
    np.testing.assert_array_equal(CropSampler._indices(0, count, size), want)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (5, 7), (23, 90), (90, 23)])
@pytest.mark.parametrize("scale", [2, 4])
def test_pictures_smaller_than_the_crop_are_used(shape: tuple[int, int], scale: int) -> None:
    picture = probe_picture(*shape)
    hr, lr = sampler(picture, scale=scale).batch(0, 0, 2, 8 * scale)
    assert hr.shape == (2, 3, 8 * scale, 8 * scale)
    assert lr.shape == (2, 3, 8, 8)
    colours = {tuple(p) for p in picture.reshape(-1, 3).tolist()}
    assert {tuple(p) for p in torch.round(hr * 255.0).int().permute(0, 2, 3, 1).reshape(-1, 3).tolist()} <= colours


def test_no_picture_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="no training pictures"):
        CropSampler([], 2, 0, CPU)


def test_pictures_are_found_below_the_folders_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a/deep/x.png", "a/notes.txt", "a/y.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = find_pictures([tmp_path / "b", tmp_path / "a"])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["b/1.jpg", "b/2.PNG", "a/deep/x.png", "a/y.png"]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: not a folder; give a folder of pictures"):
        find_pictures([tmp_path / "gone"])
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"file.png: not a folder"):
        find_pictures([tmp_path / "file.png"])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme.md").write_text("no picture")
    with pytest.raises(InputError, match=r"none: no picture found; wanted are .*\.png"):
        find_pictures([tmp_path / "none"])


@pytest.mark.skipif(os.name == "nt", reason="links take rights there")
def test_links_to_folders_are_told_and_links_to_pictures_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("far/1.png", "here/2.png"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(b"")
    here = tmp_path / "here"
    (here / "0.png").symlink_to("../far/1.png")
    (here / "gone.png").symlink_to("../far/none.png")
    assert [p.name for p in find_pictures([here])] == ["0.png", "2.png"]
    assert capsys.readouterr().err == ""
    (here / "a").symlink_to("../far")
    (here / "b").symlink_to(".")
    assert [p.name for p in find_pictures([here])] == ["0.png", "2.png"]
    told = f"{here}/a: a link to a folder, which is not followed, nor are 1 more; name where it leads as a folder of its own"
    assert capsys.readouterr().err == f"warning: {told}\n"
    (tmp_path / "link").symlink_to("far")
    assert [p.name for p in find_pictures([tmp_path / "link"])] == ["1.png"]
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "1.png").write_bytes(b"")
    scan = os.scandir

    def refuse(path: str | Path) -> Any:
        if os.path.basename(path) == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"shut: cannot read this folder: Permission denied"):
        find_pictures([tmp_path])


def test_all_pictures_that_cannot_be_taken_are_named_at_once(tmp_path: Path) -> None:
    """With what helps in a folder of pictures, which is no option of `rescale down`."""
    good, frames = Image.fromarray(probe_picture(9, 7)), [Image.fromarray(probe_picture(9, 7, 1))]
    good.save(tmp_path / "good.png")
    Image.fromarray(np.full((9, 7), 257, np.uint16)).save(tmp_path / "deep.png")
    good.save(tmp_path / "frames.gif", save_all=True, append_images=frames)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(InputError) as told:
        load_all(find_pictures([tmp_path]))
    deep, moving, text = str(told.value).split("; also ")
    cure = "; convert it first, or take it out of the folder"
    assert deep == f"{tmp_path}/deep.png: more than 8 bits a sample, which the networks cannot hold{cure}"
    assert moving == f"{tmp_path}/frames.gif: has several frames{cure}"
    assert text.startswith(f"{tmp_path}/text.jpg: not a picture that can be read")
    with pytest.raises(InputError, match=r"; and 2 more pictures cannot be taken$"):
        load_all([tmp_path / "text.jpg"] * 12)
    (whole,) = load_all([tmp_path / "good.png"])
    (part,) = load_all([tmp_path / "good.png"], 4)
    np.testing.assert_array_equal(part, whole[:4, :4])
    assert part.base is None, "a part does not hold its whole picture in memory"


def test_pictures_load_as_rgb(tmp_path: Path) -> None:
    picture = probe_picture(9, 7)
    Image.fromarray(picture).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "rgb.png"), picture)
    assert load_picture(tmp_path / "rgb.png").flags.writeable, "torch warns of read-only arrays"
    Image.fromarray(picture[:, :, 0]).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "gray.png"), np.repeat(picture[:, :, :1], 3, 2))


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(probe_picture(40, 40)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    wrong = {"text": "not a picture that can be read", "cut": "truncated PNG", "gone": "no such file"}
    for name, message in wrong.items():
        with pytest.raises(InputError, match=f"{name}.png: {message}"):
            load_picture(tmp_path / f"{name}.png")


def test_nothing_is_converted_in_silence(tmp_path: Path) -> None:
    rgb = Image.fromarray(probe_picture(24, 24))
    Image.fromarray(np.full((24, 24), 40000, np.uint16)).save(tmp_path / "deep.png")
    rgb.convert("CMYK").save(tmp_path / "print.jpg")
    rgb.save(tmp_path / "frames.webp", save_all=True, append_images=[rgb.rotate(90)], lossless=True)
    clear = rgb.convert("RGBA")
    clear.putpixel((3, 3), (1, 2, 3, 4))
    clear.save(tmp_path / "clear.png")
    wrong = {"deep.png": "more than 8 bits", "print.jpg": "CMYK", "frames.webp": "several frames", "clear.png": "flatten it"}
    for name, message in wrong.items():
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            load_picture(tmp_path / name)
    clear.putalpha(255)
    clear.save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "opaque.png"), np.array(clear)[:, :, :3])
