"""How far a backend's results are from PyTorch's, in grey levels and dB.

A bundle's golden vectors hold PyTorch's results for pictures of several sizes, a photograph among them. Any backend, precision or
engine runs them again: the LR codes of the HR picture, the HR of PyTorch's LR, and the whole way through its own LR.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.bundle import Bundle
from rescale.errors import BundleError, ParityError
from rescale.image import pad_planes
from rescale.quality import psnr
from rescale.variants import LATENT_STRIDE

MAX_LOSS_DB = 0.02
"""RGB-PSNR against the true HR that a backend may lose to PyTorch."""

MAX_LEVELS_SMALL = 2
"""Grey levels that a value of a picture too small for a PSNR may differ by."""

SMALL_PIXELS = 64 * 64
MAX_GOLDEN_BYTES = 256 << 20

Arrays = Mapping[str, npt.NDArray[Any]]
Run = Callable[[str, Arrays], Mapping[str, npt.NDArray[Any]]]


@dataclass
class Comparison:
    """Agreement of uint8 values: how many, how many differ, by how much at most, and the sum of squares."""

    values: int = 0
    different: int = 0
    largest: int = 0
    squared: int = 0

    def add(self, got: npt.NDArray[Any], want: npt.NDArray[Any], what: str) -> None:
        """Take one pair of arrays in.

        Raises:
            ParityError: their shapes or dtypes differ.
        """
        if got.shape != want.shape or got.dtype != want.dtype:
            raise ParityError(f"{what}: {got.dtype} {got.shape}, PyTorch gives {want.dtype} {want.shape}")
        delta = np.abs(got.astype(np.int32) - want.astype(np.int32))
        self.values += delta.size
        self.different += int(np.count_nonzero(delta))
        self.largest = max(self.largest, int(delta.max(initial=0)))
        self.squared += int(np.square(delta, dtype=np.int64).sum())

    @property
    def share(self) -> float:
        """Part of the values that differ, 0 to 1."""
        return self.different / max(1, self.values)

    @property
    def psnr(self) -> float:
        """PSNR against PyTorch in dB, peak 255; infinite where nothing differs."""
        return 10.0 * math.log10(255.0**2 * self.values / self.squared) if self.squared else math.inf

    def require(self, what: str, share: float) -> None:
        """Raises ParityError if more than this share of the values differ, or one by more than 1."""
        if self.largest > 1 or self.different > share * self.values:
            raise ParityError(f"{what}: {self.different} of {self.values} values differ from PyTorch, by up to {self.largest}")

    def to_dict(self) -> dict[str, Any]:
        """For manifests and reports; an infinite PSNR is None."""
        value = self.psnr
        return {
            "values": self.values,
            "different": self.different,
            "largest": self.largest,
            "psnr": None if math.isinf(value) else round(value, 2),
        }


@dataclass
class Case:
    """One golden picture on one backend.

    Attributes:
        height, width: of the HR picture.
        graphs: agreement per output: ``lr``, ``hr``, and for -M ``code``.
        psnr_reference: RGB-PSNR of PyTorch's restored picture against the true HR, dB.
        psnr: the same of the backend, through its own LR.
        finite: no z value is infinite or not a number.
        z_error: largest difference of a z value (-M), else 0.
    """

    height: int
    width: int
    graphs: dict[str, Comparison]
    psnr_reference: float
    psnr: float
    finite: bool = True
    z_error: float = 0.0

    @property
    def small(self) -> bool:
        """Too few pixels for a PSNR to mean something."""
        return self.height * self.width < SMALL_PIXELS

    @property
    def lost(self) -> float:
        """dB lost to PyTorch against the true HR; negative where the backend happens to be better."""
        if math.isinf(self.psnr_reference):
            return 0.0 if math.isinf(self.psnr) else math.inf
        return self.psnr_reference - self.psnr

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return {
            "height": self.height,
            "width": self.width,
            "graphs": {k: c.to_dict() for k, c in self.graphs.items()},
            "psnr_reference": _number(self.psnr_reference),
            "psnr": _number(self.psnr),
            "psnr_lost": _number(self.lost),
            "finite": self.finite,
            "z_error": self.z_error,
        }


@dataclass
class Parity:
    """Agreement of one backend with a bundle's golden vectors."""

    cases: list[Case] = field(default_factory=list)

    @property
    def lost(self) -> float:
        """Largest loss in dB of the pictures that are large enough."""
        return max((c.lost for c in self.cases if not c.small), default=0.0)

    def total(self) -> dict[str, Comparison]:
        """Agreement per output over all cases."""
        out: dict[str, Comparison] = {}
        for case in self.cases:
            for name, c in case.graphs.items():
                t = out.setdefault(name, Comparison())
                t.values, t.different = t.values + c.values, t.different + c.different
                t.largest, t.squared = max(t.largest, c.largest), t.squared + c.squared
        return out

    def failure(self, max_loss: float = MAX_LOSS_DB) -> str | None:
        """Why the gate refuses, in words; None if it does not."""
        for case in self.cases:
            where = f"at {case.width}x{case.height}"
            if not case.finite:
                return f"{where}: z is not finite"
            if case.small:
                worst = max((c.largest for c in case.graphs.values()), default=0)
                if worst > MAX_LEVELS_SMALL:
                    return f"{where}: a value differs from PyTorch by {worst} levels, allowed are {MAX_LEVELS_SMALL}"
            elif not case.lost <= max_loss:
                return f"{where}: {case.lost:.3f} dB lost against PyTorch, allowed are {max_loss:g}"
        return None

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


