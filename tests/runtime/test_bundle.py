"""Bundles that are missing, damaged, hostile or of another format are refused by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

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


def test_a_program_may_change_its_folder_before_a_graph_first_runs(copy, picture, tmp_path, monkeypatch):
    """As services do that become daemons."""
    path, _ = copy
    monkeypatch.chdir(path.parent)
    with rescale.load(path.name) as net:
        monkeypatch.chdir("/")
        assert net.restore(net.downscale(picture(6, 6))).size == (6, 6)
        assert net.bundle.path == Path(path.name)
        (path / "encoder.onnx").unlink()
        with pytest.raises(BundleError, match=f"^{path.name}/encoder.onnx: missing"):
            net.bundle.read_graph("encoder")


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
        (lambda m: m["weights"].update(card=3), "damaged manifest: AttributeError"),
        (lambda m: m["weights"].update(card={"figures": {"Set5": 3}}), "damaged manifest: AttributeError"),
        (lambda m: m.update(precisions=[1]), "damaged manifest: AttributeError"),
        (lambda m: m.update(size=None), "damaged manifest: ValueError: None where text is wanted"),
        (lambda m: m["graphs"]["upscale"].update(sha256=[]), "damaged manifest: ValueError: .* where text is wanted"),
        (lambda m: m.update(scale=2.0), "damaged manifest: ValueError: 2.0 where a whole number"),
        (lambda m: m.update(model=["irn"]), "damaged manifest: TypeError"),
        (lambda m: m.update(model="irn_a"), "graph 'downscale' does not have the inputs and outputs of irn_a"),
        (lambda m: m["receptive_field"].update(lr_pixels=math.inf), "damaged manifest: ValueError: Infinity is no number"),
        (lambda m: m["receptive_field"].update(lr_pixels=10**400), "where a whole number from 0 to 16384 is wanted"),
        (lambda m: m["halo"].update(lr_pixels=m["receptive_field"]["lr_pixels"] + 1), "where a whole number from 0 to"),
        (lambda m: m["graphs"]["upscale"].update(memory_per_lr_pixel=0), "0 where a whole number from 1 to 16777216 is wanted"),
        (lambda m: m["graphs"]["upscale"].update(memory_per_lr_pixel=10**400), "where a whole number from 1 to 16777216"),
        (lambda m: m["graphs"]["upscale"]["inputs"].pop(), "None where a whole number from 1 to 4096 is wanted"),
        (lambda m: m["graphs"]["encoder"]["inputs"].pop(), "graph 'encoder' does not have the inputs and outputs of irn_m"),
        (lambda m: m.update(padding="x" * 2_000_000), "larger than 1048576 bytes"),
    ],
)
def test_manifest_that_cannot_be_used(copy, change, message):
    path, edit = copy
    edit(change)
    with pytest.raises(BundleError, match=message):
        Bundle(path)


@pytest.mark.parametrize("model", ["irn", "irn_m"])
def test_graphs_of_another_scale_are_named(bundle, tmp_path, model, picture):
    path = tmp_path / "b"
    shutil.copytree(bundle(model, 2), path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"scale": 4}))
    with rescale.load(path) as net, pytest.raises(BundleError, match=r"downscale gave uint8 .*graphs are of another network"):
        net.downscale(picture(64, 64))
    with rescale.load(bundle(model, 2)) as right:
        small = right.downscale(picture(64, 64))
    with rescale.load(path) as net, pytest.raises(BundleError, match=r"upscale gave uint8 .*graphs are of another network"):
        net.network.up(small.rgb, small.alpha, small.latent)


def test_odd_figures_of_a_card_are_left_out(copy):
    path, edit = copy
    edit(lambda m: m["weights"].update(card={"figures": {"Set5": {"hr_psnr_y": 40.5, "hr_psnr_y_forced": "x", "count": True}}}))
    assert Bundle(path).figures == {"Set5": {"hr_psnr_y": 40.5}}


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
