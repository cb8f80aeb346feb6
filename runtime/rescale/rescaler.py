"""The two verbs: a large picture to a small one, and back."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rescale import codes
from rescale.backends import Runner, create
from rescale.bundle import Bundle
from rescale.container import Small, State
from rescale.image import check_rgb, pad_planes, pad_to_multiple
from rescale.picture import Picture
from rescale.variants import LATENT_STRIDE

Array = npt.NDArray[np.uint8]


class Rescaler:
    """A bundle ready to run. Thread-safe; use it as a context manager or call `close`.

    Attributes:
        bundle: what was loaded.
        runner: the backend that runs it.
    """

    def __init__(self, bundle: Bundle, runner: Runner) -> None:
        self.bundle, self.runner = bundle, runner

    def downscale(self, image: Array | Picture) -> Small:
        """Make the small picture of a large one.

        Args:
            image: uint8 (H, W, 3) RGB, any H and W from 1 to 65535, or a `Picture`, whose alpha and colour chunks travel along.

        Returns:
            The LR picture, ceil(H/scale) x ceil(W/scale), with its auxiliary data.

        Raises:
            InputError: another dtype or shape.
            BackendError: the backend failed, for instance for lack of memory.
        """
        scale, v = self.bundle.scale, self.bundle.variant
        source = image if isinstance(image, Picture) else Picture(check_rgb(image))
        padded = np.ascontiguousarray(pad_to_multiple(check_rgb(source.pixels), scale))[None]
        out = self.runner.run("downscale", {"hr": padded})
        lr = cast(Array, out["lr"])[0]
        alpha = np.ascontiguousarray(lr[:, :, 3]) if v.alpha else None
        latent = None
        if v.latent:
            z = pad_planes(cast(npt.NDArray[np.float32], out["z"]), LATENT_STRIDE)
            latent = cast(Array, self.runner.run("encoder", {"z": z})["code"])[0]
        return Small.create(
            lr[:, :, :3],
            alpha,
            latent,
            model=v.name,
            scale=scale,
            weights=self.bundle.weights,
            source=source,
        )

    def upscale(self, small: Small, strict: bool = True) -> Array:
        """Restore the large picture.

        Args:
            small: an LR picture, from `downscale` or `Small.open`.
            strict: refuse a picture that cannot be restored exactly; False restores it without its auxiliary data (z = 0,
                neutral alpha), at the model's lower quality.

        Returns:
            uint8 (H, W, 3); the first shape exactly. Where the original size is unknown, scale times the LR size.

        Raises:
            LrFileError: `strict`, and the picture is not exact for this model.
            BackendError: the backend failed.
        """
        scale = self.bundle.scale
        identity = (self.bundle.variant.name, scale, self.bundle.weights)
        if strict:
            small.require(*identity)
        exact = small.verdict(*identity)[0] is State.EXACT
        hr = self.run_upscale(small.rgb, small.alpha if exact else None, small.latent if exact else None)
        height, width = small.rgb.shape[:2]
        block = small.block
        known = block is not None and block.scale == scale and block.lr_size == small.size
        out_width, out_height = block.hr_size if block is not None and known else (width * scale, height * scale)
        # The block was checked: its LR size is ceil(HR size / scale), so the HR fits.
        return np.ascontiguousarray(hr[:out_height, :out_width])

    def run_upscale(self, rgb: Array, alpha: Array | None, latent: Array | None) -> Array:
        """The bare network, without a marker to check: for frames of a raw stream.

        Args:
            rgb: uint8 (h, w, 3).
            alpha: uint8 (h, w) alpha codes for -A; None stands for neutral.
            latent: uint8 (4, ceil(h/4), ceil(w/4)) latent codes for -M; None stands for z = 0.

        Returns:
            uint8 (h * scale, w * scale, 3).
        """
        v = self.bundle.variant
        height, width = rgb.shape[:2]
        inputs: dict[str, npt.NDArray[Any]] = {"lr": np.ascontiguousarray(rgb)[None]}
        if v.alpha:
            plane = alpha if alpha is not None else np.full((height, width), codes.ALPHA_NEUTRAL, np.uint8)
            inputs["lr"] = np.dstack([rgb, plane])[None]
        if v.latent:
            if latent is not None:
                z = self.runner.run("decoder", {"code": latent[None]})["z"][:, :, :height, :width]
            else:
                channels = next(t.axes[1] for t in self.bundle.graphs["upscale"].inputs if t.name == "z")
                z = np.zeros((1, int(channels), height, width), np.float32)
            inputs["z"] = np.ascontiguousarray(z)
        hr = cast(Array, self.runner.run("upscale", inputs)["hr"])
        return np.ascontiguousarray(hr[0])

    def restore(self, small: Small, strict: bool = True) -> Picture:
        """`upscale`, with what belongs to the picture beside its colours: gray mode, transparency, colour chunks."""
        pixels = self.upscale(small, strict)
        gray = small.block is not None and small.block.source_mode == "gray"
        alpha = small.source_alpha
        fits = alpha is not None and alpha.shape == pixels.shape[:2]
        return Picture(pixels, gray, alpha if fits else None, small.colour)

    def close(self) -> None:
        """Free the backend's sessions and memory."""
        self.runner.close()

    def __enter__(self) -> Rescaler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(path: str | os.PathLike[str], backend: str = "auto", threads: int | None = None) -> Rescaler:
    """Open a bundle.

    Args:
        path: the bundle's folder, made by `rescale-export`.
        backend: ``auto`` or a name from `rescale.backends.NAMES`.
        threads: CPU threads; None for all that this process may use.

    Raises:
        BundleError: no bundle there, damaged, or of another format version.
        BackendError: the backend is unknown, missing, or cannot load the graphs.
    """
    bundle = Bundle(path)
    return Rescaler(bundle, create(bundle, backend, threads))
