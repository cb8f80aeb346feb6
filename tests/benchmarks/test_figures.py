from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from rescale.errors import InputError
from rescale.quality import counted_border, crop_border, luma, psnr, psnr_y
from rescale_bench.paper import SETS, TABLE_3, published
from rescale_bench.pictures import crop_to_multiple
from rescale_bench.quality import mean, ssim_y
from rescale_export.probe import probe_picture

seeds = st.integers(0, 2**31)
calm = settings(deadline=None, max_examples=30)


def flat(level: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize(("step", "decibels"), [(1, 48.1308), (2, 42.1102), (10, 28.1308), (255, 0.0)])
def test_a_constant_difference_has_a_known_psnr(step: int, decibels: float) -> None:
    assert psnr(flat(0), flat(step)) == pytest.approx(decibels, abs=1e-4)
    assert psnr(flat(step), flat(0)) == psnr(flat(0), flat(step))


def test_a_gray_level_is_219_255ths_of_a_level_of_y() -> None:
    assert psnr_y(flat(100), flat(101)) == pytest.approx(48.1308 + 20 * math.log10(255 / 219), abs=1e-4)


def test_one_wrong_channel_is_a_third_of_the_error() -> None:
    other = flat(50)
    other[..., 1] += 3
    assert psnr(flat(50), other) == pytest.approx(10 * math.log10(255**2 / 3), abs=1e-9)


def test_equal_pictures_have_an_infinite_psnr() -> None:
    assert psnr(flat(7), flat(7)) == psnr_y(flat(7), flat(7)) == math.inf


def test_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"PSNR of different shapes: \(20, 24, 3\) and \(20, 25, 3\)"):
        psnr(flat(0), flat(0, 20, 25))


@calm
@given(seed=seeds, height=st.integers(1, 30), width=st.integers(1, 30))
def test_psnr_is_that_of_scikit_image(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))


@pytest.mark.parametrize(
    ("colour", "y"),
    [
        ((255, 0, 0), 16 + 65.481),
        ((0, 255, 0), 16 + 128.553),
        ((0, 0, 255), 16 + 24.966),
        ((255, 255, 255), 235.0),
        ((0, 0, 0), 16.0),
    ],
)
def test_y_of_pure_colours_is_that_of_matlab(colour: tuple[int, int, int], y: float) -> None:
    np.testing.assert_allclose(luma(np.full((2, 3, 3), colour, np.uint8)), np.full((2, 3), y), atol=1e-9)


