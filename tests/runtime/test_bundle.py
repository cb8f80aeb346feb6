"""Bundles that are missing, damaged, hostile or of another format are refused by name."""

from __future__ import annotations

import json
import shutil

import pytest

import rescale
from rescale.bundle import Bundle
from rescale.errors import BackendError, BundleError


@pytest.fixture
def copy(bundle, tmp_path):
    """A private copy of a bundle, and a function that edits its manifest."""
    path = tmp_path / "modèle été"
    shutil.copytree(bundle("irn_m", 2), path)

    def edit(change):
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return path, edit


def test_verify_accepts_a_fresh_bundle_in_a_folder_with_an_odd_name(copy, picture):
    path, _ = copy
    Bundle(path).verify()
    with rescale.load(path) as net:
        assert net.downscale(picture(6, 6)).size == (3, 3)


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle here \(manifest.json is missing\); make one with rescale-export"):
        Bundle(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 3}', '{"format": "rescale-bundle/x"}', "{}", "[" * 5000])
def test_damaged_manifest(copy, text):
    path, _ = copy
    (path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json: damaged manifest"):
        Bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="rescale-bundle/2.0"), "bundle format 2.0; this version reads 1.x"),
        (lambda m: m.update(format="other/1.0"), "format 'other', wanted 'rescale-bundle'"),
        (lambda m: m.update(model="gan"), "unknown model 'gan'"),
        (lambda m: m.update(scale=3), "unknown scale 3"),
        (lambda m: m["graphs"].pop("encoder"), "graph 'encoder' is missing"),
        (lambda m: m["weights"].update(sha256="00"), "64 hexadecimal digits"),
        (lambda m: m.update(padding="x" * 2_000_000), "a manifest has at most"),
    ],
)
def test_manifest_that_cannot_be_used(copy, change, message):
    path, edit = copy
    edit(change)
    with pytest.raises(BundleError, match=message):
        Bundle(path)


def test_a_newer_minor_version_and_unknown_fields_are_read(copy):
    path, edit = copy
    edit(lambda m: m.update(format="rescale-bundle/1.9", novelty={"a": 1}))
    assert Bundle(path).title == "irn_m x2 custom"


@pytest.mark.parametrize("file", ["downscale.onnx", "upscale.onnx", "encoder.onnx", "decoder.onnx", "golden.npz"])
def test_any_changed_or_missing_file_is_named(copy, file):
    path, _ = copy
    data = bytearray((path / file).read_bytes())
    data[len(data) // 2] ^= 1
    (path / file).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{file}: SHA-256 .* the file was changed"):
        Bundle(path).verify()
    (path / file).unlink()
    with pytest.raises(BundleError, match=rf"{file}: missing"):
        Bundle(path).verify()


@pytest.mark.parametrize("name", ["../golden.npz", "/etc/passwd", "a/b", "", ".hidden", "x" * 101])
def test_file_names_stay_inside_the_bundle(copy, name):
    path, edit = copy
    edit(lambda m: m["graphs"]["upscale"].update(file=name))
    with pytest.raises(BundleError, match="not a plain file name"):
        Bundle(path).read_graph("upscale")


def test_graph_that_the_backend_cannot_load(copy, picture):
    import hashlib

    path, edit = copy
    junk = b"not an onnx file"
    (path / "downscale.onnx").write_bytes(junk)
    edit(lambda m: m["graphs"]["downscale"].update(sha256=hashlib.sha256(junk).hexdigest()))
    with rescale.load(path, "onnxruntime") as net, pytest.raises(BackendError, match="downscale cannot be loaded by onnxruntime"):
        net.downscale(picture(4, 4))
