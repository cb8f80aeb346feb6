"""Refining an LR picture: a search, for one picture, of LR codes from which the same network restores more.

A network's encoder is one function for all pictures; the decoder's gradient says which codes would serve this one better. The file
has the same form and any decoder restores it as before: only encoding takes longer. docs/refine.md has gains and times.

The search is a descent with momentum on the logarithm of the error, on codes that are rounded in every step. It holds the LR to at
most the distance from the bicubic reduction that the encoder's LR has, and returns the best codes that it saw.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from rescale.codes import ALPHA_MIN
from rescale.network import Network, Progress
from rescale.quality import LUMA_DIRECTION, LUMA_WEIGHT

Array = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MOMENTUM = 0.8
RATE = 0.2
"""Root mean square, in levels, of the first step of a channel; it falls to zero linearly."""

LARGEST = 8.0
"""Longest step of a value, in root mean squares: in a picture that is nearly all flat, a few pixels have all of the gradient."""

PULL = 5.0
"""Weight of the logarithm of the LR's squared distance from the bicubic reduction, beyond what is allowed."""


def bicubic(image: Array, scale: int) -> Floats:
    """The bicubic reduction (a = -0.5, antialiased, as in MATLAB), not rounded: uint8 (H, W, 3) -> float32 (ceil(H/scale), ..., 3).

    Sides that are no multiple of the scale are extended by the last row or column, as the network extends them.
    """
    bottom, right = -image.shape[0] % scale, -image.shape[1] % scale
    padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else image
    size = (padded.shape[1] // scale, padded.shape[0] // scale)
    planes = [Image.fromarray(padded[:, :, c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for c in range(3)]
    return np.stack([np.asarray(p, np.float32) for p in planes], axis=2)


def squared_error(restored: Array, image: Array) -> float:
    """Sum of the squared differences in levels, with luma's counted 1 + `LUMA_WEIGHT` times."""
    direction = np.array(LUMA_DIRECTION, np.float32)
    total = 0.0
    for found, wanted in zip(restored, image, strict=True):  # by rows: a whole picture in floats takes 12 times its memory
        error = found.astype(np.float32) - wanted
        total += float(np.square(error).sum() + LUMA_WEIGHT * np.square(error @ direction).sum())
    return total


def refine(
    network: Network,
    image: Array,
    lr: Array,
    latent: Array | None,
    steps: int,
    progress: Progress | None = None,
) -> Array:
    """Better LR codes for a picture; never worse ones.

    Args:
        network: whose bundle holds the gradient graph.
        image: uint8 (H, W, 3).
        lr: uint8 (h, w, 3 or 4), what `Network.down` made of the picture.
        latent: its latent code (-M), which stays as it is.
        steps: number of changes that are tried, each some 2.3 times the work of restoring the picture.
        progress: see `Progress`; its parts are the tiles of all restorations, of which a search that has nothing left to gain
            leaves some out.

    Returns:
        uint8 (h, w, 3 or 4): of `lr` and all codes that were tried, those with the smallest `squared_error` of the restored
        picture whose RGB is no farther from the bicubic reduction than that of `lr`.

    Raises:
        BundleError: the bundle holds no gradient graph.
    """
    height, width = image.shape[:2]
    anchor = bicubic(image, network.bundle.scale)
    least = np.array([0.0, 0.0, 0.0, ALPHA_MIN][: lr.shape[2]], np.float32)
    values, velocity = lr.astype(np.float32), np.zeros(lr.shape, np.float32)

    def tell(done: int, count: int, stage: str) -> None:
        if progress is not None:
            progress(step * count + done, (steps + 1) * count, stage)

    best, least_error, allowed = lr, np.inf, np.inf
    for step in range(steps + 1):
        codes = np.rint(values).astype(np.uint8)
        hr, gradient = network.gradient(codes, latent, image, None if progress is None else tell)
        error = squared_error(hr[:height, :width], image)
        apart = codes[:, :, :3] - anchor
        distance = float(np.square(apart).sum())
        if step == 0:
            allowed = distance
        if distance <= allowed and error < least_error:
            best, least_error = codes, error
        if step == steps or error == 0.0:
            break
        slope = gradient / np.float32(error)
        if distance > allowed:
            slope[:, :, :3] += np.float32(2.0 * PULL / distance) * apart
        scale = np.sqrt(np.square(slope).mean((0, 1), dtype=np.float64)).astype(np.float32)
        velocity = MOMENTUM * velocity + np.clip(slope / np.maximum(scale, np.finfo(np.float32).tiny), -LARGEST, LARGEST)
        values = np.clip(values - np.float32(RATE * (1.0 - step / steps)) * velocity, least, 255.0)
    return best
