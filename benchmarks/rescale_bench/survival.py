"""The survival matrix of the LR file: what each tool leaves of it, and what can still be restored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale import block as blocks
from rescale import carrier as carriers
from rescale import codes, planes
from rescale.block import Block
from rescale.container import Small, State
from rescale.decode import decode_pixels
from rescale.quality import psnr_y
from rescale.rescaler import Rescaler
from rescale.variants import Variant
from rescale_bench.survival_tools import TOOLS, Tool

Array = npt.NDArray[np.uint8]

LETTERS = {"pixels": "P", "alpha": "A", "latent": "L", "marker": "M"}
"""The parts of an LR file whose survival is judged, and their letters in a table."""


@dataclass(frozen=True)
class Form:
    """A way to write an LR file.

    Attributes:
        name: what it is, for a table.
        auxiliary: kind of the models that have it, as `Variant.auxiliary`.
        layout: see `rescale.container.LAYOUTS`.
        carrier: see `rescale.carrier.CARRIERS`.
        containers: those it is measured in.
    """

    name: str
    auxiliary: str
    layout: str = "alpha"
    carrier: str = "chunk"
    containers: tuple[str, ...] = ("png",)


BOTH = ("png", "webp")
TITLES = {"png": "PNG", "webp": "WebP", "jxl": "JPEG XL"}

FORMS = (
    Form("alpha", "alpha", containers=BOTH),
    Form("alpha, marker in side-car", "alpha", carrier="sidecar"),
    Form("chunk", "alpha", layout="chunk", containers=BOTH),
    Form("strip", "alpha", layout="strip"),
    Form("chunk", "latent", containers=BOTH),
    Form("text", "latent", carrier="text", containers=BOTH),
    Form("side-car", "latent", carrier="sidecar"),
    Form("chunk", "none"),
)
"""Named by where the auxiliary data goes: -A's layout, -M's carrier. The marker is a chunk where nothing else is said.

There is no form of -A with its marker as text: the marker is below `rescale.carrier.COPIED_BYTES`, so ``chunk`` writes it as
text too.
"""


def forms_of(v: Variant, container: str) -> list[Form]:
    """Forms that a model's LR file can have in a container."""
    return [f for f in FORMS if f.auxiliary == v.auxiliary and container in f.containers]


