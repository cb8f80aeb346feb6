"""Sources that 8 bits or one frame cannot hold: refused, unless rounding or the first frame is asked for."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale import png
from rescale.cli import main
from rescale.deep import ROUNDED
from rescale.errors import DamagedPictureError, InputError
from rescale.picture import open_picture

RNG = np.random.default_rng(5)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def deep_png(samples: np.ndarray, colour: int, interlaced: bool = False, key: bytes = b"") -> bytes:
    """A PNG with 16 bits a sample, whose rows take turns at no filter and the difference from the row above."""
    height, width, _ = samples.shape
    body = b""
    for x, y, dx, dy in png.ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = samples[y::dy, x::dx].astype(">u2")
        rows = np.frombuffer(part.tobytes(), np.uint8).reshape(part.shape[0], -1)
        for n, row in enumerate(rows if part.size else ()):
            above = rows[n - 1] if n % 2 else np.zeros_like(row)
            body += bytes([2 * (n % 2)]) + (row - above).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, interlaced)
    extra = chunk(b"tRNS", key) if key else b""
    return png.SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def deep_tiff(samples: np.ndarray, order: str, photometric: int | None = None) -> bytes:
    """An uncompressed TIFF with 16 bits a sample; a fourth channel is alpha."""
    height, width, channels = samples.shape
    shown = (2 if channels > 2 else 1) if photometric is None else photometric
    count = 10 if channels == 4 else 9
    end = 8 + 2 + 12 * count + 4  # of the tags; the channels' bits lie behind it, and then the samples
    bits = end if channels > 2 else 16
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1), (262, 3, 1, shown)]
    tags += [(273, 4, 1, end + 2 * channels), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, samples.size * 2)]
    tags += [(338, 3, 1, 2)] if channels == 4 else []
    rows = [struct.pack(order + ("HHIHxx" if tag[1:3] == (3, 1) else "HHII"), *tag) for tag in tags]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags)) + b"".join(rows) + bytes(4)
    return head + struct.pack(order + f"{channels}H", *[16] * channels) + samples.astype(order + "u2").tobytes()


def nearest(samples: np.ndarray) -> np.ndarray:
    return np.floor(samples.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)


def test_every_sample_becomes_the_nearest_one():
    assert np.array_equal(ROUNDED, nearest(np.arange(65536)))
    assert np.array_equal(ROUNDED[np.arange(256) * 257], np.arange(256)), "8 bits that were widened come back"


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_png_of_16_bits_is_rounded_if_asked(colour, channels, interlaced):
    samples = RNG.integers(0, 65536, (13, 17, channels), np.uint16)
    data = deep_png(samples, colour, interlaced)
    with pytest.raises(InputError, match=r"more than 8 bits a sample, .*; `down --to-8-bit` rounds them"):
        open_picture(data, "keep")
    found = open_picture(data, "keep", to_8_bit=True)
    want = nearest(samples)
    assert found.gray == (channels < 3)
    assert np.array_equal(found.pixels, np.repeat(want[:, :, :1], 3, 2) if found.gray else want[:, :, :3])
    assert (found.alpha is None) == (channels in (1, 3))
    assert found.alpha is None or np.array_equal(found.alpha, want[:, :, -1])
    if found.alpha is not None:
        with pytest.raises(InputError, match="real transparency"):
            open_picture(data, to_8_bit=True)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_a_transparent_colour_of_16_bits_is_compared_in_16_bits(colour, channels):
    samples = np.full((2, 2, channels), 5000, np.uint16)
    samples[0, 0] += 1
    found = open_picture(deep_png(samples, colour, key=struct.pack(f">{channels}H", *[5000] * channels)), "keep", to_8_bit=True)
    assert found.alpha.tolist() == [[255, 0], [0, 0]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_tiff_of_16_bits_is_rounded_if_asked(order, channels):
    samples = RNG.integers(0, 65536, (9, 11, channels), np.uint16)
    data = deep_tiff(samples, order)
    with pytest.raises(InputError, match="more than 8 bits"):
        open_picture(data, "keep")
    found = open_picture(data, "keep", to_8_bit=True)
    want = nearest(samples)
    assert np.array_equal(found.pixels, np.repeat(want, 3, 2) if channels == 1 else want[:, :, :3])
    assert found.alpha is None or np.array_equal(found.alpha, want[:, :, 3])
    assert (found.alpha is None) == (channels != 4)


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_compressed_tiff_of_16_bits_is_rounded_if_asked(order, compression):
    tifffile = pytest.importorskip("tifffile")
    samples, out = RNG.integers(0, 65536, (9, 11, 3), np.uint16), io.BytesIO()
    tifffile.imwrite(out, samples, byteorder=order, photometric="rgb", compression=compression, predictor=True)
    assert np.array_equal(open_picture(out.getvalue(), to_8_bit=True).pixels, nearest(samples))


def test_what_cannot_be_rounded_is_refused_all_the_same():
    tifffile = pytest.importorskip("tifffile")

    def tiff(samples, **options):
        out = io.BytesIO()
        tifffile.imwrite(out, samples, **options)
        return out.getvalue()

    gray = RNG.integers(0, 65536, (9, 11), np.uint16)
    planes = RNG.integers(0, 65536, (3, 9, 11), np.uint16)
    for data, message in (
        (deep_tiff(gray[:, :, None], "<", photometric=0), "16 bits a sample with white at 0"),
        (tiff(gray.astype(np.int16), photometric="minisblack"), "signed samples"),
        (tiff(gray.astype(np.uint32), photometric="minisblack"), "32 bits a sample"),
        (tiff(gray.astype(np.float32), photometric="minisblack"), "samples of floating point"),
        (tiff(planes, photometric="rgb", planarconfig="separate"), "stored as Pillow reads only 8 of them"),
        (b"P5\n2 2\n1000\n" + bytes(8), "samples that end elsewhere than at 65535"),
    ):
        with pytest.raises(InputError, match=message):
            open_picture(data, to_8_bit=True)
        with pytest.raises(InputError, match=r"more than 8 bits a sample, .*; convert it to 8 bits first$"):
            open_picture(data)


def test_rounding_is_no_advice_where_the_colours_are_refused_too():
    tifffile, out = pytest.importorskip("tifffile"), io.BytesIO()
    tifffile.imwrite(out, RNG.integers(0, 65536, (9, 11, 4), np.uint16), photometric="separated")
    for to_8_bit in (False, True):
        with pytest.raises(InputError, match="colour mode CMYK; convert it to RGB by its colour profile first"):
            open_picture(out.getvalue(), to_8_bit=to_8_bit)


def test_a_pnm_of_16_bits_is_rounded_if_asked():
    samples = RNG.integers(0, 65536, (3, 4, 3), np.uint16)
    found = open_picture(b"P6\n4 3\n65535\n" + samples.astype(">u2").tobytes(), to_8_bit=True)
    assert np.array_equal(found.pixels, nearest(samples))
    found = open_picture(b"P5\n4 3\n65535\n" + samples[:, :, 0].astype(">u2").tobytes(), to_8_bit=True)
    assert np.array_equal(found.pixels[:, :, 1], nearest(samples[:, :, 0]))


def test_a_damaged_deep_picture_is_refused_by_name():
    data = deep_png(RNG.integers(0, 65536, (64, 64, 3), np.uint16), 2)
    for end in range(60, len(data), 997):
        with pytest.raises(DamagedPictureError, match=r"^bytes: "):
            open_picture(data[:end], to_8_bit=True)


def test_an_ordinary_picture_is_the_same_with_both_options(picture):
    image = picture(9, 8)
    assert np.array_equal(open_picture(png.encode(image), to_8_bit=True, first_frame=True).pixels, image)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP", "AVIF", "MPO"])
def test_the_first_frame_is_taken_if_asked(kind, picture):
    Image.init()
    if kind not in Image.SAVE_ALL:
        pytest.skip(f"this Pillow writes no {kind}")
    frames = [Image.fromarray(picture(24, 24, seed=n)).quantize(60).convert("RGB") for n in range(3)]
    out, options = io.BytesIO(), {"lossless": True} if kind == "WEBP" else {"subsampling": "4:4:4", "quality": 100}
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], **({} if kind in ("TIFF", "GIF", "PNG", "MPO") else options))
    with pytest.raises(InputError, match=r"has several frames; extract the one .*, or `down --first-frame` takes the first"):
        open_picture(out.getvalue())
    found = open_picture(out.getvalue(), first_frame=True).pixels.astype(int)
    want = np.asarray(frames[0]).astype(int)
    assert np.abs(found - want).mean() <= (0 if kind in ("TIFF", "GIF", "PNG", "WEBP") else 12)
    assert np.abs(found - np.asarray(frames[1])).mean() > 20


def test_down_rounds_and_takes_the_first_frame_only_if_asked(here, error_of, capsys, picture):
    samples = RNG.integers(0, 65536, (20, 24, 3), np.uint16)
    with open("deep.png", "wb") as f:
        f.write(deep_png(samples, 2))
    first, second = (Image.fromarray(picture(20, 24, seed=n)) for n in range(2))
    first.save("pages.tif", save_all=True, append_images=[second])
    for name, option in (("deep.png", "--to-8-bit"), ("pages.tif", "--first-frame")):
        code, err = error_of(["down", name, "s.png", *here])
        assert (code, f"`down {option}`" in err) == (1, True)
        assert main(["down", name, "s.png", option, "--check", "--json", *here]) == 0
        made = capsys.readouterr().out
        assert main(["up", "s.png", "o.png", "--reference", name, "--json", *here]) == 0
        for out in (made, capsys.readouterr().out):
            assert '"psnr_y": ' in out
    with rescale.load(here[1]) as net:
        want = net.downscale(open_picture("deep.png", to_8_bit=True))
    assert main(["down", "deep.png", "s.png", "--to-8-bit", *here]) == 0
    assert np.array_equal(rescale.Small.open("s.png").rgb, want.rgb)
