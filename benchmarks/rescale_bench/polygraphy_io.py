"""Golden vectors as Polygraphy's files, and Polygraphy's results against the golden vectors.

Files are written by Polygraphy's own classes. They are read here: its decoder hands torch tensors to an unpickler, and allocates
what an array's header claims.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.backends import Runner, create
from rescale.bundle import Bundle
from rescale.console import require
from rescale.errors import InputError, ParityError
from rescale.files import atomic_write, read_regular
from rescale.golden import golden_vectors, read_npy
from rescale.image import pad_planes
from rescale.parity import Case, Comparison, Parity, worst_spot, z_error
from rescale.quality import psnr
from rescale.variants import LATENT_STRIDE

Arrays = dict[str, npt.NDArray[Any]]

EXTRA = "tensorrt-rtx"
RUNNER = "pytorch"
"""Runner's name of PyTorch's results."""

MAX_FILE_BYTES = 1 << 30
_CLASS = "polygraphy_class"


def iterations(bundle: Bundle, graph: str) -> list[tuple[int, Arrays, Arrays]]:
    """One graph's golden (number of the case, inputs, outputs).

    A decoder gives z for whole strides, the golden z is cropped to the LR: cases that differ are left out there.

    Raises:
        BundleError: no such graph, or the golden vectors cannot be read.
    """
    bundle.graph(graph)
    latent = bundle.variant.latent
    found: list[tuple[int, Arrays, Arrays]] = []
    for i, case in enumerate(golden_vectors(bundle)):
        if graph == "downscale":
            pair: tuple[Arrays, Arrays] = {"hr": case["hr"]}, {"lr": case["lr"]} | ({"z": case["z"]} if latent else {})
        elif graph == "upscale":
            pair = {"lr": case["lr"]} | ({"z": case["z_hat"]} if latent else {}), {"hr": case["restored"]}
        elif graph == "encoder":
            pair = {"z": pad_planes(case["z"], LATENT_STRIDE)}, {"code": case["code"]}
        else:
            pair = {"code": case["code"]}, {"z": case["z_hat"]}
            if pad_planes(case["z_hat"], LATENT_STRIDE).shape != case["z_hat"].shape:
                continue
        found.append((i, *pair))
    return found


def save_inputs(bundle: Bundle, graph: str, path: Path) -> None:
    """Write a graph's golden inputs for ``polygraphy run --load-inputs``.

    Raises:
        MissingExtraError: Polygraphy is not installed.
        BundleError: as `iterations`.
        OutputError: the file cannot be written.
    """
    require(("polygraphy",), EXTRA)
    serde = importlib.import_module("polygraphy.json")
    atomic_write(path, serde.to_json([inputs for _, inputs, _ in iterations(bundle, graph)]).encode())


def save_outputs(bundle: Bundle, graph: str, path: Path) -> None:
    """Write PyTorch's golden outputs of a graph as Polygraphy's ``RunResults``, for ``polygraphy run --load-outputs``.

    Raises:
        As `save_inputs`.
    """
    require(("polygraphy",), EXTRA)
    results = importlib.import_module("polygraphy.comparator").RunResults()
    results.add([outputs for _, _, outputs in iterations(bundle, graph)], runner_name=RUNNER)
    atomic_write(path, results.to_json().encode())


def load_outputs(path: Path) -> dict[str, list[Arrays]]:
    """What ``polygraphy run --save-outputs`` wrote: a file, or a folder with one file an iteration.

    Returns:
        Named outputs per iteration, by the runner's name.

    Raises:
        InputError: not such a file, or an array that is not uint8 or float32.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no .json file in this folder; give what polygraphy run --save-outputs wrote")
    found: dict[str, list[Arrays]] = {}
    for file in files:
        for runner, results in _read(file).items():
            found.setdefault(runner, []).extend(results)
    if not found:
        raise InputError(f"{path}: holds no results; give what polygraphy run --save-outputs wrote")
    return found


