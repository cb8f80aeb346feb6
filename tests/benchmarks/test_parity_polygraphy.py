"""Golden vectors and results in Polygraphy's files: written, read back, and refused where they are wrong or hostile."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import from_json, load_json

from rescale.bundle import Bundle
from rescale.errors import InputError, MissingExtraError, ParityError
from rescale.parity import golden_vectors
from rescale_bench import polygraphy_io
from rescale_bench.cli import main

BundleOf = Callable[[str, int], Path]

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = ("downscale", "upscale", "encoder", "decoder")


@pytest.mark.parametrize(("model", "graph"), [("irn_a", "downscale"), *(("irn_m", g) for g in GRAPHS)])
def test_golden_files_are_polygraphys(full_bundle: BundleOf, tmp_path: Path, model: str, graph: str) -> None:
    bundle = Bundle(full_bundle(model, 2))
    inputs, outputs = tmp_path / "i.json", tmp_path / "o.json"
    polygraphy_io.save_inputs(bundle, graph, inputs)
    polygraphy_io.save_outputs(bundle, graph, outputs)
    fed, results = load_json(str(inputs)), RunResults.load(str(outputs))
    assert list(results.keys()) == ["pytorch"]
    wanted = polygraphy_io.iterations(bundle, graph)
    assert len(fed) == len(results["pytorch"]) == len(wanted) >= (1 if graph == "decoder" else 4)
    for feed, got, (_, inputs_, outputs_) in zip(fed, results["pytorch"], wanted, strict=True):
        assert [t.name for t in bundle.graphs[graph].inputs] == list(feed)
        assert [t.name for t in bundle.graphs[graph].outputs] == list(got)
        for name in feed:
            np.testing.assert_array_equal(feed[name], inputs_[name])
            assert feed[name].dtype == inputs_[name].dtype
        for name, array in got.items():
            np.testing.assert_array_equal(array, outputs_[name])
    mine = polygraphy_io.load_outputs(outputs)
    assert list(mine) == ["pytorch"]
    parity = polygraphy_io.compare(bundle, graph, mine["pytorch"], 1)
    assert parity.failure(1e-3) is None
    assert max(c.largest for case in parity.cases for c in case.graphs.values()) <= 1


def results_of(outputs: list[dict[str, np.ndarray]], runner: str = "r") -> str:
    results = RunResults()
    results.add(outputs, runner_name=runner)
    text: str = results.to_json()
    return text


@pytest.mark.parametrize("graph", GRAPHS)
def test_wrong_results_of_each_graph_are_refused(full_bundle: BundleOf, tmp_path: Path, graph: str) -> None:
    bundle = Bundle(full_bundle("irn_m", 2))
    right = [outputs for _, _, outputs in polygraphy_io.iterations(bundle, graph)]
    assert polygraphy_io.compare(bundle, graph, right, 1).failure() is None
    for name in right[0]:
        wrong = [o | {name: o[name] + 3 if o[name].dtype == np.uint8 else o[name] * np.float32(1.5)} for o in right]
        assert polygraphy_io.compare(bundle, graph, wrong, 1).failure() is not None, name
        if right[0][name].dtype == np.float32:
            nan = [o | {name: o[name] * np.float32(np.nan)} for o in right]
            assert "not finite" in str(polygraphy_io.compare(bundle, graph, nan, 1).failure())
        with pytest.raises(ParityError, match=f"{graph} at .*: no output '{name}', only"):
            polygraphy_io.compare(bundle, graph, [{k: v for k, v in o.items() if k != name} | {"x": o[name]} for o in right], 1)
        with pytest.raises(ParityError, match=rf"{graph} at .*: {name} is .*, PyTorch gives"):
            polygraphy_io.compare(bundle, graph, [o | {name: o[name][:, :, :0]} for o in right], 1)
    with pytest.raises(ParityError, match="iterations, the golden vectors have"):
        polygraphy_io.compare(bundle, graph, right[1:], 1)


def lie(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


def hostile() -> dict[str, tuple[str, str]]:
    good = results_of([{"lr": np.zeros((1, 2, 2, 3), np.uint8)}])
    payload = json.loads(good)["lst"][0][1][0]["outputs"]["lr"]["values"]["array"]
    data = base64.b64decode(payload)
    huge = base64.b64encode(data.replace(b"(1, 2, 2, 3)", b"(9, 9, 9, 9)")).decode()
    pickled = base64.b64encode(data.replace(b"'|u1'", b"'|O'").replace(b" \n", b"  \n")).decode()
    # numpy's own reader ends the process with a division by zero.
    fatal = base64.b64encode(
        b"\x93NUMPY\x01\x00\x3d\x00{'descr':'<m8[1s/0]','fortran_order':False,'shape':(1,)}".ljust(80)
    ).decode()
    return {
        "no json": ("{", "Expecting property name"),
        "a list": ("[]", "list where RunResults was wanted"),
        "feed dicts": (json.dumps([{}]), "list where RunResults"),
        "another class": (lie(good, '"RunResults"', '"AccuracyResults"'), "AccuracyResults where RunResults was wanted"),
        "a torch tensor": (lie(good, '"ndarray"', '"Tensor"'), "Tensor where ndarray was wanted"),
        "no base64": (lie(good, payload, "***"), "RunResults: "),
        "too few bytes": (lie(good, payload, huge), r"shape \(9, 9, 9, 9\) and uint8 with 12 bytes"),
        "objects": (lie(good, payload, pickled), r"an array of \|O"),
        "a time": (lie(good, payload, fatal), "no array as numpy writes it"),
        "no outputs": (lie(good, '"outputs"', '"inputs"'), "KeyError: 'outputs'"),
        "nothing": (json.dumps(json.loads(good) | {"lst": []}), "holds no results"),
        "deep": ("[" * 100_000, "RunResults: "),
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_results_are_refused(tmp_path: Path, name: str) -> None:
    text, message = hostile()[name]
    path = tmp_path / "o.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"o\.json: not Polygraphy's RunResults: .*{message}|o\.json: .*{message}"):
        polygraphy_io.load_outputs(path)


def test_too_large_a_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygraphy_io, "MAX_FILE_BYTES", 100)
    (tmp_path / "o.json").write_text(results_of([{"lr": np.zeros((1, 2, 2, 3), np.uint8)}]))
    with pytest.raises(InputError, match="larger than 100 bytes"):
        polygraphy_io.load_outputs(tmp_path / "o.json")


def test_several_runners_and_folders(tmp_path: Path) -> None:
    arrays = [{"lr": np.full((1, 1, 1, 3), i, np.uint8)} for i in range(3)]
    both = RunResults()
    both.add(arrays, runner_name="a")
    both.append(("b", [IterationResult(o) for o in arrays[:2]]))
    both.save(str(tmp_path / "o.json"))
    found = polygraphy_io.load_outputs(tmp_path / "o.json")
    assert {k: len(v) for k, v in found.items()} == {"a": 3, "b": 2}
    (tmp_path / "d").mkdir()
    for i, outputs in enumerate(arrays):
        (tmp_path / "d" / f"{i:010d}.json").write_text(results_of([outputs]))
    assert [int(o["lr"][0, 0, 0, 0]) for o in polygraphy_io.load_outputs(tmp_path / "d")["r"]] == [0, 1, 2]
    assert from_json(results_of(arrays)) == RunResults.from_json(results_of(arrays))


def test_a_runner_without_an_iteration_is_not_let_pass(
    full_bundle: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.loads(results_of([{"lr": np.zeros((1, 2, 2, 3), np.uint8)}], "trt"))
    text["lst"][0][1] = []
    (tmp_path / "o.json").write_text(json.dumps(text))
    assert main(["parity", str(full_bundle("irn", 2)), "--load-outputs", str(tmp_path / "o.json")]) == 1
    assert "downscale: 0 iterations, the golden vectors have" in capsys.readouterr().err


def test_polygraphy_is_asked_for_by_name(full_bundle: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "polygraphy" else find(name, *a))
    for save in (polygraphy_io.save_inputs, polygraphy_io.save_outputs):
        with pytest.raises(MissingExtraError, match=r"polygraphy not installed: pip install 'rescale-toolkit\["):
            save(Bundle(full_bundle("irn", 2)), "downscale", tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def documented(marker: str) -> list[str]:
    text = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
    block = re.search(rf"<!-- {marker} -->\n```sh\n(.*?)```", text, re.S)
    assert block is not None
    return [line for line in block.group(1).replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def run(line: str, folder: Path) -> str:
    """A documented line; the commands are this environment's."""
    words = shlex.split(line)
    variables = dict(w.split("=", 1) for w in words if re.match(r"[A-Z_]+=", w))
    words = words[len(variables) :]
    program = Path(sys.executable).parent / words[0]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    found = subprocess.run([program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, f"{line}\n{found.stdout[-2000:]}\n{found.stderr[-2000:]}"
    return found.stdout + found.stderr


def test_the_documented_lines_work(shipped_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(shipped_bundle("dlv_irn_a"), tmp_path / "dlv_irn_a_x2_lite")
    lines = documented("polygraphy: no GPU")
    assert [line.split()[:2] for line in lines[:4]] == [
        ["rescale-bench", "parity"],
        ["polygraphy", "run"],
        ["rescale-bench", "parity"],
        ["polygraphy", "inspect"],
    ]
    said = [run(line, tmp_path) for line in lines[:4]]
    assert re.search(r"Passed: 4/4 iterations", said[1])
    assert re.search(r"golden downscale \(4\) .* accepted", said[2])
    assert "{hr [dtype=uint8, shape=('batch', 'height', 'width', 3)]}" in said[3]
    cases = golden_vectors(Bundle(tmp_path / "dlv_irn_a_x2_lite"))
    (outputs,) = polygraphy_io.load_outputs(tmp_path / "theirs.json").values()
    for got, want in zip(outputs, cases, strict=True):
        assert np.abs(got["lr"].astype(int) - want["lr"]).max() <= 1


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
def test_the_documented_lines_of_tensorrt_work(shipped_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(shipped_bundle("dlv_irn_a"), tmp_path / "dlv_irn_a_x2_lite")
    capability, convert = documented("polygraphy: TensorRT for RTX, no GPU")
    assert "Graph is fully supported by TensorRT" in run(capability, tmp_path)
    run(convert, tmp_path)
    assert (tmp_path / "downscale.engine").read_bytes()[:4] == b"vtrt"
