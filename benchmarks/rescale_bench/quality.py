"""Quality of a bundle on sets of pictures, through the LR file as a user would have it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale import jxl, png, riff
from rescale.container import Small
from rescale.quality import crop_border, luma, psnr, psnr_y
from rescale.rescaler import Rescaler
from rescale_bench.formats import MOST_DB
from rescale_bench.machine import versions
from rescale_bench.paper import published
from rescale_bench.pictures import Picture, PictureSet, crop_to_multiple
from rescale_bench.rate_codecs import JXL, WEBP, fitting, lr_containers
from rescale_bench.store import Store, digest
from rescale_train.bicubic import bicubic_picture, enlarge_picture

DEFINITIONS = {
    "hr_psnr_y": "restored HR against source: PSNR (dB, peak 255) of BT.601 Y in 16..235, not rounded",
    "hr_psnr_rgb": "the same over R, G and B together",
    "hr_psnr_y_forced": "hr_psnr_y when the auxiliary data is lost: neutral alpha (-A), z = 0 (-M); undefined for plain models",
    "hr_ssim_y": "SSIM of Y: 11x11 Gaussian window, sigma 1.5, K 0.01 and 0.03, peak 255, valid region",
    "hr_ssim_rgb": "the same of R, G and B, their mean",
    "lr_psnr_y": "LR against antialiased bicubic (MATLAB's, a = -0.5), both 8 bits: PSNR of Y",
    "lr_ssim_y": "the same: SSIM of Y",
    "bytes": "size of the LR file (PNG with all it carries)",
    "bits_per_lr_pixel": "8 * bytes / LR pixels",
    "bits_per_lr_pixel_webp": "the same of the LR file as lossless WebP",
    "bits_per_lr_pixel_jxl": "the same of the LR file as lossless JPEG XL; undefined without imagecodecs",
}


def ssim_y(a: Picture, b: Picture, border: int) -> float:
    """SSIM of the Y channels of two uint8 (H, W, 3) pictures; NaN where they are smaller than the window."""
    return _ssim(crop_border(luma(a), border), crop_border(luma(b), border))


def ssim_rgb(a: Picture, b: Picture, border: int) -> float:
    """Mean SSIM of the R, G and B channels; as `ssim_y`."""
    x, y = crop_border(a, border), crop_border(b, border)
    return statistics.fmean(_ssim(x[:, :, c].astype(np.float64), y[:, :, c].astype(np.float64)) for c in range(3))


def _ssim(x: npt.NDArray[np.generic], y: npt.NDArray[np.generic]) -> float:
    from skimage.metrics import structural_similarity

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
    hr_ssim_rgb: float
    lr_psnr_y: float
    lr_ssim_y: float
    bytes: int
    bits_per_lr_pixel: float
    bits_per_lr_pixel_webp: float
    bits_per_lr_pixel_jxl: float


def measure_picture(net: Rescaler, name: str, picture: Picture, steps: int = 0) -> PictureQuality:
    """Take one picture down to an LR file and up again.

    Args:
        net: open bundle.
        name: of the picture, for the report.
        picture: uint8 (H, W, 3); cut to multiples of the scale first. `scale` border pixels do not count at either size.
        steps: of refining the LR.
    """
    scale = net.bundle.scale
    hr = np.ascontiguousarray(crop_to_multiple(picture, scale, name))
    made = net.downscale(hr, steps)
    files = {c: made.to_bytes(c) for c in fitting(lr_containers(), made.size)}
    small = Small.from_bytes(files["png"])
    sizes = {c: len(data) for c, data in files.items()}
    return _figures(name, scale, hr, small.rgb, net.upscale(small), sizes, _forced(net, small, hr))


def measure_bicubic(scale: int, name: str, picture: Picture) -> PictureQuality:
    """The same of plain interpolation: bicubic down and up, both rounded to 8 bits. Its LR files are bare pictures."""
    hr = np.ascontiguousarray(crop_to_multiple(picture, scale, name))
    lr = bicubic_picture(hr, scale)
    writers: dict[str, Callable[[Picture], bytes]] = {"png": png.encode, "webp": riff.encode, "jxl": lambda p: jxl.encode(p, {})}
    sizes = {c: len(writers[c](lr)) for c in fitting(lr_containers(), (lr.shape[1], lr.shape[0]))}
    return _figures(name, scale, hr, lr, enlarge_picture(lr, scale), sizes, math.nan)


def _figures(
    name: str, scale: int, hr: Picture, lr: Picture, again: Picture, sizes: Mapping[str, int], forced: float
) -> PictureQuality:
    bicubic = bicubic_picture(hr, scale)
    bits = {c: 8.0 * n / (lr.shape[0] * lr.shape[1]) for c, n in sizes.items()}
    return PictureQuality(
        name=name,
        hr_psnr_y=psnr_y(again, hr, scale),
        hr_psnr_rgb=psnr(_cropped(again, scale), _cropped(hr, scale)),
        hr_psnr_y_forced=forced,
        hr_ssim_y=ssim_y(again, hr, scale),
        hr_ssim_rgb=ssim_rgb(again, hr, scale),
        lr_psnr_y=psnr_y(lr, bicubic, scale),
        lr_ssim_y=ssim_y(lr, bicubic, scale),
        bytes=sizes["png"],
        bits_per_lr_pixel=bits["png"],
        bits_per_lr_pixel_webp=bits.get("webp", math.nan),
        bits_per_lr_pixel_jxl=bits.get("jxl", math.nan),
    )


def _forced(net: Rescaler, small: Small, hr: Picture) -> float:
    if net.bundle.variant.auxiliary == "none":
        return math.nan
    return psnr_y(net.network.up(small.rgb, None, None), hr, net.bundle.scale)


def _cropped(picture: Picture, border: int) -> npt.NDArray[np.generic]:
    return crop_border(picture, border)


FIGURES = tuple(DEFINITIONS)


def read_quality(name: str, found: Any) -> PictureQuality:
    """What `asdict` and JSON made of a picture's figures.

    Args:
        name: of the picture now.
        found: untrusted.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    figures = {f: math.nan if found[f] is None else float(found[f]) for f in FIGURES if f != "bytes"}
    for figure, value in figures.items():
        if "bits" not in figure and MOST_DB < value < math.inf:
            raise ValueError(f"{figure}: {value}")
    size = found["bytes"]
    if type(size) is not int or size <= 0:
        raise ValueError(f"bytes: {size!r}")
    return PictureQuality(name=name, bytes=size, **figures)


