"""The six networks of the paper, as data.

This table is the one owner of what a variant is. The trainer builds its layers from it, the exporter names its graphs
from it, and the runtime reads files by it.

Source: Yin et al., "Raising the limit of image rescaling using auxiliary encoding" (IRN-A, IRN-M, DLV-IRN-A, DLV-IRN-M);
Xiao et al., "Invertible Image Rescaling" (IRN); Zhang et al., "Enhancing image rescaling using dual latent variables in
invertible neural network" (DLV-IRN).
"""

from __future__ import annotations

from dataclasses import dataclass

from rescale.errors import UnknownModelError

SCALES: tuple[int, ...] = (2, 4)
"""HR pixels per LR pixel along one axis."""

LATENT_CHANNELS = 4
"""Channels of the latent code ``s`` of the -M variants (paper, section 2.2)."""

LATENT_STRIDE = 4
"""LR pixels per latent position along one axis: two max-pooling layers (paper, section 2.2)."""


@dataclass(frozen=True)
class Variant:
    """One network of the paper.

    Attributes:
        name: the identifier used in commands, manifests and files.
        title: the paper's name.
        alpha: the LR picture has a fourth channel that carries high frequencies (-A).
        latent: a quantised latent code travels in the LR file's metadata (-M).
        dlv: the flow is widened by the dual latent variable of DLV-IRN.
    """

    name: str
    title: str
    alpha: bool = False
    latent: bool = False
    dlv: bool = False

    @property
    def lr_channels(self) -> int:
        """Channels of the LR picture: 3, or 4 with the alpha channel."""
        return 4 if self.alpha else 3

    @property
    def auxiliary(self) -> str:
        """Where the high frequencies travel: ``"none"``, ``"alpha"`` or ``"latent"``."""
        return "alpha" if self.alpha else "latent" if self.latent else "none"


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("irn", "IRN"),
        Variant("irn_a", "IRN-A", alpha=True),
        Variant("irn_m", "IRN-M", latent=True),
        Variant("dlv_irn", "DLV-IRN", dlv=True),
        Variant("dlv_irn_a", "DLV-IRN-A", alpha=True, dlv=True),
        Variant("dlv_irn_m", "DLV-IRN-M", latent=True, dlv=True),
    )
}
"""All variants by name."""


def variant(name: str) -> Variant:
    """Look a variant up by name.

    Raises:
        UnknownModelError: no such variant; the message lists those that exist.
    """
    try:
        return VARIANTS[name]
    except KeyError:
        raise UnknownModelError(f"unknown model {name!r}: choose one of {', '.join(VARIANTS)}") from None


def check_scale(scale: int) -> int:
    """Return ``scale`` if a network exists for it.

    Raises:
        UnknownModelError: the scale is neither 2 nor 4.
    """
    if scale not in SCALES:
        raise UnknownModelError(f"unknown scale {scale!r}: choose one of {', '.join(map(str, SCALES))}")
    return scale
