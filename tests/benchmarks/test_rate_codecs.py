"""Codecs that rescaling is compared with, and bicubic interpolation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from rescale.quality import psnr, psnr_y
from rescale_bench import rate_codecs
from rescale_bench.bicubic import reduce
from rescale_bench.pictures import sample
from rescale_bench.rate_codecs import LOSSLESS, LOSSY, Codec, CodecError, jxl_distance, lr_containers
from rescale_export.probe import probe_picture
from rescale_train.bicubic import bicubic_picture, enlarge_picture

calm = settings(deadline=None, max_examples=60)
CODECS = {c.name: c for c in LOSSY}


def small_photograph() -> np.ndarray:
    return np.ascontiguousarray(sample("chelsea.png")[100:164, 120:217])


@pytest.mark.parametrize("codec", LOSSY, ids=lambda c: c.name)
def test_a_codec_is_measured_as_it_is(codec: Codec) -> None:
    if codec.need.missing():
        pytest.skip(codec.need.missing())
    picture = small_photograph()
    points = []
    for step in codec.ladder:
        data = codec.encode(picture, step)
        again = codec.decode(data)
        assert (again.shape, again.dtype) == (picture.shape, np.uint8)
        points.append((len(data), psnr_y(again, picture)))
    sizes, decibels = zip(*points, strict=True)
    assert list(sizes) == sorted(sizes), "bytes grow along the ladder"
    assert list(decibels) == sorted(decibels), "and so does the PSNR"
    assert decibels[0] < 35 < 46 < decibels[-1]
    assert codec.need.version().split()[0] in ("pillow", "imagecodecs")


def test_jpeg_2000_codes_colours_together() -> None:
    picture = small_photograph()
    data = CODECS["jpeg2000"].encode(picture, 150)
    assert data.startswith((b"\0\0\0\x0cjP", b"\xffO\xffQ"))
    coding = data.index(b"\xffR")
    assert data[coding + 8] == 1, "the multiple component transform"


def test_jxl_steps_are_even_in_the_logarithm_of_the_distance() -> None:
    distances = [jxl_distance(s) for s in range(241)]
    assert (distances[0], distances[-1]) == (pytest.approx(15.0), pytest.approx(0.02))
    ratios = np.divide(distances[1:], distances[:-1])
    np.testing.assert_allclose(ratios, ratios[0])


@pytest.mark.parametrize("codec", LOSSLESS, ids=lambda c: c.name)
def test_a_lossless_codec_is(codec: rate_codecs.Lossless) -> None:
    if codec.need.missing():
        pytest.skip(codec.need.missing())
    picture = small_photograph()
    assert psnr(codec.decode(codec.encode(picture)), picture) == math.inf
    assert 0 < codec.size(picture) < picture.size


def test_a_codec_that_claims_to_be_lossless_is_caught() -> None:
    liar = replace(LOSSLESS[0], title="Liar", encode=lambda p: LOSSLESS[0].encode(p // 2))
    with pytest.raises(CodecError, match="Liar: the decoded picture is not the one that was encoded"):
        liar.size(small_photograph())


@pytest.mark.parametrize(
    ("codec", "feature", "cure"),
    [
        ("avif420", "avif", "pip install -U 'pillow>=11.3'"),
        ("webp", "webp", "pip install"),
        ("jpeg2000", "jpg_2000", "pip install"),
    ],
)
def test_a_feature_that_pillow_lacks_is_named(monkeypatch: pytest.MonkeyPatch, codec: str, feature: str, cure: str) -> None:
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != feature and check(name))
    reason = CODECS[codec].need.missing()
    assert f"this Pillow has no {feature}: " in reason
    assert cure in reason
    assert any(line.startswith(f"{CODECS[codec].title}: this Pillow") for line in rate_codecs.missing())


@pytest.mark.usefixtures("no_imagecodecs")
def test_without_imagecodecs_each_codec_that_needs_it_is_named() -> None:
    cure = "imagecodecs is not installed: pip install 'rescale-toolkit[jxl]'"
    assert rate_codecs.missing() == [f"{t}: {cure}" for t in ("JPEG XL", "JPEG XL lossless", "AVIF lossless")]
    assert lr_containers() == ["png", "webp"]


@calm
@given(seed=st.integers(0, 999), height=st.integers(1, 12), width=st.integers(1, 12), scale=st.sampled_from([2, 4]))
def test_reduction_takes_any_size(seed: int, height: int, width: int, scale: int) -> None:
    picture = probe_picture(height, width, seed)
    lr = reduce(picture, scale)
    assert lr.shape == (-(-height // scale), -(-width // scale), 3)
    if not (height % scale or width % scale):
        np.testing.assert_array_equal(lr, bicubic_picture(picture, scale))
    assert enlarge_picture(lr, scale).shape == (lr.shape[0] * scale, lr.shape[1] * scale, 3)


@pytest.mark.parametrize("scale", [2, 4])
def test_enlargement_is_that_of_pillow_off_the_border(scale: int) -> None:
    picture = small_photograph()
    size = (picture.shape[1] * scale, picture.shape[0] * scale)
    wanted = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    border = 3 * scale
    inner = np.s_[border:-border, border:-border]
    assert np.abs(enlarge_picture(picture, scale)[inner].astype(int) - wanted[inner]).max() <= 1


@pytest.mark.parametrize("scale", [2, 4])
def test_a_flat_picture_stays_flat(scale: int) -> None:
    assert np.all(enlarge_picture(np.full((3, 5, 3), 77, np.uint8), scale) == 77)
