"""Pixels in memory to LR pictures and back by the C ABI, with all that travels beside them: as Python has it."""

from __future__ import annotations

import ctypes
import struct
from ctypes import byref

import numpy as np
import pytest

import rescale
from rescale.container import Small
from rescale.picture import Picture

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler

COLOUR = ((b"gAMA", struct.pack(">I", 45455)), (b"eXIf", b"MM\0*" + bytes(40)))


def message(failure, kind, call, *arguments, **options) -> str:
    with pytest.raises(failure) as caught:
        call(*arguments, **options)
    assert caught.value.kind == kind, caught.value
    return str(caught.value)


def padded(array: np.ndarray, fill: int = 7) -> np.ndarray:
    """The same picture with bytes between its rows, as decoders of video have it."""
    wide = np.full((array.shape[0], array.shape[1] + 9, *array.shape[2:]), fill, np.uint8)
    wide[:, : array.shape[1]] = array
    return wide[:, : array.shape[1]]


@pytest.mark.parametrize(("model", "scale"), [("irn", 2), ("dlv_irn_a", 2), ("irn_a", 4), ("irn_m", 2)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 42)])
def test_an_lr_picture_of_pixels_is_pythons(native, bundle, picture, tmp_path, model, scale, height, width):
    path, hr = bundle(model, scale), picture(height, width)
    alpha = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    with rescale.load(path, backend="onnxruntime") as net:
        small = net.downscale(Picture(hr, False, alpha, COLOUR))
        own = native.load(path)
        lr = own.downscale_lr(padded(hr), padded(alpha), COLOUR)
        assert (lr.state, lr.info.hr_width, lr.info.hr_height) == ("exact", width, height)
        for name in ("rgb", "alpha", "latent", "source_alpha"):
            mine, wanted = getattr(lr, name), getattr(small, name)
            assert mine is wanted is None or np.array_equal(mine, wanted), name
        assert lr.colour == COLOUR == small.colour
        data, sidecar = lr.write()
        assert sidecar == b""
        back = Small.from_bytes(data)
        assert back.state == "exact"
        assert back.colour == COLOUR
        target = padded(np.zeros_like(hr))
        assert np.array_equal(own.restore(native.read(data), target), net.upscale(back))
        assert (target.base[:, width:] == 7).all()
        lr.save(tmp_path / "k\u00e4se \u20ac.png", carrier="sidecar")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["k\u00e4se \u20ac.png", "k\u00e4se \u20ac.png.rescale"]
        assert Small.open(tmp_path / "k\u00e4se \u20ac.png").state == "exact"
        own.close()


def test_nothing_beside_the_pixels_and_gray(native, bundle, picture):
    path = bundle("irn_a", 2)
    hr = np.repeat(picture(20, 23)[:, :, :1], 3, axis=2)
    own = native.load(path)
    plain = own.downscale_lr(hr, plain=True)
    assert (plain.source_alpha, plain.colour, plain.info.source_mode) == (None, (), b"rgb")
    gray = own.downscale_lr(hr, gray=True)
    assert gray.info.source_mode == b"gray"
    with rescale.load(path, backend="onnxruntime") as net:
        wanted = net.restore(Small.from_bytes(gray.write()[0])).to_bytes()
    assert own.restore_png(gray)[:33] == wanted[:33]  # IHDR: gray
    own.close()


def test_pixels_that_cannot_be_an_lr_picture_are_refused(native, failure, bundle, picture):
    own = native.load(bundle("irn_a", 2))
    hr = picture(6, 4)
    for arguments, words in (
        ({"alpha": np.zeros((4, 6), np.uint8)}, "alpha: not of the picture's size"),
        ({"alpha": picture(6, 4)}, "alpha: 3 channels, wanted 1"),
        ({"colour": [(b"tEXt", b"a\0b")]}, "a chunk 'tEXt' is not carried; iCCP, cICP"),
        ({"colour": [(b"eXIf", bytes((8 << 20) + 1))]}, "bytes of colour and EXIF metadata"),
        ({"colour": [(None, b"")]}, "the name of a chunk is NULL"),
    ):
        assert words in message(failure, "input", own.downscale_lr, hr, **arguments)
    assert "1 channels, wanted 3" in message(failure, "input", own.downscale_lr, hr[:, :, 0].copy())
    lr = own.downscale_lr(hr)
    assert "HR picture: 4x5 with 3" in message(failure, "input", own.restore, lr, np.zeros((5, 4, 3), np.uint8))
    assert "layout 'side': choose one" in message(failure, "input", lr.write, "side")
    assert "cannot write" in message(failure, "output", lr.save, "/nowhere/x.png")
    other = native.load(bundle("irn_a", 4))
    assert "another scale gives another size" in message(failure, "lr_file", other.restore, lr, np.zeros_like(hr), True)
    other.close()
    own.close()


def test_picture_sides_and_strides_that_no_memory_has_are_refused(native, failure, bundle, picture):
    own = native.load(bundle("irn_a", 2))
    hr, lr = picture(6, 4), np.zeros((3, 2, 4), np.uint8)
    small = native.image(lr.ctypes.data, 2, 3, 4, 0)
    for width, height, stride, words in (
        (4, 6, 11, "a stride of 11 bytes for rows of 12"),
        (4, 6, -11, "a stride of -11 bytes"),
        (4, 6, -(2**63), "a stride of -9223372036854775808"),
        (4, 6, 2**63 - 1, "a stride of 9223372036854775807"),
        (2**31 - 1, 2**31 - 1, 0, "sides of 1 to 65535 pixels were expected, got 2147483647x2147483647"),
        (-4, 6, 0, "got -4x6"),
        (4, 0, 0, "got 4x0"),
    ):
        large, pointer = native.image(hr.ctypes.data, width, height, 3, stride), ctypes.c_void_p()
        frame = ("rescale_downscale", own.pointer, byref(large), byref(small), None)
        assert words in message(failure, "input", native.call, *frame)
        whole = ("rescale_downscale_lr", own.pointer, byref(large), None, byref(pointer))
        assert words in message(failure, "input", native.call, *whole)
        assert not pointer
    own.close()
