"""Builds that are kept, repeated, raced and broken off: a valid engine is there afterwards, or nothing new."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import rescale.flavour
from rescale.bundle import MANIFEST, Bundle
from rescale.engine_file import AGAIN, find_engines, read_engine, read_info, sidecar
from rescale.errors import BackendError, BundleError, ConfigError, EngineError, MissingExtraError, OutputError
from rescale.files import machine_mark
from rescale.flavour import Device
from rescale_engines import build as module
from rescale_engines.build import Options, build, ensure
from rescale_engines.cache import abandoned, locked, remove, scan
from rescale_engines.network import capability_enum
from rescale_engines.profiles import Profile, Size, parse_profile

pytestmark = pytest.mark.usefixtures("rtx")


@pytest.fixture
def options(tmp_path):
    return Options(folder=tmp_path / "engines")


def files(folder):
    """All but locks, which stay."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_valid_engine_is_kept(own_bundle, profile, options, tmp_path):
    made = ensure(own_bundle, "upscale", profile, options=options)
    assert not made.reused
    assert made.reason == ""
    written = made.info.path.stat().st_mtime_ns
    again = ensure(own_bundle, "upscale", profile, options=options)
    assert again.reused
    assert again.info == made.info == read_info(made.info.path)
    assert made.info.path.stat().st_mtime_ns == written
    assert build(own_bundle, "upscale", profile, options=options) == made.info.path
    assert files(tmp_path / "engines") == [made.info.path.name, sidecar(made.info.path).name]
    forced = ensure(own_bundle, "upscale", profile, options=replace(options, force=True))
    assert (forced.reused, forced.reason) == (False, "asked for again")


@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_a_downscale_graph_with_corrections_is_built(corrected_pair_of, profile, options, model):
    """That of -M pads and crops by sizes that are known when it runs."""
    path = corrected_pair_of(model)[0]
    made = ensure(Bundle(path), "downscale", profile, options=options)
    assert made.info.path.stat().st_size > 0
    assert read_engine(made.info.path, Bundle(path))[0] == made.info


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda e: e.write_bytes(e.read_bytes()[:-1]), "truncated"),
        (lambda e: e.write_bytes(b""), "truncated"),
        (lambda e: e.write_bytes(e.read_bytes()[:-1] + b"?"), "changed"),
        (lambda e: sidecar(e).unlink(), "half-written: its sidecar"),
        (lambda e: e.unlink(), "half-written: there is a sidecar but no engine"),
        (lambda e: sidecar(e).write_text("{"), "damaged sidecar"),
        (lambda e: sidecar(e).write_text(sidecar(e).read_text().replace("rescale-engine/1", "rescale-engine/9")), "format"),
    ],
    ids=["truncated", "empty", "changed", "no sidecar", "no engine", "damaged sidecar", "format"],
)
def test_what_is_damaged_is_built_again(own_bundle, profile, options, spoil, reason):
    made = ensure(own_bundle, "upscale", profile, options=options)
    spoil(made.info.path)
    with pytest.raises(EngineError, match=reason):
        read_engine(made.info.path, own_bundle)
    again = ensure(own_bundle, "upscale", profile, options=options)
    assert not again.reused
    assert reason in again.reason
    assert AGAIN not in again.reason
    assert read_engine(made.info.path, own_bundle) == (again.info, made.info.path.read_bytes())
    # Two builds of a dynamic engine differ in a few bytes.
    assert replace(again.info, engine_sha256="") == replace(made.info, engine_sha256="")


