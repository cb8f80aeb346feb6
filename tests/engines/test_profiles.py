"""Profiles are checked before any builder sees them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale.bundle import Bundle
from rescale.contract import Tensor
from rescale.errors import ConfigError
from rescale.variants import LATENT_STRIDE, SCALES
from rescale_engines.profiles import CLASSES, MAX_HR_SIDE, Profile, Size, parse_profile

GOOD = (Size(1, 64, 64), Size(1, 720, 1280), Size(4, 2160, 3840))


@pytest.mark.parametrize(("model", "scale"), [("irn_m", 2), ("irn_m", 4), ("dlv_irn_a", 4)])
def test_shapes_of_every_input_of_a_bundle(bundle, model, scale):
    profile = Profile(scale, *GOOD)
    graphs = Bundle(bundle(model, scale)).graphs
    down = profile.shapes(graphs["downscale"].inputs[0])
    assert down == ((1, 64, 64, 3), (1, 720, 1280, 3), (4, 2160, 3840, 3))
    channels = 4 if model.endswith("_a") else 3
    assert profile.shapes(graphs["upscale"].inputs[0])[1] == (1, 720 // scale, 1280 // scale, channels)
    if "decoder" in graphs:
        assert profile.shapes(graphs["decoder"].inputs[0])[1] == (1, 4, 720 // scale // 4, 1280 // scale // 4)
        z = profile.shapes(graphs["encoder"].inputs[0])[0]
        assert z[0::2] == (1, 64 // scale)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (Size(1, 64, 64), Size(1, 32, 64), Size(1, 64, 64)),
            r"height must not decrease from smallest to largest, got \[64, 32, 64\]",
        ),
        ((Size(0, 64, 64), *GOOD[1:]), "batch 0 is not a multiple of 1 from 1 to 1024"),
        ((Size(1, 63, 64), *GOOD[1:]), "height 63 is not a multiple of 2 from 2"),
        ((Size(1, 64, 0), *GOOD[1:]), "width 0 is not a multiple of 2"),
        ((*GOOD[:2], Size(4, 2160, MAX_HR_SIDE + 2)), f"width {MAX_HR_SIDE + 2} is not a multiple of 2 from 2 to {MAX_HR_SIDE}"),
    ],
)
def test_bad_profiles_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        Profile(2, *sizes)


def test_unknown_axis_is_refused():
    with pytest.raises(ConfigError, match="input x has an unknown axis 'depth'"):
        Profile(2, *GOOD).shapes(Tensor("x", "uint8", ("batch", "depth")))


sides = st.tuples(st.integers(1, 3), st.integers(1, 300), st.integers(1, 300))


@given(st.sampled_from(SCALES), st.lists(sides, min_size=3, max_size=3))
def test_text_and_back(scale, sizes):
    ordered = zip(*[sorted(axis) for axis in zip(*sizes, strict=True)], strict=True)
    text = ":".join(f"{b}x{h * scale}x{w * scale}" for b, h, w in ordered)
    profile = parse_profile(text, scale)
    assert str(profile) == text.replace(":", "-")
    assert parse_profile(str(profile).replace("-", ":"), scale) == profile


@given(st.sampled_from(SCALES), st.integers(1, 500), st.integers(1, 500))
def test_the_encoder_gets_padded_planes_and_nothing_else_does(scale, h, w):
    profile = parse_profile(f"{h * scale}x{w * scale}", scale)
    z = Tensor("z", "float32", ("batch", 9, "lr_height", "lr_width"))
    assert profile.shapes(z, "upscale")[0] == (1, 9, h, w)
    (_, _, padded_h, padded_w), code = profile.shapes(z, "encoder")[0], Tensor("code", "uint8", ("latent_height", "latent_width"))
    assert padded_h % LATENT_STRIDE == padded_w % LATENT_STRIDE == 0
    assert 0 <= padded_h - h < LATENT_STRIDE
    assert (padded_h // LATENT_STRIDE, padded_w // LATENT_STRIDE) == profile.shapes(code, "decoder")[0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CLASSES)
def test_named_profiles_begin_with_the_smallest_picture(name, scale):
    profile = parse_profile(name, scale)
    assert profile.smallest == Size(1, scale, scale)
    assert (profile.best, profile.largest) == CLASSES[name]


def test_one_size_and_a_batch():
    assert parse_profile("64x96", 2) == Profile(2, Size(1, 64, 96), Size(1, 64, 96), Size(1, 64, 96))
    assert parse_profile("64x96:2x64x96:4x64x96", 2).largest == Size(4, 64, 96)


@pytest.mark.parametrize(
    "text", ["", "big", "64", "64x64:64x64", "1:2:3", "64x64x64x64", "-2x2", "64X64", "64x64:64x64:64x64:64x64", "9e9x2"]
)
def test_texts_that_are_no_profile(text):
    with pytest.raises(ConfigError, match="profile"):
        parse_profile(text, 2)


def test_memory_is_that_of_the_largest_size(bundle):
    graph = Bundle(bundle("irn", 2)).graphs["upscale"]
    profile = parse_profile("2x2:64x64:2x128x256", 2)
    need = graph.memory * 2 * 64 * 128
    assert profile.memory(graph) == need
    profile.require_memory(graph, need)
    with pytest.raises(ConfigError, match=r"upscale.onnx needs about .* at 2x128x256, .* --max-memory"):
        profile.require_memory(graph, need - 1)
