"""Pictures for training: uint8 in memory, crops drawn by a generator that depends only on seed, step and rank."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rescale.console import warn
from rescale.decode import READABLE
from rescale.errors import InputError
from rescale.picture import open_picture
from rescale_train.bicubic import bicubic_batch
from rescale_train.config import Recipe
from rescale_train.content.mix import MixConfig
from rescale_train.content.pool import build_pool
from rescale_train.detail import HardPlaces

Picture = npt.NDArray[np.uint8]

MOST_NAMED = 10
"""Pictures of a folder that a message names one by one."""

TEST_PICTURES = {"a80e9a11541b6b93e21ef1d9b21e2434d3d2b729307a5ac86b1a02e066bc52b4": "302003 of BSDS500 is the woman of Set5"}
"""By `file_digest`, pictures of common training sets that test sets took over in another size, and which."""

MARGIN = 4
"""LR pixels around a crop that feed the bicubic kernel, so that the crop's border is not a picture border."""


def find_pictures(folders: Iterable[Path]) -> list[Path]:
    """All picture files below the folders, sorted by path. DIV2K as distributed is such a folder.

    Links to folders are not followed, which a warning tells.

    Raises:
        InputError: a folder does not exist, cannot be read, or holds no picture.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: not a folder; give a folder of pictures")
        here, links = _below(folder)
        if links:
            more = f", nor are {len(links) - 1} more" if len(links) > 1 else ""
            warn(f"{links[0]}: a link to a folder, which is not followed{more}; name where it leads as a folder of its own")
        if not here:
            raise InputError(f"{folder}: no picture found; wanted are {', '.join(READABLE)}")
        found += here
    return found


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Picture files and links to folders below a folder, each sorted."""

    def unreadable(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot read this folder: {error.strerror}") from None

    pictures, links = [], []
    for place, folders, names in os.walk(folder, onerror=unreadable):
        links += [path for name in folders if (path := Path(place, name)).is_symlink()]
        pictures += [path for name in names if (path := Path(place, name)).suffix.lower() in READABLE and path.is_file()]
    return sorted(pictures), sorted(links)


def load_picture(path: Path) -> Picture:
    """One picture as uint8 (H, W, 3), exactly what the file holds; colour profile and orientation are left aside.

    Raises:
        InputError: the file is not a readable picture, or of a kind that would have to be converted: more than 8 bits, CMYK,
            several frames, real transparency.
    """
    with no_options_of_down():
        found = open_picture(path, alpha="keep")
    if found.alpha is not None:
        raise InputError(f"{path}: has real transparency; flatten it first, or take it out of the folder")
    return found.pixels


def cut_to_multiple(picture: Picture, multiple: int) -> Picture:
    """The upper left part whose sides are multiples; empty where a side is smaller."""
    height, width = (n - n % multiple for n in picture.shape[:2])
    return picture[:height, :width]


@contextlib.contextmanager
def no_options_of_down() -> Iterator[None]:
    """Where a picture is refused with the advice to give `rescale down` an option, say what helps in a folder of pictures."""
    try:
        yield
    except InputError as e:
        if not e.advice:
            raise
        raise InputError(f"{e.reason}; convert it first, or take it out of the folder") from None


def load_all(paths: Iterable[Path], side: int | None = None, before: Sequence[str] = ()) -> list[Picture]:
    """`load_picture` of each. All are looked at before one is refused: what is wrong with a folder is told at once.

    Args:
        paths: of the pictures.
        before: why others of the same folders cannot be taken, to be told with these.
        side: of each only the upper left part of at most so many pixels a side is kept.

    Raises:
        InputError: some cannot be taken; the message names them, at most `MOST_NAMED`.
    """
    loaded: list[Picture] = []
    refused = list(before)
    for path in paths:
        try:
            picture = load_picture(path)
        except InputError as e:
            refused.append(str(e))
            loaded.clear()
            continue
        if not refused:
            # A copy: a part would hold its whole picture in memory.
            loaded.append(picture if side is None else picture[:side, :side].copy())
    refuse(refused)
    return loaded


def refuse(reasons: Sequence[str]) -> None:
    """Raise InputError of why pictures cannot be taken, a reason each, if there are any."""
    if reasons:
        more = f"; and {len(reasons) - MOST_NAMED} more pictures cannot be taken" if len(reasons) > MOST_NAMED else ""
        raise InputError("; also ".join(reasons[:MOST_NAMED]) + more)


def file_digest(path: Path) -> str:
    """SHA-256 of a picture's file: a checkpoint names by it what was kept from training, wherever the file lies.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise InputError(f"{path}: cannot read: {e.strerror}") from None


def by_content(paths: Iterable[Path]) -> dict[str, Path]:
    """Pictures by `file_digest`: one that is there twice, or is named in another way, must not be both held out and trained on.

    Raises:
        InputError: a file cannot be read.
    """
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(file_digest(path), path)
    return found


def training_pictures(folders: Iterable[Path], leave: Path | None = None) -> dict[str, Path]:
    """`by_content` of the pictures below folders, to train on or to hold out: without those of `TEST_PICTURES`, as a warning tells.

    Args:
        folders: where they lie.
        leave: a picture that is none of them, resolved.

    Raises:
        InputError: as `find_pictures` and `by_content`.
    """
    found = by_content(p for p in find_pictures(folders) if leave is None or p.resolve() != leave)
    for digest in TEST_PICTURES.keys() & found.keys():
        warn(f"{found.pop(digest)}: left out, since {TEST_PICTURES[digest]}, a picture to measure on")
    return found


def digests_digest(digests: Iterable[str]) -> str:
    """SHA-256 over the `file_digest` of pictures in their order, which decides what a sampler draws."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def pictures_digest(pictures: Iterable[Picture]) -> str:
    """SHA-256 over the pixels of pictures in their order, which decides what a sampler draws."""
    h = hashlib.sha256()
    for picture in pictures:
        h.update(f"{picture.shape}\n".encode())
        h.update(np.ascontiguousarray(picture).data)
    return h.hexdigest()


def least_side(scale: int) -> int:
    """Pixels that both sides of a picture must have for its PSNR to say something."""
    return 8 * scale


def load_held(paths: Iterable[Path], scale: int) -> dict[str, Picture]:
    """Pictures to validate on by path, each its upper left part of at most 512x512 pixels; those too small to measure are left out.

    Raises:
        InputError: as `load_all`.
    """
    paths = list(paths)
    cut = dict(zip(map(str, paths), load_all(paths, 512), strict=True))
    return {name: picture for name, picture in cut.items() if min(picture.shape[:2]) >= least_side(scale)}


def too_small(loaded: int, given: int, scale: int) -> str:
    """What to say of pictures that `load_held` left out."""
    return f"{given - loaded} of {given} pictures too small to validate on: a side below {least_side(scale)} pixels"


def load_measured(folder: Path, scale: int) -> list[Picture]:
    """All pictures below a folder, whole, to measure on.

    Raises:
        InputError: there is none, or one is not readable or too small to measure.
    """
    paths, refused = find_pictures([folder]), list[str]()
    pictures = dict(zip(paths, load_all(paths), strict=True))
    for path, picture in pictures.items():
        height, width = picture.shape[:2]
        if min(height, width) < least_side(scale):
            wanted = f"at least {least_side(scale)} pixels a side are wanted"
            refused.append(f"{path}: {width}x{height} is too small to measure; {wanted}")
    refuse(refused)
    return list(pictures.values())


def _area_shares(pictures: Sequence[Picture], power: float) -> npt.NDArray[np.float64]:
    area = np.array([p.shape[0] * p.shape[1] for p in pictures], dtype=np.float64) ** power
    shares: npt.NDArray[np.float64] = area / area.sum()
    return shares


@dataclass(frozen=True)
class Sampling:
    """How a run draws its crops; attributes as of `CropSampler`."""

    scale: int
    seed: int
    mix: MixConfig
    hard: float
    area_power: float

    @classmethod
    def of(cls, recipe: Recipe) -> Sampling:
        """What a recipe asks for."""
        t = recipe.train
        return cls(recipe.net.scale, t.seed, t.mix, t.hard_crops, t.area_power)

    def sampler(self, pictures: Sequence[Picture], device: torch.device) -> CropSampler:
        """A sampler that draws so."""
        return CropSampler(pictures, self.scale, self.seed, device, self.mix, self.hard, self.area_power)


class CropSampler:
    """Random crops of pictures held in memory, with flips and transposition.

    A picture is drawn in proportion to a power of its area: with 1 every pixel is equally likely, with 0 every picture; with a
    mix, each of its kinds has its share of the crops, and area decides within a kind. Within a picture every place is equally
    likely, but for the share `hard` of the density, which follows detail. The batch of a step depends only on (seed, step,
    rank): a resumed run sees what an unbroken one sees.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        scale: int,
        seed: int,
        device: torch.device,
        mix: MixConfig | None = None,
        hard: float = 0.0,
        area_power: float = 1.0,
    ) -> None:
        if not pictures:
            raise InputError("no training pictures")
        self.scale, self.seed, self.device = scale, seed, device
        mix = mix or MixConfig()
        shares = mix.shares()
        groups = [(max(0.0, 1.0 - sum(shares.values())), pictures)]
        groups += [(shares[kind], made) for kind, made in build_pool(mix, pictures, seed).items()]
        self.places = [HardPlaces(p, scale, hard) for _, group in groups for p in group] if hard else []
        self.pictures = [torch.from_numpy(np.require(p, requirements=["C", "W"])).to(device) for _, group in groups for p in group]
        self.share = np.concatenate([share * _area_shares(group, area_power) for share, group in groups])

    def batch(self, step: int, rank: int, count: int, patch: int) -> tuple[Tensor, Tensor]:
        """Crops and their bicubic reductions.

        Returns:
            hr: (count, 3, patch, patch) in [0, 1]; lr: (count, 3, patch/scale, patch/scale), neither rounded nor clamped.
        """
        rng = np.random.default_rng((self.seed, step, rank))
        margin = MARGIN * self.scale
        side = patch + 2 * margin
        chosen = rng.choice(len(self.pictures), size=count, p=self.share)
        crops = []
        for index in chosen:
            picture = self.pictures[index]
            height, width = picture.shape[:2]
            last_row, last_col = max(height - side, 0), max(width - side, 0)
            if self.places:
                top, left = self.places[index].draw(rng, margin, patch, last_row, last_col)
            else:
                top, left = int(rng.integers(0, last_row + 1)), int(rng.integers(0, last_col + 1))
            rows, cols = self._indices(top, side, height), self._indices(left, side, width)
            if side <= height and side <= width:
                crop = picture[rows[0] : rows[0] + side, cols[0] : cols[0] + side]
            else:
                crop = picture[torch.from_numpy(rows).to(self.device)][:, torch.from_numpy(cols).to(self.device)]
            flip_y, flip_x, swap = rng.integers(0, 2, size=3)
            if flip_y:
                crop = crop.flip(0)
            if flip_x:
                crop = crop.flip(1)
            if swap:
                crop = crop.transpose(0, 1)
            crops.append(crop)
        wide = torch.stack(crops).permute(0, 3, 1, 2).float().div(255.0)
        lr = bicubic_batch(wide, self.scale)[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
        hr = wide[:, :, margin:-margin, margin:-margin]
        return hr.contiguous(memory_format=torch.channels_last), lr.contiguous()

    @staticmethod
    def _indices(start: int, count: int, size: int) -> npt.NDArray[np.int64]:
        """`count` indices from `start`, mirrored at the border of an axis that is too short."""
        if size == 1:
            return np.zeros(count, dtype=np.int64)
        period = 2 * (size - 1)
        index = np.mod(start + np.arange(count), period)
        return np.where(index < size, index, period - index)
