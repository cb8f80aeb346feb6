"""docs/weights.md: every file of weights that ships, as its card has it. `python -m rescale_bench.weights_page docs/weights.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rescale.files import atomic_write
from rescale_bench.paper import published
from rescale_train.config import Recipe, size_name
from rescale_train.recipe import differences, load_recipe, recipe_names
from rescale_train.shipped import Shipped, list_shipped
from rescale_train.tables import from_dict

SETS = ("Set5", "Set14", "BSD100", "Kodak")
MODELS = ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_m", "dlv_irn_a")
"""Models in the order of the paper's table."""

PREFACE = """# The weights that ship

Written by `python -m rescale_bench.weights_page docs/weights.md` from the cards in
[train/rescale_train/weights](../train/rescale_train/weights), which hold every figure, the whole recipe and what a file was
trained on.

Measured with `rescale-bench psnr BUNDLE --data DIR`: through the exported graphs and the PNG file, BT.601 Y, HR and LR rounded to
8 bits, as many border pixels cropped as the scale, mean of the pictures' values. *LR* is the LR against bicubic, *lost* the HR
when alpha or metadata are gone, *kB* the LR file. Rows in italics are published figures, of networks of 1.7 (x2) or 4.4 to 4.8 (x4)
million parameters and 250,000 to 500,000 steps, trained on R, G and B alike. *luma +N* marks weights whose last run counted the
square of a luma error 1 + N times (`train.loss.luma`, [experiments.md](experiments.md)), which gains Y-PSNR and costs RGB-PSNR."""


def page(shipped: Iterable[Shipped]) -> str:
    """The whole page as Markdown, from the cards alone."""
    every = sorted(shipped, key=lambda s: (s.scale, MODELS.index(s.model), s.size))
    lines = [PREFACE]
    for scale in sorted({s.scale for s in every}):
        lines += ["", f"## x{scale}", "", "| HR Y-PSNR / RGB-PSNR (dB) / SSIM of Y | M parameters | " + " | ".join(SETS) + " |"]
        lines += ["|---|---|" + "---|" * len(SETS)]
        here = [s for s in every if s.scale == scale]
        for s in here:
            luma = s.card["recipe"]["train"]["loss"].get("luma", 0.0)
            marked = f", luma +{luma:g}" if luma else ""
            lines.append(_row(f"**{s.model} {s.size}**{marked}", f"{s.card['parameters'] / 1e6:.2f}", s.card, _hr))
        for method in ("IRN", "DLV-IRN", "DLV-IRN-M", "DLV-IRN-A"):
            figures = {name: published(scale, name).get(method) for name in SETS}
            cells = [f"*{f[0]:.2f} / - / {f[1]:.4f}*" if f else "" for f in figures.values()]
            lines.append(f"| *paper: {method}* |  | " + " | ".join(cells) + " |")
        lines += ["", "| LR / lost (dB), kB (bits a LR pixel) | " + " | ".join(SETS) + " |", "|---|" + "---|" * len(SETS)]
        lines += [_row(f"{s.model} {s.size}", None, s.card, _lr) for s in here]
        lines += ["", "Trained by, in this order (DIR: photographs; minutes are of the card's machine):", ""]
        for s in here:
            lines += [f"- {s.model} {s.size}:", *(f"  {n}. {step}" for n, step in enumerate(history(s), 1))]
    return "\n".join(lines) + "\n"


def history(shipped: Shipped) -> list[str]:
    """The runs that led to weights, first one first: command, network, steps and minutes."""
    lines: list[str] = []
    start = ""
    for number, stage in enumerate(shipped.stages, 1):
        recipe = from_dict(Recipe, stage["recipe"], "recipe")
        stopped = "" if stage["steps"] >= recipe.train.steps else f" (stopped after {stage['steps']:,})"
        steps = f"{recipe.train.steps:,} steps{stopped}"
        command = f"rescale-train run {_arguments(recipe)} --data DIR --out runs/{number}{start}"
        network = f"{recipe.net.model} x{recipe.net.scale} {size_name(recipe.net)}"
        lines.append(f"`{command}`: {network}, {steps}, {stage['minutes']:.0f} minutes")
        start = f" --init-from runs/{number}/checkpoint.safetensors"
    return lines


def _arguments(recipe: Recipe) -> str:
    """Recipe and --set of a run: those of the shipped recipe of its network that needs the fewest."""
    found = []
    for name in recipe_names():
        base = load_recipe(name)
        if (base.net.model, base.net.scale, size_name(base.net)) == (recipe.net.model, recipe.net.scale, size_name(recipe.net)):
            changes = {key: value for key, (_, value) in differences(base, recipe).items()}
            found.append((len(changes), name, changes))
    if not found:
        raise ValueError(f"no shipped recipe trains {recipe.net}")
    _, name, changes = min(found, key=lambda f: f[:2])
    return " ".join([name, *(f"--set '{key}={json.dumps(value)}'" for key, value in changes.items())])


def _row(title: str, parameters: str | None, card: Mapping[str, Any], cell: Callable[[Any], str]) -> str:
    cells = [cell(card["figures"][name]) if name in card["figures"] else "" for name in SETS]
    return f"| {title} | " + (f"{parameters} | " if parameters is not None else "") + " | ".join(cells) + " |"


def _hr(figures: Mapping[str, Any]) -> str:
    return f"**{figures['hr_psnr_y']:.2f}** / {figures['hr_psnr_rgb']:.2f} / {figures['hr_ssim_y']:.4f}"


def _lr(figures: Mapping[str, Any]) -> str:
    forced = figures["hr_psnr_y_forced"]
    lost = "" if forced is None else f" / {forced:.2f}"
    return f"{figures['lr_psnr_y']:.2f}{lost}, {figures['bytes'] / 1000:.0f} ({figures['bits_per_lr_pixel']:.1f})"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m rescale_bench.weights_page docs/weights.md")
    atomic_write(Path(sys.argv[1]), page(list_shipped()).encode())
