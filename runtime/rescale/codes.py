"""8-bit codes of the LR picture's channels and of the latent, shared by training, graphs and files.

    RGB     code = round(255 * x),           x in [0, 1]
    alpha   code = round(254 * u) + 1,       u = sigmoid(k * alpha) in [0, 1]; u = 1/2 is 128, and 0 never occurs
    latent  code = round(127 * s) + 128,     s in [-1, 1]; s = 0 is 128, and 0 never occurs

Rounding is half to even. In a file the alpha code is stored by the zigzag map

    128, 127, 129, 126, 130, ... 1, 255  ->  255, 254, 253, 252, 251, ... 2, 1

so that the picture looks nearly opaque, premultiplication harms few pixels, and 0 never occurs: many tools rewrite the
colour under a transparent pixel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ALPHA_MIN, ALPHA_MAX = 1, 255
ALPHA_NEUTRAL = 128
"""The alpha code that carries nothing: u = 1/2, alpha = 0."""

LATENT_NEUTRAL = 128
"""The latent code of s = 0."""

LOGIT_MARGIN = 1.0 / 512.0
"""u is clamped to [margin, 1 - margin] before the logit."""


def _zigzag_tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    store = np.zeros(256, dtype=np.uint8)
    for code in range(ALPHA_MIN, ALPHA_MAX + 1):
        d = code - ALPHA_NEUTRAL
        store[code] = 255 - 2 * d if d >= 0 else 255 - (-2 * d - 1)
    load = np.full(256, ALPHA_NEUTRAL, dtype=np.uint8)
    load[store[ALPHA_MIN:]] = np.arange(ALPHA_MIN, 256)
    return store, load


_STORE, _LOAD = _zigzag_tables()


def alpha_to_file(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Alpha codes 1..255 of the graphs -> values 1..255 of a file's alpha channel; any shape."""
    return _STORE[codes]


def alpha_from_file(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Inverse of `alpha_to_file`. A 0, which no writer of ours makes, reads as neutral."""
    return _LOAD[values]
