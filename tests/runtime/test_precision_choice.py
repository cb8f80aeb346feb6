"""The first precision that passes the gate is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from rescale.bundle import Bundle
from rescale.errors import BackendError, BundleError, ConfigError, ParityError
from rescale.parity import FALL_BACK, choose_precision

BundleOf = Callable[[str, int], Path]
Alter = Callable[..., Path]


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
