from __future__ import annotations

import hashlib

import numpy as np
import pytest

from rescale_export.probe import probe_picture


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (64, 48)])
def test_the_same_arguments_make_the_same_picture(shape: tuple[int, int]) -> None:
    picture = probe_picture(*shape, seed=3)
    assert (picture.dtype, picture.shape) == (np.uint8, (*shape, 3))
    np.testing.assert_array_equal(picture, probe_picture(*shape, seed=3))
    digests = {hashlib.sha256(probe_picture(*shape, seed=s).tobytes()).digest() for s in range(5)}
    assert len(digests) == 5


def test_the_picture_holds_low_and_high_values_and_edges() -> None:
    picture = probe_picture(128, 128).astype(int)
    assert picture.min() < 10
    assert picture.max() > 245
    assert np.abs(np.diff(picture, axis=1)).max() > 100
