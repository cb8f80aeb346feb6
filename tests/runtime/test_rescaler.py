"""The two verbs through files: any size, every variant, the same result in another process."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import rescale
from rescale import Small, State
from rescale.errors import BackendError, InputError, LrFileError
from rescale.threads import usable_threads
from rescale_export.validate import reference

ALL = [(m, s) for m in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m") for s in (2, 4)]
SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (5, 4), (16, 16), (33, 18), (37, 61)]


@pytest.mark.parametrize(("model", "scale"), ALL)
def test_any_size_comes_back_in_its_own_size(bundle, picture, model, scale):
    with rescale.load(bundle(model, scale), threads=1) as net:
        for height, width in SIZES:
            image = picture(height, width)
            small = Small.from_bytes(net.downscale(image).to_bytes())
            assert small.state is State.EXACT
            assert small.size == (-(-width // scale), -(-height // scale))
            again = net.upscale(small)
            assert again.shape == image.shape
            assert again.dtype == np.uint8


@pytest.mark.parametrize("scale", [2, 4])
def test_odd_sizes_up_to_67(bundle, picture, scale):
    with rescale.load(bundle("irn_m", scale), threads=1) as net:
        for n in range(1, 68):
            for height, width in ((n, 68 - n), (n, n), (1, n)):
                small = net.downscale(picture(height, width))
                assert small.size == (-(-width // scale), -(-height // scale))
                assert net.upscale(small).shape == (height, width, 3)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 4])
def test_every_size_up_to_67_by_67_comes_back_through_its_file(bundle, picture, scale):
    with rescale.load(bundle("dlv_irn_a", scale), threads=1) as net:
        for height in range(1, 68):
            for width in range(1, 68):
                small = Small.from_bytes(net.downscale(picture(height, width)).to_bytes())
                assert small.size == (-(-width // scale), -(-height // scale))
                assert net.upscale(small).shape == (height, width, 3)


@pytest.mark.parametrize(("model", "scale"), ALL)
def test_file_carries_the_bytes_pytorch_computes(bundle, picture, make_net, model, scale):
    image = picture(44, 68, seed=3)
    want = reference(make_net(model, scale), image[None])
    with rescale.load(bundle(model, scale), threads=1) as net:
        small = Small.from_bytes(net.downscale(image).to_bytes())
        got = net.upscale(small)
    lr = small.rgb if small.alpha is None else np.dstack([small.rgb, small.alpha])
    assert np.abs(lr.astype(int) - want["lr"][0]).max() <= 1
    assert (lr != want["lr"][0]).mean() <= 1e-3
    if small.latent is not None:
        assert (small.latent != want["code"][0]).mean() <= 1e-2
    assert (got != want["restored"][0]).mean() <= 2e-2


@pytest.mark.parametrize("model", ["dlv_irn_a", "irn_m"])
def test_two_processes_share_nothing_but_the_file(bundle, picture, tmp_path, model):
    image = picture(31, 45)
    rescale.write_picture(tmp_path / "photo.png", image)
    run = [sys.executable, "-m", "rescale"]
    args = ["-b", str(bundle(model, 2))]
    # An import hook would be the only way for torch to come in; -X importtime lists every import on stderr.
    down = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rescale", "down", "photo.png", "s.png", *args],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not [line for line in down.stderr.splitlines() if line.rsplit("|", 1)[-1].strip() in ("torch", "onnx", "tensorrt")]
    (tmp_path / "photo.png").unlink()
    subprocess.run([*run, "up", "s.png", "again.png", *args], cwd=tmp_path, check=True)
    with rescale.load(bundle(model, 2)) as net:
        assert np.array_equal(rescale.read_picture(tmp_path / "again.png"), net.upscale(net.downscale(image)))


def test_runs_are_repeatable(bundle, picture):
    image = picture(50, 70)
    with rescale.load(bundle("irn", 2)) as net:
        first, second = net.downscale(image), net.downscale(image)
        assert np.array_equal(first.rgb, second.rgb)
        assert np.array_equal(net.upscale(first), net.upscale(second))


def test_threads_share_one_rescaler(bundle, picture):
    images = [picture(20 + i, 30 + i, seed=i) for i in range(8)]
    with rescale.load(bundle("dlv_irn_a", 2), threads=1) as net:
        want = [net.upscale(net.downscale(i)) for i in images]
        got: list[np.ndarray | None] = [None] * len(images)

        def work(k: int) -> None:
            got[k] = net.upscale(net.downscale(images[k]))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(len(images))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_wrong_arrays_are_refused(bundle, bad):
    with rescale.load(bundle("irn", 2)) as net, pytest.raises(InputError, match="expected"):
        net.downscale(bad)


def test_non_array_is_refused(bundle):
    with rescale.load(bundle("irn", 2)) as net, pytest.raises(InputError, match="array was expected, got str"):
        net.downscale("photo.png")


def test_unknown_backend_and_closed_rescaler_are_errors(bundle, picture):
    with pytest.raises(BackendError, match="unknown backend 'tpu'"):
        rescale.load(bundle("irn", 2), backend="tpu")
    with pytest.raises(BackendError, match="threads: at least 1"):
        rescale.load(bundle("irn", 2), threads=-1)
    net = rescale.load(bundle("irn", 2))
    net.close()
    with pytest.raises(BackendError, match="close"):
        net.downscale(picture(4, 4))


@pytest.mark.parametrize("model", ["dlv_irn_a", "dlv_irn_m", "irn"])
def test_other_weights_are_refused_and_forced_without_auxiliary(bundle, picture, model):
    image = picture(24, 32)
    with rescale.load(bundle(model, 2)) as net, rescale.load(bundle("irn_a", 2)) as other:
        small = net.downscale(image)
        with pytest.raises(LrFileError, match=rf"made by {model} x2.*not by irn_a x2") as error:
            other.upscale(small)
        assert error.value.state == "other-model"
        assert other.upscale(small, strict=False).shape == image.shape


def test_more_threads_than_cpus_is_not_asked_for(bundle):
    with rescale.load(bundle("irn", 2)) as net:
        assert f"{usable_threads()} thread(s)" in net.runner.name
    assert torch.get_num_threads() == 1
