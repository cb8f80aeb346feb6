"""The bundle: a folder of graphs with a manifest. One per model, scale and size.

    manifest.json  downscale.onnx  upscale.onnx  [encoder.onnx  decoder.onnx]  [gradient.onnx]  golden.npz
    downscale.mixed.onnx  upscale.mixed.onnx  ...   the same graphs in other precisions

Readers refuse an unknown major version and any file whose SHA-256 does not match the manifest. docs/bundle.md is the
contract.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescale.contract import GRADIENT, Tensor, gradient_interface, graph_names, interface
from rescale.errors import BundleError, ConfigError, UnknownModelError
from rescale.files import read_regular
from rescale.variants import Variant, check_scale, variant

FORMAT = "rescale-bundle"
MAJOR, MINOR = 1, 3
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
MAX_MANIFEST_BYTES = 1 << 20
MAX_GRAPH_BYTES = 1 << 30
MAX_FIELD = 1 << 14
MAX_Z_CHANNELS = 1 << 12
MAX_MEMORY_PER_PIXEL = 1 << 24
"""No network of ours has more: the receptive field of the deepest one, with 8 corrections, is 16,376 LR pixels. Numbers of a
manifest decide how much memory is asked for."""
PRECISIONS = ("fp32", "mixed", "fp16")
"""Float32; subnets in float16 and the coupling stream in float32; both in float16."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Graph:
    """One ONNX file of a bundle.

    Attributes:
        file: its name in the folder.
        sha256: of its bytes.
        memory: bytes of live tensors per LR pixel at the widest point.
        inputs, outputs: its interface.
    """

    file: str
    sha256: str
    memory: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def check_precision(precision: str) -> str:
    """Return `precision` if graphs can be in it.

    Raises:
        ConfigError: it is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    return precision


def graph_file(name: str, precision: str) -> str:
    """File name of a graph in a precision."""
    return f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"


class Bundle:
    """A verified manifest. Graph files are verified when they are read.

    Attributes:
        path: the folder.
        variant: which network.
        scale: 2 or 4.
        size: name of the size, such as ``lite``.
        weights: SHA-256 of the weights that restore a picture: what LR files name.
        network: SHA-256 of all weights, those of the encoder's corrections included; without corrections the same.
        corrections: of the encoder, in the downscale graph.
        receptive_field: LR pixels on each side that a value may depend on, in both directions.
        halo: LR pixels on each side that matter for these weights: measured at export, at most the receptive field.
        upscale_receptive_field, upscale_halo: the same when restoring only: fewer where the encoder has corrections.
        graphs: by name, in float32.
        precisions: the same for each precision that the bundle holds, float32 included.
        gradient: the graph that `rescale.refine` descends, in float32; None if it was not exported.
        figures: of the weights' card: figures by test set, such as ``hr_psnr_y`` in dB; empty if it has none.
        manifest: the whole parsed manifest.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read and check the manifest.

        Raises:
            BundleError: no bundle there, damaged, or of a format this version does not read.
        """
        self.path = Path(path)
        target = self.path / MANIFEST
        try:
            raw = read_regular(target, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            raise BundleError(f"{self.path}: no bundle here ({MANIFEST} is missing); make one with rescale-export") from None
        except (OSError, ValueError) as e:  # ValueError: a name with a null byte
            raise BundleError(f"{target}: cannot read: {getattr(e, 'strerror', e)}") from None
        # Graphs are read when they first run, and a service may have changed to another folder by then.
        self._folder = self.path.absolute()
        try:
            m = json.loads(raw, parse_constant=_no_constant)
            name, _, version = m["format"].partition("/")
            major = int(version.split(".")[0])
            if name != FORMAT:
                raise BundleError(f"{target}: format {name!r}, wanted {FORMAT!r}")
            if major != MAJOR:
                raise BundleError(f"{target}: bundle format {version}; this version reads {MAJOR}.x: update, or export again")
            self.manifest: dict[str, Any] = m
            self.variant = variant(m["model"])
            self.scale = _whole(check_scale(m["scale"]), 1, MAX_FIELD)
            self.size = _text(m["size"])
            self.weights = _text(m["weights"]["sha256"])
            self.figures = _figures(m["weights"].get("card"))
            self.receptive_field = _whole(m["receptive_field"]["lr_pixels"], 0, MAX_FIELD)
            self.halo = _whole(m.get("halo", m["receptive_field"])["lr_pixels"], 0, self.receptive_field)
            self.upscale_receptive_field = _upscale_pixels(m["receptive_field"], self.receptive_field)
            self.upscale_halo = _upscale_pixels(m.get("halo", m["receptive_field"]), self.halo)
            corrections = m.get("corrections", {"count": 0, "sha256": self.weights})
            self.corrections = _whole(corrections["count"], 0, MAX_FIELD)
            self.network = _text(corrections["sha256"])
            self.graphs = {k: _graph(v) for k, v in m["graphs"].items()}
            others = m.get("precisions", {})
            self.precisions: dict[str, dict[str, Graph]] = {"fp32": self.graphs}
            self.precisions |= {p: {k: _graph(v) for k, v in graphs.items()} for p, graphs in others.items()}
            for precision, graphs in self.precisions.items():
                missing = [g for g in graph_names(self.variant) if g not in graphs]
                if missing:
                    raise BundleError(f"{target}: graph {missing[0]!r} is missing in {precision}; export the bundle again")
                _check_interface(self.variant, graphs)
            self.gradient = None if m.get(GRADIENT) is None else _graph(m[GRADIENT])
            wanted = gradient_interface(self.variant, self.z_channels if self.variant.latent else 0)
            if self.gradient is not None and (self.gradient.inputs, self.gradient.outputs) != wanted:
                raise ValueError(f"graph {GRADIENT!r} does not have the inputs and outputs of {self.variant.name}")
            for name, digest in (("weights", self.weights), ("corrections", self.network)):
                if not re.fullmatch(r"[0-9a-f]{64}", digest):
                    raise ValueError(f"{name}.sha256 is not 64 hexadecimal digits")
        except UnknownModelError as e:
            raise BundleError(f"{target}: {e}") from None
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as e:
            raise BundleError(f"{target}: damaged manifest: {type(e).__name__}: {e}; export the bundle again") from None

    @property
    def z_channels(self) -> int:
        """Channels of z that the upscale graph takes (-M only)."""
        return _z_channels(self.graphs)

    def memory(self, graph: str) -> int:
        """Bytes of live tensors per LR pixel of ``downscale``, ``upscale`` or ``gradient``; -M: or of the graph beside it."""
        if graph == GRADIENT:
            return self._gradient("fp32").memory
        beside = {"downscale": "encoder", "upscale": "decoder"}[graph]
        return max(self.graphs[name].memory for name in (graph, beside) if name in self.graphs)

    @property
    def title(self) -> str:
        """Short name: model, scale and size."""
        return f"{self.variant.name} x{self.scale} {self.size}"

    @property
    def identity(self) -> tuple[str, int, str]:
        """Model, scale and weights: what an LR file must name for this bundle to restore it."""
        return self.variant.name, self.scale, self.weights

    def graph(self, name: str, precision: str = "fp32") -> Graph:
        """A graph's entry.

        Raises:
            ConfigError: no such precision.
            BundleError: the bundle does not hold it, or has no such graph.
        """
        check_precision(precision)
        if name == GRADIENT:
            return self._gradient(precision)
        if precision not in self.precisions:
            held = ", ".join(self.precisions)
            raise BundleError(f"{self.path}: holds {held}, not {precision!r}; export it with --precision {precision}")
        if name not in self.precisions[precision]:
            raise BundleError(f"{self.path}: {self.title} has no graph {name!r}, only {', '.join(self.precisions[precision])}")
        return self.precisions[precision][name]

    def _gradient(self, precision: str) -> Graph:
        if self.gradient is None:
            raise BundleError(f"{self.path}: holds no gradient graph, which refining needs; export it with rescale-export --refine")
        if precision != "fp32":
            cure = "refine on onnxruntime or openvino in fp32"
            raise BundleError(f"{self.path}: the gradient graph is in fp32, not {precision}; {cure}")
        return self.gradient

    def read_graph(self, name: str, precision: str = "fp32") -> bytes:
        """Bytes of a graph's ONNX file, verified against the manifest.

        Raises:
            BundleError: no such graph or precision, missing file or hash mismatch, naming the file.
        """
        graph = self.graph(name, precision)
        return self._read(graph.file, graph.sha256)

    def read_golden(self) -> bytes:
        """Bytes of the golden vectors (numpy's .npz), verified.

        Raises:
            BundleError: missing file or hash mismatch.
        """
        entry = self.manifest.get("golden")
        if not isinstance(entry, dict):
            raise BundleError(f"{self.path / MANIFEST}: damaged manifest: golden is not a table; export the bundle again")
        return self._read(str(entry.get("file", GOLDEN)), str(entry.get("sha256", "")))

    def verify(self) -> None:
        """Check every file of the bundle.

        Raises:
            BundleError: the first that is missing or does not match.
        """
        for precision, graphs in self.precisions.items():
            for name in graphs:
                self.read_graph(name, precision)
        if self.gradient is not None:
            self.read_graph(GRADIENT)
        self.read_golden()

    def _read(self, file: str, sha256: str) -> bytes:
        if not _FILE_NAME.fullmatch(file):
            raise BundleError(f"{self.path / MANIFEST}: {file!r} is not a plain file name")
        path = self.path / file
        try:
            data = read_regular(self._folder / file, MAX_GRAPH_BYTES)
        except FileNotFoundError:
            raise BundleError(f"{path}: missing; export the bundle again") from None
        except OSError as e:
            raise BundleError(f"{path}: cannot read: {e.strerror}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            message = f"SHA-256 {found[:12]}..., the manifest says {sha256[:12]}...; the file was changed: export the bundle again"
            raise BundleError(f"{path}: {message}")
        return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{str(value)[:40]} where text is wanted")
    return value


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]} where a whole number from {least} to {most} is wanted")
    return value


def _upscale_pixels(table: dict[str, Any], both: int) -> int:
    return _whole(table.get("upscale_lr_pixels", both), 0, both)


def _figures(card: Any) -> dict[str, dict[str, float]]:
    """What of a card's figures are numbers, by test set."""
    figures = (card or {}).get("figures", {})
    return {str(name): {str(k): float(v) for k, v in row.items() if type(v) in (int, float)} for name, row in figures.items()}


def _z_channels(graphs: dict[str, Graph]) -> int:
    found = [t.axes[1] for t in graphs["upscale"].inputs if t.name == "z" and len(t.axes) == 4]
    return _whole(found[0] if found else None, 1, MAX_Z_CHANNELS)


def _check_interface(v: Variant, graphs: dict[str, Graph]) -> None:
    for name, (inputs, outputs) in interface(v, _z_channels(graphs) if v.latent else 0).items():
        if (graphs[name].inputs, graphs[name].outputs) != (inputs, outputs):
            raise ValueError(f"graph {name!r} does not have the inputs and outputs of {v.name}")


def _graph(entry: dict[str, Any]) -> Graph:
    def tensors(key: str) -> tuple[Tensor, ...]:
        return tuple(Tensor(_text(t["name"]), _text(t["dtype"]), tuple(t["axes"])) for t in entry[key])

    memory = _whole(entry["memory_per_lr_pixel"], 1, MAX_MEMORY_PER_PIXEL)
    return Graph(_text(entry["file"]), _text(entry["sha256"]), memory, tensors("inputs"), tensors("outputs"))
