"""What the page of a report shows of pictures: crops of each, and a map of where a backend differs most."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rescale import png
from rescale.backends import create
from rescale.bundle import Bundle
from rescale.comparison import Comparison, worst_spot
from rescale.container import Small
from rescale.network import Network
from rescale.parity import Case, golden_vectors
from rescale.quality import psnr_y
from rescale.rescaler import Rescaler
from rescale_bench.parity import GOLDEN, Group, Report, Result, Take, golden_cases, group_name, probe
from rescale_bench.pictures import Picture, PictureSet, crop_to_multiple
from rescale_train.bicubic import bicubic_picture, enlarge_picture

CROP = 160
"""Side of a crop in HR pixels."""

GAIN = 8
"""Times that a difference is enlarged."""

BLOCK = 8
"""Side of a square of the heat map in pixels."""

SHOWN = 128 * 128
"""Pixels of a picture that is worth a map."""

OVERVIEW = 320
"""Longer side of a whole picture, as a JPEG file, in pixels."""


@dataclass(frozen=True)
class Panel:
    """One crop: a PNG file as a data URI, of what, and a note such as its PSNR."""

    key: str
    title: str
    note: str
    uri: str


@dataclass(frozen=True)
class Panels:
    """Crops of one picture, where its restored HR is worst.

    Attributes:
        name: of the picture.
        size: (width, height).
        box: (left, top, width, height) of the crop.
        overview: the whole picture, small, as a data URI.
        panels: source first.
        source_png: bytes of the source as this toolkit writes PNG files.
        row: its figures, as `rescale_bench.quality.PictureQuality` has them.
    """

    name: str
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    overview: str
    panels: tuple[Panel, ...]
    source_png: int
    row: Mapping[str, Any]


def panels(net: Rescaler, name: str, picture: Picture, row: Mapping[str, Any]) -> Panels:
    """Crops of a picture that went down to an LR file and up again.

    Args:
        net: open bundle.
        name: of the picture.
        picture: uint8 (H, W, 3); cut to multiples of the scale first.
        row: its figures.
    """
    scale = net.bundle.scale
    hr = np.ascontiguousarray(crop_to_multiple(picture, scale, name))
    small = Small.from_bytes(net.downscale(hr).to_bytes())
    again = net.upscale(small)
    height, width = hr.shape[:2]
    naive = enlarge_picture(bicubic_picture(hr, scale), scale)
    spot = worst_spot(again, hr, CROP // 2)
    side = min(CROP, height, width)
    middle = (height // 2, width // 2) if spot is None else (spot.top + spot.height // 2, spot.left + spot.width // 2)
    top, left = (int(np.clip(m - side // 2, 0, n - side)) // scale * scale for m, n in zip(middle, (height, width), strict=True))
    here = np.s_[top : top + side, left : left + side]
    there = np.s_[top // scale : (top + side) // scale, left // scale : (left + side) // scale]
    difference = np.clip(128 + GAIN * (again.astype(np.int16) - hr), 0, 255).astype(np.uint8)
    largest = int(np.abs(again.astype(np.int16) - hr)[here].max())
    found = (
        Panel("source", "Source (HR)", f"{side}x{side} of {width}x{height}", png_uri(hr[here])),
        Panel("restored", "Restored", f"{psnr_y(again[here], hr[here], 0):.2f} dB here", png_uri(again[here])),
        Panel("lr", "LR", f"{side // scale}x{side // scale} pixels, as a viewer shows them", png_uri(small.rgb[there])),
        Panel("bicubic", "Bicubic down and up", f"{psnr_y(naive[here], hr[here], 0):.2f} dB here", png_uri(naive[here])),
        Panel("difference", f"Difference x{GAIN}", f"restored less source; at most {largest} levels", png_uri(difference[here])),
    )
    return Panels(name, (width, height), (left, top, side, side), overview(hr), found, len(png.encode(hr)), row)


@dataclass(frozen=True)
class HeatMap:
    """Where a result differs from its reference.

    Attributes:
        title: backend and precision.
        reference: what it was compared with.
        picture: name.
        values: float64 (rows, columns), share of the uint8 values that differ, 0 to 1, in squares of `BLOCK` pixels.
        overview: the picture, as a data URI.
        size: (width, height) of the picture.
        found: agreement of the whole picture.
        worst: the square of 32 pixels where it is worst, as `rescale.comparison.Spot.to_dict`.
    """

    title: str
    reference: str
    picture: str
    values: npt.NDArray[np.float64]
    overview: str
    size: tuple[int, int]
    found: Comparison
    worst: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For reports, without the map itself."""
        head = {"result": self.title, "reference": self.reference, "picture": self.picture, "size": list(self.size)}
        return {**head, "hr": self.found.to_dict(), "worst": dict(self.worst)}


