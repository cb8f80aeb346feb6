"""Run invertible image rescaling networks: a large picture to a small one, and back from that alone.

    import rescale

    with rescale.load("dlv_irn_a_x2_medium") as net:
        small = net.downscale(rescale.open_picture("photo.png"))
        small.save("small.png")
        net.restore(rescale.Small.open("small.png")).save("again.png")

`Rescaler.downscale` takes arrays too, and `Rescaler.upscale` gives one: pixels alone, without profile, EXIF or transparency.

Needs numpy, Pillow and onnxruntime; the latter two are imported on first use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as of `typing`, which takes as long to load as Python takes to begin: Ctrl-C is not told in one line yet

if TYPE_CHECKING:
    from typing import Any

    from rescale.bundle import Bundle
    from rescale.container import Small, State
    from rescale.errors import (
        BackendError,
        BundleError,
        ConfigError,
        InputError,
        LrFileError,
        MissingExtraError,
        OutputError,
        RescaleError,
        UnknownModelError,
    )
    from rescale.picture import Picture, open_picture, read_picture, write_picture
    from rescale.quality import psnr, psnr_y
    from rescale.rescaler import Rescaler, load
    from rescale.variants import SCALES, VARIANTS, Variant

__version__ = "0.1.0"

__all__ = [
    "SCALES",
    "VARIANTS",
    "BackendError",
    "Bundle",
    "BundleError",
    "ConfigError",
    "InputError",
    "LrFileError",
    "MissingExtraError",
    "OutputError",
    "Picture",
    "RescaleError",
    "Rescaler",
    "Small",
    "State",
    "UnknownModelError",
    "Variant",
    "__version__",
    "load",
    "open_picture",
    "psnr",
    "psnr_y",
    "read_picture",
    "write_picture",
]

_LAZY = {
    "BackendError": "errors",
    "BundleError": "errors",
    "ConfigError": "errors",
    "InputError": "errors",
    "LrFileError": "errors",
    "MissingExtraError": "errors",
    "OutputError": "errors",
    "RescaleError": "errors",
    "UnknownModelError": "errors",
    "SCALES": "variants",
    "VARIANTS": "variants",
    "Variant": "variants",
    "Bundle": "bundle",
    "Small": "container",
    "State": "container",
    "Picture": "picture",
    "open_picture": "picture",
    "read_picture": "picture",
    "write_picture": "picture",
    "psnr": "quality",
    "psnr_y": "quality",
    "Rescaler": "rescaler",
    "load": "rescaler",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY.values():
        return importlib.import_module(f"rescale.{name}")
    if name in _LAZY:
        value = getattr(importlib.import_module(f"rescale.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rescale' has no attribute {name!r}")
