"""Tiles give what the whole picture gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rescale
from rescale.backends import create
from rescale.bundle import Bundle
from rescale.errors import InputError
from rescale.network import Network
from rescale.tiling import plan

ALL = [(m, s) for m in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m") for s in (2, 4)]


@given(
    st.integers(1, 200), st.integers(1, 200), st.integers(1, 90), st.integers(1, 90), st.integers(0, 40), st.sampled_from([1, 2, 4])
)
@settings(deadline=None)
def test_cores_cover_every_pixel_once_and_regions_hold_their_halo(height, width, tile_h, tile_w, halo, align):
    tiles = plan(height, width, (max(tile_h, align), max(tile_w, align)), halo, align)
    seen = np.zeros((height, width), int)
    for t in tiles:
        seen[t.core.slices()] += 1
        assert t.core.height <= max(tile_h, align)
        assert t.core.width <= max(tile_w, align)
        assert t.region.top <= max(0, t.core.top - halo)
        assert t.region.bottom >= min(height, t.core.bottom + halo)
        assert t.region.left <= max(0, t.core.left - halo)
        assert t.region.right >= min(width, t.core.right + halo)
        assert t.region.top % align == t.region.left % align == t.core.top % align == t.core.left % align == 0
        assert t.region.bottom % align == 0 or t.region.bottom == height
    assert (seen == 1).all()
    # Whole where it may be, though its length be no multiple of `align`.
    assert height > tile_h or len({(t.core.top, t.core.bottom) for t in tiles}) == 1
    assert width > tile_w or len({(t.core.left, t.core.right) for t in tiles}) == 1


def test_impossible_tiles_are_refused():
    for tile, halo in (((0, 5), 1), ((5, 5), -1), ((3, 8), 0)):
        with pytest.raises(InputError, match="are wanted"):
            plan(10, 10, tile, halo, 4)


@pytest.mark.parametrize(("model", "scale"), ALL)
def test_tiles_equal_the_whole_picture(bundle, picture, model, scale):
    """Bit for bit where the kernels do not depend on the shape; ONNX Runtime's may, so one level is allowed and counted."""
    b = Bundle(bundle(model, scale))
    runner = create(b, "onnxruntime", threads=1)
    whole = Network(b, runner)
    rng = np.random.default_rng(scale)
    values = different = 0
    for seed in range(6):
        height, width = (int(n) for n in rng.integers(1, 150, 2))
        image = picture(height, width, seed=seed)
        tiled = Network(b, runner, tile=(int(rng.integers(4, 40)), int(rng.integers(4, 40))), exact=True)
        lr, latent = whole.down(image)
        lr_tiled, latent_tiled = tiled.down(image)
        alpha = lr[:, :, 3] if b.variant.alpha else None
        pairs = [(lr, lr_tiled), (whole.up(lr[:, :, :3], alpha, latent), tiled.up(lr[:, :, :3], alpha, latent))]
        if latent is not None:
            pairs.append((latent, latent_tiled))
        for one, other in pairs:
            delta = np.abs(one.astype(int) - other)
            assert delta.max(initial=0) <= 1
            values, different = values + delta.size, different + np.count_nonzero(delta)
    assert different <= 1e-4 * values


def test_a_halo_that_is_too_small_shows(bundle, picture):
    image = picture(120, 120)
    with rescale.load(bundle("irn", 2)) as net:
        exact = net.network.down(image)[0]
        blind = Network(net.bundle, net.runner, tile=(16, 16))
        blind.halos["downscale"] = 0
        short = blind.down(image)[0]
        assert (short != exact).any()
