"""Optimisation profiles: the picture sizes that an engine is built for.

Checked here before TensorRT sees them: it accepts sizes below a graph's bound, answers a bad order with -1 instead of an
error, and names none of our axes.
"""

from __future__ import annotations

from dataclasses import dataclass

from rescale.bundle import Tensor
from rescale.errors import ConfigError
from rescale.variants import LATENT_STRIDE

MAX_HR_SIDE = 32768


@dataclass(frozen=True)
class Size:
    """Pictures per run and HR pixels: batch, height, width."""

    batch: int
    height: int
    width: int


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

    def shapes(self, tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(smallest, best, largest) shape of a graph's input.

        Raises:
            ConfigError: an axis name that the contract does not have.
        """
        return self._shape(tensor, self.smallest), self._shape(tensor, self.best), self._shape(tensor, self.largest)

    def _shape(self, tensor: Tensor, size: Size) -> tuple[int, ...]:
        h, w = size.height // self.scale, size.width // self.scale
        known = {
            "batch": size.batch,
            "height": size.height,
            "width": size.width,
            "lr_height": h,
            "lr_width": w,
            "latent_height": -(-h // LATENT_STRIDE),
            "latent_width": -(-w // LATENT_STRIDE),
        }
        try:
            return tuple(axis if isinstance(axis, int) else known[axis] for axis in tensor.axes)
        except KeyError as e:
            raise ConfigError(f"profile: input {tensor.name} has an unknown axis {e}") from None
