"""Outputs are compared with PyTorch's, and the gate refuses what is too far from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale.backends import create
from rescale.bundle import Bundle
from rescale.errors import ParityError
from rescale.image import pad_planes
from rescale.parity import Case, Comparison, Parity, choose_precision, golden_vectors, measure, worst_spot
from rescale.quality import psnr

BundleOf = Callable[[str, int], Path]

seeds = st.integers(0, 2**32 - 1)
calm = settings(deadline=None, max_examples=50)


def compared(got: np.ndarray, want: np.ndarray) -> Comparison:
    c = Comparison()
    c.add(got, want, "x")
    return c


@calm
@given(seeds, st.integers(0, 300), st.integers(0, 255))
def test_a_comparison_says_what_numpy_says(seed: int, size: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    want = rng.integers(0, 256, size).astype(np.uint8)
    got = np.clip(want + rng.integers(-spread, spread + 1, size), 0, 255).astype(np.uint8)
    delta = got.astype(int) - want.astype(int)
    c = compared(got, want)
    assert (c.values, c.different, c.largest) == (size, np.count_nonzero(delta), np.abs(delta).max(initial=0))
    assert c.histogram() == {level: int((delta == level).sum()) for level in sorted({*delta.tolist()})}
    assert c.share == np.count_nonzero(delta) / max(1, size)
    assert c.psnr == pytest.approx(psnr(got, want)) if size else math.isinf(c.psnr)
    parts = compared(got[: size // 3], want[: size // 3])
    parts.merge(compared(got[size // 3 :], want[size // 3 :]))
    assert parts.histogram() == c.histogram()


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)),
        (np.zeros(4, np.float32), np.zeros(4, np.uint8)),
        (np.zeros(4, np.float32), np.zeros(4, np.float32)),
    ],
)
def test_only_equal_shapes_of_bytes_are_compared(got: np.ndarray, want: np.ndarray) -> None:
    with pytest.raises(ParityError, match=r"lr at 2x2: .* PyTorch gives"):
        Comparison().add(got, want, "lr at 2x2")


@calm
@given(seeds, st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_the_worst_spot_is_the_tile_with_the_most_error(seed: int, height: int, width: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    want = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    got = np.where(rng.random(want.shape) < 0.1, rng.integers(0, 256, want.shape), want).astype(np.uint8)
    assert worst_spot(want, want, side) is None
    spot = worst_spot(got, want, side)
    if np.array_equal(got, want):
        assert spot is None
        return
    assert spot is not None

    def error(top: int, left: int) -> int:
        here = np.s_[top : top + side, left : left + side]
        return int(np.square(got[here].astype(int) - want[here]).sum())

    assert error(spot.top, spot.left) == max(error(t, e) for t in range(0, height, side) for e in range(0, width, side))
    here = np.s_[spot.top : spot.top + spot.height, spot.left : spot.left + spot.width]
    assert spot.largest == np.abs(got[here].astype(int) - want[here]).max()
    assert spot.psnr == psnr(got[here], want[here])
    assert (spot.top + spot.height <= height, spot.left + spot.width <= width) == (True, True)


def case(lost: float = 0.0, by: int = 0, part: float = 0.0, reference: float = 45.0, **fields: Any) -> Case:
    """A picture with a loss in dB, and a part of its HR values off by some levels."""
    height, width = fields.pop("size", (96, 96))
    want = np.full(height * width * 3, 100, np.uint8)
    got = want.copy()
    got[: round(part * want.size)] += by
    graphs = {"lr": compared(want, want), "hr": compared(got, want)}
    values = {"psnr_reference": reference, "psnr": reference - lost, "psnr_up": reference - lost} | fields
    return Case(height, width, graphs, **values)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (case(), None),
        (case(0.019), None),
        (case(0.021), "at 96x96: 0.021 dB lost, allowed are 0.02"),
        (case(0.021, name="p.png"), r"at 96x96 \(p.png\): 0.021 dB"),
        (case(-3.0), None),
        (case(0.0, psnr_up=44.9), "0.100 dB lost"),
        (case(0.0, psnr=44.9), "0.100 dB lost"),
        (case(math.nan), "nan dB lost"),
        (case(0.0, 1, 0.6), None),
        (case(0.0, 1, 0.7), r"hr has 49\.\d dB against PyTorch, wanted are 50"),
        (case(0.0, 100, 1e-3), r"hr has 38\.\d dB"),
        (case(finite=False), "z is not finite"),
        (case(z_error=0.019), None),
        (case(z_error=0.021, size=(2, 2)), "z differs by 2.1 % of its range, allowed are 2 %"),
        (case(z_error=math.nan), "z differs by nan %"),
        (case(9.0, 2, 1.0, size=(63, 65)), None),
        (case(0.0, 3, 0.001, size=(63, 65)), "a value differs by 3 levels, allowed are 2"),
        (case(0.0, reference=math.inf), None),
        (case(reference=math.inf, psnr=61.0, psnr_up=61.0), None),
        (case(reference=math.inf, psnr=59.5, psnr_up=61.0), "0.500 dB lost"),
        (case(reference=70.0, psnr=math.inf, psnr_up=math.inf), None),
    ],
)
def test_what_the_gate_refuses(found: Case, reason: str | None) -> None:
    parity = Parity([case(), found])
    if reason is None:
        assert parity.failure() is None
        parity.require("x")
        return
    with pytest.raises(ParityError, match=f"graph in mixed: refused at .*{reason.removeprefix('at ')}"):
        parity.require("graph in mixed")


def test_nothing_compared_is_refused() -> None:
    assert Parity().failure() == "no picture was compared"
    with pytest.raises(ParityError, match="engine: refused no picture"):
        Parity().require("engine")


def test_the_limit_may_hold_for_the_mean_of_a_set() -> None:
    parity = Parity([case(0.03), case(0.005), case(5.0, size=(8, 8))])
    assert parity.failure() is not None
    assert parity.failure(average=True) is None
    assert (parity.lost, parity.mean_lost) == (pytest.approx(0.03), pytest.approx(0.0175))
    assert parity.failure(0.017, average=True) == "on 3 pictures: 0.018 dB lost on average, allowed are 0.017"
    assert "hr has" in str(Parity([case(), case(0.0, 9, 1.0)]).failure(average=True))


def test_reports_hold_no_infinity(full_bundle: BundleOf) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    with_inf = Parity([case(reference=math.inf, finite=False, z_error=math.inf), case(math.nan)])
    json.dumps(with_inf.to_dict(), allow_nan=False)
    _, choice = choose_precision(bundle, "onnxruntime", "fp32", threads=1)
    json.dumps(choice.to_dict(), allow_nan=False)


# Measuring


def test_a_run_that_gives_nothing_or_something_else_is_refused(full_bundle: BundleOf) -> None:
    bundle = Bundle(full_bundle("irn_m", 2))
    runner = create(bundle, "onnxruntime", 1)

    def with_output(graph: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        return lambda name, inputs: change(runner.run(name, inputs)) if name == graph else runner.run(name, inputs)

    cases = [
        ("downscale", lambda o: {}, "downscale at 2x2: no output 'lr', only none"),
        ("downscale", lambda o: {"lr": o["lr"]}, "downscale at 2x2: no output 'z', only lr"),
        ("downscale", lambda o: o | {"lr": o["lr"].astype(np.float32)}, r"downscale at 2x2: float32 .* PyTorch gives uint8"),
        ("downscale", lambda o: o | {"z": o["z"][:, :1]}, r"z is float32 \(1, 1, 1, 1\), PyTorch gives float32 \(1, 9, 1, 1\)"),
        ("encoder", lambda o: {"code": o["code"][:, :3]}, "encoder at 2x2"),
        ("decoder", lambda o: {"z": o["z"].astype(np.float16)}, "decoder at 2x2: z is float16"),
        ("decoder", lambda o: {"z": o["z"][:, :, :1]}, "decoder at 2x2: z is"),
        ("upscale", lambda o: {"hr": o["hr"][:, 1:]}, "upscale at 2x2"),
    ]
    for graph, change, message in cases:
        with pytest.raises(ParityError, match=message):
            measure(bundle, with_output(graph, change))
    nan = measure(bundle, with_output("decoder", lambda o: {"z": o["z"] * np.float32(np.nan)}))
    assert nan.failure() == "at 2x2: z is not finite"
    nan = measure(bundle, with_output("downscale", lambda o: o | {"z": o["z"] + np.float32(np.inf)}))
    assert nan.failure() == "at 2x2: z is not finite"
    assert nan.to_dict()["cases"][0]["z_error"] is None


def test_a_z_that_is_off_is_refused(full_bundle: BundleOf) -> None:
    bundle = Bundle(full_bundle("irn_m", 2))
    runner = create(bundle, "onnxruntime", 1)
    for graph in ("downscale", "decoder"):

        def run(name: str, inputs: Any, graph: str = graph) -> dict[str, Any]:
            out = runner.run(name, inputs)
            return out | {"z": out["z"] * np.float32(1.05)} if name == graph else out

        assert "z differs by 5 % of its range" in str(measure(bundle, run).failure()), graph
    assert max(c.z_error for c in measure(bundle, runner.run).cases) < 1e-4


@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_pytorchs_own_results_are_equal(full_bundle: BundleOf, model: str) -> None:
    bundle = Bundle(full_bundle(model, 2))
    golden = golden_vectors(bundle)
    turn = iter(golden)
    now: dict[str, Any] = {}

    def replay(graph: str, inputs: Any) -> dict[str, Any]:
        if graph == "downscale":
            now.update(next(turn))
            return {name: now[name] for name in ("lr", "z") if name in now}
        if graph == "decoder":
            return {"z": pad_planes(now["z_hat"], 4)}
        return {"code": now["code"]} if graph == "encoder" else {"hr": now["restored"]}

    parity = measure(bundle, replay)
    assert parity.failure(0.0) is None
    assert (parity.lost, parity.mean_lost) == (0.0, 0.0)
    assert {k: c.different for k, c in parity.total().items()} == dict.fromkeys(parity.total(), 0)
    assert all(c.worst is None and c.z_error == 0.0 for c in parity.cases)


def nudged(array: np.ndarray) -> np.ndarray:
    """Its first value as little off as the gate lets pass."""
    out = array.copy()
    out.flat[0] = array.flat[0] ^ 1 if array.dtype == np.uint8 else array.flat[0] + 1e-3
    return out


@pytest.mark.parametrize(("model", "off"), [("irn_a", "lr"), ("irn_m", "lr"), ("irn_m", "z")])
def test_a_backend_that_cannot_restore_its_own_lr_is_refused(full_bundle: BundleOf, model: str, off: str) -> None:
    """All that it makes of PyTorch's inputs is PyTorch's; only what its own LR or z leads to is the worst picture there is."""
    bundle = Bundle(full_bundle(model, 2))
    turn = iter(golden_vectors(bundle))
    now: dict[str, Any] = {}

    def run(graph: str, inputs: Any) -> dict[str, Any]:
        if graph == "downscale":
            now.update(next(turn))
            return {name: nudged(now[name]) if name == off else now[name] for name in ("lr", "z") if name in now}
        if graph == "encoder":
            return {"code": now["code"] if np.array_equal(inputs["z"], pad_planes(now["z"], 4)) else nudged(now["code"])}
        if graph == "decoder":
            z_hat = pad_planes(now["z_hat"], 4)
            return {"z": z_hat if np.array_equal(inputs["code"], now["code"]) else nudged(z_hat)}
        theirs = {"lr": now["lr"], "z": now.get("z_hat")}
        if all(np.array_equal(value, theirs[name]) for name, value in inputs.items()):
            return {"hr": now["restored"]}
        return {"hr": np.where(now["hr"] < 128, 255, 0).astype(np.uint8)}

    parity = measure(bundle, run)
    for c in parity.cases:
        assert c.psnr < c.psnr_up == c.psnr_reference
        assert (c.graphs["lr"].different, c.graphs["hr"].different, c.worst) == (int(off == "lr"), 0, None)
    assert "dB lost, allowed are 0.02" in str(parity.failure())
