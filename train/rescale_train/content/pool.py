"""The pool: pictures of every kind of a mix, made once for a run and kept as uint8 beside the photographs.

A crop then costs what a crop of a photograph costs, on any device, and the crops of a step still depend on nothing but
seed, step and rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rescale_train.content import degraded, drawn
from rescale_train.content.mix import MixConfig

Picture = npt.NDArray[np.uint8]

SIDE = 384
"""Largest side of a picture in the pool: holds the widest crop of the recipes with its margin."""

LEAST = 8
"""Pictures of a kind, however small its share."""

STREAM = 0xFFFF_FFC0
"""Keeps the numbers of the pool apart from those of weights, crops and noise, which have a step in its place."""


def counts(mix: MixConfig) -> dict[str, int]:
    """Pictures of each kind with a share: `mix.pool` divided by share, at least `LEAST`."""
    shares = mix.shares()
    total = sum(shares.values())
    return {kind: max(LEAST, round(mix.pool * share / total)) for kind, share in shares.items()}


def build_pool(mix: MixConfig, photographs: Sequence[Picture], seed: int) -> dict[str, list[Picture]]:
    """Pictures of every kind of a mix, the same for the same arguments.

    Args:
        mix: shares; a kind without one is not made.
        photographs: uint8 (H, W, 3), of which the degraded kinds are made, in proportion to their area.
        seed: of the run.
    """
    area = np.array([p.shape[0] * p.shape[1] for p in photographs], dtype=np.float64)
    pool: dict[str, list[Picture]] = {}
    for kind, count in counts(mix).items():
        number = list(MixConfig.KINDS).index(kind)
        made = []
        for i in range(count):
            rng = np.random.default_rng((seed, STREAM, number, i))
            if kind in degraded.KINDS:
                source = photographs[int(rng.choice(len(photographs), p=area / area.sum()))]
                made.append(degraded.KINDS[kind](source, rng, SIDE))
            else:
                made.append(drawn.KINDS[kind](rng, SIDE, SIDE))
        pool[kind] = made
    return pool
