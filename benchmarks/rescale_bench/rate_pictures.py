"""The pictures of a rate run, opened as `rescale down` opens them: a gray one is known as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rescale.picture import Array, Picture, open_picture
from rescale_bench.pictures import PictureSet, picture_sets, sample_set
from rescale_train.data import no_options_of_down


@dataclass(frozen=True)
class SourceSet:
    """A named list of pictures, each opened when it is needed."""

    name: str
    pictures: tuple[tuple[str, Callable[[], Picture]], ...]


def source_sets(folders: Sequence[Path], limit: int | None = None) -> list[SourceSet]:
    """A set of each folder, named after it; of no folder scikit-image's photographs.

    Raises:
        InputError: as `rescale_bench.pictures.picture_sets`.
    """
    if not folders:
        return [_sources(sample_set(limit))]
    return [_opened(found, folder) for found, folder in zip(picture_sets(folders, limit), folders, strict=True)]


def shown(found: SourceSet) -> PictureSet:
    """The same pictures as uint8 (H, W, 3)."""
    return PictureSet(found.name, tuple((name, _shower(load)) for name, load in found.pictures))


def _shower(load: Callable[[], Picture]) -> Callable[[], Array]:
    return lambda: load().shown()


def _sources(found: PictureSet) -> SourceSet:
    """Of pictures that are all RGB."""
    return SourceSet(found.name, tuple((name, _wrapper(load)) for name, load in found.pictures))


def _opened(found: PictureSet, folder: Path) -> SourceSet:
    # Names in a folder's set are paths below it.
    return SourceSet(found.name, tuple((name, _opener(folder / name)) for name, _ in found.pictures))


def _wrapper(load: Callable[[], Array]) -> Callable[[], Picture]:
    return lambda: Picture(load())


def _opener(path: Path) -> Callable[[], Picture]:
    def read() -> Picture:
        with no_options_of_down():
            return open_picture(path)

    return read
