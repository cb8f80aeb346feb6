"""What changes in the course of a run: learning rate, crops, arithmetic."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from rescale_train.config import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine from the peak to its end value at the last step."""
    t = recipe.train
    if step < t.warmup:
        return t.lr_peak * (step + 1) / t.warmup
    done = (step - t.warmup) / max(1, t.steps - t.warmup)
    return t.lr_peak * (t.lr_end + (1.0 - t.lr_end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


def crop_plan(recipe: Recipe, step: int) -> tuple[int, int]:
    """Crops and HR crop side of a step."""
    t = recipe.train
    final = step >= round(t.steps * (1.0 - t.final_fraction))
    return (t.final_batch, t.final_patch) if final else (t.batch, t.patch)


def corrections_made(recipe: Recipe, step: int) -> int:
    """How many of the encoder's corrections a step makes: all, but nested ones in every second step the first 1, 2, ... in turn."""
    count = recipe.net.corrections
    if not recipe.train.nested or count < 2 or step % 2 == 0:
        return count
    return 1 + step // 2 % (count - 1)


def arithmetic(recipe: Recipe, step: int) -> str:
    """What the convolutions of the dense blocks compute in at a step, of `config.SUBNET_DTYPES`."""
    t = recipe.train
    return "float32" if step >= round(t.steps * (1.0 - t.float32_fraction)) else t.subnet_dtype


@contextlib.contextmanager
def subnet_arithmetic(recipe: Recipe, step: int, device: torch.device) -> Iterator[None]:
    """`arithmetic` of a step while the block runs; everything else stays float32 by construction of the network, but for what tf32
    does to the convolutions of the block transforms: PyTorch asks once for all, and again in the backward pass."""
    name = arithmetic(recipe, step)
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    # Crops have the same one or two shapes all along: worth trying which kernels are fastest for them.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        yield
