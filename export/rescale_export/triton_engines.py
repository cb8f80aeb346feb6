"""Engines for Triton's ``tensorrt`` backend: one complete set of a bundle's, or a refusal that says what to do."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from rescale.bundle import Bundle
from rescale.contract import graph_names
from rescale.engine_file import build_command, engines_folder, find_engines, read_engine
from rescale.errors import BackendError

BACKEND = "tensorrt"


def plans(bundle: Bundle, precision: str, folder: Path | None) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
    """Verified engines by graph, and what the models' parameters say of each.

    A set is of one library version, one profile and one device.

    Raises:
        BundleError: the bundle lacks the precision.
        BackendError: no complete set, or more than one; an engine that is damaged.
    """
    where, names = engines_folder(bundle, folder), graph_names(bundle.variant)
    build = build_command(bundle, folder, BACKEND, precision)
    sets: defaultdict[tuple[Any, ...], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    rtx = False
    for name in names:
        bundle.graph(name, precision)
        rtx = rtx or bool(find_engines(where, bundle, "tensorrt-rtx", precision, name))
        for info in find_engines(where, bundle, BACKEND, precision, name):
            sets[info.library, tuple(info.profile.items()), info.device, info.compute_capabilities][name].append(info.path)
    complete = [found for found in sets.values() if set(found) == set(names)]
    if not complete:
        held = "; the engines of TensorRT for RTX there are not for Triton" if rtx else ""
        part = next((f", there are only {', '.join(found)}" for found in sets.values()), "")
        raise BackendError(
            f"{where}: no {BACKEND} engines of {bundle.title} in {precision} for {', '.join(names)}{part}{held}; build them on the "
            f"server's GPU with the server's version of TensorRT: {build}"
        )
    if len(complete) > 1 or any(len(paths) > 1 for paths in complete[0].values()):
        files = ", ".join(sorted(p.name for found in complete for paths in found.values() for p in paths))
        raise BackendError(
            f"{where}: several sets of engines ({files}); put the one to serve into a folder of its own and name it "
            "with --triton-engines"
        )
    contents: dict[str, bytes] = {}
    extra: dict[str, dict[str, str]] = {}
    for name, (path,) in complete[0].items():
        info, contents[name] = read_engine(path, bundle)
        extra[name] = {"engine_sha256": info.engine_sha256, "tensorrt": info.library, "device": info.device or "any"}
        extra[name] |= {f"profile_{k}": "x".join(map(str, v)) for k, v in info.profile.items()}
    return contents, extra