def heat_map(bundle: Bundle, report: Report, sets: Sequence[PictureSet], threads: int | None) -> HeatMap | None:
    """The picture of a parity report whose restored HR is farthest from its reference's, run again; see `SHOWN`.

    Args:
        bundle: that the report is of.
        report: of `rescale_bench.parity.check`.
        sets: that were checked with it.
        threads: CPU threads; None for all.

    Returns:
        None where no value of any picture differs.
    """
    entries = [(r, g, c) for r in report.results for g in r.groups for c in g.parity.cases if c.worst is not None]
    # On a map a picture of a few pixels shows nothing; it counts where there is no other.
    entries.sort(key=lambda e: (e[2].height * e[2].width < SHOWN, e[2].graphs["hr"].psnr))
    if not entries:
        return None
    result, group, case = entries[0]
    got, want, hr = _again(bundle, result, group, case, sets, threads)
    found = Comparison()
    found.add(got, want, "heat map")
    worst = worst_spot(got, want)
    if worst is None:  # a backend whose results are not the same twice
        return None
    name = case.name or f"golden picture of {case.width}x{case.height}"
    size = (case.width, case.height)
    return HeatMap(result.title, group.reference, name, shares(got, want), overview(hr), size, found, worst.to_dict())


def _again(
    bundle: Bundle, result: Result, group: Group, case: Case, sets: Sequence[PictureSet], threads: int | None
) -> tuple[Picture, Picture, Picture]:
    """HR of the reference's LR: the result's and the reference's, and the source."""
    with contextlib.closing(create(bundle, result.backend, threads, result.precision)) as runner:
        if group.name == GOLDEN:
            cases = golden_cases(bundle, result.backend, result.precision) or golden_vectors(bundle)
            want = cases[group.parity.cases.index(case)]
            inputs = {"lr": want["lr"]}
            if bundle.variant.latent:
                rows, columns = want["lr"].shape[1:3]
                planes = runner.run("decoder", {"code": want["code"]})["z"]
                inputs["z"] = np.ascontiguousarray(planes[:, :, :rows, :columns])
            return np.asarray(runner.run("upscale", inputs)["hr"])[0], want["restored"][0], want["hr"][0]
        reads = {(group_name(s), name): read for s in sets for name, read in s.pictures}
        read = reads.get((group.name, case.name))
        hr = probe(case.height, case.width) if read is None else read()
        with contextlib.closing(create(bundle, "onnxruntime", threads)) as opened:
            take = Take(Network(bundle, opened), hr)
        lr, height, width = take.lr, *hr.shape[:2]
        up = Network(bundle, runner).up(lr[:, :, :3], lr[:, :, 3] if lr.shape[2] == 4 else None, take.code)
        return up[:height, :width], take.restored, hr


def shares(got: Picture, want: Picture, side: int = BLOCK) -> npt.NDArray[np.float64]:
    """Share of the values that differ, in squares that tile two uint8 (H, W, C) pictures: (ceil(H/side), ceil(W/side))."""
    differs = (got != want).astype(np.int64).sum(axis=2)
    rows, columns = np.arange(0, got.shape[0], side), np.arange(0, got.shape[1], side)
    sums = np.add.reduceat(np.add.reduceat(differs, rows, axis=0), columns, axis=1)
    heights, widths = np.diff([*rows, got.shape[0]]), np.diff([*columns, got.shape[1]])
    found: npt.NDArray[np.float64] = sums / (heights[:, None] * widths[None, :] * got.shape[2])
    return found


def png_uri(picture: npt.NDArray[np.uint8]) -> str:
    """A picture as a PNG file in a data URI."""
    return _uri(Image.fromarray(np.ascontiguousarray(picture)), "PNG", optimize=True)


def overview(picture: Picture) -> str:
    """A picture, at most `OVERVIEW` pixels wide and high, as a JPEG file in a data URI."""
    image = Image.fromarray(picture)
    image.thumbnail((OVERVIEW, OVERVIEW))
    return _uri(image, "JPEG", quality=85)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
