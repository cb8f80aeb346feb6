"""How far a backend's results are from PyTorch's, in grey levels and dB, and whether that is near enough.

A bundle's golden vectors hold PyTorch's results for pictures of several sizes, a photograph among them. Any backend, precision or
engine runs them again: the LR codes of the HR picture, the HR of PyTorch's LR, and the whole way through its own LR.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.backends import Runner, create
from rescale.bundle import PRECISIONS, Bundle
from rescale.comparison import Comparison as Comparison
from rescale.comparison import Spot as Spot
from rescale.comparison import worst_spot as worst_spot
from rescale.comparison import z_error as z_error
from rescale.errors import ParityError
from rescale.flavour import NAMES as ENGINES
from rescale.golden import golden_vectors as golden_vectors
from rescale.image import pad_planes
from rescale.quality import psnr
from rescale.variants import LATENT_STRIDE

MAX_LOSS_DB = 0.02
"""RGB-PSNR against the true HR that a backend may lose to PyTorch, each way."""

CEILING_DB = 60.0
"""A restored HR above this counts as this: with 1 value in 15 off by one level, decibels tell nothing anybody sees."""

MIN_PSNR_DB = 50.0
"""PSNR against PyTorch's bytes that a backend must reach, however badly a network restores: 2 of 3 values off by one level."""

MAX_LEVELS_SMALL = 2
"""Grey levels that a value of a picture too small for a PSNR may differ by."""

MAX_Z_ERROR = 0.02
"""Part of the largest z by which a z may differ (-M): float16 costs 0.002, and a code of 8 bits shows 0.004."""

SMALL_PIXELS = 64 * 64
FALL_BACK = tuple(reversed(PRECISIONS))
"""Precisions from the fastest to the surest."""

Arrays = Mapping[str, npt.NDArray[Any]]
Run = Callable[[str, Arrays], Mapping[str, npt.NDArray[Any]]]


