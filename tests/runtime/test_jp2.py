"""JPEG 2000 as a source: exact, with its profile, or refused in words."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

import rescale
from rescale import colour, jp2
from rescale.cli import main
from rescale.errors import DamagedPictureError, InputError, RescaleError

Pixels = Callable[[int, int], np.ndarray]

RGB_PROFILE = b"\0" * 16 + b"RGB " + bytes(16) + b"acsp" + bytes(88)
GRAY_PROFILE = b"\0" * 16 + b"GRAY" + bytes(16) + b"acsp" + bytes(88)


def encoded(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG2000", irreversible=False, **options)
    return buffer.getvalue()


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def channels(*entries: tuple[int, int, int]) -> bytes:
    return box(b"cdef", struct.pack(">H", len(entries)), *(struct.pack(">3H", *e) for e in entries))


def colours(method: int, body: bytes) -> bytes:
    return box(b"colr", bytes([method, 0, 0]), body)


SRGB, GRAY = colours(1, struct.pack(">I", 16)), colours(1, struct.pack(">I", 17))


def file(codestream: bytes, *described: bytes, ihdr: tuple[int, int, int] | None = None, behind: bytes = b"") -> bytes:
    """A JP2 file around a codestream, its header as given."""
    right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
    (count,) = struct.unpack_from(">H", codestream, 40)
    size = struct.pack(">IIH", *(ihdr or (bottom - top, right - left, count))) + b"\7\7\0\0"
    header = box(b"jp2h", box(b"ihdr", size), *described)
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + header + box(b"jp2c", codestream) + behind


def stream(image: np.ndarray) -> bytes:
    return encoded(image, no_jp2=True)


def with_component(codestream: bytes, number: int, depth: int = 7, x: int = 1, y: int = 1) -> bytes:
    at = 42 + 3 * number
    return codestream[:at] + bytes([depth, x, y]) + codestream[at + 3 :]


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"tile_size": (16, 16)}, {"num_resolutions": 1}])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 45), (64, 48)])
def test_every_pixel_is_read(picture: Pixels, height: int, width: int, options: dict[str, object]) -> None:
    image = picture(height, width)
    found = rescale.open_picture(encoded(image, **options))
    assert np.array_equal(found.pixels, image)
    assert (found.gray, found.alpha, found.colour) == (False, None, ())
    gray = rescale.open_picture(encoded(image[:, :, 0], **options))
    assert gray.gray
    assert np.array_equal(gray.planes(), image[:, :, 0])


def test_transparency_is_kept_or_refused(picture: Pixels) -> None:
    for image in (picture(16, 24), picture(16, 24)[:, :, :1]):
        alpha = picture(16, 24)[:, :, 2]
        data = encoded(np.dstack([image, alpha]))
        with pytest.raises(InputError, match="real transparency"):
            rescale.open_picture(data)
        kept = rescale.open_picture(data, alpha="keep")
        assert np.array_equal(kept.alpha, alpha)
        assert np.array_equal(kept.planes()[:, :, :-1], image)


def test_profile_exif_and_density_come_back(bundle, picture: Pixels) -> None:
    image = picture(22, 30)
    exif = b"MM\0*\0\0\0\x08" + bytes(6)
    density = box(b"res ", box(b"resc", struct.pack(">4H2b", 3000, 254, 6000, 254, 3, 3)))
    data = file(stream(image), colours(2, RGB_PROFILE), density, behind=box(b"uuid", b"JpgTiffExif->JP2", exif))
    found = rescale.open_picture(data)
    assert colour.icc_profile(found.colour) == RGB_PROFILE
    assert colour.exif(found.colour) == exif
    assert dict(found.colour)[b"pHYs"] == struct.pack(">IIB", 23622, 11811, 1)  # 600 and 300 an inch
    with rescale.load(bundle("irn", 2)) as net:
        back = net.restore(rescale.Small.from_bytes(net.downscale(found).to_bytes()))
    assert back.colour == found.colour
    gray = rescale.open_picture(file(stream(image[:, :, 0]), colours(3, GRAY_PROFILE)))
    assert colour.icc_profile(gray.colour) == GRAY_PROFILE


@pytest.mark.parametrize(
    "body", [b"", bytes(9), bytes(10), struct.pack(">4H2b", 1, 0, 1, 0, 0, 0), struct.pack(">4H2b", 65535, 1, 65535, 1, 127, 127)]
)
def test_a_density_that_says_nothing_is_none(body: bytes) -> None:
    header = jp2.read_header(file(FLAT, SRGB, box(b"res ", box(b"resc", body))), "x")
    assert colour.from_info(header.info, "x") == ()


def test_16_bits_of_gray_are_rounded_where_it_is_asked_for(picture: Pixels) -> None:
    image = picture(16, 24)[:, :, 0].astype(np.uint16) * 257 + 100
    with pytest.raises(InputError, match="more than 8 bits a sample"):
        rescale.open_picture(encoded(image))
    rounded = rescale.open_picture(encoded(image), to_8_bit=True)
    assert np.array_equal(rounded.planes(), np.rint(image / 257).astype(np.uint8))


DEEP = with_component(with_component(with_component(stream(np.zeros((8, 8, 3), np.uint8)), 0, 15), 1, 15), 2, 15)
FLAT = stream(np.full((8, 8, 3), 90, np.uint8))
PLAIN = stream(np.full((8, 8), 90, np.uint8))
FOUR = stream(np.full((8, 8, 4), 90, np.uint8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file(DEEP, SRGB), "more than 8 bits a sample"),
        (DEEP, "more than 8 bits a sample"),
        (with_component(FLAT, 1, 9), "with 8, 10 bits a sample"),
        (with_component(PLAIN, 0, 0), "with 1 bits a sample"),
        (with_component(FLAT, 2, 0x87), "signed samples"),
        (with_component(FLAT, 1, 7, 2, 2), "components are of different sizes"),
        (with_component(FLAT, 1, 7, 0, 1), "components are of different sizes"),
        (FLAT[:40] + b"\0\5" + FLAT[42:], "5 components"),
        (FOUR, "4 components that does not say what the last one is"),
        (file(FOUR, SRGB), "4 components that does not say what the last one is"),
        (file(FOUR, SRGB, channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 2, 0))), "multiplied by its alpha"),
        (file(FOUR, SRGB, channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 0, 4))), "not gray or RGB, or in another order"),
        (file(FLAT, SRGB, channels((0, 0, 3), (1, 0, 2), (2, 0, 1))), "not gray or RGB, or in another order"),
        (file(FLAT, SRGB, channels((0, 0, 1), (1, 0, 2))), "not gray or RGB, or in another order"),
        (file(FLAT, SRGB, channels(*[(0, 0, 1)] * 5)), "not gray or RGB, or in another order"),
        (file(FOUR, colours(1, struct.pack(">I", 12)), channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 1, 0))), "in CMYK"),
        (file(FLAT, colours(1, struct.pack(">I", 18))), "in YCbCr"),
        (file(FLAT, GRAY), "in colour space 17"),
        (file(PLAIN, SRGB), "in colour space 16"),
        (file(FLAT, colours(2, GRAY_PROFILE)), "in colour space b'GRAY'"),
        (file(FLAT, colours(2, b"short")), "in colour space b''"),
        (file(FLAT, colours(4, b"\1")), "a colour space that it does not name"),
        (file(FLAT), "a colour space that it does not name"),
        (file(PLAIN, SRGB, box(b"pclr", bytes(20))), "with a palette"),
        (file(FLAT, SRGB, behind=box(b"jp2c", FLAT)), "holds 2 pictures"),
    ],
)
def test_what_is_not_exact_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        rescale.open_picture(data)
    assert not isinstance(error.value, DamagedPictureError)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file(FLAT, SRGB, ihdr=(8, 9, 3)), "its header is of another picture than 8x8"),
        (file(FLAT, SRGB, ihdr=(8, 8, 1)), "its header is of another picture than 8x8"),
        (file(FLAT, SRGB)[:-1], "damaged JPEG 2000 at its box b'jp2c'"),
        (file(FLAT, SRGB, behind=box(b"jp2h")), "2 headers and 1 pictures"),
        (file(FLAT, SRGB).replace(b"jp2c\xff\x4f", b"jp2c\xff\x4e"), "its picture is no codestream"),
        (file(FLAT, SRGB, behind=box(b"free") * jp2.MAX_BOXES), "damaged JPEG 2000 at its box b'free'"),
        (FLAT[:8] + struct.pack(">4I", 8, 8, 8, 0) + FLAT[24:], "a picture without pixels"),
        (FLAT[:45] + jp2.END, "truncated or damaged JPEG 2000 header"),
    ],
)
def test_what_is_damaged_is_said_to_be(data: bytes, message: str) -> None:
    with pytest.raises(DamagedPictureError, match=message):
        rescale.open_picture(data)
    with pytest.raises(DamagedPictureError):
        jp2.read_header(data, "x")


def test_every_truncation_is_refused(picture: Pixels) -> None:
    image = picture(24, 24)
    tiles = encoded(image, no_jp2=True, tile_size=(12, 12))
    for whole in (encoded(image), stream(image), tiles):
        for length in range(len(whole)):
            with pytest.raises(InputError):
                rescale.open_picture(whole[:length])
    second = [at for at in range(len(tiles)) if tiles.startswith(b"\xff\x90", at)][1]
    for data in (tiles[:second], file(tiles[:second], SRGB)):
        with pytest.raises(DamagedPictureError, match="its picture has no end"):
            rescale.open_picture(data)
    assert np.array_equal(rescale.read_picture(tiles + bytes(9)), image)


def test_no_fault_of_a_header_is_a_crash() -> None:
    data = file(
        FOUR, colours(2, RGB_PROFILE), channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 1, 0)), box(b"res ", box(b"resc", bytes(10)))
    )
    header = data[: data.index(b"jp2c") + 60]
    for at in range(len(header)):
        for value in (0, 1, 0x7F, 0xFF):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                found = jp2.read_header(changed, "x")
            except RescaleError:
                continue
            assert found.width * found.height > 0


def test_a_pillow_without_the_decoder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(InputError, match="the Pillow that is installed has no decoder for JPEG 2000"):
        rescale.open_picture(FLAT)


def test_bombs_are_refused_before_they_are_decoded() -> None:
    wide = FLAT[:8] + struct.pack(">4I", 60000, 60000, 0, 0) + FLAT[24:]
    for data in (wide, file(wide, SRGB)):
        with pytest.raises(InputError, match="60000x60000"):
            rescale.open_picture(data)


def test_files_of_a_folder_are_read(bundle, picture: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    image = picture(20, 20)
    for name in ("a.jp2", "b.J2K"):
        (source / name).write_bytes(encoded(image, no_jp2=name.startswith("b")))
    assert main(["down", str(source), str(tmp_path / "out"), "-b", str(bundle("irn", 2))]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert capsys.readouterr().err == ""
