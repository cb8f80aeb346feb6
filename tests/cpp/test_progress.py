"""How far a run is, and runs that are cancelled: the C ABI's progress functions."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np
import pytest

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler


def message(failure, kind, call, *arguments) -> str:
    with pytest.raises(failure) as caught:
        call(*arguments)
    assert caught.value.kind == kind, caught.value
    return str(caught.value)


@pytest.mark.parametrize("model", ["irn", "dlv_irn_a", "irn_m"])
@pytest.mark.parametrize(("tile", "count"), [(0, 1), (8, 12)])
def test_every_tile_is_told_in_the_callers_thread_and_changes_nothing(native, bundle, picture, model, tile, count):
    own = native.load(bundle(model, 2), tile_width=tile, tile_height=tile)
    hr = picture(61, 47)  # an LR picture of 31 x 24
    lr, latent = own.downscale(hr)
    wanted = own.upscale(lr, latent, np.zeros_like(hr))
    told: list[tuple[int, int]] = []
    places: set[int] = set()

    def tell(done: int, total: int) -> int:
        told.append((done, total))
        places.add(threading.get_ident())
        return 0

    watched = own.with_progress(tell)
    own.close()  # none needs the others
    found, code = watched.downscale(hr)
    assert np.array_equal(found, lr)
    assert code is latent is None or np.array_equal(code, latent)
    assert sorted(set(told)) == [(i, count) for i in range(count + 1)]
    assert told == sorted(told)
    told.clear()
    assert np.array_equal(watched.upscale(lr, latent, np.zeros_like(hr)), wanted)
    assert sorted(set(told)) == [(i, count) for i in range(count + 1)]
    told.clear()
    watched.restore_png(watched.downscale_lr(hr))
    assert told.count((count, count)) == 2
    assert places == {threading.get_ident()}
    watched.close()


@pytest.mark.parametrize("at", [0, 3, 12])
def test_a_cancelled_run_says_so_and_the_next_one_is_whole(native, failure, bundle, picture, at):
    own = native.load(bundle("irn_m", 2), tile_width=8, tile_height=8)
    hr = picture(61, 47)
    lr, latent = own.downscale(hr)
    asked: list[int] = []

    def tell(done: int, total: int) -> int:
        asked.append(done)
        return -7 if done == at else 0  # any value but 0

    watched = own.with_progress(tell)
    words = "cancelled by the program's progress function"
    assert message(failure, "cancelled", watched.downscale, hr) == words
    assert asked[-1] == at
    assert message(failure, "cancelled", watched.upscale, lr, latent, np.zeros_like(hr)) == words
    assert message(failure, "cancelled", watched.downscale_lr, hr) == words
    again, code = own.downscale(hr)
    assert np.array_equal(again, lr)
    assert np.array_equal(code, latent)
    watched.close()
    own.close()


def test_a_tile_that_runs_long_is_cancelled_within_it(native, failure, bundle, picture):
    own = native.load(bundle("dlv_irn_a", 2), threads=1, tile_width=4000, tile_height=4000)
    hr = np.tile(picture(60, 64), (20, 30, 1))
    calls: list[tuple[int, int]] = []
    begun = time.perf_counter()
    own.with_progress(lambda done, total: calls.append((done, total))).downscale(hr)
    whole = time.perf_counter() - begun
    assert len(calls) > 2, "a run that is too short to be told of"
    calls.clear()
    begun = time.perf_counter()
    watched = own.with_progress(lambda done, total: calls.append((done, total)) or len(calls) == 2)
    message(failure, "cancelled", watched.downscale, hr)
    assert calls == [(0, 1), (0, 1)]
    assert time.perf_counter() - begun < max(1.0, whole / 2)


def test_jobs_of_one_bundle_are_told_and_cancelled_apart(native, failure, bundle, picture):
    own = native.load(bundle("dlv_irn_a", 2), threads=1, tile_width=8, tile_height=8)
    pictures = [picture(40 + 3 * i, 50 - i) for i in range(8)]
    wanted = [own.downscale(p)[0] for p in pictures]
    told: list[list[int]] = [[] for _ in pictures]
    faults: list[BaseException] = []
    gate = threading.Barrier(len(pictures))

    def work(i: int) -> None:
        def tell(done: int, _total: int) -> int:
            told[i].append(done)
            return int(i % 2 == 1 and done == i)

        try:
            watched = own.with_progress(tell)
            gate.wait()
            if i % 2:
                assert "cancelled" in message(failure, "cancelled", watched.downscale, pictures[i])
            else:
                assert np.array_equal(watched.downscale(pictures[i])[0], wanted[i])
            watched.close()
        except BaseException as e:  # shown by the main thread
            faults.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults
    assert [t[-1] for t in told[1::2]] == [1, 3, 5, 7]
    own.close()


def test_what_is_no_function_is_refused(native, failure, bundle):
    own = native.load(bundle("irn", 2))
    pointer = ctypes.c_void_p(1)
    arguments = ("rescale_with_progress", own.pointer, None, None, ctypes.byref(pointer))
    assert "progress is NULL" in message(failure, "input", native.call, *arguments)
    assert not pointer
    own.close()
