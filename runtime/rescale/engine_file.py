"""Engine files: what an engine is for, and whether it is still whole.

    NAME.engine         what TensorRT wrote
    NAME.engine.json    the sidecar: everything that makes the engine valid, and hashes of both sides

The sidecar is written last: an engine without one was not finished. Engines are a cache beside the bundle's graphs: no reader
repairs one, it is built again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rescale.bundle import PRECISIONS, Bundle
from rescale.contract import Tensor
from rescale.errors import BundleError, EngineError, ForeignEngineError
from rescale.files import read_regular

FORMAT = "rescale-engine/1"
ENGINE_SUFFIX, SIDECAR_SUFFIX = ".engine", ".engine.json"
MAX_SIDECAR_BYTES = 1 << 20
MAX_ENGINE_BYTES = 4 << 30
MAX_DEPTH = 8
"""Of tables and lists in a sidecar's tables; ours have 4. What takes it apart again does so by recursion."""
AGAIN = "build it again with rescale-engine build"

_HEADER = struct.Struct("<4s12xQ4B4xQ24x")
_MAGIC = b"vtrt"
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Sides = tuple[int, int, int]


class Header(NamedTuple):
    """The first 64 bytes of a TensorRT for RTX engine, as observed; its format is not documented.

    Attributes:
        size: bytes of the whole file.
        version: of the library that wrote it.
        capabilities: compute capabilities with a known bit, such as ``8.9``.
        unknown: the bits that have no known meaning.
    """

    size: int
    version: str
    capabilities: tuple[str, ...]
    unknown: int


def read_header(data: bytes) -> Header | None:
    """Decode the first bytes of an engine; None if they are not those of a TensorRT for RTX engine."""
    if len(data) < _HEADER.size:
        return None
    magic, size, *version, mask = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return None
    known = tuple(c for bit, c in enumerate(_CAPABILITIES) if mask >> bit & 1)
    return Header(size, ".".join(map(str, version)), known, mask & ~((1 << len(_CAPABILITIES)) - 1))


