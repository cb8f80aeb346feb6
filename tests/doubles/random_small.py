"""LR pictures of random bytes, which no network made."""

from __future__ import annotations

import numpy as np

from rescale import Picture, Small, State
from rescale.variants import VARIANTS


def small_of(model: str, scale: int, width: int, height: int, seed: int = 0, **picture: object) -> Small:
    """An LR picture of random bytes: every code of alpha and latent occurs."""
    rng = np.random.default_rng((seed, width, height))
    v = VARIANTS[model]
    hr_width, hr_height = width * scale - (width * seed) % scale, height * scale - (height + seed) % scale
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = rng.integers(1, 256, (height, width), dtype=np.uint8) if v.alpha else None
    latent = rng.integers(1, 256, (4, -(-height // 4), -(-width // 4)), dtype=np.uint8) if v.latent else None
    source = Picture(np.zeros((hr_height, hr_width, 3), np.uint8), **picture)
    return Small.create(rgb, alpha, latent, model=model, scale=scale, weights="ab" * 32, source=source)


def assert_same(a: Small, b: Small) -> None:
    assert a.state is State.EXACT, a.detail
    for x, y in ((a.rgb, b.rgb), (a.alpha, b.alpha), (a.latent, b.latent), (a.source_alpha, b.source_alpha)):
        assert (x is None) == (y is None)
        assert x is None or np.array_equal(x, y)
    assert a.colour == b.colour
    assert (a.block.hr_size, a.block.model, a.block.source_mode) == (b.block.hr_size, b.block.model, b.block.source_mode)
