"""What JPEG 2000 files say of their samples and colours: Pillow decodes the pixels, reduces deep ones and leaves the rest unsaid.

Sources: ITU-T T.800 (ISO/IEC 15444-1), annex A.5.1 for the codestream's marker SIZ and annex I for the boxes of JP2.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import Any, NamedTuple

from PIL import features

from rescale.boxes import bodies, walk
from rescale.errors import DamagedPictureError, InputError

SIGNATURE = bytes.fromhex("0000000c6a5020200d0a870a")
CODESTREAM = b"\xff\x4f\xff\x51"
END = b"\xff\xd9"
MAX_BOXES = 10_000
_SIZES = 42 + 3 * 4
"""At the beginning of a codestream: all that is read of one with up to four components."""
SRGB, GRAY = 16, 17
"""Colour spaces by their numbers; the others that the standard has are no RGB."""

_SPACES = {12: "CMYK", 18: "YCbCr"}
_COLOURS = {b"RGB ": 3, b"GRAY": 1}
_OPACITY, _PREMULTIPLIED = 1, 2
_EXIF = b"JpgTiffExif->JP2"
_CURE = "convert it to PNG or TIFF first"


class Header(NamedTuple):
    """What the samples are.

    Attributes:
        width, height: in pixels.
        info: for that of Pillow's picture: under ``depth`` bits a sample; where the file has them ``icc_profile`` and ``exif``, and
            under ``density`` pixels a metre in x and y.
    """

    width: int
    height: int
    info: dict[str, Any]


def is_jp2(data: bytes) -> bool:
    """Whether the bytes start like a JPEG 2000 file, boxed or bare."""
    return data.startswith((SIGNATURE, CODESTREAM))


def read_header(data: bytes, name: str) -> Header:
    """Header of a JP2 file or a bare codestream.

    Raises:
        DamagedPictureError: truncated or damaged.
        InputError: its samples are not gray or RGB as they come, with alpha that is said to be one and that they are not multiplied
            by; it holds several pictures; or Pillow was built without a decoder.
    """
    if not features.check("jpg_2000"):
        raise InputError(f"{name}: the Pillow that is installed has no decoder for JPEG 2000; pip install pillow has one")
    try:
        if data.startswith(CODESTREAM):
            _check_end(data, len(data), name)
            return _codestream(data, name)
        return _file(data, name)
    except struct.error:
        raise DamagedPictureError(f"{name}: truncated or damaged JPEG 2000 header") from None


def _file(data: bytes, name: str) -> Header:
    boxes: dict[bytes, list[bytes]] = {}
    for number, (kind, start, end) in enumerate(walk(data)):
        if not start <= end <= len(data) or number == MAX_BOXES:
            raise DamagedPictureError(f"{name}: truncated or damaged JPEG 2000 at its box {kind!r}")
        if kind == b"jp2c":
            _check_end(data, end, name)
        boxes.setdefault(kind, []).append(data[start : min(end, start + _SIZES) if kind == b"jp2c" else end])
    pictures, headers = boxes.get(b"jp2c", []), boxes.get(b"jp2h", [])
    if not pictures or len(headers) != 1:
        found = f"{len(headers)} headers and {len(pictures)} pictures"
        raise DamagedPictureError(f"{name}: damaged JPEG 2000: {found}, wanted is one of each")
    if len(pictures) > 1:
        raise InputError(f"{name}: holds {len(pictures)} pictures; {_CURE}, the one you want")
    described = dict(reversed(list(islice(bodies(headers[0]), MAX_BOXES))))  # the first of each kind counts
    read = _codestream(pictures[0], name, described.get(b"cdef"))
    height, width, components = struct.unpack_from(">IIH", described.get(b"ihdr", b""))
    if (width, height, components) != (read.width, read.height, _components(pictures[0])):
        raise DamagedPictureError(f"{name}: damaged JPEG 2000: its header is of another picture than {read.width}x{read.height}")
    if b"pclr" in described:
        raise InputError(f"{name}: JPEG 2000 with a palette; {_CURE}")
    info = _colour(described.get(b"colr", b""), (components - 1) // 2 * 2 + 1, name) | _density(described.get(b"res ", b""))
    exif = next((body[16:] for body in boxes.get(b"uuid", []) if body.startswith(_EXIF)), b"")
    return read._replace(info=read.info | info | ({"exif": exif} if exif else {}))


def _check_end(data: bytes, end: int, name: str) -> None:
    """A picture that ends between two tiles, or before the first, is decoded without an error."""
    if not data[max(0, end - 64) : end].rstrip(b"\0").endswith(END):
        raise DamagedPictureError(f"{name}: truncated JPEG 2000: its picture has no end")


def _components(codestream: bytes) -> int:
    (count,) = struct.unpack_from(">H", codestream, 40)
    return int(count)


def _codestream(data: bytes, name: str, channels: bytes | None = None) -> Header:
    """Header of a codestream; `channels` is the body of the box ``cdef``, which says what each component is."""
    if not data.startswith(CODESTREAM):
        raise DamagedPictureError(f"{name}: damaged JPEG 2000: its picture is no codestream")
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    count = _components(data)
    if right <= left or bottom <= top or not count:
        raise DamagedPictureError(f"{name}: damaged JPEG 2000: a picture without pixels")
    if count > 4:
        raise InputError(f"{name}: JPEG 2000 with {count} components; {_CURE}, as gray or RGB")
    samples = struct.unpack_from(f">{3 * count}B", data, 42)
    if set(samples[1::3]) | set(samples[2::3]) != {1}:
        raise InputError(f"{name}: JPEG 2000 whose components are of different sizes; {_CURE}")
    if any(s & 0x80 for s in samples[::3]):
        raise InputError(f"{name}: JPEG 2000 with signed samples; {_CURE}")
    depths = {s + 1 for s in samples[::3]}
    if len(depths) > 1 or max(depths) < 8:
        raise InputError(
            f"{name}: JPEG 2000 with {', '.join(map(str, sorted(depths)))} bits a sample; {_CURE}, with 8 bits a sample"
        )
    _check_channels(channels, count, name)
    return Header(right - left, bottom - top, {"depth": max(depths)})


def _check_channels(body: bytes | None, count: int, name: str) -> None:
    """Refuse components that are not gray or RGB, in this order, and then opacity."""
    alpha = count in (2, 4)
    wanted = {i: (0, i + 1) for i in range(count - alpha)} | ({count - 1: (_OPACITY, 0)} if alpha else {})
    if body is None:
        if alpha:
            raise InputError(f"{name}: JPEG 2000 with {count} components that does not say what the last one is; {_CURE}")
        return
    (entries,) = struct.unpack_from(">H", body)
    found = {c: (kind, colour) for c, kind, colour in struct.iter_unpack(">3H", body[2 : 2 + 6 * min(entries, 4)])}
    if any(kind == _PREMULTIPLIED for kind, _ in found.values()):
        raise InputError(f"{name}: its colours are multiplied by its alpha, which cannot be undone exactly; convert it first")
    if entries > 4 or found != wanted:
        raise InputError(f"{name}: JPEG 2000 whose components are not gray or RGB, or in another order; {_CURE}")


def _colour(body: bytes, colours: int, name: str) -> dict[str, Any]:
    """The ICC profile of a box ``colr``, if it has one.

    Raises:
        InputError: its colours are others than sRGB, gray, or those of a profile for RGB or gray.
    """
    method = body[0] if body else 0
    space: Any = None
    if method == 1:
        (space,) = struct.unpack_from(">I", body, 3)
        if space == {3: SRGB, 1: GRAY}[colours]:
            return {}
    if method in (2, 3):
        profile = body[3:]
        space = profile[16:20]
        if _COLOURS.get(space) == colours:
            return {"icc_profile": profile}
    said = "a colour space that it does not name" if space is None else f"colour space {space!r}"
    kind = "gray" if colours == 1 else "RGB"
    raise InputError(f"{name}: JPEG 2000 with {kind} components in {_SPACES.get(space, said)}; {_CURE}, as gray or RGB")


def _density(body: bytes) -> dict[str, Any]:
    """Pixels a metre from a box ``res``: as it was captured, else as it is to be shown."""
    found = dict(bodies(body))
    one = found.get(b"resc") or found.get(b"resd") or b""
    if len(one) < 10:
        return {}
    y, y_under, x, x_under, y_power, x_power = struct.unpack_from(">4H2b", one)
    if not (x_under and y_under):
        return {}
    return {"density": (x / x_under * 10.0**x_power, y / y_under * 10.0**y_power)}
