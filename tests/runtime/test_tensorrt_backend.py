"""The TensorRT runner on `FakeCuda` and a fake TensorRT that computes: numbers, order, which engine runs, threads, lifetimes."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_tensorrt import VERSION, Library, write_engine
from tensorrt_runner import frames, installed, opened

from rescale import parity
from rescale.backends.tensorrt import TensorRTRunner
from rescale.bundle import Bundle
from rescale.cuda import engine
from rescale.cuda.fake import FakeCuda
from rescale.errors import BackendError, EngineError
from rescale.rescaler import Rescaler


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("model", "scale"), [("irn", 2), ("dlv_irn_a", 4), ("irn_m", 2), ("dlv_irn_m", 4)])
def test_pictures_are_those_of_onnxruntime(bundle, picture, tmp_path, reference, name, model, scale):
    image = picture(75, 93)
    with opened(bundle(model, scale), tmp_path, name) as (runner, _, _):
        net = Rescaler(Bundle(bundle(model, scale)), runner)
        want = Rescaler(net.bundle, reference(model, scale))
        small = net.downscale(image)
        other = want.downscale(image)
        assert np.array_equal(small.rgb, other.rgb)
        assert (small.latent is None) == (other.latent is None)
        assert small.latent is None or np.array_equal(small.latent, other.latent)
        assert np.array_equal(net.upscale(small), want.upscale(other))
        assert runner.notes == ()
        assert runner.name == f"{name} {VERSION}, fp32, Fake GPU, fake"


@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_golden_vectors_pass_the_gate(bundle, tmp_path, model):
    with opened(bundle(model, 2), tmp_path, profiles=("1x2x2:1x64x64:4x512x512",)) as (runner, _, _):
        found = parity.measure(Bundle(bundle(model, 2)), runner.run)
        found.require("fake")


def test_refining_is_refused(refinable, picture, tmp_path):
    path = refinable("irn", 2)
    with opened(path, tmp_path) as (runner, _, _), pytest.raises(BackendError, match="no engines of the gradient graph; refine on"):
        Rescaler(Bundle(path), runner).downscale(picture(16, 16), 1)


def test_copy_in_then_compute_then_copy_out_then_read(bundle, tmp_path):
    with opened(bundle("irn", 2), tmp_path) as (runner, _, api):
        (x,) = frames((1, 32, 48))
        runner.run("downscale", {"hr": x})
        calls = [c for c in api.calls if c.name in ("to_device", "execute", "to_host", "synchronize_event")]
        assert [c.name for c in calls[-4:]] == ["to_device", "execute", "to_host", "synchronize_event"]
        assert len({c.stream for c in calls[-4:-1]}) == 3
        assert api.executed == ["to_device", "execute", "to_host"]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_next_picture_is_copied_in_before_the_last_one_is_waited_for(bundle, tmp_path, reference, slots):
    items = [{"hr": x} for x in frames(*[(1, 32, 48)] * 6)]
    with opened(bundle("irn", 2), tmp_path, slots=slots) as (runner, _, api):
        got = list(runner.run_many("downscale", items))
        names = [c.name for c in api.calls if c.name in ("to_device", "to_host", "synchronize_event")]
        ahead = most = 0
        for name in names:
            ahead += {"to_device": 1, "synchronize_event": -1}.get(name, 0)
            most = max(most, ahead)
        assert most == slots
        if slots == 2:
            # The second H2D goes in before anything waits; from then on each wait frees the slot of the one after the next.
            pair = ["to_device", "to_host"]
            # The first run allocates scratch memory and waits for the idle compute stream before.
            assert [n for n in names if n != "synchronize_event"][:4] == pair * 2
            assert names[-(4 + 3 * 4) :] == [*pair, *pair, *["synchronize_event", *pair] * 4][-14:] + ["synchronize_event"] * 2
    for g, item in zip(got, items, strict=True):
        assert np.array_equal(g["lr"], reference("irn", 2).run("downscale", item)["lr"])


def test_a_batch_runs_at_once_or_in_parts(bundle, tmp_path, reference):
    (x,) = frames((11, 32, 48))
    with opened(bundle("irn_m", 2), tmp_path) as (runner, _, api):
        for n, runs in ((1, 1), (4, 1), (5, 2), (11, 3)):
            before = api.executed.count("execute")
            got = runner.run("downscale", {"hr": x[:n]})
            want = reference("irn_m", 2).run("downscale", {"hr": x[:n]})
            assert api.executed.count("execute") == before + runs
            assert all(np.array_equal(got[k], want[k]) for k in want)
    fixed = ("3x32x48:3x32x48:3x32x48",)
    with opened(bundle("irn_m", 2), tmp_path / "fixed", profiles=fixed) as (runner, _, _):
        assert runner.run("downscale", {"hr": x[:6]})["lr"].shape == (6, 16, 24, 3)
        with pytest.raises(EngineError, match=r"covers hr \(11, 32, 48, 3\).*--profile 11x32x48"):
            runner.run("downscale", {"hr": x})


def test_the_smallest_engine_that_fits_runs(bundle, tmp_path):
    profiles = ("1x2x2:1x64x64:1x256x256", "1x2x2:1x32x32:1x64x64", "1x66x66:1x80x80:1x100x100")
    with opened(bundle("irn", 2), tmp_path, profiles=profiles) as (runner, _, _):
        for side, most in ((64, 64), (66, 100), (100, 100), (102, 256), (256, 256)):
            engine = runner._engine("downscale", {"hr": (1, side, side, 3)})
            assert engine.info.profile["max"][1] == most
        # A thin picture is the first's alone.
        assert runner._engine("downscale", {"hr": (1, 10, 70, 3)}).info.profile["max"][1] == 256


def test_only_named_engines_run(bundle, tmp_path):
    path = bundle("irn", 2)
    small, large = (write_engine(tmp_path, Bundle(path), "downscale", f"1x2x2:1x32x32:1x{n}x{n}") for n in (64, 128))
    with opened(path, tmp_path, profiles=(), only=[large]) as (runner, _, _):
        assert runner._engine("downscale", {"hr": (1, 32, 32, 3)}).info.path == large
    with opened(path, tmp_path, profiles=(), only=[str(small)]) as (runner, _, _), pytest.raises(EngineError, match="no fp32"):
        runner._engine("downscale", {"hr": (1, 128, 128, 3)})
    with pytest.raises(EngineError, match="no fp32 engine"), opened(path, tmp_path, profiles=(), only=["other.engine"]):
        pass


def test_sizes_of_the_latent_grid_are_covered_as_they_were_built(bundle, tmp_path, reference):
    with opened(bundle("irn_m", 2), tmp_path, profiles=("1x2x2:1x32x32:1x90x90",)) as (runner, _, _):
        z = np.random.default_rng(0).normal(size=(1, 9, 48, 48)).astype(np.float32)  # an LR side of 45, padded
        assert np.array_equal(runner.run("encoder", {"z": z})["code"], reference("irn_m", 2).run("encoder", {"z": z})["code"])
        with pytest.raises(EngineError, match="no fp32 tensorrt engine of encoder covers z"):
            runner.run("encoder", {"z": np.zeros((1, 9, 52, 52), np.float32)})


def test_a_new_engine_is_found_without_a_restart(bundle, tmp_path):
    path = bundle("irn", 2)
    (x,) = frames((1, 80, 80))
    with opened(path, tmp_path, profiles=("1x2x2:1x32x32:1x64x64",)) as (runner, _, _):
        command = f"rescale-engine build {path} --backend tensorrt --precision fp32 --profile 1x80x80 --out {tmp_path}"
        with pytest.raises(EngineError, match=r"covers hr \(1, 80, 80, 3\)") as error:
            runner.run("downscale", {"hr": x})
        assert str(error.value).endswith(f"{command}, or run in smaller tiles")
        write_engine(tmp_path, Bundle(path), "downscale", "1x80x80")
        assert runner.run("downscale", {"hr": x})["lr"].shape == (1, 40, 40, 3)


@pytest.mark.parametrize("options", [{}, {"slots": 1}, {"slots": 5}, {"cuda_graphs": True}])
def test_eight_threads(bundle, tmp_path, reference, options):
    items = [
        {"hr": x}
        for x in frames(
            *[
                (
                    1,
                    16 + 2 * (i % 5),
                    24,
                )
                for i in range(48)
            ]
        )
    ]
    want = [reference("irn_a", 2).run("downscale", item)["lr"] for item in items]
    with opened(bundle("irn_a", 2), tmp_path, cuda=FakeCuda(seed=3), **options) as (runner, _, api):

        def work(i):
            if i % 8 == 0:  # several runs at once in one thread, while others want slots
                return [g["lr"] for g in runner.run_many("downscale", items[i : i + 8])]
            return [runner.run("downscale", items[i])["lr"]]

        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(work, range(48)))
        assert all(np.array_equal(g[0], w) for g, w in zip(got, want, strict=True))
        assert all(np.array_equal(a, b) for i in range(0, 48, 8) for a, b in zip(got[i], want[i : i + 8], strict=True))
        assert len({c.thread for c in api.calls}) > 4


def test_close_waits_frees_everything_and_ends_use(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path) as (runner, _, _):
        stream = runner.run_many("downscale", [{"hr": x}] * 5)
        next(stream)  # one more is under way
        dropped = runner.run_many("downscale", [{"hr": x}] * 5)
        next(dropped)
        dropped.close()
        runner.close()
        runner.close()
        with pytest.raises(BackendError, match=r"used after close\(\)"):
            list(stream)
        with pytest.raises(BackendError, match=r"used after close\(\)"):
            runner.run("downscale", {"hr": x})
        with pytest.raises(BackendError, match=r"used after close\(\)"):
            runner.run_device("downscale", {"hr": x})


def test_close_waits_for_a_thread_that_is_inside(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    with opened(bundle("irn", 2), tmp_path) as (runner, _, api):
        inside, go_on, original = threading.Event(), threading.Event(), api.to_device

        def slow(*arguments):
            inside.set()
            assert go_on.wait(30)
            original(*arguments)

        api.to_device = slow
        with ThreadPoolExecutor(2) as pool:
            run = pool.submit(runner.run, "downscale", {"hr": x})
            assert inside.wait(30)
            closing = pool.submit(runner.close)
            time.sleep(0.05)
            assert not closing.done()
            assert api.alive()["streams"] == 3
            go_on.set()
            closing.result(30)
            try:
                assert run.result(30)["lr"].shape == (1, 8, 8, 3)
            except BackendError as e:
                assert "used after close()" in str(e)  # noqa: PT017  # closed between its start and its end
        del api.to_device


def test_one_thread_at_a_time_binds_and_executes(bundle, tmp_path, reference, monkeypatch):
    items = [{"hr": x} for x in frames(*[(1, 16, 16)] * 12)]
    original = engine.Context.bind

    def bind(*arguments):
        original(*arguments)
        time.sleep(0.005)  # time for another thread to bind its own addresses

    monkeypatch.setattr(engine.Context, "bind", bind)
    with opened(bundle("irn", 2), tmp_path) as (runner, _, _), ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda item: runner.run("downscale", item)["lr"], items))
        assert all(np.array_equal(g, reference("irn", 2).run("downscale", i)["lr"]) for g, i in zip(got, items, strict=True))


def test_who_forgets_to_close_loses_no_device_memory(bundle, tmp_path):
    (x,) = frames((1, 16, 16))
    api = FakeCuda()
    path = Bundle(bundle("irn", 2))
    write_engine(tmp_path, path, "downscale", "16x16")
    with installed(Library(api), "tensorrt"):
        runner = TensorRTRunner(path, precision="fp32", engines=tmp_path, cuda=api)
        runner.run("downscale", {"hr": x})
        assert api.used() > 0
        del runner
        gc.collect()
    assert set(api.alive().values()) == {0}
