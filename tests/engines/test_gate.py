"""A precision that loses too much does not become an engine; an engine that computes something else does not stay."""

from __future__ import annotations

import json
import shutil
import sys

import fake_tensorrt
import numpy as np
import pytest

import rescale.backends.tensorrt
import rescale.flavour
from rescale import extras
from rescale.backends import create
from rescale.bundle import MANIFEST, Bundle
from rescale.cuda.fake import FakeCuda
from rescale.engine_file import read_info
from rescale.errors import BackendError, EngineError, OutOfMemoryError, ParityError
from rescale_engines import build as module
from rescale_engines import gate
from rescale_engines.build import Options
from rescale_engines.gate import build_checked, measure_engines
from rescale_engines.profiles import parse_profile

pytestmark = pytest.mark.usefixtures("rtx")


def spoilt(bundle: Bundle, other: Bundle, *precisions: str) -> Bundle:
    """A bundle whose upscale graphs of these precisions are of other weights: well-formed, and wrong."""
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    theirs = json.loads((other.path / MANIFEST).read_text())
    for precision in precisions:
        at = manifest["graphs"] if precision == "fp32" else manifest["precisions"][precision]
        foreign = theirs["graphs"] if precision == "fp32" else theirs["precisions"][precision]
        at["upscale"] = foreign["upscale"] | {"file": f"other.{foreign['upscale']['file']}"}
        shutil.copy(other.path / foreign["upscale"]["file"], bundle.path / at["upscale"]["file"])
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    return Bundle(bundle.path)


@pytest.fixture
def other(full_bundle, make_net, tmp_path):
    from rescale_export.bundles import write_bundle

    return write_bundle(make_net("irn_a", 2, seed=1), tmp_path / "other", precisions=("mixed", "fp16"))


@pytest.fixture
def options(tmp_path):
    return Options(folder=tmp_path / "engines")


def engines(options) -> list[str]:
    return sorted(p.name.split(".")[1] for p in options.folder.glob("*.engine"))


def test_all_graphs_and_profiles_pass(own_bundle, profile, options):
    done = []
    found = build_checked(own_bundle, [profile, parse_profile("64x64", 2)], options=options, done=done.append)
    assert found.precision == "mixed"
    assert [b.info.graph for b in done] == ["downscale", "upscale"] * 2
    assert len({b.info.path for b in done}) == 4
    for built in found.engines:
        assert built.info.parity["psnr_lost"] <= 0.02
        assert "every float16 result rounded" in built.info.parity["runner"]
    assert json.loads(json.dumps(found.to_dict()))["precision"] == "mixed"
    assert found.parity.keys() | found.unmeasured.keys() == {"1x2x2-1x64x64-1x128x128", "1x64x64-1x64x64-1x64x64"}


def test_falling_back(own_bundle, other, profile, options):
    bundle = spoilt(own_bundle, other, "fp16", "mixed")
    found = build_checked(bundle, [profile], precision="fp16", options=options)
    assert found.precision == "fp32"
    assert list(found.choice.refused) == ["fp16", "mixed"]
    assert engines(options) == ["fp32", "fp32"]
    assert all("HALF" not in row for built in found.engines for row in built.info.census.values())


def test_exact_precision_is_refused_instead(own_bundle, other, profile, options):
    bundle = spoilt(own_bundle, other, "mixed")
    with pytest.raises(ParityError, match=r"mixed refused at .*; leave out --exact-precision to build fp32"):
        build_checked(bundle, [profile], options=options, exact=True)
    assert not options.folder.exists()
    assert build_checked(bundle, [profile], ["upscale"], precision="fp16", options=options, exact=True).precision == "fp16"


def test_nothing_is_built_if_all_precisions_fail(own_bundle, other, profile, options):
    bundle = spoilt(own_bundle, other, "mixed", "fp32")
    with pytest.raises(ParityError, match=r"mixed refused .* fp32 refused"):
        build_checked(bundle, [profile], options=options)
    assert not options.folder.exists()


# On a device. What runs there is ONNX Runtime in its place, or something that is wrong.


