"""Shared by all suites: small networks with random weights, exported once per session, and pictures."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rescale.bundle import MANIFEST, PRECISIONS
from rescale_export.bundles import write_bundle
from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.config import NetConfig
from rescale_train.grow import grow
from rescale_train.models import RescalingNet, build
from rescale_train.shipped import find_shipped, list_shipped, weights_folder

torch.set_num_threads(1)

# Telemetry is switched off before a library is imported, as `rescale.extras` does where it is asked for one.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)

# A run that a script started in the background inherits an ignored SIGINT; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ALL = [(m, s) for m in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m") for s in (2, 4)]


def random_net(model: str, scale: int, seed: int = 0, corrections: int = 0, **changes: Any) -> RescalingNet:
    """One block a level, growth 4, every parameter random: small enough for any machine, nothing in it is zero.

    The flow has the same weights with and without corrections.
    """
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "blocks": (1,) * (scale // 2),
        "growth": 4,
        "shared_trunk": True,
        "dlv_channels": 3 if model.startswith("dlv") else 0,
        "alpha_gain": 8.0 if model.endswith("_a") else 1.0,
    }
    net = build(NetConfig(model, scale, **(values | changes)))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    if corrections:
        net = grow(net, dataclasses.replace(net.config, corrections=corrections, correction_growth=4))
        for p in net.corrections.parameters():
            torch.nn.init.normal_(p, std=0.02)
    return net.eval()


def made_once(folder: Path, **options: Any) -> Callable[[str, int], Path]:
    """Paths of small random bundles of a model and scale in a folder, each made when it is first asked for."""

    def get(model: str, scale: int) -> Path:
        target = folder / f"{model}_x{scale}"
        if not target.exists():
            write_bundle(random_net(model, scale), target, **options)
        return target

    return get


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Path of a small random bundle of a model and scale, made once."""
    return made_once(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def full_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """As `bundle`, with all precisions."""
    return made_once(tmp_path_factory.mktemp("full"), precisions=PRECISIONS)


@pytest.fixture(scope="session")
def refinable(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """As `bundle`, with the gradient graph."""
    return made_once(tmp_path_factory.mktemp("refinable"), refine=True)


@pytest.fixture(scope="session")
def corrected_pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Bundles of an x2 network with corrections of the encoder, with the gradient graph too, and of the same without, made once."""

    @functools.cache
    def get(model: str) -> tuple[Path, Path]:
        net, folder = random_net(model, 2, corrections=2), tmp_path_factory.mktemp("corrected")
        write_bundle(net, folder / "with", None, ("mixed",), refine=True)
        write_bundle(net.with_corrections(0), folder / "without", None, ())
        return folder / "with", folder / "without"

    return get


@pytest.fixture(scope="session")
def corrected_pair(corrected_pair_of: Callable[[str], tuple[Path, Path]]) -> tuple[Path, Path]:
    """That of irn_a."""
    return corrected_pair_of("irn_a")


@pytest.fixture(scope="session")
def shipped_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of the bundle of a model's shipped x2 weights with all precisions and the gradient graph, made once."""
    made: dict[str, Path] = {}

    def get(model: str) -> Path:
        if model not in made:
            found = find_shipped(model, 2, "lite")
            made[model] = tmp_path_factory.mktemp("shipped") / f"{model}_x2_lite"
            net = checkpoint.read_net(found.path)
            write_bundle(net, made[model], found.card, PRECISIONS, refine=True)
        return made[model]

    return get


FAST = ("dlv_irn_a x2 lite", "dlv_irn_a x4 lite", "dlv_irn_m x2 lite", "irn x2 lite")
"""Shipped weights whose figures every test run checks. All of them would take many minutes more, above all those with corrections:
`pytest -m slow`. README's first command checks one of these."""


@pytest.fixture
def only_irn_ships(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in which irn x2 lite are the only weights."""
    folder = tmp_path_factory.mktemp("weights")
    for path in weights_folder().glob("irn_x2_lite.*"):
        shutil.copy(path, folder)
    monkeypatch.setattr("rescale_train.shipped.weights_folder", lambda: folder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `shipped_weights` runs once for each file of weights."""
    if "shipped_weights" in metafunc.fixturenames:
        rows = [pytest.param(s, id=s.title, marks=[] if s.title in FAST else [pytest.mark.slow]) for s in list_shipped()]
        metafunc.parametrize("shipped_weights", rows)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write figures of shipped weights that tests/shipped_figures.json lacks")


@pytest.fixture(scope="session")
def recorded(pytestconfig: pytest.Config) -> Callable[[str, str, list[float]], list[float]]:
    """What tests/shipped_figures.json says was measured of shipped weights, by their title and what was measured.

    Beside that, the figures just measured: with ``--record`` they are written where there are none; without, none is an
    error. Figures of weights that `rescale-train ship` found better are written by deleting the old ones.
    """
    path = Path(__file__).parent / "shipped_figures.json"
    table: dict[str, dict[str, list[float]]] = json.loads(path.read_text())

    def look_up(title: str, what: str, found: list[float]) -> list[float]:
        if what not in table.get(title, {}):
            if not pytestconfig.getoption("--record"):
                pytest.fail(f"{path.name} has no figures of {title} for {what}: run this test with --record")
            table.setdefault(title, {})[what] = [round(v, 2) for v in found]
            rows = {t: ",\n".join(f"  {json.dumps(w)}: {json.dumps(row)}" for w, row in table[t].items()) for t in sorted(table)}
            path.write_text("{\n" + ",\n".join(f' "{t}": {{\n{rows[t]}\n }}' for t in rows) + "\n}\n")
        return table[title][what]

    return look_up


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a bundle whose files are changed, with a manifest that vouches for them."""

    def alter(path: Path, change: Callable[[str, bytes], bytes], *files: str) -> Path:
        target = tmp_path / f"altered{len(list(tmp_path.iterdir()))}"
        shutil.copytree(path, target)
        manifest = json.loads((target / MANIFEST).read_text())
        graphs = [manifest["graphs"], *manifest["precisions"].values()]
        entries = {e["file"]: e for e in [*(e for g in graphs for e in g.values()), manifest["golden"]]}
        for file in files:
            data = change(file, (target / file).read_bytes())
            (target / file).write_bytes(data)
            entries[file] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (target / MANIFEST).write_text(json.dumps(manifest))
        return target

    return alter


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """Deterministic uint8 (height, width, 3) pictures."""
    return probe_picture


@pytest.fixture(scope="session")
def make_net() -> Callable[..., RescalingNet]:
    """`random_net` for suites, which cannot import this file."""
    return random_net
