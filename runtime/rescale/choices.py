"""Words that options take. Imports nothing of ours, so that a command's help stays fast."""

from __future__ import annotations

from enum import StrEnum


class Layout(StrEnum):
    """Where -A's fourth plane goes: the alpha channel, a section of the metadata, or rows below the picture."""

    ALPHA = "alpha"
    CHUNK = "chunk"
    STRIP = "strip"


class Carrier(StrEnum):
    """How the integrity block travels, see `rescale.carrier`."""

    CHUNK = "chunk"
    TEXT = "text"
    SIDECAR = "sidecar"


class Container(StrEnum):
    """Lossless file formats of LR pictures."""

    PNG = "png"
    WEBP = "webp"
    JXL = "jxl"


class AlphaRule(StrEnum):
    """What to do with real transparency: refuse the picture, or keep the alpha plane losslessly beside the LR."""

    REFUSE = "refuse"
    KEEP = "keep"
