"""The C ABI: errors are statuses with text, structures grow with their size, nothing thrown crosses it."""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import shutil
import subprocess
from ctypes import byref
from pathlib import Path

import numpy as np
import pytest

import rescale
from rescale.bundle import Bundle
from rescale.errors import BackendError, BundleError

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler

HEADER = Path(__file__).resolve().parents[2] / "runtime" / "cpp" / "include" / "rescale" / "rescale.h"


def message(failure, kind, call, *arguments, **options) -> str:
    with pytest.raises(failure) as caught:
        call(*arguments, **options)
    assert caught.value.kind == kind, caught.value
    return str(caught.value)


def test_what_was_loaded(native, bundle):
    assert native.lib.rescale_abi_version() == 1
    assert native.lib.rescale_version().decode() == rescale.__version__
    path = bundle("dlv_irn_m", 4)
    own, wanted = native.load(path, threads=1), Bundle(path)
    i = own.info
    assert (i.model.decode(), i.scale, i.size.decode(), i.weights.decode()) == ("dlv_irn_m", 4, wanted.size, wanted.weights)
    assert (i.lr_channels, i.latent, i.halo, i.receptive_field) == (3, 1, wanted.halo, wanted.receptive_field)
    assert re.fullmatch(r"onnxruntime 1\.[0-9.]+ CPU, fp32, 1 thread\(s\)", i.runner.decode())
    own.close()


def test_structures_of_older_and_newer_programs(native, bundle, failure):
    session = native.load(bundle("irn", 2))
    options = type(session.info)
    info = options(16)  # only the size and the scale are known to this program
    info.model = b"untouched"
    native.call("rescale_get_info", session.pointer, byref(info))
    assert (info.scale, info.model) == (2, b"untouched")
    newer = (ctypes.c_char * (ctypes.sizeof(options) + 64))()
    ctypes.memset(newer, 255, len(newer))
    ctypes.memmove(newer, (ctypes.c_size_t * 1)(len(newer)), 8)
    native.call("rescale_get_info", session.pointer, newer)
    assert options.from_buffer(newer).scale == 2
    assert newer.raw[ctypes.sizeof(options) :] == bytes(64)
    assert "struct_size is 0" in message(failure, "input", native.call, "rescale_get_info", session.pointer, byref(options(0)))
    session.close()


NEWER = (
    ("rescale_with_progress", 4),
    ("rescale_downscale_lr", 4),
    ("rescale_restore", 5),
    ("rescale_lr_write", 5),
    ("rescale_lr_save", 4),
)


def test_nulls_are_errors(native, failure):
    for name, count in (("rescale_load", 3), ("rescale_get_info", 2), ("rescale_downscale", 4), ("rescale_lr_open", 3), *NEWER):
        arguments = [
            0 if t in (ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int32) else None for t in getattr(native.lib, name).argtypes
        ]
        assert len(arguments) == count
        assert "is NULL" in message(failure, "input", native.call, name, *arguments)
    native.lib.rescale_free(None)
    native.lib.rescale_lr_free(None)
    native.lib.rescale_buffer_free(None)


def test_wrong_pictures_are_refused_before_anything_runs(native, failure, bundle, picture):
    own = native.load(bundle("irn_m", 2))
    hr = picture(20, 30)
    lr, latent = own.downscale(hr)
    for call, words in (
        (lambda: own.downscale(hr, np.zeros((10, 14, 3), np.uint8)), "LR picture: 14x10 with 3 channels, wanted 15x10 with 3"),
        (lambda: own.downscale(hr[:, :, :1].copy()), "HR picture: 30x20 with 1 channels"),
        (lambda: own.downscale(np.zeros((1, 70000, 3), np.uint8)), "sides of 1 to 65535 pixels were expected, got 70000x1"),
        (lambda: own.upscale(lr, latent, np.zeros((18, 30, 3), np.uint8)), "LR picture: 15x10 with 3 channels, wanted 15x9"),
        (lambda: own.upscale(lr, latent[:, :2], np.zeros_like(hr)), "latent: 4x8 with 1 channels, wanted 4x12"),
    ):
        assert words in message(failure, "input", call)
    zero = own.upscale(lr, None, np.zeros_like(hr))
    assert not np.array_equal(zero, own.upscale(lr, latent, np.zeros_like(hr)))
    own.close()


