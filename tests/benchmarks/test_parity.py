from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image

from rescale.backends import create
from rescale.bundle import Bundle
from rescale.errors import BackendError, ConfigError
from rescale.half import HalfRunner
from rescale.network import Network
from rescale.parity import measure
from rescale.quality import psnr
from rescale_bench.cli import main
from rescale_bench.parity import Take, check, probe
from rescale_bench.parity_cli import parse_size
from rescale_bench.pictures import folder_set
from rescale_bench.store import digest
from rescale_export.probe import photograph

BundleOf = Callable[[str, int], Path]
FolderOf = Callable[..., Path]
Alter = Callable[..., Path]

CPU = ["--backend", "half", "--backend", "onnxruntime", "--threads", "1"]


def scaled(_: str, data: bytes) -> bytes:
    """Every float16 convolution's weights 3 % larger."""
    model = onnx.load_model_from_string(data)
    for t in model.graph.initializer:
        if t.data_type == TensorProto.FLOAT16 and t.name.endswith(".weight"):
            t.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(t) * np.float16(1.03)).astype(np.float16), t.name))
    out: bytes = model.SerializeToString()
    return out


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def graph_files(precision: str) -> tuple[str, str]:
    return f"downscale.{precision}.onnx", f"upscale.{precision}.onnx"


