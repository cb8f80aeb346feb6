"""A size that the LR shall have, by ordinary resizing of the source first: a network's scale is fixed.

Lanczos, which keeps most of what the smaller size can hold, for the resized picture is the one that comes back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rescale.errors import InputError
from rescale.image import MAX_SIDE
from rescale.picture import Picture

FILTER = "Lanczos"


@dataclass(frozen=True)
class Target:
    """Size of an LR picture; a side that is None follows from the source's shape."""

    width: int | None
    height: int | None

    def __str__(self) -> str:
        return f"{self.width or ''}x{self.height or ''}"

    def fits(self, lr_size: tuple[int, int]) -> bool:
        """Whether an LR of (width, height) has this size."""
        return self.width in (None, lr_size[0]) and self.height in (None, lr_size[1])


def parse_target(text: str) -> Target:
    """``640x360``, or with one side ``640x`` or ``x360``.

    Raises:
        InputError: not such a text.
    """
    match = re.fullmatch(r"([0-9]{0,5})[xX]([0-9]{0,5})", text)
    sides = [int(side) if side else None for side in match.groups()] if match else [0, 0]
    given = [side for side in sides if side is not None]
    if not given or not all(1 <= side <= MAX_SIDE for side in given):
        shown = text if len(text) < 40 else text[:40] + "..."
        raise InputError(f"size {shown!r}: WIDTHxHEIGHT of the LR is wanted, or one of them: 640x360, 640x or x360")
    return Target(*sides)


def hr_size(source: tuple[int, int], target: Target, scale: int, name: str) -> tuple[int, int]:
    """(width, height) to which a source of (width, height) is resized, so that its LR has the target's size.

    Raises:
        InputError: it would be enlarged, or squeezed by more than a pixel of the LR.
    """
    width, height = source
    if target.fits((-(-width // scale), -(-height // scale))):
        return source
    wanted = [None if side is None else side * scale for side in (target.width, target.height)]
    new_width = wanted[0] or max(1, round(width * (wanted[1] or 0) / height))
    new_height = wanted[1] or max(1, round(height * (wanted[0] or 0) / width))
    if new_width > width or new_height > height:
        needed = f"needs {new_width}x{new_height} at x{scale}"
        raise InputError(f"{name}: {width}x{height}, and --target {target} {needed}: nothing is enlarged; choose a smaller one")
    if target.width and target.height and abs(target.width * height - target.height * width) >= max(width, height):
        cure = f"--target {target.width}x or x{target.height} keeps its shape; or crop it first"
        raise InputError(f"{name}: {width}x{height} would be squeezed by --target {target}; {cure}")
    return new_width, new_height


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture in another size; what it carries beside its pixels stays."""
    if size == picture.size:
        return picture
    if picture.alpha is None:
        return replace(picture, pixels=np.array(Image.fromarray(picture.pixels).resize(size, Image.Resampling.LANCZOS)))
    # Pillow weighs colours by their alpha, so that none comes out of what is invisible.
    rgba = np.array(Image.fromarray(np.dstack([picture.pixels, picture.alpha])).resize(size, Image.Resampling.LANCZOS))
    return replace(picture, pixels=np.ascontiguousarray(rgba[:, :, :3]), alpha=np.ascontiguousarray(rgba[:, :, 3]))