class Wrong:
    """A device whose results are zero, or of a shape that is none."""

    name = "wrong"

    def __init__(self, runner, shapeless):
        self.runner, self.shapeless = runner, shapeless

    def run(self, graph, inputs):
        return {k: np.zeros_like(v)[:0] if self.shapeless else np.zeros_like(v) for k, v in self.runner.run(graph, inputs).items()}

    def close(self):
        self.runner.close()


@pytest.fixture
def device(monkeypatch):
    """Pretend that a device is here; returns a function that says what engines of a precision compute on it."""
    monkeypatch.setattr(gate, "probe", lambda: (1, ""))
    wrong: set[str] = set()

    def opened(bundle, backend, precision, engines):
        runner = create(bundle, "onnxruntime", precision=precision)
        return Wrong(runner, precision == "fp16") if precision in wrong else runner

    monkeypatch.setattr(gate, "_open", opened)
    return wrong.update


def test_engines_are_measured_where_they_run(own_bundle, profile, options, device):
    found = build_checked(own_bundle, [profile], options=options)
    assert found.unmeasured == {}
    (parity,) = found.parity.values()
    assert parity.failure() is None
    # The profile ends at 128x128: the photograph is larger.
    assert 0 < len(parity.cases) < 4
    (parity,) = build_checked(own_bundle, [parse_profile("hd", 2)], options=options).parity.values()
    assert len(parity.cases) == 4


def test_engines_that_compute_something_else_are_deleted(own_bundle, profile, options, device):
    device({"fp16", "mixed"})
    found = build_checked(own_bundle, [profile], precision="fp16", options=options)
    assert found.precision == "fp32"
    assert list(found.refused) == ["fp16", "mixed"]
    assert "PyTorch gives uint8" in found.refused["fp16"]
    assert engines(options) == ["fp32", "fp32"]
    device({"fp32"})
    with pytest.raises(ParityError, match=r"engines on tensorrt-rtx: mixed refused .*; fp32 refused .*; they were deleted"):
        build_checked(own_bundle, [profile], options=options)
    assert engines(options) == []
    with pytest.raises(ParityError, match="mixed refused"):
        build_checked(own_bundle, [profile], options=options, exact=True)


class Failing:
    """Engines of one generation that do not run."""

    name = "failing"

    def __init__(self, error):
        self.error = error

    def run(self, graph, inputs):
        raise self.error

    def close(self):
        pass


@pytest.fixture
def own_gpu(monkeypatch, rtx, device):
    """Pretend that TensorRT and its GPU are here; returns a list of errors, of which each opened runner takes one and fails."""
    monkeypatch.setitem(sys.modules, "tensorrt", rtx.module)
    monkeypatch.setattr(rescale.flavour, "probe", lambda *_: (1, ""))
    monkeypatch.setattr(module, "device", lambda: rescale.flavour.Device("GPU A", "9.0"))
    works, errors = gate._open, []

    def opened(*arguments):
        return Failing(errors.pop(0)) if errors else works(*arguments)

    monkeypatch.setattr(gate, "_open", opened)
    return errors


def test_engines_that_do_not_run_on_their_own_gpu_do_not_stay(own_bundle, profile, options, own_gpu):
    def build():
        return build_checked(own_bundle, [profile], backend="tensorrt", options=options)

    own_gpu.append(BackendError("execution: execute_async_v3 failed"))
    with pytest.raises(EngineError, match=r"^execution: execute_async_v3 failed; the engines were deleted$"):
        build()
    assert engines(options) == []
    assert [b.reused for b in build().engines] == [False, False]
    # Those that are there already are built once more, and the report says why.
    own_gpu.append(EngineError("deserialize_cuda_engine failed"))
    found = build()
    assert [(b.reused, b.reason) for b in found.engines] == [(False, "did not run: deserialize_cuda_engine failed")] * 2
    assert [b.reused for b in build().engines] == [True, True]
    own_gpu += [EngineError("old"), EngineError("new")]
    with pytest.raises(EngineError, match=r"^new; the engines were deleted$"):
        build()
    assert engines(options) == []


