"""A bundle's graphs on arrays of any size: whole, or in tiles with a halo."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from rescale import codes
from rescale.backends import Runner, run_each
from rescale.bundle import Bundle
from rescale.contract import GRADIENT
from rescale.errors import BundleError, InputError, OutOfMemoryError
from rescale.image import pad_planes
from rescale.memory import FIXED_BYTES, choose_tile, default_budget, least_budget
from rescale.tiling import Box, Tile, grow, plan
from rescale.variants import LATENT_CHANNELS, LATENT_STRIDE

Array = npt.NDArray[np.uint8]
T = TypeVar("T")
Progress = Callable[[int, int, str], object]
"""How far a stage of the work is: parts that are done, all parts, and one of `STAGES`.

It is called in the thread that asked for the work: before the first part of a stage, after each, and on ONNX Runtime and
OpenVINO about ten times a second while a part runs. What it raises stops the work and reaches the caller; nothing is left behind.
Where the backend found no memory, a stage starts again from 0 in smaller parts.
"""

STAGES = {"downscale": "downscaling", "upscale": "restoring", GRADIENT: "refining"}
"""Names of stages by the graph that runs."""

RETRIES = 4
"""Halvings of the budget after failed allocations."""

LATENT_HALO = 2 * LATENT_STRIDE
"""LR pixels around a tile that the -M encoder and decoder may look at: two 3x3 convolutions at each of three resolutions."""


class Network:
    """The two directions of one bundle on one backend.

    Attributes:
        turn: entered while the network runs. A lock here lets threads take turns: two runs at a time on all CPUs only disturb
            each other.

    Args:
        bundle: what to run.
        runner: where.
        tile: (height, width) of a tile's core in LR pixels; None to let the budget decide. Never overridden.
        memory: budget in bytes for one run; None for half of what is available when a picture comes.
        exact: tiles with a halo of the receptive field, which give what the whole picture gives; without it the halo is the one
            measured at export, with which a few values may differ by one level.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        tile: tuple[int, int] | None = None,
        memory: int | None = None,
        exact: bool = False,
    ) -> None:
        self.bundle, self.runner = bundle, runner
        self.tile, self.memory = tile, memory
        self.turn: AbstractContextManager[Any] = nullcontext()
        down = bundle.receptive_field if exact else bundle.halo
        up = bundle.upscale_receptive_field if exact else bundle.upscale_halo
        self.halos = {"downscale": down, "upscale": up, GRADIENT: up}

    def tiles(self, height: int, width: int, graph: str, budget: int | None = None) -> list[Tile]:
        """Tiles of an LR picture: as the options say, or as a budget demands; one where it fits whole.

        Args:
            height, width: of the LR picture.
            graph: ``downscale``, ``upscale`` or ``gradient``, which run in tiles.
            budget: bytes for one run.
        """
        latent = self.bundle.variant.latent
        align = LATENT_STRIDE if latent else 1
        halo = self.halos[graph] + (LATENT_HALO if latent else 0)
        size = self.tile
        if size is None and budget is not None:
            # Alignment moves a region's edges outwards by less than one stride each.
            reach, cost = halo + align - 1, self.bundle.memory(graph)
            if self.memory is None:  # nobody asked for a limit, so nobody is refused
                budget = max(budget, least_budget(reach, cost))
            size = choose_tile(height, width, reach, cost, budget)
        size = size or (height, width)
        return plan(height, width, (max(size[0], align), max(size[1], align)), halo, align)

    def down(self, image: Array, progress: Progress | None = None) -> tuple[Array, Array | None]:
        """uint8 (H, W, 3) -> LR codes uint8 (h, w, 3 or 4), and for -M latent codes (4, ceil(h/4), ceil(w/4))."""
        return self._within_memory(lambda budget: self._down(image, budget, progress))

    def _within_memory(self, work: Callable[[int | None], T]) -> T:
        """Run with the budget; if the backend finds no memory, again with half of it, unless the tile is the caller's."""
        budget = default_budget() if self.memory is None else self.memory
        failed: OutOfMemoryError | None = None
        for _ in range(1 + RETRIES):
            try:
                with self.turn:
                    return work(budget)
            except OutOfMemoryError as e:
                if self.tile is not None:
                    raise
                failed, budget = e, FIXED_BYTES + max(0, budget - FIXED_BYTES) // 2
            except InputError:
                if failed is None:
                    raise
                break  # smaller than the smallest tile
        assert failed is not None
        raise failed

    def _down(self, image: Array, budget: int | None, progress: Progress | None) -> tuple[Array, Array | None]:
        scale, v = self.bundle.scale, self.bundle.variant
        height, width = (-(-n // scale) for n in image.shape[:2])
        lr = np.empty((height, width, v.lr_channels), np.uint8)
        latent = (
            np.empty((LATENT_CHANNELS, -(-height // LATENT_STRIDE), -(-width // LATENT_STRIDE)), np.uint8) if v.latent else None
        )
        tiles = self.tiles(height, width, "downscale", budget)
        feeds = ({"hr": _take(image, tile.region, scale)[None]} for tile in tiles)
        with closing(self._run_tiles("downscale", tiles, feeds, progress)) as results:
            for tile, out in results:
                small = self._expect("downscale", out["lr"], (1, tile.region.height, tile.region.width, v.lr_channels))
                lr[tile.core.slices()] = small[0][tile.core.within(tile.region)]
                if latent is not None:
                    near = grow(tile.core, LATENT_HALO, LATENT_STRIDE, height, width)
                    z = cast(npt.NDArray[np.float32], out["z"])[(slice(None), slice(None), *near.within(tile.region))]
                    padded = np.ascontiguousarray(pad_planes(z, LATENT_STRIDE))
                    code = cast(Array, self.runner.run("encoder", {"z": padded})["code"])[0]
                    target = _on_latent(tile.core)
                    latent[(slice(None), *target.slices())] = code[(slice(None), *target.within(_on_latent(near)))]
        return lr, latent

    def _run_tiles(
        self, graph: str, tiles: list[Tile], feeds: Iterable[Mapping[str, npt.NDArray[Any]]], progress: Progress | None
    ) -> Generator[tuple[Tile, Mapping[str, npt.NDArray[np.generic]]]]:
        """Each tile with what the graph gave for it. To be closed: a backend may have more tiles under way."""
        done = 0

        def tell() -> None:
            if progress is not None:
                progress(done, len(tiles), STAGES[graph])

        tell()
        with closing(run_each(self.runner, graph, feeds, None if progress is None else tell)) as results:
            for tile, out in zip(tiles, results, strict=True):
                yield tile, out
                done += 1
                tell()

    def up(self, rgb: Array, alpha: Array | None, latent: Array | None, progress: Progress | None = None) -> Array:
        """The bare network, without a marker to check.

        Args:
            rgb: uint8 (h, w, 3).
            alpha: uint8 (h, w) alpha codes for -A; None stands for neutral.
            latent: uint8 (4, ceil(h/4), ceil(w/4)) latent codes for -M; None stands for z = 0.
            progress: see `Progress`.

        Returns:
            uint8 (h * scale, w * scale, 3).
        """
        lr = rgb
        if self.bundle.variant.alpha:
            lr = np.dstack([rgb, np.full(rgb.shape[:2], codes.ALPHA_NEUTRAL, np.uint8) if alpha is None else alpha])
        return self._within_memory(lambda budget: self._up(lr, latent, budget, progress))[0]

    def gradient(
        self, lr: Array, latent: Array | None, target: Array, progress: Progress | None = None
    ) -> tuple[Array, npt.NDArray[np.float32]]:
        """The restored picture, and the gradient of its error by the LR codes (`rescale_export.gradient`).

        Args:
            lr: uint8 (h, w, 3 or 4) codes, as `down` gives them.
            latent: as for `up`.
            target: uint8 (H, W, 3), the picture to restore.
            progress: see `Progress`.

        Returns:
            uint8 (h * scale, w * scale, 3) and float32 (h, w, 3 or 4), in squared levels of the HR by a level of a code.

        Raises:
            BundleError: the bundle holds no gradient graph.
        """
        hr, gradient = self._within_memory(lambda budget: self._up(lr, latent, budget, progress, target))
        assert gradient is not None
        return hr, gradient

    def _up(
        self, lr: Array, latent: Array | None, budget: int | None, progress: Progress | None, target: Array | None = None
    ) -> tuple[Array, npt.NDArray[np.float32] | None]:
        """What the upscale graph gives; with a target what the gradient graph gives."""
        scale = self.bundle.scale
        height, width = lr.shape[:2]
        graph, gradient = "upscale", None
        if target is not None:
            graph, gradient = GRADIENT, np.empty(lr.shape, np.float32)
        hr = np.empty((height * scale, width * scale, 3), np.uint8)

        def feed(region: Box) -> dict[str, npt.NDArray[Any]]:
            inputs: dict[str, npt.NDArray[Any]] = {"lr": np.ascontiguousarray(lr[region.slices()])[None]}
            if self.bundle.variant.latent:
                inputs["z"] = self._z(region, latent, height, width)
            if target is not None:
                inputs["target"] = _take(target, region, scale)[None]
            return inputs

        tiles = self.tiles(height, width, graph, budget)
        with closing(self._run_tiles(graph, tiles, (feed(t.region) for t in tiles), progress)) as results:
            for tile, found in results:
                rows, columns = tile.core.within(tile.region)
                large = self._expect(graph, found["hr"], (1, tile.region.height * scale, tile.region.width * scale, 3))
                hr[tile.core.slices(scale)] = large[0][_times(rows, scale), _times(columns, scale)]
                if gradient is not None:
                    gradient[tile.core.slices()] = found["gradient"][0][rows, columns]
        return hr, gradient

    def _expect(self, graph: str, array: npt.NDArray[np.generic], shape: tuple[int, ...]) -> Array:
        """An array that a graph gave, if it is what the manifest promises."""
        if array.shape != shape or array.dtype != np.uint8:
            came, wanted = f"{array.dtype} {array.shape}", f"uint8 {shape}"
            raise BundleError(f"{self.bundle.path}: {graph} gave {came}, wanted {wanted}: its graphs are of another network")
        return cast(Array, array)

    def _z(self, region: Box, latent: Array | None, height: int, width: int) -> npt.NDArray[np.float32]:
        """z-hat of a region: decoded with a halo of its own, or zero."""
        if latent is None:
            return np.zeros((1, self.bundle.z_channels, region.height, region.width), np.float32)
        near = grow(region, LATENT_HALO, LATENT_STRIDE, height, width)
        code = np.ascontiguousarray(latent[(slice(None), *_on_latent(near).slices())])[None]
        z = cast(npt.NDArray[np.float32], self.runner.run("decoder", {"code": code})["z"])
        return np.ascontiguousarray(z[(slice(None), slice(None), *region.within(near))])


def _take(image: Array, region: Box, scale: int) -> Array:
    """A region of the HR picture; what lies beyond its bottom or right repeats the last row or column."""
    piece = image[region.slices(scale)]
    bottom, right = region.height * scale - piece.shape[0], region.width * scale - piece.shape[1]
    if bottom or right:
        piece = np.pad(piece, ((0, bottom), (0, right), (0, 0)), mode="edge")
    return np.ascontiguousarray(piece)


def _on_latent(box: Box) -> Box:
    """A box whose starts are multiples of the latent stride, in latent positions."""
    s = LATENT_STRIDE
    return Box(box.top // s, -(-box.bottom // s), box.left // s, -(-box.right // s))


def _times(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)
