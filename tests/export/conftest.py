"""Nets with random weights and their graphs."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch

from rescale_export.graphs import split_graphs
from rescale_train.config import NetConfig
from rescale_train.models import RescalingNet, build

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def net_of() -> Callable[..., RescalingNet]:
    """A net whose zero parameters (or all of them) are normal with the given deviation."""

    def make(config: NetConfig, std: float = 0.02, every: bool = False, seed: int = 5) -> RescalingNet:
        torch.manual_seed(seed)
        net = build(config)
        with torch.no_grad():
            for p in net.parameters():
                if every or not p.any():
                    p.normal_(std=std)
        return net.eval()

    return make


@pytest.fixture(scope="session")
def models_of() -> Callable[[RescalingNet], dict[str, onnx.ModelProto]]:
    """The finished graphs of a net by name."""
    return lambda net: {name: writer.model({}) for name, writer in split_graphs(net).items()}
