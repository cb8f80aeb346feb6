"""One picture that shows what a bundle does: source, LR at its own size, restored, and what plain interpolation would give."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from rescale.container import Small
from rescale.quality import psnr_y
from rescale.rescaler import Rescaler
from rescale_bench.pictures import Picture, crop_to_multiple
from rescale_train.bicubic import bicubic_picture, enlarge_picture

CROP, ZOOM, GAP, LABEL = 96, 3, 8, 18
ERROR_GAIN = 8


def showcase(net: Rescaler, picture: Picture, centre: tuple[int, int] | None = None) -> Image.Image:
    """A row of crops, enlarged without smoothing, each with its Y-PSNR against the source.

    Args:
        net: open bundle.
        picture: uint8 (H, W, 3) source.
        centre: (x, y) of the crop in source pixels; None for the middle.

    Returns:
        An RGB picture: source, LR in the LR file, bicubic LR enlarged again, restored, restoration error times 8.
    """
    scale = net.bundle.scale
    hr = np.ascontiguousarray(crop_to_multiple(picture, scale, "the picture to show"))
    small = Small.from_bytes(net.downscale(hr).to_bytes())
    again = net.upscale(small)
    size = (hr.shape[1], hr.shape[0])
    naive = enlarge_picture(bicubic_picture(hr, scale), scale)
    error = np.clip(128 + ERROR_GAIN * (again.astype(np.int16) - hr), 0, 255).astype(np.uint8)
    lr = np.array(Image.fromarray(small.rgb).resize(size, Image.Resampling.NEAREST))
    x, y = centre or (size[0] // 2, size[1] // 2)
    left, top = (int(np.clip(c - CROP // 2, 0, max(0, n - CROP))) for c, n in ((x, size[0]), (y, size[1])))
    panels = [
        ("source", hr),
        (f"LR, {small.size[0]}x{small.size[1]}", lr),
        (f"bicubic down and up, {psnr_y(naive, hr, scale):.1f} dB", naive),
        (f"restored, {psnr_y(again, hr, scale):.1f} dB", again),
        (f"error x{ERROR_GAIN}", error),
    ]
    side = CROP * ZOOM
    sheet = Image.new("RGB", (len(panels) * (side + GAP) - GAP, side + LABEL), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (text, full) in enumerate(panels):
        tile = Image.fromarray(full[top : top + CROP, left : left + CROP])
        sheet.paste(tile.resize((tile.width * ZOOM, tile.height * ZOOM), Image.Resampling.NEAREST), (i * (side + GAP), LABEL))
        draw.text((i * (side + GAP), 2), text, fill="black")
    return sheet
