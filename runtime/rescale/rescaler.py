"""The two verbs: a large picture to a small one, and back."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, SupportsIndex

import numpy as np
import numpy.typing as npt

from rescale.backends import NAMES, Runner, create
from rescale.bundle import Bundle
from rescale.container import Small, State
from rescale.contract import GRADIENT
from rescale.errors import InputError
from rescale.image import check_rgb
from rescale.network import Network, Progress
from rescale.picture import Picture
from rescale.refine import refine

Array = npt.NDArray[np.uint8]


class Rescaler:
    """A bundle ready to run. Thread-safe; use it as a context manager or call `close`.

    Attributes:
        bundle: what was loaded.
        runner: the backend that runs it.
        network: the bare arrays-to-arrays functions, without markers to make or check.
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
        self.network = Network(bundle, runner, tile, memory, exact)

    def downscale(self, image: Array | Picture, steps: int = 0, progress: Progress | None = None) -> Small:
        """Make the small picture of a large one.

        Args:
            image: uint8 (H, W, 3) RGB, any H and W from 1 to 65535, or a `Picture`, whose alpha and colour chunks travel along.
            steps: of refining (`rescale.refine`): more are slower and restore better.
            progress: called with how far it is, see `rescale.network.Progress`: ``downscaling``, then with steps ``refining``.
                What it raises stops the work, and is passed on: that is how to cancel.

        Returns:
            The LR picture, ceil(H/scale) x ceil(W/scale), with its auxiliary data.

        Raises:
            InputError: another dtype or shape, or a negative number of steps.
            BundleError: steps are wanted and the bundle holds no gradient graph.
            BackendError: the backend failed, for instance for lack of memory.
        """
        v = self.bundle.variant
        steps = _whole(steps, 0, f"steps: 0 or more, got {steps}")
        if steps:
            self.bundle.graph(GRADIENT)  # before the work, not after it
        source = image if isinstance(image, Picture) else Picture(check_rgb(image))
        lr, latent = self.network.down(check_rgb(source.pixels), progress)
        if steps:
            lr = refine(self.network, source.pixels, lr, latent, steps, progress)
        alpha = np.ascontiguousarray(lr[:, :, 3]) if v.alpha else None
        return Small.create(
            lr[:, :, :3],
            alpha,
            latent,
            model=v.name,
            scale=self.bundle.scale,
            weights=self.bundle.weights,
            source=source,
        )

    def upscale(self, small: Small, strict: bool = True, trust_alpha: bool = False, progress: Progress | None = None) -> Array:
        """Restore the large picture.

        Args:
            small: an LR picture, from `downscale` or `Small.open`.
            strict: refuse a picture that cannot be restored exactly; False restores it without its auxiliary data (z = 0,
                neutral alpha), at the model's lower quality. One whose marker names another scale is refused all the same: what
                came out would have another size than its original.
            trust_alpha: restore a picture whose marker is gone, or whose pixels or alpha channel changed but not its width and
                height, by the alpha channel it has, as if it were this -A model's LR. Nothing can be verified. It has no effect
                on others.
            progress: as for `downscale`; its stage is ``restoring``.

        Returns:
            uint8 (H, W, 3); the first shape exactly. Where the original size is unknown, scale times the LR size.

        Raises:
            InputError: something else than an LR picture.
            LrFileError: `strict`, and the picture is not exact for this model; or it was made for another scale.
            BackendError: the backend failed.
        """
        if not isinstance(small, Small):
            wanted = "an LR picture is wanted, from downscale, Small.open or Small.from_bytes"
            raise InputError(f"{wanted}, not {type(small).__name__}")
        scale, identity = self.bundle.scale, self.bundle.identity
        block = small.block
        trusted = small.trusted_alpha(*identity) if trust_alpha else None
        # Of another scale nothing is made even by force: it would not have the original's size.
        if (strict and trusted is None) or (block is not None and block.scale != scale):
            small.require(*identity)
        exact = small.verdict(*identity)[0] is State.EXACT
        alpha, latent = small.alpha if exact else trusted, small.latent if exact else None
        hr = self.network.up(small.rgb, alpha, latent, progress)
        height, width = small.rgb.shape[:2]
        known = block is not None and block.lr_size == small.size
        out_width, out_height = block.hr_size if block is not None and known else (width * scale, height * scale)
        # The block was checked: its LR size is ceil(HR size / scale), so the HR fits.
        return np.ascontiguousarray(hr[:out_height, :out_width])

    def restore(self, small: Small, strict: bool = True, trust_alpha: bool = False, progress: Progress | None = None) -> Picture:
        """`upscale`, with what belongs to the picture beside its colours: gray mode, transparency, colour chunks."""
        pixels = self.upscale(small, strict, trust_alpha, progress)
        gray = small.block is not None and small.block.source_mode == "gray"
        alpha = small.source_alpha
        fits = alpha is not None and alpha.shape == pixels.shape[:2]
        return Picture(pixels, gray, alpha if fits else None, small.colour)

    def close(self) -> None:
        """Free the backend's sessions and memory."""
        self.runner.close()

    def __reduce__(self) -> NoReturn:
        # What pickle says by itself names a lock or a module deep inside.
        raise TypeError("a Rescaler belongs to its process: call rescale.load in each (ProcessPoolExecutor: initializer)")

    def __enter__(self) -> Rescaler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(
    path: str | os.PathLike[str],
    backend: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    tile: Sequence[SupportsIndex] | None = None,
    precision: str | None = None,
    exact: bool = False,
    provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
) -> Rescaler:
    """Open a bundle.

    Args:
        path: the bundle's folder, made by `rescale-export`.
        backend: ``auto`` or a name from `rescale.backends.NAMES`.
        threads: CPU threads; None for all that this process may use.
        memory: budget in bytes for running the network once, beside the pictures themselves; None for half of what is available.
            Pictures that need more run in tiles. Threads that run it at the same time take as much each.
        tile: (height, width) of tiles in LR pixels, instead of a budget.
        precision: which of the bundle's graphs run: one of `rescale.bundle.PRECISIONS`; None for ``mixed`` on TensorRT and
            ``fp32`` elsewhere.
        exact: tiles see as much around them as the network does, so that the result is the whole picture's. Without it they see
            what was measured to matter, which is several times less work, and a few values may differ by one level.
        provider: an execution provider of ONNX Runtime by name, such as ``CUDAExecutionProvider``; None for the CPU.
        provider_options: its options.

    Raises:
        BundleError: no bundle there, damaged, of another format version, or without that precision.
        BackendError: the backend is unknown, or cannot load the graphs.
        MissingExtraError: the backend's library is not installed.
        ConfigError: no such precision.
        InputError: a tile or budget that nothing can be run in, or an argument of another type.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path {str(path)[:80]!r}: the folder of a bundle is wanted, a str or a Path")
    if not isinstance(backend, str):
        raise InputError(f"backend {backend!r}: a name is wanted: auto, or one of {', '.join(NAMES)}")
    if threads is not None:
        threads = _whole(threads, None, f"threads {threads!r}: a whole number is wanted, or None for all that are usable")
    if memory is not None:
        wanted = "a whole number of bytes is wanted, or None for half of what is available"
        memory = _whole(memory, 1, f"memory {memory!r}: {wanted}")
    core = None if tile is None else _tile(tile)
    bundle = Bundle(path)
    runner = create(bundle, backend, threads, precision, provider, provider_options)
    return Rescaler(bundle, runner, core, memory, exact)


def _tile(tile: Any) -> tuple[int, int]:
    """Height and width from any sequence of two.

    Raises:
        InputError: something else, or below 1.
    """
    refusal = f"tile {tile!r}: (height, width) in LR pixels is wanted, each 1 or more"
    try:
        height, width = (tile[i] for i in range(len(tile)))
    except (TypeError, ValueError, LookupError):
        raise InputError(refusal) from None
    return _whole(height, 1, refusal), _whole(width, 1, refusal)


def _whole(value: Any, least: int | None, refusal: str) -> int:
    """A whole number of any type that is one, numpy's too; a truth value is none.

    Raises:
        InputError: another type, or below `least`; the message is `refusal`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(refusal) from None
    if isinstance(value, bool) or (least is not None and number < least):
        raise InputError(refusal)
    return number