@dataclass
class Case:
    """One picture on one backend.

    Attributes:
        height, width: of the HR picture.
        graphs: agreement per output: ``lr``, ``hr``, and for -M ``code``.
        psnr_reference: RGB-PSNR of the reference's restored picture against the true HR, dB.
        psnr: the same of the backend, through its own LR.
        psnr_up: the same of the backend, from the reference's LR.
        finite: no z value is infinite or not a number.
        z_error: largest difference of a z value as part of the largest z, see `z_error` (-M), else 0.
        worst: where the HR of the reference's LR is worst; None where it is equal.
        name: of the picture, if it has one.
    """

    height: int
    width: int
    graphs: dict[str, Comparison]
    psnr_reference: float
    psnr: float
    psnr_up: float
    finite: bool = True
    z_error: float = 0.0
    worst: Spot | None = None
    name: str = ""

    @property
    def small(self) -> bool:
        """Too few pixels for a PSNR to mean something."""
        return self.height * self.width < SMALL_PIXELS

    @property
    def lost(self) -> float:
        """dB lost against the true HR, through its own LR or from the reference's, whichever is more; below 0 for a gain."""
        return _cut(self.psnr_reference) - min(_cut(self.psnr), _cut(self.psnr_up))

    def failure(self, max_loss: float = MAX_LOSS_DB) -> str | None:
        """Why the gate refuses this picture, in words; None if it does not."""
        where = f"at {self.width}x{self.height}" + (f" ({self.name})" if self.name else "")
        if not self.finite:
            return f"{where}: z is not finite"
        if not self.z_error <= MAX_Z_ERROR:
            return f"{where}: z differs by {100 * self.z_error:.2g} % of its range, allowed are {100 * MAX_Z_ERROR:g} %"
        if self.small:
            worst = max((c.largest for c in self.graphs.values()), default=0)
            if worst > MAX_LEVELS_SMALL:
                return f"{where}: a value differs by {worst} levels, allowed are {MAX_LEVELS_SMALL}"
            return None
        for output, c in self.graphs.items():
            if not c.psnr >= MIN_PSNR_DB:
                return f"{where}: {output} has {c.psnr:.1f} dB against PyTorch, wanted are {MIN_PSNR_DB:g}"
        if not self.lost <= max_loss:
            return f"{where}: {self.lost:.3f} dB lost, allowed are {max_loss:g}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """For manifests and reports."""
        return ({"name": self.name} if self.name else {}) | {
            "height": self.height,
            "width": self.width,
            "graphs": {k: c.to_dict() for k, c in self.graphs.items()},
            "psnr_reference": _number(self.psnr_reference),
            "psnr": _number(self.psnr),
            "psnr_up": _number(self.psnr_up),
            "psnr_lost": _number(self.lost),
            "finite": self.finite,
            "z_error": _number(self.z_error),
            "worst": None if self.worst is None else self.worst.to_dict(),
        }


@dataclass
class Parity:
    """Agreement of one backend with a reference on several pictures."""

    cases: list[Case] = field(default_factory=list)

    @property
    def lost(self) -> float:
        """Largest loss in dB of the pictures that are large enough."""
        return max((c.lost for c in self.cases if not c.small), default=0.0)

    @property
    def mean_lost(self) -> float:
        """Mean loss in dB of the pictures that are large enough."""
        lost = [c.lost for c in self.cases if not c.small]
        return math.fsum(lost) / len(lost) if lost else 0.0

    def total(self) -> dict[str, Comparison]:
        """Agreement per output over all cases."""
        out: dict[str, Comparison] = {}
        for case in self.cases:
            for name, c in case.graphs.items():
                out.setdefault(name, Comparison()).merge(c)
        return out

    def failure(self, max_loss: float = MAX_LOSS_DB, average: bool = False) -> str | None:
        """Why the gate refuses, in words; None if it does not.

        Args:
            max_loss: dB.
            average: it holds for the mean of the pictures, as fits a test set; else for each.
        """
        if not self.cases:
            return "no picture was compared"
        reason = next((r for case in self.cases if (r := case.failure(math.inf if average else max_loss))), None)
        if reason is None and average and not self.mean_lost <= max_loss:
            return f"on {len(self.cases)} pictures: {self.mean_lost:.3f} dB lost on average, allowed are {max_loss:g}"
        return reason

    def require(self, what: str, max_loss: float = MAX_LOSS_DB) -> None:
        """Raises ParityError if the gate refuses; `what` names the backend and precision."""
        reason = self.failure(max_loss)
        if reason is not None:
            raise ParityError(f"{what}: refused {reason}")

    def to_dict(self) -> dict[str, Any]:
        """For manifests and reports."""
        return {
            "psnr_lost": _number(self.lost),
            "graphs": {k: c.to_dict() for k, c in self.total().items()},
            "cases": [c.to_dict() for c in self.cases],
        }


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _cut(value: float) -> float:
    return min(value, CEILING_DB)


def measure(bundle: Bundle, run: Run, cases: Sequence[Arrays] | None = None) -> Parity:
    """Run golden pictures and compare.

    Args:
        bundle: whose graphs run.
        run: as `rescale.backends.Runner.run`: a graph's name and named inputs to named outputs.
        cases: as `golden_vectors` gives them; None for the bundle's own.

    Raises:
        ParityError: an output that is missing, or whose shape or dtype is not PyTorch's.
        BundleError: the golden vectors cannot be read.
    """
    return Parity([_case(bundle, run, want) for want in (golden_vectors(bundle) if cases is None else cases)])


def _case(bundle: Bundle, run: Run, want: Arrays) -> Case:
    hr = want["hr"]
    height, width = hr.shape[1:3]
    where = f"at {width}x{height}"
    graphs = {"lr": Comparison(), "hr": Comparison()}
    down = run("downscale", {"hr": hr})
    lr = _take(down, "lr", f"downscale {where}")
    graphs["lr"].add(lr, want["lr"], f"downscale {where}")
    feed, own = {"lr": want["lr"]}, {"lr": lr}
    finite, errors = True, [0.0]
    if bundle.variant.latent:
        z = _take(down, "z", f"downscale {where}", want["z"])
        errors = [z_error(z, want["z"])]
        graphs["code"] = Comparison()
        code = _take(run("encoder", {"z": pad_planes(want["z"], LATENT_STRIDE)}), "code", f"encoder {where}")
        graphs["code"].add(code, want["code"], f"encoder {where}")
        own_code = _take(run("encoder", {"z": pad_planes(z, LATENT_STRIDE)}), "code", f"encoder {where}", want["code"])
        for inputs, one in ((feed, want["code"]), (own, own_code)):
            planes = _take(run("decoder", {"code": one}), "z", f"decoder {where}", pad_planes(want["z_hat"], LATENT_STRIDE))
            inputs["z"] = np.ascontiguousarray(planes[:, :, : lr.shape[1], : lr.shape[2]])
        errors.append(z_error(feed["z"], want["z_hat"]))
        finite = all(bool(np.isfinite(planes).all()) for planes in (z, feed["z"], own["z"]))
    up = _take(run("upscale", feed), "hr", f"upscale {where}")
    graphs["hr"].add(up, want["restored"], f"upscale {where}")
    again = _take(run("upscale", own), "hr", f"upscale {where}", hr)
    worst = worst_spot(up[0], want["restored"][0])
    return Case(height, width, graphs, psnr(want["restored"], hr), psnr(again, hr), psnr(up, hr), finite, max(errors), worst)


def _take(found: Arrays, name: str, what: str, like: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """An output, of the shape and dtype that it shall have."""
    if name not in found:
        raise ParityError(f"{what}: no output {name!r}, only {', '.join(found) or 'none'}")
    array = found[name]
    if like is not None and (array.shape != like.shape or array.dtype != like.dtype):
        raise ParityError(f"{what}: {name} is {array.dtype} {array.shape}, PyTorch gives {like.dtype} {like.shape}")
    return array


@dataclass
class Choice:
    """Which precision passes the gate, and what was measured on the way.

    Attributes:
        wanted: what was asked for.
        precision: the first from there in `FALL_BACK` that passes.
        runner: what the graphs were measured on.
        measured: results in the order they were tried.
        refused: why, for each precision that was tried and not taken.
    """

    wanted: str
    precision: str
    runner: str
    measured: dict[str, Parity]
    refused: dict[str, str]

    def __str__(self) -> str:
        """One line for a log."""
        parts = [f"{p} refused {reason}" for p, reason in self.refused.items()]
        said = f"{self.precision}: {self.measured[self.precision].lost:.3f} dB lost against PyTorch ({self.runner})"
        return "; ".join([*parts, f"use {said}" if parts else said])

    def to_dict(self) -> dict[str, Any]:
        """For sidecars and reports."""
        return {
            "wanted": self.wanted,
            "precision": self.precision,
            "runner": self.runner,
            "refused": self.refused,
            "measured": {p: found.to_dict() for p, found in self.measured.items()},
        }


def choose_precision(
    bundle: Bundle, backend: str = "auto", wanted: str = "mixed", max_loss: float = MAX_LOSS_DB, threads: int | None = None
) -> tuple[str, Choice]:
    """The first of fp16, mixed and fp32, from the wanted one on, whose graphs the gate lets pass.

    Args:
        bundle: which must hold the wanted precision; a later one that it does not hold is passed over.
        backend: where to measure. For an engine, whose library need not run here, the graphs are measured with every float16
            result rounded, as `rescale.half` does; the engine itself is measured with `measure` where it runs.
        wanted: one of `rescale.bundle.PRECISIONS`.
        max_loss: dB.
        threads: as in `rescale.backends.create`.

    Returns:
        The precision, and the report.

    Raises:
        ConfigError: no such precision.
        BundleError: the bundle does not hold the wanted precision.
        ParityError: none passes, float32 included.
        MissingExtraError: an engine's graphs cannot be measured without the onnx package.
    """
    bundle.graph("downscale", wanted)
    cases = golden_vectors(bundle)
    measured: dict[str, Parity] = {}
    refused: dict[str, str] = {}
    for precision in FALL_BACK[FALL_BACK.index(wanted) :]:
        if precision not in bundle.precisions:
            refused[precision] = f"unseen: the bundle does not hold it; export it with --precision {precision}"
            continue
        with contextlib.closing(_runner(bundle, backend, threads, precision)) as runner:
            found = measured[precision] = measure(bundle, runner.run, cases)
            reason = found.failure(max_loss)
            if reason is None:
                return precision, Choice(wanted, precision, runner.name, measured, refused)
        refused[precision] = reason
    said = "; ".join(f"{p} refused {reason}" for p, reason in refused.items())
    raise ParityError(f"{bundle.path}: {bundle.title} on {backend}: {said}; export the bundle again")


def _runner(bundle: Bundle, backend: str, threads: int | None, precision: str) -> Runner:
    if backend not in ENGINES:
        return create(bundle, backend, threads, precision)
    from rescale.half import HalfRunner

    return HalfRunner(bundle, precision, threads)
