"""The paper's equation 2: L = l1 * L_r + l2 * L_g + l3 * L_d + l4 * L_mse.

Each term is a sum over C, H, W and a mean over the batch, as in IRN.

    L_r    Charbonnier distance of restored and true HR, sqrt(d^2 + 1e-6), or the logarithm of each crop's squared error;
           the luma part of the error may count more
    L_g    squared error of the unrounded LR against bicubic, or its Charbonnier distance (IRN's fine-tuning, issue 13)
    L_d    squared z: with z-hat = 0 the distribution matching loss of IRN
    L_mse  squared difference of the true z and the decoded z (-M only)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rescale_train.config import Recipe
from rescale_train.luma import stretch_luma
from rescale_train.models import RescalingNet

CHARBONNIER_EPS = 1e-6

ROUNDING = 1.0 / 12.0 / 255.0**2
"""Mean squared error of rounding to 8 bits: an error below it is no error of the restored picture."""

PSNR_WEIGHT = 0.004
"""Makes `log_error` pull on a crop as hard as its Charbonnier distance where the crop is off by 0.008 (2 levels, 42 dB)."""


def charbonnier(difference: Tensor) -> Tensor:
    """sqrt(d^2 + 1e-6), value by value."""
    return torch.sqrt(difference.square() + CHARBONNIER_EPS)


def log_error(difference: Tensor, knee: float = 0.0) -> Tensor:
    """0.004 C H W ln(1 + m / r) of each crop's mean squared error m: (B, C, H, W) -> (B,).

    Args:
        difference: of values in [0, 1].
        knee: r as PSNR in dB; 0: the error of rounding.
    """
    mean = difference.square().mean((1, 2, 3))
    return PSNR_WEIGHT * difference[0].numel() * torch.log1p(mean / (10.0 ** (-knee / 10.0) if knee else ROUNDING))


def weigh_luma(difference: Tensor, luma: float) -> Tensor:
    """Stretch an RGB error along the direction of BT.601's luma, so that its square there counts 1 + luma times.

    Args:
        difference: (B, 3, H, W).
        luma: 0 or more; 0 changes nothing.
    """
    if luma == 0.0:
        return difference
    return stretch_luma(difference, math.sqrt(1.0 + luma) - 1.0)


class Objective(nn.Module):
    """The network with its loss, as one module, so that it can be wrapped for several processes."""

    def __init__(self, net: RescalingNet, recipe: Recipe) -> None:
        super().__init__()
        self.net, self.recipe = net, recipe
        self.lr_weight = recipe.train.loss.lr or float(net.config.scale**2)

    def forward(
        self, hr: Tensor, lr_reference: Tensor, generator: torch.Generator | None = None, corrections: int | None = None
    ) -> dict[str, Tensor]:
        """Loss terms of a batch.

        Args:
            hr: (B, 3, H, W) in [0, 1].
            lr_reference: (B, 3, h, w) bicubic reduction.
            generator: of random z and LR noise.
            corrections: how many of the encoder's are made; None: all.

        Returns:
            ``total``, and the unweighted terms ``hr``, ``lr``, ``z`` and (-M) ``z_mse``, each a scalar.
        """
        train, weights = self.recipe.train, self.recipe.train.loss
        down = self.net.downscale(hr, corrections)
        lr = down.lr
        if train.lr_noise > 0:
            rgb = lr[:, :3]
            noise = torch.randn(rgb.shape, generator=generator, device=lr.device) * train.lr_noise
            chosen = torch.rand(lr.shape[0], 1, 1, 1, generator=generator, device=lr.device) < train.lr_noise_share
            lr = torch.cat([torch.where(chosen, (rgb + noise).clamp(0.0, 1.0), rgb), lr[:, 3:]], 1)
        z_hat = self.net.decode_z(lr, down.code)
        if train.z == "random":
            z_hat = torch.randn(z_hat.shape, generator=generator, device=lr.device)
        restored = self.net.upscale(lr, z_hat)
        count = hr.shape[0]
        lr_error = down.lr_raw - (lr_reference.clamp(0.0, 1.0) if weights.lr_clamp else lr_reference)
        hr_error = weigh_luma(restored - hr, weights.luma)
        hr_terms = log_error(hr_error, weights.hr_knee) if weights.hr_kind == "psnr" else charbonnier(hr_error)
        terms = {
            "hr": hr_terms.sum() / count,
            "lr": (charbonnier(lr_error) if weights.lr_kind == "charbonnier" else lr_error.square()).sum() / count,
            "z": down.z.square().sum() / count,
        }
        total = weights.hr * terms["hr"] + self.lr_weight * terms["lr"] + weights.z * terms["z"]
        if down.code is not None:
            terms["z_mse"] = (down.z - z_hat).square().sum() / count
            total = total + weights.z_mse * terms["z_mse"]
        return {"total": total, **{k: v.detach() for k, v in terms.items()}}
