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
from rescale.errors import BackendError, EngineError, MissingExtraError, OutOfMemoryError, ParityError
from rescale.flavour import probe
from rescale.parity import FALL_BACK, Arrays, Choice, Parity, choose_precision, golden_vectors, measure
from rescale_engines.build import Built, Options, ensure
from rescale_engines.cache import Entry, remove
from rescale_engines.network import Progress
from rescale_engines.profiles import Profile

Open = Callable[[Bundle, str, str, Sequence[Path]], Runner]
"""Bundle, backend, precision, and the engines that run: no others of their folder."""


@dataclass(frozen=True)
class Outcome:
    """Engines of one bundle, all of one precision.

    Attributes:
        choice: how that precision was chosen on the graphs.
        engines: one per graph and profile.
        parity: agreement of the engines themselves with PyTorch, by profile in words.
        unmeasured: why engines were not run, by profile in words; each profile is here or in `parity`.
        refused: precisions whose engines were built, measured and deleted again, and why.
    """

    choice: Choice
    engines: tuple[Built, ...]
    parity: dict[str, Parity]
    unmeasured: dict[str, str]
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
            "engine_parity": {profile: found.to_dict() for profile, found in self.parity.items()},
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
        EngineError: engines that were built now for the GPU that is here do not run on it; they were deleted.
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

        def build_all(options: Options, precision: str = choice.precision) -> list[Built]:
            engines = []
            for profile in profiles:
                for graph in graphs or graph_names(bundle.variant):
                    engines.append(ensure(bundle, graph, profile, backend, precision, options, progress, cancel))
                    if done is not None:
                        done(engines[-1])
            return engines

        engines = build_all(known)
        try:
            parity, unmeasured, failure = _measured(bundle, backend, choice.precision, engines)
        except EngineError as e:
            if not any(b.reused for b in engines):
                raise
            # What an earlier call left does not run any more, as after another driver perhaps.
            engines = [replace(b, reason=f"did not run: {e}") for b in build_all(replace(known, force=True))]
            parity, unmeasured, failure = _measured(bundle, backend, choice.precision, engines)
        if failure is None:
            return Outcome(choice, tuple(engines), parity, unmeasured, refused)
        # An engine that computes something else is of no use to anybody.
        _delete(engines, failure)
        refused[choice.precision] = failure
        surer = [p for p in FALL_BACK[FALL_BACK.index(choice.precision) + 1 :] if p in bundle.precisions]
        if exact or not surer:
            said = "; ".join(f"{p} refused {why}" for p, why in refused.items())
            raise ParityError(f"{bundle.path}: engines on {backend}: {said}; they were deleted")
        wanted = surer[0]


def _measured(
    bundle: Bundle, backend: str, precision: str, engines: Sequence[Built]
) -> tuple[dict[str, Parity], dict[str, str], str | None]:
    """What `measure_engines` gives, and why the engines are refused, or None.

    Raises:
        EngineError: engines for this very GPU do not run on it. Those that were built now are deleted again.
        BackendError: the device cannot be used now, or is short of memory; nothing is known against the engines, which stay.
    """
    try:
        parity, unmeasured = measure_engines(bundle, backend, precision, [b.info for b in engines])
    except ParityError as e:  # results of another shape or dtype
        return {}, {}, str(e)
    except EngineError as e:
        if any(b.reused for b in engines):
            raise
        _delete(engines, str(e))
        raise EngineError(f"{e}; the engines were deleted") from None
    failures = ((profile, found.failure()) for profile, found in parity.items())
    return parity, unmeasured, next((f"{why} (profile {profile})" for profile, why in failures if why is not None), None)


def _delete(engines: Sequence[Built], why: str) -> None:
    for built in engines:
        remove(Entry(built.info.path, built.info, why))


def measure_engines(
    bundle: Bundle, backend: str, precision: str, engines: Sequence[EngineInfo], runner: Open | None = None
) -> tuple[dict[str, Parity], dict[str, str]]:
    """Run each profile's engines, and no others of their folder, on the golden pictures that they take.

    Returns:
        Agreement with PyTorch by profile in words, and for each other profile why its engines were not run.

    Raises:
        ParityError: an output that is missing, or whose shape or dtype is not PyTorch's.
        EngineError: engines that were built for this very GPU do not run.
        BackendError: the device cannot be used, or is short of memory.
    """
    profiles: dict[str, list[EngineInfo]] = {}
    for info in engines:
        words = "-".join("x".join(map(str, info.profile[k])) for k in ("min", "opt", "max"))
        profiles.setdefault(words, []).append(info)
    try:
        count, reason = probe()
    except MissingExtraError as e:
        return {}, dict.fromkeys(profiles, str(e))
    if not count:
        return {}, dict.fromkeys(profiles, f"no CUDA device here ({reason})")
    parity: dict[str, Parity] = {}
    unmeasured: dict[str, str] = {}
    for words, mine in profiles.items():
        missing = [g for g in graph_names(bundle.variant) if all(e.graph != g for e in mine)]
        if missing:
            unmeasured[words] = f"graph {missing[0]} was not built, and the golden pictures go through all of them"
            continue
        cases = [c for c in golden_vectors(bundle) if all(e.fits(*c["hr"].shape[:3]) for e in mine)]
        if not cases:
            unmeasured[words] = "no golden picture is of a size that it takes"
            continue
        try:
            with contextlib.closing((runner or _open)(bundle, backend, precision, [e.path for e in mine])) as opened:
                parity[words] = _run(bundle, opened, cases)
        except BackendError as e:
            # TensorRT for RTX builds for other GPUs than the one that is here; an engine for this very GPU has to run.
            if backend != "tensorrt-rtx":
                raise
            unmeasured[words] = str(e)
    return parity, unmeasured


def _run(bundle: Bundle, runner: Runner, cases: Sequence[Arrays]) -> Parity:
    """What fails once the device is open is the engine's failure, unless memory was short."""
    try:
        return measure(bundle, runner.run, cases)
    except (EngineError, OutOfMemoryError):
        raise
    except BackendError as e:
        raise EngineError(str(e)) from None


def _open(bundle: Bundle, backend: str, precision: str, engines: Sequence[Path]) -> Runner:
    from rescale.backends.tensorrt import TensorRTRunner

    return TensorRTRunner(bundle, backend, precision, engines=engines[0].parent, only=engines)
