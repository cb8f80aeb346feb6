"""The colour space that an AVIF names without an ICC profile."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale import avif, colour
from rescale.cli import main
from rescale.errors import InputError

P3 = bytes([12, 13, 0, 1])
ICC = b"\0" * 36 + b"acsp" + bytes(88)


def encoded(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "AVIF", **options)
    return buffer.getvalue()


def named(data: bytes, primaries: int, transfer: int) -> bytes:
    """The same file, its pixels said to be in another colour space."""
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def nclx(primaries: int, transfer: int) -> bytes:
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, 6, 0x80))


def two_pictures(wide: bool) -> bytes:
    """Header of a file whose main picture is the second one described; with `wide`, by the larger numbers of long files."""
    item, place, first = (">I", ">H", 0x8000) if wide else (">H", ">B", 0x80)
    version = bytes([wide, 0, 0, wide])

    def owns(number: int, *properties: int) -> bytes:
        return struct.pack(item, number) + bytes([len(properties)]) + b"".join(struct.pack(place, p) for p in properties)

    table = box(b"ipma", version, struct.pack(">I", 2), owns(1, 1), owns(2, first | 2, 3))
    properties = box(b"ipco", nclx(9, 16), box(b"ispe", bytes(12)), nclx(12, 13))
    main = box(b"pitm", version, struct.pack(item, 2))
    return box(b"ftyp", b"avif") + box(b"meta", bytes(4), main, box(b"iprp", properties, table))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_colour_space_without_a_profile_is_carried(picture, channels):
    image = np.dstack([picture(16, 16), np.full((16, 16), 255, np.uint8)])[:, :, :channels]
    data = encoded(image)
    assert rescale.open_picture(data).colour == ()
    again = rescale.open_picture(named(data, 12, 13))
    assert again.colour == ((b"cICP", P3),)
    assert np.array_equal(again.pixels, rescale.open_picture(data).pixels)
    assert rescale.open_picture(again.to_bytes()).colour == again.colour


def test_srgb_and_the_unsaid_are_not(picture):
    data = encoded(picture(16, 16))
    for primaries, transfer in ((1, 13), (2, 2), (1, 2), (2, 13), (300, 13)):
        assert rescale.open_picture(named(data, primaries, transfer)).colour == ()


def test_a_profile_goes_before(picture):
    found = rescale.open_picture(encoded(picture(16, 16), icc_profile=ICC)).colour
    assert [kind for kind, _ in found] == [b"iCCP"]
    assert colour.icc_profile(found) == ICC
    assert [kind for kind, _ in colour.from_info({"icc_profile": ICC, "cicp": P3}, "x")] == [b"iCCP"]


def test_no_picture_loses_it_in_silence(picture):
    def webp(*chunks: tuple[bytes, bytes]) -> bytes:
        return rescale.Picture(picture(8, 8), colour=chunks).to_bytes(".webp")

    with pytest.raises(InputError, match=r"cICP, which WebP has no place for; write it as \.png"):
        webp((b"cICP", P3))
    profile = colour.from_info({"icc_profile": ICC}, "x")
    for chunks in (((b"cICP", bytes([1, 13, 0, 1])),), (*profile, (b"cICP", P3))):
        assert rescale.open_picture(webp(*chunks)).colour == tuple(c for c in chunks if c in profile)


GAMMA, CHROMA = 45455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def numbers(kind: bytes, *values: int) -> tuple[bytes, bytes]:
    return kind, struct.pack(f">{len(values)}I", *values)


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ((numbers(b"gAMA", 100000),), "gAMA"),
        ((numbers(b"gAMA", GAMMA), numbers(b"cHRM", *CHROMA[:2], 68000, *CHROMA[3:])), "cHRM"),
        ((numbers(b"gAMA", GAMMA), numbers(b"cHRM", *CHROMA)), ""),
        ((numbers(b"gAMA", 45000), numbers(b"cHRM", 31269, *CHROMA[1:])), ""),
        ((numbers(b"gAMA", 100000), (b"sRGB", b"\0")), ""),
        ((numbers(b"gAMA", 100000), (b"cICP", bytes([1, 13, 0, 1]))), ""),
        ((numbers(b"gAMA", 0), (b"cHRM", b"short")), ""),
    ],
)
def test_what_gamma_and_chromaticities_say_is_not_lost_in_silence(picture, chunks, told):
    asked = rescale.Picture(picture(8, 8), colour=chunks)
    if told:
        with pytest.raises(InputError, match=rf"of a chunk {told}, which WebP has no place for; write it as \.png"):
            asked.to_bytes(".webp")
    else:
        assert asked.to_bytes(".webp")


def test_the_command_that_cannot_keep_it_names_the_file(here, error_of):
    source = rescale.open_picture("photo.png")
    rescale.Picture(source.pixels, colour=((b"cICP", P3),)).save("p3.png")
    assert main(["down", "p3.png", "s.webp", *here]) == 0
    assert error_of(["up", "s.webp", "o.webp", *here]) == (
        1,
        "error: o.webp: its colours are those of a chunk cICP, which WebP has no place for; write it as .png",
    )
    assert main(["up", "s.webp", "o.png", *here]) == 0
    assert rescale.open_picture("o.png").colour == ((b"cICP", P3),)
    assert error_of(["strip", "s.webp", "bare.webp"]) == (
        1,
        "error: bare.webp: its colours are those of a chunk cICP, which WebP has no place for; write it as .png",
    )


@pytest.mark.parametrize("wide", [False, True])
def test_it_is_that_of_the_main_picture(wide):
    assert avif.cicp(two_pictures(wide)) == P3


@pytest.mark.parametrize("wide", [False, True])
def test_a_damaged_header_says_nothing(wide):
    data = two_pictures(wide)
    for end in range(len(data)):
        avif.cicp(data[:end])
    for at in range(len(data)):
        for value in (0, 1, 0x7F, 0xFF):
            avif.cicp(data[:at] + bytes([value]) + data[at + 1 :])
    assert avif.cicp(b"") is None
    assert avif.cicp(data[: len(data) // 2]) is None
