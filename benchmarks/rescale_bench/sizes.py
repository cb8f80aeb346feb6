"""Sizes of pictures on a command line."""

from __future__ import annotations

import re

from rescale.errors import ConfigError
from rescale.image import MAX_SIDE

Size = tuple[int, int]
"""(height, width) in pixels."""


def parse_size(text: str, option: str = "--size") -> Size:
    """(height, width) of ``WIDTHxHEIGHT``.

    Raises:
        ConfigError: not such a text, or a side out of range.
    """
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    sides = [int(n) for n in match.groups()] if match else []
    if not sides or not all(1 <= n <= MAX_SIDE for n in sides):
        raise ConfigError(f"{option} {text}: wanted is WIDTHxHEIGHT, such as 640x480, with sides of 1 to {MAX_SIDE}")
    return sides[1], sides[0]