def test_options_that_make_no_sense(native, failure, bundle):
    path = bundle("irn", 2)
    for options, kind, words in (
        ({"backend": "magic"}, "backend", "unknown backend 'magic'"),
        ({"backend": "tensorrt-rtx"}, "backend", "-DRESCALE_WITH_TENSORRT=ON"),
        ({"threads": -1}, "backend", "threads: at least 1"),
        ({"threads": 4097}, "backend", "threads: at most 4096, got 4097"),
        ({"provider_options": {"a": "1"}}, "backend", "provider_options are for an execution provider"),
        ({"backend": "tensorrt", "provider": "CPUExecutionProvider"}, "backend", "only the onnxruntime backend has providers"),
        ({"precision": "bf16"}, "input", "unknown precision 'bf16': choose one of fp32, mixed, fp16"),
        ({"tile_width": 8}, "input", "both sides are wanted"),
        ({"provider": "CUDAExecutionProvider"}, "backend", "CUDAExecutionProvider: this ONNX Runtime 1."),
        ({"library": "/nowhere/libonnxruntime.so"}, "backend", "cannot open shared object file"),
        ({"library": "libpng16.so.16"}, "backend", "not ONNX Runtime: it has no OrtGetApiBase"),
        ({"provider": "Own", "provider_library": "/nowhere/ep.so"}, "backend", "provider"),
    ):
        assert words in message(failure, kind, native.load, path, **options), options
    own = native.load(path, provider="CPUExecutionProvider")
    graph = ctypes.c_char_p(b"upscale")
    arguments = ("rescale_run_device", own.pointer, graph, None, 0, None, 0, None)
    assert "takes no device memory" in message(failure, "backend", native.call, *arguments)
    assert "inputs is NULL" in message(failure, "input", native.call, *arguments[:4], 1, None, 0, None)
    assert "outputs is NULL" in message(failure, "input", native.call, *arguments[:6], 1, None)
    own.close()


@pytest.mark.parametrize("model", ["irn", "irn_m"])
def test_the_largest_tile_is_the_whole_picture(native, bundle, picture, model):
    hr = picture(23, 31)
    results = []
    for tile in (0, 1 << 28, 2**31 - 1):
        own = native.load(bundle(model, 2), tile_width=tile, tile_height=tile)
        lr, latent = own.downscale(hr)
        results.append((lr, latent, own.upscale(lr, latent, np.zeros_like(hr))))
        own.close()
    for found in results[1:]:
        assert all(a is b is None or np.array_equal(a, b) for a, b in zip(found, results[0], strict=True))
    assert results[0][2].any()


def manifests(m: dict) -> dict[str, dict]:
    short = {k: v for k, v in m["graphs"].items() if k != "upscale"}
    return {
        "other format": m | {"format": "onnx/1"},
        "newer": m | {"format": "rescale-bundle/2.0"},
        "newer minor": m | {"format": "rescale-bundle/1.9", "unknown": [1]},
        "model": m | {"model": "irn_z"},
        "scale": m | {"scale": 3},
        "graph missing": m | {"graphs": short},
        "halo": m | {"halo": {"lr_pixels": m["receptive_field"]["lr_pixels"] + 1}},
        "halo of restoring": m | {"halo": m["halo"] | {"upscale_lr_pixels": m["halo"]["lr_pixels"] + 1}},
        "weights": m | {"weights": {"sha256": "x"}},
        "other weights file": m | {"graphs": m["graphs"] | {"upscale": m["graphs"]["upscale"] | {"file": "../upscale.onnx"}}},
        "no halo": {k: v for k, v in m.items() if k != "halo"},
        "receptive field": m | {"receptive_field": {"lr_pixels": 20_000}},
        "corrections without count": m | {"corrections": {"sha256": m["weights"]["sha256"]}},
        "precisions": m | {"precisions": [1]},
        "size": m | {"size": None},
        "file": m | {"graphs": m["graphs"] | {"upscale": m["graphs"]["upscale"] | {"file": None}}},
        "too many corrections": m | {"corrections": {"sha256": m["weights"]["sha256"], "count": 20_000}},
        **{
            name: m | {"graphs": m["graphs"] | {"upscale": m["graphs"]["upscale"] | changed}}
            for name, changed in {
                "memory": {"memory_per_lr_pixel": 1 << 53},
                "no outputs": {"outputs": []},
                "other inputs": {"inputs": m["graphs"]["downscale"]["inputs"]},
                "other type": {"outputs": [m["graphs"]["upscale"]["outputs"][0] | {"dtype": "float32"}]},
            }.items()
        },
    }


