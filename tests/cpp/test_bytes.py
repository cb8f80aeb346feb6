"""The same bytes as Python, on the same ONNX Runtime: frames, LR files and restored pictures."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale import codes, png
from rescale.container import Small, State
from rescale.picture import Picture, open_picture

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler

ALL = [(m, s) for m in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m") for s in (2, 4)]
SIZES = [(37, 45), (1, 1), (16, 24), (61, 3)]


def png_of(array: np.ndarray) -> bytes:
    return Picture(array).to_bytes()


def as_frame(small: Small) -> np.ndarray:
    return small.rgb if small.alpha is None else np.dstack([small.rgb, codes.alpha_to_file(small.alpha)])


def unpacked(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(("model", "scale"), ALL)
@pytest.mark.parametrize("options", [{}, {"tile": 8}, {"tile": 12, "exact": True}, {"memory": 96 << 20}], ids=str)
def test_frames_are_pythons_byte_for_byte(native, bundle, picture, model, scale, options):
    path = bundle(model, scale)
    tile = options.get("tile")
    arguments = {"memory": options.get("memory"), "exact": options.get("exact", False)}
    with rescale.load(path, backend="onnxruntime", tile=None if tile is None else (tile, tile), **arguments) as net:
        own = native.load(
            path, memory=options.get("memory", 0), exact=int(arguments["exact"]), tile_width=tile or 0, tile_height=tile or 0
        )
        for height, width in SIZES if "memory" not in options else [(470, 610)]:
            hr = picture(height, width)
            if "memory" in options:
                assert len(net.network.tiles(-(-height // scale), -(-width // scale), "upscale", 96 << 20)) > 1
            small = net.downscale(hr)
            lr, latent = own.downscale(hr)
            assert np.array_equal(lr, as_frame(small))
            assert (latent is None) == (small.latent is None)
            assert latent is None or np.array_equal(latent, small.latent)
            restored = own.upscale(lr, latent, np.zeros_like(hr))
            assert np.array_equal(restored, net.upscale(small))
            neutral = own.upscale(lr[:, :, :3].copy(), None, np.zeros_like(hr))
            assert np.array_equal(neutral, net.network.up(small.rgb, None, None)[:height, :width])
        own.close()


@pytest.mark.parametrize("options", [{}, {"tile": 9}, {"tile": 40, "exact": True}], ids=str)
@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_an_encoder_with_corrections_gives_the_same_bytes(native, corrected_pair_of, picture, model, options):
    tile, exact = options.get("tile"), options.get("exact", False)
    hr = picture(131, 118)
    small = lr = latent = None
    for path in corrected_pair_of(model):  # a decoder needs nothing of them
        with rescale.load(path, "onnxruntime", tile=tile and (tile, tile), exact=exact) as net:
            own = native.load(path, exact=int(exact), tile_width=tile or 0, tile_height=tile or 0)
            if small is None:
                small = net.downscale(hr)
                lr, latent = own.downscale(hr)
                assert np.array_equal(lr, as_frame(small))
                assert (latent is None and small.latent is None) or np.array_equal(latent, small.latent)
            assert np.array_equal(own.upscale(lr, latent, np.zeros_like(hr)), net.upscale(small))
            own.close()


@pytest.mark.parametrize(("model", "scale"), ALL)
def test_lr_files_say_the_same_and_restore_the_same(native, bundle, picture, model, scale):
    path = bundle(model, scale)
    hr = picture(50, 71)
    with rescale.load(path, backend="onnxruntime") as net:
        small = net.downscale(hr)
        theirs, (mine, sidecar) = small.to_bytes(), (own := native.load(path)).downscale_png(png_of(hr))
        assert sidecar == b""
        chunks, wanted = (png.read_chunks(d, "x") for d in (mine, theirs))
        assert [c.kind for c in chunks if c.kind != b"IDAT"] == [c.kind for c in wanted if c.kind != b"IDAT"]
        assert np.array_equal(unpacked(mine), unpacked(theirs))
        if small.latent is None:  # the block is equal to the last byte; a latent in it is deflated by another zlib
            (block,), (wanted_block,) = ([c.data for c in cs if c.kind == b"reSc"] for cs in (chunks, wanted))
            assert block == wanted_block
        assert chunks[0] == wanted[0]
        back = Small.from_bytes(mine)
        assert back.state is State.EXACT
        for name in ("rgb", "alpha", "latent"):
            a, b = getattr(back, name), getattr(small, name)
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(a, b)
        assert vars(back.block) | {"sections": None} == vars(Small.from_bytes(theirs).block) | {"sections": None}
        restored = own.restore_png(native.read(theirs))
        assert np.array_equal(unpacked(restored), net.restore(back).pixels)
        assert np.array_equal(unpacked(restored), net.upscale(small))
        own.close()


@pytest.mark.parametrize("layout", ["alpha", "chunk", "strip"])
@pytest.mark.parametrize("carrier", ["chunk", "text", "sidecar"])
def test_every_layout_and_carrier_is_read_by_the_other(native, bundle, picture, layout, carrier):
    path = bundle("dlv_irn_a", 2)
    hr = np.dstack([picture(33, 41), np.arange(33 * 41, dtype=np.uint8).reshape(33, 41)])
    source = png.insert(png.encode(hr), [(b"gAMA", b"\0\0\xb1\x8f"), (b"eXIf", b"MM\0*" + bytes(40))])
    with rescale.load(path, backend="onnxruntime") as net:
        own = native.load(path)
        small = net.downscale(open_picture(source, "keep"))
        data, sidecar = small.encode("png", layout, carrier)
        mine, beside = own.downscale_png(source, layout, carrier, keep=True)
        assert bool(beside) == (sidecar is not None)
        ours = native.read(data, sidecar=sidecar)
        theirs = Small.from_bytes(mine, sidecar=beside or None)
        assert ours.state == theirs.state == "exact"
        for name in ("rgb", "alpha", "source_alpha"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
            assert np.array_equal(getattr(ours, name), getattr(small, name))
        assert theirs.colour == small.colour
        assert theirs.block.layout == layout
        restored = own.restore_png(ours)
        assert np.array_equal(unpacked(restored), unpacked(net.restore(theirs).to_bytes()))
        assert [c.kind for c in png.read_chunks(restored, "x")][1:3] == [b"gAMA", b"eXIf"]
        own.close()


def test_gray_pictures_come_back_gray(native, bundle):
    path = bundle("irn_a", 2)
    gray = (np.add.outer(np.arange(31), np.arange(44)) * 3).astype(np.uint8)
    with rescale.load(path, backend="onnxruntime") as net:
        own = native.load(path)
        small = net.downscale(open_picture(png.encode(gray)))
        mine, _ = own.downscale_png(png.encode(gray))
        restored = unpacked(own.restore_png(native.read(mine)))
        assert restored.ndim == 2
        assert np.array_equal(restored, unpacked(net.restore(small).to_bytes()))
        own.close()


def test_a_gray_profile_travels_beside_an_rgb_picture_not_in_it(native, bundle):
    """PNG allows it beside gray alone: the block holds it, byte for byte as Python's."""
    path = bundle("irn_a", 2)
    gray = (np.add.outer(np.arange(31), np.arange(44)) * 3).astype(np.uint8)
    for space, kinds in ((b"GRAY", []), (b"RGB ", [b"iCCP"]), (b"GRA", [b"iCCP"])):
        profile = bytes(16) + space + (bytes(200) if len(space) == 4 else b"")
        chunks = [(b"gAMA", struct.pack(">I", 45455)), (b"iCCP", b"own\0\0" + zlib.compress(profile))]
        source = png.insert(png.encode(gray), chunks)
        with rescale.load(path, backend="onnxruntime") as net:
            small = net.downscale(open_picture(source))
            wanted = small.to_bytes()
        own = native.load(path)
        mine, _ = own.downscale_png(source)
        blocks = [next(c.data for c in png.read_chunks(file, "x") if c.kind == b"reSc") for file in (mine, wanted)]
        assert blocks[0] == blocks[1]
        shown = [c.kind for c in png.read_chunks(mine, "x") if c.kind in (b"gAMA", b"iCCP")]
        assert sorted(shown) == sorted([b"gAMA", *kinds])
        restored = own.restore_png(native.read(mine))
        assert {c.kind: c.data for c in png.read_chunks(restored, "x")}.items() >= dict(chunks).items()
        own.close()


