"""The rescaling network of every variant, as switches of one class.

        HR x (3, H, W)                                                      HR x
             | Haar + split                                                   ^ merge + inverse Haar
        x_l | x_h [| z_d = 0]                                                 |
             | n_1 InvBlocks                                                  | n_1 InvBlocks, inverse
             | (x4: Haar on all channels, split, n_2 InvBlocks)               | (x4: the same, inverse)
        y = LR RGB [+ alpha] , z                                              |
             |                  |                                             |
             | 8 bits           | -M: encode, 8 bits                          |
             v                  v                                             |
        LR picture          latent code s  ----------------------->  y-hat , z-hat (0, or decoded)

Sources: IRN for the flow; the paper's section 2.1 for alpha (pre-split, mean, sigmoid, equation 1) and 2.2 for the
autoencoder. DLV-IRN's channels z_d appended to the upper branch are our reading of the published abstract. Corrections of y
before the 8 bits are ours. Where the paper is silent (logit before the inverse, 255 alpha levels, 8-bit latent) the choice is
ours and said in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from rescale.quality import LUMA_WEIGHT
from rescale_train.config import NetConfig
from rescale_train.luma import stretch_luma
from rescale_train.models.auxiliary import AutoEncoder
from rescale_train.models.coupling import DenseBlock, InvBlock
from rescale_train.models.haar import BlockTransform, first_level_matrices, haar_inverse_matrix, haar_matrix
from rescale_train.models.quantise import logit, quantise_alpha, quantise_latent, quantise_rgb, straight_through

SLOPE_GAIN = 4.0
"""What a correction's block sees of a slope: it brings both inputs to about the same size."""


def code_range(config: NetConfig) -> tuple[list[float], list[float]]:
    """Least and largest value that a file can hold, of each channel of y."""
    most = [1.0, 1.0, 1.0]
    least = [0.0, 0.0, 0.0]
    if config.variant.alpha:
        alpha = float(logit(torch.tensor(1.0, dtype=torch.float64))) / config.alpha_gain
        most.append(alpha)
        least.append(-alpha)
    return least, most


class Downscaled(NamedTuple):
    """Result of `RescalingNet.downscale`.

    Attributes:
        lr: (B, 3 or 4, h, w) rounded to 8 bits; RGB in [0, 1], alpha as u in [0, 1].
        code: (B, 4, ceil(h/4), ceil(w/4)) rounded latent in [-1, 1] for -M, else None.
        lr_raw: (B, 3, h, w) RGB before clamp and rounding, for the loss.
        z: (B, z, h, w) the true latent variable, for the loss.
    """

    lr: Tensor
    code: Tensor | None
    lr_raw: Tensor
    z: Tensor


