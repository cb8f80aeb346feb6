"""How much of what is mixed into training: the recipe's table ``[train.mix]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rescale.errors import ConfigError


@dataclass(frozen=True)
class MixConfig:
    """Share of the crops that come from each kind of picture beside the photographs, which have the rest.

    Attributes:
        text: pages of text and code listings.
        screen: windows, buttons, icons, menus.
        chart: tables and diagrams.
        drawing: flat drawings and line art.
        pattern: gradients, chequers, 1-pixel patterns, zone plates, noise.
        colour: gamut corners, flat colours, very dark and very bright ones.
        jpeg: training photographs, compressed.
        shrunk: training photographs, reduced.
        sharpened: training photographs, sharpened.
        exposed: training photographs, far too dark, too bright or too colourful.
        pool: pictures that are made for all kinds together and kept in memory, each of at most 0.45 MB.
    """

    KINDS: ClassVar[tuple[str, ...]] = (
        "text",
        "screen",
        "chart",
        "drawing",
        "pattern",
        "colour",
        "jpeg",
        "shrunk",
        "sharpened",
        "exposed",
    )

    text: float = 0.0
    screen: float = 0.0
    chart: float = 0.0
    drawing: float = 0.0
    pattern: float = 0.0
    colour: float = 0.0
    jpeg: float = 0.0
    shrunk: float = 0.0
    sharpened: float = 0.0
    exposed: float = 0.0
    pool: int = 512

    def __post_init__(self) -> None:
        for name in self.KINDS:
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"train.mix.{name}: 0 to 1, got {value}")
        total = sum(self.shares().values())
        if not total <= 1.0 + 1e-9:
            raise ConfigError(f"train.mix: the shares sum to at most 1, got {total:.6g}")
        if not 1 <= self.pool <= 100_000:
            raise ConfigError(f"train.mix.pool: 1 to 100000, got {self.pool}")

    def shares(self) -> dict[str, float]:
        """The kinds that have a share, in fixed order."""
        return {k: getattr(self, k) for k in self.KINDS if getattr(self, k) > 0.0}