Progress = Callable[[str], None]


def _silent(name: str) -> None:
    """No progress is shown."""


def measure_set(
    net: Rescaler, pictures: PictureSet, progress: Progress = _silent, store: Store | None = None, steps: int = 0
) -> dict[str, Any]:
    """Mean figures of a set: the mean of the pictures' values (for PSNR: of their dB).

    Args:
        net: open bundle.
        pictures: the set.
        progress: called with each picture's name when it is done.
        store: what was measured before, of the same weights, backend and steps.
        steps: of refining each LR.

    Returns:
        ``set``, ``weights`` (SHA-256), ``refined`` (steps), ``count``, ``border``, ``mean`` by figure, ``pictures``, and
        ``paper``: the rows of table 3 for this set.
    """
    key: dict[str, Any] = {"weights": net.bundle.network, "model": net.bundle.title, "runner": net.runner.name}
    key |= {"refined": steps} if steps else {}
    rows = _measured(lambda name, hr: measure_picture(net, name, hr, steps), pictures, key, progress, store)
    paper = published(net.bundle.scale, pictures.name)
    return {
        **_head(pictures, net.bundle.scale, rows),
        "weights": net.bundle.network,
        "refined": steps,
        "paper": {k: {"hr_psnr_y": v[0], "hr_ssim_y": v[1]} for k, v in paper.items()},
    }


def measure_set_bicubic(
    scale: int, pictures: PictureSet, progress: Progress = _silent, store: Store | None = None
) -> dict[str, Any]:
    """The same of plain interpolation; see `measure_bicubic`."""
    rows = _measured(lambda name, hr: measure_bicubic(scale, name, hr), pictures, {"bicubic": scale}, progress, store)
    return _head(pictures, scale, rows)


def _measured(
    measure: Callable[[str, Picture], PictureQuality],
    pictures: PictureSet,
    key: dict[str, Any],
    progress: Progress,
    store: Store | None,
) -> list[dict[str, Any]]:
    """Figures of each picture, its ``size`` (width, height) and the ``digest`` of its pixels: names alone do not tell them."""
    rows = []
    # Figures hang on the decoder of the source, the arithmetic and the writers of LR files alike.
    by = versions() | {c: need.version() for c, need in (("webp", WEBP), ("jxl", JXL)) if c in lr_containers()}
    for name, load in pictures.pictures:
        picture = load()
        pixels = digest(picture)
        whole = {"what": "quality", "picture": pixels, "containers": lr_containers(), "by": by, **key}
        row = store.get(whole, partial(read_quality, name)) if store else None
        if row is None:
            row = measure(name, picture)
            if store:
                store.put(whole, asdict(row))
        rows.append(asdict(row) | {"size": [picture.shape[1], picture.shape[0]], "digest": pixels})
        progress(name)
    return rows


def _head(pictures: PictureSet, scale: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "set": pictures.name,
        "scale": scale,
        "count": len(rows),
        "border": scale,
        "mean": {f: mean(r[f] for r in rows) for f in FIGURES},
        "pictures": list(rows),
    }


def mean(values: Iterable[float]) -> float:
    """Mean of the numbers that are defined; NaN if none is."""
    defined = [v for v in values if not math.isnan(v)]
    return statistics.fmean(defined) if defined else math.nan
