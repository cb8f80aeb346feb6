"""Rate and distortion: what an LR file restores, and what other codecs make of the HR in the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rescale import __version__
from rescale.container import Small
from rescale.picture import Picture as Source
from rescale.quality import psnr, psnr_y
from rescale.rescaler import Rescaler
from rescale_bench.bicubic import reduce
from rescale_bench.bundles import distinct
from rescale_bench.pictures import Picture
from rescale_bench.rate_codecs import Codec, CodecError, Lossless, fitting
from rescale_bench.rate_curve import Curve, Match, Point
from rescale_bench.rate_kept import read_points, read_rescaled, read_size
from rescale_bench.rate_pictures import SourceSet
from rescale_bench.store import Store, digest
from rescale_train.bicubic import enlarge_picture

DEFINITIONS = {
    "psnr_y": "restored or decoded HR against source: PSNR (dB, peak 255) of BT.601 Y in 16..235, not rounded; the whole picture",
    "psnr_rgb": "the same over R, G and B together",
    "files": "bytes of the LR file in each container, with all it carries; what is restored is the same from all of them",
    "bicubic_lr": "bytes of the antialiased bicubic LR in each container, lossless",
    "lossless": "bytes of the HR in each lossless codec, checked bit for bit; the same settings as LR files",
    "same_bytes": "the HR coded by another codec in the bytes of the LR file",
    "same_psnr": "bytes that another codec needs for the Y-PSNR of the restored HR",
    "residual": "a bit-exact bicubic LR (lossless, in the LR file's container) and the difference of the HR from its bicubic "
    "enlargement, plus 128, coded lossily in the bytes that are left of the LR file's; full chroma is not tried there",
    "reached": "bracketed: between two measured neighbouring qualities, interpolated in the logarithm of the bytes; above: the "
    "codec's best quality takes fewer bytes (or has a lower PSNR), so its figure is what it has at most; below: its worst quality "
    "takes more bytes than there are (or has a higher PSNR); towards a lossless quality nothing is interpolated: given bytes give "
    "the quality before it, a given PSNR costs its bytes",
    "gray": "of a gray picture the mean of the restored R, G and B counts, as rescale up writes it; codecs code it as RGB",
}


@dataclass(frozen=True)
class Tools:
    """What pictures are measured with.

    Attributes:
        lossy, lossless: codecs that can run here.
        containers: of the LR files.
        store: what was measured before.
    """

    lossy: Sequence[Codec]
    lossless: Sequence[Lossless]
    containers: Sequence[str]
    store: Store


def measure_set(
    nets: Sequence[Rescaler], pictures: SourceSet, tools: Tools, progress: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Every picture of a set.

    Returns:
        ``set``, ``count`` and ``pictures``: for each what `measure_picture` gives. `progress` is called once for each picture
        and codec.
    """
    rows = [measure_picture(nets, name, load(), tools, progress) for name, load in pictures.pictures]
    return {"set": pictures.name, "count": len(rows), "pictures": rows}


