"""The parity gate on every backend and precision of a bundle.

Golden vectors are compared with PyTorch's results, which the bundle holds. Other pictures (an odd size, an engine's smallest, best
and largest, and the user's own) are compared with the bundle's float32 graphs on ONNX Runtime, whole or in tiles as in use. PyTorch
is not needed for either.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rescale.backends import HALF, NAMES, create
from rescale.bundle import Bundle
from rescale.contract import graph_names
from rescale.engine_file import engines_folder, find_engines
from rescale.errors import BackendError, ConfigError, MissingExtraError
from rescale.flavour import NAMES as ENGINES
from rescale.network import Network
from rescale.parity import FALL_BACK, MAX_LOSS_DB, Case, Comparison, Parity, golden_vectors, measure, worst_spot
from rescale.quality import psnr
from rescale_bench.sizes import Size
from rescale_bench.store import digest
from rescale_export.probe import photograph

if TYPE_CHECKING:
    from rescale_bench.pictures import PictureSet

Array = npt.NDArray[np.uint8]

BACKENDS = (HALF, *NAMES, *(name for name in ENGINES if name not in NAMES))
"""Measured where none is named: float16 as a device computes it (`rescale.half`), and all that runs here."""

GOLDEN, PROBES = "golden", "probes"
"""Groups of pictures that are not the user's."""

ODD_SIZE = (61, 87)
MAX_PROBE_PIXELS = 40_000_000
"""Of a probe picture: a profile may promise more than any machine has memory for."""


@dataclass
class Group:
    """Pictures that were judged together.

    Attributes:
        name: of the set.
        reference: what the results were compared with.
        parity: agreement.
        average: whether the limit holds for the mean of the pictures, not for each.
        digests: of the pixels, by the picture's name: names alone do not tell pictures apart. None of golden pictures.
    """

    name: str
    reference: str
    average: bool = False
    parity: Parity = field(default_factory=Parity)
    digests: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """One backend in one precision.

    Attributes:
        backend, precision: which.
        runner: backend, version and device.
        groups: golden vectors, probes, and the user's sets.
        refused: why the gate refuses, or None.
        advice: what to do then, or None.
    """

    backend: str
    precision: str
    runner: str
    groups: list[Group]
    refused: str | None = None
    advice: str | None = None

    @property
    def title(self) -> str:
        """Backend and precision."""
        return f"{self.backend} {self.precision}".strip()

    def group(self, name: str, reference: str, average: bool) -> Group:
        """The group of a name, made where it is new."""
        found = next((g for g in self.groups if g.name == name), None)
        if found is None:
            found = Group(name, reference, average)
            self.groups.append(found)
        return found

    def judge(self, max_loss: float) -> None:
        """Set `refused`."""
        if not self.groups:
            self.refused = "no picture was compared: the engine's profiles take none of them"
        for group in self.groups:
            reason = group.parity.failure(max_loss, group.average)
            if reason is not None:
                self.refused = f"{group.name} {reason}"
                return


