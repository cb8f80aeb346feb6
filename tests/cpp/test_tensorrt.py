"""The TensorRT backend against stand-ins for CUDA and TensorRT: engine files, sizes, memory, order, errors. Nothing is a GPU's."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
from collections.abc import Callable
from ctypes import byref
from pathlib import Path

import numpy as np
import pytest

from rescale.bundle import Bundle
from rescale.codes import alpha_to_file
from rescale.engine_file import EngineInfo, engine_name, engines_folder, sidecar, sidecar_bytes

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler

HERE = Path(__file__).resolve().parent


class DeviceTensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("shape", ctypes.c_int64 * 4)]


@pytest.fixture(scope="module")
def fake(cmake, native, tmp_path_factory) -> Path:
    """Folder of a build with the stand-ins."""
    options = [f"-DRESCALE_SOURCE={HERE.parents[1] / 'runtime' / 'cpp'}", f"-DTENSORRT_INCLUDE_DIR={HERE / 'tensorrt' / 'include'}"]
    options += [
        "-DRESCALE_WITH_TENSORRT=ON",
        "-DRESCALE_PROGRAMS=OFF",
        "-DRESCALE_WARNINGS_AS_ERRORS=ON",
        "-DCMAKE_BUILD_TYPE=None",
    ]
    return cmake(tmp_path_factory.mktemp("tensorrt"), *options, *native.header_option, source=HERE / "tensorrt")


@pytest.fixture
def cuda(fake):
    """The fake CUDA, which finds nothing wrong in the test."""
    library = ctypes.CDLL(str(fake / "libfake_cuda.so"))
    library.fake_cuda_objections.restype = ctypes.c_char_p
    library.fake_cuda_objections()
    yield library
    assert library.fake_cuda_objections() == b""


@pytest.fixture
def load(fake, cuda, native, monkeypatch):
    """Loads a bundle with the fake TensorRT."""
    library = type(native)(fake / "rescale" / "librescale.so", fake / "libnvinfer.so")

    def call(bundle: Path, **options: object):
        return library.load(bundle, **({"backend": "tensorrt", "precision": "fp32"} | options))

    return call


@pytest.fixture
def make(tmp_path) -> Callable[..., Path]:
    """Writes an engine with its sidecar; changes are to the sidecar's fields."""

    def write(bundle: Path, graph: str, low: int, high: int, folder: Path | None = None, **changes: object) -> Path:
        b = Bundle(bundle)
        entry = b.graph(graph, "fp32")
        factor = {"downscale": 1, "upscale": b.scale, "encoder": b.scale, "decoder": 4 * b.scale}[graph]
        grid = 4 if graph == "encoder" else 1
        planes = next((t.axes[1] for t in (*entry.inputs, *entry.outputs) if t.name == "z"), 0)
        sides = f"{low // factor} {-(-high // factor // grid) * grid}"
        data = f"fake {graph} {b.scale} {b.variant.lr_channels} {planes} {sides}".encode()
        target = (folder or tmp_path) / engine_name(graph, "fp32", "tensorrt", f"{low}-{high}", "ab" * 32)
        info = EngineInfo(
            path=target,
            backend="tensorrt",
            library="10.16.0.1",
            graph=graph,
            precision="fp32",
            model=b.variant.name,
            scale=b.scale,
            size=b.size,
            weights=b.network,
            onnx_sha256=entry.sha256,
            engine_sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            profile={"min": (1, low, low), "opt": (1, high, high), "max": (1, high, high)},
            compute_capabilities=("8.9",),
            device=None,
            inputs=entry.inputs,
            outputs=entry.outputs,
            census={},
            options={},
            key="ab" * 32,
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        sidecar(target).write_bytes(sidecar_bytes(dataclasses.replace(info, **changes)))
        return target

    return write


def message(failure, kind, call, *arguments) -> str:
    with pytest.raises(failure) as caught:
        call(*arguments)
    assert caught.value.kind == kind, caught.value
    return str(caught.value)


def wanted(hr: np.ndarray) -> np.ndarray:
    """What the fake network makes of an even picture."""
    small = hr[::2, ::2]
    return np.dstack([small, alpha_to_file(np.full(small.shape[:2], 200, np.uint8))])


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy as device memory is: at a multiple of 256."""
    raw = np.empty(array.nbytes + 256, np.uint8)
    out = raw[-raw.ctypes.data % 256 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def run_device(session, graph: str, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], stream=None) -> None:
    sides = [
        (DeviceTensor * len(arrays))(*(DeviceTensor(n.encode(), a.ctypes.data, a.shape) for n, a in arrays.items()))
        for arrays in (inputs, outputs)
    ]
    arguments = (sides[0], len(inputs), sides[1], len(outputs))
    session.native.call("rescale_run_device", session.pointer, graph.encode(), *arguments, stream)


class Stream:
    """A caller's stream, with kernels that bring bytes to the device and back."""

    def __init__(self, cuda):
        self.cuda, self.handle = cuda, ctypes.c_void_p()
        assert cuda.cudaStreamCreateWithFlags(byref(self.handle), 1) == 0

    def copy(self, target: np.ndarray, source: np.ndarray) -> None:
        pointers = (ctypes.c_void_p(a.ctypes.data) for a in (target, source))
        assert self.cuda.cudaMemcpyAsync(*pointers, ctypes.c_size_t(source.nbytes), 1, self.handle) == 0

    def wait(self) -> None:
        assert self.cuda.cudaStreamSynchronize(self.handle) == 0

    def end(self) -> None:
        assert self.cuda.cudaStreamDestroy(self.handle) == 0


@pytest.fixture
def streams(cuda):
    found = [Stream(cuda) for _ in range(2)]
    yield found
    for stream in found:
        stream.end()


def test_engines_are_chosen_by_size_and_run(load, make, bundle, picture, tmp_path):
    path = bundle("irn_a", 2)
    for graph in ("downscale", "upscale"):
        make(path, graph, 2, 32)
        make(path, graph, 32, 200)
    with_engines = load(path, engines=str(tmp_path))
    assert with_engines.info.runner == b"tensorrt, fp32, Fake GPU"
    for side in (10, 32, 60, 200):
        hr = picture(side, side)
        lr, _ = with_engines.downscale(hr)
        assert np.array_equal(lr, wanted(hr))
        back = with_engines.upscale(lr, None, np.zeros_like(hr))
        assert np.array_equal(back, np.repeat(np.repeat(hr[::2, ::2], 2, 0), 2, 1))
    with_engines.close()


def test_the_smallest_engine_runs_whatever_ran_before(load, make, fake, bundle, picture, tmp_path):
    path, ran = bundle("irn_a", 2), ctypes.CDLL(str(fake / "libnvinfer.so"))
    for low, high in ((2, 32), (2, 64), (2, 200)):
        make(path, "downscale", low, high)
    session = load(path, engines=str(tmp_path))
    for side, high in ((150, 200), (60, 64), (20, 32), (60, 64), (20, 32), (150, 200)):
        session.downscale(picture(side, side))
        assert ran.fake_trt_last_high() == high


def test_a_run_that_fails_leaves_the_callers_memory_alone(load, make, cuda, failure, bundle, picture, tmp_path, monkeypatch):
    """Copies from and to page-locked memory go on after the call that asked for them: somebody must wait for them."""
    path = bundle("irn_a", 2)
    make(path, "downscale", 2, 64)
    session = load(path, engines=str(tmp_path), tile_width=64, tile_height=64)
    hr = picture(20, 20)
    monkeypatch.setenv("FAKE_CUDA_COPIES", "1")  # the input's is under way, the output's fails
    assert "cudaMemcpyAsync" in message(failure, "out_of_memory", session.downscale, hr)
    assert cuda.fake_cuda_under_way() == 0
    monkeypatch.delenv("FAKE_CUDA_COPIES")
    assert np.array_equal(session.downscale(hr)[0], wanted(hr))


def test_the_cache_folder_is_pythons(load, make, failure, corrected_pair, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("RESCALE_CACHE", str(tmp_path / "cache"))
    hr = picture(20, 20)
    for path in corrected_pair:
        session = load(path)
        # Engines of an encoder without corrections are not those of one with them.
        assert "no fp32 tensorrt engine of downscale covers" in message(failure, "backend", session.downscale, hr)
        session.close()
        make(path, "downscale", 2, 64, engines_folder(Bundle(path)))
        assert np.array_equal(load(path).downscale(hr)[0], wanted(hr))


def test_device_memory_of_the_caller(load, make, cuda, failure, bundle, picture, tmp_path):
    path = bundle("irn_a", 2)
    make(path, "downscale", 2, 64)
    session = load(path, engines=str(tmp_path))
    hr, lr = aligned(picture(16, 24)[None]), aligned(np.zeros((1, 8, 12, 4), np.uint8))

    def run(name: str = "lr", out: np.ndarray = lr, graph: str = "downscale", given: np.ndarray = hr) -> None:
        run_device(session, graph, {"hr": given}, {name: out})

    run()
    assert cuda.cudaStreamSynchronize(None) == 0
    assert np.array_equal(lr[..., :3], hr[:, ::2, ::2])
    assert "downscale: wanted are lr" in message(failure, "backend", run, "rl")
    assert "another shape than its memory" in message(failure, "backend", run, "lr", lr[:, :7])
    assert "unknown graph 'sidescale'" in message(failure, "input", run, "lr", lr, "sidescale")
    slipped = "its address is not a multiple of 256, as that of a slice may be; give a copy of it"
    assert message(failure, "backend", run, "lr", lr[:, 1:]) == f"downscale: lr: {slipped}"
    assert message(failure, "backend", run, "lr", lr, "downscale", hr[:, 1:]) == f"downscale: hr: {slipped}"
    assert "downscale: wanted are hr" in message(failure, "backend", run_device, session, "downscale", {}, {})


def test_a_run_is_in_the_order_of_the_callers_stream(load, make, cuda, streams, bundle, picture, tmp_path):
    path = bundle("irn_a", 2)
    for graph in ("downscale", "upscale"):
        make(path, graph, 2, 64)
    session = load(path, engines=str(tmp_path))
    pictures, got = [picture(16, 24)[None], picture(24, 32)[None]], []
    for stream, source in zip(streams, pictures, strict=True):
        hr, lr = aligned(np.zeros_like(source)), aligned(np.zeros((1, *(n // 2 for n in source.shape[1:3]), 4), np.uint8))
        back, small, large = aligned(np.zeros_like(hr)), np.zeros_like(lr), np.zeros_like(hr)
        # Before, between and behind the runs in the same stream; both streams share the engines.
        stream.copy(hr, source)
        run_device(session, "downscale", {"hr": hr}, {"lr": lr}, stream.handle)
        stream.copy(small, lr)
        run_device(session, "upscale", {"lr": lr}, {"hr": back}, stream.handle)
        stream.copy(large, back)
        got.append((hr, lr, back, small, large))
    assert cuda.fake_cuda_under_way() == 2 * 5  # it has waited for nothing
    streams[1].wait()
    streams[0].wait()
    for source, (_, _, _, small, large) in zip(pictures, got, strict=True):
        assert np.array_equal(small[..., :3], source[:, ::2, ::2])
        assert np.array_equal(large, source[:, ::2, ::2].repeat(2, 1).repeat(2, 2))


def test_a_run_from_the_host_comes_after_the_callers(load, make, cuda, streams, failure, bundle, picture, tmp_path, monkeypatch):
    path = bundle("irn_a", 2)
    make(path, "downscale", 2, 64)
    session = load(path, engines=str(tmp_path))
    hr, lr = aligned(picture(16, 24)[None]), aligned(np.zeros((1, 8, 12, 4), np.uint8))
    run_device(session, "downscale", {"hr": hr}, {"lr": lr}, streams[0].handle)
    assert np.array_equal(session.downscale(hr[0])[0], wanted(hr[0]))
    monkeypatch.setenv("FAKE_TRT_FAILS", "1")  # half of such a run is under way
    run = (run_device, session, "downscale", {"hr": hr}, {"lr": lr}, streams[0].handle)
    assert "enqueueV3 failed: a kernel was not launched" in message(failure, "backend", *run)
    monkeypatch.delenv("FAKE_TRT_FAILS")
    assert np.array_equal(session.downscale(hr[0])[0], wanted(hr[0]))
    for stream in streams:
        stream.wait()


def test_the_end_of_a_session_waits_for_the_callers_runs(load, make, cuda, streams, bundle, picture, tmp_path):
    path = bundle("irn_a", 2)
    make(path, "downscale", 2, 64)
    hr, lr = aligned(picture(16, 24)[None]), aligned(np.zeros((1, 8, 12, 4), np.uint8))
    session = load(path, engines=str(tmp_path))
    run_device(session, "downscale", {"hr": hr}, {"lr": lr}, streams[0].handle)
    session.close()
    assert np.array_equal(lr[..., :3], hr[:, ::2, ::2])


def test_networks_with_latent_planes_run(load, make, cuda, streams, bundle, picture, tmp_path):
    """z, single precision, is a second output and a second input."""
    path = bundle("irn_m", 2)
    for graph in ("downscale", "upscale", "encoder", "decoder"):
        make(path, graph, 8, 128)
    session = load(path, engines=str(tmp_path))
    for height, width in ((32, 48), (30, 46)):
        hr = picture(height, width)
        lr, code = session.downscale(hr)
        assert np.array_equal(lr, hr[::2, ::2])
        padded = np.pad(lr, ((0, -lr.shape[0] % 4), (0, -lr.shape[1] % 4), (0, 0)), "edge")
        assert np.array_equal(code, padded[::4, ::4, [0, 1, 2, 0]].transpose(2, 0, 1))
        got = session.upscale(lr, code, np.zeros_like(hr))
        change = np.kron(2 * code.astype(int) + 1, np.ones((8, 8), int))[:3, :height, :width]
        assert np.array_equal(got, (lr.repeat(2, 0).repeat(2, 1) ^ change.transpose(1, 2, 0)).astype(np.uint8))
    # The same in the caller's memory, whatever the order of the names.
    planes = next(t.axes[1] for t in Bundle(path).graph("decoder", "fp32").outputs)
    small, z = aligned(lr[None, :12, :20]), aligned(np.full((1, planes, 12, 20), 3.5, np.float32))
    for inputs in ({"lr": small, "z": z}, {"z": z, "lr": small}):
        large = aligned(np.zeros((1, 24, 40, 3), np.uint8))
        run_device(session, "upscale", inputs, {"hr": large}, streams[0].handle)
        streams[0].wait()
        assert np.array_equal(large, small.repeat(2, 1).repeat(2, 2) ^ 7)


def test_engines_of_other_versions_and_sizes_stand_in_nobodys_way(load, make, failure, bundle, picture, tmp_path):
    path = bundle("irn_a", 2)
    old = make(path, "downscale", 2, 64, library="9.3.0.1", bytes=3, engine_sha256=hashlib.sha256(b"xyz").hexdigest())
    old.write_bytes(b"xyz")
    small = make(path, "downscale", 2, 16)
    small.write_bytes(b"")
    session = load(path, engines=str(tmp_path))
    hr = picture(20, 20)
    refused = message(failure, "backend", session.downscale, hr)
    assert f"{old}: built by version 9.3.0.1: deserializeCudaEngine failed: header.magicTag" in refused
    assert "; build one with rescale-engine build" in refused
    assert small.name not in refused
    make(path, "downscale", 2, 128)
    assert np.array_equal(session.downscale(hr)[0], wanted(hr))
    assert "truncated" in message(failure, "backend", load(path, engines=str(tmp_path)).downscale, picture(10, 10))


def test_engines_of_padded_planes_are_found_by_the_pictures_size(load, make, failure, bundle, picture, tmp_path):
    path = bundle("irn_m", 2)
    session = load(path, engines=str(tmp_path))
    planes, code = aligned(np.zeros((1, 9, 12, 16), np.float32)), aligned(np.zeros((1, 4, 3, 4), np.uint8))
    arguments = (session, "encoder", {"z": planes}, {"code": code})
    assert f"--profile 1x24x32 --out {tmp_path}," in message(failure, "backend", run_device, *arguments)
    # LR sides of 11 and 15 are padded to 12 and 16: the engine is asked, and this one is not whole.
    make(path, "encoder", 2, 30).write_bytes(b"")
    assert "truncated" in message(failure, "backend", run_device, *arguments)


def test_the_callers_device_stays_and_nothing_is_left(load, make, cuda, failure, bundle, picture, tmp_path, monkeypatch):
    path = bundle("irn_a", 2)
    make(path, "downscale", 2, 64)
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "2")
    before = cuda.fake_cuda_held()
    session = load(path, engines=str(tmp_path), device=1)
    assert cuda.fake_cuda_device() == 0
    assert cuda.fake_cuda_held() == before + 2
    session.downscale(picture(20, 20))
    assert (cuda.fake_cuda_device(), cuda.fake_cuda_last_device()) == (0, 1)
    session.close()
    assert cuda.fake_cuda_device() == 0
    assert "has no createInferRuntime_INTERNAL" in message(
        failure, "backend", lambda: load(path, library="libpng16.so.16", device=1)
    )
    assert (cuda.fake_cuda_device(), cuda.fake_cuda_held()) == (0, before)


def test_engines_that_do_not_fit_or_are_not_whole(load, make, failure, bundle, picture, tmp_path, monkeypatch):
    path, other = bundle("irn_a", 2), bundle("dlv_irn_a", 2)
    hr = picture(20, 20)
    session = load(path, engines=str(tmp_path))
    absent = message(failure, "backend", session.downscale, hr)
    assert "no fp32 tensorrt engine of downscale covers hr of 1x20x20x3" in absent
    assert "rescale-engine build" in absent
    assert absent.endswith(f" --profile 1x20x20 --out {tmp_path}, or run in smaller tiles")
    make(other, "downscale", 2, 64)
    assert message(failure, "backend", session.downscale, hr) == absent
    make(path, "downscale", 2, 64, onnx_sha256="cd" * 32)
    assert message(failure, "backend", session.downscale, hr) == absent
    make(path, "downscale", 2, 64, device="Other GPU")
    assert "was built for Other GPU, this is Fake GPU" in message(failure, "backend", session.downscale, hr)
    engine = make(path, "downscale", 2, 64)
    whole = engine.read_bytes()
    for change, words in (
        (whole[:-1], "truncated: "),
        (whole + b"x", "changed: "),
        (whole[::-1], "changed: its SHA-256"),
    ):
        engine.write_bytes(change)
        assert words in message(failure, "backend", session.downscale, hr)
    engine.unlink()
    assert "half-written" in message(failure, "backend", session.downscale, hr)
    foreign = make(path, "downscale", 2, 64, bytes=3, engine_sha256=hashlib.sha256(b"xyz").hexdigest())
    foreign.write_bytes(b"xyz")
    refused = message(failure, "backend", session.downscale, hr)
    assert "built by version 10.16.0.1: deserializeCudaEngine failed: header.magicTag" in refused
    sidecar(foreign).write_text('{"format": "rescale-engine/1"}')
    assert "damaged sidecar: 'backend' is missing" in message(failure, "backend", session.downscale, hr)
    session.close()
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    assert "no CUDA device 0 (CUDA driver version is insufficient)" in message(failure, "backend", load, path)
    monkeypatch.delenv("FAKE_CUDA_DEVICES")
    assert "built with the headers of tensorrt" in message(failure, "backend", lambda: load(path, backend="tensorrt-rtx"))


def test_a_device_short_of_memory_gets_smaller_pieces(load, make, failure, bundle, picture, tmp_path, monkeypatch):
    path = bundle("irn_a", 2)
    make(path, "downscale", 2, 4000)
    hr = picture(1400, 1400)
    budget = (64 << 20) + 8 * Bundle(path).memory("downscale") * 700 * 700
    monkeypatch.setenv("FAKE_CUDA_BYTES", str(1400 * 1400))
    session = load(path, engines=str(tmp_path), memory=budget)
    assert np.array_equal(session.downscale(hr)[0], wanted(hr))
    told: list[tuple[int, int]] = []
    # Memory that the device found stays: a session of its own, which begins again with more tiles.
    watched = load(path, engines=str(tmp_path), memory=budget).with_progress(lambda *how: told.append(how))
    assert np.array_equal(watched.downscale(hr)[0], wanted(hr))
    last = told[-1][1]
    assert told[-last - 1 :] == [(i, last) for i in range(last + 1)]
    assert {done for done, _ in told[: -last - 1]} == {0}
    assert told[0][1] < last
    monkeypatch.setenv("FAKE_CUDA_BYTES", "100")
    fresh = load(path, engines=str(tmp_path), memory=budget)
    assert "out of memory" in message(failure, "out_of_memory", fresh.downscale, hr)
