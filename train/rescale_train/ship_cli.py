"""`rescale-train ship`: weights for users out of a training checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescale.console import require, warn
from rescale.errors import CheckpointError, OutputError
from rescale.files import atomic_write, atomic_write_both
from rescale.json_text import as_json
from rescale_train.options import EXTRA, HOLDOUT, spread

if TYPE_CHECKING:
    from rescale_train.models import RescalingNet


def ship(
    source: Annotated[Path, typer.Argument(help="Training checkpoint.", metavar="CHECKPOINT")],
    target: Annotated[Path, typer.Argument(help="Weights file to write (.safetensors).", metavar="WEIGHTS")],
    held: Annotated[
        list[Path] | None,
        typer.Option(
            help="Where WEIGHTS exists: folder of the pictures that the run held out, which is its --data, or its --val if it had "
            "one; repeat for several. Old and new weights are measured on those and on the generated set, and the better ones stay."
        ),
    ] = None,
    holdout: Annotated[
        int, typer.Option(help="Training pictures that the run held out, for a checkpoint that does not name them.", min=1)
    ] = HOLDOUT,
    figures: Annotated[Path | None, typer.Option(help="Report of `rescale-bench psnr --out`: also write the card.")] = None,
    data: Annotated[str, typer.Option(help="For the card: what it was trained on.")] = "",
    machine: Annotated[str, typer.Option(help="For the card: where it was trained.")] = "",
    licence: Annotated[
        str, typer.Option(help="For the card: licence of the weights; of those that began with published ones it is theirs.")
    ] = "",
) -> None:
    """Write the averaged weights of a checkpoint, rounded to float16, as a weights file; with --figures also its card.

    An existing file is replaced by better weights only.
    """
    require(EXTRA, "train")
    from rescale_train import checkpoint
    from rescale_train.shipped import make_card

    if figures is None and (data or machine or licence):
        raise typer.BadParameter("--data, --machine and --licence are for the card, which wants --figures")
    if target.suffix != ".safetensors":
        raise OutputError(f"{target}: weights are a .safetensors file, beside which a card lies as .json; name it so")
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(
            f"{target}: is the checkpoint itself, from which a run could not be resumed afterwards; choose another name"
        )
    found = checkpoint.read(source)
    net = checkpoint.load_net(found, str(source))
    # Stored as float16 and loaded as float32: every user computes with exactly the same weights.
    rounded = {k: v.half() for k, v in net.state_dict().items()}
    net.load_state_dict(rounded)
    if target.exists():
        named = checkpoint.held_out(found, str(source))
        if named is None and (named := checkpoint.validated_on(found, str(source))) is not None:
            warn(f"{source}: the weights that it began with do not say what they were trained on; if on these, the figures flatter")
        check_replacement(net, target, held or [], named, holdout)
    card = target.with_suffix(".json")
    written = checkpoint.to_bytes(rounded, found.recipe, found.progress)
    if figures is None:
        atomic_write(target, written)
    else:
        made = make_card(found.recipe, found.progress, net, figures, data, machine, licence.strip())
        atomic_write_both((card, as_json(made).encode()), (target, written))
    print(f"{target}: {len(written)} bytes")
    if figures is not None:
        print(card)
    elif card.exists():
        warn(f"{card}: describes earlier weights unless these are the same; give --figures to write it anew")


def check_replacement(new: RescalingNet, target: Path, folders: list[Path], held_out: list[str] | None, holdout: int) -> None:
    """Print how weights compare with those of a file that they would replace.

    Args:
        new: network of the new weights.
        target: the file.
        folders: where the run's pictures lie.
        held_out: digests of those that it held out; None if its checkpoint does not name them.
        holdout: how many it held out, where it does not name them.

    Raises:
        CheckpointError: the file is of another model, scale or size, or no weights file.
        OutputError: the new weights are not better, or there are no pictures to tell by.
    """
    from rescale_train import checkpoint
    from rescale_train.config import size_name
    from rescale_train.content.held import generated_set
    from rescale_train.data import by_content, find_pictures, load_held
    from rescale_train.replace import judge

    before = checkpoint.read_net(target)
    if checkpoint.weights_digest(before) == checkpoint.weights_digest(new):
        return
    holds, wanted = (f"{n.config.model} x{n.config.scale} {size_name(n.config)}" for n in (before, new))
    if holds != wanted:
        raise CheckpointError(f"{target}: holds {holds}, not {wanted}; choose another path")
    if not folders:
        raise OutputError(
            f"{target}: exists; choose another path, or give --held DIR, the run's --val or else --data: better weights replace it"
        )
    paths = find_pictures(folders)
    if held_out is None:
        warn(f"the checkpoint does not name what it held out: taken is what --holdout {holdout} chooses")
        chosen = spread(paths, holdout)
    else:
        there = by_content(paths)
        chosen = [there[digest] for digest in held_out if digest in there]
        if 0 < len(chosen) < len(held_out):
            few = f"{len(chosen)} of the {len(held_out)} pictures that the run held out"
            raise OutputError(f"{target}: {few} are in {', '.join(map(str, folders))}; name all its folders: a few tell nothing")
    photographs = load_held(chosen, new.config.scale)
    if not photographs:
        raise OutputError(
            f"{target}: nothing to tell by in {', '.join(map(str, folders))}: {len(paths)} picture(s), {len(chosen)} of them held "
            f"out; give what the run had, 2 or more, of at least {8 * new.config.scale} pixels a side"
        )
    verdict = judge(before, new, {"photographs": photographs, "generated pictures": generated_set()})
    print(verdict.table)
    if verdict.refusal:
        raise OutputError(f"{target}: kept as it is: {verdict.refusal}")
