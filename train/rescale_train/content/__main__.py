"""`python -m rescale_train.content`: measure weights on the generated set and on folders of photographs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rescale.console import new_app, print_json, require, run_app
from rescale.errors import InputError
from rescale_train.options import named_sets

app = new_app("Measure weights on pictures that no photographer took, and on photographs.")


@app.command()
def report(
    weights: Annotated[list[str], typer.Argument(help="Shipped weights such as dlv_irn_a_x2_lite, or files.")],
    data: Annotated[list[Path] | None, typer.Option(help="Folder of photographs to measure too; repeat for several.")] = None,
    degraded: Annotated[bool, typer.Option(help="Also measure the photographs compressed, reduced, sharpened, exposed.")] = False,
    each: Annotated[bool, typer.Option(help="A line for every picture.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print HR and LR fidelity and colour casts of the generated set and of folders."""
    require(("torch", "safetensors", "matplotlib"), "train")
    from rescale_train import checkpoint
    from rescale_train.content import held
    from rescale_train.content.degraded import KINDS
    from rescale_train.content.report import HEAD, load_pictures, measure, row, summary
    from rescale_train.shipped import weights_file

    folders = named_sets("--data", data or [], "generated")
    sets = {"generated": held.generated_set()}
    for title, folder in folders.items():
        photographs = load_pictures(folder)
        sets[title] = photographs
        if degraded:
            made = held.degraded_set(photographs)
            sets |= {f"{title} {k}": {n: p for n, p in made.items() if n.endswith(f" {k}")} for k in KINDS}
    if any(min(p.shape[:2]) < 8 for s in sets.values() for p in s.values()):
        raise InputError("a picture has a side below 8 pixels; there is nothing to measure in it")
    result: dict[str, object] = {}
    for name in weights:
        path = weights_file(name)
        net = checkpoint.read_net(path)
        found = {title: measure(net, pictures) for title, pictures in sets.items()}
        result[name] = {t: {"summary": summary(f), "each": {k: asdict(v) for k, v in f.items()}} for t, f in found.items()}
        if not json_:
            print(f"{name}\n\n{HEAD}")
            for title, values in found.items():
                print(row(f"**{title}**" if each else title, summary(values)))
                for picture, value in values.items() if each else ():
                    print(row(picture, summary({picture: value})))
            print()
    if json_:
        print_json(result)


if __name__ == "__main__":
    sys.exit(run_app(app))
