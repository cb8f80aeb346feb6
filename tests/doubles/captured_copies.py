"""A CUDA graph of two copies, replayed: one check for the fake and for real devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replay(api: Any, stream: Any, count: int, values: tuple[int, ...], wait: Callable[[], None]) -> tuple[Any, Any, Any, Any]:
    """Capture copies of `count` bytes to the device and back, and launch them with each of some values.

    `wait` is called behind each launch. Returns the graph and its memory: device, host and what came back.
    """
    device, host, back = api.allocate(count), api.allocate_host(count), api.allocate_host(count)
    host.array()[:] = 1
    back.array()[:] = 0
    api.begin_capture(stream)
    api.to_device(device, host, count, stream)
    api.to_host(back, device, count, stream)
    graph = api.end_capture(stream)
    api.synchronize()
    assert not back.array().any()
    for value in values:
        host.array()[:] = value
        api.launch(graph, stream)
        wait()
        assert (back.array() == value).all()
    return graph, device, host, back
