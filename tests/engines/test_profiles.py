"""Profiles are checked before any builder sees them."""

from __future__ import annotations

import pytest

from rescale.bundle import Bundle
from rescale.errors import ConfigError
from rescale_engines.profiles import MAX_HR_SIDE, Profile, Size

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
    from rescale.bundle import Tensor

    with pytest.raises(ConfigError, match="input x has an unknown axis 'depth'"):
        Profile(2, *GOOD).shapes(Tensor("x", "uint8", ("batch", "depth")))
