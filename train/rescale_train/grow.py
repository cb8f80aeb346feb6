"""Larger networks that start as smaller trained ones: more blocks, wider dense blocks, separate G and H, a dual latent
variable, an autoencoder.

The grown network computes what the small one computes. New filters are fresh but feed nothing yet, new blocks are the
identity, the autoencoder decodes to z-hat = 0; all of them receive gradients from the first step on.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rescale.errors import ConfigError
from rescale_train.config import NetConfig
from rescale_train.models import DenseBlock, InvBlock, RescalingNet, build


def obstacle(small: NetConfig, large: NetConfig) -> str:
    """Why a network of `small` cannot grow into one of `large`; empty if it can."""
    if small.scale != large.scale:
        return f"it is x{small.scale}, not x{large.scale}"
    if small.variant.alpha != large.variant.alpha:
        return f"{small.model} and {large.model} differ in alpha, which changes what the blocks' channels mean"
    if small.variant.latent and not large.variant.latent:
        return f"{large.model} has no autoencoder"
    if small.variant.latent and (small.dlv_channels, small.ae_layers) != (large.dlv_channels, large.ae_layers):
        return "an autoencoder cannot be grown"
    for name in ("alpha_split", "alpha_mean", "alpha_gain", "alpha_basis") if small.variant.alpha else ():
        if getattr(small, name) != getattr(large, name):
            return f"net.{name} is {getattr(small, name)}, not {getattr(large, name)}"
    if any(a > b for a, b in zip(small.blocks, large.blocks, strict=True)):
        return f"it has {small.blocks} blocks, more than {large.blocks}"
    if small.growth > large.growth:
        return f"its growth is {small.growth}, more than {large.growth}"
    if small.dlv_channels > large.dlv_channels:
        return f"its dual latent variable has {small.dlv_channels} channels, more than {large.dlv_channels}"
    if large.shared_trunk and not small.shared_trunk:
        return "its G and H are separate"
    return ""


def grow(source: RescalingNet, config: NetConfig) -> RescalingNet:
    """A network of `config` that computes what `source` does.

    Args:
        source: trained network.
        config: equal to the source's, or larger in blocks, growth, ``dlv_channels``, ``shared_trunk`` (false for true) or by an
            autoencoder, which must start at zero.

    Raises:
        ConfigError: it is not larger, or in another way different; the message says which.
    """
    small = source.config
    if reason := obstacle(small, config):
        raise ConfigError(f"the network to start from does not grow into the recipe's: {reason}")
    fresh_autoencoder = config.variant.latent and source.autoencoder is None
    net = build(replace(config, ae_zero_init=True) if fresh_autoencoder else config)
    net.config = config
    channels = list(range(12 + small.dlv_channels))
    width = 12 + config.dlv_channels
    low = small.low_channels
    with torch.no_grad():
        for level, (old_blocks, new_blocks) in enumerate(zip(source.stages(), net.stages(), strict=True)):
            if level:
                # Haar order is sub-band-major: each band holds all channels of the level before.
                channels = [band * width + c for band in range(4) for c in channels]
                width *= 4
            high = [c - low for c in channels[low:]]
            for old, new in zip(old_blocks[1], new_blocks[1][: len(old_blocks[1])], strict=True):
                _grow_block(old, new, high, width - low)
        if source.autoencoder is not None and net.autoencoder is not None:
            net.autoencoder.load_state_dict(source.autoencoder.state_dict())
    return net


def _grow_block(old: InvBlock, new: InvBlock, high: list[int], width: int) -> None:
    """Copy one coupling block; `high` tells where each channel of its upper branch is among the `width` of the new one."""
    every = list(range(old.low))
    _grow_dense(old.F, new.F, high, every)
    if old.shared_trunk and new.shared_trunk:
        _grow_dense(old.GH, new.GH, every, [*high, *(width + c for c in high)])
    elif old.shared_trunk:
        # Each half of the shared network's output with a copy of its trunk.
        _grow_dense(old.GH, new.G, every, high, range(old.high))
        _grow_dense(old.GH, new.H, every, high, range(old.high, 2 * old.high))
    else:
        _grow_dense(old.G, new.G, every, high)
        _grow_dense(old.H, new.H, every, high)


def _grow_dense(old: DenseBlock, new: DenseBlock, inputs: list[int], outputs: list[int], taken: range | None = None) -> None:
    """Copy a dense block.

    Args:
        old: source.
        new: freshly initialised.
        inputs: position of each input channel in the new block.
        outputs: position of each copied output channel in the new block.
        taken: which outputs of the source are copied; None for all.
    """
    old_growth, new_growth, new_in = old.convs[0].out_channels, new.convs[0].out_channels, new.convs[0].in_channels
    # Input channels that the source does not have hold zeros. Their columns stay as they are: with zeros on both sides of
    # them no gradient would ever reach them.
    unknown = sorted(set(range(new_in)) - set(inputs))
    for k, (a, b) in enumerate(zip(old.convs, new.convs, strict=True)):
        part = slice(None) if taken is None or k < 4 else slice(taken.start, taken.stop)
        rows = torch.tensor(outputs if k == 4 else list(range(old_growth)))
        columns = [*inputs, *(new_in + j * new_growth + i for j in range(k) for i in range(old_growth))]
        weight = torch.zeros_like(b.weight[rows])
        weight[:, unknown] = b.weight[rows][:, unknown]
        weight[:, columns] = a.weight[part]
        b.weight[rows] = weight
        if a.bias is not None and b.bias is not None:
            b.bias[rows] = a.bias[part]
