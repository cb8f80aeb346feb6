"""Seconds that pass inside of some calls, summed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from rescale.backends import Runner

P = ParamSpec("P")
T = TypeVar("T")


class Stopwatch:
    """Runs while a function that it is around runs. Not for nested or concurrent calls."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def around(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, timed."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._seconds += time.perf_counter() - start

        return call

    def take(self) -> float:
        """Seconds since the last call of this."""
        found, self._seconds = self._seconds, 0.0
        return found


class Watched:
    """A runner with a stopwatch around its graphs. It hides `run_many`: for backends without one."""

    def __init__(self, runner: Runner, watch: Stopwatch) -> None:
        self._runner = runner
        self._run = watch.around(runner.run)

    @property
    def name(self) -> str:
        """As the runner's."""
        return self._runner.name

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """As the runner's, timed."""
        return self._run(graph, inputs)

    def close(self) -> None:
        """As the runner's."""
        self._runner.close()