def measure_picture(
    nets: Sequence[Rescaler],
    name: str,
    source: Source,
    tools: Tools,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """One picture of any size: all networks, all codecs.

    Returns:
        ``name``, ``size`` [width, height], ``lossless`` bytes by codec, ``curves``: the ladder's points by codec, ``rescaled``:
        an entry for each network, and ``failed``: codecs that refused the picture, with the reason.

    Raises:
        InputError: a measurement that was kept is damaged.
    """
    hr = np.ascontiguousarray(source.shown())
    identity = digest(hr)
    failed: dict[str, str] = {}
    lossless = _lossless(hr, identity, tools, failed)
    titles = distinct([net.bundle.title for net in nets])
    rescaled = [_rescale(net, title, hr, source.gray, identity, tools) for net, title in zip(nets, titles, strict=True)]
    bases = {scale: _Base(hr, scale, identity, tools) for scale in sorted({net.bundle.scale for net in nets})}
    for entry in rescaled:
        entry["bicubic_lr"] = bases[entry["scale"]].sizes
    curves: dict[str, list[Point]] = {}
    for codec in tools.lossy:
        try:
            curves[codec.name] = _codec(codec, hr, identity, rescaled, bases, tools)
        except CodecError as e:
            failed[codec.name] = str(e)
        progress(f"{name}: {codec.title}")
    size = [hr.shape[1], hr.shape[0]]
    found = {k: [p._asdict() for p in points] for k, points in curves.items()}
    return {"name": name, "size": size, "lossless": lossless, "curves": found, "rescaled": rescaled, "failed": failed}


def _lossless(hr: Picture, identity: str, tools: Tools, failed: dict[str, str]) -> dict[str, int]:
    found = {}
    for codec in tools.lossless:
        key = {"what": "lossless", "picture": identity, "codec": codec.name, "settings": codec.settings, "by": codec.need.version()}
        size: int | None = tools.store.get(key, read_size)
        if size is None:
            try:
                size = codec.size(hr)
            except CodecError as e:
                failed[f"lossless {codec.name}"] = str(e)
                continue
            tools.store.put(key, size)
        found[codec.name] = size
    return found


def _rescale(net: Rescaler, title: str, hr: Picture, gray: bool, identity: str, tools: Tools) -> dict[str, Any]:
    """One network's LR files and what they restore, as `rescale down` and `rescale up` write it."""
    bundle = net.bundle
    lr_size = [-(-n // bundle.scale) for n in (hr.shape[1], hr.shape[0])]
    versions = [c.need.version() for c in tools.lossless if c.name in tools.containers]
    key: dict[str, Any] = {"what": "rescaled", "picture": identity, "weights": bundle.network, "model": bundle.title}
    key |= {"runner": net.runner.name, "containers": list(tools.containers), "by": [*versions, f"rescale {__version__}"]}
    key |= {"gray": True} if gray else {}
    found: dict[str, Any] | None = tools.store.get(key, lambda value: read_rescaled(value, tools.containers, lr_size))
    if found is None:
        # Without the source's colour profile and EXIF: the codecs' files have none either.
        small = net.downscale(Source(hr, gray))
        files = {c: small.to_bytes(c) for c in fitting(tools.containers, lr_size)}
        again = net.restore(Small.from_bytes(files["png"])).shown()
        sizes = {c: len(data) for c, data in files.items()}
        found = {"files": sizes, "psnr_y": psnr_y(again, hr), "psnr_rgb": psnr(again, hr), "lr_size": lr_size}
        tools.store.put(key, found)
    entry: dict[str, Any] = {"model": title, "scale": bundle.scale, "weights": bundle.network, "runner": net.runner.name}
    entry |= found
    return entry | {"same_bytes": {c: {} for c in entry["files"]}, "same_psnr": {}, "residual": {c: {} for c in entry["files"]}}


class _Base:
    """The bit-exact bicubic LR of a picture, and what is missing to the HR.

    Attributes:
        sizes: bytes by container.
        enlarged: uint8 (H, W, 3) bicubic enlargement.
        residual: uint8 (H, W, 3) HR minus that, plus 128, clamped.
        floor: bytes 0 and the PSNR of the enlargement.
    """

    def __init__(self, hr: Picture, scale: int, identity: str, tools: Tools) -> None:
        height, width = hr.shape[:2]
        lr = reduce(hr, scale)
        # By the same encoders as the LR files themselves.
        writers = [c for c in tools.lossless if c.name in tools.containers]
        self.sizes = _lossless(lr, digest(lr), replace(tools, lossless=writers), {})
        self.scale, self.identity = scale, identity
        self.enlarged = np.ascontiguousarray(enlarge_picture(lr, scale)[:height, :width])
        self.residual: Picture = np.clip(hr.astype(np.int16) - self.enlarged + 128, 0, 255).astype(np.uint8)
        self.floor = Point(-1, 0, psnr_y(self.enlarged, hr), psnr(self.enlarged, hr))

    def add(self, decoded: Picture) -> Picture:
        """HR of a decoded residual."""
        whole: Picture = np.clip(self.enlarged.astype(np.int16) + decoded - 128, 0, 255).astype(np.uint8)
        return whole


def _codec(
    codec: Codec, hr: Picture, identity: str, rescaled: Sequence[dict[str, Any]], bases: dict[int, _Base], tools: Tools
) -> list[Point]:
    """Search everything that one codec is asked for on one picture; fills `rescaled`. Returns the ladder's points.

    Raises:
        CodecError: the codec refused the picture.
    """
    key = {"what": "curve", "picture": identity, "codec": codec.name, "settings": codec.settings, "by": codec.need.version()}
    with _Kept(tools.store, key, _measurer(codec, hr, hr, lambda decoded: decoded), codec) as curve:
        ladder = curve.ladder()
        for entry in rescaled:
            if math.isfinite(entry["psnr_y"]):
                entry["same_psnr"][codec.name] = curve.for_psnr(entry["psnr_y"]).to_dict()
            for container, size in entry["files"].items():
                entry["same_bytes"][container][codec.name] = curve.for_bytes(size).to_dict()
    for scale, base in bases.items() if codec.residual else ():
        measure = _measurer(codec, base.residual, hr, base.add)
        with _Kept(tools.store, key | {"what": "residual", "scale": scale}, measure, codec, base.floor) as curve:
            for entry in rescaled:
                if entry["scale"] == scale:
                    for container, size in entry["files"].items():
                        match = _over(curve, size, base.sizes[container], codec)
                        entry["residual"][container][codec.name] = match.to_dict()
    return ladder


def _measurer(codec: Codec, source: Picture, hr: Picture, finish: Callable[[Picture], Picture]) -> Callable[[int], Point]:
    def measure(step: int) -> Point:
        try:
            data = codec.encode(source, step)
            again = finish(codec.decode(data))
            return Point(step, len(data), psnr_y(again, hr), psnr(again, hr))
        except Exception as e:  # libraries raise what they like
            raise CodecError(f"{codec.title}, step {step}: {e}") from None

    return measure


class _Kept:
    """A curve whose points come from the store and go there, when it is left by an interruption too."""

    def __init__(
        self, store: Store, key: dict[str, Any], measure: Callable[[int], Point], codec: Codec, floor: Point | None = None
    ) -> None:
        known: list[Point] = store.get(key, lambda found: read_points(found, codec.steps)) or []
        self._store, self._key = store, key
        self._curve = Curve(measure, codec.steps, codec.ladder, known, floor)

    def __enter__(self) -> Curve:
        return self._curve

    def __exit__(self, *_: object) -> None:
        if self._curve.changed:
            self._store.put(self._key, [list(p) for p in self._curve.points()])


def _over(curve: Curve, target: int, base: int, codec: Codec) -> Match:
    """What a residual's curve reaches in the bytes that a base leaves of the target, all bytes counted.

    Interpolated between totals, so that a residual of no bytes at all is a point like others.
    """
    return Curve(
        lambda step: _moved(curve.at(step), base),
        codec.steps,
        codec.ladder,
        (),
        None if curve.floor is None else _moved(curve.floor, base),
    ).for_bytes(target)


def _moved(p: Point, base: int) -> Point:
    return p._replace(bytes=p.bytes + base)