def test_every_part_of_the_key_makes_another_file(own_bundle, full_bundle, profile, options, monkeypatch):
    planned = []

    def plan(bundle, graph, profile, precision, options, **changes):
        flavour = replace(rescale.flavour.load("tensorrt-rtx", needs_device=False), **changes)
        entry = bundle.graph(graph, precision)
        return module._plan(bundle, graph, entry, profile, flavour, precision, options).path.name

    base = (own_bundle, "upscale", profile, "mixed", options)
    planned.append(plan(*base))
    assert plan(*base) == planned[0]
    planned.append(plan(own_bundle, "downscale", *base[2:]))
    planned.append(plan(*base[:3], "fp16", options))
    planned.append(plan(own_bundle, "upscale", parse_profile("2x2:64x64:128x130", 2), *base[3:]))
    planned.append(plan(*base[:4], replace(options, workspace=1 << 30)))
    planned.append(plan(*base[:4], replace(options, compute_capabilities=("8.9",))))
    planned.append(plan(*base, version="1.7.2.0"))
    planned.append(plan(full_bundle("irn", 2), *base[1:]))
    # With other corrections of the encoder the graph is the same, and what a sidecar names is not.
    corrected = Bundle(own_bundle.path)
    corrected.network = "0" * 64
    planned.append(plan(corrected, *base[1:]))
    for gpu in (Device("GPU A", "8.9"), Device("GPU A", "9.0"), Device("GPU B", "9.0")):
        monkeypatch.setattr(module, "device", lambda gpu=gpu: gpu)
        planned.append(plan(*base, name="tensorrt"))
    assert len({name.split(".")[-2] for name in planned}) == len(planned) == 12
    # What does not change the engine does not change its name.
    same = replace(options, max_memory=1 << 40, force=True, parity={"psnr_lost": 0.0})
    assert plan(*base[:4], same) == planned[0]
    assert plan(*base[:4], replace(options, compute_capabilities=("89",))) == planned[5]


def test_graphs_exported_again_make_their_engines_stale(own_bundle, profile, options, make_net):
    from rescale_export.bundles import write_bundle

    made = ensure(own_bundle, "upscale", profile, options=options)
    other = write_bundle(make_net("irn_a", 2, seed=1), own_bundle.path, precisions=("mixed", "fp16"))
    with pytest.raises(EngineError, match="foreign: of irn_a x2"):
        read_engine(made.info.path, other)
    assert find_engines(options.folder, other, "tensorrt-rtx", "mixed", "upscale") == []
    new = ensure(other, "upscale", profile, options=options)
    assert new.info.path != made.info.path
    assert [e.problem is None for e in scan(options.folder, other)].count(True) == 1


def test_engines_by_size(own_bundle, options):
    profiles = [parse_profile(text, 2) for text in ("128x128", "2x2:64x64:64x64", "2x64x64")]
    made = [ensure(own_bundle, "upscale", p, options=options).info for p in profiles]
    found = find_engines(options.folder, own_bundle, "tensorrt-rtx", "mixed", "upscale")
    assert found == [made[1], made[2], made[0]]
    assert [info.fits(1, 10, 64) for info in found] == [True, False, False]


# Gates of our own.


def test_requests_that_are_refused(own_bundle, full_bundle, profile, options):
    with pytest.raises(BundleError, match="no graph 'decoder'"):
        build(own_bundle, "decoder", profile, options=options)
    with pytest.raises(ConfigError, match="unknown precision 'int8'"):
        build(own_bundle, "upscale", profile, precision="int8", options=options)
    with pytest.raises(ConfigError, match=r"for x4, .* is x2"):
        build(own_bundle, "upscale", parse_profile("hd", 4), options=options)
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        build(own_bundle, "upscale", profile, backend="cuda", options=options)
    huge = Profile(2, Size(1, 2, 2), Size(1, 64, 64), Size(1, 32768, 32768))
    with pytest.raises(ConfigError, match=r"upscale.mixed.onnx needs about \d+,\d+ MB at 1x32768x32768, allowed are 16,384 MB"):
        build(own_bundle, "upscale", huge, options=options)
    with pytest.raises(ConfigError, match="--max-memory"):
        build(own_bundle, "upscale", profile, options=replace(options, max_memory=1000))
    with pytest.raises(ConfigError, match=r"'9.0': tensorrt-rtx \S+ can target"):
        build(own_bundle, "upscale", profile, options=replace(options, compute_capabilities=("9.0",)))
    assert not options.folder.exists()


def test_graph_files_that_are_not_the_manifests(own_bundle, profile, options):
    target = own_bundle.path / own_bundle.graph("upscale", "mixed").file
    whole = target.read_bytes()
    target.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=r"upscale.mixed.onnx: SHA-256"):
        build(own_bundle, "upscale", profile, options=options)
    target.unlink()
    with pytest.raises(BundleError, match=r"upscale.mixed.onnx: missing"):
        build(own_bundle, "upscale", profile, options=options)
    assert files(options.folder) == []


def relabelled(bundle: Bundle, change) -> Bundle:
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    change(manifest)
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    return Bundle(bundle.path)


