"""Building engines from a bundle: own gates, then TensorRT, then a verified file and its sidecar."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rescale.bundle import Bundle, Graph
from rescale.engine_file import (
    AGAIN,
    FORMAT,
    EngineInfo,
    Sides,
    check_whole,
    engine_name,
    engines_folder,
    read_engine,
    read_header,
    sidecar,
    sidecar_bytes,
)
from rescale.errors import ConfigError, EngineError, OutputError
from rescale.files import atomic_write_both
from rescale.flavour import Flavour, device, load
from rescale_engines.cache import engine_key, locked
from rescale_engines.census import count, require_precision
from rescale_engines.network import Progress, capability_enum, capability_name, check_interface, parse, serialize
from rescale_engines.profiles import Profile, Size

MAX_MEMORY = 16 << 30
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How to build.

    Attributes:
        folder: where engines are kept; None for the cache.
        compute_capabilities: such as ``8.9``; empty for all that TensorRT for RTX targets by default. Only for it.
        workspace: bytes of scratch memory that a layer may use; None for the library's choice.
        max_memory: bytes that the graph may need at the largest size.
        force: build even if a valid engine is there.
        parity: agreement of the graph with PyTorch, kept in the sidecar.
    """

    folder: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    max_memory: int = MAX_MEMORY
    force: bool = False
    parity: dict[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Built:
    """An engine that is ready.

    Attributes:
        info: its sidecar.
        reused: it was there already.
        reason: why an engine that was there was not reused; empty if none was.
        seconds: the build took.
        warnings: of the library.
    """

    info: EngineInfo
    reused: bool
    reason: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        head = {"path": str(self.info.path), "reused": self.reused, "reason": self.reason, "seconds": round(self.seconds, 3)}
        return head | {"warnings": list(self.warnings), "engine": self.info.to_dict()}


def build(
    bundle: Bundle,
    graph: str,
    profile: Profile,
    backend: str = "tensorrt-rtx",
    precision: str = "mixed",
    options: Options | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Path:
    """Path of a valid engine, built unless it is there. See `ensure`."""
    return ensure(bundle, graph, profile, backend, precision, options, progress, cancel).info.path


def ensure(
    bundle: Bundle,
    graph: str,
    profile: Profile,
    backend: str = "tensorrt-rtx",
    precision: str = "mixed",
    options: Options | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Built:
    """A valid engine, built unless it is there. Ctrl-C and `cancel` leave nothing behind.

    Args:
        bundle: whose graph.
        graph: ``downscale``, ``upscale``, ``encoder`` or ``decoder``.
        profile: the picture sizes it takes.
        backend: ``tensorrt-rtx``, which needs no GPU, or ``tensorrt``, which builds on and for the GPU that is there.
        precision: which of the bundle's graphs; there is no other switch for precision.
        options: see `Options`.
        progress: called with phase, steps done and steps in all, from another thread.
        cancel: once set, the build ends at its next step.

    Raises:
        ConfigError: a profile or option that is not allowed.
        BundleError: the bundle does not hold the graph or the precision.
        BackendError: the library cannot be used here.
        EngineError: the graph is refused, is not of its precision, or the build fails or is cancelled.
        OutputError: the folder cannot be written.
        MissingExtraError: the library is not installed.
    """
    options = options or Options()
    entry = bundle.graph(graph, precision)
    if profile.scale != bundle.scale:
        raise ConfigError(f"profile: for x{profile.scale}, {bundle.path} is x{bundle.scale}")
    profile.require_memory(entry, options.max_memory)
    # TensorRT's objects may only be touched where there is a driver; those of RTX anywhere.
    flavour = load(backend, needs_device=backend != "tensorrt-rtx")
    for capability in options.compute_capabilities:
        capability_enum(flavour, capability)
    info = _plan(bundle, graph, entry, profile, flavour, precision, options)
    try:
        info.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{info.path.parent}: cannot create: {e.strerror}") from None

    def waiting() -> None:
        if progress is not None:
            progress("Waiting for another process that builds this engine", 0, 0)

    with locked(info.path, cancel, waiting):
        reason = ""
        if info.path.exists() or sidecar(info.path).exists():
            found, reason = (None, "asked for again") if options.force else _reuse(info, bundle)
            if found is not None:
                return Built(found, reused=True)
        stop = cancel or threading.Event()
        started = time.perf_counter()
        data, census, warnings = _apart(lambda: _compile(bundle, info, entry, profile, flavour, options, progress, stop), stop)
        finished = _finish(info, data, census)
        atomic_write_both((info.path, data), (sidecar(info.path), sidecar_bytes(finished)))
    return Built(finished, reused=False, reason=reason, seconds=time.perf_counter() - started, warnings=warnings)


def _sides(size: Size) -> Sides:
    return size.batch, size.height, size.width


def _plan(
    bundle: Bundle, graph: str, entry: Graph, profile: Profile, flavour: Flavour, precision: str, options: Options
) -> EngineInfo:
    """The sidecar as far as it is known before the build."""
    built_for = None if flavour.name == "tensorrt-rtx" else device()
    sizes = {"min": _sides(profile.smallest), "opt": _sides(profile.best), "max": _sides(profile.largest)}
    capabilities = sorted({capability_name(c) for c in options.compute_capabilities})
    chosen = {"compute_capabilities": capabilities, "workspace": options.workspace, "tf32": False}
    parts = {
        "format": FORMAT,
        "backend": flavour.name,
        "library": flavour.version,
        "graph": graph,
        "precision": precision,
        # Bundles with and without corrections share graphs, and a sidecar names one of them.
        "weights": bundle.network,
        "onnx": entry.sha256,
        "profile": {k: list(v) for k, v in sizes.items()},
        "options": chosen,
        "device": None if built_for is None else [built_for.name, built_for.compute_capability],
    }
    key = engine_key(parts)
    folder = engines_folder(bundle, options.folder)
    return EngineInfo(
        path=folder / engine_name(graph, precision, flavour.name, str(profile), key),
        backend=flavour.name,
        library=flavour.version,
        graph=graph,
        precision=precision,
        model=bundle.variant.name,
        scale=bundle.scale,
        size=bundle.size,
        weights=bundle.network,
        onnx_sha256=entry.sha256,
        engine_sha256="",
        bytes=0,
        profile=sizes,
        compute_capabilities=() if built_for is None else (built_for.compute_capability,),
        device=None if built_for is None else built_for.name,
        inputs=entry.inputs,
        outputs=entry.outputs,
        census={},
        options=chosen,
        key=key,
        parity=options.parity,
    )


def _reuse(info: EngineInfo, bundle: Bundle) -> tuple[EngineInfo | None, str]:
    try:
        found, _ = read_engine(info.path, bundle)
    except EngineError as e:
        return None, str(e).removeprefix(f"{info.path}: ").removesuffix(f"; {AGAIN}")
    return (found, "") if found.key == info.key else (None, "its sidecar has another key")


def _compile(
    bundle: Bundle,
    info: EngineInfo,
    entry: Graph,
    profile: Profile,
    flavour: Flavour,
    options: Options,
    progress: Progress | None,
    cancel: threading.Event,
) -> tuple[bytes, dict[str, dict[str, int]], tuple[str, ...]]:
    what = f"{bundle.path / entry.file}"
    parsed = parse(flavour, bundle.read_graph(info.graph, info.precision), what)
    check_interface(parsed, entry, what)
    require_precision(parsed.layers, info.precision, what)
    data, warnings = serialize(
        parsed,
        {t.name: profile.shapes(t, info.graph) for t in entry.inputs},
        what,
        capabilities=info.options["compute_capabilities"],
        workspace=options.workspace,
        progress=progress,
        cancel=cancel,
    )
    return data, count(parsed.layers), tuple(" ".join(m.text.split()) for m in warnings)


def _finish(info: EngineInfo, data: bytes, census: dict[str, dict[str, int]]) -> EngineInfo:
    """The sidecar of what was built; the engine's header must agree with it."""
    header = read_header(data) if info.backend == "tensorrt-rtx" else None
    finished = replace(
        info,
        engine_sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        census=census,
        compute_capabilities=header.capabilities if header else info.compute_capabilities,
    )
    check_whole(finished, data)
    return finished


def _apart(work: Callable[[], T], stop: threading.Event) -> T:
    """Do the work in a thread while this one stays able to take Ctrl-C, which sets `stop` and waits for the work to end.

    In the main thread the interrupt would strike inside a callback of the library and unwind through its C++ code.
    """
    done: list[T] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def body() -> None:
        try:
            done.append(work())
        except BaseException as e:
            failed.append(e)
        finally:
            ended.set()

    thread = threading.Thread(target=body, name="rescale-engine build", daemon=True)
    try:
        thread.start()
        # Not Thread.join: where Ctrl-C strikes within it, Python 3.11 and 3.12 take the thread for ended.
        while not ended.wait(0.1):
            pass
    except KeyboardInterrupt:
        stop.set()
        while not ended.wait(0.1) and thread.ident is not None:
            pass
        raise
    if failed:
        raise failed[0]
    return done[0]