@dataclass
class Report:
    """One bundle.

    Attributes:
        bundle: which.
        max_loss: the gate's limit in dB.
        results: what ran.
        missing: (backend, precision, reason) of what did not.
    """

    bundle: Bundle
    max_loss: float
    results: list[Result] = field(default_factory=list)
    missing: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether the gate refuses anything."""
        return any(r.refused for r in self.results)

    def lacks(self, result: Result) -> bool:
        """Whether a backend gave up in a precision."""
        return any((b, p) == (result.backend, result.precision) for b, p, _ in self.missing)


def check_limit(max_loss: float) -> None:
    """Raises ConfigError of a limit that is no number of dB, or below 0."""
    if not 0.0 <= max_loss < math.inf:
        raise ConfigError(f"the largest loss must be a number of dB, 0 or more, got {max_loss:g}")


def check(
    bundle: Bundle,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    sets: Sequence[PictureSet] = (),
    sizes: Sequence[Size] = (),
    max_loss: float = MAX_LOSS_DB,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Report:
    """Run the gate.

    Args:
        bundle: what to check.
        backends: names as `rescale.backends.create` takes them; those named must run. Empty for all that do.
        precisions: those named must be in the bundle. Empty for all that are.
        sets: pictures of the user; the limit holds for a set's mean.
        sizes: (height, width) of more probe pictures.
        max_loss: dB.
        threads: CPU threads; None for all that this process may use.
        progress: called with a name after each comparison.

    Raises:
        BackendError: a backend that was named does not run here, or nothing does.
        BundleError: a precision that was named is not in the bundle.
        ConfigError: a limit below 0.
        ParityError: a result of another shape or dtype than the reference's.
        InputError: a picture of a set cannot be read.
    """
    check_limit(max_loss)
    for precision in precisions:
        bundle.graph("downscale", precision)
    report = Report(bundle, max_loss)
    wanted = [p for p in FALL_BACK if p in (precisions or bundle.precisions)]
    # Float32 graphs hold nothing to round: on `half` they would only be ONNX Runtime's results again.
    pairs = [(b, p) for b in backends or BACKENDS for p in wanted if backends or (b, p) != (HALF, "fp32")]
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(contextlib.closing(create(bundle, "onnxruntime", threads)))
        reference = Network(bundle, opened)
        entrants: list[_Entrant] = []
        for backend, precision in pairs:
            with _absence(report, backend, precision, bool(backends)):
                runner = stack.enter_context(contextlib.closing(create(bundle, backend, threads, precision)))
                cases = golden_cases(bundle, backend, precision)
                golden = [Group(GOLDEN, "PyTorch", parity=measure(bundle, runner.run, cases))] if cases else []
                # The reference would be compared with itself.
                asked = [] if runner.name == opened.name else [*_profile_sizes(bundle, backend, precision), *sizes]
                result = Result(backend, precision, runner.name, golden)
                entrants.append(_Entrant(result, Network(bundle, runner), frozenset(asked), runner.name != opened.name))
            progress(f"{backend} {precision}")
        for picture in _pictures(entrants, sets):
            taking = [e for e in entrants if e.takes(picture) and not report.lacks(e.result)]
            if taking:
                take = Take(reference, picture.read())
            for entrant in taking:
                with _absence(report, entrant.result.backend, entrant.result.precision, bool(backends)):
                    case = take.compare(entrant.network, picture.name)
                    group = entrant.result.group(picture.group, opened.name, picture.size is None)
                    group.parity.cases.append(case)
                    group.digests[picture.name] = take.digest
            progress(picture.name)
    report.results = [e.result for e in entrants if not report.lacks(e.result)]
    if not report.results:
        raise BackendError(f"{bundle.path}: nothing ran: " + "; ".join(f"{b} {p}: {why}" for b, p, why in report.missing))
    for result in report.results:
        result.judge(max_loss)
    for result in report.results:
        if result.refused:
            result.advice = advice(report, result)
    return report


@contextlib.contextmanager
def _absence(report: Report, backend: str, precision: str, named: bool) -> Iterator[None]:
    """A backend that nobody named may be absent, and the report says so; one that was named may not."""
    try:
        yield
    except (BackendError, MissingExtraError) as e:
        if named:
            raise
        report.missing.append((backend, precision, str(e)))


@dataclass(frozen=True)
class _Picture:
    """One picture beside the golden ones; a probe has a size, a user's does not."""

    group: str
    name: str
    read: Callable[[], Array]
    size: Size | None = None


@dataclass(frozen=True)
class _Entrant:
    result: Result
    network: Network
    sizes: frozenset[Size]
    """Of its probes."""
    differs: bool
    """From the reference."""

    def takes(self, picture: _Picture) -> bool:
        return self.differs if picture.size is None else picture.size in self.sizes


def _pictures(entrants: Sequence[_Entrant], sets: Sequence[PictureSet]) -> Iterator[_Picture]:
    for size in sorted({size for e in entrants for size in e.sizes}):
        yield _Picture(PROBES, f"{size[1]}x{size[0]}", partial(probe, *size), size)
    for pictures in sets:
        for name, read in pictures.pictures:
            yield _Picture(group_name(pictures), name, read)


