"""The same on a real device: `pytest -m gpu`. A package that is not installed is skipped by name; a missing device fails."""

from __future__ import annotations

import contextlib
import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from captured_copies import replay

from rescale import flavour, parity
from rescale.backends.onnxruntime import OnnxRuntimeRunner
from rescale.backends.tensorrt import TensorRTRunner
from rescale.cuda import NAMES, open_api
from rescale.cuda.arrays import DeviceArray, to_device, view
from rescale.errors import BackendError, EngineError, MissingExtraError, OutOfMemoryError
from rescale.rescaler import Rescaler

pytestmark = pytest.mark.gpu

SIDE = "1x{s}x{s}:1x256x256:4x512x512"


@pytest.fixture(params=NAMES)
def api(request):
    try:
        return open_api(request.param)
    except MissingExtraError as e:
        pytest.skip(str(e))
    except BackendError as e:
        if request.param == "torch" and "build for the CPU" in str(e):
            pytest.skip(str(e))
        raise


def free_memory():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    runtime.cudaDeviceSynchronize()
    return runtime.cudaMemGetInfo()[1]


@pytest.mark.parametrize("nbytes", [1, 255, 256, 1 << 20, 100_000_003])
def test_bytes_go_there_and_come_back(api, nbytes):
    want = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    array = to_device(api, want)
    assert array.pointer % 256 == 0
    assert np.array_equal(array.to_host(), want)
    array.free()


def test_two_streams_in_order_by_an_event(api):
    n = 64 << 20
    with api.current():
        a, b, event, done = api.create_stream(), api.create_stream(), api.create_event(), api.create_event()
        device, host, back = api.allocate(n), api.allocate_host(n), api.allocate_host(n)
        for value in range(1, 6):
            host.array()[:] = value
            back.array()[:] = 0
            api.to_device(device, host, n, a)
            api.record(event, a)
            api.wait(b, event)
            api.to_host(back, device, n, b)
            api.record(done, b)
            api.synchronize_event(done)
            assert (back.array() == value).all()
        api.free(device)
        api.free_host(host)
        api.free_host(back)
        for e in (event, done):
            api.destroy_event(e)
        for s in (a, b):
            api.destroy_stream(s)


def test_memory_in_the_order_of_a_stream(api):
    with api.current():
        stream = api.create_stream()
        host, back, event = api.allocate_host(1000), api.allocate_host(1000), api.create_event()
        for value in range(50):
            host.array()[:] = value
            device = api.allocate(1000, stream)
            api.to_device(device, host, 1000, stream)
            api.to_host(back, device, 1000, stream)
            api.free(device)
            api.record(event, stream)
            api.synchronize_event(event)
            assert (back.array() == value).all()
        api.free_host(host)
        api.free_host(back)
        api.destroy_event(event)
        api.destroy_stream(stream)


def test_too_much_memory_is_its_own_error_and_does_no_harm(api):
    with api.current():
        for stream in (None, api.caller_stream(None)):
            with pytest.raises(OutOfMemoryError):
                api.allocate(1 << 50, stream)
            api.free(api.allocate(1 << 20, stream))
        api.synchronize()


def test_a_graph_replays_its_copies(api):
    if not api.captures:
        pytest.skip(f"{api.name} has no CUDA graphs")
    with api.current():
        stream, event = api.create_stream(), api.create_event()

        def wait() -> None:
            api.record(event, stream)
            api.synchronize_event(event)

        graph, device, host, back = replay(api, stream, 4096, (7, 8), wait)
        # What a capture forbids fails, and the stream is good afterwards.
        api.begin_capture(stream)
        with pytest.raises(BackendError):
            api.synchronize_event(event)
        with pytest.raises(BackendError):
            api.end_capture(stream)
        api.to_device(device, host, 4096, stream)
        api.synchronize()
        api.destroy_graph(graph)
        api.free(device)
        api.free_host(host)
        api.free_host(back)
        api.destroy_event(event)
        api.destroy_stream(stream)


def test_other_threads_go_on_while_a_stream_captures(api):
    if not api.captures:
        pytest.skip(f"{api.name} has no CUDA graphs")
    want = np.arange(1000, dtype=np.uint8)

    def meanwhile():
        for stream in (None, own):
            array = to_device(api, want, stream)
            assert np.array_equal(array.to_host(), want)
            array.free()
        with api.current():
            api.free(api.allocate(1 << 20))

    with api.current():
        stream, own = api.create_stream(), api.create_stream()
        device, host = api.allocate(1000), api.allocate_host(1000)
        api.begin_capture(stream)
        api.to_device(device, host, 1000, stream)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(meanwhile).result()
        api.destroy_graph(api.end_capture(stream))
        api.free(device)
        api.free_host(host)
        for s in (stream, own):
            api.destroy_stream(s)


