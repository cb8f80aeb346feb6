"""What `rescale-bench speed` measures: bundles, competitors and pictures, as the options say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rescale.backends import NAMES
from rescale.bundle import Bundle, check_precision
from rescale.errors import BackendError, UnknownModelError
from rescale_bench import peers
from rescale_bench.options import MODEL, SCALE
from rescale_bench.peers_torch import random_net
from rescale_bench.sizes import Size
from rescale_bench.speed_gpu import MODES
from rescale_bench.speed_worker import BACKEND
from rescale_export.bundles import write_bundle
from rescale_export.probe import photograph
from rescale_train import checkpoint
from rescale_train.config import DEFAULT_SIZES, NetConfig, net_config
from rescale_train.models import RescalingNet
from rescale_train.shipped import find_shipped, list_shipped
from rescale_train.tables import from_dict

SWEEP_MEGAPIXELS = (0.5, 2.0, 8.0, 24.0, 50.0)
SWEEP_MINUTES = 30.0


@dataclass(frozen=True)
class Options:
    """The command's options; see its help. Empty lists and None stand for defaults.

    `seconds` ends the runs of one direction of a case after that time, once all have had `rescale_bench.formats.LEAST`;
    `compiled` is whether torch.compile is one of the peers; of a sweep, sizes beyond `minutes` are left out, 0 for none.
    """

    bundles: Sequence[Path] = ()
    models: Sequence[str] = ()
    scales: Sequence[int] = ()
    sizes: Sequence[str] = ()
    resolutions: Sequence[str] = ()
    backends: Sequence[str] = ()
    precisions: Sequence[str] = ()
    repeats: int | None = None
    threads: int | None = None
    peers: bool = True
    compiled: bool = True
    seconds: float | None = None
    memory: int | None = None
    sweep: bool = False
    sweep_megapixels: Sequence[float] = SWEEP_MEGAPIXELS
    minutes: float = 0.0


@dataclass(frozen=True)
class Subject:
    """A bundle to measure, and its network for the peers.

    Attributes:
        bundle: what the backends run.
        net: what the peers run.
        weights: ``same`` as the bundle's; ``random``, the bundle's too; ``unknown``: the bundle's are not at hand, the peers' are
            random, and their pictures are not compared.
        name: by which the report tells it from others of its title; empty for the title.
    """

    bundle: Bundle
    net: RescalingNet
    weights: str
    name: str = ""

    @property
    def title(self) -> str:
        """Its name in reports."""
        return self.name or self.bundle.title


@dataclass(frozen=True)
class Competitor:
    """A backend in a precision, or a peer.

    Attributes:
        kind: as of `rescale_bench.speed_worker.Spec`.
        backend, precision: of a backend, which may name an execution provider of ONNX Runtime.
        asked: it was named, so that its absence is an error.
        mode: of a GPU's engines, one of `rescale_bench.speed_gpu.MODES`.
    """

    kind: str
    backend: str = ""
    precision: str = ""
    asked: bool = False
    mode: str = ""

    @property
    def name(self) -> str:
        """Backend, precision and mode, or the peer's name."""
        name = f"{self.backend} {self.precision}".strip() or self.kind
        return f"{name} ({self.mode})" if self.mode else name


def competitors(options: Options) -> list[Competitor]:
    """Backends in the order they are measured, then the peers.

    Raises:
        BackendError, ConfigError: an unknown backend or precision.
    """
    for name in options.backends:
        if name.partition(":")[0] not in NAMES:
            raise BackendError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
    for precision in options.precisions:
        check_precision(precision)
    found = []
    for backend in dict.fromkeys(options.backends or NAMES):
        # ONNX Runtime computes float16 on CPUs by casting around every operator: it is measured if it is asked for.
        default = ("fp32",) if backend == "onnxruntime" else ("fp32", "mixed")
        for precision in dict.fromkeys(options.precisions or default):
            asked = backend in options.backends and (precision in options.precisions or not options.precisions)
            found += [Competitor(BACKEND, backend, precision, asked, mode) for mode in MODES.get(backend, ("",))]
    if not options.peers or options.sweep:
        return found
    return found + [Competitor(name) for name in peers.NAMES if options.compiled or name != "compiled"]


