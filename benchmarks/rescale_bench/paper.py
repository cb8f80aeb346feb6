"""Published figures, for comparison. Mean Y-PSNR in dB and SSIM of Y of the restored HR. None of them was measured here."""

from __future__ import annotations

from dataclasses import dataclass

SETS = ("Set5", "Set14", "BSD100", "Urban100", "DIV2K")

Figures = tuple[tuple[float, float], ...]

TABLE_3: dict[int, dict[str, Figures]] = {
    2: {
        "CAR": ((38.94, 0.9658), (35.61, 0.9404), (33.83, 0.9262), (35.24, 0.9572), (38.26, 0.9599)),
        "IRN": ((43.99, 0.9871), (40.79, 0.9778), (41.32, 0.9876), (39.92, 0.9865), (44.32, 0.9908)),
        "FGRN": ((44.15, 0.9902), (42.28, 0.9840), (41.87, 0.9887), (41.71, 0.9904), (45.08, 0.9917)),
        "DLV-IRN": ((45.42, 0.9910), (42.16, 0.9839), (42.91, 0.9916), (41.29, 0.9904), (45.58, 0.9934)),
        "DLV-IRN-M": ((45.83, 0.9916), (42.47, 0.9850), (43.38, 0.9925), (41.77, 0.9911), (45.91, 0.9939)),
        "DLV-IRN-A": ((47.81, 0.9937), (44.96, 0.9884), (47.15, 0.9967), (45.07, 0.9953), (48.94, 0.9968)),
    },
    4: {
        "CAR": ((33.88, 0.9174), (30.31, 0.8382), (29.15, 0.8001), (29.28, 0.8711), (32.82, 0.8837)),
        "IRN": ((36.19, 0.9451), (32.67, 0.9015), (31.64, 0.8826), (31.41, 0.9157), (35.07, 0.9318)),
        "HCFlow": ((36.29, 0.9468), (33.02, 0.9065), (31.74, 0.8864), (31.62, 0.9206), (35.23, 0.9346)),
        "FGRN": ((36.97, 0.9505), (33.77, 0.9168), (31.83, 0.8907), (31.91, 0.9253), (35.15, 0.9322)),
        "DLV-IRN": ((36.62, 0.9484), (33.26, 0.9093), (32.05, 0.8893), (32.26, 0.9253), (35.55, 0.9363)),
        "DLV-IRN-M": ((36.67, 0.9490), (33.33, 0.9105), (32.12, 0.8909), (32.33, 0.9264), (35.63, 0.9373)),
        "DLV-IRN-A": ((37.56, 0.9566), (34.12, 0.9246), (33.12, 0.9150), (33.10, 0.9384), (36.67, 0.9504)),
    },
}


BICUBIC: dict[int, Figures] = {
    2: ((33.66, 0.9299), (30.24, 0.8688), (29.56, 0.8431), (26.88, 0.8403), (31.01, 0.9393)),
    4: ((28.42, 0.8104), (26.00, 0.7027), (25.96, 0.6675), (23.14, 0.6577), (26.66, 0.8521)),
}
"""Bicubic down and up, as the authors of IRN list it; table 3 has no such row."""

TABLE_3_SOURCE = "table 3 of arXiv 2303.06747"
BICUBIC_SOURCE = "Xiao et al., Invertible Image Rescaling, ECCV 2020"


@dataclass(frozen=True)
class Published:
    """A row that others measured: method, Y-PSNR, SSIM of Y, and where it stands."""

    method: str
    hr_psnr_y: float
    hr_ssim_y: float
    source: str


def published_rows(scale: int, set_name: str) -> list[Published]:
    """All published rows of a set, bicubic first; empty if there is none."""
    index = _index(set_name)
    if index is None or scale not in BICUBIC:
        return []
    bicubic = Published("bicubic", *BICUBIC[scale][index], BICUBIC_SOURCE)
    return [bicubic, *(Published(m, *figures, TABLE_3_SOURCE) for m, figures in published(scale, set_name).items())]


def published(scale: int, set_name: str) -> dict[str, tuple[float, float]]:
    """Rows of table 3 for a set by its folder's name, compared without case and punctuation; empty if it has none."""
    index = _index(set_name)
    return {} if index is None else {method: figures[index] for method, figures in TABLE_3.get(scale, {}).items()}


def _index(set_name: str) -> int | None:
    wanted = "".join(c for c in set_name.lower() if c.isalnum())
    return next((i for i, name in enumerate(SETS) if wanted == name.lower()), None)
