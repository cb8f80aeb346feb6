"""Quality of a bundle on sets of pictures, through the LR file as a user would have it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.container import Small
from rescale.quality import crop_border, luma, psnr, psnr_y
from rescale.rescaler import Rescaler
from rescale_bench.paper import published
from rescale_bench.pictures import Picture, PictureSet, crop_to_multiple
from rescale_train.bicubic import bicubic_picture

DEFINITIONS = {
    "hr_psnr_y": "restored HR against source: PSNR (dB, peak 255) of BT.601 Y in 16..235, not rounded",
    "hr_psnr_rgb": "the same over R, G and B together",
    "hr_psnr_y_forced": "hr_psnr_y when the auxiliary data is lost: neutral alpha (-A), z = 0 (-M); undefined for plain models",
    "hr_ssim_y": "SSIM of Y: 11x11 Gaussian window, sigma 1.5, K 0.01 and 0.03, peak 255, valid region",
    "lr_psnr_y": "LR against antialiased bicubic (MATLAB's, a = -0.5), both 8 bits: PSNR of Y",
    "lr_ssim_y": "the same: SSIM of Y",
    "bytes": "size of the LR file (PNG with all it carries)",
    "bits_per_lr_pixel": "8 * bytes / LR pixels",
}


def ssim_y(a: Picture, b: Picture, border: int) -> float:
    """SSIM of the Y channels of two uint8 (H, W, 3) pictures; NaN where they are smaller than the window."""
    from skimage.metrics import structural_similarity

    x, y = crop_border(luma(a), border), crop_border(luma(b), border)
    if min(x.shape) < 11:
        return math.nan
    options = {"data_range": 255.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(x, y, **options))


@dataclass(frozen=True)
class PictureQuality:
    """Figures of one picture; see `DEFINITIONS`."""

    name: str
    hr_psnr_y: float
    hr_psnr_rgb: float
    hr_psnr_y_forced: float
    hr_ssim_y: float
    lr_psnr_y: float
    lr_ssim_y: float
    bytes: int
    bits_per_lr_pixel: float


def measure_picture(net: Rescaler, name: str, picture: Picture) -> PictureQuality:
    """Take one picture down to an LR file and up again.

    Args:
        net: open bundle.
        name: of the picture, for the report.
        picture: uint8 (H, W, 3); cut to multiples of the scale first. `scale` border pixels do not count at either size.
    """
    scale = net.bundle.scale
    hr = np.ascontiguousarray(crop_to_multiple(picture, scale))
    file = net.downscale(hr).to_bytes()
    small = Small.from_bytes(file)
    again = net.upscale(small)
    bicubic = bicubic_picture(hr, scale)
    return PictureQuality(
        name=name,
        hr_psnr_y=psnr_y(again, hr, scale),
        hr_psnr_rgb=psnr(_cropped(again, scale), _cropped(hr, scale)),
        hr_psnr_y_forced=_forced(net, small, hr),
        hr_ssim_y=ssim_y(again, hr, scale),
        lr_psnr_y=psnr_y(small.rgb, bicubic, scale),
        lr_ssim_y=ssim_y(small.rgb, bicubic, scale),
        bytes=len(file),
        bits_per_lr_pixel=8.0 * len(file) / (small.size[0] * small.size[1]),
    )


def _forced(net: Rescaler, small: Small, hr: Picture) -> float:
    if net.bundle.variant.auxiliary == "none":
        return math.nan
    return psnr_y(net.network.up(small.rgb, None, None), hr, net.bundle.scale)


def _cropped(picture: Picture, border: int) -> npt.NDArray[np.generic]:
    return crop_border(picture, border)


FIGURES = tuple(DEFINITIONS)


def measure_set(net: Rescaler, pictures: PictureSet, progress: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Mean figures of a set: the mean of the pictures' values (for PSNR: of their dB).

    Returns:
        ``set``, ``weights`` (SHA-256), ``count``, ``border``, ``mean`` by figure, ``pictures``, and ``paper``: the rows of
        table 3 for this set.
    """
    rows = []
    for name, load in pictures.pictures:
        rows.append(measure_picture(net, name, load()))
        progress(name)
    return {
        "set": pictures.name,
        "weights": net.bundle.weights,
        "count": len(rows),
        "border": net.bundle.scale,
        "mean": {f: mean(getattr(r, f) for r in rows) for f in FIGURES},
        "pictures": [asdict(r) for r in rows],
        "paper": {k: {"hr_psnr_y": v[0], "hr_ssim_y": v[1]} for k, v in published(net.bundle.scale, pictures.name).items()},
    }


def mean(values: Iterable[float]) -> float:
    """Mean of the numbers that are defined; NaN if none is."""
    defined = [v for v in values if not math.isnan(v)]
    return statistics.fmean(defined) if defined else math.nan
