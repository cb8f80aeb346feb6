"""Command line of the exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rescale.bundle import Bundle, check_precision
from rescale.cli_options import checked
from rescale.console import Version, new_app, print_json, require, run_app, work_bar
from rescale.contract import GRADIENT
from rescale.errors import CheckpointError, RescaleError
from rescale.variants import SCALES, VARIANTS, check_scale, variant

REPORTED = ("graphs", "precisions", GRADIENT, "parity", "precision_parity")
"""What `--json` prints of the manifest."""

app = new_app("Export a network as a bundle of ONNX graphs, checked against PyTorch.")


def _check_size(name: str) -> None:
    from rescale_train.config import check_size

    check_size(name)


def _check_server(name: str) -> None:
    from rescale_export.triton import check_backend

    check_backend(name)


def _check_precisions(names: list[str]) -> None:
    for name in names:
        check_precision(name)


@app.command()
def export(
    model: Annotated[str, typer.Option(callback=checked(variant), help=f"One of {', '.join(VARIANTS)}.")] = "dlv_irn_a",
    scale: Annotated[int, typer.Option(callback=checked(check_scale), help="2 or 4.")] = 2,
    size: Annotated[
        str | None,
        typer.Option(callback=checked(_check_size), help="lite, medium or full; without it medium where it ships, else lite."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights or checkpoint file instead of shipped weights.")] = None,
    precision: Annotated[
        list[str],
        typer.Option(
            callback=checked(_check_precisions),
            help="Graphs beside the float32 ones: mixed, fp16; repeat for several, fp32 for no more.",
        ),
    ] = ["mixed"],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default MODEL_xSCALE_SIZE here.")] = None,
    triton: Annotated[Path | None, typer.Option(help="Also write Triton models into this model repository.")] = None,
    triton_backend: Annotated[
        str | None,
        typer.Option(
            callback=checked(_check_server), help="What runs them: onnxruntime, tensorrt or python; by default onnxruntime."
        ),
    ] = None,
    triton_precision: Annotated[
        str | None, typer.Option(help="Graphs that Triton serves; by default mixed for tensorrt, fp32 for others.")
    ] = None,
    triton_engines: Annotated[Path | None, typer.Option(help="Folder of engines for tensorrt; by default the cache's.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List models, scales, sizes and shipped weights, and stop.")] = False,
    refine: Annotated[
        bool, typer.Option("--refine", help="Also the gradient graph, which `rescale down --refine` needs (docs/refine.md).")
    ] = False,
    corrections: Annotated[
        int | None,
        typer.Option(
            help="How many of the encoder's corrections to keep; by default all. 0: some ten times faster, restores less.", min=0
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    version: Version = False,
) -> None:
    """Write the bundle of a model: `rescale-export --model dlv_irn_a --scale 2`."""
    require(("torch", "safetensors", "onnx", "onnxruntime"), "export")
    from rescale_train import checkpoint as checkpoints
    from rescale_train.lineage import card_beside, provenance
    from rescale_train.shipped import find_shipped

    if list_:
        print_list(json_)
        return
    from rescale_export.bundles import bundle_name, check_target, write_bundle
    from rescale_export.triton import BACKENDS, check_repository, served_precision, write_repository
    from rescale_train.config import size_name

    server = BACKENDS[0] if triton_backend is None else triton_backend
    if triton is not None:
        served_precision(server, triton_precision, dict.fromkeys(("fp32", *precision)))
        if triton_engines is not None and server != "tensorrt":
            raise typer.BadParameter(f"--triton-engines is for --triton-backend tensorrt, not {server}")
        check_repository(triton, out)
    elif (triton_backend, triton_precision, triton_engines) != (None, None, None):
        raise typer.BadParameter("--triton-backend, --triton-precision and --triton-engines are for --triton, which is missing")
    if out is not None:
        check_target(out)
    card: dict[str, Any] = {}
    if checkpoint is None:
        shipped = find_shipped(model, scale, size)
        source, card = shipped.path, shipped.card
        where, figure = shipped.headline()
        said = f"shipped weights {shipped.title}"
        measured = f", {figure:.2f} dB Y-PSNR on {where}" if where else ""
    else:
        source, said, measured = checkpoint, f"weights of {checkpoint}", ""
    found = checkpoints.read(source)
    config = found.recipe.net
    if (config.model, config.scale) != (model, scale):
        raise CheckpointError(f"{source}: holds {config.model} x{config.scale}, not {model} x{scale}; give --model and --scale so")
    net = checkpoints.load_net(found, str(source))
    card = card or card_beside(source, checkpoints.weights_digest(net)) or provenance(found.progress)
    if size is not None and size_name(config) != size:
        raise CheckpointError(f"{source}: is of size {size_name(config)}, not {size}")
    kept = config.corrections if corrections is None else corrections
    nested = found.recipe.train.nested
    if kept > config.corrections or (0 < kept < config.corrections and not nested):
        raise CheckpointError(f"{source}: --corrections {kept}: it can have {_counts(config.corrections, nested)}")
    if kept < config.corrections:
        net = net.with_corrections(kept)
        said += f", {kept} of {config.corrections} corrections of the encoder"
        # What the card measured and counted is with them.
        card = {k: v for k, v in card.items() if k not in ("figures", "validation", "parameters", "weights_sha256")}
    else:
        said += measured
        if kept:
            said += f", {kept} corrections of the encoder (--corrections 0 is some ten times faster)"
        elif corrections == 0:
            said += "; they have no corrections to leave out"
    target = out or Path(bundle_name(net))
    if triton is not None:
        check_repository(triton, target)
    if not json_:
        print(f"{model} x{scale}: {said}")
    with work_bar("exporting") as told:
        bundle = write_bundle(net, target, card, precision, refine, told)
    if not json_:
        print_bundle(bundle)
    report: dict[str, Any] = {"bundle": str(bundle.path), "weights": said}
    report |= {key: bundle.manifest[key] for key in REPORTED if key in bundle.manifest}
    if triton is not None:
        served: dict[str, Any] = {"repository": str(triton), "backend": server}
        try:
            served["models"] = write_repository(bundle, triton, server, triton_precision, triton_engines)
        except RescaleError as e:
            if json_:  # the bundle is there, whatever became of the repository
                print_json({**report, "triton": {**served, "error": str(e)}})
            raise
        report["triton"] = served
        if not json_:
            print(f"triton: {triton}: {', '.join(served['models'])}")
    if json_:
        print_json(report)


def _counts(corrections: int, nested: bool) -> str:
    """How many corrections an encoder can have, of those that its weights hold."""
    return f"0 {'to' if nested else 'or'} {corrections}" if corrections else "0"


def print_bundle(bundle: Bundle) -> None:
    """Files of a written bundle, and how far they agree with PyTorch."""
    m = bundle.manifest
    for name, graph in (m["graphs"] | ({GRADIENT: m[GRADIENT]} if GRADIENT in m else {})).items():
        p = m["parity"].get(name, {})
        agreement = ""
        if "values" in p:
            agreement = f", {p['different']} of {p['values']} values differ from PyTorch, by at most {p['largest']}"
        elif "relative_error" in p:
            agreement = f", differs from PyTorch's gradient by {p['relative_error']:.1g} of its size"
        print(f"  {graph['file']}: {graph['bytes']} bytes{agreement}")
    for name, found in m["precision_parity"].items():
        outputs = found["graphs"].items()
        shares = ", ".join(f"{k} {100 * c['different'] / c['values']:.2f} % (at most {c['largest']})" for k, c in outputs)
        size = sum(g["bytes"] for g in m["precisions"][name].values())
        print(f"  {name}: {size} bytes, loses {found['psnr_lost']:.3f} dB; values that differ: {shares}")
    print(f"bundle: {bundle.path}")


def print_list(json_: bool) -> None:
    """All models and scales, with the weights that ship for them."""
    from rescale_train.config import SIZES
    from rescale_train.shipped import Shipped, default_of, list_shipped

    def describe(s: Shipped, default: Shipped) -> dict[str, Any]:
        said = {key: s.card[key] for key in ("parameters", "figures")}
        corrections = s.card["recipe"]["net"].get("corrections", 0)
        nested = s.card["recipe"]["train"].get("nested", False)
        return {"size": s.size, "default": s is default, "steps": s.steps, "corrections": corrections, "nested": nested, **said}

    shipped = list_shipped()
    rows: list[dict[str, Any]] = []
    for name, v in VARIANTS.items():
        for scale in SCALES:
            here = [s for s in shipped if (s.model, s.scale) == (name, scale)]
            weights = [describe(s, default_of(here)) for s in here]
            rows.append({"model": name, "title": v.title, "scale": scale, "sizes": list(SIZES), "weights": weights})
    if json_:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['model']} x{row['scale']} ({row['title']}), sizes {', '.join(row['sizes'])}")
        for w in sorted(row["weights"], key=lambda w: -w["parameters"]):
            marked = " (default)" if w["default"] else ""
            corrected = f", {_counts(w['corrections'], w['nested'])} corrections" if w["corrections"] else ""
            what = f"{w['parameters'] / 1e6:.2f} M parameters{corrected}, {w['steps']:,} steps"
            figures = ", ".join(f"{k} {v['hr_psnr_y']:.2f} dB" for k, v in w["figures"].items())
            print(f"    shipped: {w['size']}{marked}, {what}; Y-PSNR {figures}")
    print("(default): what is taken without --size; steps: of all runs that led to the weights; corrections: see --corrections")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `rescale-export`."""
    return run_app(app, argv)
