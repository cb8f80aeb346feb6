"""Bundles to measure: those given, or exports of the weights that ship."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rescale.errors import UnknownModelError
from rescale.variants import check_scale, variant


def bundles_of(
    given: Sequence[Path],
    models: Sequence[str],
    scales: Sequence[int],
    folder: Path,
    refine: bool = False,
    sizes: Sequence[str] = (),
) -> list[Path]:
    """Paths of the bundles that a command shall measure.

    Args:
        given: bundles; they alone, unless a model, scale or size is named too.
        models: names; empty for all that ship.
        scales: 2, 4; empty for both.
        folder: shipped weights are exported into it.
        refine: export them with the gradient graph.
        sizes: names; empty for all that ship.

    Raises:
        UnknownModelError: unknown, or no weights ship for a named model, scale or size.
    """
    for name in models:
        variant(name)
    for scale in scales:
        check_scale(scale)
    if given and not (models or scales or sizes):
        return list(given)
    from rescale_export.bundles import bundle_name, write_bundle
    from rescale_train import checkpoint
    from rescale_train.shipped import list_shipped

    every = list_shipped()
    wanted = [
        s
        for s in every
        if s.model in (models or (s.model,)) and s.scale in (scales or (s.scale,)) and s.size in (sizes or (s.size,))
    ]
    unmet = [m for m in models if m not in {s.model for s in wanted}]
    unmet += [f"x{n}" for n in scales if n not in {s.scale for s in wanted}]
    unmet += [name for name in sizes if name not in {s.size for s in wanted}]
    if unmet or not wanted:
        there = ", ".join(s.title for s in every) or "none"
        missing = ", ".join(unmet) or "anything"
        raise UnknownModelError(
            f"no weights ship for {missing} (shipped: {there}); export your own with rescale-export --checkpoint"
        )
    found = list(given)
    for shipped in wanted:
        net = checkpoint.load_net(checkpoint.read(shipped.path), str(shipped.path)).eval()
        found.append(write_bundle(net, folder / bundle_name(net), shipped.card, (), refine).path)
    return found
