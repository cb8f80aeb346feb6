"""Engine files and their sidecars: no damage goes unnoticed, and every refusal names the file and the reason."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescale import engine_file
from rescale.bundle import Bundle
from rescale.engine_file import (
    EngineInfo,
    cache_folder,
    check_belongs,
    engine_name,
    engines_folder,
    find_engines,
    read_engine,
    read_header,
    read_info,
    sidecar,
    sidecar_bytes,
)
from rescale.errors import BackendError, EngineError

VERSION = (1, 7, 1, 116)
UNTOUCHED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def blob(size: int = 200, mask: int = 0b1111110, version: tuple[int, ...] = VERSION) -> bytes:
    """Bytes that begin as TensorRT for RTX's engines do."""
    head = b"vtrt" + bytes(4) + struct.pack("<Q", 2) + struct.pack("<Q", size) + bytes(version) + b"vtrt" + struct.pack("<Q", mask)
    return (head.ljust(64, b"\0") + bytes(i % 251 for i in range(size)))[:size]


def engine_info(bundle: Bundle, path: Path, data: bytes, graph: str = "upscale", **changes: object) -> EngineInfo:
    entry = bundle.graph(graph, "mixed")
    info = EngineInfo(
        path=path,
        backend="tensorrt-rtx",
        library="1.7.1.116",
        graph=graph,
        precision="mixed",
        model=bundle.variant.name,
        scale=bundle.scale,
        size=bundle.size,
        weights=bundle.network,
        onnx_sha256=entry.sha256,
        engine_sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        profile={"min": (1, 2, 2), "opt": (1, 64, 64), "max": (1, 128, 128)},
        compute_capabilities=("8.6", "8.9"),
        device=None,
        inputs=entry.inputs,
        outputs=entry.outputs,
        census={"CONVOLUTION": {"HALF": 10, "FLOAT": 1}},
        options={"workspace": None},
        key=hashlib.sha256(b"key").hexdigest(),
        parity={"psnr_lost": 0.001},
    )
    return replace(info, **changes)


def write(info: EngineInfo, data: bytes) -> EngineInfo:
    info.path.write_bytes(data)
    sidecar(info.path).write_bytes(sidecar_bytes(info))
    return info


@pytest.fixture(scope="session")
def opened(bundle):
    return Bundle(bundle("irn_a", 2))


@pytest.fixture
def engine(opened, tmp_path):
    return write(engine_info(opened, tmp_path / "upscale.mixed.tensorrt-rtx.a.engine", blob()), blob())


def refused(path: Path, bundle: Bundle) -> str:
    with pytest.raises(EngineError) as caught:
        read_engine(path, bundle)
    assert isinstance(caught.value, BackendError)
    assert str(path.parent) in str(caught.value)
    return str(caught.value)


def outcome(read):
    """What was read, or the message of the one kind of error that is allowed."""
    try:
        return read()
    except EngineError as e:
        return str(e)


def test_written_and_read(engine, opened):
    assert read_engine(engine.path, opened) == (engine, blob())
    assert read_info(engine.path) == read_info(sidecar(engine.path)) == engine
    assert sidecar(engine.path).name == engine.path.name + ".json"
    assert "path" not in engine.to_dict()
    assert engine.title == f"irn_a x2 {opened.size} upscale mixed tensorrt-rtx 1.7.1.116"


@UNTOUCHED
@given(data=st.data())
def test_every_cut_and_every_changed_byte_is_noticed(engine, opened, data):
    whole = blob()
    cut = data.draw(st.integers(0, len(whole) - 1))
    engine.path.write_bytes(whole[:cut])
    assert "truncated" in refused(engine.path, opened)
    changed = bytearray(whole)
    changed[cut] ^= data.draw(st.integers(1, 255))
    engine.path.write_bytes(changed)
    assert "changed" in refused(engine.path, opened)
    engine.path.write_bytes(whole + b"more")
    assert "changed" in refused(engine.path, opened)


@UNTOUCHED
@given(data=st.data())
def test_a_damaged_sidecar_is_an_error_of_ours_or_still_valid(engine, opened, data):
    text = sidecar_bytes(engine)
    start = data.draw(st.integers(0, len(text)))
    middle = data.draw(st.binary(max_size=20))
    sidecar(engine.path).write_bytes(text[:start] + middle + text[start + data.draw(st.integers(0, 200)) :])
    found = outcome(lambda: read_engine(engine.path, opened))
    if isinstance(found, str):
        assert str(engine.path.parent) in found
    else:
        assert (found[1], found[0].engine_sha256) == (blob(), engine.engine_sha256)


@pytest.mark.parametrize("precision", [" mixed", "", "int8"])
def test_a_precision_that_no_graph_has_is_damage(engine, opened, precision):
    sidecar(engine.path).write_text(json.dumps(engine.to_dict() | {"precision": precision}))
    assert f"damaged sidecar: ValueError: precision {precision!r} is none of fp32, mixed, fp16; " in refused(engine.path, opened)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@UNTOUCHED
