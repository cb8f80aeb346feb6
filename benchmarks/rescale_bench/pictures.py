"""Sets of HR pictures to measure on: the user's folders, or the photographs that scikit-image ships."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rescale.errors import InputError
from rescale.picture import read_picture
from rescale_train.data import cut_to_multiple, find_pictures, no_options_of_down, refuse

Picture = npt.NDArray[np.uint8]

SAMPLE_FILES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
"""Photographs inside the scikit-image wheel; no download."""


@dataclass(frozen=True)
class PictureSet:
    """A named list of pictures, each loaded when it is needed."""

    name: str
    pictures: tuple[tuple[str, Callable[[], Picture]], ...]


def sample_set(limit: int | None = None) -> PictureSet:
    """The photographs that scikit-image ships, the first `limit` of them."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    missing = [f for f in SAMPLE_FILES if not (folder / f).is_file()]
    if missing:
        raise InputError(f"{folder}: {missing[0]} is not in this scikit-image; measure a folder of your own with --data")
    return PictureSet("scikit-image", tuple((f, _reader(folder / f)) for f in SAMPLE_FILES[:limit]))


def sample(name: str) -> Picture:
    """One of `SAMPLE_FILES`."""
    return dict(sample_set().pictures)[name]()


def folder_set(folder: Path, limit: int | None = None) -> PictureSet:
    """All pictures below a folder, named after it.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    paths = find_pictures([folder])[:limit]
    return PictureSet(os.path.basename(os.path.abspath(folder)), tuple((str(p.relative_to(folder)), _reader(p)) for p in paths))


def picture_sets(folders: Sequence[Path], limit: int | None = None) -> list[PictureSet]:
    """A `folder_set` of each folder.

    Raises:
        InputError: as `folder_set`, or two would have one name, by which reports tell sets apart.
    """
    found = [folder_set(folder, limit) for folder in folders]
    names = [each.name for each in found]
    for name, folder in zip(names, folders, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{folder}: two sets would be called {name!r} after their folders; rename one, or link to it")
    return found


def look_at(sets: Iterable[PictureSet], scale: int = 1, told: Callable[[str], object] = lambda name: None) -> None:
    """Read all pictures once: what cannot be measured is told before hours of measuring, not after them.

    Args:
        sets: of pictures.
        scale: largest one that they are measured at.
        told: called with each picture's name before it is read.

    Raises:
        InputError: some cannot be read or are smaller than the scale; the message names them.
    """
    refused = []
    for pictures in sets:
        for name, load in pictures.pictures:
            told(name)
            try:
                crop_to_multiple(load(), scale, f"{pictures.name}/{name}")
            except InputError as e:
                refused.append(str(e))
    refuse(refused)


def crop_to_multiple(picture: Picture, multiple: int, name: str) -> Picture:
    """Cut at the bottom and right so that both sides are multiples; the field's protocol for HR.

    Raises:
        InputError: a side is smaller; the message names the picture.
    """
    cut = cut_to_multiple(picture, multiple)
    if not cut.size:
        raise InputError(f"{name}: {picture.shape[1]}x{picture.shape[0]} is smaller than the scale {multiple}; take it out")
    return cut


def _reader(path: Path) -> Callable[[], Picture]:
    def read() -> Picture:
        with no_options_of_down():
            return read_picture(path)

    return read
