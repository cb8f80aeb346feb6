"""What the files of these benchmarks promise, apart from what measures: comparing two of them needs no PyTorch."""

from __future__ import annotations

FORMAT = "rescale-report/1"
"""Of a report's JSON."""

LEAST = 3
"""Runs of each that a time limit leaves."""