def test_threads_share_the_device_and_free_each_others_memory(api):
    def work(i):
        want = np.full(1 << 20, i, np.uint8)
        array = to_device(api, want)
        assert np.array_equal(array.to_host(), want)
        return array

    with ThreadPoolExecutor(8) as pool:
        for array in pool.map(work, range(64)):
            array.free()


def test_nothing_is_left_after_a_thousand_allocations():
    api = open_api("cuda-python")
    with api.current():
        api.free(api.allocate(1 << 20))
        before = free_memory()
        for _ in range(1000):
            api.free(api.allocate(1 << 20))
            api.free(api.allocate(1 << 20, api.caller_stream(None)))
        assert before - free_memory() <= 64 << 20


def test_torch_takes_and_gives_arrays_without_a_copy(api):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    want = np.random.default_rng(1).integers(0, 256, (3, 40, 50), np.uint8)
    array = to_device(api, want)
    tensor = torch.from_dlpack(array)
    assert tensor.data_ptr() == array.pointer
    assert torch.equal(tensor.cpu(), torch.from_numpy(want))
    by_interface = torch.as_tensor(array, device="cuda")
    assert by_interface.data_ptr() == array.pointer
    pointer = array.pointer
    del array, by_interface
    gc.collect()
    assert torch.equal(tensor.cpu(), torch.from_numpy(want))
    with api.current():
        stream = api.caller_stream(None)
        for value in (tensor, torch.rand(5, 6, device="cuda")):
            found = view(api, value, "x", stream)
            assert found.pointer == value.data_ptr()
            assert found.shape == tuple(value.shape)
        assert view(api, tensor, "x", stream).pointer == pointer
        with pytest.raises(BackendError, match="not C-contiguous"):
            view(api, tensor.transpose(1, 2), "x", stream)
        with pytest.raises(BackendError, match=r"wanted is \(2, 0\): copy it there"):
            view(api, tensor.cpu(), "x", stream)


