"""Folders of generated pictures, and a report."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rescale_bench.report import Found, Options, measure
from rescale_export.probe import probe_picture

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """A folder of a name with a generated PNG picture for each (height, width)."""

    def make(name: str, *sizes: tuple[int, int]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for i, (height, width) in enumerate(sizes):
            Image.fromarray(probe_picture(height, width, i)).save(folder / f"p{i}.png")
        return folder

    return make


@pytest.fixture
def no_imagecodecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the extra ``jxl``."""
    found = importlib.import_module

    def refuse(name: str, *rest: Any) -> Any:
        if name == "imagecodecs":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", refuse)


@pytest.fixture(scope="session")
def found(full_bundle: Callable[[str, int], Path]) -> Found:
    """A small network on the two pictures of a quick report, two sizes, peers included."""
    options = Options(
        bundle=full_bundle("irn_a", 2),
        backends=["onnxruntime"],
        resolutions=["64x48", "96x64"],
        minutes=0.01,
        quick=True,
        compiled=False,
        threads=1,
    )
    made = measure(options)
    made.report["machine"]["load_average"] = [0.0, 0.0, 0.0]  # whatever else runs beside the tests
    return made
