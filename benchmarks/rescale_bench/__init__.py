"""Measurements: quality, bytes and speed of bundles, with every figure's definition beside it."""