@dataclass(frozen=True)
class EngineInfo:
    """One sidecar.

    Attributes:
        path: the engine file.
        format: `FORMAT`.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        library: version of the library that built it.
        graph, precision: which of the bundle's graphs.
        model, scale, size: whose.
        weights: SHA-256 of all weights, those of corrections included (`Bundle.network`).
        onnx_sha256: of the graph's bytes.
        engine_sha256, bytes: of the engine file.
        profile: ``min``, ``opt`` and ``max``: (batch, height, width) in HR pixels.
        compute_capabilities: of the GPUs that it is for, such as ``8.9``, as far as they are known.
        device: the GPU that it was built on and for; None if it is bound to none.
        inputs, outputs: interface, as in the bundle.
        census: layers of the parsed network by type and output dtype.
        options: of the builder.
        parity: agreement of the graph with PyTorch as measured before the build, or None.
        key: SHA-256 of everything that makes the engine valid.
    """

    path: Path
    backend: str
    library: str
    graph: str
    precision: str
    model: str
    scale: int
    size: str
    weights: str
    onnx_sha256: str
    engine_sha256: str
    bytes: int
    profile: Mapping[str, Sides]
    compute_capabilities: tuple[str, ...]
    device: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    census: Mapping[str, Mapping[str, int]]
    options: Mapping[str, Any]
    key: str
    parity: Mapping[str, Any] | None = None
    format: str = field(default=FORMAT)

    @property
    def title(self) -> str:
        """Model, scale, size, graph, precision and backend."""
        return f"{self.model} x{self.scale} {self.size} {self.graph} {self.precision} {self.backend} {self.library}"

    def fits(self, batch: int, height: int, width: int) -> bool:
        """Whether the profile takes pictures of this HR size."""
        low, high = self.profile["min"], self.profile["max"]
        return all(a <= x <= b for a, x, b in zip(low, (batch, height, width), high, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """The sidecar's contents; all but `path`."""
        out = dataclasses.asdict(self)
        del out["path"]
        return out


def sidecar_bytes(info: EngineInfo) -> bytes:
    """What the sidecar holds."""
    return (json.dumps(info.to_dict(), indent=2, sort_keys=True) + "\n").encode()


def sidecar(engine: Path) -> Path:
    """Path of an engine's sidecar."""
    return engine.with_name(engine.name.removesuffix(ENGINE_SUFFIX) + SIDECAR_SUFFIX)


def _no_engine(folder: bool) -> str:
    what = "a folder" if folder else "another file"
    return f"{what}, wanted an engine, NAME{ENGINE_SUFFIX}; rescale-engine list BUNDLE names a bundle's engines"


def read_info(path: str | os.PathLike[str]) -> EngineInfo:
    """Read the sidecar of an engine.

    Args:
        path: of the engine or of the sidecar.

    Raises:
        EngineError: missing, too large, of another format, or damaged, naming the file and the reason.
    """
    engine = Path(path)
    if engine.name.endswith(SIDECAR_SUFFIX):
        engine = engine.with_name(engine.name.removesuffix(SIDECAR_SUFFIX) + ENGINE_SUFFIX)
    if not engine.name:
        raise EngineError(f"{engine}: {_no_engine(True)}")
    target = sidecar(engine)
    try:
        raw = read_regular(target, MAX_SIDECAR_BYTES)
    except FileNotFoundError:
        if not engine.exists():
            raise EngineError(f"{engine}: no such engine; make one with rescale-engine build") from None
        folder = engine.is_dir()
        if folder or engine.suffix != ENGINE_SUFFIX:
            raise EngineError(f"{engine}: {_no_engine(folder)}") from None
        raise EngineError(f"{engine}: half-written: its sidecar {target.name} is missing; {AGAIN}") from None
    except OSError as e:
        raise EngineError(f"{target}: cannot read: {e.strerror}") from None
    try:
        m = json.loads(raw)
        _check_depth(m)
        if m["format"] != FORMAT:
            raise EngineError(f"{target}: format {m['format']!r}, wanted {FORMAT!r}; {AGAIN}")
        return _info(engine, m)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as e:
        raise EngineError(f"{target}: damaged sidecar: {type(e).__name__}: {e}; {AGAIN}") from None


def _check_depth(value: Any, left: int = MAX_DEPTH) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return
    if not left:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    for part in inner:
        _check_depth(part, left - 1)


_STRINGS = ("backend", "library", "graph", "precision", "model", "size", "weights", "onnx_sha256", "engine_sha256", "key")


def _info(engine: Path, m: dict[str, Any]) -> EngineInfo:
    for name in _STRINGS:
        if not isinstance(m[name], str):
            raise ValueError(f"{name} is not a string")
    if m["precision"] not in PRECISIONS:
        raise ValueError(f"precision {m['precision']!r} is none of {', '.join(PRECISIONS)}")
    for name in ("weights", "onnx_sha256", "engine_sha256", "key"):
        if not _SHA256.fullmatch(m[name]):
            raise ValueError(f"{name} is not 64 hexadecimal digits")
    for name in ("scale", "bytes"):
        if type(m[name]) is not int or m[name] < 1:
            raise ValueError(f"{name} is not a positive number")
    return EngineInfo(
        path=engine,
        **{name: m[name] for name in (*_STRINGS, "scale", "bytes")},
        profile={k: _sides(k, m["profile"][k]) for k in ("min", "opt", "max")},
        compute_capabilities=tuple(map(str, m["compute_capabilities"])),
        device=None if m["device"] is None else str(m["device"]),
        inputs=_tensors(m["inputs"]),
        outputs=_tensors(m["outputs"]),
        census={str(kind): {str(d): int(n) for d, n in row.items()} for kind, row in m["census"].items()},
        options=dict(m["options"]),
        parity=None if m["parity"] is None else _parity(m["parity"]),
    )


def _parity(found: Any) -> dict[str, Any]:
    lost = (int, float, type(None))  # null: without end
    if not isinstance(found, dict) or not isinstance(found.get("runner", ""), str) or type(found["psnr_lost"]) not in lost:
        raise ValueError("parity has no runner or no psnr_lost")
    return dict(found)


def _sides(name: str, value: Any) -> Sides:
    if not isinstance(value, list) or len(value) != 3 or any(type(x) is not int or x < 1 for x in value):
        raise ValueError(f"profile {name} is not three positive numbers")
    return value[0], value[1], value[2]


def _tensors(entries: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(str(t["name"]), str(t["dtype"]), tuple(t["axes"])) for t in entries)


def check_belongs(info: EngineInfo, bundle: Bundle) -> None:
    """Raises ForeignEngineError if an engine is of other weights than a bundle's, EngineError if of other graph bytes (stale)."""
    if info.weights != bundle.network or info.model != bundle.variant.name or info.scale != bundle.scale:
        mine = f"{info.model} x{info.scale} {info.size}, weights {info.weights[:12]}..."
        raise ForeignEngineError(
            f"{info.path}: foreign: of {mine}; {bundle.path} holds {bundle.title}, weights {bundle.network[:12]}..."
        )
    try:
        graph = bundle.graph(info.graph, info.precision)
    except BundleError as e:
        raise ForeignEngineError(f"{info.path}: foreign: {e}") from None
    if info.onnx_sha256 != graph.sha256:
        raise EngineError(f"{info.path}: stale: the bundle's {graph.file} was exported again since; {AGAIN}")
    if (info.inputs, info.outputs) != (graph.inputs, graph.outputs):
        raise EngineError(f"{info.path}: stale: its interface is not that of the bundle's {graph.file}; {AGAIN}")


def check_whole(info: EngineInfo, data: bytes) -> None:
    """Raises EngineError if an engine's bytes are not those that its sidecar tells of."""
    if len(data) != info.bytes:
        kind = "truncated" if len(data) < info.bytes else "changed"
        raise EngineError(f"{info.path}: {kind}: {len(data)} bytes, the sidecar says {info.bytes}; {AGAIN}")
    if hashlib.sha256(data).hexdigest() != info.engine_sha256:
        raise EngineError(f"{info.path}: changed: its SHA-256 is not the sidecar's; {AGAIN}")
    if info.backend != "tensorrt-rtx":
        return
    header = read_header(data)
    if header is None:
        raise EngineError(f"{info.path}: not a TensorRT for RTX engine, though its sidecar says so; {AGAIN}")
    if header.size != len(data):
        raise EngineError(f"{info.path}: truncated: {len(data)} bytes, its header says {header.size}; {AGAIN}")
    if header.version != info.library:
        raise EngineError(f"{info.path}: written by version {header.version}, the sidecar says {info.library}; {AGAIN}")


def read_engine(path: str | os.PathLike[str], bundle: Bundle) -> tuple[EngineInfo, bytes]:
    """An engine and its sidecar, verified: whole, unchanged, and of this bundle's weights and graph bytes.

    Raises:
        EngineError: truncated, changed, foreign, stale or half-written, naming the file and the reason.
    """
    info = read_info(path)
    check_belongs(info, bundle)
    return info, read_whole(info)


def read_whole(info: EngineInfo) -> bytes:
    """The engine's bytes, verified against its sidecar.

    Raises:
        EngineError: as `read_engine`.
    """
    try:
        data = read_regular(info.path, MAX_ENGINE_BYTES)
    except FileNotFoundError:
        raise EngineError(f"{info.path}: half-written: there is a sidecar but no engine; {AGAIN}") from None
    except OSError as e:
        raise EngineError(f"{info.path}: cannot read: {e.strerror}") from None
    check_whole(info, data)
    return data


def cache_folder() -> Path:
    """``$RESCALE_CACHE``, or this package's folder in the user's cache directory.

    Raises:
        EngineError: the user has no home directory.
    """
    if named := os.environ.get("RESCALE_CACHE"):
        return Path(named)
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise EngineError("no home directory, where engines are kept: name a folder for them in RESCALE_CACHE") from None
    return base / "rescale"


def engines_folder(bundle: Bundle, folder: str | os.PathLike[str] | None = None) -> Path:
    """Where a bundle's engines are: `folder`, or ``engines/<model>_x<scale>_<size>-<weights>`` in the cache."""
    if folder is not None:
        return Path(folder)
    # The size comes from a manifest: nothing in it may lead elsewhere.
    size = re.sub(r"[^A-Za-z0-9_.-]", "_", bundle.size)
    return cache_folder() / "engines" / f"{bundle.variant.name}_x{bundle.scale}_{size}-{bundle.network[:12]}"


def build_command(
    bundle: Bundle, folder: str | os.PathLike[str] | None = None, backend: str = "", precision: str = "", profile: str = ""
) -> str:
    """The line that builds a bundle's engines into `folder`, the one that who lacks them named; None for the cache."""
    options = {"backend": backend, "precision": precision, "profile": profile, "out": "" if folder is None else os.fspath(folder)}
    return " ".join([f"rescale-engine build {bundle.path}", *(f"--{name} {value}" for name, value in options.items() if value)])


def engine_name(graph: str, precision: str, backend: str, profile: str, key: str) -> str:
    """File name of an engine; `profile` is in words, `key` as in `EngineInfo`."""
    return f"{graph}.{precision}.{backend}.{profile}.{key[:12]}{ENGINE_SUFFIX}"


def find_engines(folder: Path, bundle: Bundle, backend: str, precision: str, graph: str) -> list[EngineInfo]:
    """Engines of a bundle's graph in a folder, the smallest largest size first. Their bytes are not read yet.

    Engines of other bundles or of graphs exported since are left out.

    Raises:
        EngineError: a sidecar that goes by this graph's, precision's and backend's name is damaged.
    """
    found = []
    for path in sorted(folder.glob(f"{graph}.{precision}.{backend}.*{SIDECAR_SUFFIX}")):
        info = read_info(path)
        try:
            check_belongs(info, bundle)
        except EngineError:
            continue
        if (info.backend, info.precision, info.graph) == (backend, precision, graph):
            found.append(info)

    def largest(info: EngineInfo) -> tuple[int, str]:
        batch, height, width = info.profile["max"]
        return batch * height * width, info.path.name

    return sorted(found, key=largest)
