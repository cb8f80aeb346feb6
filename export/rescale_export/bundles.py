"""Writing a bundle: graphs, golden vectors and manifest, all or nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from rescale import __version__
from rescale.bundle import FORMAT, GOLDEN, MAJOR, MANIFEST, MINOR, PRECISIONS, Bundle, check_precision, graph_file
from rescale.contract import GRADIENT, Tensor, graph_names
from rescale.errors import OutputError
from rescale.extras import import_library
from rescale.files import write_synced
from rescale.variants import LATENT_CHANNELS, LATENT_STRIDE, VARIANTS
from rescale_export.gradient import compare_gradient, gradient
from rescale_export.graphs import receptive_field, split_graphs
from rescale_export.halo import measured_halo
from rescale_export.memory import bytes_per_lr_pixel
from rescale_export.places import check_place, staged
from rescale_export.validate import check_contract, compare, compare_precision, golden_cases
from rescale_export.writer import GraphWriter
from rescale_train.checkpoint import flow_digest, weights_digest
from rescale_train.config import size_name
from rescale_train.lineage import UNKNOWN
from rescale_train.models import RescalingNet
from rescale_train.tables import to_dict

ort = import_library("onnxruntime")


def bundle_name(net: RescalingNet) -> str:
    """Default folder name of a network's bundle."""
    return f"{net.config.model}_x{net.config.scale}_{size_name(net.config)}"


DEFAULT_PRECISIONS = ("mixed",)
"""What a bundle holds beside float32."""


class WrittenBundle(Bundle):
    """A bundle that was just written. Its files come from memory: another export may be moving its own to the same place."""

    def __init__(self, folder: Path, target: Path, files: Mapping[str, bytes]) -> None:
        """
        Args:
            folder: where it lies now, verified.
            target: where it will be.
            files: graphs and golden vectors by file name.
        """
        super().__init__(folder)
        self.path = target
        self._files = files

    def read_graph(self, name: str, precision: str = "fp32") -> bytes:
        """As `Bundle.read_graph`."""
        return self._files[self.graph(name, precision).file]

    def read_golden(self) -> bytes:
        """As `Bundle.read_golden`."""
        return self._files[GOLDEN]


def write_bundle(
    net: RescalingNet,
    target: Path,
    card: dict[str, Any] | None = None,
    precisions: Sequence[str] = DEFAULT_PRECISIONS,
    refine: bool = False,
    progress: Callable[[int, int, str], object] = lambda done, count, stage: None,
) -> Bundle:
    """Export a network, check it against PyTorch, and write its bundle.

    Args:
        net: in evaluation mode, float32, on the CPU.
        target: folder to write; an existing bundle there is replaced once the new one is complete.
        card: what is known of the weights (data, steps, measured PSNR), kept in the manifest.
        precisions: of `rescale.bundle.PRECISIONS`; float32 is always written.
        refine: write the gradient graph too.
        progress: called in this thread before each part of the work with the parts that are done, all parts, and what comes now;
            what it raises ends the work, and nothing is written.

    Returns:
        The written bundle, verified before it took its place. What is read of it later is what was written, whoever has put
        another one there since.

    Raises:
        ParityError: a graph does not agree with PyTorch, or a precision loses more than the gate allows; nothing is written.
        ConfigError: an unknown precision.
        OutputError: the folder cannot be written, or holds something else than a bundle.
    """
    for precision in precisions:
        check_precision(precision)
    check_target(target)  # before the minutes of work, not after
    reduced = [p for p in PRECISIONS if p != "fp32" and p in precisions]
    parts = iter(range(4 + len(reduced)))

    def begin(what: str) -> None:
        progress(next(parts), 4 + len(reduced), what)

    begin("writing graphs")
    digest, reach = flow_digest(net), receptive_field(net)
    files: dict[str, bytes] = {}
    entries = {p: _graphs(net, split_graphs(net, p), p, files) for p in ("fp32", *reduced)}
    models = {name: files[entry["file"]] for name, entry in entries["fp32"].items()}
    begin("comparing with PyTorch")
    parity = compare(net, models)
    extra: dict[str, Any] = {}
    if refine:
        extra = _graphs(net, {GRADIENT: gradient(net)}, "fp32", files)
        parity[GRADIENT] = compare_gradient(net, files[extra[GRADIENT]["file"]])
    scale = net.config.scale
    begin("computing golden vectors")
    cases = golden_cases(net)
    buffer = io.BytesIO()
    arrays = {f"{i}.{name}": array for i, case in enumerate(cases) for name, array in case.items()}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    golden = files[GOLDEN] = buffer.getvalue()
    begin("measuring the halo")
    halo = measured_halo(models, scale, reach)
    corrected: dict[str, Any] = {}
    if net.corrections:
        corrected = {"corrections": {"count": len(net.corrections), "sha256": weights_digest(net)}}
    manifest = {
        "format": f"{FORMAT}/{MAJOR}.{MINOR}",
        "model": net.config.model,
        "scale": scale,
        "size": size_name(net.config),
        "auxiliary": net.config.variant.auxiliary,
        "net": to_dict(net.config),
        "receptive_field": {"lr_pixels": reach["downscale"]} | ({"upscale_lr_pixels": reach["upscale"]} if corrected else {}),
        "halo": halo,
        "padding": {"rule": "edge", "sides": ["bottom", "right"], "multiple": scale},
        "latent": _latent(net),
        "weights": {"sha256": digest, "card": card or {}},
        "graphs": entries["fp32"],
        "precisions": {p: e for p, e in entries.items() if p != "fp32"},
        **extra,
        **corrected,
        "golden": {"file": GOLDEN, "sha256": hashlib.sha256(golden).hexdigest(), "bytes": len(golden)},
        "parity": {"backend": f"onnxruntime {ort.__version__} CPU", **parity},
        "exporter": {
            "rescale": __version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
        },
        "licence": (card or {}).get("licence", UNKNOWN),
    }
    with replaced_folder(target) as folder:
        for name, data in files.items():
            write_synced(folder / name, data)
        _write_manifest(folder, manifest)
        written = Bundle(folder)
        found = {}
        for p in reduced:
            begin(f"checking {p}")
            found[p] = compare_precision(written, p, cases).to_dict()
        _write_manifest(folder, manifest | {"precision_parity": found})
        Bundle(folder).verify()
        return WrittenBundle(folder, target, files)


