"""Budgets are kept, explicit tiles are never overridden, failed allocations are tried again in smaller pieces."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rescale
from rescale.bundle import Bundle
from rescale.errors import BackendError, InputError, OutOfMemoryError
from rescale.memory import ARENA_FACTOR, FIXED_BYTES, PIECE_PIXELS, available_memory, choose_tile, default_budget, parse_memory
from rescale.network import Network
from rescale.tiling import plan


@pytest.mark.parametrize(
    ("text", "value"), [("2GB", 2 << 30), ("512 mb", 512 << 20), ("1.5G", 3 << 29), ("100", 100), ("7kB", 7168), ("9B", 9)]
)
def test_sizes_are_parsed(text, value):
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["", "much", "2TB", "-1GB", "0", "1e9", "GB"])
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="a size is wanted, such as 2GB"):
        parse_memory(text)


def test_available_memory_is_the_smaller_of_system_and_control_group(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert available_memory(meminfo, tmp_path) == 2 << 20
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 2 << 20
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("48576\n")
    assert available_memory(meminfo, tmp_path) == 1_000_000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 40000\nactive_file 7\n")
    assert available_memory(meminfo, tmp_path) == 1_040_000
    assert available_memory(tmp_path / "none", tmp_path / "none") is None
    assert default_budget() > 0


def test_control_groups_of_version_1_limit_memory_as_well(tmp_path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "memory"
    meminfo.write_text("MemAvailable:    2048 kB\n")
    group.mkdir()
    (group / "memory.usage_in_bytes").write_text("48576\n")
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert available_memory(meminfo, tmp_path) == 2 << 20
    (group / "memory.limit_in_bytes").write_text("1048576\n")
    assert available_memory(meminfo, tmp_path) == 1_000_000
    (group / "memory.stat").write_text("cache 5\ninactive_file 7\ntotal_inactive_file 40000\n")
    assert available_memory(meminfo, tmp_path) == 1_040_000


@settings(deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(0, 250), st.integers(100, 6000), st.integers(1 << 27, 1 << 34))
def test_chosen_tiles_stay_within_the_budget(height, width, halo, cost, budget):
    try:
        tile = choose_tile(height, width, halo, cost, budget)
    except InputError as e:
        least = int(str(e).rsplit(" ", 2)[1])
        assert least << 20 > budget
        choose_tile(height, width, halo, cost, least << 20)  # now it does
        return
    pixels = height * width
    if tile is not None:
        tiles = plan(height, width, tile, halo)
        pixels = max(t.region.height * t.region.width for t in tiles[:50] + tiles[-50:])
        assert height * width > PIECE_PIXELS or height * width * ARENA_FACTOR * cost + FIXED_BYTES > budget
    assert pixels * ARENA_FACTOR * cost + FIXED_BYTES <= budget


def test_a_budget_too_small_names_the_least(bundle, picture):
    with (
        rescale.load(bundle("irn", 2), memory=1 << 20) as net,
        pytest.raises(InputError, match=r"a memory budget of 1 MB is too small for this model: at least \d+ MB"),
    ):
        net.downscale(picture(300, 300))


@pytest.mark.parametrize(("model", "scale"), [("dlv_irn_a", 2), ("irn_m", 4)])
def test_results_do_not_depend_on_the_budget(bundle, picture, model, scale):
    image = picture(400, 520)
    b = Bundle(bundle(model, scale))
    least = FIXED_BYTES + int(ARENA_FACTOR * b.memory("upscale") * 90**2)
    with rescale.load(b.path, threads=1) as free, rescale.load(b.path, threads=1, memory=least) as bound:
        height, width = -(-400 // scale), -(-520 // scale)
        assert len(bound.network.tiles(height, width, "upscale", least)) > 1
        one, other = free.downscale(image), bound.downscale(image)
        assert np.abs(one.rgb.astype(int) - other.rgb).max() <= 1
        assert (one.rgb != other.rgb).mean() <= 1e-4
        delta = np.abs(free.upscale(one).astype(int) - bound.upscale(one))
        assert delta.max() <= 1
        assert (delta != 0).mean() <= 1e-4


class Poor:
    """A runner that has memory for regions of at most `limit` LR pixels. Stands in for a machine that is full."""

    name = "poor"

    def __init__(self, runner, limit):
        self.runner, self.limit, self.refused = runner, limit, 0

    def run(self, graph, inputs):
        first = next(iter(inputs.values()))
        pixels = first.shape[1] * first.shape[2] // (4 if graph == "downscale" else 1)
        if pixels > self.limit:
            self.refused += 1
            raise OutOfMemoryError("Failed to allocate memory for requested buffer of size 1")
        return self.runner.run(graph, inputs)

    def close(self):
        pass


def test_a_failed_allocation_is_tried_again_in_smaller_pieces(bundle, picture):
    image = picture(400, 400)
    with rescale.load(bundle("irn", 2), threads=1) as net:
        want = net.downscale(image).rgb
        budget = FIXED_BYTES + int(ARENA_FACTOR * net.bundle.memory("downscale") * 41_000)
        poor = Poor(net.runner, 15_000)
        got = Network(net.bundle, poor, memory=budget).down(image)[0]
        assert poor.refused in (1, 2, 3, 4)
        assert np.abs(got.astype(int) - want).max() <= 1
        poor = Poor(net.runner, 15_000)
        with pytest.raises(OutOfMemoryError):
            Network(net.bundle, poor, tile=(200, 200)).down(image)
        assert poor.refused == 1


def test_words_of_a_failed_allocation_are_understood(bundle, picture, monkeypatch):
    with rescale.load(bundle("irn", 2), "onnxruntime", tile=(50, 50)) as net:
        for words, kind in (
            ("std::bad_alloc", OutOfMemoryError),
            ("Failed to allocate memory for", OutOfMemoryError),
            ("x", BackendError),
        ):

            class Session:
                def get_outputs(self):
                    return []

                def run(self, *args, words=words):
                    raise RuntimeError(words)

            monkeypatch.setattr(net.runner, "_session", lambda graph, s=Session: s())
            with pytest.raises(BackendError) as error:
                net.downscale(picture(4, 4))
            assert type(error.value) is kind


MEASURE = """
import resource, sys, numpy as np, rescale
path, budget, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with rescale.load(path, memory=budget, threads=1) as net:
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    net.upscale(net.downscale(image[:64, :64]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    net.upscale(net.downscale(image))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


@pytest.mark.parametrize("model", ["dlv_irn_a", "irn_m"])
def test_resident_memory_stays_within_the_budget(bundle, model):
    budget, side = 160 << 20, 1200
    assert Bundle(bundle(model, 2)).memory("downscale") * ARENA_FACTOR * (side // 2) ** 2 > budget
    run = [sys.executable, "-c", MEASURE, bundle(model, 2), str(budget), str(side)]
    used = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    pictures = 4 * side * side * 3
    assert used <= 1.1 * budget + pictures


GROWTH = """
import resource, sys, numpy as np, rescale
from pathlib import Path
def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
rng = np.random.default_rng(1)
marks = []
with rescale.load(sys.argv[1], sys.argv[2], threads=1, memory=256 << 20) as net:
    for i in range(300):
        # The largest comes first: what one picture needs is kept for the next.
        h, w = rng.integers(1, 300, 2) if i else (300, 300)
        net.upscale(net.downscale(rng.integers(0, 256, (h, w, 3), np.uint8)))
        if i in (99, 299):
            marks.append(resident())
print(marks[1] - marks[0])
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_300_pictures_of_random_sizes_do_not_pile_up(bundle, backend):
    pytest.importorskip(backend)
    run = [sys.executable, "-c", GROWTH, bundle("irn_m", 2), backend]
    assert int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) < 8 << 20
