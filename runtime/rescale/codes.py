"""8-bit codes of the LR picture's channels and of the latent, shared by training, graphs and files.

    RGB     code = round(255 * x),           x in [0, 1]
    alpha   code = round(254 * u) + 1,       u = sigmoid(k * alpha) in [0, 1]; u = 1/2 is 128, and 0 never occurs
    latent  code = round(127 * s) + 128,     s in [-1, 1]; s = 0 is 128, and 0 never occurs

Rounding is half to even. Alpha avoids 0 because many tools rewrite the colour under a transparent pixel.
"""

from __future__ import annotations

ALPHA_MIN, ALPHA_MAX = 1, 255
ALPHA_NEUTRAL = 128
"""The alpha code that carries nothing: u = 1/2, alpha = 0."""

LATENT_NEUTRAL = 128
"""The latent code of s = 0."""

LOGIT_MARGIN = 1.0 / 512.0
"""u is clamped to [margin, 1 - margin] before the logit."""
