"""Recorded steps, as far as they go without a device; `test_captured_gpu.py` has the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

from rescale.errors import ConfigError, RescaleError
from rescale_train.captured import CapturedWork
from rescale_train.config import Recipe
from rescale_train.loop import Trainer
from rescale_train.recipe import load_recipe, recipe_names


def test_work_is_done_then_recorded_then_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Graph:
        def replay(self) -> None:
            seen.append("replay")

    @contextlib.contextmanager
    def recording(graph: Graph) -> Iterator[None]:
        seen.append("record")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    captured = CapturedWork()
    for key in (1, 1, 1, 2, 1):
        captured(lambda: seen.append("work"), key)
        seen.append("|")
    assert " ".join(seen) == "work | record work replay | replay | work | replay |"


def test_a_cuda_graph_needs_a_cuda_device(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(compile="cuda-graph")
    with pytest.raises(RescaleError, match=r'"cuda-graph" is for one CUDA device, not a cpu device; --set train.compile="none"'):
        Trainer(recipe, torch.device("cpu"))


def test_a_cuda_graph_draws_no_random_numbers(recipe_of: Callable[..., Recipe]) -> None:
    for random in ({"lr_noise": 0.1}, {"z": "random"}):
        with pytest.raises(ConfigError, match="draws no random numbers"):
            recipe_of("irn", compile="cuda-graph", **random)


def test_recipes_for_a_gpu_start_from_what_ships() -> None:
    """They are shipped recipes with more crops: the same network, loss and pictures."""
    found = [name for name in recipe_names() if name.endswith("_gpu")]
    assert found
    for name in found:
        ours, robust = load_recipe(name), load_recipe(name.replace("_gpu", "_robust"))
        assert ours.net == robust.net
        assert (ours.train.loss, ours.train.mix) == (robust.train.loss, robust.train.mix)
        assert ours.train.compile == "cuda-graph"
