"""The pycuda implementation on a stand-in for its driver, and the stream handles of all libraries."""

from __future__ import annotations

import sys
import types

import pytest
from fake_pycuda import Driver

from rescale.cuda import CaptureError, open_api, stream_handle
from rescale.errors import BackendError, OutOfMemoryError


@pytest.fixture
def driver(monkeypatch):
    module = Driver()
    package = types.ModuleType("pycuda")
    package.driver, package.VERSION_TEXT = module, "2026.1"
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    yield module
    assert module.stack == []
    assert "pycuda.autoinit" not in sys.modules


def test_pycuda_uses_the_primary_context_only(driver):
    api = open_api("pycuda")
    assert driver.log == ["init", "primary context of 0"]
    assert api.name == "pycuda 2026.1"
    with api.current():
        stream, event = api.create_stream(), api.create_event()
        buffer, host = api.allocate(512), api.allocate_host(512)
        assert (buffer.pointer, buffer.nbytes, host.nbytes, api.handle(stream), api.handle(None)) == (7680, 512, 512, 640, 0)
        host.array()[:] = 3
        api.to_device(buffer, host, 100, stream)
        api.record(event, stream)
        api.wait(stream, event)
        api.wait(None, event)
        api.record(event, None)
        api.to_host(host, buffer, 200, None)
        api.synchronize_event(event)
        api.synchronize()
        api.free(buffer)
        api.free_host(host)
        api.destroy_event(event)
        api.destroy_stream(stream)
        assert driver.log[2:] == [
            ("in", 7680, 100, 640),
            ("record", 640),
            ("wait", 640, "Event"),
            ("record", None),
            ("out", 200, 7680, None),
            "event",
            "synchronize",
            ("free", 1),
            "host free",
            ("stream ended", 1),
        ]
        with pytest.raises(OutOfMemoryError, match="pycuda: cuMemAlloc failed: out of memory"):
            api.allocate(2000)


def test_pycudas_errors_of_captures_are_known_by_their_words(driver, monkeypatch):
    api = open_api("pycuda")
    for text, kind in (
        ("operation not permitted when stream is capturing", CaptureError),
        ("an illegal memory access", BackendError),
    ):

        def synchronize(text=text):
            raise driver.Error(f"cuCtxSynchronize failed: {text}")

        monkeypatch.setattr(driver.Context, "synchronize", staticmethod(synchronize))
        with api.current(), pytest.raises(BackendError, match=text) as error:
            api.synchronize()
        assert type(error.value) is kind


def test_pycuda_knows_its_own_streams_only(driver):
    api = open_api("pycuda")
    own = driver.Stream()
    assert api.caller_stream(own) is own
    assert api.caller_stream(None) is api.caller_stream(0) is None
    for other in (640, object()):
        with pytest.raises(BackendError, match=r"give a pycuda\.driver\.Stream, or open the backend with cuda='cuda-python'"):
            api.caller_stream(other)
    for call in (api.begin_capture, api.end_capture, api.destroy_graph):
        with pytest.raises(BackendError, match="no CUDA graphs"):
            call(1)
    assert not api.captures
    with pytest.raises(BackendError, match=r"device 1: this machine has 1 CUDA device\(s\)"):
        open_api("pycuda", 1)


def test_handles_of_streams_of_all_libraries():
    class Nvidia:
        def __cuda_stream__(self):
            return 0, 11

    class Old:
        __cuda_stream__ = (0, 12)

    class Later:
        def __cuda_stream__(self):
            return 1, 11

    assert [stream_handle(s) for s in (0, 5, Nvidia(), Old())] == [0, 5, 11, 12]
    for name in ("cuda_stream", "ptr", "handle"):
        assert stream_handle(types.SimpleNamespace(**{name: 13})) == 13
    for wrong in (-1, True, "x", 1.5, object(), types.SimpleNamespace(handle=lambda: 3)):
        with pytest.raises(BackendError, match="not a CUDA stream"):
            stream_handle(wrong)
    with pytest.raises(BackendError, match="version 1 of __cuda_stream__"):
        stream_handle(Later())
