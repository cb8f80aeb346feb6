"""Limits that both the command line and the decoders name. Imports nothing, so that a command's help stays fast."""

from __future__ import annotations

MAX_PIXELS = 178_956_970
"""Default limit on a picture's pixels, checked from the header before anything is decoded; Pillow's own as well."""