@given(data=st.data())
def test_fields_of_a_wrong_type(engine, opened, data):
    fields = engine.to_dict()
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(values)
    sidecar(engine.path).write_text(json.dumps(fields))
    found = outcome(lambda: read_info(engine.path))
    assert isinstance(found, EngineInfo) or sidecar(engine.path).name in found


def deep(levels: int) -> dict[str, object]:
    return {"a": json.loads("[" * levels + "]" * levels)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "rescale-engine/2"}, "format 'rescale-engine/2', wanted 'rescale-engine/1'"),
        ({"weights": "x" * 64}, "weights is not 64 hexadecimal digits"),
        ({"bytes": 0}, "bytes is not a positive number"),
        ({"scale": True}, "scale is not a positive number"),
        ({"graph": 1}, "graph is not a string"),
        ({"profile": {"min": [1, 2], "opt": [1, 2, 2], "max": [1, 2, 2]}}, "profile min is not three positive numbers"),
        ({"profile": {}}, "damaged sidecar: KeyError: 'min'"),
        ({"census": []}, "damaged sidecar"),
        ({"options": deep(500)}, "damaged sidecar: ValueError: nested more than 8 deep"),
        ({"parity": {"psnr_lost": 0, "x": deep(500)}}, "damaged sidecar: ValueError: nested more than 8 deep"),
        ({"inputs": [{"name": "hr", "dtype": "uint8", "axes": deep(500)["a"]}]}, "damaged sidecar: ValueError: nested more than"),
        ({"census": {"CAST": {"HALF": float("inf")}}}, "damaged sidecar: OverflowError"),
    ],
)
def test_sidecars_that_are_refused(engine, opened, change, reason):
    sidecar(engine.path).write_text(json.dumps(engine.to_dict() | change))
    assert reason in refused(engine.path, opened)


def test_files_that_are_missing_or_too_large(engine, opened, monkeypatch):
    monkeypatch.setattr(engine_file, "MAX_ENGINE_BYTES", 199)
    assert "larger than 199 bytes" in refused(engine.path, opened)
    monkeypatch.undo()
    engine.path.unlink()
    assert "half-written: there is a sidecar but no engine" in refused(engine.path, opened)
    engine.path.write_bytes(blob())
    sidecar(engine.path).unlink()
    assert f"half-written: its sidecar {engine.path.name}.json is missing" in refused(engine.path, opened)
    engine.path.unlink()
    assert "no such engine" in refused(engine.path, opened)
    sidecar(engine.path).write_bytes(b" " * (engine_file.MAX_SIDECAR_BYTES + 1))
    assert f"cannot read: larger than {engine_file.MAX_SIDECAR_BYTES} bytes" in refused(engine.path, opened)
    sidecar(engine.path).unlink()
    sidecar(engine.path).mkdir()
    assert "cannot read" in refused(engine.path, opened)