def test_the_report_in_words(full_bundle: BundleOf, folder_of: FolderOf, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of("mine", (70, 81), (66, 67))
    command = ["parity", str(full_bundle("irn_a", 2)), *CPU, "--data", str(folder), "--size", "33x40"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "irn_a x2 custom: at most 0.02 dB may be lost" in text
    for name in ("half fp16", "half mixed", "half fp32", "onnxruntime fp16", "onnxruntime mixed", "onnxruntime fp32"):
        assert re.search(rf"{name} +golden \(4\) .* accepted", text), name
    assert len(re.findall(r" probes \(2\) ", text)) == len(re.findall(r" mine \(2\) ", text)) == 5
    assert re.search(
        r"^half fp16, golden: lr 1 level [\d.]+ %; hr 1 level [\d.]+ %; worst \d at \d+,\d+ of the \d+x\d+ pic", text, re.M
    )
    assert re.search(r"^compared with onnxruntime .* CPU, fp32, 1 thread\(s\): probes, mine$", text, re.M)
    assert "refused" not in text.split("differ: ")[0]
    assert "-0.000" not in text


def test_the_report_as_json(full_bundle: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = full_bundle("irn_m", 2), tmp_path / "r.json"
    assert main(["parity", str(path), *CPU, "--precision", "mixed", "--json", "--out", str(out)]) == 0
    report = strict_json(capsys.readouterr().out)
    assert report == strict_json(out.read_text())
    (found,) = report["bundles"]
    assert (found["model"], found["refused"], found["missing"], found["max_loss"]) == ("irn_m x2 custom", False, [], 0.02)
    assert [(r["backend"], r["precision"], r["refused"], r["advice"]) for r in found["results"]] == [
        ("half", "mixed", None, None),
        ("onnxruntime", "mixed", None, None),
    ]
    golden, probes = found["results"][0]["groups"]
    assert (golden["name"], golden["reference"], golden["limit_holds_for"]) == ("golden", "PyTorch", "each")
    assert [c["width"] for c in golden["cases"]] == [2, 14, 90, 288]
    assert (probes["name"], [c["name"] for c in probes["cases"]]) == ("probes", ["87x61"])
    assert [c.get("digest") for g in (golden, probes) for c in g["cases"]] == [None] * 4 + [digest(probe(61, 87))]
    for group in (golden, probes):
        for output in ("lr", "hr", "code"):
            c = group["graphs"][output]
            assert sum(c["histogram"].values()) == c["values"] == sum(case["graphs"][output]["values"] for case in group["cases"])
            assert sum(n for level, n in c["histogram"].items() if level != "0") == c["different"]
    spot = golden["cases"][3]["worst"]
    assert (spot["height"], spot["width"], spot["top"] % 32, spot["left"] % 32) == (32, 32, 0, 0)


def test_golden_figures_are_those_of_the_runtimes_gate(full_bundle: BundleOf) -> None:
    bundle = Bundle(full_bundle("irn_a", 2))
    report = check(bundle, ["half"], ["fp16"], threads=1)
    want = measure(bundle, HalfRunner(bundle, "fp16", 1).run)
    assert report.results[0].groups[0].parity.to_dict() == want.to_dict()


def test_a_picture_comes_up_from_the_judged_networks_own_lr_and_from_the_references(full_bundle: BundleOf, altered: Alter) -> None:
    bundle = Bundle(altered(full_bundle("irn", 2), scaled, "downscale.fp16.onnx"))
    reference, judged = (Network(bundle, create(bundle, "onnxruntime", 1, precision)) for precision in ("fp32", "fp16"))
    hr = probe(64, 80)
    case = Take(reference, hr).compare(judged, "p")
    own, theirs = (psnr(judged.up(network.down(hr)[0], None, None), hr) for network in (judged, reference))
    assert own != theirs
    assert (case.psnr, case.psnr_up) == (own, theirs)


def test_a_refusal_names_what_to_use(full_bundle: BundleOf, altered: Alter, capsys: pytest.CaptureFixture[str]) -> None:
    broken = altered(full_bundle("irn", 2), scaled, *graph_files("fp16"))
    assert main(["parity", str(broken), *CPU]) == 1
    captured = capsys.readouterr()
    assert re.search(r"^refused: half fp16: golden at .*; use mixed: 0\.00\d dB lost at most$", captured.out, re.M)
    assert re.search(r"half fp16 .* refused", captured.out)
    assert captured.err == ""
    assert main(["parity", str(broken), *CPU, "--precision", "fp16", "--json"]) == 1
    results = strict_json(capsys.readouterr().out)["bundles"][0]["results"]
    assert {r["advice"] for r in results} == {"use mixed, which was not measured: add --precision mixed"}
    assert main(["parity", str(broken), *CPU, "--precision", "mixed"]) == 0

    worse = altered(broken, scaled, *graph_files("mixed"))
    report = check(Bundle(worse), ["half", "onnxruntime"], threads=1)
    advice = {(r.backend, r.precision): r.advice for r in report.results}
    assert advice["half", "fp16"] == advice["onnxruntime", "mixed"] == "use fp32: 0.000 dB lost at most"
    assert advice["half", "fp32"] is None


def test_a_backend_that_is_wrong_in_float32_is_not_to_be_used(full_bundle: BundleOf, altered: Alter) -> None:
    def wrong(_: str, data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        tensor = next(t for t in model.graph.initializer if t.name == "level0.haar.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        out: bytes = model.SerializeToString()
        return out

    bundle = Bundle(altered(full_bundle("irn", 2), wrong, "upscale.onnx"))
    report = check(bundle, ["onnxruntime"], ["fp32"], threads=1)
    assert report.refused
    assert report.results[0].advice == "do not use onnxruntime: none of its precisions gives PyTorch's results"


def test_a_set_called_as_the_golden_pictures_stays_apart(full_bundle: BundleOf, folder_of: FolderOf) -> None:
    sets = [folder_set(folder_of(name, (24, 24))) for name in ("golden", "probes")]
    groups = check(Bundle(full_bundle("irn", 2)), ["half"], ["mixed"], sets, threads=1).results[0].groups
    assert [(g.name, g.average) for g in groups if g.reference != "PyTorch"] == [
        ("probes", False),
        ("golden of --data", True),
        ("probes of --data", True),
    ]
    assert {c.name for g in groups[2:] for c in g.parity.cases} == {"p0.png"}


def test_the_limit_holds_for_the_mean_of_a_set(shipped_bundle: Callable[[str], Path], folder_of: FolderOf, tmp_path: Path) -> None:
    bundle = Bundle(shipped_bundle("dlv_irn_a"))
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(photograph()[:96, :128]).save(folder / "a.png")
    Image.fromarray(photograph()[96:, 100:228]).save(folder / "b.png")
    result = check(bundle, ["half"], ["fp16"], [folder_set(folder)], threads=1).results[0]
    cases = result.groups[2].parity.cases
    assert [c.name for c in cases] == ["a.png", "b.png"]
    mean = sum(c.lost for c in cases) / 2
    assert 0.0 < mean < 0.02
    below, above = (check(bundle, ["half"], ["mixed"], [folder_set(folder)], max_loss=x, threads=1) for x in (1.0, 0.0))
    assert below.results[0].groups[2].average
    assert not below.refused
    assert above.refused


def test_backends_that_nobody_named_may_be_absent(full_bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(full_bundle("irn", 2))
    monkeypatch.setattr("rescale_bench.parity.BACKENDS", ("half", "abacus", "onnxruntime"))
    report = check(bundle, threads=1)
    assert [(r.backend, r.precision) for r in report.results] == [
        ("half", "fp16"),
        ("half", "mixed"),
        ("onnxruntime", "fp16"),
        ("onnxruntime", "mixed"),
        ("onnxruntime", "fp32"),
    ]
    assert [(b, p) for b, p, _ in report.missing] == [("abacus", p) for p in ("fp16", "mixed", "fp32")]
    assert "unknown backend 'abacus'" in report.missing[0][2]
    monkeypatch.setattr("rescale_bench.parity.BACKENDS", ("abacus",))
    with pytest.raises(BackendError, match="nothing ran: abacus fp16: unknown backend"):
        check(bundle, threads=1)


def test_a_backend_that_gives_up_midway_is_not_judged(full_bundle: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    run = HalfRunner.run

    def limited(self: HalfRunner, graph: str, inputs: Any) -> Any:
        if graph == "downscale" and inputs["hr"].shape[2] == 88:
            raise BackendError("no profile for 88 columns")
        return run(self, graph, inputs)

    monkeypatch.setattr(HalfRunner, "run", limited)
    monkeypatch.setattr("rescale_bench.parity.BACKENDS", ("half", "onnxruntime"))
    bundle = Bundle(full_bundle("irn", 2))
    report = check(bundle, precisions=["mixed"], threads=1)
    assert [r.backend for r in report.results] == ["onnxruntime"]
    assert report.missing == [("half", "mixed", "no profile for 88 columns")]
    with pytest.raises(BackendError, match="no profile"):
        check(bundle, ["half"], ["mixed"], threads=1)


@pytest.mark.parametrize(
    ("low", "best", "high", "golden", "probes"),
    [
        ((1, 2, 2), (1, 64, 96), (1, 100, 128), 3, ["2x2", "95x63", "96x64", "128x100"]),
        ((1, 64, 64), (1, 192, 288), (1, 200, 300), 1, ["64x64", "287x191", "288x192", "300x200"]),
        ((1, 128, 128), (1, 128, 128), (1, 128, 128), 0, ["127x127", "128x128"]),
        ((1, 128, 128), (1, 128, 256), (1, 20000, 20000), 1, ["128x128", "255x127", "256x128"]),
    ],
)
def test_an_engine_is_measured_at_the_sizes_of_its_profile(
    full_bundle: BundleOf, monkeypatch: pytest.MonkeyPatch, low: Any, best: Any, high: Any, golden: int, probes: list[str]
) -> None:
    bundle = Bundle(full_bundle("irn", 2))

    class Engine:
        profile: ClassVar[dict[str, Any]] = {"min": low, "opt": best, "max": high}

        def fits(self, *sides: int) -> bool:
            return all(a <= n <= b for a, n, b in zip(low, sides, high, strict=True))

    class Runner(HalfRunner):
        def run(self, graph: str, inputs: Any) -> Any:
            scale = 1 if graph == "downscale" else 2
            batch, height, width = next(iter(inputs.values())).shape[:3]
            if not Engine().fits(batch, scale * height, scale * width):
                raise BackendError(f"no profile for {width}x{height}")
            return super().run(graph, inputs)

    def opened(bundle: Bundle, backend: str, threads: int | None, precision: str = "fp32") -> Any:
        return Runner(bundle, precision, 1) if backend == "tensorrt-rtx" else create(bundle, backend, threads, precision)

    monkeypatch.setattr("rescale_bench.parity.create", opened)
    monkeypatch.setattr("rescale_bench.parity.find_engines", lambda *a: [Engine()])
    (result,) = check(bundle, ["tensorrt-rtx"], ["mixed"], threads=1).results
    assert result.refused is None
    found = {g.name: [f"{c.width}x{c.height}" for c in g.parity.cases] for g in result.groups}
    assert len(found.get("golden", [])) == golden
    assert sorted(found["probes"]) == sorted(probes)

    monkeypatch.setattr("rescale_bench.parity.find_engines", lambda *a: [])
    report = check(bundle, ["tensorrt-rtx"], ["mixed"], threads=1)
    assert report.results[0].refused == "no picture was compared: the engine's profiles take none of them"


def test_mistakes_are_one_line(
    full_bundle: BundleOf, folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(full_bundle("irn", 2))
    (tmp_path / "none").mkdir()
    cases = [
        ([good, "--backend", "abacus"], "unknown backend 'abacus'"),
        ([good, "--precision", "int8"], "unknown precision 'int8': choose one of fp32, mixed, fp16"),
        ([good, "--size", "12"], "--size 12: wanted is WIDTHxHEIGHT, such as 640x480"),
        ([good, "--data", str(tmp_path / "none")], "none: no picture found"),
        ([str(tmp_path)], "no bundle here"),
        ([good, "--save-inputs", str(tmp_path / "i.json"), "--graph", "encoder"], "irn x2 custom has no graph 'encoder'"),
        ([good, good, "--save-inputs", str(tmp_path / "i.json")], "Polygraphy's files are of one bundle, 2 were given"),
        ([good, "--save-inputs", "i", "--load-outputs", "o"], "--load-outputs judges results"),
        ([good, "--load-outputs", str(tmp_path / "gone.json")], "gone.json: cannot read: No such file or directory"),
        ([good, "--load-outputs", str(tmp_path / "none"), "--max-loss", "inf"], "must be a number of dB, 0 or more, got inf"),
        ([good, "--load-outputs", str(tmp_path / "none")], "none: no .json file in this folder"),
        ([good, "--save-outputs", str(tmp_path / "gone" / "o.json")], "o.json: cannot write"),
    ]
    for arguments, message in cases:
        assert main(["parity", *arguments, "--threads", "1"]) == 1, arguments
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
    assert main(["parity", good, "--max-loss", "-1"]) == 2
    assert main(["parity"]) == 2
    for value in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="the largest loss must be a number of dB, 0 or more"):
            check(Bundle(good), ["onnxruntime"], max_loss=value)


@pytest.mark.parametrize("text", ["", "x", "1x", "0x5", "5x0", "-1x4", "70000x2", "3x4x5", "3 x 4", "٣x4"])
def test_sizes_are_two_sides(text: str) -> None:
    with pytest.raises(ConfigError, match="wanted is WIDTHxHEIGHT"):
        parse_size(text)
    assert parse_size("640x480") == (480, 640)


def test_a_probe_is_the_photograph_mirrored() -> None:
    whole = photograph()
    np.testing.assert_array_equal(probe(50, 60), whole[:50, :60])
    large = probe(400, 700)
    assert (large.shape, large.dtype) == ((400, 700, 3), np.uint8)
    np.testing.assert_array_equal(large[:192, :288], whole)
    np.testing.assert_array_equal(large[192:384, :288], whole[::-1])
    np.testing.assert_array_equal(large[:192, 576:], whole[:, :124])


def test_neither_torch_nor_polygraphy_is_needed(full_bundle: BundleOf) -> None:
    code = "import sys; sys.modules |= dict.fromkeys(('torch', 'polygraphy', 'skimage')); from rescale_bench.cli import main; "
    code += f"sys.exit(main(['parity', {str(full_bundle('irn_a', 2))!r}, *{CPU!r}]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (found.returncode, found.stderr) == (0, "")
    assert "half mixed" in found.stdout


def test_psnr_takes_a_precision(shipped_bundle: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").mkdir()
    Image.fromarray(photograph()[:128, :128]).save(tmp_path / "p" / "a.png")
    command = ["psnr", str(shipped_bundle("irn")), "--data", str(tmp_path / "p"), "--threads", "1", "--json"]
    found = {}
    for precision in ("fp32", "fp16"):
        assert main([*command, "--backend", "half", "--precision", precision]) == 0
        (result,) = strict_json(capsys.readouterr().out)["results"]
        assert f" {precision}, " in result["backend"]
        found[precision] = result["mean"]["hr_psnr_y"]
    assert found["fp32"] != found["fp16"]
    assert abs(found["fp32"] - found["fp16"]) < 0.05
    assert main([*command, "--precision", "half"]) == 1
    assert "unknown precision 'half': choose one of fp32, mixed, fp16" in capsys.readouterr().err


def test_two_bundles_of_one_title_are_told_apart(full_bundle: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = full_bundle("irn", 2)
    second = tmp_path / "again"
    shutil.copytree(first, second)
    report = tmp_path / "report.json"
    assert main(["parity", str(first), str(second), "--backend", "onnxruntime", "--precision", "fp32", "--out", str(report)]) == 0
    text = capsys.readouterr().out
    title = Bundle(first).title
    assert [b["model"] for b in json.loads(report.read_text())["bundles"]] == [title, f"{title} (2)"]
    assert main(["compare", str(report), str(report)]) == 0
    assert f"{title}: at most" in text
    assert f"{title} (2): at most" in text
    assert f"{title}: {first}\n" in text
    assert f"{title} (2): {second}\n" in text