@calm
@given(seed=seeds)
def test_y_is_that_of_scikit_image_and_is_not_rounded(seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    y = luma(picture)
    np.testing.assert_allclose(y, rgb2ycbcr(picture)[..., 0], atol=1e-6)
    assert np.any(y != np.rint(y))


@pytest.mark.parametrize("border", [1, 2, 4])
def test_the_border_does_not_count(border: int) -> None:
    a = probe_picture(20, 24)
    b = a.copy()
    b[:border], b[-border:], b[:, :border], b[:, -border:] = 0, 0, 0, 0
    assert psnr_y(a, b, border) == math.inf
    assert psnr_y(a, b, border - 1) < 40.0
    assert ssim_y(a, b, border) == pytest.approx(1.0)
    np.testing.assert_array_equal(crop_border(a, border), a[border : 20 - border, border : 24 - border])
    assert counted_border(a, border) == border


@pytest.mark.parametrize(("height", "border"), [(4, 2), (1, 1), (8, 4)])
def test_a_picture_that_is_all_border_counts_whole(height: int, border: int) -> None:
    picture = probe_picture(height, 30)
    assert crop_border(picture, border).shape == picture.shape
    assert counted_border(picture, border) == 0


def ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al.: 11x11 Gaussian window, sigma 1.5, over the positions where it fits."""
    at = np.arange(11) - 5.0
    line = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    a, b = (np.lib.stride_tricks.sliding_window_view(p, (11, 11)) for p in (x, y))

    def blur(p: np.ndarray) -> np.ndarray:
        return (p * window).sum((-1, -2))

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(value.mean())


@pytest.mark.parametrize("seed", range(3))
def test_ssim_is_that_of_its_definition(seed: int) -> None:
    a = probe_picture(34, 29, seed)
    noise = np.random.default_rng(seed).normal(0, 12, a.shape)
    b = np.clip(a + noise, 0, 255).astype(np.uint8)
    got = ssim_y(a, b, 2)
    assert got == pytest.approx(ssim_by_definition(luma(a)[2:-2, 2:-2], luma(b)[2:-2, 2:-2]), abs=1e-6)
    assert 0.2 < got < 0.99


def test_ssim_of_equal_pictures_is_1() -> None:
    assert ssim_y(probe_picture(20, 20), probe_picture(20, 20), 2) == pytest.approx(1.0)


@pytest.mark.parametrize(("side", "defined"), [(10, False), (14, False), (15, True)])
def test_ssim_of_a_tiny_picture_is_undefined(side: int, defined: bool) -> None:
    tiny = probe_picture(side, 40)
    assert math.isnan(ssim_y(tiny, tiny, 2)) is not defined


@pytest.mark.parametrize(("values", "wanted"), [([1.0, math.nan, 4.0], 2.5), ([math.inf, 1.0], math.inf), ([2.0], 2.0)])
def test_the_mean_is_of_the_defined_values(values: list[float], wanted: float) -> None:
    assert mean(values) == wanted


@pytest.mark.parametrize("values", [[], [math.nan]])
def test_a_mean_of_nothing_is_undefined(values: list[float]) -> None:
    assert math.isnan(mean(values))


@calm
@given(height=st.integers(4, 20), width=st.integers(4, 20), multiple=st.sampled_from([1, 2, 4]))
def test_pictures_are_cut_at_the_bottom_and_right(height: int, width: int, multiple: int) -> None:
    picture = probe_picture(height, width)
    cut = crop_to_multiple(picture, multiple, "p.png")
    rows, cols = cut.shape[:2]
    assert 0 <= height - rows < multiple
    assert 0 <= width - cols < multiple
    assert rows % multiple == cols % multiple == 0
    np.testing.assert_array_equal(cut, picture[:rows, :cols])


def test_a_picture_below_the_scale_is_refused() -> None:
    with pytest.raises(InputError, match=r"^p.png: 9x3 is smaller than the scale 4; take it out$"):
        crop_to_multiple(probe_picture(3, 9), 4, "p.png")


@pytest.mark.parametrize(
    ("scale", "name", "method", "figures"),
    [
        (2, "Set5", "IRN", (43.99, 0.9871)),
        (2, "Set5", "DLV-IRN-A", (47.81, 0.9937)),
        (2, "BSD100", "DLV-IRN-A", (47.15, 0.9967)),
        (2, "DIV2K", "CAR", (38.26, 0.9599)),
        (4, "Set14", "HCFlow", (33.02, 0.9065)),
        (4, "Urban100", "DLV-IRN-M", (32.33, 0.9264)),
        (4, "DIV2K", "DLV-IRN-A", (36.67, 0.9504)),
    ],
)
def test_published_figures(scale: int, name: str, method: str, figures: tuple[float, float]) -> None:
    assert published(scale, name)[method] == figures


@pytest.mark.parametrize("name", ["set5", "SET5", "Set-5", "set_5"])
def test_sets_are_known_by_their_folder_in_any_spelling(name: str) -> None:
    assert published(2, name) == published(2, "Set5") != {}


@pytest.mark.parametrize(("scale", "name"), [(2, "Kodak"), (2, "Set51"), (2, ""), (3, "Set5")])
def test_other_sets_and_scales_have_no_figures(scale: int, name: str) -> None:
    assert published(scale, name) == {}


def test_the_table_is_whole_and_plausible() -> None:
    for scale, rows in TABLE_3.items():
        for method, figures in rows.items():
            assert len(figures) == len(SETS), (scale, method)
            assert all(25.0 < p < 50.0 and 0.75 < s < 1.0 for p, s in figures)
    assert {m: len(r) for m, r in TABLE_3.items()} == {2: 6, 4: 7}
