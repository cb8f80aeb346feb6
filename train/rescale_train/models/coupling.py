"""Invertible block of IRN (Xiao et al., section 3.2).

    forward   y_1 = x_1 + F(x_2)        s = clamp * tanh(H(y_1) / 2)      y_2 = x_2 * exp(s) + G(y_1)
    inverse   x_2 = (y_2 - G(y_1)) * exp(-s)      x_1 = y_1 - F(x_2)

Index 1 is the lower branch (becomes the LR picture), 2 the upper branch (becomes z). tanh(H/2) is IRN's
2 * sigmoid(H) - 1; with clamp = 1, exp(s) stays within [1/e, e].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAKY_SLOPE = 0.2
CLAMP = 1.0

ALIGNMENT = 8
"""Channels that a GPU's matrix units take at once, in 16 bits."""


def _channels_added(x: Tensor, count: int) -> Tensor:
    """(B, C, h, w) with `count` more channels of zeros."""
    return functional.pad(x, (0, 0, 0, 0, 0, count)) if count else x


def _spread(weight: Tensor, c_in: int, gap: int) -> Tensor:
    """Filters (out, c_in + n, 3, 3) for features that have `gap` channels of zeros after the first `c_in`."""
    return torch.cat((_channels_added(weight[:, :c_in], gap), weight[:, c_in:]), 1) if gap else weight


class DenseBlock(nn.Module):
    """Five 3x3 convolutions; each of the first four sees the input and all earlier outputs.

    (B, c_in, h, w) -> (B, c_out, h, w) in float32, whatever the arithmetic inside. The last convolution starts at zero, so
    that a new network is the plain Haar transform.

    Attributes:
        mode: how it is computed, of `config.DENSE_MODES`.
    """

    mode = "concat"

    def __init__(self, c_in: int, c_out: int, growth: int) -> None:
        super().__init__()
        widths = [growth] * 4 + [c_out]
        for k, width in enumerate(widths):
            conv = nn.Conv2d(c_in + k * growth, width, 3, padding=1)
            nn.init.zeros_(conv.bias) if conv.bias is not None else None
            if k < 4:
                nn.init.xavier_normal_(conv.weight, gain=0.5)
            else:
                nn.init.zeros_(conv.weight)
            setattr(self, f"conv{k + 1}", conv)

    @property
    def convs(self) -> list[nn.Conv2d]:
        """The five convolutions in order."""
        return [getattr(self, f"conv{k}") for k in range(1, 6)]

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "sum":
            return self._as_sums(x)
        return self._as_joined(x, ALIGNMENT if self.mode == "aligned" else 1)

    def _as_joined(self, x: Tensor, multiple: int) -> Tensor:
        """Every convolution of all features before it, with channels of zeros where theirs are no multiple of something."""
        convs, c_in, gap = self.convs, x.shape[1], -x.shape[1] % multiple
        kind = x.device.type
        # Joined to float32, all features would be float32, and be rounded again before each convolution.
        features = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
        features = _channels_added(features, gap)
        for conv in convs[:4]:
            out = functional.conv2d(features, _spread(conv.weight, c_in, gap), conv.bias, padding=1)
            features = torch.cat((features, functional.leaky_relu(out, LEAKY_SLOPE)), 1)
        weight, bias = _spread(convs[4].weight, c_in, gap), convs[4].bias
        c_out = weight.shape[0]
        if unfilled := -c_out % multiple:
            weight = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, unfilled))
            bias = None if bias is None else functional.pad(bias, (0, unfilled))
        return functional.conv2d(features, weight, bias, padding=1)[:, :c_out].to(x.dtype)

    def _as_sums(self, x: Tensor) -> Tensor:
        """The same without a copy of all features before every convolution: one convolution for each feature, added up."""
        features = [x]
        total = x
        for k, conv in enumerate(self.convs):
            weights = torch.split(conv.weight, [f.shape[1] for f in features], 1)
            total = functional.conv2d(features[0], weights[0], conv.bias, padding=1)
            for feature, weight in zip(features[1:], weights[1:], strict=True):
                total = total + functional.conv2d(feature, weight, padding=1)
            if k < 4:
                features.append(functional.leaky_relu(total, LEAKY_SLOPE))
        return total.to(x.dtype)


class InvBlock(nn.Module):
    """One coupling block.

    Args:
        low: channels of the lower branch.
        high: channels of the upper branch.
        growth: see `DenseBlock`.
        shared_trunk: G and H are the two halves of one dense block's output.
    """

    def __init__(self, low: int, high: int, growth: int, shared_trunk: bool) -> None:
        super().__init__()
        self.low, self.high, self.shared_trunk = low, high, shared_trunk
        self.F = DenseBlock(high, low, growth)
        if shared_trunk:
            self.GH = DenseBlock(low, 2 * high, growth)
        else:
            self.G = DenseBlock(low, high, growth)
            self.H = DenseBlock(low, high, growth)

    def shift_and_scale(self, y1: Tensor) -> tuple[Tensor, Tensor]:
        """G(y_1) and s, each (B, high, h, w)."""
        if self.shared_trunk:
            shift, raw = self.GH(y1).split(self.high, 1)
        else:
            shift, raw = self.G(y1), self.H(y1)
        return shift, CLAMP * torch.tanh(raw * 0.5)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.F(x2)
        shift, s = self.shift_and_scale(y1)
        return y1, x2 * torch.exp(s) + shift

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        shift, s = self.shift_and_scale(y1)
        x2 = (y2 - shift) * torch.exp(-s)
        return y1 - self.F(x2), x2
