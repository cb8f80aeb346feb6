"""The -M autoencoder before the run: pre-trained on random latents."""

from __future__ import annotations

import math

import torch
from torch import nn

from rescale_train.config import Recipe
from rescale_train.models import RescalingNet


def pretrain_autoencoder(net: RescalingNet, recipe: Recipe, device: torch.device) -> float:
    """Pre-train the -M autoencoder by MSE on standalone random z (paper, section 3.1, AE_p), which its layers see as N(0, 1).

    Returns:
        The last mean squared error relative to z's; that of a decoder which outputs 0 is 1.
    """
    ae = net.autoencoder
    if ae is None:
        raise ValueError(f"{net.config.model} has no autoencoder")
    for part in (ae.encoder, ae.decoder):
        for layer in part:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    optimiser = torch.optim.AdamW(ae.parameters(), lr=1e-3, weight_decay=0.0)
    generator = torch.Generator(device).manual_seed(recipe.train.seed)
    side = recipe.train.patch // net.config.scale
    last = math.nan
    for _ in range(recipe.train.ae_pretrain_steps):
        z = torch.randn(recipe.train.batch, net.config.z_channels, side, side, generator=generator, device=device)
        error = (ae.decode(ae.encode(z / ae.gain), side, side) * ae.gain - z).square().mean()
        optimiser.zero_grad(set_to_none=True)
        error.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        last = float(error.detach())
    return last