@pytest.mark.parametrize("which", ["engine", "sidecar"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are files here")
def test_pipes_and_devices_are_no_engines(engine, opened, which):
    """A pipe would be waited for, and /dev/zero never ends."""
    path = engine.path if which == "engine" else sidecar(engine.path)
    path.unlink()
    os.mkfifo(path)
    assert f"{path}: cannot read: a pipe or a device, not a file" in refused(engine.path, opened)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert f"{path}: cannot read: a pipe or a device, not a file" in refused(engine.path, opened)


def test_engines_of_other_bundles_and_of_graphs_exported_since(engine, opened, bundle):
    other = Bundle(bundle("irn", 2))
    assert f"foreign: of irn_a x2 {opened.size}, weights {opened.network[:12]}" in refused(engine.path, other)
    for change, reason in (
        ({"onnx_sha256": "0" * 64}, "stale: the bundle's upscale.mixed.onnx was exported again since"),
        ({"outputs": engine.inputs}, "stale: its interface"),
        ({"precision": "fp16"}, "foreign: .* holds fp32, mixed, not 'fp16'"),
        ({"graph": "decoder"}, "foreign: .* has no graph 'decoder'"),
        ({"model": "irn"}, "foreign: of irn x2"),
        ({"scale": 4}, "foreign: of irn_a x4"),
    ):
        with pytest.raises(EngineError, match=reason):
            check_belongs(replace(engine, **change), opened)


def test_headers_that_contradict_the_sidecar(opened, tmp_path):
    for data, reason in (
        (b"x" * 200, "not a TensorRT for RTX engine"),
        (blob()[:100], "its header says 200"),
        (blob(version=(1, 8, 0, 1)), "written by version 1.8.0.1, the sidecar says 1.7.1.116"),
    ):
        info = write(engine_info(opened, tmp_path / "a.engine", data), data)
        assert reason in refused(info.path, opened)
    # Full TensorRT's header is not looked into.
    info = write(engine_info(opened, tmp_path / "a.engine", b"x" * 200, backend="tensorrt"), b"x" * 200)
    assert read_engine(info.path, opened)[0] == info


@given(st.integers(0, 2**63), st.tuples(*[st.integers(0, 255)] * 4), st.sets(st.integers(0, 5)), st.integers(0, 2**50))
def test_header(size, version, bits, rest):
    mask = sum(1 << b for b in bits) | rest << 6
    head = b"vtrt" + bytes(12) + struct.pack("<Q4B4xQ", size, *version, mask) + bytes(24)
    header = read_header(head + b"anything")
    names = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    assert header == (size, ".".join(map(str, version)), tuple(names[b] for b in sorted(bits)), rest << 6)
    assert read_header(head[:63]) is None


@given(st.binary(max_size=100))
def test_no_bytes_break_the_header(data):
    header = read_header(data)
    assert header is None or data.startswith(b"vtrt")


def test_engines_are_found_smallest_first(opened, bundle, tmp_path):
    def add(name, largest, **changes):
        profile = {"min": (1, 2, 2), "opt": largest, "max": largest}
        path = tmp_path / f"upscale.mixed.tensorrt-rtx.{name}.engine"
        return write(engine_info(opened, path, blob(), profile=profile, **changes), blob())

    large, small, batch = add("a", (1, 512, 512)), add("b", (1, 64, 64)), add("c", (4, 64, 64))
    add("stale", (1, 8, 8), onnx_sha256="0" * 64)
    add("foreign", (1, 8, 8), weights="0" * 64)
    add("disguised", (1, 8, 8), backend="tensorrt")
    assert find_engines(tmp_path, opened, "tensorrt-rtx", "mixed", "upscale") == [small, batch, large]
    for other in (("tensorrt", "mixed", "upscale"), ("tensorrt-rtx", "fp32", "upscale"), ("tensorrt-rtx", "mixed", "downscale")):
        assert find_engines(tmp_path, opened, *other) == []
    assert find_engines(tmp_path / "missing", opened, "tensorrt-rtx", "mixed", "upscale") == []
    assert find_engines(tmp_path, Bundle(bundle("irn", 2)), "tensorrt-rtx", "mixed", "upscale") == []
    sidecar(small.path).write_text("{")
    with pytest.raises(EngineError, match="damaged sidecar"):
        find_engines(tmp_path, opened, "tensorrt-rtx", "mixed", "upscale")


@given(st.tuples(*[st.integers(1, 200)] * 3))
def test_fitting_is_between_smallest_and_largest(size):
    info = EngineInfo.__new__(EngineInfo)
    object.__setattr__(info, "profile", {"min": (1, 10, 20), "opt": (1, 20, 20), "max": (2, 100, 150)})
    assert info.fits(*size) == (size[0] <= 2 and 10 <= size[1] <= 100 and 20 <= size[2] <= 150)


def test_an_encoder_without_corrections_has_engines_of_its_own(corrected_pair, tmp_path):
    """Or cleaning up after one would delete those of the other as stale."""
    corrected, plain = map(Bundle, corrected_pair)
    assert engines_folder(corrected) != engines_folder(plain)
    engine = write(engine_info(corrected, tmp_path / "upscale.engine", blob()), blob())
    assert f"foreign: of irn_a x2 {corrected.size}, weights {corrected.network[:12]}" in refused(engine.path, plain)


def test_folders(opened, monkeypatch, tmp_path):
    assert engines_folder(opened, "here") == Path("here")
    monkeypatch.setenv("RESCALE_CACHE", str(tmp_path))
    assert engines_folder(opened).parent == tmp_path / "engines"
    assert engines_folder(opened).name == f"irn_a_x2_{opened.size}-{opened.network[:12]}"
    monkeypatch.delenv("RESCALE_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    for platform, want in (("linux", "/x/rescale"), ("darwin", "/home/me/Library/Caches/rescale")):
        monkeypatch.setattr(engine_file.sys, "platform", platform)
        assert cache_folder() == Path(want)
    monkeypatch.setattr(engine_file.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/local/rescale")
    monkeypatch.setattr(engine_file.sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/me/.cache/rescale")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    """As an unknown number of a container."""

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RESCALE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine_file.Path, "home", none)
    with pytest.raises(EngineError, match="no home directory, where engines are kept: name a folder for them in RESCALE_CACHE"):
        cache_folder()


@given(st.text(max_size=30))
def test_a_manifests_size_leads_nowhere_else(opened, size):
    stranger = Bundle(opened.path)
    stranger.size = size
    folder = engines_folder(stranger)
    assert folder.parent.name == "engines"
    assert folder.name.startswith("irn_a_x2_")
    assert "/" not in folder.name
    assert engine_name("upscale", "mixed", "tensorrt", "p", "0" * 64) == "upscale.mixed.tensorrt.p.000000000000.engine"
