"""What `rescale down` and `rescale up` tell of a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rescale.variants import VARIANTS

if TYPE_CHECKING:
    from rescale.container import Small
    from rescale.rescaler import Rescaler


def lr_facts(small: Small, net: Rescaler, source_size: tuple[int, int]) -> dict[str, Any]:
    """Of an LR picture that was just made of a source of (width, height), which may have been resized before."""
    block = small.block
    assert block is not None
    return {
        "model": net.bundle.title,
        **({} if source_size == block.hr_size else {"source_size": list(source_size)}),
        "hr_size": list(block.hr_size),
        "lr_size": list(block.lr_size),
        "auxiliary_bits_per_pixel": round(small.auxiliary_bits, 3),
    }


def quality(picture: Any, original: Any, scale: int) -> dict[str, Any]:
    """PSNR of a restored picture against its original, two arrays of one size."""
    from rescale.quality import counted_border, psnr, psnr_y

    figures = {"psnr_y": psnr_y(picture, original, scale), "psnr_rgb": psnr(picture, original)}
    # JSON has no infinity: equal pictures have null.
    return {k: v if math.isfinite(v) else None for k, v in figures.items()} | {"border": counted_border(picture, scale)}


def quality_text(facts: dict[str, Any]) -> str:
    """The figures of `quality` for pictures that are not equal."""
    luma = "infinite" if facts["psnr_y"] is None else f"{facts['psnr_y']:.2f} dB"
    return f"Y-PSNR {luma} (BT.601, {facts['border']} px cropped), RGB-PSNR {facts['psnr_rgb']:.2f} dB"


def forced(net: Rescaler) -> str:
    """What was done to a picture that is not exact, and what the missing auxiliary data costs, as measured for the weights."""
    if net.bundle.variant.auxiliary == "none":
        return "restored from its pixels, unverified"
    return f"restored without auxiliary data: {_cost(net)}"


def _cost(net: Rescaler) -> str:
    for name, row in net.bundle.figures.items():
        if "hr_psnr_y" in row and "hr_psnr_y_forced" in row:
            lost = row["hr_psnr_y"] - row["hr_psnr_y_forced"]
            return f"{lost:.1f} dB below the model's {row['hr_psnr_y']:.1f} dB (Y-PSNR on {name})"
    return "the loss was not measured for these weights"


def down_text(facts: dict[str, Any]) -> str:
    """One line of `down`."""
    hr, lr = facts["hr_size"], facts["lr_size"]
    before = f" ({resized_text(facts)})" if "source_size" in facts else ""
    text = f"{facts['target']}: {lr[0]}x{lr[1]} from {hr[0]}x{hr[1]}{before}, {facts['model']}, {facts['bytes']} bytes"
    return text + _compared(facts, "restored equal to the source", "restored at ")


def resized_text(facts: dict[str, Any]) -> str:
    """What was done to a source whose size was changed before downscaling."""
    (width, height), (new_width, new_height) = facts["source_size"], facts["hr_size"]
    return f"resized from {width}x{height} to {new_width}x{new_height}"


def up_text(facts: dict[str, Any]) -> str:
    """One line of `up`."""
    text = f"{facts['target']}: {facts['hr_size'][0]}x{facts['hr_size'][1]}, {facts['model']}"
    return text + _compared(facts, "equal to the reference", "")


def strip_text(facts: dict[str, Any]) -> str:
    """One line of `strip`."""
    return (
        f"{facts['target']}: {facts['lr_size'][0]}x{facts['lr_size'][1]}, {facts['bytes']} bytes, without auxiliary data and marker"
    )


def left_in_pixels(model: str) -> str:
    """What `strip` leaves of the HR in the pixels, for models whose restored picture hangs on these above all; else empty."""
    kept = {"none": "all", "latent": "nearly all"}.get(VARIANTS[model].auxiliary if model in VARIANTS else "", "")
    return kept and f"{model} keeps {kept} that it restores from in the pixels, which stay: `rescale up --force` restores them"


def _compared(facts: dict[str, Any], equal: str, before: str) -> str:
    if "psnr_y" not in facts:
        return ""
    return f", {equal}" if facts["psnr_rgb"] is None else f", {before}{quality_text(facts)}"
