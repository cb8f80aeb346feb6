from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from PIL import Image

from rescale.console import run_app
from rescale.errors import ConfigError, MissingExtraError
from rescale.quality import psnr
from rescale_export.probe import photograph, probe_picture
from rescale_train.cli import main
from rescale_train.config import Recipe, TrainConfig
from rescale_train.content import degraded, drawn, held, ink
from rescale_train.content.__main__ import app
from rescale_train.content.cast import BLOCK, block_shifts, colour_cast
from rescale_train.content.mix import MixConfig
from rescale_train.content.pool import LEAST, SIDE, build_pool, counts
from rescale_train.content.report import fidelity, summary
from rescale_train.data import CropSampler, Picture
from rescale_train.loop import Trainer
from rescale_train.recipe import load_recipe, recipe_names
from rescale_train.tables import from_dict, to_dict
from rescale_train.validation import CEILING

CPU = torch.device("cpu")
FLAT = np.full((90, 70, 3), 77, np.uint8)
SMALL = MixConfig(text=0.1, pattern=0.2, colour=0.2, jpeg=0.1, pool=8)


sides = st.integers(64, 200)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- the kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*drawn.KINDS, *held.LAYOUTS])
def test_a_drawn_picture_is_decided_by_its_numbers_alone(kind: str) -> None:
    make = (drawn.KINDS | held.LAYOUTS)[kind]
    for i in range(6):
        first = make(rng(3, i), 96, 128)
        drawn.text(rng(i), 64, 64)  # whatever fonts and caches hold by then
        assert (first.shape, first.dtype) == ((96, 128, 3), np.uint8)
        np.testing.assert_array_equal(make(rng(3, i), 96, 128), first)
        assert not np.array_equal(make(rng(4, i), 96, 128), first)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(drawn.KINDS)), seed=st.integers(0, 2**32), height=st.integers(64, 200), width=st.integers(64, 200)
)
@example(kind="screen", seed=234645, height=64, width=64)  # a window narrower than its tick boxes
def test_drawn_pictures_of_any_size(kind: str, seed: int, height: int, width: int) -> None:
    picture = drawn.KINDS[kind](rng(seed), height, width)
    assert (picture.shape, picture.dtype) == ((height, width, 3), np.uint8)


@pytest.mark.parametrize("kind", drawn.KINDS)
def test_the_pictures_of_a_kind_are_not_alike(kind: str) -> None:
    made = [drawn.KINDS[kind](rng(0, i), 96, 96) for i in range(16)]
    assert len({p.tobytes() for p in made}) == 16
    assert len({tuple(p[0, 0]) for p in made}) >= 6


def test_every_corner_of_the_gamut_is_drawn() -> None:
    seen = {tuple(c) for i in range(40) for c in np.unique(drawn.colour(rng(i), 96, 96).reshape(-1, 3), axis=0).tolist()}
    assert set(ink.PRIMARIES) <= seen


@pytest.mark.parametrize("name", ink.FONTS)
def test_smoothing_of_text(name: str) -> None:
    made = {}
    for how in ink.SMOOTHING:
        image = Image.new("RGB", (80, 24), (255, 255, 255))
        assert ink.write(image, (3, 2), "Hamburg", ink.font(name, 14), (0, 0, 0), how) > 20
        made[how] = np.array(image)
        assert made[how].min() < 100
    assert set(np.unique(made["hard"])) == {0, 255}
    assert len(np.unique(made["grey"])) > 8
    assert np.ptp(made["grey"].astype(int), axis=2).max() == 0
    assert np.ptp(made["subpixel"].astype(int), axis=2).max() > 40, "an LCD's stripes colour the edges"


def test_text_out_of_the_picture_is_cut() -> None:
    image = Image.new("RGB", (20, 20))
    for at in ((-5, 3), (3, -5), (30, 3), (3, 30), (15, 15)):
        ink.write(image, at, "words beyond all borders", ink.font("DejaVuSans.ttf", 12), (255, 255, 255), "subpixel")
    assert image.size == (20, 20)


def test_fonts_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    ink.font_folder.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"matplotlib not installed: pip install .*\[train\]"):
        ink.font_folder()


@pytest.mark.parametrize("kind", degraded.KINDS)
def test_a_degraded_photograph_still_shows_it(kind: str) -> None:
    source = photograph(160, 200)
    for i in range(12):
        got = degraded.KINDS[kind](source, rng(i), 128)
        assert got.dtype == np.uint8
        assert got.shape[2] == 3
        assert max(got.shape[:2]) <= 128
        np.testing.assert_array_equal(degraded.KINDS[kind](source, rng(i), 128), got)
        assert got.std() > 1.0


def test_jpeg_changes_little_and_never_nothing() -> None:
    source = photograph(96, 96)
    for i in range(12):
        assert 20.0 < psnr(degraded.jpeg(source, rng(i), 96), source) < 50.0


