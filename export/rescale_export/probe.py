"""Pictures for checks, made from a seed: gradients, texture, edges and noise, so that all value ranges occur."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
