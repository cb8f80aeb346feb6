"""Work that can be stopped while it runs: in a thread of its own, with the caller looking after it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

BEAT = 0.1
"""Seconds between two calls that ask whether to go on."""


def watched(work: Callable[[], T], stop: Callable[[], object], alive: Callable[[], object]) -> T:
    """Do work in another thread, and call `alive` in this one every `BEAT` seconds until it is done.

    Args:
        work: what to do; what it raises is passed on.
        stop: makes `work` end soon.
        alive: may raise, as a signal may (Ctrl-C): then the work is stopped, waited for, and the exception passed on.
    """
    found: list[T] = []
    failed: list[BaseException] = []
    ended = threading.Event()  # a join that a signal interrupts takes the thread for ended (CPython 3.11)

    def run() -> None:
        try:
            found.append(work())
        except BaseException as e:  # raised in the thread that waits
            failed.append(e)
        finally:
            ended.set()

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        while not ended.wait(BEAT):
            alive()
    except BaseException:
        stop()
        if thread.ident is not None:
            ended.wait()
        raise
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
