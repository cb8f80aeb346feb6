"""A published checkpoint as a weights file of ours, with a card that says where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rescale.errors import OutputError
from rescale.files import atomic_write_both
from rescale.json_text import as_json
from rescale_train import checkpoint
from rescale_train.config import Recipe, TrainConfig, size_name
from rescale_train.importers.layouts import translate
from rescale_train.importers.reading import read
from rescale_train.lineage import UNKNOWN, provenance, stage


def convert(source: Path, target: Path, licence: str = UNKNOWN) -> dict[str, Any]:
    """Write a published checkpoint as a weights file, and its card beside it with suffix .json: both or neither.

    Args:
        source: the published file.
        target: the weights file, .safetensors. Values and dtypes are those of the source.
        licence: of the weights, as their publisher states it.

    Returns:
        The card.

    Raises:
        CheckpointError: the source cannot be read or imported.
        OutputError: the target is there already, has another suffix, or cannot be written.
    """
    if target.suffix != ".safetensors":
        raise OutputError(f"{target}: weights are written as .safetensors; choose such a name")
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; choose another name")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}")
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(f"{target}: is the file to be imported; choose another name")
    for place in (target, target.with_suffix(".json")):
        if place.exists():
            raise OutputError(f"{place}: exists; remove it or choose another name")
    found = read(source)
    network = translate(found)
    config = network.config
    imported = {
        "file": source.name,
        "sha256": found.sha256,
        "bytes": found.size,
        "layout": network.layout,
        "values": network.values,
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in network.parameters.values()}),
        "licence": licence.strip() or UNKNOWN,
    }
    # How it was trained is not in the file. A weights file has a run, so this one has the shortest: step 0 of 1.
    recipe = Recipe(config, TrainConfig(steps=1))
    progress = {"step": 0, "seconds": 0.0, "imported": imported}
    data = checkpoint.to_bytes(network.parameters, recipe, progress)
    net = checkpoint.load_net(checkpoint.Checkpoint(recipe, progress, network.parameters), str(source))
    run = stage(recipe, progress, checkpoint.weights_digest(net))
    card = {
        "model": config.model,
        "scale": config.scale,
        "size": size_name(config),
        "parameters": sum(p.numel() for p in net.parameters()),
        "weights_sha256": run["weights_sha256"],
        "data": UNKNOWN,
        "machine": UNKNOWN,
        **{key: run[key] for key in ("steps", "minutes", "validation", "recipe")},
        "figures": {},
        "note": "imported; figures not measured here",
        **provenance(progress),
    }
    # The card takes its place first: weights are there only with what is known of them.
    atomic_write_both((target.with_suffix(".json"), as_json(card).encode()), (target, data))
    return card
