"""Picture codecs that rescaling is compared with, each at its own range of qualities."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

from rescale import carrier, jxl, png, riff
from rescale.errors import RescaleError
from rescale_bench.pictures import Picture


class CodecError(RescaleError):
    """A codec refused a picture, or gave back another one."""


@dataclass(frozen=True)
class Need:
    """What a codec needs to run.

    Attributes:
        feature: Pillow's name for it, or imagecodecs' constant in capitals.
        package: ``pillow`` or ``imagecodecs``.
        cure: command that installs it.
    """

    feature: str
    package: str
    cure: str

    def missing(self) -> str:
        """Why it cannot run here and what cures that; empty if it can."""
        if self.package == "pillow":
            return "" if features.check(self.feature) else f"this Pillow has no {self.feature}: {self.cure}"
        try:
            module = importlib.import_module(self.package)
        except ImportError:
            return f"{self.package} is not installed: {self.cure}"
        found = getattr(getattr(module, self.feature, None), "available", False)
        return "" if found else f"this {self.package} has no {self.feature}: {self.cure}"

    def version(self) -> str:
        """Library and version, such as ``pillow 12.0.0 (avif 1.3.0)``."""
        text = f"{self.package} {importlib.metadata.version(self.package)}"
        inner = features.version(self.feature) if self.package == "pillow" else None
        return f"{text} ({self.feature} {inner})" if inner else text


_PILLOW = "pip install -U 'pillow>=11.3'"
_JXL_CURE = "pip install 'rescale-toolkit[jxl]'"
JPEG = Need("jpg", "pillow", _PILLOW)
PNG = Need("zlib", "pillow", _PILLOW)
WEBP = Need("webp", "pillow", _PILLOW)
AVIF = Need("avif", "pillow", _PILLOW)
JPEG_2000 = Need("jpg_2000", "pillow", _PILLOW)
JXL = Need("JPEGXL", "imagecodecs", _JXL_CURE)
AVIF_LOSSLESS = Need("AVIF", "imagecodecs", _JXL_CURE)


@dataclass(frozen=True)
class Codec:
    """A lossy codec with its qualities as steps from 0, the worst, to `steps` - 1, the best it has.

    Attributes:
        name: key in reports.
        title: for people.
        settings: what is fixed, and what the steps are.
        steps: how many.
        ladder: steps that are always measured, ascending, the first and the last among them.
        encode: uint8 (H, W, 3) and a step -> file.
        decode: file -> uint8 (H, W, 3).
        need: what must be installed.
        residual: whether it is tried on residuals too; on the first picture full chroma had less Y-PSNR there.
    """

    name: str
    title: str
    settings: str
    steps: int
    ladder: tuple[int, ...]
    encode: Callable[[Picture, int], bytes]
    decode: Callable[[bytes], Picture]
    need: Need
    residual: bool = True


@dataclass(frozen=True)
class Lossless:
    """A lossless codec; see `Codec`."""

    name: str
    title: str
    settings: str
    encode: Callable[[Picture], bytes]
    decode: Callable[[bytes], Picture]
    need: Need

    def size(self, picture: Picture) -> int:
        """Bytes of the file.

        Raises:
            CodecError: the codec refused the picture, or did not give it back bit for bit.
        """
        try:
            data = self.encode(picture)
            again = self.decode(data)
        except Exception as e:  # libraries raise what they like
            raise CodecError(f"{self.title}: {e}") from None
        if not np.array_equal(again, picture):
            raise CodecError(f"{self.title}: the decoded picture is not the one that was encoded")
        return len(data)


def _imagecodecs() -> Any:
    return importlib.import_module("imagecodecs")


def _decode_pillow(data: bytes) -> Picture:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def _save(picture: Picture, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(subsampling: str) -> Callable[[Picture, int], bytes]:
    return lambda p, step: _save(p, "JPEG", quality=step + 1, subsampling=subsampling, optimize=True, progressive=True)


def _webp(picture: Picture, step: int) -> bytes:
    return _save(picture, "WEBP", quality=step, method=6)


def _avif(subsampling: str) -> Callable[[Picture, int], bytes]:
    # Tuned for PSNR, because that is what is compared: 0.2 dB more than its default tuning.
    fixed: dict[str, Any] = {"codec": "aom", "speed": 6, "max_threads": 1, "advanced": {"tune": "psnr"}}
    return lambda p, step: _save(p, "AVIF", quality=step, subsampling=subsampling, **fixed)


def _jpeg_2000(picture: Picture, step: int) -> bytes:
    # Without mct Pillow codes R, G and B apart, which costs 12 dB.
    ratio = 400.0 * (1.2 / 400.0) ** (step / 240)
    return _save(picture, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, mct=1)


def jxl_distance(step: int) -> float:
    """Butteraugli distance of a step: 15 to 0.02, each 2.7 % less than the one before."""
    return float(15.0 * (0.02 / 15.0) ** (step / 240))


def _jxl(picture: Picture, step: int) -> bytes:
    return bytes(_imagecodecs().jpegxl_encode(picture, distance=jxl_distance(step), effort=7, numthreads=1))


def _decode_jxl(data: bytes) -> Picture:
    return np.asarray(_imagecodecs().jpegxl_decode(data, numthreads=1))


def _avif_lossless(picture: Picture) -> bytes:
    return bytes(_imagecodecs().avif_encode(picture, level=100, speed=6, numthreads=1))


def _decode_avif(data: bytes) -> Picture:
    return np.asarray(_imagecodecs().avif_decode(data, numthreads=1))


_JPEG_LADDER = (0, 24, 49, 69, 84, 92, 96, 99)
_WEBP_LADDER = (0, 25, 50, 75, 90, 97, 100)
_AVIF_LADDER = (0, 30, 50, 70, 85, 93, 100)
_FINE_LADDER = (0, 60, 100, 130, 160, 190, 240)

_JPEG_SETTINGS = "optimised, progressive; quality 1 to 100"
_AVIF_SETTINGS = "aom, speed 6, tune psnr; quality 0 to 100"
_JXL_SETTINGS = "effort 7; distance 15 to 0.02 in 241 steps"
_JPEG_2000_SETTINGS = "9/7 wavelet, colour transform; ratio 400 to 1.2 in 241 steps"

_P = _decode_pillow
LOSSY = (
    Codec("jpeg420", "JPEG 4:2:0", _JPEG_SETTINGS, 100, _JPEG_LADDER, _jpeg("4:2:0"), _P, JPEG),
    Codec("jpeg444", "JPEG 4:4:4", _JPEG_SETTINGS, 100, _JPEG_LADDER, _jpeg("4:4:4"), _P, JPEG, residual=False),
    Codec("webp", "WebP", "method 6; quality 0 to 100", 101, _WEBP_LADDER, _webp, _P, WEBP),
    Codec("avif420", "AVIF 4:2:0", _AVIF_SETTINGS, 101, _AVIF_LADDER, _avif("4:2:0"), _P, AVIF),
    Codec("avif444", "AVIF 4:4:4", _AVIF_SETTINGS, 101, _AVIF_LADDER, _avif("4:4:4"), _P, AVIF, residual=False),
    Codec("jxl", "JPEG XL", _JXL_SETTINGS, 241, _FINE_LADDER, _jxl, _decode_jxl, JXL),
    Codec("jpeg2000", "JPEG 2000", _JPEG_2000_SETTINGS, 241, _FINE_LADDER, _jpeg_2000, _P, JPEG_2000),
)

LOSSLESS = (
    Lossless("png", "PNG", "zlib level 6, as LR files", png.encode, _decode_pillow, PNG),
    Lossless("webp", "WebP lossless", "method 4, as LR files", riff.encode, _decode_pillow, WEBP),
    Lossless("jxl", "JPEG XL lossless", "effort 5, as LR files", lambda p: jxl.encode(p, {}), _decode_jxl, JXL),
    Lossless("avif", "AVIF lossless", "aom, speed 6", _avif_lossless, _decode_avif, AVIF_LOSSLESS),
)
"""PNG, WebP and JPEG XL with the settings that LR files are written with, so that HR and LR are compared alike."""


def lr_containers() -> list[str]:
    """Containers of `rescale.carrier.CONTAINERS` that can be written here."""
    needs = {"png": PNG, "webp": WEBP, "jxl": JXL}
    return [c for c in carrier.CONTAINERS if not needs[c].missing()]


def missing() -> list[str]:
    """A line for each codec that cannot run here, with what installs it."""
    every: tuple[Codec | Lossless, ...] = (*LOSSY, *LOSSLESS)
    return [f"{c.title}: {reason}" for c in every if (reason := c.need.missing())]


def fitting(containers: Sequence[str], lr_size: Sequence[int]) -> list[str]:
    """Those that hold an LR picture of a size: WebP has no room for more than 16383 pixels a side; PNG always has."""
    return [c for c in containers if c != "webp" or max(lr_size) <= riff.MAX_SIDE]