def test_only_the_primary_context_is_used(api):
    """PyTorch's context is the primary one: its pointers are good in ours, in a thread that has no context yet too."""
    driver = pytest.importorskip("cuda.bindings.driver")
    _, primary = driver.cuDevicePrimaryCtxRetain(driver.cuDeviceGet(0)[1])

    def used():
        with api.current():
            api.free(api.allocate(1000))
            # Memory that PyTorch has at hand comes without a call of CUDA, which would make the context the thread's.
            api.synchronize()
            return int(driver.cuCtxGetCurrent()[1])

    with ThreadPoolExecutor(1) as pool:
        assert used() == pool.submit(used).result() == int(primary)
    driver.cuDevicePrimaryCtxRelease(driver.cuDeviceGet(0)[1])
    assert "pycuda.autoinit" not in sys.modules


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A bundle of trained weights."""
    from rescale_export.bundles import write_bundle
    from rescale_train import checkpoint
    from rescale_train.shipped import list_shipped

    weights = next(s for s in list_shipped() if s.model == "dlv_irn_a")
    net = checkpoint.read_net(weights.path)
    return write_bundle(net, tmp_path_factory.mktemp("gpu") / "bundle", weights.card)


@pytest.fixture(scope="module", params=[(b, p) for b in flavour.NAMES for p in ("fp32", "mixed")], ids="-".join)
def engines(request, shipped, tmp_path_factory):
    """Engines of a backend and precision: (backend, precision, folder). A GPU that RTX does not know is skipped in its words."""
    from rescale_engines.build import Options, ensure
    from rescale_engines.profiles import parse_profile

    backend, precision = request.param
    try:
        flavour.load(backend)
    except MissingExtraError as e:
        pytest.skip(str(e))
    folder = tmp_path_factory.mktemp("engines")
    for graph in shipped.graphs:
        ensure(
            shipped, graph, parse_profile(SIDE.format(s=shipped.scale), shipped.scale), backend, precision, Options(folder=folder)
        )
    with contextlib.closing(TensorRTRunner(shipped, backend, precision, engines=folder)) as runner:
        try:
            runner.run("downscale", {"hr": np.zeros((1, 64, 64, 3), np.uint8)})
        except EngineError as e:
            if backend == "tensorrt-rtx" and "compute capability" in str(e):
                pytest.skip(f"{flavour.device()}: {e}")
            raise
    return backend, precision, folder


@pytest.fixture
def runner(engines, shipped, api):
    backend, precision, folder = engines
    made = TensorRTRunner(shipped, backend, precision, engines=folder, cuda=api)
    yield made
    made.close()
    gc.collect()


def close_to(got, want):
    delta = np.abs(got.astype(int) - want)
    return delta.max() <= 2 and (delta != 0).mean() <= 0.05


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (b, h, w, 3), np.uint8) for b, h, w in sizes]


@pytest.fixture(scope="module")
def cpu(shipped):
    made = OnnxRuntimeRunner(shipped)
    yield made
    made.close()


def test_engines_pass_the_parity_gate(runner, shipped):
    found = parity.measure(shipped, runner.run)
    print(runner.name, found.to_dict()["psnr_lost"], {k: c.to_dict() for k, c in found.total().items()}, runner.notes)
    found.require(runner.name)


def test_pictures_of_any_size_one_after_another(runner, cpu):
    items = [{"hr": x} for x in pictures((1, 64, 64), (1, 2, 2), (1, 510, 130), (3, 96, 96), (1, 64, 64), (9, 40, 60))]
    for item in items:
        assert close_to(runner.run("downscale", item)["lr"], cpu.run("downscale", item)["lr"])
    same = [items[0]] * 20
    want = cpu.run("downscale", items[0])["lr"]
    assert all(close_to(g["lr"], want) for g in runner.run_many("downscale", same))
    with pytest.raises(EngineError, match=r"rescale-engine build .* --profile 1x514x64"):
        runner.run("downscale", {"hr": pictures((1, 514, 64))[0]})


def test_pictures_larger_than_the_engine_run_in_tiles(runner, shipped, cpu, picture):
    image = picture(700, 900)
    got = Rescaler(shipped, runner, tile=(120, 120)).downscale(image)
    want = Rescaler(shipped, cpu).downscale(image)
    assert close_to(got.rgb, want.rgb)


def test_eight_threads_share_a_runner(runner, cpu):
    items = [{"hr": x} for x in pictures(*[(1, 64 + 2 * (i % 7), 80) for i in range(64)])]
    want = [cpu.run("downscale", item)["lr"] for item in items[:7]]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda item: runner.run("downscale", item)["lr"], items))
    assert all(close_to(g, cpu.run("downscale", item)["lr"]) for g, item in zip(got[:14], items[:14], strict=True))
    assert want[0].shape == got[0].shape


def test_device_arrays_in_the_callers_stream(runner, cpu, api):
    (x,) = pictures((2, 128, 96))
    want = cpu.run("downscale", {"hr": x})["lr"]
    for _ in range(20):
        lr = runner.run_device("downscale", {"hr": to_device(api, x)})
        assert isinstance(lr["lr"], DeviceArray)
        hr = runner.run_device("upscale", lr)["hr"]
    assert close_to(lr["lr"].to_host(), want)
    assert close_to(hr.to_host(), cpu.run("upscale", {"lr": lr["lr"].to_host()})["hr"])


def test_torch_tensors_in_a_torch_stream(engines, shipped, cpu):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    backend, precision, folder = engines
    runner = TensorRTRunner(shipped, backend, precision, engines=folder, cuda="torch")
    (x,) = pictures((1, 256, 256))
    want = cpu.run("downscale", {"hr": x})["lr"]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            # Work before and after in the same stream: wrong order would show.
            hr = torch.zeros(x.shape, dtype=torch.uint8, device="cuda")
            hr.copy_(torch.from_numpy(x).pin_memory(), non_blocking=True)
            lr = torch.from_dlpack(runner.run_device("downscale", {"hr": hr}, stream)["lr"])
            out = lr.clone()
    stream.synchronize()
    assert close_to(out.cpu().numpy(), want)
    target = torch.empty(want.shape, dtype=torch.uint8, device="cuda")
    assert runner.run_device("downscale", {"hr": hr}, outputs={"lr": target})["lr"] is target
    torch.cuda.synchronize()
    assert close_to(target.cpu().numpy(), want)
    runner.close()


def test_graphs_give_the_same_bytes(engines, shipped):
    backend, precision, folder = engines
    (x,) = pictures((1, 256, 256))
    plain = TensorRTRunner(shipped, backend, precision, engines=folder)
    graphs = TensorRTRunner(shipped, backend, precision, engines=folder, cuda_graphs=True, slots=1)
    want = plain.run("downscale", {"hr": x})["lr"]
    for _ in range(5):
        assert np.array_equal(graphs.run("downscale", {"hr": x})["lr"], want)
    print(graphs.notes)
    if backend == "tensorrt":
        assert graphs.notes == ()
        assert len(graphs._executor._captured) == 1
    plain.close()
    graphs.close()


def test_close_gives_all_memory_back(engines, shipped):
    backend, precision, folder = engines

    def use():
        runner = TensorRTRunner(shipped, backend, precision, engines=folder)
        for x in pictures((1, 512, 512), (1, 64, 64)):
            runner.run("downscale", {"hr": x})
        runner.close()

    use()
    before = free_memory()
    for _ in range(5):
        use()
    assert before - free_memory() <= 32 << 20


def test_a_runtime_cache_is_kept_and_taken_again(engines, shipped):
    backend, precision, folder = engines
    if backend != "tensorrt-rtx":
        pytest.skip("tensorrt has no runtime cache")
    for _ in range(2):
        runner = TensorRTRunner(shipped, backend, precision, engines=folder)
        runner.run("downscale", {"hr": pictures((1, 256, 256))[0]})
        assert runner.notes == ()
        runner.close()
        assert all(0 < p.stat().st_size <= 100 << 20 for p in folder.glob("*.cache"))
    assert list(folder.glob("downscale.*.cache"))
