"""Model repositories for Triton Inference Server.

For a bundle TITLE (model, scale and size) and the backends ``onnxruntime`` and ``tensorrt``:

    TITLE_downscale            ensemble: hr -> lr [, code]      grid, graph, for -M latent and encoder
    TITLE_upscale              lr -> hr                         the graph itself; for -M an ensemble: decoder, crop, graph
    TITLE_graph_GRAPH          a graph of the bundle as it is   sides of hr multiples of the scale, of z multiples of 4
    TITLE_step_STEP            Python backend, numpy only       padding to the grid and cropping, see triton_models/steps.py

and for ``python``, with the `rescale` package in the server's Python:

    TITLE_downscale  TITLE_upscale                              the same interface, tiled
    TITLE_encode  TITLE_decode                                  picture -> bytes of the LR file -> picture

Graphs cannot refuse a picture that is off the grid (a strided convolution drops the last row), and an ensemble cannot pad one:
hence the Python steps. Names start with the title, so that the models of several bundles live in one repository.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from rescale import __version__, contract
from rescale.bundle import GOLDEN, MANIFEST, Bundle, check_precision
from rescale.contract import GRADIENT, Tensor, graph_names
from rescale.errors import ConfigError, OutputError
from rescale.files import write_synced
from rescale.limits import MAX_PIXELS
from rescale.variants import LATENT_STRIDE
from rescale_export.bundles import is_bundle, manifest_bytes
from rescale_export.places import check_place, staged
from rescale_export.triton_config import CONFIG, VERSION, Model, Step

try:
    import fcntl
except ImportError:  # Windows, which has no lock of a folder
    fcntl = None  # type: ignore[assignment]

BACKENDS = ("onnxruntime", "tensorrt", "python")
GRAPH_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
FORMAT = "rescale-triton/1"
"""Marks our models in their parameters: only such folders are replaced."""

KEEP = {".keep": b""}
"""An ensemble's version folder must exist; version control and object stores drop empty ones."""

HR_ONE: tuple[int | str, ...] = ("height", "width", 3)
_TITLE = re.compile(r"[A-Za-z0-9_-]{1,100}")


def title(bundle: Bundle) -> str:
    """First part of the names of a bundle's models.

    Raises:
        ConfigError: the manifest's size is no part of a name.
    """
    name = f"{bundle.variant.name}_x{bundle.scale}_{bundle.size}"
    if not _TITLE.fullmatch(name):
        raise ConfigError(f"{bundle.path}: {name!r} cannot name a model; letters, digits, - and _ can")
    return name


def check_backend(name: str) -> None:
    """Raises ConfigError unless `name` is one of `BACKENDS`."""
    if name not in BACKENDS:
        raise ConfigError(f"unknown Triton backend {name!r}: choose {', '.join(BACKENDS)}")


def served_precision(backend: str, precision: str | None, held: Iterable[str]) -> str:
    """Which graphs a backend serves: those asked for, or the backend's default.

    Args:
        backend: one of `BACKENDS`.
        precision: what was asked for; None for mixed engines and float32 graphs.
        held: precisions that the bundle holds.

    Raises:
        ConfigError: an unknown backend, or a precision that it does not run or the bundle does not hold.
    """
    check_backend(backend)
    if backend == "python" and precision not in (None, "fp32"):
        raise ConfigError(f"the Python backend runs float32 graphs, not {precision!r}")
    precision = check_precision(precision or ("mixed" if backend == "tensorrt" else "fp32"))
    if precision not in (held := tuple(held)):
        raise ConfigError(
            f"Triton's {backend} would serve {precision}, the bundle holds {', '.join(held)}: add --precision {precision}"
        )
    return precision