def _read(path: Path) -> dict[str, list[Arrays]]:
    try:
        raw = read_regular(path, MAX_FILE_BYTES)
    except OSError as e:
        raise InputError(f"{path}: cannot read: {e.strerror}") from None
    try:
        found: dict[str, list[Arrays]] = {}
        for runner, results in _fields(json.loads(raw), "RunResults")["lst"]:
            mine = found.setdefault(str(runner), [])
            for result in results:
                outputs = _fields(result, "IterationResult")["outputs"]
                mine.append({str(name): _array(value) for name, value in outputs.items()})
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        reason = f"{type(e).__name__}: {e}" if isinstance(e, KeyError) else str(e)
        raise InputError(f"{path}: not Polygraphy's RunResults: {reason}") from None


def _fields(value: Any, kind: str) -> dict[str, Any]:
    found = value.get(_CLASS) if isinstance(value, dict) else type(value).__name__
    if found != kind:
        raise ValueError(f"{found} where {kind} was wanted")
    fields: dict[str, Any] = value
    return fields


def _array(value: Any) -> npt.NDArray[Any]:
    if isinstance(value, dict) and value.get(_CLASS) in ("LazyArray", "LazyNumpyArray"):
        value = value["values"]
    return read_npy(base64.b64decode(_fields(value, "ndarray")["array"], validate=True))


def compare(bundle: Bundle, graph: str, outputs: list[Arrays], threads: int | None = None) -> Parity:
    """Polygraphy's results of a graph, fed with what `save_inputs` wrote, against PyTorch's.

    What a graph gives is judged by the HR that it leads to: the bundle's own float32 graphs go the rest of the way on ONNX Runtime.

    Args:
        bundle: whose golden vectors.
        graph: which of its graphs Polygraphy ran.
        outputs: per iteration.
        threads: of ONNX Runtime.

    Raises:
        ParityError: another number of iterations, a missing output, another shape or dtype.
        BundleError: as `iterations`.
    """
    cases = golden_vectors(bundle)
    wanted = iterations(bundle, graph)
    if len(outputs) != len(wanted):
        raise ParityError(f"{graph}: {len(outputs)} iterations, the golden vectors have {len(wanted)}; use --save-inputs for them")
    with contextlib.closing(create(bundle, "onnxruntime", threads)) as runner:
        return Parity([_case(runner, graph, cases[i], want, got) for (i, _, want), got in zip(wanted, outputs, strict=True)])


def _case(runner: Runner, graph: str, golden: Mapping[str, npt.NDArray[Any]], want: Arrays, got: Arrays) -> Case:
    hr, restored = golden["hr"], golden["restored"]
    height, width = hr.shape[1:3]
    where = f"{graph} at {width}x{height}"
    graphs: dict[str, Comparison] = {}
    finite, error = True, 0.0
    for name, array in want.items():
        if name not in got:
            raise ParityError(f"{where}: no output {name!r}, only {', '.join(got) or 'none'}")
        if got[name].shape != array.shape or got[name].dtype != array.dtype:
            raise ParityError(f"{where}: {name} is {got[name].dtype} {got[name].shape}, PyTorch gives {array.dtype} {array.shape}")
        if array.dtype == np.uint8:
            graphs[name] = Comparison()
            graphs[name].add(got[name], array, where)
        else:
            finite = bool(np.isfinite(got[name]).all())
            error = z_error(got[name], array)
    again = got["hr"] if graph == "upscale" else runner.run("upscale", _feed(runner, graph, golden, got))["hr"]
    if not graphs:  # a decoder's z comes to no bytes but these
        graphs["hr"] = Comparison()
        graphs["hr"].add(again, restored, where)
    found = psnr(again, hr)
    return Case(height, width, graphs, psnr(restored, hr), found, found, finite, error, worst_spot(again[0], restored[0]))


def _feed(runner: Runner, graph: str, golden: Mapping[str, npt.NDArray[Any]], got: Arrays) -> Arrays:
    """What to restore the HR from: the graph's own results, PyTorch's for the rest."""
    feed: Arrays = {"lr": got.get("lr", golden["lr"])}
    if "z_hat" not in golden:
        return feed
    if graph == "decoder":
        return feed | {"z": got["z"]}
    code = got["code"] if graph == "encoder" else runner.run("encoder", {"z": pad_planes(got["z"], LATENT_STRIDE)})["code"]
    height, width = golden["z_hat"].shape[2:]
    return feed | {"z": np.ascontiguousarray(runner.run("decoder", {"code": code})["z"][:, :, :height, :width])}