def test_reduction_stops_where_a_crop_would_be_mirrored() -> None:
    large, tiny = probe_picture(400, 500), probe_picture(40, 50)
    made = [degraded.shrunk(large, rng(i), 384).shape[:2] for i in range(30)]
    assert min(min(shape) for shape in made) >= degraded.SHORTEST
    assert min(max(shape) for shape in made) < 150
    assert max(max(shape) for shape in made) > 240
    assert all(degraded.shrunk(tiny, rng(i), 384).shape == (40, 50, 3) for i in range(12))


# --- the pool and the crops --------------------------------------------------------------------------------------------


def test_the_pool_depends_on_seed_and_photographs_only() -> None:
    one, other = (build_pool(SMALL, [photograph()], seed) for seed in (0, 0))
    assert list(one) == ["text", "pattern", "colour", "jpeg"]
    for kind, pictures in one.items():
        assert len(pictures) == LEAST
        assert all(max(p.shape) <= SIDE for p in pictures)
        for a, b in zip(pictures, other[kind], strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(build_pool(MixConfig(colour=0.1, pool=1), [FLAT], 1)["colour"][3], one["colour"][3])


@settings(deadline=None)
@given(shares=st.lists(st.floats(0.0, 0.1), min_size=10, max_size=10), pool=st.integers(100, 5000))
def test_the_pool_is_divided_by_share(shares: list[float], pool: int) -> None:
    mix = MixConfig(**dict(zip(MixConfig.KINDS, shares, strict=True)), pool=pool)
    got = counts(mix)
    assert list(got) == [k for k, s in zip(MixConfig.KINDS, shares, strict=True) if s > 0]
    assert all(n >= LEAST for n in got.values())
    assert sum(got.values()) <= pool + 10 * LEAST


def test_the_kinds_of_the_recipe_are_those_that_can_be_made() -> None:
    assert set(MixConfig.KINDS) == set(drawn.KINDS) | set(degraded.KINDS)
    assert not set(MixConfig.KINDS) & set(held.LAYOUTS)


def test_no_mix_leaves_the_crops_as_they_were() -> None:
    pictures = [probe_picture(90, 70, 1), probe_picture(120, 60, 2)]
    bare, empty = CropSampler(pictures, 2, 0, CPU), CropSampler(pictures, 2, 0, CPU, MixConfig())
    np.testing.assert_array_equal(bare.share, np.array([6300.0, 7200.0]) / 13500.0)
    for step in range(3):
        for a, b in zip(bare.batch(step, 0, 4, 16), empty.batch(step, 0, 4, 16), strict=True):
            assert torch.equal(a, b)


def test_each_kind_has_its_share_of_the_crops() -> None:
    sampler = CropSampler([FLAT], 2, 0, CPU, SMALL)
    assert sampler.share[0] == pytest.approx(0.4)
    np.testing.assert_allclose(sampler.share[1:].reshape(4, LEAST).sum(1), [0.1, 0.2, 0.2, 0.1])
    hr, lr = sampler.batch(0, 0, 1500, 16)
    assert hr.shape == (1500, 3, 16, 16)
    assert lr.shape == (1500, 3, 8, 8)
    photographs = (hr == 77 / 255).all(dim=(1, 2, 3)).float().mean()
    assert 0.46 < photographs < 0.54, "0.4 as they are, and 0.1 whose flat grey JPEG leaves alone"


def test_mixed_crops_depend_on_seed_step_and_rank_only() -> None:
    one, other = CropSampler([photograph()], 2, 0, CPU, SMALL), CropSampler([photograph()], 2, 0, CPU, SMALL)
    want = one.batch(3, 1, 8, 16)
    other.batch(9, 0, 3, 32)
    assert torch.equal(other.batch(3, 1, 8, 16)[0], want[0])
    for changed in (one.batch(4, 1, 8, 16), one.batch(3, 0, 8, 16)):
        assert not torch.equal(changed[0], want[0])


def test_a_resumed_run_with_a_mix_follows_the_unbroken_one(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of("irn_a", mix=MixConfig(pattern=0.3, colour=0.3, jpeg=0.2, pool=1), steps=6)

    def sampler() -> CropSampler:
        return CropSampler([photograph(96, 96)], 2, recipe.train.seed, CPU, recipe.train.mix)

    whole, part, later = (Trainer(recipe, CPU) for _ in range(3))
    crops = sampler()
    for _ in range(6):
        whole.train_step(crops)
    crops = sampler()
    for _ in range(3):
        part.train_step(crops)
    part.save(tmp_path / "c.safetensors", {})
    later.resume(tmp_path / "c.safetensors")
    crops = sampler()
    for _ in range(3):
        later.train_step(crops)
    for a, b in zip(whole.net.parameters(), later.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_command_mixes(pictures: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {}
    for share in ("0.0", "1.0"):
        out = tmp_path / share
        common = ["run", str(recipe_file), "--data", str(pictures), "--holdout", "1", "--threads", "1", "--log-every", "1"]
        assert main([*common, "--out", str(out), "--set", f"train.mix.colour={share}", "--set", "train.mix.pool=8"]) == 0
        losses[share] = json.loads((out / "log.jsonl").read_text().splitlines()[0])["total"]
    capsys.readouterr()
    assert losses["0.0"] != losses["1.0"]


# --- the recipe --------------------------------------------------------------------------------------------------------


def test_a_recipe_without_a_mix_has_none_and_older_files_stay_valid() -> None:
    table = to_dict(TrainConfig(steps=5))
    assert not TrainConfig(steps=5).mix.shares()
    del table["mix"], table["loss"]["lr_kind"], table["loss"]["lr_clamp"]
    assert from_dict(TrainConfig, table, "train") == TrainConfig(steps=5)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.endswith("_robust")])
def test_the_robust_recipes_keep_photographs_in_the_majority(name: str) -> None:
    robust, plain = load_recipe(name), load_recipe(name.removesuffix("_robust"))
    assert robust.net == plain.net
    assert set(robust.train.mix.shares()) == set(MixConfig.KINDS)
    assert sum(robust.train.mix.shares().values()) == pytest.approx(0.2)
    loss = robust.train.loss
    assert (loss.lr_clamp, loss.hr_kind, loss.luma) == (True, "psnr", 3.0)
    assert (robust.train.optimiser, robust.train.area_power, robust.train.hard_crops) == ("soap", 0.25, 0.9)
    lr = {"dlv_irn_a_x2_lite_robust": 12.0, "dlv_irn_a_x4_full_robust": 4.0}.get(name, {2: 8.0, 4: 3.0}[robust.net.scale])
    assert (loss.lr, loss.hr, loss.hr_knee) == (lr, 1.0, {2: 0.0, 4: 40.0}[robust.net.scale])
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(robust.train))), "train") == robust.train


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mix.text", "-0.1", "train.mix.text: 0 to 1, got -0.1"),
        ("mix.text", "nan", "train.mix.text: 0 to 1, got nan"),
        ("mix.jpeg", "0.9", "train.mix: the shares sum to at most 1, got 1.08"),
        ("mix.pool", "0", "train.mix.pool: 1 to 100000, got 0"),
        ("mix.pool", "1.5", "train.mix.pool: int was expected, got 1.5"),
        ("mix.cats", "0.1", "train.mix.cats: unknown key; known are text, screen"),
        ("mix", "0.5", "train.mix: a table was expected, got 0.5"),
        ("loss.lr_kind", '"l1"', "train.loss.lr_kind: one of l2, charbonnier, got 'l1'"),
        ("loss.hr_kind", '"l1"', "train.loss.hr_kind: one of charbonnier, psnr, got 'l1'"),
        ("loss.luma", "-0.1", "train.loss.luma: 0 to 100, got -0.1"),
        ("loss.hr_knee", "-1.0", "train.loss.hr_knee: 0 to 100, got -1.0"),
        ("loss.hr_knee", "nan", "train.loss.hr_knee: 0 to 100, got nan"),
    ],
)
def test_a_wrong_value_of_a_robust_recipe_names_its_key(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as e:
        load_recipe("dlv_irn_a_x2_lite_robust", {f"train.{key}": value})
    assert message in str(e.value)


# --- colour casts ------------------------------------------------------------------------------------------------------

small_pictures = stn.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30), st.just(3)))


