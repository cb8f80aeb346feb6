"""Larger networks that start as smaller trained ones: more blocks, wider dense blocks, separate G and H, a dual latent
variable, an autoencoder, corrections of the encoder, x4 for x2. Corrections and an autoencoder can be left out too: the flow does
without them, and restores from z-hat = 0 what a file that lost its latent code gives.

The grown network computes what the small one computes. New filters are fresh but feed nothing yet, new blocks are the
identity, new corrections change nothing, the autoencoder decodes to z-hat = 0 unless ``ae_zero_init`` is false; all of them
receive gradients from the first step on. A plain x2 network becomes an x4 one that applies it twice, without 8 bits in between.
The one step down is a dual latent variable left out: what it carried between blocks is lost, and the result only a near start.
"""

from __future__ import annotations

from collections.abc import Set

import torch

from rescale.errors import ConfigError
from rescale_train.config import NetConfig
from rescale_train.models import DenseBlock, InvBlock, RescalingNet, build


def obstacle(small: NetConfig, large: NetConfig) -> str:
    """Why a network of `small` cannot grow into one of `large`; empty if it can."""
    twice = small.scale < large.scale
    if small.scale > large.scale:
        return f"it is x{small.scale}, not x{large.scale}"
    if twice and (small.variant.alpha or small.variant.latent or small.dlv_channels):
        return f"it is x{small.scale}; only a plain irn x{small.scale} can be applied twice for x{large.scale}, not {small.model}"
    if small.variant.alpha != large.variant.alpha:
        return f"{small.model} and {large.model} differ in alpha, which changes what the blocks' channels mean"
    same_latent = all(getattr(small, n) == getattr(large, n) for n in ("dlv_channels", "ae_layers", "latent_gain"))
    if small.variant.latent and large.variant.latent and not same_latent:
        return "an autoencoder cannot be grown; start from the network without one"
    for name in ("alpha_split", "alpha_mean", "alpha_gain", "alpha_basis") if small.variant.alpha else ():
        if getattr(small, name) != getattr(large, name):
            return f"net.{name} is {getattr(small, name)}, not {getattr(large, name)}"
    blocks = small.blocks * 2 if twice else small.blocks
    if any(a > b for a, b in zip(blocks, large.blocks, strict=True)):
        return f"it has {blocks} blocks, more than {large.blocks}"
    growths = (*small.growths, *small.growths) if twice else small.growths
    for level, (a, b) in enumerate(zip(growths, large.growths, strict=True)):
        if blocks[level] and a > b:
            return f"its growth is {a}, more than {b}"
    if small.dlv_channels > large.dlv_channels > 0:
        return f"its dual latent variable has {small.dlv_channels} channels, more than {large.dlv_channels}"
    if large.shared_trunk and not small.shared_trunk:
        return "its G and H are separate"
    if small.corrections and large.corrections and (twice or small.correction_growth != large.correction_growth):
        return f"its corrections are of x{small.scale} and growth {small.correction_growth}"
    if small.corrections > large.corrections > 0:
        return f"it has {small.corrections} corrections, more than {large.corrections}"
    return ""


def grow(source: RescalingNet, config: NetConfig) -> RescalingNet:
    """A network of `config` that computes what `source` does (nearly, if `config` has no dual latent variable and `source` has).

    Args:
        source: trained network.
        config: equal to the source's, or larger in blocks, growth, ``dlv_channels``, ``shared_trunk`` (false for true), from x2
            to x4 (plain ``irn`` only), by corrections, or by an autoencoder, which is fresh; or without its dual latent variable,
            without its autoencoder, or without all of its corrections: then the grown network's encoder does what the source's
            does without them.

    Returns:
        The grown network; what is fresh in it comes from torch's global generator.

    Raises:
        ConfigError: it is not larger, or in another way different; the message says which.
    """
    small = source.config
    if reason := obstacle(small, config):
        raise ConfigError(f"the network to start from does not grow into the recipe's: {reason}")
    net = build(config)
    twice = small.scale < config.scale
    low, old_width, width = small.low_channels, 12 + small.dlv_channels, 12 + config.dlv_channels
    # Where each channel of the source is in the grown network, by its number.
    channels = {c: c for c in range(min(old_width, width))}
    silent = set(range(old_width, width))
    with torch.no_grad():
        for level, (_, new_blocks) in enumerate(net.stages()):
            old_blocks = source.stages()[0 if twice else level][1]
            if level:
                # Haar order is sub-band-major: each band holds all channels of the level before.
                if twice:
                    channels = {band * low + c: band * width + c for band in range(4) for c in range(low)}
                else:
                    channels = {band * old_width + a: band * width + b for band in range(4) for a, b in channels.items()}
                    old_width *= 4
                silent = {band * width + c for band in range(4) for c in silent}
                width *= 4
            high = {a - low: b - low for a, b in channels.items() if a >= low}
            for old, new in zip(old_blocks, new_blocks[: len(old_blocks)], strict=True):
                _grow_block(old, new, high, {c - low for c in silent}, width - low)
        for trained, fresh in zip(source.corrections, net.corrections, strict=False):
            fresh.load_state_dict(trained.state_dict())
        if source.autoencoder is not None and net.autoencoder is not None:
            net.autoencoder.load_state_dict(source.autoencoder.state_dict())
    return net


def _grow_block(old: InvBlock, new: InvBlock, high: dict[int, int], silent: Set[int], width: int) -> None:
    """Copy one coupling block; `high` tells where each channel of its upper branch is among the `width` of the new one."""
    every = {c: c for c in range(old.low)}
    _grow_dense(old.F, new.F, high, every, silent)
    scale = {old.high + a: b for a, b in high.items()}
    if old.shared_trunk and new.shared_trunk:
        _grow_dense(old.GH, new.GH, every, high | {a: width + b for a, b in scale.items()})
    elif old.shared_trunk:
        # Each half of the shared network's output with a copy of its trunk.
        _grow_dense(old.GH, new.G, every, high)
        _grow_dense(old.GH, new.H, every, scale)
    else:
        _grow_dense(old.G, new.G, every, high)
        _grow_dense(old.H, new.H, every, high)


def _grow_dense(
    old: DenseBlock, new: DenseBlock, inputs: dict[int, int], outputs: dict[int, int], silent: Set[int] = frozenset()
) -> None:
    """Copy a dense block.

    Args:
        old: source.
        new: freshly initialised.
        inputs: where each copied input channel is in the new block.
        outputs: where each copied output channel is in the new block.
        silent: new input channels that hold zeros at the start. Their columns stay fresh: with zeros on both sides of them no
            gradient would ever reach them.
    """
    old_growth, new_growth = old.convs[0].out_channels, new.convs[0].out_channels
    old_in, new_in = old.convs[0].in_channels, new.convs[0].in_channels
    for k, (a, b) in enumerate(zip(old.convs, new.convs, strict=True)):
        rows = outputs if k == 4 else {i: i for i in range(old_growth)}
        grown = {old_in + j * old_growth + i: new_in + j * new_growth + i for j in range(k) for i in range(old_growth)}
        columns = inputs | grown
        old_rows, new_rows = torch.tensor(list(rows)), torch.tensor(list(rows.values()))
        weight = torch.zeros_like(b.weight[new_rows])
        weight[:, sorted(silent)] = b.weight[new_rows][:, sorted(silent)]
        weight[:, list(columns.values())] = a.weight[old_rows][:, list(columns)]
        b.weight[new_rows] = weight
        if a.bias is not None and b.bias is not None:
            b.bias[new_rows] = a.bias[old_rows]
