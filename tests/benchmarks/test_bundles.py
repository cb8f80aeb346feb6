"""Which of the shipped weights a command measures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rescale_export.bundles
from rescale.errors import BundleError, UnknownModelError
from rescale_bench import psnr_cli, rate_cli
from rescale_bench.bundles import bundles_of
from rescale_bench.cli import main
from rescale_train.shipped import list_shipped

BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]
Told = list[tuple[str, int]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, bool]]:
    """What would have been exported: name, precisions, with the gradient or not."""
    found: list[tuple[str, Any, bool]] = []

    def write(net: Any, target: Path, card: Any, precisions: Any, refine: bool) -> SimpleNamespace:
        found.append((target.name, tuple(precisions), refine))
        return SimpleNamespace(path=target)

    monkeypatch.setattr(rescale_export.bundles, "write_bundle", write)
    return found


def names(folder: Path, *arguments: Any, **options: Any) -> list[str]:
    return [c.path(folder, lambda name, count=1: None).name for c in bundles_of(*arguments, **options)]


def test_sizes_are_chosen_as_models_and_scales_are(written: list[Any], tmp_path: Path, bundle: BundleOf) -> None:
    mine = bundle("irn_m", 4)
    assert names(tmp_path, [], ["dlv_irn_a"], [2], ["lite"]) == ["dlv_irn_a_x2_lite"]
    assert set(names(tmp_path, [], ["irn"], [], ["lite"])) == {"irn_x2_lite", "irn_x4_lite"}
    found = names(tmp_path, [mine], ["dlv_irn_a"], [2], ["lite", "medium"])
    assert sorted(found) == ["dlv_irn_a_x2_lite", "dlv_irn_a_x2_medium", "irn_m_x4"]
    with pytest.raises(UnknownModelError, match="no weights ship for huge "):
        bundles_of([], [], [], ["lite", "huge"])
    with pytest.raises(UnknownModelError, match="no weights ship for irn_a, x2, full "):
        bundles_of([], ["irn_a"], [2], ["full"])


def test_by_default_all_shipped_weights_are_measured(written: list[Any], tmp_path: Path, bundle: BundleOf) -> None:
    every, mine = list_shipped(), bundle("irn_m", 4)
    assert len(names(tmp_path, [], [], [])) == len(every)
    assert written == [(f"{s.model}_x{s.scale}_{s.size}", (), False) for s in every]
    written.clear()
    assert names(tmp_path, [mine], ["irn"], [2])[0] == "irn_m_x4"
    assert {name.rpartition("_")[0] for name, _, _ in written} == {"irn_x2"}
    written.clear()
    assert [c.source for c in bundles_of([mine], [], [])] == [mine]
    assert names(tmp_path, [mine], [], []) == ["irn_m_x4"]
    assert written == []


def test_each_is_exported_when_its_turn_comes(written: list[Any], tmp_path: Path) -> None:
    told: Told = []
    first, second = bundles_of([], ["irn"], [2], ["lite", "medium"], "mixed", True)
    assert written == []
    first.path(tmp_path, lambda name, count=1: told.append((name, len(written))))
    assert told == [("exporting irn x2 lite", 0), ("irn x2 lite", 1)]
    second.path(tmp_path, lambda name, count=1: None)
    assert written == [("irn_x2_lite", ("mixed",), True), ("irn_x2_medium", ("mixed",), True)]


def test_what_a_given_bundle_lacks_is_told_before_anything_is_measured(
    bundle: BundleOf, full_bundle: BundleOf, tmp_path: Path
) -> None:
    good, poor = full_bundle("irn", 2), bundle("irn", 4)
    with pytest.raises(BundleError, match="holds fp32, mixed, not 'fp16'; export it with --precision fp16"):
        bundles_of([good, poor], [], [], precision="fp16")
    with pytest.raises(BundleError, match="holds no gradient graph"):
        bundles_of([good], [], [], refine=True)
    with pytest.raises(BundleError, match="no bundle here"):
        bundles_of([tmp_path], ["irn"], [2])


@pytest.mark.usefixtures("only_irn_ships")
@pytest.mark.parametrize(("command", "options"), [(psnr_cli, []), (rate_cli, ["--codec", "jpeg420"])])
def test_an_export_is_told_and_has_the_precision_that_is_measured(
    command: Any, options: list[str], folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: Told = []
    totals: list[int] = []

    @contextlib.contextmanager
    def bar(total: int) -> Iterator[Any]:
        totals.append(total)
        yield lambda name, count=1: told.append((name, count))

    monkeypatch.setattr(command, "progress_bar", bar)
    name = command.__name__.partition(".")[2].removesuffix("_cli")
    arguments = ["--data", str(folder_of("mine", (24, 24))), "--backend", "onnxruntime", "--precision", "mixed", "--threads", "1"]
    assert main([name, *arguments, *options, "--json"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    assert told[:3] == [("looking at p0.png", 0), ("exporting irn x2 lite", 0), ("irn x2 lite", 1)]
    assert sum(count for _, count in told) == totals[0]
