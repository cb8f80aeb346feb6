"""Pictures in the wild: each kind is handled exactly or refused with the way out."""

from __future__ import annotations

import importlib.util
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale import Picture, Small, State, colour, jxl, png, riff
from rescale.decode import decode_pixels
from rescale.errors import InputError, OutputError
from rescale.picture import open_picture

jxl_missing = importlib.util.find_spec("imagecodecs") is None
ICC = zlib.decompress(zlib.compress(b"\0" * 40 + b"acsp" + bytes(range(200)) * 3))
EXIF = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # orientation 6
CHUNKS = (
    (b"iCCP", b"Display P3\0\0" + zlib.compress(ICC)),
    (b"cICP", bytes([12, 13, 0, 1])),
    (b"gAMA", struct.pack(">I", 45455)),
    (b"cHRM", struct.pack(">8I", *range(31270, 31278))),
    (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
    (b"eXIf", EXIF),
)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def there_and_back(path, picture: Picture, container: str, **options) -> Picture:
    with rescale.load(path) as net:
        small = Small.from_bytes(net.downscale(picture).to_bytes(container, **options))
        return net.restore(small)


@pytest.mark.parametrize("container", ["png", "webp"])
def test_colour_and_origin_chunks_come_back_byte_for_byte(bundle, picture, container):
    source = rescale.open_picture(png.insert(png.encode(picture(19, 23)), [*CHUNKS, (b"tEXt", b"Author\0me")]))
    assert source.colour == CHUNKS
    again = there_and_back(bundle("irn", 2), source, container)
    assert rescale.open_picture(again.to_bytes()).colour == CHUNKS
    chunks = {c.kind: c.data for c in png.read_chunks(again.to_bytes(), "x")}
    assert all(chunks[kind] == data for kind, data in CHUNKS)


def test_lr_shows_the_same_colours_and_orientation(bundle, picture):
    source = rescale.open_picture(png.insert(png.encode(picture(8, 9)), CHUNKS))
    with rescale.load(bundle("irn", 2)) as net:
        small = net.downscale(source)
    lr_png, lr_webp = Image.open(io.BytesIO(small.to_bytes())), Image.open(io.BytesIO(small.to_bytes("webp")))
    for image in (lr_png, lr_webp):
        assert image.info["icc_profile"] == ICC
        assert image.getexif()[274] == 6


@pytest.mark.parametrize("container", ["webp", pytest.param("jxl", marks=pytest.mark.skipif(jxl_missing, reason="no imagecodecs"))])
def test_a_changed_lr_keeps_what_its_container_shows(bundle, picture, container):
    source = rescale.open_picture(png.insert(png.encode(picture(8, 9)), CHUNKS))
    with rescale.load(bundle("irn", 2)) as net:
        data = net.downscale(source).to_bytes(container)
        pixels = decode_pixels(data, "x") ^ 1
        if container == "webp":
            kept = {k: d for k, d in riff.read_chunks(data, "x") if k not in (b"VP8X", b"VP8L")}
            changed = riff.insert(riff.encode(pixels), (pixels.shape[1], pixels.shape[0]), False, kept)
        else:
            changed = jxl.encode(pixels, dict(jxl.read_boxes(data, "x")[3:]))
        small = Small.from_bytes(changed)
        assert small.state is State.CHANGED
        for found in (small.without_auxiliary(), net.restore(small, strict=False)):
            assert colour.exif(found.colour) == EXIF
            assert colour.icc_profile(found.colour) == (ICC if container == "webp" else None)


def test_icc_exif_and_density_of_a_jpeg_are_carried(bundle, picture):
    data = encoded(
        Image.fromarray(picture(16, 16)), "JPEG", icc_profile=ICC, exif=b"Exif\0\0" + EXIF, dpi=(72, 72), progressive=True
    )
    source = rescale.open_picture(data)
    assert colour.icc_profile(source.colour) == ICC
    assert colour.exif(source.colour) == EXIF
    assert dict(source.colour)[b"pHYs"] == struct.pack(">IIB", 2835, 2835, 1)
    again = there_and_back(bundle("irn", 2), source, "png")
    assert again.colour == source.colour
    for suffix in (".png", ".webp"):
        image = Image.open(io.BytesIO(again.to_bytes(suffix)))
        assert image.info["icc_profile"] == ICC
        assert image.getexif()[274] == 6


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_comes_back_gray(bundle, picture, mode):
    image = Image.fromarray(picture(15, 12)).convert(mode)
    source = rescale.open_picture(encoded(image, "PNG"))
    assert source.gray
    assert np.array_equal(source.pixels[:, :, 0], np.array(image.convert("L")))
    again = there_and_back(bundle("irn", 2), source, "png")
    assert Image.open(io.BytesIO(again.to_bytes())).mode == "L"
    assert np.array_equal(Picture(source.pixels, gray=True).planes(), np.array(image.convert("L")))


def test_gray_is_the_mean_rounded_without_floats():
    values = np.arange(256)
    pixels = np.stack(np.meshgrid(values, values[::5], values[::5], indexing="ij"), axis=-1).reshape(256, -1, 3).astype(np.uint8)
    gray = Picture(pixels, gray=True)
    assert np.array_equal(gray.planes(), np.rint(pixels.mean(2)).astype(np.uint8))
    tracemalloc.start()
    try:
        gray.planes()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 7 * gray.size[0] * gray.size[1]  # in floats at least 8


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_lossless_inputs_are_read_exactly(picture, format):
    options = {"lossless": True} if format == "WEBP" else {}
    image = picture(11, 14)
    assert np.array_equal(rescale.read_picture(encoded(Image.fromarray(image), format, **options)), image)


def test_palette_is_read_exactly_and_interlacing_does_not_matter(picture):
    image = Image.fromarray(picture(33, 20)).quantize(40)
    want = np.array(image.convert("RGB"))
    assert np.array_equal(rescale.read_picture(encoded(image, "PNG")), want)
    assert np.array_equal(rescale.read_picture(encoded(image, "GIF", interlace=1)), want)


def adam7(image: np.ndarray) -> bytes:
    """An interlaced PNG, which Pillow reads and does not write."""
    rows = []
    for y0, x0, dy, dx in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)):
        part = image[y0::dy, x0::dx]
        rows += [b"\0" + row.tobytes() for row in part if part.shape[1]]
    ihdr = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 1)
    chunks = [(b"IHDR", ihdr), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return png.assemble(png.Chunk(k, d, True) for k, d in chunks)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 21)])
