"""SOAP (Vyas et al., arXiv 2409.11321): Adam in the eigenbasis of Shampoo's preconditioner.

Filters of a coupling network act together: a change that all of a channel's values share moves the LR, alpha and s far more
than the same change spread at random, which bounds Adam's rate for all directions by that of a few. SOAP finds these
directions from the gradients of a filter and takes Adam's step along each by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rescale.threads import usable_threads
from rescale_train.captured import CapturedWork

REFRESH = 10
"""Steps between two turns of the bases towards the eigenvectors."""

EPS = 1e-8


def grams(grads: Tensor) -> list[Tensor]:
    """G G^T along each axis of n filters (n, out, 9, in): (n, out, out), (n, 9, 9), (n, in, in)."""
    rows, middle, columns = grads.flatten(2), grads.transpose(1, 2).flatten(2), grads.flatten(1, 2)
    return [rows @ rows.mT, middle @ middle.mT, columns.mT @ columns]


def turned(values: Tensor, bases: list[Tensor]) -> Tensor:
    """(n, out, 9, in) in the bases, whose columns are the directions."""
    n, out, taps, inputs = values.shape
    values = (bases[0].mT @ values.flatten(2)).view(n, out * taps, inputs) @ bases[2]
    swapped = values.view(n, out, taps, inputs).transpose(1, 2)
    return (bases[1].mT @ swapped.flatten(2)).view(swapped.shape).transpose(1, 2)


def turned_back(values: Tensor, bases: list[Tensor]) -> Tensor:
    """The inverse of `turned`."""
    return turned(values, [b.mT for b in bases])


class Soap(torch.optim.Optimizer):
    """For 4-d filters (out, in, 3, 3). Filters of one shape are worked on together; each has its own bases.

    Args:
        params: filters.
        lr: learning rate, as Adam's.
        betas: of the mean and of the mean square; the latter also of the preconditioner.
        weight_decay: decoupled.
        capture: record the work of a step as a CUDA graph wherever the gradients lie in the same memory again.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float, capture: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
        self._stacks = [_Stack(same) for same in shapes.values()]
        first = self._stacks[0].params[0]
        self._numbers = _Numbers(*(first.new_zeros(()) for _ in range(3)))
        # What state["step"] holds, at hand without waiting for a device.
        self._count = 0
        self._work = CapturedWork() if capture else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. The first of a filter only looks at its gradient. A filter without one counts as having zeros.

        `state` holds, for each filter, views of what its stack holds.
        """
        group = self.param_groups[0]
        beta1, beta2 = group["betas"]
        if not self._stacks[0].state:
            for stack in self._stacks:
                stack.look()
                self._show(stack)
            return
        self._count = count = self._count + 1
        self._numbers.kept.fill_(1.0 - group["lr"] * group["weight_decay"])
        self._numbers.rate.fill_(group["lr"] / (1.0 - beta1**count))
        self._numbers.square.fill_(1.0 / (1.0 - beta2**count))

        def work() -> None:
            for stack in self._stacks:
                stack.advance(self._numbers, beta1, beta2)

        if self._work is None:
            work()
        else:
            self._work(work, tuple(0 if p.grad is None else p.grad.data_ptr() for stack in self._stacks for p in stack.params))
        if count % REFRESH == 0:
            bases = orthonormal([product for stack in self._stacks for product in stack.products()])
            for i, stack in enumerate(self._stacks):
                stack.take(bases[3 * i : 3 * i + 3])

    def restore(self, p: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` held of a filter."""
        stack = next(s for s in self._stacks if s.params[0].shape == p.shape)
        at = next(i for i, q in enumerate(stack.params) if q is p)
        stack.begin()
        for name, value in stack.state.items():
            value[at].copy_(state[name])
        self._count = int(state["step"])
        self._show(stack)

    def _show(self, stack: _Stack) -> None:
        """Views into a stack, which changes its tensors in place."""
        for i, p in enumerate(stack.params):
            self.state[p] = {name: value[i] for name, value in stack.state.items()}


class _Numbers(NamedTuple):
    """What changes from step to step, on the device: what a filter keeps of itself, the rate, 1 over the mean square's weights."""

    kept: Tensor
    rate: Tensor
    square: Tensor


class _Stack:
    """Filters of one shape, (n, out, 9, in) where they are worked on together."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        self.state: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Make room for the state."""
        if not self.state:
            first = self.params[0]
            n, (out, inputs, height, width) = len(self.params), first.shape
            sides = (out, height * width, inputs)
            self.state["step"] = first.new_zeros(n)
            self.state["mean"], self.state["square"] = first.new_zeros(n, *sides), first.new_zeros(n, *sides)
            for k, side in enumerate(sides):
                self.state[f"gram{k}"], self.state[f"basis{k}"] = (first.new_zeros(n, side, side) for _ in range(2))

    def look(self) -> None:
        """Take the first bases from the gradients."""
        self.begin()
        for k, gram in enumerate(grams(self._gradient())):
            self.state[f"gram{k}"].copy_(gram)
            # On the CPU and in float64: of one gradient many eigenvalues are 0, where CUDA's float32 solver may give up.
            self.state[f"basis{k}"].copy_(torch.linalg.eigh(gram.cpu().double()).eigenvectors.flip(-1))

    def advance(self, numbers: _Numbers, beta1: float, beta2: float) -> None:
        """Move the filters. Waits for no device."""
        grad, state = self._gradient(), self.state
        bases = [state[f"basis{k}"] for k in range(3)]
        state["step"] += 1
        state["mean"].lerp_(grad, 1.0 - beta1)
        state["square"].lerp_(turned(grad, bases).square_(), 1.0 - beta2)
        scale = (state["square"] * numbers.square).sqrt_().add_(EPS)
        step = turned_back(turned(state["mean"], bases).div_(scale), bases) * numbers.rate
        out, inputs, height, width = self.params[0].shape
        filters: list[Tensor] = [*self.params]
        torch._foreach_mul_(filters, numbers.kept)
        torch._foreach_sub_(filters, [one.view(out, height, width, inputs).permute(0, 3, 1, 2) for one in step])
        for k, gram in enumerate(grams(grad)):
            state[f"gram{k}"].lerp_(gram, 1.0 - beta2)

    def _gradient(self) -> Tensor:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        return torch.stack([g.permute(0, 2, 3, 1).flatten(1, 2) for g in grads])

    def products(self) -> list[Tensor]:
        """One power iteration of each basis, its directions in order of their gradient's size; `take` wants them orthonormal."""
        square = self.state["square"]
        found = []
        for k in range(3):
            gram, basis = self.state[f"gram{k}"], self.state[f"basis{k}"]
            product = gram @ basis
            order = (basis * product).sum(1).argsort(1, descending=True)
            along = [1, 1, 1]
            along[k] = -1
            square.copy_(torch.take_along_dim(square, order.view(len(order), *along), k + 1))
            found.append(torch.take_along_dim(product, order.unsqueeze(1), 2))
        return found

    def take(self, bases: Iterable[Tensor]) -> None:
        """Bases to go on with."""
        for k, basis in enumerate(bases):
            self.state[f"basis{k}"].copy_(basis)


def orthonormal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Q of the QR decomposition of each (n, side, side).

    A CUDA device works on one matrix after another, and longer than on all else of a step; the cores of its host work on many at
    once, each on its own: the threads of one decomposition wait for each other.
    """
    if matrices[0].device.type != "cuda":
        return [torch.linalg.qr(m).Q for m in matrices]
    with ThreadPoolExecutor(usable_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(lambda m: torch.linalg.qr(m).Q, [m.cpu() for m in matrices]))