def golden_vectors(bundle: Bundle) -> list[dict[str, npt.NDArray[Any]]]:
    """PyTorch's results: per case ``hr`` uint8 (1, H, W, 3), ``lr``, ``restored``, and for -M ``z``, ``code``, ``z_hat``.

    Raises:
        BundleError: the file is missing, changed, or not such a file.
    """
    data = bundle.read_golden()
    cases: dict[int, dict[str, npt.NDArray[Any]]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            if sum(i.file_size for i in z.infolist()) > MAX_GOLDEN_BYTES:
                raise ValueError(f"more than {MAX_GOLDEN_BYTES} bytes of arrays")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for key in arrays.files:
                match = re.fullmatch(r"(\d{1,3})\.(\w+)", key)
                if match:
                    cases.setdefault(int(match.group(1)), {})[match.group(2)] = arrays[key]
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as e:
        raise BundleError(f"{bundle.path}: golden vectors cannot be read: {e}; export the bundle again") from None
    wanted = {"hr", "lr", "restored"} | ({"z", "code", "z_hat"} if bundle.variant.latent else set())
    if not cases or any(wanted - set(c) for c in cases.values()):
        raise BundleError(f"{bundle.path}: golden vectors are incomplete; export the bundle again")
    return [cases[i] for i in sorted(cases)]


def measure(bundle: Bundle, run: Run, cases: list[dict[str, npt.NDArray[Any]]] | None = None) -> Parity:
    """Run golden pictures and compare.

    Args:
        bundle: whose graphs run.
        run: as `rescale.backends.Runner.run`: a graph's name and named inputs to named outputs.
        cases: as `golden_vectors` gives them; None for the bundle's own.

    Raises:
        ParityError: a shape or dtype that is not PyTorch's.
        BundleError: the golden vectors cannot be read.
    """
    out = Parity()
    for want in golden_vectors(bundle) if cases is None else cases:
        out.cases.append(_case(bundle, run, want))
    return out


def _case(bundle: Bundle, run: Run, want: Arrays) -> Case:
    hr = want["hr"]
    height, width = hr.shape[1:3]
    where = f"at {width}x{height}"
    graphs = {"lr": Comparison(), "hr": Comparison()}
    down = run("downscale", {"hr": hr})
    graphs["lr"].add(down["lr"], want["lr"], f"downscale {where}")
    feed, own = {"lr": want["lr"]}, {"lr": down["lr"]}
    finite, z_error = True, 0.0
    if bundle.variant.latent:
        z = down["z"]
        finite = bool(np.isfinite(z).all())
        z_error = float(np.abs(z - want["z"]).max()) if finite else math.inf
        graphs["code"] = Comparison()
        code = run("encoder", {"z": pad_planes(want["z"], LATENT_STRIDE)})["code"]
        graphs["code"].add(code, want["code"], f"encoder {where}")
        h, w = want["lr"].shape[1:3]
        feed["z"] = np.ascontiguousarray(run("decoder", {"code": want["code"]})["z"][:, :, :h, :w])
        own_code = run("encoder", {"z": pad_planes(z, LATENT_STRIDE)})["code"]
        own["z"] = np.ascontiguousarray(run("decoder", {"code": own_code})["z"][:, :, :h, :w])
        for decoded in (feed["z"], own["z"]):
            finite = finite and bool(np.isfinite(decoded).all())
    graphs["hr"].add(run("upscale", feed)["hr"], want["restored"], f"upscale {where}")
    restored = run("upscale", own)["hr"]
    return Case(height, width, graphs, psnr(want["restored"], hr), psnr(restored, hr), finite, z_error)
