from __future__ import annotations

import importlib.util
import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from rescale.backends import create
from rescale.bundle import Bundle
from rescale.errors import BackendError, BundleError, ConfigError, MissingExtraError, ParityError
from rescale.golden import read_npy
from rescale.half import HalfRunner, rounded
from rescale.image import pad_planes
from rescale.parity import (
    FALL_BACK,
    Case,
    Comparison,
    Parity,
    choose_precision,
    golden_vectors,
    measure,
    worst_spot,
)
from rescale.quality import psnr

BundleOf = Callable[[str, int], Path]
Alter = Callable[..., Path]

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


# Golden vectors


def test_golden_arrays_round_trip() -> None:
    for array in (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.float32([[1.5], [-2]]), np.zeros((0, 3), np.uint8)):
        for order in "CF":
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(array, order=order))  # type: ignore[call-overload]
            found = read_npy(buffer.getvalue())
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype
            assert found.flags.writeable


def npy(array: np.ndarray, **header: Any) -> bytes:
    buffer = io.BytesIO()
    if header:
        fields = {"descr": "|u1", "fortran_order": False, "shape": array.shape} | header
        np.lib.format.write_array_header_1_0(buffer, fields)  # type: ignore[arg-type]
        return buffer.getvalue() + array.tobytes()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "EOF|magic"),
        (b"no array at all", "magic"),
        (npy(np.zeros(3, np.float64)), "an array of float64; uint8 and float32 are read"),
        (npy(np.array([print, None])), "an array of object"),
        (npy(np.zeros(3, ">f4")), "an array of >f4"),
        (npy(np.zeros(3, np.uint8), shape=(1 << 40,)), "with 3 bytes"),
        (npy(np.zeros(3, np.uint8), shape=(1 << 40, 1 << 40)), "with 3 bytes"),
        (npy(np.zeros(3, np.uint8), shape=(2,)), r"shape \(2,\) and uint8 with 3 bytes"),
        (npy(np.zeros(3, np.uint8), shape=(-1, -3)), "with 3 bytes"),
        (npy(np.zeros(3, np.uint8))[:-1], "with 2 bytes"),
        (b"\x93NUMPY\x03\x00" + bytes(80), r"version \(3, 0\)"),
    ],
)
def test_an_array_that_lies_is_refused_before_it_is_made(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_npy(data)


def repacked(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Callable[[str, bytes], bytes]:
    """A change of the golden file's entries."""

    def apply(_: str, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            entries = {n: z.read(n) for n in z.namelist()}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
            for name, content in change(entries).items():
                z.writestr(name, content)
        return out.getvalue()

    return apply


GOLDEN_CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "empty": (lambda e: {}, "no case in it"),
    "gone": (lambda e: {n: b for n, b in e.items() if n != "1.z_hat.npy"}, "incomplete: case 1 has no z_hat"),
    "dtype": (lambda e: e | {"0.lr.npy": npy(np.zeros((1, 1, 1, 3), np.float32))}, r"case 0 has a lr of float32"),
    "shape": (lambda e: e | {"0.restored.npy": npy(np.zeros((1, 1, 2, 3), np.uint8))}, r"case 0 has a restored of uint8 \(1, 1,"),
    "odd": (lambda e: e | {"0.hr.npy": npy(np.zeros((1, 3, 2, 3), np.uint8))}, "in multiples of 2"),
    "rank": (lambda e: e | {"0.hr.npy": npy(np.zeros((2, 3), np.uint8))}, r"an hr of \(2, 3\)"),
    "code": (lambda e: e | {"0.code.npy": npy(np.zeros((1, 4, 2, 2), np.uint8))}, "case 0 has a code"),
    "pickle": (lambda e: e | {"2.z.npy": npy(np.array([print]))}, "an array of object"),
    "many": (lambda e: e | {f"x{i}": b"" for i in range(1001)}, "more than 1000 arrays"),
    "bomb": (lambda e: e | {"x": bytes((256 << 20) + 1)}, "268435456 bytes"),
}


@pytest.mark.parametrize("name", GOLDEN_CHANGES)
def test_broken_golden_vectors_are_refused(full_bundle: BundleOf, altered: Alter, name: str) -> None:
    change, message = GOLDEN_CHANGES[name]
    path = altered(full_bundle("irn_m", 2), repacked(change), "golden.npz")
    with pytest.raises(BundleError, match=rf"golden vectors cannot be read: .*{message}.*; export the bundle again"):
        golden_vectors(Bundle(path))


def test_a_golden_file_that_is_no_archive_is_refused(full_bundle: BundleOf, altered: Alter) -> None:
    def damage(_: str, data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes(64) + data[middle + 64 :]

    for change in (lambda _, data: b"no archive", lambda _, data: data[: len(data) // 2], damage):
        with pytest.raises(BundleError, match="golden vectors cannot be read"):
            golden_vectors(Bundle(altered(full_bundle("irn_m", 2), change, "golden.npz")))


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


# float16 as a device computes it


def half_graph() -> bytes:
    """y = ((half(x) * 3.1) + 2050) - 2050, all in float16."""
    half = [numpy_helper.from_array(np.float16(v), n) for n, v in (("a", 3.1), ("b", 2050.0))]
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "a"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Sub", ["s", "b"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    graph = helper.make_graph(nodes, "test", [values[0]], [values[1]], half)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def test_every_float16_operator_rounds_as_numpy_does() -> None:
    session = onnxruntime.InferenceSession(rounded(half_graph()), providers=["CPUExecutionProvider"])
    x = np.linspace(-30, 30, 4001, dtype=np.float32)
    h = x.astype(np.float16)
    want = h * np.float16(3.1) + np.float16(2050) - np.float16(2050)
    assert want.dtype == np.float16
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], want.astype(np.float32))
    exact = h.astype(np.float32) * np.float32(np.float16(3.1))
    assert np.abs(exact - want.astype(np.float32)).max() >= 0.9, "the rounding shows"


@pytest.mark.parametrize("graph", ["downscale", "upscale"])
@pytest.mark.parametrize("precision", ["mixed", "fp16"])
def test_onnx_runtime_keeps_every_rounding(full_bundle: BundleOf, tmp_path: Path, graph: str, precision: str) -> None:
    data = Bundle(full_bundle("dlv_irn_a", 2)).read_graph(graph, precision)
    source = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    half = {v.name for v in source.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    moves = ("Concat", "Split", "DepthToSpace", "Cast")
    wanted = sum(1 for n in source.graph.node if n.output[0] in half and n.op_type not in moves)
    assert wanted > 5
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(rounded(data), options, providers=["CPUExecutionProvider"])
    found = [n for n in onnx.load(tmp_path / "optimised.onnx").graph.node if n.op_type == "Cast"]
    assert sum(1 for n in found if n.attribute[0].i == TensorProto.FLOAT16) >= wanted


def test_a_graph_without_float16_is_left_alone(full_bundle: BundleOf) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    data = bundle.read_graph("upscale")
    assert rounded(data) is data
    cases = golden_vectors(bundle)
    a, b = (
        make.run("upscale", {"lr": cases[3]["lr"]})["hr"]
        for make in (HalfRunner(bundle, "fp32", 1), create(bundle, "onnxruntime", 1))
    )
    np.testing.assert_array_equal(a, b)


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(BackendError, match="not a valid ONNX graph"):
        rounded(b"no graph")
    model = onnx.load_model_from_string(half_graph())
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(BackendError, match="test: x is float16; a bundle's graphs take and give uint8 and float32"):
        rounded(model.SerializeToString())


def test_onnx_is_asked_for_by_name(full_bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else find(name, *a))
    with pytest.raises(MissingExtraError, match=r"onnx not installed: pip install 'rescale-toolkit\[export\]'"):
        HalfRunner(bundle, "mixed")
    with pytest.raises(MissingExtraError, match="onnx not installed"):
        choose_precision(bundle, "tensorrt-rtx", "mixed")
    assert choose_precision(bundle, "onnxruntime", "mixed", threads=1)[0] == "mixed"


def test_the_half_runner_is_a_runner(full_bundle: BundleOf) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    runner = create(bundle, "half", 1, "fp16")
    assert runner.name.endswith("CPU, fp16, 1 thread(s), every float16 result rounded")
    runner.close()
    with pytest.raises(BackendError, match="used after close"):
        runner.run("downscale", {"hr": np.zeros((1, 2, 2, 3), np.uint8)})
    with pytest.raises(ConfigError, match="unknown precision 'int8': choose one of fp32, mixed, fp16"):
        create(bundle, "half", 1, "int8")


# Choosing


def scaled(factor: float) -> Callable[[str, bytes], bytes]:
    """Every convolution's weights multiplied."""

    def apply(_: str, data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        for t in model.graph.initializer:
            if t.name.endswith(".weight"):
                array = numpy_helper.to_array(t)
                t.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), t.name))
        out: bytes = model.SerializeToString()
        return out

    return apply


def files(*precisions: str) -> list[str]:
    return [f"{g}.{p}.onnx".replace(".fp32", "") for g in ("downscale", "upscale") for p in precisions]


@pytest.mark.parametrize("backend", ["onnxruntime", "half", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("broken", "wanted", "chosen"),
    [
        ((), "fp16", "fp16"),
        ((), "mixed", "mixed"),
        ((), "fp32", "fp32"),
        (("fp16",), "fp16", "mixed"),
        (("fp16",), "mixed", "mixed"),
        (("fp16", "mixed"), "fp16", "fp32"),
        (("mixed",), "mixed", "fp32"),
    ],
)
def test_the_first_precision_that_passes_is_taken(
    full_bundle: BundleOf, altered: Alter, backend: str, broken: tuple[str, ...], wanted: str, chosen: str
) -> None:
    bundle = Bundle(altered(full_bundle("irn", 2), scaled(1.1), *files(*broken)))
    precision, report = choose_precision(bundle, backend, wanted, threads=1)
    assert precision == report.precision == chosen
    tried = list(FALL_BACK[FALL_BACK.index(wanted) : FALL_BACK.index(chosen) + 1])
    assert list(report.measured) == tried
    assert list(report.refused) == tried[:-1]
    assert ("rounded" in report.runner) == (backend != "onnxruntime")
    assert str(report).count("refused") == len(tried) - 1
    assert (f"; use {chosen}: " in str(report)) == (len(tried) > 1)
    assert report.to_dict()["measured"][chosen]["psnr_lost"] <= 0.02


def test_no_precision_that_passes_is_an_error(full_bundle: BundleOf, altered: Alter) -> None:
    bundle = Bundle(altered(full_bundle("irn", 2), scaled(1.1), *files(*FALL_BACK)))
    message = r"irn x2 custom on onnxruntime: fp16 refused at .*; mixed refused at .*; fp32 refused at .*; export the bundle again"
    with pytest.raises(ParityError, match=message):
        choose_precision(bundle, "onnxruntime", "fp16", threads=1)


def test_a_tighter_limit_refuses_more(shipped_bundle: Callable[[str], Path]) -> None:
    bundle = Bundle(shipped_bundle("dlv_irn_a"))
    precision, report = choose_precision(bundle, "half", "fp16", max_loss=0.004)
    assert precision == "mixed"
    assert "0.00" in report.refused["fp16"]
    assert str(report).startswith("fp16 refused at ")


def test_what_the_bundle_does_not_hold_is_said(full_bundle: BundleOf, altered: Alter, bundle: BundleOf) -> None:
    only_mixed = Bundle(bundle("irn", 2))
    with pytest.raises(BundleError, match="holds fp32, mixed, not 'fp16'; export it with --precision fp16"):
        choose_precision(only_mixed, "onnxruntime", "fp16")
    with pytest.raises(ConfigError, match="unknown precision 'int8': choose one of fp32, mixed, fp16"):
        choose_precision(only_mixed, "onnxruntime", "int8")
    without = Bundle(altered(full_bundle("irn", 2), scaled(1.1), *files("fp16")))
    del without.precisions["mixed"]
    precision, report = choose_precision(without, "onnxruntime", "fp16", threads=1)
    assert precision == "fp32"
    assert report.refused["mixed"] == "unseen: the bundle does not hold it; export it with --precision mixed"
    with pytest.raises(BackendError, match="unknown backend 'abacus'"):
        choose_precision(only_mixed, "abacus", "mixed")
