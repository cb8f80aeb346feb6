"""Autoencoder of the -M variants (paper, section 2.2): z -> latent code s -> z-hat.

    encoder  (B, z, h, w) -> (B, 4, h/4, w/4), bounded to (-1, 1) by tanh so that 8 bits suffice
    decoder  (B, 4, h/4, w/4) -> (B, z, h, w)

h and w are multiples of 4: `pad_z` extends z by its last row and column, and the decoded z is cropped. The paper fixes
the numbers of layers (2 or 4), channels (4) and the pooling; widths, tanh and nearest-neighbour upsampling are ours.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from rescale.variants import LATENT_CHANNELS, LATENT_STRIDE


def pad_z(z: Tensor) -> Tensor:
    """Repeat the last row and column until both sides are multiples of the latent stride."""
    bottom = -z.shape[-2] % LATENT_STRIDE
    right = -z.shape[-1] % LATENT_STRIDE
    return functional.pad(z, (0, right, 0, bottom), mode="replicate") if bottom or right else z


def _encoder(z_channels: int, layers: int) -> nn.Sequential:
    if layers == 2:
        return nn.Sequential(
            nn.Conv2d(z_channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, LATENT_CHANNELS, 3, padding=1),
            nn.MaxPool2d(2),
        )
    return nn.Sequential(
        nn.Conv2d(z_channels, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, LATENT_CHANNELS, 3, padding=1),
        nn.MaxPool2d(2),
    )


def _decoder(z_channels: int, layers: int) -> nn.Sequential:
    up = nn.Upsample(scale_factor=2, mode="nearest")
    if layers == 2:
        return nn.Sequential(
            up,
            nn.Conv2d(LATENT_CHANNELS, 16, 3, padding=1),
            nn.ReLU(),
            up,
            nn.Conv2d(16, z_channels, 3, padding=1),
        )
    return nn.Sequential(
        up,
        nn.Conv2d(LATENT_CHANNELS, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        up,
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, z_channels, 3, padding=1),
    )


class AutoEncoder(nn.Module):
    """Encoder and decoder, each a module of its own so that each becomes a graph of its own.

    Args:
        z_channels: channels of z (9 at x2 and 45 at x4 for IRN-M).
        layers: convolutions per side, 2 or 4 (paper, table 2).
        zero_init: zero the decoder's last layer, so that z-hat = 0 before training.
        gain: z is multiplied with it on the way in and divided by it on the way out (ours; the paper has none).
    """

    def __init__(self, z_channels: int, layers: int, zero_init: bool, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.encoder = _encoder(z_channels, layers)
        self.decoder = _decoder(z_channels, layers)
        last = self.decoder[-1]
        if zero_init and isinstance(last, nn.Conv2d):
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)

    def encode(self, z: Tensor) -> Tensor:
        """(B, z, h, w) of any h, w -> (B, 4, ceil(h/4), ceil(w/4)) in (-1, 1), not yet rounded."""
        s: Tensor = self.encoder(pad_z(z) * self.gain)
        return s.tanh().to(z.dtype)

    def decode(self, s: Tensor, height: int, width: int) -> Tensor:
        """(B, 4, ceil(h/4), ceil(w/4)) -> (B, z, h, w)."""
        z: Tensor = self.decoder(s)
        return z[..., :height, :width].to(s.dtype) / self.gain
