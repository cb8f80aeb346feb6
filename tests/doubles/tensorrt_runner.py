"""The TensorRT runner with engines of the fake library, on `FakeCuda`."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from fake_tensorrt import Library, write_engine

from rescale import flavour
from rescale.backends.tensorrt import TensorRTRunner
from rescale.bundle import Bundle
from rescale.cuda.fake import FakeCuda

WIDE = "1x{s}x{s}:2x64x64:4x256x256"


@contextmanager
def installed(library, name):
    """The fake is what `import tensorrt` finds, on a machine with one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, flavour._MODULES[name], library.module)
        patch.setattr(flavour, "_loggers", {})
        patch.setattr(flavour, "probe", lambda *_: (1, ""))
        patch.setattr(flavour, "device", lambda: flavour.Device("Fake GPU", "9.9"))
        yield


@contextmanager
def opened(path, folder, name="tensorrt", profiles=(WIDE,), graphs=None, cuda=None, clean=True, **options):
    """A runner with engines of these profiles, and its fake library and device."""
    bundle = Bundle(path)
    api = cuda or FakeCuda()
    library = Library(api, rtx=name == "tensorrt-rtx")
    for graph in graphs or bundle.graphs:
        for profile in profiles:
            write_engine(folder, bundle, graph, profile.format(s=bundle.scale), name)
    with installed(library, name):
        runner = TensorRTRunner(bundle, name, "fp32", engines=folder, cuda=api, **options)
        try:
            yield runner, library, api
        finally:
            runner.close()
    assert api.violations == []
    if clean:
        assert api.alive() == {"device": 0, "host": 0, "graphs": 0, "streams": 0, "events": 0}
        gc.collect()
        assert library.loaded == 0


def frames(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (b, h, w, 3), np.uint8) for b, h, w in sizes]
