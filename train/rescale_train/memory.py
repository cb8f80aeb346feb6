"""What is said where a step finds no memory: PyTorch raises no class of its own for that on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from rescale.errors import RescaleError


@contextlib.contextmanager
def memory_told(crops: int, side: int, device: torch.device) -> Iterator[None]:
    """Steps of so many crops of so many pixels a side.

    Raises:
        RescaleError: there is no memory for one.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        # A recorded step that finds none says so in CUDA's words.
        told = isinstance(e, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(e) or "out of memory" in str(e)
        if not told:
            raise
        raise RescaleError(
            f"out of memory on {device} with {crops} crops of {side} px a step; give --set train.batch=... or train.patch=... less "
            "(train.final_batch and train.final_patch at the end of a run)"
        ) from None
