"""The two verbs through files: any size, every variant, the same result in another process."""

from __future__ import annotations

import pickle
import re
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


def test_another_scale_is_refused_even_when_forced(bundle, picture):
    """What came out would have half or twice the original's sides."""
    with rescale.load(bundle("irn_a", 4), threads=1) as made, rescale.load(bundle("irn_a", 2), threads=1) as other:
        small = made.downscale(picture(24, 32))
        for options in ({}, {"strict": False}, {"trust_alpha": True}, {"strict": False, "trust_alpha": True}):
            with pytest.raises(LrFileError, match=r"made by irn_a x4.*not by irn_a x2.*another scale gives another size") as error:
                other.upscale(small, **options)
            assert error.value.state == "other-model"
            assert "--force restores" not in str(error.value)


@pytest.mark.parametrize("tile", [[8, 8], (np.int64(8), 8), np.array([8, 8])])
def test_a_tile_is_any_sequence_of_two_whole_numbers(bundle, picture, tile):
    image = picture(40, 40)
    with rescale.load(bundle("irn", 2), threads=1, tile=tile) as net:
        assert net.network.tile == (8, 8)
        assert net.upscale(net.downscale(image)).shape == image.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"tile": t}, "(height, width) in LR pixels is wanted") for t in ((True, 4), (0, 4), (4,), 4, "44", {4, 8}, (4.0, 4))),
        ({"memory": "2GB"}, "memory '2GB': a whole number of bytes is wanted, or None"),
        ({"memory": 0}, "memory 0: a whole number of bytes is wanted"),
        ({"memory": True}, "memory True: a whole number of bytes is wanted"),
        ({"threads": "2"}, "threads '2': a whole number is wanted, or None"),
        ({"threads": 1.5}, "threads 1.5: a whole number is wanted"),
        ({"backend": None}, "backend None: a name is wanted: auto, or one of onnxruntime"),
        ({"path": None}, "path 'None': the folder of a bundle is wanted"),
    ],
)
def test_arguments_of_another_type_are_refused_in_words(bundle, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        rescale.load(**{"path": bundle("irn", 2)} | options)


def test_steps_are_a_whole_number(bundle, picture):
    with rescale.load(bundle("irn", 2), threads=1) as net:
        for steps in (-1, 1.5, "3"):
            with pytest.raises(InputError, match="steps: 0 or more, got"):
                net.downscale(picture(4, 4), steps)


def test_a_rescaler_is_not_pickled_and_says_what_to_do(bundle):
    with rescale.load(bundle("irn", 2)) as net, pytest.raises(TypeError, match=r"call rescale\.load in each"):
        pickle.dumps(net.downscale)


def test_more_threads_than_cpus_is_not_asked_for(bundle):
    with rescale.load(bundle("irn", 2)) as net:
        assert f"{usable_threads()} thread(s)" in net.runner.name
    assert torch.get_num_threads() == 1
