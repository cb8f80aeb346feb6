"""What is refused before or while it is decoded, and how much memory reading takes: limits, truncated files, bombs."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

import rescale
from rescale import Small, png
from rescale.errors import InputError
from rescale.image import MAX_SIDE, check_rgb
from rescale.limits import MAX_PIXELS
from rescale.source import read_bytes


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_every_truncation_is_refused(picture, format):
    data = encoded(Image.fromarray(picture(40, 40)), format)
    for end in range(0, len(data) - 1, max(1, len(data) // 40)):
        try:
            found = rescale.read_picture(data[:end])
        except InputError:
            continue
        # A format may end in bytes that its pixels do not need.
        assert end > 0.9 * len(data), (end, len(data))
        assert np.array_equal(found, rescale.read_picture(data))


@pytest.mark.parametrize("format", ["JPEG", "TIFF", "BMP", "GIF", "PPM", "PNG", "WEBP", "AVIF", "JPEG2000"])
def test_no_half_picture_is_taken_where_the_program_lets_pillow_take_them(picture, format, monkeypatch):
    """Many programs set this once for all their pictures."""
    data = encoded(Image.fromarray(picture(40, 40)), format)
    whole = rescale.read_picture(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for half in (data[: len(data) // 2], data[: len(data) * 9 // 10]):
        with pytest.raises(InputError):
            rescale.read_picture(half)
    if format in ("PNG", "WEBP", "AVIF"):
        assert np.array_equal(rescale.read_picture(data), whole)
    else:
        with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES nobody can tell whether it is whole: set it to False, or"):
            rescale.read_picture(data)


def test_bombs_and_absurd_headers_are_bounded_before_decoding():
    def header(width: int, height: int) -> bytes:
        body = zlib.compress(b"\0" * 1000)
        ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", ihdr), (b"IDAT", body), (b"IEND", b"")]
        return png.assemble(png.Chunk(k, d, True) for k, d in chunks)

    with pytest.raises(InputError, match="100000x100000 is above the limit of 178956970 pixels; raise it with --max-pixels"):
        rescale.read_picture(header(100_000, 100_000))
    with pytest.raises(InputError, match="size 0x5"):
        rescale.read_picture(header(0, 5))
    webp = encoded(Image.new("RGB", (3000, 3000)), "WEBP")
    with pytest.raises(InputError, match="3000x3000 is above the limit of 1000000"):
        rescale.read_picture(webp, max_pixels=1_000_000)
    with pytest.raises(InputError, match="20000x20000 is above the limit of 178956970 pixels"):
        rescale.read_picture(encoded(Image.new("1", (20000, 20000)), "TIFF", compression="group4"))


def test_a_text_bomb_beside_the_pixels_does_not_matter(picture):
    image = picture(6, 6)
    bomb = (b"zTXt", b"Comment\0\0" + zlib.compress(b"A" * 100_000_000))
    assert np.array_equal(rescale.read_picture(png.insert(png.encode(image), [bomb])), image)


def test_too_much_metadata_is_refused_not_dropped(picture):
    data = png.insert(png.encode(picture(4, 4)), [(b"eXIf", bytes(9 << 20))])
    with pytest.raises(InputError, match="bytes of colour and EXIF metadata; at most"):
        rescale.open_picture(data)


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_small_file_takes_little_memory_and_a_slow_stream_is_read_to_its_end(tmp_path, picture):
    data = png.encode(picture(40, 40))
    (tmp_path / "x.png").write_bytes(data)
    out, into = os.pipe()
    os.set_blocking(out, False)

    def feed() -> None:
        with open(into, "wb", buffering=0) as target:
            for half in (data[:100], data[100:]):
                time.sleep(0.2)
                target.write(half)

    writer = threading.Thread(target=feed)
    tracemalloc.start()
    with open(tmp_path / "x.png", "rb") as file, open(out, "rb") as pipe:
        writer.start()
        for source in (tmp_path / "x.png", file, pipe):
            assert read_bytes(source)[0] == data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    writer.join()
    assert peak < 64 << 20


def test_beyond_the_longest_side(tmp_path):
    refusal = f"sides of 1 to {MAX_SIDE} pixels were expected, got {MAX_SIDE + 1}x1; cut a larger picture into parts"
    with pytest.raises(InputError, match=refusal):
        check_rgb(np.zeros((1, MAX_SIDE + 1, 3), np.uint8))
    (tmp_path / "wide.png").write_bytes(png.encode(np.zeros((1, MAX_SIDE + 1), np.uint8)))
    with pytest.raises(InputError, match=f"wide.png: {refusal}"):
        rescale.open_picture(tmp_path / "wide.png")


def test_what_is_no_source_is_refused_in_words(tmp_path, picture):
    path = tmp_path / "x.png"
    path.write_bytes(png.encode(picture(4, 4)))
    with open(path, "rb") as closed:
        pass
    with open(path) as text, open(tmp_path / "y", "wb") as written:
        for source, message in (
            (None, "a path, bytes or a binary stream was expected, got NoneType"),
            (5, "a path, bytes or a binary stream was expected, got int"),
            (text, "x.png: cannot read: it is a stream of text; open it as binary, with mode 'rb'"),
            (io.StringIO("abc"), "stream: cannot read: it is a stream of text"),
            (written, "y: cannot read: "),
            (closed, "x.png: cannot read: "),
        ):
            for read in (Small.open, rescale.open_picture):
                with pytest.raises(InputError, match=message):
                    read(source)


def test_an_animated_jpeg_xl_is_refused_before_its_frames_are_decoded():
    imagecodecs = pytest.importorskip("imagecodecs")
    from rescale import jxl

    still = np.zeros((48, 64, 3), np.uint8)
    data = bytes(imagecodecs.jpegxl_encode(still, lossless=True))
    assert jxl.picture_size(data, "x") == (64, 48)
    moving = bytes(imagecodecs.jpegxl_encode(np.zeros((50, 48, 64, 3), np.uint8), lossless=True))
    with pytest.raises(InputError, match="a preview or an animation"):
        jxl.picture_size(moving, "x")


def png_of(rows: bytes, width: int, height: int, depth: int, colour: int, interlaced: bool) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return png.assemble([png.Chunk(k, d, True) for k, d in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (8, 2), (8, 4), (8, 6)])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (9, 5), (17, 16)])
def test_a_png_whose_data_end_early_is_refused(width: int, height: int, depth: int, colour: int, interlaced: bool) -> None:
    """Pillow makes the missing rows black and says nothing. With every row there the same file is read."""
    header = png.Header(width, height, depth, colour, interlaced)
    rows = bytes(png._data_bytes(header, "x"))  # filter 0 and value 0 everywhere
    whole = png_of(rows, width, height, depth, colour, interlaced)
    assert np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")).shape == (height, width, 3)
    assert rescale.open_picture(whole, alpha="keep").pixels.shape[:2] == (height, width)
    for short in (rows[:-1], b""):
        with pytest.raises(InputError, match=r"truncated or damaged picture: its data end before its last row"):
            rescale.open_picture(png_of(short, width, height, depth, colour, interlaced), alpha="keep")


def test_the_rows_of_one_long_chunk_are_counted_without_copies_of_it() -> None:
    header = png.Header(4096, 4096, 8, 0, False)
    chunk = png.Chunk(b"IDAT", zlib.compress(bytes(4097 * 4096), 0), True)
    tracemalloc.start()
    png.require_rows([chunk], header, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * png.PIECE


def test_a_png_whose_data_are_no_deflate_stream_is_refused() -> None:
    whole = png_of(bytes(10), 9, 1, 8, 0, False)
    chunks = [c if c.kind != b"IDAT" else png.Chunk(c.kind, b"\x78\x9c" + bytes(20), True) for c in png.read_chunks(whole, "x")]
    with pytest.raises(InputError, match="truncated or damaged picture"):
        rescale.read_picture(png.assemble(chunks))


def test_the_limit_on_pixels_is_the_callers(picture, monkeypatch) -> None:
    """Pillow has a limit of its own, for the whole process, which stays as it is."""
    pixels = picture(60, 80)
    image = Image.fromarray(pixels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for kind in ("PNG", "BMP", "PPM"):
        data = encoded(image, kind)
        with pytest.raises(InputError, match="80x60 is above the limit of 4799 pixels; raise it with --max-pixels"):
            rescale.open_picture(data, max_pixels=4799)
        for limit in (4800, MAX_PIXELS + 1):
            np.testing.assert_array_equal(rescale.open_picture(data, max_pixels=limit).pixels, pixels)
    assert rescale.open_picture(encoded(image, "JPEG"), max_pixels=MAX_PIXELS + 1).size == (80, 60)
    for kind in ("WEBP", "TIFF"):
        with pytest.raises(InputError, match="in a format that is not read beyond; convert it to PNG"):
            rescale.open_picture(encoded(image, kind), max_pixels=MAX_PIXELS + 1)
    with pytest.raises(InputError, match="not a picture that can be read"):
        rescale.open_picture(b"nothing known" * 9, max_pixels=MAX_PIXELS + 1)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_reading_in_threads_leaves_the_filters_of_warnings_alone(picture) -> None:
    data, before = encoded(Image.fromarray(picture(8, 8)), "PNG"), list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rescale.open_picture, [data] * 400))
    assert warnings.filters == before
