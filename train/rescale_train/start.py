"""What `--init-from` gives a run: trained weights, grown where the network is larger."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rescale.errors import CheckpointError, ConfigError
from rescale_train import checkpoint, lineage
from rescale_train.config import Recipe
from rescale_train.grow import grow


@dataclass(frozen=True)
class Start:
    """Weights that a run begins with.

    Attributes:
        weights: parameters of the run's network.
        digest: `checkpoint.weights_digest` of the weights as they were given.
        held_out: `data.file_digest` of each picture kept from their training; None: they do not say.
        grown: what they were grown from, to be told; empty if they are of the same network.
        fresh_autoencoder: the network has an autoencoder that was not trained yet.
        earlier: runs that led to the weights, theirs last; see `lineage.stage`.
    """

    weights: dict[str, Tensor]
    digest: str
    held_out: list[str] | None
    grown: str = ""
    fresh_autoencoder: bool = False
    earlier: list[dict[str, Any]] = field(default_factory=list)

    def held_out_of(self, digests: Iterable[str]) -> list[str] | None:
        """Those of some pictures that the weights were not trained on either; None: they do not say, nor can what comes of them."""
        return None if self.held_out is None else [d for d in digests if d in self.held_out]


def read_start(path: Path, recipe: Recipe) -> Start:
    """Read weights to start from.

    Args:
        path: checkpoint or weights file.
        recipe: of the run; its seed decides what is fresh in a grown network.

    Raises:
        CheckpointError: the file is not readable, or its network does not grow into that of `recipe`.
    """
    given = checkpoint.read(path)
    net = checkpoint.load_net(given, str(path))
    digest, grown, config = checkpoint.weights_digest(net), "", recipe.net
    before = [*lineage.earlier_of(path, given.progress, digest), lineage.stage(given.recipe, given.progress, digest)]
    lineage.check(before, str(path))
    fresh_autoencoder = config.variant.latent and net.autoencoder is None
    # A limit of its corrections is no parameter: a network with another one takes the weights as they are.
    if dataclasses.replace(given.recipe.net, correction_limit=config.correction_limit) != config:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(recipe.train.seed)
                net = grow(net, config)
        except ConfigError as e:
            raise CheckpointError(f"{path}: {e}") from None
        small = given.recipe.net
        count = sum(small.blocks)
        left = {
            "dual latent variable": small.dlv_channels > config.dlv_channels,
            "autoencoder": small.variant.latent and not config.variant.latent,
            "corrections": small.corrections > config.corrections,
        }
        near = "".join(f", left without its {name}" for name, so in left.items() if so)
        growth = " and ".join(map(str, dict.fromkeys(small.growths)))
        grown = f"grown from {small.model} x{small.scale} with {count} block{'s'[: count != 1]}, growth {growth}{near}"
    return Start(net.state_dict(), digest, checkpoint.held_out(given, str(path)), grown, fresh_autoencoder, before)
