"""What the files of these benchmarks promise, apart from what measures: comparing two of them needs no PyTorch."""

from __future__ import annotations

FORMAT = "rescale-report/1"
RATE_FORMAT = "rescale-rate/1"
"""Of the JSON of a report, and of rates."""

MEAN = (
    "of the pictures' values; those that a picture has not (SSIM below its window's size, a codec's largest picture) are left out"
)

MOST_DB = 200.0
"""What no finite PSNR of 8 bits reaches: a file that says more is damaged."""

LEAST = 3
"""Runs of each that a time limit leaves."""