def test_a_graph_of_another_precision_is_no_engine(own_bundle, profile, options):
    # float32 under the name of mixed: what a dropped flag would have made.
    wrong = relabelled(own_bundle, lambda m: m["precisions"]["mixed"].update(upscale=m["graphs"]["upscale"]))
    with pytest.raises(EngineError, match=r"layer \S+ \(\w+\) is of the subnet and gives FLOAT, mixed wants HALF"):
        build(wrong, "upscale", profile, options=options)
    assert files(options.folder) == []


def test_a_graph_of_another_interface_is_no_engine(own_bundle, profile, options):
    def swap(m):
        m["graphs"]["upscale"] |= {k: m["graphs"]["downscale"][k] for k in ("file", "sha256")}

    with pytest.raises(EngineError, match=r"inputs are hr uint8 .*; the manifest says lr uint8"):
        build(relabelled(own_bundle, swap), "upscale", profile, precision="fp32", options=options)


def test_folder_that_cannot_be_one(own_bundle, profile, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create"):
        build(own_bundle, "upscale", profile, options=Options(folder=tmp_path / "file"))


def test_filelock_is_asked_for(own_bundle, profile, options, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rescale-toolkit\[tensorrt-rtx\]'"):
        build(own_bundle, "upscale", profile, options=options)


# Full TensorRT: the same path, on a machine that has a device.


def test_tensorrt_is_not_touched_without_a_device(own_bundle, profile, options, monkeypatch):
    class Untouchable:
        __version__ = "10.16"

        def __getattr__(self, name):
            # Python's import system asks for names of its own.
            if name.startswith("__"):
                raise AttributeError(name)
            raise AssertionError(f"tensorrt.{name} was used")

    monkeypatch.setitem(sys.modules, "tensorrt", Untouchable())
    monkeypatch.setattr(rescale.flavour, "probe", lambda *_: (0, "no driver"))
    with pytest.raises(BackendError, match=r"^tensorrt: no CUDA device \(no driver\)$"):
        build(own_bundle, "upscale", profile, backend="tensorrt", options=options)
    assert not options.folder.exists()


def test_tensorrt_takes_the_same_path(own_bundle, profile, options, monkeypatch, rtx):
    monkeypatch.setitem(sys.modules, "tensorrt", rtx.module)
    monkeypatch.setattr(rescale.flavour, "probe", lambda *_: (1, ""))
    monkeypatch.setattr(module, "device", lambda: Device("GPU A", "9.0"))
    made = ensure(own_bundle, "upscale", profile, "tensorrt", options=options).info
    assert (made.backend, made.device, made.compute_capabilities) == ("tensorrt", "GPU A", ("9.0",))
    assert read_engine(made.path, own_bundle)[0] == made
    # An engine for another GPU is another file.
    monkeypatch.setattr(module, "device", lambda: Device("GPU B", "9.0"))
    assert ensure(own_bundle, "upscale", profile, "tensorrt", options=options).info.path != made.path
    with pytest.raises(ConfigError, match="tensorrt builds for the GPU it runs on"):
        capability_enum(replace(rtx, name="tensorrt"), "9.0")


# Broken off.


def test_ctrl_c_leaves_nothing(own_bundle, profile, options):
    told = []

    def progress(phase, done, steps):
        told.append(phase)
        if len(told) == 30:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(own_bundle, "upscale", profile, options=options, progress=progress)
    assert files(options.folder) == []
    assert not ensure(own_bundle, "upscale", profile, options=options).reused


def test_cancelling_leaves_the_old_engine(own_bundle, profile, options):
    made = ensure(own_bundle, "upscale", profile, options=options)
    stop = threading.Event()
    stop.set()
    with pytest.raises(EngineError, match="cancelled"):
        build(own_bundle, "upscale", profile, options=replace(options, force=True), cancel=stop)
    assert ensure(own_bundle, "upscale", profile, options=options).info == made.info


SCRIPT = """
import json, sys
from pathlib import Path
from rescale.bundle import Bundle
from rescale_engines.build import Options, ensure
from rescale_engines.profiles import parse_profile
said = []
made = ensure(Bundle(sys.argv[1]), "upscale", parse_profile("2x2:64x64:128x128", 2), options=Options(folder=Path(sys.argv[2])),
    progress=lambda phase, done, steps: said.append(phase))
print(json.dumps([made.reused, any("another process" in s for s in said), made.info.engine_sha256]))
"""


def test_of_two_processes_one_builds(own_bundle, options):
    command = [sys.executable, "-c", SCRIPT, str(own_bundle.path), str(options.folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(p.communicate(timeout=120)[0]) for p in both]
    assert sorted(s[0] for s in said) == [False, True]
    assert said[0][2] == said[1][2]
    assert len(files(options.folder)) == 2


def test_of_many_threads_one_builds(own_bundle, profile, options):
    with ThreadPoolExecutor(6) as pool:
        made = [f.result() for f in [pool.submit(ensure, own_bundle, "upscale", profile, options=options) for _ in range(6)]]
    assert sorted(m.reused for m in made) == [False] + [True] * 5
    assert len({m.info.engine_sha256 for m in made}) == 1


def test_waiting_for_another_builder_can_be_cancelled(tmp_path):
    engine, waited = tmp_path / "a.engine", []
    with locked(engine):
        stop = threading.Event()
        with (
            pytest.raises(EngineError, match="cancelled while another process"),
            locked(engine, stop, lambda: (waited.append(1), stop.set())),
        ):
            raise AssertionError("two hold the lock")
        assert waited == [1]
    with locked(engine, waiting=lambda: waited.append(2)):
        assert waited == [1]


# Tidying up.


def test_scan_and_remove(own_bundle, profile, options):
    good = ensure(own_bundle, "upscale", profile, options=options).info
    bad = ensure(own_bundle, "downscale", profile, options=options).info
    bad.path.write_bytes(b"")
    lonely = good.path.with_name(good.path.name.replace(good.key[:12], "0" * 12))
    lonely.write_bytes(b"x")
    found = {e.path.name: e.problem for e in scan(options.folder, own_bundle, {"tensorrt-rtx": good.library})}
    assert found[good.path.name] is None
    assert "truncated" in found[bad.path.name]
    assert "half-written" in found[lonely.name]
    (entry,) = [e for e in scan(options.folder, versions={"tensorrt-rtx": "9.9"}) if e.path == good.path]
    assert entry.problem.endswith(f"built by tensorrt-rtx {good.library}, installed is 9.9")
    with locked(good.path):
        assert not remove(entry)
        assert good.path.exists()
    kernels = good.path.with_name(good.path.name.replace(".engine", ".some-gpu.cache"))
    kernels.write_bytes(b"compiled")
    assert remove(entry)
    assert not good.path.exists()
    assert not kernels.exists()
    assert not sidecar(good.path).exists()
    assert scan(options.folder / "missing") == []


def test_temporary_files_of_the_dead(tmp_path):
    """A build's file of a process that lives is nobody's leftover, however old."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    mine = machine_mark()
    dead, alive, old, young = (
        tmp_path / f".rescale.{machine}-{pid}-0123abcd.tmp"
        for machine, pid in ((mine, process.pid), (mine, os.getpid()), ("0" * 8, 1), ("1" * 8, 1))
    )
    for path in (dead, alive, old, young, tmp_path / "mine.tmp", tmp_path / ".rescale.mine.tmp"):
        path.write_text("")
        os.utime(path, (time.time() - (0 if path in (dead, young) else 7200),) * 2)
    assert set(abandoned(tmp_path)) == ({old} if os.name == "nt" else {dead, old})


def test_copies_of_a_bundle_share_engines(own_bundle, profile, options, tmp_path):
    made = ensure(own_bundle, "upscale", profile, options=options)
    copy = Bundle(shutil.copytree(own_bundle.path, tmp_path / "copy"))
    assert ensure(copy, "upscale", profile, options=options).info == made.info


def test_the_default_folder_is_the_cache(own_bundle, profile, monkeypatch, tmp_path):
    monkeypatch.setenv("RESCALE_CACHE", str(tmp_path / "cache"))
    path = build(own_bundle, "upscale", profile)
    assert path.parent == tmp_path / "cache" / "engines" / f"irn_a_x2_{own_bundle.size}-{own_bundle.network[:12]}"
    assert isinstance(path, Path)


def test_ctrl_c_waits_for_the_builder_to_end():
    ended, stop = [], threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(10)
        time.sleep(0.3)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        module._apart(work, stop)
    assert ended == [True]
