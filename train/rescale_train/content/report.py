"""What weights do with pictures that they were not made for: table of HR and LR fidelity and of colour casts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rescale_train.bicubic import bicubic_picture
from rescale_train.content.cast import SHADOW, Cast, colour_cast
from rescale_train.data import cut_to_multiple
from rescale_train.models import RescalingNet
from rescale_train.validation import psnr_figures, restore

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fidelity:
    """What one picture suffers.

    Attributes:
        hr_psnr_y, hr_psnr_rgb, lr_psnr_y: `rescale_train.validation.psnr_figures`.
        hr_cast: colour cast of the restored HR.
        lr_cast: colour cast of the LR against bicubic.
    """

    hr_psnr_y: float
    hr_psnr_rgb: float
    lr_psnr_y: float
    hr_cast: Cast
    lr_cast: Cast


def fidelity(source: Picture, lr: Picture, restored: Picture, scale: int) -> Fidelity:
    """Compare what a network made of a picture with the picture.

    Args:
        source, restored: uint8 (H, W, 3), sides multiples of the scale.
        lr: uint8 (H/scale, W/scale, 3).
        scale: 2 or 4.
    """
    reference = bicubic_picture(source, scale)
    return Fidelity(
        **psnr_figures(source, lr, restored, reference),
        hr_cast=colour_cast(restored, source),
        lr_cast=colour_cast(lr, reference),
    )


def measure(net: RescalingNet, pictures: Mapping[str, Picture]) -> dict[str, Fidelity]:
    """Each picture down and up through a network in PyTorch, cut to a multiple of its scale."""
    scale = net.config.scale
    found = {}
    for name, picture in pictures.items():
        cut = cut_to_multiple(picture, scale)
        found[name] = fidelity(cut, *restore(net, cut), scale)
    return found


def summary(results: Mapping[str, Fidelity]) -> dict[str, float]:
    """Means, worst values and the number of pictures with a shadow, of one set."""
    rows = list(results.values())
    return {
        "count": len(rows),
        "hr_psnr_y": statistics.fmean(r.hr_psnr_y for r in rows),
        "hr_psnr_y_worst": min(r.hr_psnr_y for r in rows),
        "hr_psnr_rgb": statistics.fmean(r.hr_psnr_rgb for r in rows),
        "lr_psnr_y": statistics.fmean(r.lr_psnr_y for r in rows),
        "lr_psnr_y_worst": min(r.lr_psnr_y for r in rows),
        "hr_cast": statistics.fmean(r.hr_cast.mean for r in rows),
        "hr_cast_worst": max(r.hr_cast.worst for r in rows),
        "hr_shadows": sum(r.hr_cast.shadow for r in rows),
        "lr_cast": statistics.fmean(r.lr_cast.mean for r in rows),
        "lr_cast_worst": max(r.lr_cast.worst for r in rows),
        "lr_shadows": sum(r.lr_cast.shadow for r in rows),
    }


HEAD = f"""| | HR dB | worst | LR dB | worst | HR cast | worst | over {SHADOW:g} | LR cast | worst | over {SHADOW:g} |
|---|---|---|---|---|---|---|---|---|---|---|"""


def row(name: str, s: Mapping[str, float]) -> str:
    """One line of the table under `HEAD`."""
    cells = [f"{s[k]:.2f}" for k in ("hr_psnr_y", "hr_psnr_y_worst", "lr_psnr_y", "lr_psnr_y_worst")]
    for kind in ("hr", "lr"):
        count = s[f"{kind}_shadows"]
        shadows = f"{count:.0f} of {s['count']:.0f}" if s["count"] > 1 else "yes" if count else "no"
        cells += [f"{s[f'{kind}_cast']:.2f}", f"{s[f'{kind}_cast_worst']:.1f}", shadows]
    return f"| {name} | {' | '.join(cells)} |"


def load_pictures(folder: Path) -> dict[str, Picture]:
    """The pictures below a folder by their path in it."""
    from rescale_train.data import find_pictures, load_picture

    return {str(p.relative_to(folder)): load_picture(p) for p in find_pictures([folder])}
