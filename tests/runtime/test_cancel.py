"""Ending long work: what a progress callback raises, and a second Ctrl-C. Nothing is left of what was under way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tensorrt_runner import opened

import rescale
from rescale import batch
from rescale.backends import watched
from rescale.bundle import Bundle
from rescale.cli import main
from rescale.rescaler import Rescaler


class Stop(Exception):
    pass


def raising_at(call: int, error: BaseException):
    """A callback that raises when it is told another part for the nth time."""
    seen = []

    def tell(*args):
        if seen[-1:] != [args]:
            seen.append(args)
        if len(seen) == call:
            raise error

    return tell


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, MemoryError])
def test_what_the_callback_raises_is_passed_on_and_nothing_stays(refinable, picture, kind):
    image = picture(40, 40)
    with rescale.load(refinable("dlv_irn_m", 2), tile=(10, 20), threads=1) as net:
        want = net.downscale(image, 2).to_bytes()
        small = net.downscale(image)
        again = net.upscale(small)
        verbs = {
            "down": (lambda tell: net.downscale(image, progress=tell), 3),
            "refine": (lambda tell: net.downscale(image, 2, tell), 10),
            "up": (lambda tell: net.upscale(small, progress=tell), 3),
            "restore": (lambda tell: net.restore(small, progress=tell), 3),
        }
        before = threading.active_count()
        for name, (verb, calls) in verbs.items():
            for call in range(1, calls + 1):
                error = kind(name)
                with pytest.raises(kind) as raised:
                    verb(raising_at(call, error))
                assert raised.value is error
                assert threading.active_count() == before
        assert net.downscale(image, 2).to_bytes() == want
        assert np.array_equal(net.upscale(small), again)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_run_is_stopped_within_a_tile(bundle, monkeypatch, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    image = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    monkeypatch.setattr(watched, "BEAT", 0.001)
    monkeypatch.setattr(f"rescale.backends.{backend}.BEAT", 0.001, raising=False)
    with rescale.load(bundle("irn", 2), backend, threads=1, tile=(600, 600)) as net:
        seen, part = [], image[:500, :700]
        want = net.downscale(part)

        def tell(*args):
            seen.append(args)
            if len(seen) == 3:
                raise Stop

        with pytest.raises(Stop):
            net.downscale(image, progress=tell)
        assert seen == [(0, 1, "downscaling")] * 3
        # A run that ended in its middle leaves nothing to the next one, of another size.
        assert np.array_equal(net.downscale(part, progress=lambda *args: None).rgb, want.rgb)
        assert np.array_equal(net.downscale(part).rgb, want.rgb)


def test_threads_that_share_a_rescaler_are_cancelled_one_by_one(bundle, picture):
    images = [picture(40 + n, 40, seed=n) for n in range(12)]
    with rescale.load(bundle("dlv_irn_a", 2), tile=(8, 8), threads=1) as net:
        want = [net.downscale(image).to_bytes() for image in images]

        def work(n):
            try:
                return net.downscale(images[n], progress=raising_at(3, Stop()) if n % 3 == 0 else lambda *args: None).to_bytes()
            except Stop as e:
                return e

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, range(12)))
    assert all(isinstance(result, Stop) if n % 3 == 0 else result == want[n] for n, result in enumerate(found))


def test_tiles_that_a_device_has_under_way_are_given_up_at_once(bundle, picture, tmp_path):
    """Also while somebody keeps the exception, and with it the frames of the run."""
    path, image = bundle("irn", 2), picture(80, 80)
    with opened(path, tmp_path, slots=2) as (runner, _, _):
        net = Rescaler(Bundle(path), runner, (10, 10))
        kept = []
        for _ in range(3):
            with pytest.raises(Stop) as raised:
                net.downscale(image, progress=raising_at(2, Stop()))
            kept.append(raised.value)
            assert len(runner._executor._free) == 2
        assert net.downscale(image).size == (40, 40)


def test_without_a_callback_no_thread_is_asked_for(bundle, picture, monkeypatch):
    monkeypatch.setattr(threading, "Thread", lambda *args, **options: pytest.fail("a thread was made"))
    with rescale.load(bundle("irn", 2), "onnxruntime", threads=1) as net:
        net.upscale(net.downscale(picture(8, 8)))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("where", ["in the wait", "in the callback"])
def test_an_interrupted_wait_stops_the_work_and_waits_for_it(monkeypatch, where):
    """A thread that is still within ONNX Runtime when the interpreter ends aborts the process."""
    monkeypatch.setattr(watched, "BEAT", 0.1 if where == "in the callback" else 20.0)
    go_on, ended = threading.Event(), []

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)

    def work():
        if where == "in the wait":
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        go_on.wait(30)
        time.sleep(0.3)
        ended.append(1)

    with pytest.raises(KeyboardInterrupt):
        watched.watched(work, go_on.set, interrupt)
    assert ended


def test_what_the_work_raises_or_returns_is_passed_on():
    go_on = threading.Event()
    with pytest.raises(Stop):
        watched.watched(lambda: (_ for _ in ()).throw(Stop), go_on.set, lambda: None)
    assert watched.watched(lambda: 5, go_on.set, lambda: None) == 5


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_second_ctrl_c_gives_up_what_a_folder_has_begun(here, tmp_path, picture, monkeypatch, capsys):
    os.mkdir("in")
    for n in range(5):
        rescale.write_picture(f"in/{n}.png", picture(8 + n, 8, seed=n))
    down, sent, handled, turn, finish = Rescaler.downscale, [], [], threading.Lock(), batch._finish_begun

    def endless(self, image, steps, progress):
        if image.size == (8, 8):
            return down(self, image, steps, progress)
        while True:
            with turn:  # two signals at once would count as one
                if os.path.exists("out/0.png") and len(sent) <= len(handled) and len(sent) < 2:
                    sent.append(1)
                    os.kill(os.getpid(), signal.SIGINT)
            progress(0, 1, "downscaling")
            time.sleep(0.01)

    monkeypatch.setattr(Rescaler, "downscale", endless)
    monkeypatch.setattr(batch, "_finish_begun", lambda *args: handled.append(1) or finish(*args))
    assert main(["down", "in", "out", *here, "--json"]) == 130
    told = capsys.readouterr()
    *made, summary, last = map(json.loads, told.out.splitlines())
    assert [line["source"] for line in made] == ["in/0.png"]
    assert summary == {"done": 1, "skipped": 0, "errors": 0, "ignored": 0, "left": 4}
    assert (last["exit_code"], told.err) == (130, "error: interrupted\n")
    assert os.listdir("out") == ["0.png"]