@settings(deadline=None, max_examples=50)
@given(picture=small_pictures)
def test_a_picture_has_no_cast_against_itself(picture: Picture) -> None:
    assert (colour_cast(picture, picture).mean, colour_cast(picture, picture).worst) == (0.0, 0.0)


@settings(deadline=None, max_examples=50)
@given(picture=small_pictures, shift=st.integers(-40, 40))
def test_greys_have_no_cast_and_a_cast_has_no_sign(picture: Picture, shift: int) -> None:
    narrow = picture // 2 + 60
    np.testing.assert_allclose(block_shifts((narrow.astype(int) + shift).astype(np.uint8), narrow), 0.0, atol=1e-9)
    np.testing.assert_array_equal(block_shifts(narrow, picture), block_shifts(picture, narrow))


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (19, 21), (5, 30), (3, 3)])
def test_a_green_shadow_is_measured_in_levels(size: tuple[int, int]) -> None:
    reference = np.full((*size, 3), 100, np.uint8)
    green = reference.copy()
    green[..., 1] += 20
    cast = colour_cast(green, reference)
    assert cast.mean == pytest.approx(20 * 0.418688)
    assert cast.worst == pytest.approx(20 * 0.418688)
    assert cast.shadow


def test_one_tinted_block_is_found_and_placed() -> None:
    reference = probe_picture(40, 48)
    tinted = reference.astype(np.int64)
    tinted[16:24, 32:40, 0] = np.clip(tinted[16:24, 32:40, 0] + 30, 0, 255)
    shifts = block_shifts(tinted.astype(np.uint8), reference)
    assert shifts.shape == (5, 6)
    assert np.unravel_index(shifts.argmax(), shifts.shape) == (2, 4)
    assert np.count_nonzero(shifts) == 1


