"""The fixed linear steps of the flow: Haar transform and the split into lower and upper branch.

    x (3, H, W) --Haar--> [LL of R,G,B | horizontal | vertical | diagonal] --split--> x_l | x_h, each (., H/2, W/2)

Channel order after Haar is sub-band-major, as in IRN. The forward transform divides by 4, so that the low band is the
block mean and stays in the range of the picture; the inverse has no factor.

For -A the 3C = 9 high bands h become alpha and 3C-1 remaining bands (paper, section 2.1):

    alpha = mean(h), x_h = h[1:]      inverse, equation 1:  h[0] = x_m = 3C * alpha - sum(x_h)

Both are linear, so Haar and split are one matrix, applied to the 2x2 pixels of a block. It is built in float64 and
inverted exactly here; the exporter writes the same matrix into one dense convolution.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from rescale_train.config import NetConfig

Matrix = npt.NDArray[np.float64]

# Rows: low, left minus right, top minus bottom, main diagonal minus anti-diagonal.
# Columns: the block's pixels (0,0), (0,1), (1,0), (1,1).
HAAR = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=np.float64)


def haar_matrix(channels: int) -> Matrix:
    """Forward Haar transform of a 2x2 block.

    Returns:
        (4 * channels, channels * 4): rows sub-band-major, columns channel-major with the block's pixels inside.
    """
    rows = np.zeros((4, channels, channels, 4))
    for c in range(channels):
        rows[:, c, c, :] = HAAR / 4.0
    return rows.reshape(4 * channels, channels * 4)


def haar_inverse_matrix(channels: int) -> Matrix:
    """Exact inverse of `haar_matrix`: entries 0, 1 and -1."""
    return 4.0 * haar_matrix(channels).T


def alpha_matrices(config: NetConfig) -> tuple[Matrix, Matrix]:
    """Split of the 9 high bands into alpha and 8 remaining bands, and its inverse.

    Returns:
        Two (9, 9) matrices; row 0 of the first makes alpha.
    """
    n = 9
    forward = np.eye(n)
    if not config.alpha_mean:
        return forward, np.eye(n)
    if config.alpha_basis == "orthonormal":
        # Householder reflection that maps the first unit vector onto ones/sqrt(n): symmetric and its own inverse.
        w = np.full(n, 1.0 / np.sqrt(n))
        w[0] -= 1.0
        forward -= 2.0 * np.outer(w, w) / (w @ w)
        return forward, forward.copy()
    forward[0, :] = 1.0 / n
    inverse = np.eye(n)
    inverse[0, :] = -1.0
    inverse[0, 0] = n
    return forward, inverse


def first_level_matrices(config: NetConfig) -> tuple[Matrix, Matrix]:
    """First Haar level with the alpha split and the zero channels of the dual latent variable.

    Returns:
        forward (12 + d, 12) and inverse (12, 12 + d) with inverse @ forward = identity. The last d rows of the first
        are zero (z_d = 0); the last d columns of the second are zero (the recovered z_d is discarded).
    """
    forward, inverse = haar_matrix(3), haar_inverse_matrix(3)
    if config.pre_split:
        split, merge = alpha_matrices(config)
        forward = np.concatenate([forward[:3], split @ forward[3:]])
        inverse = np.concatenate([inverse[:, :3], inverse[:, 3:] @ merge], axis=1)
    d = config.dlv_channels
    forward = np.concatenate([forward, np.zeros((d, 12))])
    inverse = np.concatenate([inverse, np.zeros((12, d))], axis=1)
    return forward, inverse


class BlockTransform(nn.Module):
    """A linear map between the pixels of 2x2 blocks and channels at half the resolution.

    forward: (B, C, H, W) -> (B, K, H/2, W/2); inverse: the other way. Both always run in the dtype of the input, outside
    autocast: the state of the flow is never rounded to 16 bits.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(self, forward: Matrix, inverse: Matrix) -> None:
        super().__init__()
        k, n = forward.shape
        self.register_buffer("analysis", torch.from_numpy(forward.reshape(k, n // 4, 2, 2)).float(), persistent=False)
        self.register_buffer("synthesis", torch.from_numpy(inverse.reshape(n, k, 1, 1)).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return functional.conv2d(x, self.analysis.to(x.dtype), stride=2)

    def inverse(self, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            return functional.pixel_shuffle(functional.conv2d(y, self.synthesis.to(y.dtype)), 2)
