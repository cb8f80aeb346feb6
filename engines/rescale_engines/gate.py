"""Engines that are known to keep the quality: the parity gate before the build, and on the engine itself where it runs.

A precision that loses too much is refused and the next surer one is taken, fp16 -> mixed -> fp32, and the report says so.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rescale.backends import Runner
from rescale.bundle import Bundle
from rescale.contract import graph_names
from rescale.engine_file import EngineInfo
from rescale.errors import BackendError, MissingExtraError, ParityError
from rescale.flavour import probe
from rescale.parity import FALL_BACK, Choice, Parity, choose_precision, golden_vectors, measure
from rescale_engines.build import Built, Options, ensure
from rescale_engines.cache import Entry, remove
from rescale_engines.network import Progress
from rescale_engines.profiles import Profile

Open = Callable[[Bundle, str, str, Path | None], Runner]


@dataclass(frozen=True)
class Outcome:
    """Engines of one bundle, all of one precision.

    Attributes:
        choice: how that precision was chosen on the graphs.
        engines: one per graph and profile.
        parity: agreement of the engines themselves with PyTorch; None where they were not run.
        unmeasured: why they were not.
        refused: precisions whose engines were built, measured and deleted again, and why.
    """

    choice: Choice
    engines: tuple[Built, ...]
    parity: Parity | None
    unmeasured: str
    refused: dict[str, str]

    @property
    def precision(self) -> str:
        """Of all engines."""
        return self.choice.precision

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return {
            "precision": self.precision,
            "gate": self.choice.to_dict(),
            "engines": [b.to_dict() for b in self.engines],
            "engine_parity": None if self.parity is None else self.parity.to_dict(),
            "engine_parity_missing": self.unmeasured,
            "engines_refused": self.refused,
        }


def build_checked(
    bundle: Bundle,
    profiles: Sequence[Profile],
    graphs: Sequence[str] = (),
    backend: str = "tensorrt-rtx",
    precision: str = "mixed",
    options: Options | None = None,
    *,
    exact: bool = False,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    done: Callable[[Built], None] | None = None,
) -> Outcome:
    """Build engines of the wanted precision, or of the next surer one that passes the gate.

    Args:
        bundle: whose graphs.
        profiles: each becomes an engine per graph.
        graphs: by name; empty for all.
        backend: ``tensorrt-rtx`` or ``tensorrt``.
        precision: wanted.
        options: see `rescale_engines.build.Options`; its parity is filled in.
        exact: refuse instead of taking another precision.
        progress, cancel: see `rescale_engines.build.ensure`.
        done: called with each engine.

    Raises:
        ParityError: the wanted precision is refused and `exact`, or all are.
        RescaleError: as `rescale_engines.build.ensure` and `rescale.parity.choose_precision`.
    """
    options, wanted = options or Options(), precision
    refused: dict[str, str] = {}
    while True:
        _, choice = choose_precision(bundle, backend, wanted)
        if exact and choice.precision != precision:
            said = "; ".join(f"{p} refused {reason}" for p, reason in choice.refused.items())
            raise ParityError(f"{bundle.path}: {said}; leave out --exact-precision to build {choice.precision}")
        found = choice.measured[choice.precision].to_dict()
        known = replace(options, parity={"runner": choice.runner, **{k: found[k] for k in ("psnr_lost", "graphs")}})
        engines = []
        for profile in profiles:
            for graph in graphs or graph_names(bundle.variant):
                engines.append(ensure(bundle, graph, profile, backend, choice.precision, known, progress, cancel))
                if done is not None:
                    done(engines[-1])
        try:
            parity, reason = measure_engines(bundle, backend, choice.precision, [b.info for b in engines], options.folder)
            failure = None if parity is None else parity.failure()
        except ParityError as e:  # results of another shape or dtype
            failure = str(e)
        if failure is None:
            return Outcome(choice, tuple(engines), parity, reason, refused)
        # An engine that computes something else is of no use to anybody.
        for built in engines:
            remove(Entry(built.info.path, built.info, failure))
        refused[choice.precision] = failure
        surer = [p for p in FALL_BACK[FALL_BACK.index(choice.precision) + 1 :] if p in bundle.precisions]
        if exact or not surer:
            said = "; ".join(f"{p} refused {why}" for p, why in refused.items())
            raise ParityError(f"{bundle.path}: engines on {backend}: {said}; they were deleted")
        wanted = surer[0]


def measure_engines(
    bundle: Bundle, backend: str, precision: str, engines: Sequence[EngineInfo], folder: Path | None, runner: Open | None = None
) -> tuple[Parity | None, str]:
    """Agreement of engines with PyTorch on the golden pictures that they take, or None and the reason why they were not run."""
    try:
        count, reason = probe()
    except MissingExtraError as e:
        return None, str(e)
    if not count:
        return None, f"no CUDA device here ({reason})"
    missing = [g for g in graph_names(bundle.variant) if all(e.graph != g for e in engines)]
    if missing:
        return None, f"graph {missing[0]} was not built, and the golden pictures go through all of them"
    cases = []
    for case in golden_vectors(bundle):
        size = case["hr"].shape[:3]
        if all(any(e.graph == g and e.fits(*size) for e in engines) for g in graph_names(bundle.variant)):
            cases.append(case)
    if not cases:
        return None, "no golden picture is of a size that the profiles take"
    try:
        with contextlib.closing((runner or _open)(bundle, backend, precision, folder)) as opened:
            return measure(bundle, opened.run, cases), ""
    except BackendError as e:
        # TensorRT for RTX builds for other GPUs than the one that is here; an engine for this very GPU has to run.
        if backend == "tensorrt-rtx":
            return None, str(e)
        raise


def _open(bundle: Bundle, backend: str, precision: str, folder: Path | None) -> Runner:
    from rescale.backends.tensorrt import TensorRTRunner

    return TensorRTRunner(bundle, backend, precision, engines=folder)
