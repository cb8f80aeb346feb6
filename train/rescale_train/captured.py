"""A training step's forward and backward pass as a CUDA graph.

Launching a network of a hundred small convolutions kernel by kernel, forward and backward, takes an eighth (TF32) to a third
(float16) of a step on an H200 (docs/experiments.md). A graph that was recorded once is launched as one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Arithmetic = Callable[[], AbstractContextManager[None]]
"""Makes the context of a forward pass."""

WARM_UP = 3
"""Passes before a recording: libraries choose their kernels and take their memory in them, which a recording must not."""


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    terms: dict[str, Tensor]
    grads: list[Tensor | None]


class CapturedPass:
    """Loss terms and gradients of a batch; recorded at the first batch of a shape and arithmetic, replayed at later ones.

    Args:
        objective: called with the batch; returns terms, of which ``total`` is derived. It must not wait for the device, nor copy
            to it.
        parameters: whose gradients are wanted.
    """

    def __init__(self, objective: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._objective, self._parameters = objective, list(parameters)
        self._recordings: dict[tuple[object, ...], _Recording] = {}

    def __call__(self, batch: tuple[Tensor, ...], name: str, arithmetic: Arithmetic) -> dict[str, Tensor]:
        """Compute the terms, and set the parameters' gradients.

        Args:
            batch: tensors on the device, any shape.
            name: of the arithmetic.
            arithmetic: of the forward pass.

        Returns:
            Terms, overwritten by the next call, as the gradients are.
        """
        key = (name, *(t.shape for t in batch))
        found = self._recordings.get(key)
        if found is None:
            found = self._recordings[key] = self._record(batch, arithmetic)
        for kept, given in zip(found.inputs, batch, strict=True):
            kept.copy_(given)
        found.graph.replay()
        for p, grad in zip(self._parameters, found.grads, strict=True):
            p.grad = grad
        return found.terms

    def _record(self, batch: tuple[Tensor, ...], arithmetic: Arithmetic) -> _Recording:
        inputs = tuple(t.clone() for t in batch)

        def run() -> dict[str, Tensor]:
            for p in self._parameters:
                p.grad = None
            with arithmetic():
                terms: dict[str, Tensor] = self._objective(*inputs)
            terms["total"].backward()  # type: ignore[no-untyped-call]
            return {name: term.detach() for name, term in terms.items()}

        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            terms = run()
        return _Recording(graph, inputs, terms, [p.grad for p in self._parameters])


class CapturedWork:
    """Work on tensors that stay where they are: done as it comes the first time, recorded the second and replayed from then on."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}

    def __call__(self, work: Callable[[], None], key: Hashable) -> None:
        """Do `work`, which must not wait for the device, nor copy to it.

        Args:
            work: the same for the same key.
            key: names the memory that it reads and was not allocated by it.
        """
        if key not in self._graphs:
            self._graphs[key] = None
            work()
            return
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
        graph.replay()
