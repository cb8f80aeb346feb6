"""A stand-in for pycuda's driver module, which writes down the calls."""

from __future__ import annotations

import types

import numpy as np


class Driver(types.ModuleType):
    """`pycuda.driver` as its source has it, for the order of calls. It runs nothing."""

    def __init__(self, devices=1):
        super().__init__("pycuda.driver")
        log = self.log = []
        stack = self.stack = []

        class Error(Exception):
            pass

        class MemoryError(Error):
            pass

        class Context:
            def push(self):
                stack.append(self)

            @staticmethod
            def pop():
                stack.pop()

            @staticmethod
            def synchronize():
                log.append("synchronize")

        class Device:
            def __init__(self, ordinal):
                self.ordinal = ordinal

            @staticmethod
            def count():
                return devices

            def retain_primary_context(self):
                log.append(f"primary context of {self.ordinal}")
                return Context()

            def make_context(self, flags=0):
                raise AssertionError("a context of its own")

        class Stream:
            def __init__(self, flags=0):
                self.handle = 640
                assert flags == 0

            def wait_for_event(self, event):
                log.append(("wait", self.handle, type(event).__name__))

            def __del__(self):
                log.append(("stream ended", len(stack)))

        class Event:
            def __init__(self, flags=0):
                assert flags == 2

            def record(self, stream=None):
                log.append(("record", stream and stream.handle))

            def synchronize(self):
                log.append("event")

        class Allocation:
            def __init__(self, size):
                if size > 1000:
                    raise MemoryError("cuMemAlloc failed: out of memory")
                assert stack

            def __int__(self):
                return 7680

            def free(self):
                log.append(("free", len(stack)))

        class Pages(np.ndarray):
            pass

        def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
            assert mem_flags == 1
            base = np.zeros(shape, dtype).view(Pages)
            base.free = lambda: log.append("host free")
            return base[:]

        self.Error, self.MemoryError, self.Context, self.Device, self.Stream = Error, MemoryError, Context, Device, Stream
        self.Event, self.mem_alloc, self.pagelocked_empty = Event, Allocation, pagelocked_empty
        self.init = lambda flags=0: log.append("init")
        self.event_flags = types.SimpleNamespace(DISABLE_TIMING=2)
        self.host_alloc_flags = types.SimpleNamespace(PORTABLE=1)
        self.memcpy_htod_async = lambda dest, src, stream=None: log.append(("in", dest, len(src), stream and stream.handle))
        self.memcpy_dtoh_async = lambda dest, src, stream=None: log.append(("out", len(dest), src, stream and stream.handle))
