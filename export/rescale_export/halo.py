"""How many pixels around a tile matter: measured for the weights at hand.

The receptive field is an upper bound; trained networks look much less far. The measured halo is the smallest one of a few with
which no value in a tile's core, before it is rounded, is further from the whole picture's than `LIMIT` grey levels, in either
direction. Tiles with it may differ from the whole picture where a value lies that close to a rounding boundary, by one level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from rescale.tiling import Box, grow
from rescale.variants import LATENT_STRIDE
from rescale_export.probe import photograph, probe_picture
from rescale_export.session import session_of

LIMIT = 0.05
"""Grey levels; a tenth of what may change a rounded value by one, because other pictures may be worse than those measured."""

RMS_LIMIT = 0.01
"""The same of a downscale graph with corrections, as a root mean square: where a leaky ReLU's input rounds to the other side of 0,
single codes of the same picture move by a quarter of a level, however much is seen around them."""

CANDIDATES = (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72)
CORE = 32
"""LR pixels a side of the core that is compared."""

ROOM = 48
"""LR pixels around the core of the first pictures. All weights that ship have a halo of 20 or less."""

Arrays = Mapping[str, npt.NDArray[Any]]

_LEVELS = {"lr.levels.out": 1.0, "alpha.levels.out": 1.0, "hr.levels.out": 1.0, "z": 255.0}
"""Values before rounding, and what one of them is in grey levels."""


def measured_halo(models: Mapping[str, bytes], scale: int, receptive_field: Mapping[str, int]) -> dict[str, Any]:
    """Find the halo of a pair of float32 graphs.

    Args:
        models: ``downscale`` and ``upscale`` as ONNX bytes.
        scale: 2 or 4.
        receptive_field: LR pixels of each of them, the exact halo.

    Returns:
        For the manifest: ``lr_pixels``, which do for both, ``deviation`` (grey levels, the largest found) and ``limit``. With
        corrections these two are of the upscale graph, whose own halo is ``upscale_lr_pixels``, and ``deviation_rms`` and
        ``limit_rms`` of the downscale graph.
    """
    down, up = (_Levels(models[name]) for name in ("downscale", "upscale"))
    widest = min(receptive_field["downscale"], max(receptive_field["upscale"], CANDIDATES[-1]))
    # What lies far off matters ever less: where half of the room does, more would change nothing but take time and memory.
    for room in sorted({min(widest, ROOM), widest}):
        found = _measured(down, up, scale, receptive_field, room)
        if 2 * found["lr_pixels"] <= room:
            break
    return found


def _measured(down: _Levels, up: _Levels, scale: int, receptive_field: Mapping[str, int], room: int) -> dict[str, Any]:
    """`measured_halo` on pictures with so many LR pixels around the core."""
    corrected = receptive_field["downscale"] != receptive_field["upscale"]
    # The latent code that corrections look at hangs on where its blocks begin; tiles begin there too.
    align = LATENT_STRIDE if corrected and "z" in down.outputs else 1
    down_cases: list[_Case] = []
    up_cases: list[_Case] = []
    for picture in _pictures(scale, room):
        feed: Arrays = {"hr": picture}
        out = down.all(feed)
        down_cases.append((down, feed, scale, align, down.of(out)))
        feed = {name: out[name] for name in up.inputs}
        up_cases.append((up, feed, 1, 1, up.of(up.all(feed))))
    if not corrected:
        halo, worst = _least_halo([*down_cases, *up_cases], receptive_field["downscale"], LIMIT, _largest)
        return {"lr_pixels": halo, "deviation": round(worst, 4), "limit": LIMIT}
    up_halo, worst = _least_halo(up_cases, receptive_field["upscale"], LIMIT, _largest)
    halo, rms = _least_halo(down_cases, receptive_field["downscale"], RMS_LIMIT, _root_mean_square)
    measured = {"deviation": round(worst, 4), "limit": LIMIT, "deviation_rms": round(rms, 4), "limit_rms": RMS_LIMIT}
    return {"lr_pixels": max(halo, up_halo), "upscale_lr_pixels": up_halo, **measured}


def _least_halo(
    cases: Sequence[_Case], receptive_field: int, limit: float, size: Callable[[npt.NDArray[np.float32]], float]
) -> tuple[int, float]:
    """The smallest candidate that does, and the size of the deviation with it; if none does, the receptive field."""
    for halo in CANDIDATES:
        if halo < receptive_field:
            worst = float(np.max([size(_deviation(*case, halo)) for case in cases]))
            if worst <= limit:
                return halo, worst
    return receptive_field, 0.0


def _largest(deviation: npt.NDArray[np.float32]) -> float:
    return float(deviation.max())


def _root_mean_square(deviation: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(deviation, dtype=np.float64).mean()))


_Case = tuple["_Levels", Arrays, int, int, list[npt.NDArray[np.float32]]]
"""A graph, what it is fed, the input pixels of an LR pixel, the LR pixels that tiles are aligned to, and what it makes of the whole
picture."""


def _pictures(scale: int, halo: int) -> list[npt.NDArray[np.uint8]]:
    """A photograph and a drawn picture with room for a halo on every side."""
    side = (CORE + 2 * halo) * scale
    photo = photograph()
    # Mirrored copies keep the statistics of a photograph at any size.
    height, width = photo.shape[:2]
    photo = np.pad(photo, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)), mode="symmetric")
    return [np.ascontiguousarray(p[None, :side, :side]) for p in (photo, probe_picture(side, side, seed=11))]


class _Levels:
    """A graph whose unrounded values can be had."""

    def __init__(self, data: bytes) -> None:
        model = onnx.load_from_string(data)
        self.names = []
        produced = {name for node in model.graph.node for name in node.output}
        declared = {o.name for o in model.graph.output}
        for name in _LEVELS:
            if name in produced:
                self.names.append(name)
                if name not in declared:
                    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        self.session = session_of(model.SerializeToString())
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def all(self, feed: Arrays) -> Arrays:
        return dict(zip(self.outputs, self.session.run(self.outputs, dict(feed)), strict=True))

    def of(self, found: Arrays) -> list[npt.NDArray[np.float32]]:
        """The unrounded values among all outputs, in grey levels."""
        return [found[name] * np.float32(_LEVELS[name]) for name in self.names]


def _deviation(
    graph: _Levels, feed: Arrays, step: int, align: int, whole: Sequence[npt.NDArray[np.float32]], halo: int
) -> npt.NDArray[np.float32]:
    """Differences in the core between the whole picture and the core with a halo; `step` input pixels are one LR pixel."""
    first = next(iter(feed.values()))
    side = first.shape[1] // step
    start = (side - CORE) // 2 // align * align
    core = Box(start, start + CORE, start, start + CORE)
    region = grow(core, halo, align, side, side)
    rows, columns = region.slices(step)
    tile = {
        name: np.ascontiguousarray(value[:, :, rows, columns] if name == "z" else value[:, rows, columns])
        for name, value in feed.items()
    }
    found = []
    for got, want in zip(graph.of(graph.all(tile)), whole, strict=True):
        factor = got.shape[2] // region.height
        top, left = (s.start * factor for s in core.within(region))
        rows, columns = core.slices(factor)
        inner = got[:, :, top : top + CORE * factor, left : left + CORE * factor]
        found.append(np.abs(inner - want[:, :, rows, columns]).ravel())
    return np.concatenate(found)
