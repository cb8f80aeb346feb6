"""Writing a bundle: graphs, golden vectors and manifest, all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from rescale import __version__
from rescale.bundle import FORMAT, GOLDEN, MAJOR, MANIFEST, MINOR, Bundle, Tensor, graph_names
from rescale.errors import OutputError
from rescale.variants import LATENT_CHANNELS, LATENT_STRIDE, VARIANTS
from rescale_export.graphs import receptive_field, split_graphs
from rescale_export.memory import bytes_per_lr_pixel
from rescale_export.probe import probe_picture
from rescale_export.validate import GOLDEN_SIZE, check_contract, compare, reference
from rescale_train.checkpoint import weights_digest
from rescale_train.config import size_name, to_dict
from rescale_train.models import RescalingNet

LICENCE = "Apache-2.0"


def bundle_name(net: RescalingNet) -> str:
    """Default folder name of a network's bundle."""
    return f"{net.config.model}_x{net.config.scale}_{size_name(net.config)}"


def write_bundle(net: RescalingNet, target: Path, card: dict[str, Any] | None = None) -> Bundle:
    """Export a network, check it against PyTorch, and write its bundle.

    Args:
        net: in evaluation mode, float32, on the CPU.
        target: folder to write; an existing bundle there is replaced once the new one is complete.
        card: what is known of the weights (data, steps, measured PSNR), kept in the manifest.

    Returns:
        The written bundle, read back and verified.

    Raises:
        ParityError: a graph does not agree with PyTorch; nothing is written.
        OutputError: the folder cannot be written, or holds something else than a bundle.
    """
    digest = weights_digest(net)
    metadata = {"model": net.config.model, "scale": str(net.config.scale), "weights": digest, "colour": "RGB, uint8, NHWC"}
    writers = split_graphs(net)
    models: dict[str, bytes] = {}
    entries: dict[str, Any] = {}
    for name, writer in writers.items():
        model = writer.model(metadata)
        check_contract(model, tuple(writer.inputs), tuple(writer.outputs))
        models[name] = model.SerializeToString(deterministic=True)
        entries[name] = {
            "file": f"{name}.onnx",
            "sha256": hashlib.sha256(models[name]).hexdigest(),
            "bytes": len(models[name]),
            "memory_per_lr_pixel": bytes_per_lr_pixel(model, net.config.scale),
            "inputs": [_tensor(t) for t in writer.inputs],
            "outputs": [_tensor(t) for t in writer.outputs],
        }
    parity = compare(net, models)
    scale = net.config.scale
    height, width = (side - side % (4 * scale) + scale for side in GOLDEN_SIZE)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **reference(net, probe_picture(height, width, seed=7)[None]))
    golden = buffer.getvalue()
    manifest = {
        "format": f"{FORMAT}/{MAJOR}.{MINOR}",
        "model": net.config.model,
        "scale": scale,
        "size": size_name(net.config),
        "auxiliary": net.config.variant.auxiliary,
        "net": to_dict(net.config),
        "receptive_field": {"lr_pixels": receptive_field(net)},
        "padding": {"rule": "edge", "sides": ["bottom", "right"], "multiple": scale},
        "latent": _latent(net),
        "weights": {"sha256": digest, "card": card or {}},
        "graphs": entries,
        "golden": {"file": GOLDEN, "sha256": hashlib.sha256(golden).hexdigest(), "bytes": len(golden)},
        "parity": {"backend": f"onnxruntime {onnxruntime.__version__} CPU", **parity},
        "exporter": {
            "rescale": __version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
        },
        "licence": LICENCE,
    }
    with replaced_folder(target) as folder:
        for name, data in models.items():
            (folder / f"{name}.onnx").write_bytes(data)
        (folder / GOLDEN).write_bytes(golden)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        Bundle(folder).verify()
    return Bundle(target)


def _tensor(t: Tensor) -> dict[str, Any]:
    return {"name": t.name, "dtype": t.dtype, "axes": list(t.axes)}


def _latent(net: RescalingNet) -> dict[str, Any] | None:
    if not net.config.variant.latent:
        return None
    return {"channels": LATENT_CHANNELS, "stride": LATENT_STRIDE, "z_channels": net.config.z_channels, "padding": "edge"}


def _is_bundle_or_empty(folder: Path) -> bool:
    """Whether a folder may be replaced: nothing in it but the files of a bundle of ours."""
    if not folder.is_dir():
        return False
    names = {p.name for p in folder.iterdir()}
    if not names:
        return True
    graphs = {f"{g}.onnx" for v in VARIANTS.values() for g in graph_names(v)}
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = isinstance(manifest, dict) and str(manifest.get("format", "")).startswith(f"{FORMAT}/")
    return ours and names <= {MANIFEST, GOLDEN, *graphs}


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `target` when the block ends without an error.

    Raises:
        OutputError: not writable, or `target` exists and is not a bundle.
    """
    target = target.resolve()
    if target == Path.cwd() or not target.name:
        raise OutputError(f"{target}: is where this command runs; choose another --out")
    if target.exists() and not _is_bundle_or_empty(target):
        raise OutputError(f"{target}: exists and is not a bundle, or holds other files; choose another --out")
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    old = temporary.with_suffix(".old")
    try:
        temporary.mkdir()
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except OSError as e:
        raise OutputError(f"{target}: cannot write the bundle: {e.strerror or e}") from None
    finally:
        # Also after Ctrl-C between the two renames: an old bundle is not lost.
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