def test_interlaced_png_is_read_exactly(picture, size):
    assert np.array_equal(rescale.read_picture(adam7(picture(*size))), picture(*size))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("layout", ["alpha", "chunk", "strip"])
def test_transparency_is_refused_or_kept_bit_for_bit(bundle, picture, mode, layout):
    rng = np.random.default_rng(1)
    plane = rng.integers(0, 256, (17, 21), np.uint8)
    image = Image.fromarray(picture(17, 21)).convert(mode)
    image.putalpha(Image.fromarray(plane))
    data = encoded(image, "PNG")
    with pytest.raises(InputError, match=r"has real transparency; keep it beside the LR with --alpha keep"):
        rescale.open_picture(data)
    kept = rescale.open_picture(data, alpha="keep")
    again = there_and_back(bundle("dlv_irn_a", 2), kept, "png", layout=layout)
    assert np.array_equal(again.alpha, plane)
    back = Image.open(io.BytesIO(again.to_bytes()))
    assert back.mode == mode
    assert np.array_equal(np.array(back)[:, :, -1], plane)
    assert np.array_equal(np.array(Image.open(io.BytesIO(again.to_bytes(".webp"))).convert("RGBA"))[:, :, 3], plane)


def test_transparent_palette_counts_as_transparency_and_opaque_alpha_does_not(picture):
    image = Image.fromarray(picture(9, 9)).quantize(8)
    with pytest.raises(InputError, match="real transparency"):
        rescale.open_picture(encoded(image, "PNG", transparency=0))
    opaque = Image.fromarray(picture(9, 9)).convert("RGBA")
    assert rescale.open_picture(encoded(opaque, "PNG")).alpha is None
    with pytest.raises(InputError, match="alpha rule 'drop': choose one of refuse, keep"):
        rescale.open_picture(encoded(opaque, "PNG"), alpha="drop")


def deep_png(channels: int) -> bytes:
    """A 16-bit PNG, which Pillow itself would reduce in silence."""
    kind = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + bytes(range(2 * 4 * channels)) for _ in range(4))
    return png.assemble(
        [
            png.Chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0), True),
            png.Chunk(b"IDAT", zlib.compress(rows), True),
            png.Chunk(b"IEND", b"", True),
        ]
    )


def deep_tiff() -> bytes:
    """A 16-bit RGB TIFF, which Pillow reduces as well: little-endian, one uncompressed strip of 2x2."""
    entries = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24), (284, 3, 1, 1),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *e) for e in entries)
    ifd = struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)
    return (b"II*\0" + struct.pack("<I", 8) + ifd).ljust(134, b"\0") + struct.pack("<3H", 16, 16, 16) + bytes(24)


