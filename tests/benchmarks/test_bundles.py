"""Which of the shipped weights a command measures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rescale_export.bundles
from rescale.errors import UnknownModelError
from rescale_bench.bundles import bundles_of


def test_sizes_are_chosen_as_models_and_scales_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def write(net: Any, target: Path, *rest: Any) -> SimpleNamespace:
        return SimpleNamespace(path=target)

    monkeypatch.setattr(rescale_export.bundles, "write_bundle", write)
    mine = tmp_path / "mine"
    assert [p.name for p in bundles_of([], ["dlv_irn_a"], [2], tmp_path, sizes=["lite"])] == ["dlv_irn_a_x2_lite"]
    assert {p.name for p in bundles_of([], ["irn"], [], tmp_path, sizes=["lite"])} == {"irn_x2_lite", "irn_x4_lite"}
    found = [p.name for p in bundles_of([mine], ["dlv_irn_a"], [2], tmp_path, sizes=["lite", "medium"])]
    assert sorted(found) == ["dlv_irn_a_x2_lite", "dlv_irn_a_x2_medium", "mine"]
    with pytest.raises(UnknownModelError, match="no weights ship for huge "):
        bundles_of([], [], [], tmp_path, sizes=["lite", "huge"])
    with pytest.raises(UnknownModelError, match="no weights ship for irn_a, x2, full "):
        bundles_of([], ["irn_a"], [2], tmp_path, sizes=["full"])
