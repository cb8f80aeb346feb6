"""The promises of the fake CUDA itself."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from captured_copies import replay

from rescale.cuda.fake import FakeCuda, Violation
from rescale.errors import OutOfMemoryError


class TestFake:
    """Everything that the fake promises to notice, it notices."""

    @pytest.fixture
    def api(self):
        api = FakeCuda()
        with api.current():
            yield api

    def wrong(self, api, words, call, *arguments):
        with pytest.raises(Violation, match=words):
            call(*arguments)
        assert api.violations

    def test_calls_outside_of_current(self):
        api = FakeCuda()
        self.wrong(api, "outside of `with api.current", api.create_stream)
        with api.current():
            thread = threading.Thread(target=lambda: self.wrong(api, "outside of", api.create_event))
            thread.start()
            thread.join()
        assert len(api.violations) == 2

    def test_memory_that_was_freed(self, api):
        device, host, stream = api.allocate(64), api.allocate_host(64), api.create_stream()
        api.free(device)
        self.wrong(api, "double free", api.free, device)
        self.wrong(api, "not allocated, or were freed", api.to_device, device, host, 64, stream)
        api.free_host(host)
        self.wrong(api, "after it was freed", host.array)
        self.wrong(api, "host memory wanted", api.free_host, api.allocate(1))

    def test_memory_that_is_in_use(self, api):
        device, host, stream = api.allocate(64), api.allocate_host(64), api.create_stream()
        event = api.create_event()
        api.to_device(device, host, 64, stream)
        self.wrong(api, "touched while to_device", host.array)
        self.wrong(api, "freed while to_device", api.free_host, host)
        self.wrong(api, "freed while to_device", api.free, device)
        api.record(event, stream)
        api.synchronize_event(event)
        host.array()
        api.free(device)

    def test_copies_out_of_bounds_or_in_the_wrong_direction(self, api):
        device, host, stream = api.allocate(64), api.allocate_host(32), api.create_stream()
        self.wrong(api, "33 bytes from 32 to 64", api.to_device, device, host, 33, stream)
        self.wrong(api, "from device to host", api.to_device, host, device, 8, stream)
        self.wrong(api, "not device memory", api.at, device.pointer + 60, 8)

    def test_two_streams_without_an_event(self, api):
        device, hosts = api.allocate(64), [api.allocate_host(64) for _ in range(3)]
        a, b, event = api.create_stream(), api.create_stream(), api.create_event()
        api.to_device(device, hosts[0], 64, a)
        self.wrong(api, "not ordered after to_device", api.to_host, hosts[1], device, 64, b)
        api.record(event, a)
        api.wait(b, event)
        api.to_host(hosts[1], device, 64, b)
        c = api.create_stream()
        self.wrong(api, "not ordered after to_", api.to_device, device, hosts[2], 64, c)
        # Two readers need no order; a host that has waited puts everything in order.
        api.wait(c, event)
        api.to_host(hosts[2], device, 64, c)
        api.synchronize()
        api.to_device(device, hosts[0], 64, api.create_stream())

    def test_memory_in_the_order_of_a_stream(self, api):
        a, b, host, event = api.create_stream(), api.create_stream(), api.allocate_host(64), api.create_event()
        device = api.allocate(64, a)
        self.wrong(api, "not ordered after allocated", api.to_device, device, host, 64, b)
        api.record(event, a)
        api.wait(b, event)
        api.to_device(device, host, 64, b)
        self.wrong(api, "freed in stream .* not ordered after to_device", api.free, device)
        api.record(event, b)
        api.wait(a, event)
        api.free(device)

    def test_what_was_destroyed(self, api):
        stream, event, graph_stream = api.create_stream(), api.create_event(), api.create_stream()
        self.wrong(api, "never recorded", api.wait, stream, event)
        self.wrong(api, "never recorded", api.synchronize_event, event)
        api.destroy_event(event)
        self.wrong(api, "event was destroyed", api.record, event, stream)
        api.destroy_stream(stream)
        self.wrong(api, "does not exist or was destroyed", api.record, api.create_event(), stream)
        api.begin_capture(graph_stream)
        graph = api.end_capture(graph_stream)
        api.destroy_graph(graph)
        self.wrong(api, "graph was destroyed", api.launch, graph, graph_stream)

    def test_what_a_capture_forbids(self, api):
        stream, event, host = api.create_stream(), api.create_event(), api.allocate_host(8)
        api.begin_capture(stream)
        for call, arguments in (
            (api.allocate, (8,)),
            (api.allocate_host, (8,)),
            (api.free_host, (host,)),
            (api.synchronize, ()),
            (api.synchronize_event, (event,)),
        ):
            self.wrong(api, "while this thread captures", call, *arguments)

    def test_what_a_capture_forbids_other_threads(self, api):
        stream, other, event = api.create_stream(), api.create_stream(), api.create_event()
        api.begin_capture(stream)

        def elsewhere():
            with api.current():
                self.wrong(api, "synchronize: while a stream captures", api.synchronize)
                for call, arguments in (
                    (api.record, (event, stream)),
                    (api.kernel, ("k", stream, [], [], None)),
                    (api.end_capture, (stream,)),
                ):
                    self.wrong(api, "was used while another thread captures it", call, *arguments)
                # All else goes on.
                api.free(api.allocate(8))
                api.free_host(api.allocate_host(8))
                api.record(event, other)
                api.synchronize_event(event)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(elsewhere).result(30)
        assert len(api.violations) == 4
        assert api.end_capture(stream)

    def test_a_captured_graph_runs_when_it_is_launched(self, api):
        replay(api, api.create_stream(), 4, (1, 2), api.synchronize)

    def test_work_waits_until_it_must(self, api):
        device, host, stream = api.allocate(4), api.allocate_host(4), api.create_stream()
        host.array()[:] = 9
        api.to_device(device, host, 4, stream)
        assert api.executed == []
        assert (api.at(device.pointer, 4) == 0xA5).all()
        api.synchronize()
        assert api.executed == ["to_device"]
        assert (api.at(device.pointer, 4) == 9).all()

    def test_memory_is_limited(self):
        api = FakeCuda(memory=100)
        with api.current():
            first = api.allocate(60)
            with pytest.raises(OutOfMemoryError, match="41 bytes do not fit into 40"):
                api.allocate(41)
            api.free(first)
            api.allocate(100)
            assert api.used() == 100

    def test_results_in_two_streams_come_in_any_order(self):
        orders = set()
        for seed in range(20):
            api = FakeCuda(seed=seed)
            with api.current():
                for name in ("a", "b"):
                    api.kernel(name, api.create_stream(), [], [], lambda: None)
                api.synchronize()
            orders.add(tuple(api.executed))
        assert orders == {("a", "b"), ("b", "a")}
