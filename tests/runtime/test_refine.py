"""Refined LR codes: never worse, as close to bicubic, the same file, any size; and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
import threading

import numpy as np
import pytest

import rescale
from rescale import Small, State
from rescale.bundle import Bundle
from rescale.cli import main
from rescale.contract import GRADIENT
from rescale.errors import BundleError, InputError
from rescale.quality import psnr, psnr_y
from rescale.refine import bicubic, refine, squared_error
from rescale.variants import SCALES, VARIANTS
from rescale_export.probe import photograph
from rescale_train.bicubic import bicubic_picture


def apart(lr, image, scale):
    return float(np.square(lr[:, :, :3] - bicubic(image, scale)).sum())


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(VARIANTS, SCALES)))
def test_no_picture_gets_worse_whatever_its_size(refinable, picture, model, scale):
    with rescale.load(refinable(model, scale), threads=1) as net:
        for height, width in ((1, 1), (1, 9), (2, 3), (33, 18)):
            image = picture(height, width, seed=height)
            lr, latent = net.network.down(image)
            better = refine(net.network, image, lr, latent, 4)
            assert (better.shape, better.dtype) == (lr.shape, np.uint8)

            def error(codes, latent=latent, image=image):
                alpha = codes[:, :, 3] if codes.shape[2] == 4 else None
                restored = net.network.up(np.ascontiguousarray(codes[:, :, :3]), alpha, latent)
                return squared_error(restored[: image.shape[0], : image.shape[1]], image)

            assert error(better) <= error(lr)
            assert apart(better, image, scale) <= apart(lr, image, scale)
            if lr.shape[2] == 4:
                assert better[:, :, 3].min() >= 1


@pytest.mark.parametrize("model", ["dlv_irn_a", "dlv_irn_m", "irn"])
def test_shipped_weights_restore_a_photograph_better(shipped_bundle, model):
    image = photograph(160, 192)
    with rescale.load(shipped_bundle(model), threads=1) as net:
        gains, errors = [], []
        for steps in (0, 4, 12):
            small = Small.from_bytes(net.downscale(image, steps).to_bytes())
            assert small.state is State.EXACT
            again = net.upscale(small)
            gains.append((psnr_y(again, image, 2), psnr(again, image)))
            errors.append(psnr_y(small.rgb, bicubic_picture(image, 2), 2))
    luma, rgb = np.diff(gains, axis=0).T
    # Luma counts four times in what is held, not alone: of the first steps RGB may have all of the gain.
    assert luma.sum() > 0.1
    assert (rgb > 0.0).all()
    assert min(errors) > errors[0] - 0.5


def test_the_gradient_comes_with_what_upscaling_gives(refinable, picture):
    image = picture(37, 61)
    for tile in (None, (6, 6)):
        with rescale.load(refinable("dlv_irn_m", 2), threads=1, tile=tile, exact=True) as net:
            lr, latent = net.network.down(image)
            hr, gradient = net.network.gradient(lr, latent, image)
            assert (hr == net.network.up(lr, None, latent)).all()
            assert gradient.shape == lr.shape
            assert gradient.dtype == np.float32


def test_gradients_of_tiles_are_those_of_the_whole(refinable, picture):
    """With twice the receptive field around a tile: what a code changes lies within one, what that depends on within the other."""
    image = picture(150, 130)
    with rescale.load(refinable("irn_a", 2), threads=1, exact=True) as net:
        lr, _ = net.network.down(image)
        _, whole = net.network.gradient(lr, None, image)
        net.network.tile, net.network.halos[GRADIENT] = (25, 30), 2 * net.bundle.receptive_field
        _, tiled = net.network.gradient(lr, None, image)
    assert np.abs(whole - tiled).max() <= 1e-4 * np.abs(whole).max()


def test_a_small_budget_refines_in_tiles(shipped_bundle):
    image = photograph(192, 288)
    budget = 160 << 20
    with rescale.load(shipped_bundle("dlv_irn_a"), threads=1, memory=budget) as net:
        assert len(net.network.tiles(96, 144, "upscale", budget)) == 1
        assert len(net.network.tiles(96, 144, GRADIENT, budget)) > 1
        # The first steps are the longest: the first few may all lead farther away (docs/refine.md).
        plain, refined = (psnr_y(net.upscale(net.downscale(image, steps)), image, 2) for steps in (0, 10))
    assert refined > plain


def test_steps_are_told_and_stop_at_a_perfect_picture(refinable, picture):
    told = []
    with rescale.load(refinable("irn", 2), threads=1) as net:
        net.downscale(picture(8, 8), 3, lambda *args: told.append(args))
        assert list(dict.fromkeys(told))[2:] == [(i, 4, "refining") for i in range(5)]
        lr, _ = net.network.down(picture(8, 8))
        perfect = net.network.up(lr, None, None)
        told.clear()
        assert (refine(net.network, perfect, lr, None, 5, lambda *args: told.append(args)) == lr).all()
    assert list(dict.fromkeys(told)) == [(i, 6, "refining") for i in range(2)]


def test_it_is_deterministic_and_threads_do_not_mix(refinable, picture):
    images = [picture(20, 24, seed=k) for k in range(4)]
    with rescale.load(refinable("irn_a", 2), threads=1) as net:
        alone = [net.downscale(image, 3).to_bytes() for image in images]
        found = [b""] * len(images)

        def work(k):
            found[k] = net.downscale(images[k], 3).to_bytes()

        threads = [threading.Thread(target=work, args=(k,)) for k in range(len(images))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert found == alone


@pytest.mark.parametrize("scale", SCALES)
def test_the_reduction_is_matlabs(picture, scale):
    image = picture(48, 64, seed=2)
    inner = np.s_[4:-4, 4:-4]
    difference = np.clip(bicubic(image, scale), 0.0, 255.0).round()[inner] - bicubic_picture(image, scale)[inner]
    assert np.abs(difference).max() <= 1.0
    assert (difference != 0.0).mean() < 0.02
    assert bicubic(picture(7, 9), scale).shape == (-(-7 // scale), -(-9 // scale), 3)


def test_a_bundle_without_the_graph_says_how_to_get_it(bundle, picture, tmp_path, capsys):
    with (
        rescale.load(bundle("irn_a", 2), threads=1) as net,
        pytest.raises(BundleError, match=r"holds no gradient graph, which refining needs; export it with rescale-export --refine"),
    ):
        net.downscale(picture(8, 8), 1)
    (tmp_path / "in").mkdir()
    assert main(["down", str(tmp_path / "in"), str(tmp_path / "out"), "-b", str(bundle("irn_a", 2)), "--refine", "2"]) == 1
    assert "export it with rescale-export --refine" in capsys.readouterr().err


def test_the_command_refuses_other_precisions_before_the_work(refinable, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rescale.network.Network.down", lambda *_: pytest.fail("the network ran"))
    rescale.write_picture(tmp_path / "p.png", picture(8, 8))
    paths = [str(tmp_path / "p.png"), str(tmp_path / "s.png")]
    assert main(["down", *paths, "-b", str(refinable("irn_a", 2)), "--refine", "1", "--precision", "mixed"]) == 1
    assert "the gradient graph is in fp32, not mixed" in capsys.readouterr().err


def test_other_precisions_and_negative_steps_are_refused(refinable, picture):
    path = refinable("irn_a", 2)
    with (
        rescale.load(path, "onnxruntime", threads=1, precision="mixed") as net,
        pytest.raises(BundleError, match=r"the gradient graph is in fp32, not mixed; refine on onnxruntime or openvino in fp32"),
    ):
        net.downscale(picture(8, 8), 1)
    with rescale.load(path, threads=1) as net, pytest.raises(InputError, match="steps: 0 or more, got -1"):
        net.downscale(picture(8, 8), -1)


@pytest.mark.parametrize("model", ["dlv_irn_a", "dlv_irn_m"])
def test_openvino_runs_the_graph_too(refinable, picture, model):
    pytest.importorskip("openvino")
    image, found = picture(24, 20), []
    for backend in ("onnxruntime", "openvino"):
        with rescale.load(refinable(model, 2), backend, threads=1) as net:
            if not found:
                lr, latent = net.network.down(image)
            found.append(net.network.gradient(lr, latent, image))
            assert net.downscale(image, 2).size == (10, 12)
    (hr, one), (again, other) = found
    assert (hr != again).mean() < 1e-3
    assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(one)


def test_a_changed_graph_or_interface_is_refused(refinable, tmp_path):
    path = tmp_path / "b"
    shutil.copytree(refinable("irn_a", 2), path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "gradient.onnx").write_bytes(b"not it")
    with pytest.raises(BundleError, match=r"gradient.onnx: SHA-256 .* the file was changed"):
        Bundle(path).verify()
    manifest["gradient"]["inputs"].pop()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="graph 'gradient' does not have the inputs and outputs of irn_a"):
        Bundle(path)


def test_the_command_refines_a_file_and_a_folder(refinable, picture, tmp_path, capsys):
    path, source = str(refinable("irn_a", 2)), tmp_path / "in"
    source.mkdir()
    for k in range(2):
        (source / f"{k}.png").write_bytes(rescale.Picture(picture(24, 20, seed=k)).to_bytes(".png"))
    assert main(["down", str(source / "0.png"), str(tmp_path / "plain.png"), "-b", path, "--threads", "1"]) == 0
    assert main(["down", str(source / "0.png"), str(tmp_path / "0.png"), "-b", path, "--refine", "3", "--threads", "1"]) == 0
    assert main(["down", str(source), str(tmp_path / "out"), "-b", path, "--refine", "3", "--threads", "1"]) == 0
    assert (tmp_path / "out" / "0.png").read_bytes() == (tmp_path / "0.png").read_bytes()
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "0.png").read_bytes()
    assert main(["verify", str(tmp_path / "0.png"), "-b", path]) == 0
    assert main(["down", "-", "-", "-b", path, "--raw", "8x8", "--refine", "3"]) == 2
    assert "--refine: has no meaning for raw frames" in capsys.readouterr().err