def test_a_bundle_with_a_gradient_and_its_refined_files_are_read(native, refinable, picture):
    path, hr = refinable("irn_a", 2), picture(37, 52)
    with rescale.load(path, backend="onnxruntime") as net:
        small = net.downscale(hr, 3)
        own = native.load(path)
        restored = own.restore_png(native.read(small.to_bytes()))
        assert np.array_equal(unpacked(restored), net.upscale(small))
        own.close()


def test_memory_of_the_caller_may_have_any_stride(native, bundle, picture):
    own = native.load(bundle("dlv_irn_a", 2))
    hr = picture(21, 35)
    lr, _ = own.downscale(hr)
    wide = np.full((21, 64, 3), 7, np.uint8)
    wide[:, 5:40] = hr
    target = np.full((11, 30, 4), 9, np.uint8)
    own.downscale(wide[:, 5:40], target[:, 3:21])
    assert np.array_equal(target[:, 3:21], lr)
    assert (target[:, :3] == 9).all()
    assert (target[:, 21:] == 9).all()
    flipped = own.downscale(np.ascontiguousarray(hr[::-1])[::-1])[0]
    assert np.array_equal(flipped, lr)
    plain = own.upscale(lr, None, np.zeros_like(hr))
    own.upscale(target[:, 3:21], None, wide[:, 5:40])
    assert np.array_equal(wide[:, 5:40], plain)
    assert (wide[:, :5] == 7).all()
    own.close()


@pytest.mark.parametrize("model", ["dlv_irn_a", "irn_m"])
def test_eight_threads_share_one_session(native, bundle, picture, model):
    own = native.load(bundle(model, 2), threads=1)
    pictures = [picture(20 + 7 * i, 30 + 5 * i) for i in range(8)]
    wanted = [own.downscale(p) for p in pictures]
    faults: list[object] = []
    gate = threading.Barrier(8)

    def work(i: int) -> None:
        try:
            gate.wait()
            for _ in range(6):
                lr, latent = own.downscale(pictures[i])
                assert np.array_equal(lr, wanted[i][0])
                assert latent is None or np.array_equal(latent, wanted[i][1])
                own.upscale(lr, latent, np.zeros_like(pictures[i]))
        except BaseException as e:  # shown by the main thread
            faults.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults
    own.close()


def test_the_other_precisions_run_too(native, full_bundle, picture):
    path: Path = full_bundle("dlv_irn_a", 2)
    hr = picture(29, 30)
    for precision in ("mixed", "fp16"):
        with rescale.load(path, backend="onnxruntime", precision=precision) as net:
            own = native.load(path, precision=precision)
            assert np.array_equal(own.downscale(hr)[0], as_frame(net.downscale(hr)))
            own.close()