def matrix(
    net_by_model: Mapping[str, Rescaler],
    picture: Array,
    *,
    states_only: Collection[str] = (),
    tools: Iterable[Tool] = TOOLS,
    progress: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Run every tool on every form of the LR file that the given models can write.

    Args:
        net_by_model: open bundles by the name that the rows shall have.
        picture: uint8 (H, W, 3) HR picture.
        states_only: names whose weights are not worth a PSNR, such as random ones.
        tools: what to run.
        progress: called with each tool's name when it is done, or missing.

    Returns:
        A row for each tool, container, model and form: ``tool``, ``version``, ``container``, ``model``, ``form``, for each
        part in `LETTERS` True, False or None (it has no such part), ``state``, and ``psnr_y``: dB against `picture` of the HR
        restored as far as the state allows, or None; ``psnr_y_trusted``: the same of the HR restored with ``trust_alpha``,
        for foreign and changed files with the alpha plane still in their alpha channel, or None. A tool that failed, or wrote
        something that is no picture, has ``failed`` in place of all results, and the others are measured all the same. A tool
        that is not there has one row: ``tool`` and ``missing``, the reason.
    """
    files: list[tuple[str, str, Form, Small, bytes, bytes | None]] = []
    for name, net in net_by_model.items():
        small = net.downscale(picture)
        for container in carriers.CONTAINERS:
            for form in forms_of(net.bundle.variant, container):
                files.append((container, name, form, small, *small.encode(container, form.layout, form.carrier)))
    rows: list[dict[str, Any]] = []
    for tool in tools:
        if reason := tool.missing():
            rows.append({"tool": tool.name, "missing": reason})
            progress(tool.name)
            continue
        version = tool.needs.version()
        for container, name, form, small, data, sidecar in files:
            if container not in tool.takes:
                continue
            row = {"tool": tool.name, "version": version, "container": container, "model": name, "form": form.name}
            hr = None if name in states_only else picture
            rows.append(row | _outcome(tool, small, data, sidecar, net_by_model[name], hr))
        progress(tool.name)
    return rows


def _outcome(tool: Tool, small: Small, data: bytes, sidecar: bytes | None, net: Rescaler, hr: Array | None) -> dict[str, Any]:
    """What one tool does to one file, and what is left of it, or why there is nothing."""
    whose = ""
    try:
        after = tool.run(data)
        whose = "what it wrote: "  # whatever a program writes, and calls a picture
        found: dict[str, Any] = judge(small, data, after, sidecar)
        return found | _restored(net, after, sidecar, hr, bool(found["alpha"]))
    except Exception as e:  # libraries raise what they like
        return {"failed": whose + (" ".join(str(e).split()) or type(e).__name__)}


def judge(small: Small, before: bytes, after: bytes, sidecar: bytes | None) -> dict[str, bool | None]:
    """Which parts of an LR file are still what they were, each judged by itself and not by the digests of the file.

    Args:
        small: what was written.
        before: the file as it was written.
        after: the file as a tool left it.
        sidecar: its side-car, which tools leave alone.
    """
    made = _block(before, sidecar)
    assert made is not None
    found = _block(after, sidecar)
    rgb, alpha = _planes(after, made)
    if made.layout == "chunk":
        alpha = _section(found, blocks.ALPHA_SECTION, small.alpha)
    latent = _section(found, blocks.LATENT_SECTION, small.latent)
    return {
        "pixels": _equal(rgb, small.rgb),
        "alpha": None if small.alpha is None else _equal(alpha, small.alpha),
        "latent": None if small.latent is None else _equal(latent, small.latent),
        "marker": found == made,
    }


def _restored(net: Rescaler, data: bytes, sidecar: bytes | None, hr: Array | None, trustworthy: bool) -> dict[str, Any]:
    """State of a file, and the PSNR of what is restored from it, exactly or else without auxiliary data.

    With `trustworthy`, the alpha plane is known to be whole, so a foreign or changed file is restored by it too.
    """
    seen = Small.from_bytes(data, sidecar=sidecar)
    state, _ = seen.verdict(*net.bundle.identity)
    found: dict[str, Any] = {"state": str(state), "psnr_y": None, "psnr_y_trusted": None}
    if hr is None:
        return found
    found["psnr_y"] = _psnr_y(net.upscale(seen, strict=state is State.EXACT), hr, net.bundle.scale)
    if trustworthy and seen.unverified_alpha is not None:
        found["psnr_y_trusted"] = _psnr_y(net.upscale(seen, trust_alpha=True), hr, net.bundle.scale)
    return found


def _psnr_y(again: Array, hr: Array, scale: int) -> float | None:
    """PSNR of a restored picture; None if the LR had another size."""
    height, width = hr.shape[:2]
    # Without its marker a file does not tell how far the HR was padded; the excess is cut for the comparison.
    padded = (-(-height // scale) * scale, -(-width // scale) * scale)
    if again.shape[:2] not in ((height, width), padded):
        return None
    return psnr_y(again[:height, :width], hr, scale)


def _block(data: bytes, sidecar: bytes | None) -> Block | None:
    """The first readable copy of the block: chunk, text, side-car; None if there is none."""
    for copy in [*carriers.read(data, "file")[0], *([] if sidecar is None else [sidecar])]:
        with contextlib.suppress(blocks.DamagedBlockError, blocks.NewerFormatError):
            return blocks.decode(copy)
    return None


def _planes(data: bytes, made: Block) -> tuple[Array | None, Array | None]:
    """RGB and alpha codes that a file's pixels hold, as it was made; None if the picture has another size."""
    pixels = decode_pixels(data, "file")
    width, height = made.lr_size
    rows = height + (planes.strip_rows(height) if made.layout == "strip" else 0)
    if pixels.shape[:2] != (rows, width):
        return None, None
    rgb = pixels[:, :, :3]
    if made.layout == "strip":
        return planes.take_strip(rgb, height)
    opaque = np.full((height, width), 255, np.uint8)
    return rgb, codes.alpha_from_file(pixels[:, :, 3] if pixels.shape[2] == 4 else opaque)


def _section(found: Block | None, name: bytes, like: Array | None) -> Array | None:
    if found is None or like is None or name not in found.sections:
        return None
    return planes.decode(found.sections[name], like.shape, "file")


def _equal(a: Array | None, b: Array) -> bool:
    return a is not None and np.array_equal(a, b)


def survivors(row: Mapping[str, Any]) -> str:
    """Letters of the parts that are still what they were, such as ``PA``; ``-`` for none."""
    return "".join(letter for part, letter in LETTERS.items() if row[part]) or "-"


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as one table a container, tools down and forms across, with the versions, and what is missing, below."""
    lines: list[str] = []
    ran = [r for r in rows if "missing" not in r]
    for container in dict.fromkeys(r["container"] for r in ran):
        here = [r for r in ran if r["container"] == container]
        columns = list(dict.fromkeys((r["model"], r["form"]) for r in here))
        cells = {(r["tool"], r["model"], r["form"]): _cell(r) for r in here}
        lines += [f"### LR files in {TITLES[container]}", ""]
        lines.append("| Tool | " + " | ".join(f"{model}: {form}" for model, form in columns) + " |")
        lines.append("|---" * (len(columns) + 1) + "|")
        for tool in dict.fromkeys(r["tool"] for r in here):
            lines.append(f"| {tool} | " + " | ".join(cells.get((tool, *c), "") for c in columns) + " |")
        lines.append("")
    lines.append("Versions: " + ", ".join(sorted({r["version"] for r in ran}, key=str.lower)) + ".")
    missing = [f"- {r['tool']}: {r['missing']}" for r in rows if "missing" in r]
    failed = [f"- {r['tool']} on {r['model']}, {r['form']} ({r['container']}): {r['failed']}" for r in ran if "failed" in r]
    if missing:
        lines += ["", "Not run:", "", *missing]
    if failed:
        lines += ["", "Failed:", "", *failed]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return "failed"
    figure = "n.a." if row["psnr_y"] is None else f"{row['psnr_y']:.2f}"
    if row["psnr_y_trusted"] is not None:
        figure += f" ({row['psnr_y_trusted']:.2f} with --trust-alpha)"
    state = f"**{row['state']}**" if row["state"] == State.EXACT else row["state"]
    return f"{state} {survivors(row)} {figure}"
