"""Pictures for checks: made from a seed (gradients, texture, edges and noise, so that all value ranges occur), and a photograph.

The photograph is a part of scikit-image's `chelsea`, CC0 by Stefan van der Walt: a loss of 0.02 dB shows on what a network
restores well, not on noise.
"""

from __future__ import annotations

import io
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image


def probe_picture(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 (height, width, 3), the same for the same arguments everywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for c in range(3):
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6.28)
        along = x * np.cos(angle) + y * np.sin(angle)
        out[:, :, c] = 128 + 70 * np.sin(along / rng.uniform(9, 40) + phase) + 25 * np.sin(along / rng.uniform(1.2, 3.0))
    for _ in range(max(1, height * width // 400)):
        top, left = rng.integers(0, height), rng.integers(0, width)
        out[top : top + rng.integers(1, 13), left : left + rng.integers(1, 13)] = rng.integers(0, 256, 3)
    out += rng.normal(0, 3, out.shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def photograph(height: int = 192, width: int = 288) -> npt.NDArray[np.uint8]:
    """uint8 (height, width, 3), at most 192x288: the middle of the photograph."""
    data = resources.files("rescale_export").joinpath("data/photograph.png").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width].copy()