def group_name(pictures: PictureSet) -> str:
    """The group of a user's set: its name, unless that is one of ours."""
    return f"{pictures.name} of --data" if pictures.name in (GOLDEN, PROBES) else pictures.name


def golden_cases(bundle: Bundle, backend: str, precision: str) -> list[dict[str, npt.NDArray[Any]]]:
    """The golden vectors; for an engine those that the profiles of all graphs take."""
    cases = golden_vectors(bundle)
    if backend not in ENGINES:
        return cases
    folder = engines_folder(bundle)
    built = [find_engines(folder, bundle, backend, precision, graph) for graph in graph_names(bundle.variant)]
    return [c for c in cases if all(any(e.fits(*c["hr"].shape[:3]) for e in engines) for engines in built)]


def _profile_sizes(bundle: Bundle, backend: str, precision: str) -> Iterator[Size]:
    """An odd size, and for an engine the smallest, best and largest of each of its profiles."""
    if backend not in ENGINES:
        yield ODD_SIZE
        return
    for engine in find_engines(engines_folder(bundle), bundle, backend, precision, "downscale"):
        low, best, high = (engine.profile[k][1:] for k in ("min", "opt", "max"))
        odd = (max(1, best[0] - 1), max(1, best[1] - 1))  # padded to the best
        for height, width in (low, odd, best, high):
            if height * width <= MAX_PROBE_PIXELS:
                yield height, width


def probe(height: int, width: int) -> Array:
    """The photograph that ships, mirrored as often as it takes: uint8 (height, width, 3)."""
    picture = photograph()
    rows, columns = (max(0, n - have) for n, have in zip((height, width), picture.shape[:2], strict=True))
    picture = np.pad(picture, ((0, rows), (0, columns), (0, 0)), mode="symmetric")
    return np.ascontiguousarray(picture[:height, :width])


class Take:
    """What the reference makes of one picture."""

    def __init__(self, reference: Network, hr: Array) -> None:
        """Take uint8 (H, W, 3), any size, down and up."""
        self.hr, self.digest = hr, digest(hr)
        self.lr, self.code = reference.down(hr)
        self.restored = self._up(reference, self.lr, self.code)

    def compare(self, network: Network, name: str) -> Case:
        """The same on the network to judge: down, up from its own LR, and up from the reference's."""
        lr, code = network.down(self.hr)
        graphs = {"lr": Comparison(), "hr": Comparison()}
        graphs["lr"].add(lr, self.lr, f"{name}: LR")
        if code is not None and self.code is not None:
            graphs["code"] = Comparison()
            graphs["code"].add(code, self.code, f"{name}: code")
        again, up = self._up(network, lr, code), self._up(network, self.lr, self.code)
        graphs["hr"].add(up, self.restored, f"{name}: HR")
        height, width = self.hr.shape[:2]
        values = psnr(self.restored, self.hr), psnr(again, self.hr), psnr(up, self.hr)
        return Case(height, width, graphs, *values, worst=worst_spot(up, self.restored), name=name)

    def _up(self, network: Network, lr: Array, code: Array | None) -> Array:
        height, width = self.hr.shape[:2]
        return network.up(lr[:, :, :3], lr[:, :, 3] if lr.shape[2] == 4 else None, code)[:height, :width]


def advice(report: Report, result: Result) -> str:
    """What to use instead of a refused precision."""
    for precision in FALL_BACK[FALL_BACK.index(result.precision) + 1 :]:
        if precision not in report.bundle.precisions:
            continue
        # Without float16 there is nothing that `half` would do otherwise.
        same = (result.backend, "onnxruntime") if result.backend == HALF and precision == "fp32" else (result.backend,)
        found = next((r for r in report.results if r.backend in same and r.precision == precision), None)
        if found is None:
            return f"use {precision}, which was not measured: add --precision {precision}"
        if not found.refused:
            lost = max(g.parity.mean_lost if g.average else g.parity.lost for g in found.groups)
            return f"use {precision}: {lost:z.3f} dB lost at most"
    if result.precision == "fp16" and "mixed" not in report.bundle.precisions:
        return "export the bundle again with --precision mixed"
    return f"do not use {result.backend}: none of its precisions gives PyTorch's results"
