"""What the shipped weights make of pictures that no photographer took: floors under quality, ceilings over colour casts.

Where new weights are better throughout, write what the failing or passing run measured into `MEASURED`: it only moves up.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage

from rescale_train import checkpoint
from rescale_train.content import held
from rescale_train.content.degraded import KINDS
from rescale_train.content.report import measure, summary
from rescale_train.data import load_picture
from rescale_train.shipped import list_shipped

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")

DECIBELS = 0.3
LEVELS, SHARE = 0.3, 0.1
"""Margin of a cast: so many levels and this share of what was measured."""

# HR Y-PSNR, LR Y-PSNR against bicubic (dB), HR cast mean and worst, LR cast mean and worst (levels).
Row = tuple[float, float, float, float, float, float]
MEASURED: dict[tuple[str, int, str], dict[str, Row]] = {
    ("dlv_irn_a", 2, "lite"): {
        "text0": (31.59, 38.00, 1.12, 11.6, 1.11, 3.5),
        "text1": (34.49, 39.95, 0.62, 6.2, 0.56, 1.8),
        "screen0": (31.94, 39.88, 0.98, 8.8, 0.83, 4.6),
        "screen1": (29.43, 39.04, 2.06, 15.4, 1.00, 6.0),
        "chart0": (31.10, 36.69, 1.71, 12.9, 1.63, 5.9),
        "chart1": (24.40, 36.34, 3.04, 13.6, 1.15, 4.4),
        "drawing0": (26.65, 35.36, 2.39, 23.6, 1.02, 8.7),
        "drawing1": (30.38, 38.76, 2.13, 15.3, 0.92, 6.0),
        "pattern0": (20.92, 33.45, 4.82, 27.8, 2.50, 12.0),
        "pattern1": (26.62, 35.62, 5.57, 16.1, 1.69, 10.2),
        "colour0": (25.52, 36.01, 2.07, 24.9, 0.68, 5.4),
        "colour1": (46.52, 48.18, 0.16, 1.6, 0.24, 1.1),
        "map0": (37.39, 42.61, 0.36, 7.7, 0.33, 1.9),
        "map1": (39.19, 42.30, 0.34, 10.5, 0.30, 2.4),
        "sprites0": (15.44, 26.15, 10.90, 29.9, 5.33, 11.4),
        "sprites1": (18.26, 29.83, 7.82, 24.5, 2.21, 6.0),
        "score0": (30.33, 38.77, 1.32, 4.8, 1.42, 4.3),
        "score1": (40.55, 42.95, 0.45, 1.6, 0.48, 1.4),
        "jpeg": (50.70, 49.33, 0.13, 2.1, 0.13, 0.6),
        "shrunk": (46.85, 47.98, 0.16, 1.4, 0.16, 0.7),
        "sharpened": (41.22, 45.21, 0.32, 5.3, 0.23, 2.4),
        "exposed": (53.63, 51.26, 0.12, 6.6, 0.11, 2.0),
    },
    ("dlv_irn_a", 4, "lite"): {
        "text0": (18.17, 37.91, 1.83, 17.5, 0.53, 1.3),
        "text1": (21.12, 40.87, 0.98, 4.2, 0.28, 0.7),
        "screen0": (25.17, 44.92, 0.77, 9.3, 0.38, 1.5),
        "screen1": (24.02, 42.43, 1.53, 13.1, 0.50, 1.6),
        "chart0": (24.61, 41.65, 1.71, 8.6, 0.43, 1.3),
        "chart1": (24.87, 43.20, 2.98, 10.6, 0.87, 1.4),
        "drawing0": (26.09, 44.69, 1.24, 9.0, 0.39, 1.3),
        "drawing1": (27.03, 44.57, 1.61, 10.3, 0.36, 1.4),
        "pattern0": (21.67, 38.67, 2.36, 11.0, 0.68, 2.9),
        "pattern1": (29.02, 41.33, 2.06, 10.5, 1.06, 1.7),
        "colour0": (27.35, 42.63, 1.44, 10.6, 0.33, 1.0),
        "colour1": (36.17, 45.13, 0.71, 3.3, 0.19, 0.5),
        "map0": (26.32, 43.61, 0.86, 6.5, 0.16, 0.6),
        "map1": (26.95, 44.87, 0.68, 5.3, 0.18, 0.7),
        "sprites0": (15.69, 35.96, 4.45, 11.1, 1.00, 1.6),
        "sprites1": (20.49, 37.49, 3.89, 15.5, 0.66, 1.4),
        "score0": (16.52, 35.03, 1.26, 4.7, 0.72, 1.5),
        "score1": (19.87, 40.71, 0.93, 3.5, 0.58, 1.2),
        "jpeg": (36.51, 49.80, 0.44, 2.7, 0.14, 0.5),
        "shrunk": (34.83, 48.20, 0.52, 2.5, 0.16, 0.3),
        "sharpened": (29.92, 46.97, 0.57, 4.8, 0.16, 0.8),
        "exposed": (46.37, 54.31, 0.20, 5.8, 0.11, 0.4),
    },
    ("irn", 2, "lite"): {
        "text0": (24.28, 34.16, 1.70, 25.2, 1.87, 4.9),
        "text1": (28.20, 36.58, 1.03, 14.7, 1.00, 4.9),
        "screen0": (27.99, 38.29, 0.94, 9.4, 0.84, 4.7),
        "screen1": (25.20, 37.63, 2.47, 24.3, 1.26, 5.1),
        "chart0": (23.40, 32.55, 3.21, 26.4, 2.30, 14.7),
        "chart1": (22.03, 32.09, 5.44, 17.3, 3.60, 7.1),
        "drawing0": (23.82, 34.32, 3.16, 36.8, 1.47, 10.2),
        "drawing1": (26.66, 36.89, 2.66, 18.8, 1.50, 8.4),
        "pattern0": (17.62, 30.40, 6.78, 50.2, 2.79, 15.4),
        "pattern1": (24.11, 32.91, 9.03, 19.8, 4.00, 8.1),
        "colour0": (23.77, 32.66, 3.13, 24.8, 1.59, 7.7),
        "colour1": (43.24, 47.70, 0.28, 1.8, 0.29, 1.2),
        "map0": (32.29, 40.70, 0.55, 11.2, 0.37, 2.0),
        "map1": (33.31, 40.51, 0.49, 10.0, 0.44, 2.5),
        "sprites0": (12.15, 24.19, 16.56, 47.5, 5.60, 9.3),
        "sprites1": (16.16, 26.01, 10.10, 34.7, 4.00, 10.6),
        "score0": (25.24, 32.74, 1.16, 7.0, 2.61, 8.1),
        "score1": (33.32, 36.47, 0.52, 2.1, 1.13, 3.5),
        "jpeg": (44.34, 48.66, 0.18, 1.9, 0.14, 0.8),
        "shrunk": (42.02, 47.30, 0.24, 1.9, 0.17, 0.8),
        "sharpened": (35.75, 43.73, 0.36, 5.1, 0.25, 2.3),
        "exposed": (50.30, 52.68, 0.14, 5.4, 0.11, 2.3),
    },
}


@pytest.mark.parametrize("key", MEASURED, ids=lambda k: f"{k[0]}_x{k[1]}_{k[2]}")
def test_robustness_does_not_fall(key: tuple[str, int, str]) -> None:
    shipped = next(s for s in list_shipped() if (s.model, s.scale, s.size) == key)
    net = checkpoint.load_net(checkpoint.read(shipped.path), str(shipped.path))
    folder = Path(skimage.__file__).parent / "data"
    degraded = held.degraded_set({name: load_picture(folder / name)[40:232, 100:292] for name in PHOTOGRAPHS})
    found = {name: summary({name: f}) for name, f in measure(net, held.generated_set()).items()}
    results = measure(net, degraded)
    found |= {kind: summary({n: f for n, f in results.items() if n.endswith(f" {kind}")}) for kind in KINDS}
    assert list(found) == list(MEASURED[key])

    lines, worse = [], []
    for name, s in found.items():
        casts = s["hr_cast"], s["hr_cast_worst"], s["lr_cast"], s["lr_cast_worst"]
        values = s["hr_psnr_y"], s["lr_psnr_y"], *casts
        lines.append(f'        "{name}": ({", ".join(f"{v:.2f}" for v in values)}),')
        before = MEASURED[key][name]
        lower = any(v < b - DECIBELS for v, b in zip(values[:2], before[:2], strict=True))
        higher = any(v > b * (1.0 + SHARE) + LEVELS for v, b in zip(casts, before[2:], strict=True))
        if lower or higher:
            worse.append(f"{name}: was {before}")
    print("\n".join(lines))
    assert not worse, "\n".join(worse)


def test_all_shipped_weights_are_held_to_this() -> None:
    """Weights of a new kind get a table with the first release that ships them."""
    assert {(s.model, s.scale, s.size) for s in list_shipped()} == set(MEASURED)