def graph_metadata(net: RescalingNet, name: str, precision: str) -> dict[str, str]:
    """What the file of a graph says of itself, wherever it lies; docs/bundle.md has the keys."""
    config = net.config
    found = {"model": config.model, "scale": str(config.scale), "weights": flow_digest(net), "colour": "RGB, uint8, NHWC"}
    if name == "downscale":
        found |= {"corrections": str(len(net.corrections)), "network": weights_digest(net)}
    return found | {"precision": precision}


def _graphs(net: RescalingNet, writers: dict[str, GraphWriter], precision: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Manifest entries of graphs in one precision; their bytes go into `files`."""
    entries: dict[str, Any] = {}
    for name, writer in writers.items():
        model = writer.model(graph_metadata(net, name, precision))
        check_contract(model, tuple(writer.inputs), tuple(writer.outputs))
        data = model.SerializeToString(deterministic=True)
        file = graph_file(name, precision)
        files[file] = data
        entries[name] = {
            "file": file,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "memory_per_lr_pixel": bytes_per_lr_pixel(model, net.config.scale),
            "inputs": [_tensor(t) for t in writer.inputs],
            "outputs": [_tensor(t) for t in writer.outputs],
        }
    return entries


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_synced(folder / MANIFEST, manifest_bytes(manifest))


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """What the file of a manifest holds."""
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _tensor(t: Tensor) -> dict[str, Any]:
    return {"name": t.name, "dtype": t.dtype, "axes": list(t.axes)}


def _latent(net: RescalingNet) -> dict[str, Any] | None:
    if not net.config.variant.latent:
        return None
    return {"channels": LATENT_CHANNELS, "stride": LATENT_STRIDE, "z_channels": net.config.z_channels, "padding": "edge"}


def _may_be_replaced(folder: Path) -> bool:
    """Whether nothing is in a folder but the files of a bundle of ours. One that another export replaces is looked at again."""
    while True:
        try:
            before = _identity(folder)
            found = folder.is_dir() and _is_bundle_or_empty(folder)
            if found or _identity(folder) == before:
                return found
        except (FileNotFoundError, NotADirectoryError):  # not there, or another export is about to put its own there
            return True


def _identity(folder: Path) -> tuple[int, ...]:
    """Tells a folder from the next one at its place, which may have the number of one that is gone: renaming sets the time."""
    found = folder.stat()
    return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_mtime_ns


def _is_bundle_or_empty(folder: Path) -> bool:
    names = {p.name for p in folder.iterdir()}
    if not names:
        return True
    graphs = {graph_file(g, p) for v in VARIANTS.values() for g in (*graph_names(v), GRADIENT) for p in PRECISIONS}
    return is_bundle(folder) and names <= {MANIFEST, GOLDEN, *graphs}


def is_bundle(folder: Path) -> bool:
    """Whether a folder has the manifest of a bundle, of whatever version; other programs have files of that name too."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("format", "")).startswith(f"{FORMAT}/")


def check_target(target: Path) -> Path:
    """Where a bundle may be written, resolved.

    Raises:
        OutputError: it is the current folder, exists and is not a bundle or cannot be read, or see `check_place`.
    """
    target = check_place(target, "bundle", "--out")
    if target == Path.cwd():
        raise OutputError(f"{target}: is where this command runs; choose another --out")
    try:
        free = _may_be_replaced(target)
    except OSError as e:
        raise OutputError(f"{target}: cannot read what is there: {e.strerror or e}; choose another --out") from None
    if not free:
        raise OutputError(f"{target}: exists and is not a bundle, or holds other files; choose another --out")
    return target


TURNS = 1000
"""Times that a bundle is moved to its place while other exports move theirs there; the last one wins."""


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `target` when the block ends without an error.

    Raises:
        OutputError: not writable, or no place for a bundle, see `check_target`.
    """
    target = check_target(target)
    try:
        with staged(target) as stage:
            yield stage / "new"
            _take_place(stage, target)
    except OSError as e:
        raise OutputError(f"{target}: cannot write the bundle: {e.strerror or e}") from None


def _take_place(stage: Path, target: Path) -> None:
    """Move a target out and what is new in; after an error or Ctrl-C between the two the old one is back."""
    old = stage / "old" / target.name
    try:
        for turn in range(TURNS):
            with contextlib.suppress(FileNotFoundError):
                target.rename(old)
            try:
                (stage / "new").rename(target)
                break
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST) or turn == TURNS - 1:
                    raise
            # Another export has put its own there in between.
            shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not target.exists():
            with contextlib.suppress(OSError):
                old.rename(target)