def test_single_coloured_pixels_that_cancel_are_no_cast() -> None:
    y, x = np.mgrid[0:32, 0:32]
    sign = np.where((x + y) % 2, 1, -1)[:, :, None]
    reference = np.full((32, 32, 3), 128, np.uint8)
    spotted = (reference + sign * np.array([40, -40, 40])).astype(np.uint8)
    assert colour_cast(spotted, reference).worst < 1e-9
    assert colour_cast(spotted, reference).worst < colour_cast(spotted[:1, :1], reference[:1, :1]).worst


def test_the_rest_beyond_the_last_whole_block_counts() -> None:
    reference = np.zeros((BLOCK + 3, BLOCK, 3), np.uint8)
    tinted = reference.copy()
    tinted[-3:, :, 2] = 200
    assert colour_cast(tinted, reference).worst > 8.0


def test_casts_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different shapes: \(8, 8, 3\) and \(8, 9, 3\)"):
        colour_cast(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8))


# --- the test set and its report ---------------------------------------------------------------------------------------


def test_the_generated_set_is_the_same_every_time() -> None:
    one, other = held.generated_set(96), held.generated_set(96)
    assert len(one) == held.OF_A_KIND * (len(drawn.KINDS) + len(held.LAYOUTS))
    assert len({p.tobytes() for p in one.values()}) == len(one)
    for name, picture in one.items():
        np.testing.assert_array_equal(picture, other[name])


def test_the_degraded_set_names_picture_and_kind() -> None:
    made = held.degraded_set({"a": photograph(), "b": photograph(150, 200)})
    assert sorted(made) == sorted(f"{n} {k}" for n in "ab" for k in degraded.KINDS)


def test_a_perfect_network_has_no_loss_and_no_cast() -> None:
    from rescale_train.bicubic import bicubic_picture

    source = photograph(64, 64)
    got = fidelity(source, bicubic_picture(source, 2), source, 2)
    assert (got.hr_psnr_y, got.lr_psnr_y) == (CEILING, CEILING)
    worse = fidelity(source, bicubic_picture(source, 2), 255 - source, 2)
    both = summary({"a": got, "b": worse})
    assert both["hr_psnr_y"] == pytest.approx((CEILING + worse.hr_psnr_y) / 2)
    assert both["hr_psnr_y_worst"] == worse.hr_psnr_y
    assert both["hr_cast_worst"] == worse.hr_cast.worst
    assert (both["hr_shadows"], both["lr_shadows"], both["count"]) == (int(worse.hr_cast.shadow), 0, 2)


def test_the_report_command(pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(held, "SIDE", 32)
    monkeypatch.setattr(held, "generated_set", lambda: {"text0": drawn.text(rng(1), 64, 64), "odd": drawn.colour(rng(2), 65, 67)})
    arguments = ["irn_x2_lite", "--data", str(pictures)]
    assert run_app(app, [*arguments, "--degraded", "--each"]) == 0
    table = capsys.readouterr().out
    for title in ("| **generated** |", "| odd |", "| **pictures** |", "| 3.png |", "| **pictures jpeg** |", "| 0.png exposed |"):
        assert title in table
    assert run_app(app, [*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["irn_x2_lite"]
    assert list(found) == ["generated", "pictures"]
    assert found["pictures"]["summary"]["count"] == 4
    monkeypatch.chdir(pictures)
    assert run_app(app, ["irn_x2_lite", "--data", ".", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["irn_x2_lite"] == found
    (pictures / "pictures").mkdir()
    assert run_app(app, [*arguments, "--data", "pictures"]) == 2
    assert "two sets would be called 'pictures'" in " ".join(capsys.readouterr().err.split())
    line = next(line for line in table.splitlines() if line.startswith("| odd |"))
    assert f"| {found['generated']['each']['odd']['hr_psnr_y']:.2f} |" in line


def test_the_report_names_what_it_cannot_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["nothing_x2"]) == 1
    assert "nothing_x2: no such file, and no such shipped weights (there are dlv_irn_a_x2_full, " in capsys.readouterr().err
    Image.new("RGB", (4, 90)).save(tmp_path / "thin.png")
    assert run_app(app, ["irn_x2_lite", "--data", str(tmp_path)]) == 1
    assert "side below 8 pixels" in capsys.readouterr().err
