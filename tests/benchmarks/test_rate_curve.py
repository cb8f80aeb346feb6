"""The search for given bytes and given PSNR on a codec's curve."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale_bench.rate_curve import Curve, Point

calm = settings(deadline=None, max_examples=60)


def grows(step: int) -> Point:
    return Point(step, 100 + 7 * step + step**2, 20.0 + 0.3 * step, 18.0 + 0.2 * step)


@calm
@given(target=st.integers(1, 12_000), inner=st.sets(st.integers(1, 99), max_size=6))
def test_a_match_lies_between_neighbouring_steps_or_says_why_not(target: int, inner: set[int]) -> None:
    curve = Curve(grows, 101, (0, *sorted(inner), 100))
    found = curve.for_bytes(target)
    if target < grows(0).bytes:
        assert (found.reached, found.lower, found.upper) == ("below", None, grows(0))
        return
    if target >= grows(100).bytes:
        assert (found.reached, found.lower, found.upper) == ("above", grows(100), None)
        assert (found.bytes, found.psnr_y) == (grows(100).bytes, grows(100).psnr_y)
        return
    assert found.reached == "bracketed"
    assert found.lower is not None
    assert found.upper is not None
    assert found.upper.step == found.lower.step + 1
    assert found.lower.bytes <= target < found.upper.bytes
    assert found.bytes == pytest.approx(target)
    assert found.lower.psnr_y <= found.psnr_y < found.upper.psnr_y
    assert found.lower.psnr_rgb <= found.psnr_rgb < found.upper.psnr_rgb


@calm
@given(first=st.integers(1, 12_000), second=st.integers(1, 12_000))
def test_more_bytes_never_give_less_psnr(first: int, second: int) -> None:
    curve = Curve(grows, 101, (0, 40, 100))
    low, high = (curve.for_bytes(t) for t in sorted((first, second)))
    assert low.psnr_y <= high.psnr_y
    assert low.psnr_rgb <= high.psnr_rgb


@calm
@given(step=st.integers(0, 99))
def test_the_bytes_of_a_point_give_that_point(step: int) -> None:
    found = Curve(grows, 101, (0, 50, 100)).for_bytes(grows(step).bytes)
    assert (found.psnr_y, found.psnr_rgb) == (grows(step).psnr_y, grows(step).psnr_rgb)


@calm
@given(target=st.floats(19.0, 51.0))
def test_bytes_for_a_psnr_are_the_inverse_of_psnr_for_bytes(target: float) -> None:
    curve = Curve(grows, 101, (0, 30, 60, 100))
    found = curve.for_psnr(target)
    wanted = "below" if target < 20.0 else "above" if target >= 50.0 else "bracketed"
    assert found.reached == wanted
    if wanted == "bracketed":
        assert found.psnr_y == pytest.approx(target)
        assert found.lower is not None
        assert found.lower.bytes <= found.bytes <= grows(found.lower.step + 1).bytes


@calm
@given(sizes=st.lists(st.integers(1, 50), min_size=9, max_size=9), target=st.integers(0, 60))
def test_a_codec_whose_bytes_go_up_and_down_is_bracketed_all_the_same(sizes: list[int], target: int) -> None:
    curve = Curve(lambda s: Point(s, sizes[s], float(s), float(s)), 9, (0, 4, 8))
    found = curve.for_bytes(max(1, target))
    if found.reached == "bracketed":
        assert found.lower is not None
        assert found.upper is not None
        assert found.lower.bytes <= max(1, target) < found.upper.bytes
        assert found.upper.step == found.lower.step + 1
        assert found.lower.psnr_y <= found.psnr_y <= found.upper.psnr_y


@calm
@given(known=st.sets(st.integers(0, 100)), target=st.integers(1, 12_000))
def test_what_was_kept_changes_no_figure_and_is_not_measured_again(known: set[int], target: int) -> None:
    asked: list[int] = []

    def measure(step: int) -> Point:
        asked.append(step)
        return grows(step)

    fresh = Curve(grows, 101, (0, 50, 100)).for_bytes(target)
    resumed = Curve(measure, 101, (0, 50, 100), [grows(s) for s in known])
    assert resumed.for_bytes(target) == fresh
    assert not known & set(asked)
    assert len(asked) == len(set(asked))
    assert resumed.changed == bool(asked)
    assert [p.step for p in resumed.points()] == sorted(known | set(asked))


def test_the_search_is_short() -> None:
    asked: list[int] = []

    def measure(step: int) -> Point:
        asked.append(step)
        return grows(step)

    curve = Curve(measure, 241, (0, 60, 100, 130, 160, 190, 240))
    curve.ladder()
    before = len(asked)
    for target in range(200, 50_000, 1000):
        start = len(asked)
        curve.for_bytes(target)
        assert len(asked) - start <= 9, target
    assert before == 7


def test_a_lossless_quality_is_not_interpolated_towards() -> None:
    points = [Point(0, 100, 40.0, 38.0), Point(1, 200, math.inf, math.inf)]
    curve = Curve(points.__getitem__, 2, (0, 1))
    between = curve.for_bytes(150)
    assert (between.reached, between.psnr_y, between.psnr_rgb) == ("bracketed", 40.0, 38.0)
    assert (curve.for_bytes(200).reached, curve.for_bytes(200).psnr_y) == ("above", math.inf)
    needed = curve.for_psnr(45.0)
    assert (needed.bytes, needed.psnr_y, needed.psnr_rgb) == (200, math.inf, math.inf), "the lower point has less than that"
    assert (needed.reached, needed.lower, needed.upper) == ("bracketed", *points)
    assert (curve.for_psnr(40.0).bytes, curve.for_psnr(40.0).psnr_y) == (100, 40.0)


@calm
@given(target=st.floats(20.0, 60.0), lossless=st.integers(1, 100))
def test_bytes_for_a_psnr_are_never_of_a_point_with_less(target: float, lossless: int) -> None:
    def measure(step: int) -> Point:
        return grows(step) if step < lossless else grows(step)._replace(psnr_y=math.inf, psnr_rgb=math.inf)

    found = Curve(measure, 101, (0, 50, 100)).for_psnr(target)
    assert found.reached == "bracketed"
    if found.psnr_y == math.inf:
        assert found.upper is not None
        assert found.bytes == found.upper.bytes
    else:
        assert found.psnr_y == pytest.approx(target)


def test_nothing_coded_at_all_is_a_point_too() -> None:
    curve = Curve(grows, 101, (0, 100), floor=Point(-1, 60, 12.0, 11.0))
    assert curve.for_bytes(59).reached == "below"
    assert curve.for_bytes(59).psnr_y == 12.0
    between = curve.for_bytes(80)
    assert (between.reached, between.lower, between.upper) == ("bracketed", Point(-1, 60, 12.0, 11.0), grows(0))
    assert 12.0 < between.psnr_y < 20.0


@pytest.mark.parametrize("ladder", [(1, 100), (0, 99), (0, 50, 40, 100), (0, 0, 100)])
def test_a_ladder_spans_the_codec(ladder: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of a codec with 101 steps"):
        Curve(grows, 101, ladder)
