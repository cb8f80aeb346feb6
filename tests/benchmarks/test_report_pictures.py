"""Pictures of a report: crops where the restored HR is worst, and the map of what differs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from rescale.bundle import Bundle
from rescale.rescaler import load
from rescale_bench.parity import check
from rescale_bench.pictures import folder_set
from rescale_bench.report import Found
from rescale_bench.report_pictures import BLOCK, CROP, heat_map, panels, shares
from rescale_export.probe import probe_picture

BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]


def test_quality_has_crops_at_their_place(found: Found) -> None:
    (result,) = found.report["quality"]["results"]
    for row, shown in zip(result["pictures"], found.pictures, strict=True):
        assert row["name"] == shown.name
        assert row["source_png"] == shown.source_png > 1000
        left, top, width, height = shown.box
        assert left >= 0
        assert left + width <= shown.size[0]
        assert top >= 0
        assert top + height <= shown.size[1]
        assert left % 2 == top % 2 == 0
        sizes = {p.key: decoded(p.uri).shape for p in shown.panels}
        assert sizes.pop("lr") == (CROP // 2, CROP // 2, 3)
        assert set(sizes.values()) == {(CROP, CROP, 3)}


def test_the_crop_is_where_the_picture_is_worst(full_bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = probe_picture(400, 300, 0)
    with load(full_bundle("irn", 2), "onnxruntime", 1) as net:
        good = net.upscale

        def spoil(small: Any) -> Any:
            again = good(small)
            again[350:360, 10:20] ^= 255
            return again

        monkeypatch.setattr(net, "upscale", spoil)
        found = panels(net, "p", picture, {})
    left, top, width, height = found.box
    assert left <= 10
    assert left + width >= 20
    assert top <= 350
    assert top + height >= 360


@pytest.mark.parametrize("size", [(2, 2), (3, 500), (161, 159), (160, 160)])
def test_crops_of_small_pictures(bundle: BundleOf, size: tuple[int, int]) -> None:
    with load(bundle("irn", 2), "onnxruntime", 1) as net:
        found = panels(net, "p", probe_picture(*size, 0), {})
    left, top, width, height = found.box
    shape = decoded(found.panels[0].uri).shape
    assert shape == (height, width, 3)
    assert left + width <= size[1]
    assert top + height <= size[0]


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20).map(lambda s: (*s, 3))), st.data())
def test_shares_are_of_each_square(a: np.ndarray, data: st.DataObject) -> None:
    b = data.draw(hnp.arrays(np.uint8, a.shape))
    found = shares(a, b)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            here = np.s_[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            assert found[i, j] == pytest.approx((a[here] != b[here]).mean())


def test_the_heat_map_is_of_the_worst_picture(full_bundle: BundleOf, folder_of: FolderOf) -> None:
    bundle = Bundle(full_bundle("irn_a", 2))
    sets = [folder_set(folder_of("mine", (150, 170), (200, 130)))]
    checked = check(bundle, ["half"], ["fp16"], sets, max_loss=60.0, threads=1)
    found = heat_map(bundle, checked, sets, 1)
    assert found is not None
    cases = [c for g in checked.results[0].groups for c in g.parity.cases if c.height * c.width >= 128 * 128]
    worst = min(cases, key=lambda c: c.graphs["hr"].psnr)
    assert found.found.to_dict() == worst.graphs["hr"].to_dict()
    assert found.values.shape == (-(-worst.height // BLOCK), -(-worst.width // BLOCK))
    assert worst.worst is not None
    assert found.worst == worst.worst.to_dict()
    same = check(bundle, ["onnxruntime"], ["fp32"], [], threads=1)
    for group in same.results[0].groups:
        for case in group.parity.cases:
            case.worst = None
    assert heat_map(bundle, same, [], 1) is None