def test_engines_stay_where_the_device_is_at_fault(own_bundle, profile, options, own_gpu, monkeypatch):
    own_gpu.append(OutOfMemoryError("not enough memory"))
    with pytest.raises(OutOfMemoryError, match=r"^not enough memory$"):
        build_checked(own_bundle, [profile], backend="tensorrt", options=options)
    assert len(engines(options)) == 2

    def busy(*arguments):
        raise BackendError("cudaErrorDevicesUnavailable")

    monkeypatch.setattr(gate, "_open", busy)
    with pytest.raises(BackendError, match=r"^cudaErrorDevicesUnavailable$"):
        build_checked(own_bundle, [profile], backend="tensorrt", options=options)
    assert len(engines(options)) == 2


def test_each_profile_is_measured_by_its_own_engines(own_bundle, other, tmp_path, monkeypatch):
    api = FakeCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.Library(api).module)
    monkeypatch.setattr(rescale.flavour, "_loggers", {})
    monkeypatch.setattr(rescale.flavour, "probe", lambda *_: (1, ""))
    monkeypatch.setattr(rescale.flavour, "device", lambda: rescale.flavour.Device("Fake GPU", "9.9"))
    monkeypatch.setattr(gate, "probe", lambda: (1, ""))
    monkeypatch.setattr(rescale.backends.tensorrt, "open_api", lambda *_: api)

    def engines(profile, of=own_bundle):
        written = []
        for name in ("downscale", "upscale"):
            true = {"weights": own_bundle.network, "onnx_sha256": own_bundle.graph(name, "fp32").sha256}
            written.append(read_info(fake_tensorrt.write_engine(tmp_path / "engines", of, name, profile, **true)))
        return written

    # All take pictures from the smallest on: by size alone the small engines would run, whoever's these are.
    small, large, fixed = (
        engines("1x2x2:1x64x64:1x96x96", other),
        engines("1x2x2:1x64x64:1x512x512"),
        engines("1x64x64:1x64x64:1x64x64"),
    )
    parity, unmeasured = measure_engines(own_bundle, "tensorrt", "fp32", [*large, *fixed])
    assert {words: found.failure() for words, found in parity.items()} == {"1x2x2-1x64x64-1x512x512": None}
    assert unmeasured == {"1x64x64-1x64x64-1x64x64": "no golden picture is of a size that it takes"}
    parity, _ = measure_engines(own_bundle, "tensorrt", "fp32", [*large, *small])
    assert {words for words, found in parity.items() if found.failure()} == {"1x2x2-1x64x64-1x96x96"}
    assert api.violations == []


def test_why_engines_were_not_measured(own_bundle, profile, options, device, monkeypatch):
    def why(found):
        (reason,) = found.unmeasured.values()
        return reason

    assert "graph upscale was not built" in why(build_checked(own_bundle, [profile], ["downscale"], options=options))
    tiny = parse_profile("64x64", 2)
    both = build_checked(own_bundle, [profile, tiny], options=options)
    assert list(both.parity) == ["1x2x2-1x64x64-1x128x128"]
    assert "no golden picture" in why(both)
    infos = [b.info for b in build_checked(own_bundle, [profile], options=options).engines]
    words = str(profile)

    def broken(bundle, backend, precision, engines):
        raise BackendError("compute capability 9.0 is not supported")

    # An engine for another GPU than this one is no failure; one built on this very GPU has to run.
    assert measure_engines(own_bundle, "tensorrt-rtx", "mixed", infos, broken)[1][words].startswith("compute capability 9.0")
    with pytest.raises(BackendError, match=r"9\.0"):
        measure_engines(own_bundle, "tensorrt", "mixed", infos, broken)
    monkeypatch.setattr(gate, "probe", lambda: (0, "no driver"))
    assert measure_engines(own_bundle, "tensorrt", "mixed", infos) == ({}, {words: "no CUDA device here (no driver)"})
    monkeypatch.undo()
    monkeypatch.setattr(extras.importlib, "import_module", _missing)
    assert "pip install" in measure_engines(own_bundle, "tensorrt", "mixed", infos)[1][words]


def _missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