def latent_manifests(m: dict) -> dict[str, dict]:
    def with_z(channels: int) -> dict:
        text = json.dumps(m["graphs"]).replace(
            f'"batch", {m["graphs"]["encoder"]["inputs"][0]["axes"][1]},', f'"batch", {channels},'
        )
        return m | {"graphs": json.loads(text)}

    return {"no change": m, "many channels": with_z(5000), "very many channels": with_z(1 << 53)}


@pytest.mark.parametrize(("model", "changes"), [("irn", manifests), ("irn_m", latent_manifests)])
def test_manifests_are_accepted_and_refused_as_python_does(native, failure, bundle, picture, tmp_path, model, changes):
    source = bundle(model, 2)
    for name, manifest in changes(json.loads((source / "manifest.json").read_text())).items():
        folder = tmp_path / name
        shutil.copytree(source, folder)
        (folder / "manifest.json").write_text(json.dumps(manifest))

        hr = picture(10, 10)

        def work(folder=folder, hr=hr) -> None:
            own = native.load(folder)
            own.upscale(*own.downscale(hr), np.zeros_like(hr))

        def python(folder=folder, hr=hr) -> None:
            with rescale.load(folder, backend="onnxruntime") as net:
                net.upscale(net.downscale(hr))

        if name in ("newer minor", "no halo", "no change"):
            python()
            work()
            continue
        with pytest.raises(BundleError) as caught:
            python()
        mine, wanted = message(failure, "bundle", work), str(caught.value)
        assert mine.split(": ")[0] == wanted.split(": ")[0], name
        assert mine == wanted or "damaged manifest" in mine, name


def test_a_program_may_change_to_another_folder(native, bundle, picture, tmp_path, monkeypatch):
    shutil.copytree(bundle("irn", 2), tmp_path / "b")
    hr = picture(10, 12)
    monkeypatch.chdir(tmp_path)
    own = native.load(Path("b"))
    monkeypatch.chdir("/")
    lr, _ = own.downscale(hr)
    with rescale.load(tmp_path / "b", backend="onnxruntime") as net:
        assert np.array_equal(lr, net.downscale(hr).rgb)
    own.close()


def test_changed_missing_and_broken_graphs(native, failure, bundle, picture, tmp_path):
    hr = picture(10, 12)
    for name in ("changed", "missing", "broken"):
        folder = tmp_path / name
        shutil.copytree(bundle("irn", 2), folder)
        graph = folder / "downscale.onnx"
        if name == "missing":
            graph.unlink()
        else:
            graph.write_bytes(graph.read_bytes()[:-100])
        if name == "broken":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["graphs"]["downscale"]["sha256"] = hashlib.sha256(graph.read_bytes()).hexdigest()
            (folder / "manifest.json").write_text(json.dumps(manifest))
        own = native.load(folder)
        with rescale.load(folder, backend="onnxruntime") as net, pytest.raises((BundleError, BackendError)) as caught:
            net.downscale(hr)
        mine = message(failure, "backend" if name == "broken" else "bundle", own.downscale, hr)
        if name == "broken":
            assert mine.startswith(f"{folder}: downscale cannot be loaded by onnxruntime")
        else:
            assert mine == str(caught.value)
        own.close()


def test_the_header_is_plain_c_and_exports_all_that_it_declares(native, built):
    declared = set(re.findall(r"^RESCALE_API [a-z_0-9 *]*?\b(rescale_[a-z_]+)\(", HEADER.read_text(), re.M))
    assert len(declared) == 23
    for name in declared:
        assert getattr(native.lib, name)
    found = subprocess.run(["nm", "-D", "--defined-only", "-C", str(built / "librescale.so")], capture_output=True, text=True)
    own = [line.split(None, 2)[2] for line in found.stdout.splitlines() if len(line.split(None, 2)) == 3]
    foreign = [n for n in own if "rescale" not in n and not n.startswith(("std::", "void std::", "typeinfo", "vtable"))]
    assert not foreign, "symbols that could collide with those of the program"