def test_what_eight_bits_of_rgb_cannot_hold_is_refused_with_the_way_out(picture):
    rgb = Image.fromarray(picture(8, 8))
    other = Image.fromarray(picture(8, 8, seed=1))
    cases = [
        (deep_png(1), "more than 8 bits a sample"),
        (deep_png(3), "more than 8 bits a sample"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "more than 8 bits a sample"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "TIFF"), "more than 8 bits a sample"),
        (b"P6\n2 2\n65535\n" + bytes(24), "more than 8 bits a sample"),
        (b"P5 # a\n2 2 100\n" + bytes(4), "samples from 0 to 100, not to 255"),
        (deep_tiff(), "more than 8 bits a sample"),
        (b"\xff\x0a" + bytes(60), "JPEG XL as a source would lose its colour profile"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "not a picture that can be read"),
        (encoded(rgb.convert("CMYK"), "JPEG"), "colour mode CMYK; convert it to RGB by its colour profile first"),
        (encoded(rgb.convert("LAB"), "TIFF"), "colour mode LAB; convert it to RGB first"),
        (encoded(rgb.convert("YCbCr"), "TIFF"), "colour mode YCbCr; convert it to RGB first"),
        (encoded(rgb, "PNG", save_all=True, append_images=[other]), "has several frames; extract the one you want"),
        (encoded(rgb, "GIF", save_all=True, append_images=[other]), "has several frames"),
        (encoded(rgb, "WEBP", save_all=True, append_images=[other]), "has several frames"),
        (encoded(rgb, "TIFF", save_all=True, append_images=[other]), "has several frames"),
    ]
    for data, message in cases:
        with pytest.raises(InputError, match=message):
            rescale.open_picture(data)


def test_ten_bit_avif_is_refused_by_its_header():
    box = b"\0\0\0\x0cav1C\x81\x08\x4c\0"
    from rescale.deep import avif_depth

    assert avif_depth(b"\0\0\0\x1cftypavif" + bytes(40) + box) == 10
    assert avif_depth(b"\0\0\0\x1cftypavif" + bytes(40) + box.replace(b"\x4c", b"\x0c")) == 8


def test_a_damaged_profile_is_carried_but_never_applied():
    assert colour.icc_profile(((b"iCCP", b"x\0\0junk"),)) is None
    assert colour.icc_profile(((b"iCCP", b"x\0\0" + zlib.compress(bytes(20 << 20))),)) is None
    assert colour.icc_profile(()) is None
    for bad in (b"iCCP", b"zzzz\0\0\0\0", b"iCCP\xff\0\0\0a", colour.pack(CHUNKS)[:-1]):
        with pytest.raises(InputError, match="damaged metadata section"):
            colour.unpack(bad, "x")
    assert colour.unpack(colour.pack(CHUNKS), "x") == CHUNKS


