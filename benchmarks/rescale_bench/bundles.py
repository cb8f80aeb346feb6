"""Bundles to measure: those given, or exports of the weights that ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rescale.bundle import Bundle, check_precision
from rescale.console import Advance
from rescale.contract import GRADIENT
from rescale.errors import UnknownModelError
from rescale.variants import check_scale, variant

if TYPE_CHECKING:
    from rescale_train.shipped import Shipped


@dataclass(frozen=True)
class Choice:
    """A bundle to measure: one that is there, or shipped weights that become one when its turn comes.

    Attributes:
        title: model, scale and size.
        scale: 2 or 4.
        precision: in which it is measured.
        refine: whether it is measured with refined LR pictures, which takes the gradient graph.
        source: the bundle's folder, or the weights.
    """

    title: str
    scale: int
    precision: str
    refine: bool
    source: Path | Shipped

    @property
    def is_there(self) -> bool:
        """Nothing is to be exported first."""
        return isinstance(self.source, Path)

    def path(self, folder: Path, advance: Advance) -> Path:
        """The bundle's folder; shipped weights are exported into `folder`, which is told before and counts as one item."""
        if isinstance(self.source, Path):
            return self.source
        advance(f"exporting {self.title}", 0)
        path = export_shipped(self.source, folder, () if self.precision == "fp32" else (self.precision,), self.refine)
        advance(self.title)
        return path


def export_shipped(shipped: Shipped, folder: Path, precisions: Sequence[str], refine: bool = False) -> Path:
    """The bundle of shipped weights, written into `folder` under its usual name; see `rescale_export.bundles.write_bundle`."""
    from rescale_export.bundles import bundle_name, write_bundle
    from rescale_train import checkpoint

    net = checkpoint.read_net(shipped.path)
    return write_bundle(net, folder / bundle_name(net), shipped.card, precisions, refine).path


def bundles_of(
    given: Sequence[Path],
    models: Sequence[str],
    scales: Sequence[int],
    sizes: Sequence[str] = (),
    precision: str = "fp32",
    refine: bool = False,
) -> list[Choice]:
    """The bundles that a command shall measure. Nothing is exported yet.

    Args:
        given: bundles; they alone, unless a model, scale or size is named too.
        models: names; empty for all that ship.
        scales: 2, 4; empty for both.
        sizes: names; empty for all that ship.
        precision: in which they are measured.
        refine: whether LR pictures are refined.

    Raises:
        UnknownModelError: unknown, or no weights ship for a named model, scale or size.
        ConfigError: no such precision.
        BundleError: one of those given is no bundle, or lacks the precision or the gradient graph.
    """
    check_precision(precision)
    for name in models:
        variant(name)
    for scale in scales:
        check_scale(scale)
    found = []
    for path in given:
        bundle = Bundle(path)
        bundle.graph("downscale", precision)
        if refine:
            bundle.graph(GRADIENT)
        found.append(Choice(bundle.title, bundle.scale, precision, refine, path))
    if given and not (models or scales or sizes):
        return found
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
    return found + [Choice(s.title, s.scale, precision, refine, s) for s in wanted]


def distinct(titles: Sequence[str]) -> list[str]:
    """Titles of bundles; from the second of one title on with a number behind it, by which reports tell them apart."""
    before = [titles[:i].count(title) for i, title in enumerate(titles)]
    return [f"{title} ({n + 1})" if n else title for title, n in zip(titles, before, strict=True)]