def check_repository(target: Path, bundle: Path | None = None) -> Path:
    """A model repository's folder, resolved.

    Args:
        target: as it was given.
        bundle: folder of the bundle whose models are to be written, if it is known yet.

    Raises:
        OutputError: it is or lies in a bundle, holds the one to be served, is a file, is not writable, or see `check_place`.
    """
    target = check_place(target, "model repository", "--triton")
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target}: is not a folder; choose another one for --triton")
    if target.exists() and not os.access(target, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: is not writable; choose another folder for --triton")
    if (target / MANIFEST).exists():
        raise OutputError(f"{target}: is a bundle; choose another folder for --triton")
    if around := next(filter(is_bundle, target.parents), None):
        raise OutputError(f"{target}: lies in a bundle, {around}; choose another folder for --triton")
    if bundle is not None:
        place = Path(os.path.realpath(bundle))
        if target.is_relative_to(place):
            raise OutputError(f"{target}: is or lies in the folder of the bundle, {bundle}; choose another folder for --triton")
        if place.is_relative_to(target):
            raise OutputError(
                f"{target}: holds the bundle, {bundle}, which Triton would take for a broken model; choose another folder for "
                "--triton or --out"
            )
    return target


def repository_models(
    bundle: Bundle, backend: str = "onnxruntime", precision: str | None = None, engines: Path | None = None
) -> list[Model]:
    """All models of a bundle, with their files.

    Args:
        bundle: whose graphs are served.
        backend: one of `BACKENDS`.
        precision: which graphs; None for mixed engines and float32 graphs. ``python`` runs float32.
        engines: folder of engines for ``tensorrt``; None for the cache's.

    Raises:
        ConfigError: an unknown backend, or a precision that it does not run or the bundle lacks.
        BundleError: the bundle is damaged.
        BackendError: ``tensorrt``: there is no complete set of engines, or more than one.
    """
    precision = served_precision(backend, precision, bundle.precisions)
    if backend == "python":
        return _runtime_models(bundle)
    names = graph_names(bundle.variant)
    if backend == "tensorrt":
        from rescale_export.triton_engines import plans

        contents, extra = plans(bundle, precision, engines)
    else:
        contents, extra = {name: bundle.read_graph(name, precision) for name in names}, {}
    return _graph_models(bundle, backend, precision, contents, extra)


def _provenance(bundle: Bundle) -> dict[str, str]:
    return {
        "format": FORMAT,
        "written_by": f"rescale-toolkit {__version__}",
        "title": title(bundle),
        "model": bundle.variant.name,
        "scale": str(bundle.scale),
        "size": bundle.size,
        "weights_sha256": bundle.weights,
        "bundle_format": str(bundle.manifest["format"]),
    }


def _graph_models(
    bundle: Bundle, backend: str, precision: str, contents: Mapping[str, bytes], extra: Mapping[str, Mapping[str, str]]
) -> list[Model]:
    name, base = title(bundle), _provenance(bundle) | {"precision": precision}
    latent = bundle.variant.latent

    def graph_model(graph: str, called: str) -> Model:
        g = bundle.graph(graph, precision)
        parameters = base | {"graph": graph, "onnx_sha256": g.sha256} | dict(extra.get(graph, {}))
        return Model(called, backend, g.inputs, g.outputs, parameters, files={GRAPH_FILES[backend]: contents[graph]})

    def step_model(step: str, multiple: int, inputs: Sequence[Tensor], output: Tensor) -> Model:
        parameters = base | {"step": step, "multiple": str(multiple), "max_pixels": str(MAX_PIXELS)}
        return Model(
            f"{name}_step_{step}", "python", tuple(inputs), (output,), parameters, files={"model.py": _template("steps.py")}
        )

    down, up = bundle.graph("downscale", precision), bundle.graph("upscale", precision)
    hr, lr = down.inputs[0], down.outputs[0]
    padded = contract.hr("hr_padded")
    grid = Step(f"{name}_step_grid", {"hr": "hr"}, {"hr_padded": "hr_padded"})
    models = [step_model("grid", bundle.scale, [hr], padded), graph_model("downscale", f"{name}_graph_downscale")]
    if not latent:
        steps = (grid, Step(f"{name}_graph_downscale", {"hr": "hr_padded"}, {"lr": "lr"}))
        models.append(Model(f"{name}_downscale", "ensemble", (hr,), (lr,), base, steps, KEEP))
        return [*models, graph_model("upscale", f"{name}_upscale")]
    z = next(t for t in up.inputs if t.name == "z")
    code = bundle.graph("decoder", precision).inputs[0]
    z_padded = Tensor("z_padded", z.dtype, z.axes)
    models += [graph_model(g, f"{name}_graph_{g}") for g in ("upscale", "encoder", "decoder")]
    models += [
        step_model("latent", LATENT_STRIDE, [z], z_padded),
        step_model("crop", LATENT_STRIDE, [z_padded, lr], z),
    ]
    down_steps = (
        grid,
        Step(f"{name}_graph_downscale", {"hr": "hr_padded"}, {"lr": "lr", "z": "z"}),
        Step(f"{name}_step_latent", {"z": "z"}, {"z_padded": "z_padded"}),
        Step(f"{name}_graph_encoder", {"z": "z_padded"}, {"code": "code"}),
    )
    up_steps = (
        Step(f"{name}_graph_decoder", {"code": "code"}, {"z": "z_padded"}),
        Step(f"{name}_step_crop", {"z_padded": "z_padded", "lr": "lr"}, {"z": "z"}),
        Step(f"{name}_graph_upscale", {"lr": "lr", "z": "z"}, {"hr": "hr"}),
    )
    models.append(Model(f"{name}_downscale", "ensemble", (hr,), (lr, code), base, down_steps, KEEP))
    models.append(Model(f"{name}_upscale", "ensemble", (lr, code), up.outputs, base, up_steps, KEEP))
    return models


def _runtime_models(bundle: Bundle) -> list[Model]:
    held = {MANIFEST: manifest_bytes(bundle.manifest), str(bundle.manifest["golden"].get("file", GOLDEN)): bundle.read_golden()}
    held |= {g.file: bundle.read_graph(name, p) for p, graphs in bundle.precisions.items() for name, g in graphs.items()}
    held |= {} if bundle.gradient is None else {bundle.gradient.file: bundle.read_graph(GRADIENT)}
    contents = {f"bundle/{file}": data for file, data in held.items()}
    hr, lr = bundle.graphs["downscale"].inputs[0], bundle.graphs["downscale"].outputs[0]
    code = (bundle.graphs["decoder"].inputs[0],) if bundle.variant.latent else ()
    picture, file = Tensor("hr", "uint8", HR_ONE), Tensor("file", "uint8", ("bytes",))
    interfaces: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {
        "downscale": ((hr,), (lr, *code)),
        "upscale": ((lr, *code), (hr,)),
        "encode": ((picture,), (file,)),
        "decode": ((file,), (picture,)),
    }
    options = {"runtime_backend": "onnxruntime", "threads": "0", "memory": "", "max_pixels": str(MAX_PIXELS), "container": "png"}
    models = []
    for task, (inputs, outputs) in interfaces.items():
        parameters = _provenance(bundle) | {"task": task} | options
        content = {"model.py": _template("runtime.py"), **contents}
        models.append(Model(f"{title(bundle)}_{task}", "python", inputs, outputs, parameters, files=content))
    return models


def _template(name: str) -> bytes:
    return (files("rescale_export") / "triton_models" / name).read_bytes()


def write_repository(
    bundle: Bundle, target: Path, backend: str = "onnxruntime", precision: str | None = None, engines: Path | None = None
) -> list[str]:
    """Write a bundle's models into a repository; see `repository_models` for the arguments and more errors.

    Models of other bundles and foreign ones there stay. Models that an earlier call wrote for this title are replaced, once
    the new ones are complete; those that the new set lacks are removed. Calls at the same time wait for each other; the last one
    wins.

    Args:
        bundle: whose graphs are served.
        target: the repository's folder, made if it does not exist.
        backend, precision, engines: as `repository_models`.

    Returns:
        Names of the models.

    Raises:
        OutputError: not writable, or a folder of one of these names is not a model of ours.
    """
    models = repository_models(bundle, backend, precision, engines)
    target = check_repository(target, bundle.path)
    try:
        with staged(target) as stage:
            for model in models:
                _write_model(stage / "new" / model.name, model)
            target.mkdir(exist_ok=True)
            with _alone(target):
                stale = {p.name for p in target.iterdir() if p.name.startswith(title(bundle)) and _is_ours(p, title(bundle))}
                _refuse_foreign(target, {m.name for m in models} - stale)
                _swap(stage, target, [m.name for m in models], sorted(stale))
    except OSError as e:
        raise OutputError(f"{target}: cannot write the model repository: {e.strerror or e}") from None
    return [m.name for m in models]


def _refuse_foreign(target: Path, names: Iterable[str]) -> None:
    for folder in sorted(target / name for name in names):
        if folder.exists() or folder.is_symlink():
            raise OutputError(f"{folder}: exists and is no model that rescale-export wrote; choose another folder for --triton")


def _write_model(folder: Path, model: Model) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    for name, data in model.files.items():
        path = version / name
        path.parent.mkdir(exist_ok=True)
        write_synced(path, data)
    write_synced(folder / CONFIG, model.config().encode())


def _is_ours(folder: Path, name: str) -> bool:
    """Whether a folder is a model that `write_repository` wrote for a title, and holds nothing beside."""
    if folder.is_symlink() or not folder.is_dir() or {p.name for p in folder.iterdir()} != {CONFIG, VERSION}:
        return False
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    marks = [f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in (("format", FORMAT), ("title", name))]
    return all(mark in text.splitlines() for mark in marks) and {p.name for p in (folder / VERSION).iterdir()} <= {
        "model.py",
        "bundle",
        "__pycache__",
        *KEEP,
        *GRAPH_FILES.values(),
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block on a folder. The folder itself is locked: nothing is written, and a process
    that ends, however, lets go. Where that cannot be (Windows, some network file systems) nobody waits."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _swap(stage: Path, target: Path, new: Sequence[str], stale: Sequence[str]) -> None:
    """Move old models out and new ones in; after an error or Ctrl-C everything is as before."""
    try:
        for name in stale:
            (target / name).rename(stage / "old" / name)
        for name in new:
            (stage / "new" / name).rename(target / name)
    except BaseException:
        for name in new:
            if not (stage / "new" / name).exists() and (target / name).exists():
                (target / name).rename(stage / "new" / name)
        for name in stale:
            if (stage / "old" / name).exists():
                (stage / "old" / name).rename(target / name)
        raise
