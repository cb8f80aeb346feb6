"""What a network costs: multiply-accumulates by its layers alone, and of a training step."""

from __future__ import annotations

import statistics

from rescale_train.config import NetConfig, Recipe
from rescale_train.schedule import corrections_made


def dense_block_macs(c_in: int, c_out: int, growth: int) -> int:
    """Of one dense block at one position: five 3x3 convolutions."""
    return 9 * sum((c_in + k * growth) * (growth if k < 4 else c_out) for k in range(5))


def macs_per_lr_pixel(config: NetConfig) -> int:
    """Of one direction through all blocks, for each LR pixel.

    Haar, biases, activations, the -M autoencoder and the encoder's corrections are left out. The graphs need a little less
    where what feeds only z is left out (design: last G and H of a downscale graph).
    """
    total, channels, low = 0, 12 + config.dlv_channels, config.low_channels
    levels = len(config.blocks)
    for level, (count, growth) in enumerate(zip(config.blocks, config.growths, strict=True)):
        high = channels - low
        shift = dense_block_macs(low, 2 * high, growth)
        if not config.shared_trunk:
            shift = 2 * dense_block_macs(low, high, growth)
        block = dense_block_macs(high, low, growth) + shift
        total += count * block * 4 ** (levels - 1 - level)
        channels *= 4
    return total


def correction_macs(config: NetConfig) -> int:
    """Of one correction at an LR pixel: the way up, its adjoint, which costs as much, and the dense block."""
    c = config.variant.lr_channels
    return 2 * macs_per_lr_pixel(config) + dense_block_macs(2 * c, c, config.correction_growth)


def step_flop(recipe: Recipe, count: int, patch: int) -> int:
    """Floating-point operations of a training step.

    Both directions, forward and (twice as much) backward; of a frozen flow the way down forward, and the way up with its adjoint.
    The slopes that corrections see are not differentiated, their dense blocks are. Of nested corrections it is the mean step.
    """
    c = recipe.net
    pixels = count * (patch // c.scale) ** 2
    flow = macs_per_lr_pixel(c)
    passes = 3 if recipe.train.flow_frozen else 6
    made = statistics.fmean(corrections_made(recipe, step) for step in range(2 * max(1, c.corrections - 1)))
    corrections = made * (3 * correction_macs(c) - 4 * flow)
    return round(2 * (passes * flow + corrections) * pixels)
