"""The closed loop of held-out pictures: down and up as a file would carry them, and how near that comes."""

from __future__ import annotations

import statistics

import numpy as np
import torch

from rescale.quality import crop_border, psnr, psnr_y
from rescale_train.bicubic import bicubic_picture
from rescale_train.data import Picture, cut_to_multiple
from rescale_train.models import RescalingNet, spared

CEILING = 80.0
"""PSNR in dB above which a picture counts as restored exactly; without it one flat picture makes a mean infinite."""


@torch.no_grad()
def restore(net: RescalingNet, picture: Picture) -> tuple[Picture, Picture]:
    """A uint8 picture down and up through the network as a file would carry it.

    Args:
        net: float32 network on any device.
        picture: uint8 (H, W, 3), both sides multiples of the scale.

    Returns:
        LR RGB and restored HR, both uint8.
    """
    device = next(net.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(picture)).to(device).permute(2, 0, 1)[None].float() / 255.0
    with spared(net):
        down = net.downscale(x)
    up = net.upscale(down.lr, net.decode_z(down.lr, down.code))
    both = [torch.round(t.clamp(0.0, 1.0) * 255.0)[0].permute(1, 2, 0).byte().cpu().numpy() for t in (down.lr[:, :3], up)]
    return both[0], both[1]


def psnr_figures(source: Picture, lr: Picture, restored: Picture, reference: Picture) -> dict[str, float]:
    """Y- and RGB-PSNR of the restored HR, Y-PSNR of the LR against bicubic, in dB, each at most `CEILING`.

    `scale` (HR) and 1 (LR) border pixels are cropped.

    Args:
        source, restored: uint8 (H, W, 3), both sides multiples of the scale.
        lr, reference: uint8 (H / scale, W / scale, 3), the latter by bicubic reduction.
    """
    scale = source.shape[0] // reference.shape[0]
    figures = {
        "hr_psnr_y": psnr_y(restored, source, scale),
        "hr_psnr_rgb": psnr(crop_border(restored, scale), crop_border(source, scale)),
        "lr_psnr_y": psnr_y(lr, reference, 1),
    }
    return {name: min(CEILING, value) for name, value in figures.items()}


def validate(net: RescalingNet, pictures: list[Picture]) -> dict[str, float]:
    """Means of `psnr_figures` over pictures of any size, each cut to a multiple of the scale."""
    scale = net.config.scale
    cuts = [cut_to_multiple(picture, scale) for picture in pictures]
    found = [psnr_figures(cut, *restore(net, cut), bicubic_picture(cut, scale)) for cut in cuts]
    return {name: statistics.fmean(figures[name] for figures in found) for name in found[0]}
