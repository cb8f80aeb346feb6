"""Optimisation profiles: the picture sizes that an engine is built for.

Checked here before TensorRT sees them: it accepts sizes below a graph's bound, answers a bad order with -1 instead of an
error, finds out about memory when an engine runs, and names none of our axes. Several profiles are several engine files, of
which the smallest that fits is chosen: three profiles in one engine make it twice as large and three times as slow to build.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rescale.bundle import Graph
from rescale.contract import Tensor
from rescale.errors import ConfigError
from rescale.variants import LATENT_STRIDE

MAX_HR_SIDE = 32768


@dataclass(frozen=True)
class Size:
    """Pictures per run and HR pixels: batch, height, width."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Profile:
    """Smallest, best and largest HR size of an engine.

    Raises:
        ConfigError: a side is out of range, the order is wrong, or a side is not a multiple of the scale.
    """

    scale: int
    smallest: Size
    best: Size
    largest: Size

    def __post_init__(self) -> None:
        for axis in ("batch", "height", "width"):
            values = [getattr(size, axis) for size in (self.smallest, self.best, self.largest)]
            if values != sorted(values):
                raise ConfigError(f"profile: {axis} must not decrease from smallest to largest, got {values}")
            step, bound = (1, 1024) if axis == "batch" else (self.scale, MAX_HR_SIDE)
            for value in values:
                if not step <= value <= bound or value % step:
                    raise ConfigError(f"profile: {axis} {value} is not a multiple of {step} from {step} to {bound}")

    def __str__(self) -> str:
        return "-".join(map(str, (self.smallest, self.best, self.largest)))

    def memory(self, graph: Graph) -> int:
        """Bytes of a graph's live tensors at the largest size, an upper estimate: TensorRT fuses layers."""
        size = self.largest
        return graph.memory * size.batch * (size.height // self.scale) * (size.width // self.scale)

    def require_memory(self, graph: Graph, limit: int) -> None:
        """Raises ConfigError if a graph needs more than `limit` bytes at the largest size."""
        need = self.memory(graph)
        if need > limit:
            message = f"{graph.file} needs about {(need >> 20) + 1:,} MB at {self.largest}, allowed are {limit >> 20:,} MB"
            raise ConfigError(f"profile: {message}: choose a smaller largest size, or a larger --max-memory")

    def shapes(self, tensor: Tensor, graph: str = "") -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(smallest, best, largest) shape of an input of a graph.

        Raises:
            ConfigError: an axis name that the contract does not have.
        """
        # The encoder's z comes padded; all other LR sizes are those of the picture.
        multiple = LATENT_STRIDE if graph == "encoder" else 1
        smallest, best, largest = (self._shape(tensor, size, multiple) for size in (self.smallest, self.best, self.largest))
        return smallest, best, largest

    def _shape(self, tensor: Tensor, size: Size, multiple: int) -> tuple[int, ...]:
        h, w = size.height // self.scale, size.width // self.scale
        known = {
            "batch": size.batch,
            "height": size.height,
            "width": size.width,
            "lr_height": -(-h // multiple) * multiple,
            "lr_width": -(-w // multiple) * multiple,
            "latent_height": -(-h // LATENT_STRIDE),
            "latent_width": -(-w // LATENT_STRIDE),
        }
        try:
            return tuple(axis if isinstance(axis, int) else known[axis] for axis in tensor.axes)
        except KeyError as e:
            raise ConfigError(f"profile: input {tensor.name} has an unknown axis {e}") from None


CLASSES = {
    "tile": (Size(4, 512, 512), Size(8, 768, 768)),
    "hd": (Size(1, 720, 1280), Size(1, 1088, 1920)),
    "uhd": (Size(1, 2160, 3840), Size(1, 2176, 3840)),
}
"""Best and largest size of the profiles that have a name; all begin with the smallest picture there is."""


def parse_profile(text: str, scale: int) -> Profile:
    """A profile from text.

    Args:
        text: one of `CLASSES`, ``MIN:OPT:MAX`` or one size for all three; each ``HxW`` or ``BATCHxHxW`` in HR pixels.
        scale: of the bundle.

    Raises:
        ConfigError: not such a text, or a profile that is not allowed.
    """
    if text in CLASSES:
        return Profile(scale, Size(1, scale, scale), *CLASSES[text])
    sizes = [_size(part, text) for part in text.split(":")]
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3:
        raise ConfigError(f"profile {text!r}: {len(sizes)} sizes; wanted is MIN:OPT:MAX, one size, or {', '.join(CLASSES)}")
    return Profile(scale, *sizes)


def _size(part: str, text: str) -> Size:
    match = re.fullmatch(r"(?:(\d{1,5})x)?(\d{1,6})x(\d{1,6})", part)
    if match is None:
        raise ConfigError(f"profile {text!r}: {part!r} is not HxW or BATCHxHxW, nor is it one of {', '.join(CLASSES)}")
    return Size(int(match.group(1) or 1), int(match.group(2)), int(match.group(3)))