def test_paths_that_cannot_be_read_or_written(tmp_path, picture):
    with pytest.raises(InputError, match="no such file"):
        rescale.open_picture(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot read: Is a directory"):
        rescale.open_picture(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        rescale.open_picture("a\0b.png")
    with pytest.raises(OutputError, match="cannot write: No such file or directory"):
        rescale.write_picture(tmp_path / "no" / "o.png", picture(2, 2))
    with pytest.raises(InputError, match=r"restored pictures are written as .png or .webp, not as .jpg"):
        rescale.write_picture(tmp_path / "o.jpg", picture(2, 2))


def test_names_with_spaces_and_other_scripts(tmp_path, bundle, picture):
    folder = tmp_path / "фото 写真 é"
    folder.mkdir()
    rescale.write_picture(folder / "ä ß.png", picture(5, 6))
    with rescale.load(bundle("irn_a", 4)) as net:
        net.downscale(rescale.open_picture(folder / "ä ß.png")).save(folder / "小.webp")
        assert net.upscale(Small.open(folder / "小.webp")).shape == (5, 6, 3)


def test_gray_is_the_mean_in_every_container(picture):
    gray = Picture(picture(6, 7), gray=True)
    want = np.rint(gray.pixels.mean(2)).astype(np.uint8)
    for suffix in (".png", ".webp"):
        found = np.array(Image.open(io.BytesIO(gray.to_bytes(suffix))).convert("RGB"))
        assert np.array_equal(found, np.dstack([want] * 3))


def test_a_palette_with_more_transparency_than_colours_is_damage(picture) -> None:
    chunks = png.read_chunks(encoded(Image.fromarray(picture(8, 9)).quantize(16), "PNG"), "x")
    at = next(i for i, c in enumerate(chunks) if c.kind == b"IDAT")
    data = png.assemble([*chunks[:at], png.Chunk(b"tRNS", b"\x80" * 300, True), *chunks[at:]])
    for read in (open_picture, Small.from_bytes):
        with pytest.raises(InputError, match="damaged PNG: tRNS of 300 bytes"):
            read(data)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_level_of_a_gray_png_is_found_at_every_depth(depth: int) -> None:
    """tRNS names a level in the file's own depth."""
    most = (1 << depth) - 1
    row = b"\0" + bytes([0b00011011] * depth)  # 8 samples
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 2, depth, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", level := 0b00011011 >> (8 - depth) & most or 1)),
        (b"IDAT", zlib.compress(row * 2)),
        (b"IEND", b""),
    ]
    data = png.SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    bits = "".join(f"{byte:08b}" for byte in row[1:])
    samples = [int(bits[i : i + depth], 2) for i in range(0, 8 * depth, depth)]
    alpha = rescale.open_picture(data, alpha="keep").alpha
    wanted = [0 if sample == level else 255 for sample in samples]
    if 0 in wanted:
        assert alpha is not None
        assert alpha[0].tolist() == wanted
        with pytest.raises(InputError, match="real transparency"):
            rescale.open_picture(data)
    else:
        assert alpha is None


def test_a_gray_profile_is_shown_by_gray_files_only(bundle, picture) -> None:
    gray = ICC[:16] + b"GRAY" + ICC[20:]
    chunk = (b"iCCP", b"ICC profile\0\0" + zlib.compress(gray))
    density = (b"pHYs", struct.pack(">IIB", 3000, 3000, 1))
    source = rescale.open_picture(png.insert(png.encode(picture(16, 16)[:, :, 0]), [chunk, density]))
    with rescale.load(bundle("irn", 2)) as net:
        small = net.downscale(source)
        for container in ("png", "webp"):
            data = small.to_bytes(container)
            assert "icc_profile" not in Image.open(io.BytesIO(data)).info
            again = net.restore(Small.from_bytes(data))
            assert again.colour == (chunk, density)
    assert small.without_auxiliary().colour == (density,)
    assert Image.open(io.BytesIO(again.to_bytes())).info["icc_profile"] == gray
    with pytest.raises(InputError, match=r"WebP holds neither; write it as .png"):
        again.to_bytes(".webp")


def test_chunks_in_a_list_are_those_in_a_tuple(bundle, picture) -> None:
    source = Picture(picture(8, 9), colour=[list(chunk) for chunk in CHUNKS])
    assert source.colour == CHUNKS
    with rescale.load(bundle("irn", 2)) as net:
        assert Small.from_bytes(net.downscale(source).to_bytes()).colour == CHUNKS


@pytest.mark.parametrize(
    "chunks", [((b"tEXt", b"a\0b"),), [("gAMA", b"\0\0\xb1\x8f")], [(b"gAMA", "1")], [b"gAMA"], 5, ((b"gAMA",),)]
)
def test_chunks_that_are_not_carried_are_refused_at_once(picture, chunks) -> None:
    with pytest.raises(
        InputError, match=r"colour: pairs of a chunk's kind and its body in bytes, kinds b'iCCP'.* are carried, got"
    ):
        Picture(picture(4, 5), colour=chunks)


def test_arrays_that_no_file_could_hold_are_refused_at_once(picture) -> None:
    image = picture(4, 5)
    for alpha in (image[:, :, 0] / 255.0, image[:2, :, 0], image, [[1]]):
        with pytest.raises(InputError, match=r"alpha: a uint8 array of shape \(4, 5\) was expected, got"):
            Picture(image, alpha=alpha)
    with pytest.raises(InputError, match=r"a uint8 array of shape \(H, W, 3\) was expected, got float64"):
        Picture(image / 255.0)


@pytest.mark.parametrize("container", ["png", "webp"])
def test_text_is_left_behind(picture, container) -> None:
    """docs/file-format.md says what is carried; this is not."""
    left = [(b"tEXt", b"Author\0me"), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"), (b"tIME", bytes(7))]
    found = rescale.open_picture(png.insert(png.encode(picture(4, 5)), left))
    assert found.colour == ()
    jpeg = encoded(Image.fromarray(picture(8, 8)), "JPEG", comment=b"me", xmp=b"<x/>")
    assert rescale.open_picture(jpeg).colour == ()
    for data in (png.insert(png.encode(picture(4, 5)), left), jpeg):
        kept = rescale.open_picture(data).to_bytes(f".{container}")
        assert b"me" not in kept
        assert b"<x/>" not in kept


def test_a_tiff_is_turned_upright(picture) -> None:
    image = Image.fromarray(picture(6, 9))
    turned = image.getexif()
    turned[274] = 6
    found = rescale.open_picture(encoded(image, "TIFF", exif=turned))
    np.testing.assert_array_equal(found.pixels, np.rot90(picture(6, 9), -1))
    assert found.colour == ()
