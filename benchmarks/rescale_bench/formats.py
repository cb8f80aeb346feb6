"""What the files of these benchmarks promise, apart from what measures: comparing two of them needs no PyTorch."""

from __future__ import annotations

FORMAT = "rescale-report/1"
"""Of a report's JSON."""

MOST_DB = 200.0
"""What no finite PSNR of 8 bits reaches: a file that says more is damaged."""

LEAST = 3
"""Runs of each that a time limit leaves."""
