"""`rescale-train import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale.console import print_json, require


def import_file(
    source: Annotated[Path, typer.Argument(help="Published checkpoint (.pth or .safetensors).", metavar="FILE")],
    target: Annotated[Path, typer.Argument(help="Weights file to write (.safetensors); its card goes beside it.", metavar="OUT")],
    licence: Annotated[str, typer.Option(help="Licence of the weights, as their publisher states it.")] = "unknown",
    json_: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Turn a published IRN checkpoint into a weights file: `rescale-train import IRN_x2.pth irn.safetensors`."""
    require(("torch", "safetensors"), "train")
    from rescale_train.importers.convert import convert

    card = convert(source, target, licence)
    if json_:
        print_json(card)
        return
    net = card["recipe"]["net"]
    shown = f"{card['model']} x{card['scale']}, blocks {net['blocks']}, growth {net['growth']}, {card['parameters']} parameters"
    print(f"{target}: {shown}; layout {card['imported']['layout']}, licence {card['licence']}; figures not measured here")
    print(f"next: rescale-export --model {card['model']} --scale {card['scale']} --checkpoint {target}")
