"""What the shipped weights make of pictures that no photographer took: floors under quality, ceilings over colour casts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import skimage

from rescale_train import checkpoint
from rescale_train.content import held
from rescale_train.content.degraded import KINDS
from rescale_train.content.report import measure, summary
from rescale_train.data import load_picture
from rescale_train.shipped import Shipped

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")

DECIBELS = 0.3
LEVELS, SHARE = 0.3, 0.1
"""Margin of a cast: so many levels and this share of what was measured."""


def test_robustness_does_not_fall(shipped_weights: Shipped, recorded: Callable[[str, str, list[float]], list[float]]) -> None:
    """HR Y-PSNR, LR Y-PSNR against bicubic (dB), HR cast mean and worst, LR cast mean and worst (levels)."""
    net = checkpoint.read_net(shipped_weights.path)
    folder = Path(skimage.__file__).parent / "data"
    degraded = held.degraded_set({name: load_picture(folder / name)[40:232, 100:292] for name in PHOTOGRAPHS})
    found = {name: summary({name: f}) for name, f in measure(net, held.generated_set()).items()}
    results = measure(net, degraded)
    found |= {kind: summary({n: f for n, f in results.items() if n.endswith(f" {kind}")}) for kind in KINDS}
    assert len(found) >= 20

    worse = []
    for name, s in found.items():
        casts = [s["hr_cast"], s["hr_cast_worst"], s["lr_cast"], s["lr_cast_worst"]]
        values = [s["hr_psnr_y"], s["lr_psnr_y"], *casts]
        before = recorded(shipped_weights.title, name, values)
        lower = any(v < b - DECIBELS for v, b in zip(values[:2], before[:2], strict=True))
        higher = any(v > b * (1.0 + SHARE) + LEVELS for v, b in zip(casts, before[2:], strict=True))
        if lower or higher:
            worse.append(f"{name}: was {before}, is {[round(v, 2) for v in values]}")
    assert not worse, "\n".join(worse)
