"""PSNR is of bytes: what has another peak, or nothing to compare, gives no number. Its values: tests/benchmarks/test_figures.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rescale import psnr, psnr_y
from rescale.errors import InputError


@pytest.mark.parametrize("figure", [psnr, psnr_y])
def test_arrays_that_are_no_bytes_or_are_none_are_refused(picture, figure):
    image = picture(6, 8)
    deep = image.astype(np.uint16) * 257
    for a, b, message in (
        (image / 255.0, image, "float64"),
        (image, image.astype(np.float32), "float32"),
        (deep, deep, "uint16"),
        ([1], [2], "list"),
        (image, image[:5], r"PSNR of different shapes: \(6, 8, 3\) and \(5, 8, 3\): bring both to one size first"),
        (image[:0], image[:0], r"PSNR of empty arrays: \(0, 8, 3\): nothing to compare"),
    ):
        with pytest.raises(InputError, match=message):
            figure(a, b)
    assert figure(image, image) == math.inf


def test_a_negative_border_is_refused_and_one_that_leaves_nothing_is_none(picture):
    a, b = picture(6, 8), picture(6, 8, seed=1)
    with pytest.raises(InputError, match="border -5: 0 or more pixels are wanted"):
        psnr_y(a, b, -5)
    assert psnr_y(a, b, 3) == psnr_y(a, b, 0) != psnr_y(a, b, 2)
    with pytest.raises(InputError, match=r"a uint8 array of shape \(H, W, 3\) was expected, got uint8 \(6, 8\)"):
        psnr_y(a[:, :, 0], b[:, :, 0])