def subjects(
    options: Options,
    wanted: Sequence[Competitor],
    folder: Path,
    progress: Callable[[int, int, str], object] = lambda done, count, stage: None,
) -> Iterator[Subject]:
    """The given bundles, and the named models: with the weights that ship, else random ones.

    Args:
        options: see `Options`.
        wanted: by whom they are to be run.
        folder: models are exported to it.
        progress: as of `rescale_export.bundles.write_bundle`, the model before each stage.
    """
    bundles = [Bundle(path) for path in options.bundles]
    for bundle in bundles:
        net = _weights_of(bundle)
        yield Subject(bundle, net or random_net(_config(bundle)), "same" if net is not None else "unknown")
    if bundles and not (options.models or options.sizes or options.scales):
        return
    precisions = sorted({c.precision for c in wanted if c.kind == BACKEND} - {"fp32"})
    for model in options.models or (MODEL,):
        for scale in options.scales or (SCALE,):
            for size in options.sizes or (_usual_size(model, scale),):
                config = net_config(model, scale, size)
                try:
                    found = find_shipped(model, scale, size)
                except UnknownModelError:  # the names were checked above: none ship
                    net, weights = random_net(config), "random"
                else:
                    net, weights = checkpoint.read_net(found.path), "same"

                def told(done: int, count: int, stage: str, name: str = f"{model} x{scale} {size}") -> None:
                    progress(done, count, f"{name}: {stage}")

                target = folder / f"{model}_x{scale}_{size}"
                yield Subject(write_bundle(net, target, None, precisions, progress=told), net, weights)


def _usual_size(model: str, scale: int) -> str:
    """What `rescale-export` takes where no size is named; of a model without weights, the smallest."""
    try:
        return find_shipped(model, scale).size
    except UnknownModelError:
        return DEFAULT_SIZES[-1]


def _config(bundle: Bundle) -> NetConfig:
    return from_dict(NetConfig, bundle.manifest.get("net"), f"{bundle.path}: net")


def _weights_of(bundle: Bundle) -> RescalingNet | None:
    """The network with the bundle's weights, if they ship with the package, be it with fewer of their corrections."""
    for shipped in list_shipped():
        same, config = shipped.card.get("weights_sha256") == bundle.network, shipped.card["recipe"]["net"]
        alike = (config["model"], config["scale"]) == (bundle.variant.name, bundle.scale)
        if same or (alike and config.get("corrections", 0) > bundle.corrections):
            net = checkpoint.read_net(shipped.path)
            if not same:
                net = net.with_corrections(bundle.corrections)
            if checkpoint.weights_digest(net) == bundle.network:
                return net
    return None


def minutes_of(runs: int, seconds: float, measured: Size, size: Size) -> float:
    """What a warm-up and some runs would take at another size.

    Args:
        runs: of each competitor in each direction.
        seconds: that one run of all took at a size that was measured.
        measured, size: (height, width).
    """
    return (runs + 1) * seconds * (size[0] * size[1]) / (measured[0] * measured[1]) / 60.0


def within(minutes: float, sizes: Sequence[Size], seconds: float, runs: int) -> tuple[list[Size], float, dict[str, str]]:
    """Sizes of a sweep that take some minutes together, smallest first and that one in any case.

    Args:
        minutes: that they may take; 0 for any.
        sizes: (height, width), ascending.
        seconds: that one run of all competitors in both directions took at the first of them.
        runs: of each after the warm-up.

    Returns:
        Those sizes, the minutes that they take, and why the others are left out, by ``WIDTHxHEIGHT``.
    """
    kept: list[Size] = []
    absent: dict[str, str] = {}
    expected = total = 0.0
    for size in sizes:
        needed = minutes_of(runs, seconds, sizes[0], size)
        total += needed
        if kept and minutes and total > minutes:
            cure = f"--minutes {math.ceil(total)} takes them"
            absent[f"{size[1]}x{size[0]}"] = f"{runs} runs of each would take about {needed:.0f} minutes; {cure}"
        else:
            kept.append(size)
            expected = total
    return kept, expected, absent


def sample_picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """uint8 (height, width, 3): the photograph mirrored until it fills the size, with noise: no part repeats for a codec."""
    tile = photograph()
    tile = np.concatenate([tile, tile[:, ::-1]], 1)
    tile = np.concatenate([tile, tile[::-1]], 0)
    repeats = (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1)
    picture = np.tile(tile, repeats)[:height, :width].astype(np.int16)
    picture += np.random.default_rng(0).integers(-2, 3, picture.shape, np.int8)
    return np.clip(picture, 0, 255).astype(np.uint8)


def side_lengths(megapixels: float) -> Size:
    """(height, width) near 2:3, multiples of 16."""
    height = max(16, round(math.sqrt(megapixels * 1e6 / 1.5) / 16) * 16)
    return height, max(16, round(megapixels * 1e6 / height / 16) * 16)
