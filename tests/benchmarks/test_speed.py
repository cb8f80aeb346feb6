from __future__ import annotations

import contextlib
import io
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescale import png
from rescale.bundle import Bundle
from rescale.container import Small
from rescale.errors import BackendError, BundleError, ConfigError, InputError, UnknownModelError
from rescale.picture import read_picture
from rescale.rescaler import load
from rescale.variants import LATENT_STRIDE
from rescale_bench import speed
from rescale_bench.cli import main
from rescale_bench.machine import PRODUCT_FLOPS
from rescale_bench.peers import eager, naive, naive_file
from rescale_bench.peers_torch import export_naive, save_net
from rescale_bench.speed_plan import Competitor, Options, Subject, sample_picture
from rescale_bench.speed_processes import Job, Process, Timing, run_in_turn
from rescale_bench.speed_report import left_out_lines, show
from rescale_bench.speed_worker import DIRECTIONS, PARTS, Spec, arrays_file, downscale, serve, timed, upscale
from rescale_train import checkpoint
from rescale_train.models import RescalingNet

BundleOf = Callable[[str, int], Path]
MakeNet = Callable[..., RescalingNet]

SIZE = (48, 64)
MODELS = [("irn", 2), ("irn_a", 2), ("irn_m", 2), ("dlv_irn_a", 4), ("dlv_irn_m", 4)]


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def case(bundle: BundleOf, make_net: MakeNet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A bundle, its peers with the same weights, and a backend that is not there."""
    subject = Subject(Bundle(bundle("irn_a", 2)), make_net("irn_a", 2), "same")
    wanted = [
        Competitor("backend", "onnxruntime", "fp32"),
        Competitor("backend", "tensorrt", "fp16"),
        Competitor("eager"),
        Competitor("naive"),
    ]
    with contextlib.closing(speed.Session(1, 3, None, tmp_path_factory.mktemp("speed"))) as session:
        found: dict[str, Any] = strict_json(json.dumps(speed.measure_case(subject, wanted, SIZE, session)))
    return found


def test_each_competitor_has_both_directions(case: dict[str, Any]) -> None:
    assert [c["name"] for c in case["competitors"]] == ["onnxruntime fp32", "eager", "naive"]
    assert case["resolution"] == [64, 48]
    for c in case["competitors"]:
        assert list(c["directions"]) == list(DIRECTIONS)
        assert not c["failed"]
        for d in c["directions"].values():
            assert all(len(d[part]["times"]) == 3 for part in (*PARTS, "whole"))
            assert d["peak_rss"] >= d["base_rss"] > 1 << 20
            assert "1 thread(s)" in d["runner"]


def test_a_backend_that_is_not_there_is_told(case: dict[str, Any]) -> None:
    assert list(case["missing"]) == ["tensorrt fp16"]
    assert "tensorrt" in case["missing"]["tensorrt fp16"] or "fp16" in case["missing"]["tensorrt fp16"]


def test_parts_make_the_whole(case: dict[str, Any]) -> None:
    for c in case["competitors"]:
        for d in c["directions"].values():
            for parts in zip(*(d[part]["times"] for part in PARTS), d["whole"]["times"], strict=True):
                assert min(parts) > 0
                assert sum(parts[:-1]) == pytest.approx(parts[-1], rel=0.05)


def test_figures_follow_from_the_raw_times(case: dict[str, Any]) -> None:
    peak = case["product"]
    assert peak["gflops"] == pytest.approx(PRODUCT_FLOPS / min(peak["seconds"]["times"]) / 1e9)
    assert len(peak["seconds"]["times"]) == 2 * 3
    assert case["flops"] == dict.fromkeys(("downscale", "upscale"), 2 * case["macs_per_lr_pixel"] * 24 * 32)
    seconds = {
        c["name"]: {d: statistics.median(c["directions"][d]["run"]["times"]) for d in DIRECTIONS} for c in case["competitors"]
    }
    for c in case["competitors"]:
        mine = seconds[c["name"]]
        for d in DIRECTIONS:
            found = c["directions"][d]
            assert found["gflops"] == pytest.approx(case["flops"][d] / mine[d] / 1e9)
            assert found["share_of_peak"] == pytest.approx(found["gflops"] / peak["gflops"])
            for peer in ("eager", "naive"):
                assert c["times_faster"][peer][d]["run"] == pytest.approx(seconds[peer][d] / mine[d])
        for peer in ("eager", "naive"):
            assert c["times_faster"][peer]["round_trip"]["run"] == pytest.approx(sum(seconds[peer].values()) / sum(mine.values()))


def test_competitors_ran_in_turn(case: dict[str, Any]) -> None:
    names = ["onnxruntime fp32", "eager", "naive", "product"]
    for direction in DIRECTIONS:
        order = case["order"][direction]
        assert [sorted(order[i : i + 4]) for i in range(0, len(order), 4)] == [sorted(names)] * 3
        assert [order[i] for i in (0, 4, 8)] == names[:3]


def test_all_made_the_same_pictures(case: dict[str, Any]) -> None:
    for c in case["competitors"]:
        for direction, values in (("downscale", 24 * 32 * 4), ("upscale", 48 * 64 * 3)):
            found = c["directions"][direction]["agreement"]
            assert found["values"] == values
            assert found["largest"] <= 1
            assert found["different"] <= values // 100


@pytest.mark.parametrize(("model", "scale"), MODELS)
def test_peers_give_the_bundles_bytes(model: str, scale: int, bundle: BundleOf, make_net: MakeNet, tmp_path: Path) -> None:
    picture = sample_picture(51, 70)  # no multiple of the scale, nor of the latent's stride
    net = make_net(model, scale)
    export_naive(net, tmp_path, (-(-51 // scale), -(-70 // scale)))
    save_net(net, tmp_path / "net.safetensors")
    with load(bundle(model, scale), "onnxruntime", 1) as opened:
        lr, latent = opened.network.down(picture)
        alpha = lr[:, :, 3] if opened.bundle.variant.alpha else None
        hr = opened.network.up(lr[:, :, :3], alpha, latent)
        for peer in (eager(checkpoint.read_net(tmp_path / "net.safetensors"), 1), naive(tmp_path, model, scale, 1)):
            found_lr, found_latent = peer.down(picture)
            found = [(found_lr, lr), (peer.up(lr[:, :, :3], alpha, latent), hr)]
            if latent is not None:
                assert found_latent is not None
                assert latent.shape[1] == -(-lr.shape[0] // LATENT_STRIDE)
                found.append((found_latent, latent))
            for mine, want in found:
                assert mine.shape == want.shape
                assert mine.dtype == np.uint8
                delta = np.abs(mine.astype(int) - want)
                assert delta.max() <= 1
                assert (delta > 0).mean() < 0.01


def test_a_peer_without_its_latent_is_refused(make_net: MakeNet) -> None:
    peer = eager(make_net("irn_m", 2), 1)
    with pytest.raises(BackendError, match="irn_m: peers need the latent code"):
        peer.up(np.zeros((4, 4, 3), np.uint8), None, None)


def test_a_plain_export_that_is_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / naive_file("downscale")).write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"naive\.downscale\.onnx: cannot be loaded"):
        naive(tmp_path, "irn", 2, 1).down(np.zeros((4, 4, 3), np.uint8))


def test_a_process_that_dies_fails_alone(bundle: BundleOf, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(png.encode(sample_picture(20, 30)))
    spec = Spec("backend", "downscale", 1, str(bundle("irn", 2)), "onnxruntime", "fp32")
    alive, dying = Process(spec), Process(spec)
    try:
        assert alive.ready()[0].startswith("onnxruntime")
        dying.ready()
        timings = {"alive": Timing(), "dying": Timing(), "later": Timing()}
        jobs = {"alive": Job("alive", source, tmp_path / "lr.png"), "dying": Job("dying", source), "later": Job("dying", source)}
        calls: list[str] = []

        def advance(name: str) -> None:
            calls.append(name)
            if calls.count("dying") == 2:
                dying._process.kill()
                dying._process.wait()

        order = run_in_turn({"alive": alive, "dying": dying}, timings, jobs, 3, advance)
        assert order.count("alive") == 3
        assert timings["alive"].failed is None
        assert len(timings["alive"].times["run"]) == 3
        assert "ended by signal 9 (was there enough memory?)" in str(timings["dying"].failed)
        assert timings["later"].failed == timings["dying"].failed
        assert Small.open(tmp_path / "lr.png").size == (15, 10)
        with np.load(arrays_file(tmp_path / "lr.png")) as saved:
            assert saved["lr"].shape == (10, 15, 3)
    finally:
        alive.close()
        dying.close()


def test_a_source_that_is_no_picture_is_told(bundle: BundleOf, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(b"no picture")
    process = Process(Spec("backend", "upscale", 1, str(bundle("irn", 2)), "onnxruntime", "fp32"))
    try:
        process.ready()
        with pytest.raises(InputError):
            process.run(source)
        source.write_bytes(png.encode(sample_picture(20, 30)))
        with pytest.raises(BackendError, match="no marker"):
            process.run(source)
    finally:
        process.close()


def test_errors_keep_their_class(bundle: BundleOf) -> None:
    process = Process(Spec("backend", "downscale", 1, str(bundle("irn", 2)), "onnxruntime", "fp16"))
    try:
        with pytest.raises(BundleError, match="fp16"):
            process.ready()
    finally:
        process.close()


def test_the_protocol_in_one_process(bundle: BundleOf, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(png.encode(sample_picture(20, 30)))
    spec = Spec("backend", "downscale", 1, str(bundle("irn", 2)), "onnxruntime", "fp32")
    lines = [json.dumps(spec.__dict__), json.dumps({"source": str(source), "save": None})]
    answers = io.StringIO()
    serve(io.StringIO("\n".join(lines) + "\n"), answers)
    ready, found = map(json.loads, answers.getvalue().splitlines())
    assert set(ready) == {"ready", "base_rss"}
    assert set(found) == {*PARTS, "whole", "compute", "peak_rss"}


def test_steps_do_what_the_commands_do(bundle: BundleOf) -> None:
    picture = sample_picture(49, 63)
    with load(bundle("irn_a", 2), "onnxruntime", 1) as opened:
        _, _, file = timed(downscale(opened.network, opened.bundle), png.encode(picture))
        assert file == opened.downscale(picture).to_bytes()
        _, _, restored = timed(upscale(opened.network, opened.bundle), file)
        assert np.array_equal(read_picture(restored), opened.upscale(Small.from_bytes(file)))


def test_pictures_of_foreign_weights_are_not_compared(bundle: BundleOf, make_net: MakeNet, tmp_path: Path) -> None:
    subject = Subject(Bundle(bundle("irn", 2)), make_net("irn", 2, 1), "unknown")
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, value in zip(files, (0, 3, 9), strict=True):
        np.savez(arrays_file(file), lr=np.full((2, 2, 3), value, np.uint8))
    names = ["onnxruntime fp32", "onnxruntime mixed", "eager"]
    found = speed.agreement(subject, files, names, "downscale")
    assert (found["onnxruntime fp32"]["largest"], found["onnxruntime mixed"]["largest"], found["eager"]) == (0, 3, None)
    same = speed.agreement(replace(subject, weights="same"), files, names, "downscale")
    assert same["eager"]["largest"] == 9


def test_the_command(bundle: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    options = ["--backend", "onnxruntime", "--no-peers", "--resolution", "64x48", "--resolution", "65x47", "--memory", "1GB"]
    command = ["speed", str(bundle("irn_m", 2)), *options, "--repeats", "1", "--threads", "1", "--json", "--out", str(out)]
    assert main(command) == 0
    text = capsys.readouterr().out
    report = strict_json(text)
    assert strict_json(out.read_text()) == report
    assert [c["resolution"] for c in report["cases"]] == [[64, 48], [65, 47]]
    assert report["memory"] == 1 << 30
    assert report["machine"]["threads"] == report["repeats"] == 1
    assert set(report) >= {"date", "command", "machine", "versions", "definitions", "cases", "sweeps"}
    show(report)
    text = capsys.readouterr().out
    assert re.search(
        r"^irn_m x2 custom, peers with random weights, 64x48: [\d.]+ GFLOP a direction; matrix product \d+ GFLOP/s", text, re.M
    )
    assert re.search(r"onnxruntime fp32 +downscale +0\.\d{3} +0\.\d{3} +0\.\d{3} +0\.\d{3} ", text)
    assert re.search(r"round trip +\d+\.\d{3} +\d+\.\d{3}", text)
    assert "…" not in text


def test_an_execution_provider_by_name(bundle: BundleOf) -> None:
    name = "onnxruntime:CPUExecutionProvider,use_arena=0"
    found = speed.measure(
        Options(
            [bundle("irn", 2)],
            resolutions=["64x48"] * 2,
            backends=["onnxruntime", name],
            precisions=["fp32"],
            repeats=1,
            peers=False,
        )
    )
    (case,) = found["cases"]
    assert [c["name"] for c in case["competitors"]] == ["onnxruntime fp32", f"{name} fp32"]
    assert all(c["directions"][d]["agreement"]["largest"] == 0 for c in case["competitors"] for d in DIRECTIONS)
    slashed = speed._saved(Path("folder"), "downscale", "onnxruntime:X,trt_engine_cache_path=/a/../b fp32")
    assert slashed.parent == Path("folder")
    assert not set(slashed.name) & set(":/\\ ")


def test_a_sweep(bundle: BundleOf, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(
        [bundle("irn", 2)], backends=["onnxruntime"], repeats=2, threads=1, sweep=True, sweep_megapixels=(0.003, 0.01)
    )
    report = strict_json(json.dumps(speed.measure(options)))
    assert capsys.readouterr().err == "irn x2 custom, 64x48, 128x80: about 1 min\n"
    show(report)
    assert re.search(r"onnxruntime fp32 +downscale( +[\d.]+ \([\d.]+\)){2} +\d+ % \(\d+ %\) +\d+ ", capsys.readouterr().out)
    (sweep,) = report["sweeps"]
    assert sweep["left_out"] == {}
    assert 0.0 < sweep["minutes_expected"] < 1.0
    assert sweep["resolutions"] == [[64, 48], [128, 80]]
    (row,) = sweep["competitors"]
    for direction in DIRECTIONS:
        found = row["directions"][direction]
        assert [len(s["whole"]["times"]) for s in found["sizes"]] == [2, 2]
        per = [s["seconds_per_megapixel"]["run"] for s in found["sizes"]]
        for s, seconds in zip(found["sizes"], per, strict=True):
            width, height = s["resolution"]
            assert seconds == pytest.approx(s["run"]["median"] / (width * height / 1e6))
        assert found["spread"]["run"] == pytest.approx(max(per) / min(per) - 1)
    assert len(sweep["order"]["downscale"]) == 4


def test_a_sweep_says_how_long_it_takes_and_leaves_out_what_takes_too_long(
    bundle: BundleOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[str], list[tuple[int, int]], int]] = []

    def timed_sizes(subject: Subject, backends: Any, sizes: Any, session: Any) -> dict[str, Any]:
        asked.append(([c.name for c in backends], list(sizes), session.repeats))
        missing = {"openvino fp32": "not installed"} if len(asked) % 2 else {}
        done = [{"resolution": [w, h], "whole": {"median": 4.0}} for h, w in sizes]
        row = {"name": "onnxruntime fp32", "directions": {d: {"sizes": done} for d in DIRECTIONS}, "failed": {}}
        resolutions = [[w, h] for h, w in sizes]
        return {"model": subject.title, "resolutions": resolutions, "competitors": [row], "missing": missing, "order": {}}

    monkeypatch.setattr(speed, "_sweep_sizes", timed_sizes)
    options = Options(
        [bundle("irn", 2)] * 2,
        backends=["onnxruntime", "openvino"],
        precisions=["fp32"],
        sweep=True,
        sweep_megapixels=(0.003, 0.012, 0.05),
        minutes=3.0,
    )
    found = speed.measure(options)["sweeps"]
    # A warm-up and 3 runs of 8 s are half a minute at 64x48, two at 128x96, and nine at 288x176.
    assert asked[:2] == [
        (["onnxruntime fp32", "openvino fp32"], [(48, 64)], 1),
        (["onnxruntime fp32"], [(48, 64), (96, 128)], 3),
    ]
    titles = ["irn x2 custom", "irn x2 custom (2)"]
    assert [s["model"] for s in found] == titles
    assert capsys.readouterr().err == "".join(f"{title}, 64x48, 128x96: about 3 min\n" for title in titles)
    for sweep in found:
        assert sweep["missing"] == {"openvino fp32": "not installed"}
        (line,) = left_out_lines(sweep)
        assert line == "Left out: 288x176: 3 runs of each would take about 9 minutes; --minutes 12 takes them"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (Options(backends=["nonesuch"]), BackendError, "unknown backend 'nonesuch': choose one of onnxruntime, "),
        (Options(backends=["half"]), BackendError, "unknown backend 'half'"),
        (Options(precisions=["int8"]), ConfigError, "unknown precision 'int8': choose one of fp32, mixed, fp16"),
        (Options(resolutions=["wide"]), ConfigError, "--resolution wide: wanted is WIDTHxHEIGHT"),
        (Options(models=["nonesuch"]), UnknownModelError, "unknown model 'nonesuch'"),
        (Options(sizes=["huge"]), UnknownModelError, "unknown size 'huge'"),
    ],
)
def test_wrong_options_are_refused(options: Options, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        speed.measure(options)


def test_a_backend_that_was_asked_for_and_is_missing_is_an_error(
    bundle: BundleOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(bundle("irn", 2))
    command = ["speed", path, "--backend", "onnxruntime", "--precision", "fp16", "--resolution", "64x48", "--no-peers"]
    assert main(command) == 1
    assert "error: onnxruntime fp16: " in capsys.readouterr().err
    assert main([*command[:2], "--backend", "nonesuch"]) == 1
    assert "unknown backend 'nonesuch'" in capsys.readouterr().err
    # Not asked for by name, but nothing else is left.
    assert main([*command[:2], "--precision", "fp16", "--resolution", "64x48", "--no-peers"]) == 1
    assert "no backend runs here" in capsys.readouterr().err