class RescalingNet(nn.Module):
    """Invertible rescaling network.

    `forward` and `inverse` are the exact flow on floats; `downscale` and `upscale` add what a file does to it: 8 bits and
    a lost (or coded) z. H and W are multiples of the scale.

    Attributes:
        sparing: of a slope, keep what goes into each block alone and compute the rest again; see `spared`.
    """

    sparing = False

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        low = config.low_channels
        channels = 12 + config.dlv_channels
        self.transforms = nn.ModuleList([BlockTransform(*first_level_matrices(config))])
        self.levels = nn.ModuleList()
        for level, (count, growth) in enumerate(zip(config.blocks, config.growths, strict=True)):
            if level:
                self.transforms.append(BlockTransform(haar_matrix(channels), haar_inverse_matrix(channels)))
                channels *= 4
            self.levels.append(nn.ModuleList(InvBlock(low, channels - low, growth, config.shared_trunk) for _ in range(count)))
        c = config.variant.lr_channels
        self.corrections = nn.ModuleList(DenseBlock(2 * c, c, config.correction_growth) for _ in range(config.corrections))
        self.autoencoder = None
        if config.variant.latent:
            self.autoencoder = AutoEncoder(config.z_channels, config.ae_layers, config.ae_zero_init, config.latent_gain)

    def stages(self) -> list[tuple[BlockTransform, list[InvBlock]]]:
        """Haar transform and blocks of each level, finest first."""
        pairs = zip(self.transforms, self.levels, strict=True)
        return [(cast(BlockTransform, t), [cast(InvBlock, b) for b in cast(nn.ModuleList, level)]) for t, level in pairs]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The flow: (B, 3, H, W) in [0, 1] -> y (B, 3 or 4, h, w) with raw alpha, z (B, z, h, w)."""
        low = self.config.low_channels
        state = x
        for transform, blocks in self.stages():
            state = transform(state)
            a, b = state[:, :low], state[:, low:]
            for block in blocks:
                a, b = block(a, b)
            state = torch.cat((a, b), 1)
        cut = self.config.variant.lr_channels
        return state[:, :cut], state[:, cut:]

    def inverse(self, y: Tensor, z: Tensor) -> Tensor:
        """The flow backwards: y and z as `forward` gives them -> (B, 3, H, W)."""
        low = self.config.low_channels
        state = torch.cat((y, z), 1)
        for transform, blocks in reversed(self.stages()):
            a, b = state[:, :low], state[:, low:]
            for block in reversed(blocks):
                if self.sparing and torch.is_grad_enabled():
                    a, b = recomputed(block.inverse, a, b, use_reentrant=False, preserve_rng_state=False)
                else:
                    a, b = block.inverse(a, b)
            state = transform.inverse(torch.cat((a, b), 1))
        return state

    def slope(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Gradient of half the squared error of what y restores, by y; the square of luma counts 1 + `LUMA_WEIGHT` times.

        Args:
            x: (B, 3, H, W), what is to be restored.
            y: (B, 3 or 4, h, w) as `forward` gives it.
            z: (B, z, h, w), the z-hat that the decoder will have; it does not depend on y.

        Returns:
            Shape of y; a constant to whatever is derived from it.
        """
        with torch.enable_grad():
            start = y.detach().requires_grad_()
            error = self.inverse(start, z.detach()) - x
            return torch.autograd.grad(error, start, stretch_luma(error.detach(), LUMA_WEIGHT))[0]

    def held(self, y: Tensor) -> Tensor:
        """y within what the codes of a file hold; gradients pass through, as where it is rounded."""
        low, high = (torch.tensor(v, dtype=y.dtype, device=y.device).view(1, -1, 1, 1) for v in code_range(self.config))
        return straight_through(y, torch.clamp(y, low, high))

    def correct(self, x: Tensor, y: Tensor, z: Tensor, count: int | None = None) -> Tensor:
        """Learned steps from the flow's y towards one that restores more: y + C(y, slope) / 255, `corrections` times (ours).

        An encoder is one function for all pictures; what it leaves to be gained for one picture is told by the decoder's gradient
        (iterative amortised inference, Marino et al., arXiv 1807.09356). x, y and z as of `slope`. Each step begins at codes that a
        file can hold: beyond them the decoder was never trained, its slopes grow without bounds and so would the steps. A step is
        held to `correction_limit`: of lines and edges that photographs do not have slopes are far outside of what C has seen.
        Of a `count`, only the first so many are made.
        """
        limit = self.config.correction_limit
        for block in itertools.islice(self.corrections, count):
            y = self.held(y)
            step = block(torch.cat((y, SLOPE_GAIN * self.slope(x, y, z)), 1))
            y = y + (torch.clamp(step, -limit, limit) if limit else step) / 255.0
        return y

    def with_corrections(self, count: int) -> RescalingNet:
        """The same flow with the first corrections alone: its encoder is faster and restores less; files of either are restored by
        both. Between none and all is for those that were trained for it (`train.nested`)."""
        net = RescalingNet(dataclasses.replace(self.config, corrections=count))
        left = tuple(f"corrections.{k}." for k in range(count, self.config.corrections))
        net.load_state_dict({k: v for k, v in self.state_dict().items() if not k.startswith(left)})
        return net.train(self.training)

    def downscale(self, x: Tensor, corrections: int | None = None) -> Downscaled:
        """HR (B, 3, H, W) in [0, 1] -> what an LR file holds, and what the losses need.

        Args:
            x: the pictures.
            corrections: how many are made; None: all.
        """
        y, z = self(x)
        code = None
        if self.autoencoder is not None:
            code = quantise_latent(self.autoencoder.encode(z))
        if self.corrections:
            y = self.correct(x, y, self.decode_z(y, code), corrections)
        rgb = y[:, :3]
        lr = quantise_rgb(rgb)
        if self.config.variant.alpha:
            u = torch.sigmoid(self.config.alpha_gain * y[:, 3:4])
            lr = torch.cat((lr, quantise_alpha(u)), 1)
        return Downscaled(lr, code, rgb, z)

    def decode_z(self, lr: Tensor, code: Tensor | None) -> Tensor:
        """z-hat (B, z, h, w): decoded from the latent code for -M, zero otherwise (paper, section 2.1)."""
        if self.autoencoder is not None and code is not None:
            return self.autoencoder.decode(code, lr.shape[-2], lr.shape[-1])
        return lr.new_zeros(lr.shape[0], self.config.z_channels, *lr.shape[-2:])

    def upscale(self, lr: Tensor, z: Tensor | None = None) -> Tensor:
        """LR as in `Downscaled.lr` and z-hat (None: zero) -> HR (B, 3, H, W), not clamped."""
        if z is None:
            z = self.decode_z(lr, None)
        y = lr
        if self.config.variant.alpha:
            y = torch.cat((lr[:, :3], logit(lr[:, 3:4]) / self.config.alpha_gain), 1)
        return self.inverse(y, z)


@contextlib.contextmanager
def spared(net: RescalingNet) -> Iterator[None]:
    """Within it a slope computes the features of each invertible block again when their turn comes, and keeps none before.

    For whole pictures: of dlv_irn_a x4 full features take 0.3 MB a LR pixel, so 0.05 MB, and a slope 1.4 times as long.
    """
    before, net.sparing = net.sparing, True
    try:
        yield
    finally:
        net.sparing = before


def build(config: NetConfig) -> RescalingNet:
    """The network of a configuration, with fresh weights from torch's global generator."""
    return RescalingNet(config)
