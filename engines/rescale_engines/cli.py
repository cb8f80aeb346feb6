"""Command line of the engine builder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from rescale.bundle import PRECISIONS, Bundle
from rescale.cli_options import memory_option
from rescale.console import Version, new_app, print_json, printable, run_app, warn
from rescale.contract import graph_names
from rescale.engine_file import build_command, cache_folder, engines_folder
from rescale.errors import BackendError, MissingExtraError, OutputError
from rescale.flavour import NAMES, load
from rescale_engines import inspect as inspection
from rescale_engines.build import MAX_MEMORY, Built, Options
from rescale_engines.cache import Entry, abandoned, remove, scan
from rescale_engines.network import Progress, capability_enum
from rescale_engines.profiles import CLASSES, parse_profile

app = new_app("Build TensorRT engines from bundles, and look after them.")

_OUT = "Folder of engines; by default one per bundle in $RESCALE_CACHE or the user's cache."


@app.callback()
def _main(version: Version = False) -> None:
    """Build TensorRT engines from bundles, and look after them."""


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by rescale-export.")],
    backend: Annotated[str, typer.Option(help=f"{' or '.join(NAMES)}; only tensorrt-rtx builds without a GPU.")] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help=f"Which of the bundle's graphs: {', '.join(PRECISIONS)}.")] = "mixed",
    graph: Annotated[list[str] | None, typer.Option(help="Graph to build; repeat for several. Default: all.")] = None,
    profile: Annotated[
        list[str],
        typer.Option(help=f"MIN:OPT:MAX, each HxW or BATCHxHxW in HR pixels, or {', '.join(CLASSES)}; repeat for several."),
    ] = ["hd"],  # noqa: B006
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="Such as 8.9; repeat for several. Only tensorrt-rtx. Default: all it targets.")
    ] = None,
    workspace: Annotated[int | None, memory_option("Scratch memory for a layer, such as 1GB. Default: the library's.")] = None,
    max_memory: Annotated[int, memory_option(f"For a graph at the largest size. Default: {MAX_MEMORY >> 30}GB.")] = MAX_MEMORY,
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if a valid engine is there.")] = False,
    exact_precision: Annotated[
        bool, typer.Option("--exact-precision", help="Refuse, instead of taking a surer precision, if too much is lost.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build a bundle's engines, once its graphs pass the parity gate in that precision. Valid engines are kept."""
    from rescale_engines.gate import build_checked

    opened = Bundle(bundle)
    graphs = list(dict.fromkeys(graph or graph_names(opened.variant)))
    profiles = list(dict.fromkeys(parse_profile(text, opened.scale) for text in profile))
    options = Options(
        folder=out,
        compute_capabilities=tuple(compute_capability or ()),
        workspace=workspace,
        max_memory=max_memory,
        force=force,
    )
    # Before the gate, which takes seconds: what cannot be built is known now.
    for name in graphs:
        for one in profiles:
            one.require_memory(opened.graph(name, precision), options.max_memory)
    flavour = load(backend, needs_device=backend != "tensorrt-rtx")
    for capability in options.compute_capabilities:
        capability_enum(flavour, capability)
    with _bar() as (progress, done):
        outcome = build_checked(
            opened, profiles, graphs, backend, precision, options, exact=exact_precision, progress=progress, done=done
        )
    if outcome.precision != precision:
        reasons = [f"{p} engines refused {why}" for p, why in outcome.refused.items()]
        reasons += [str(outcome.choice)] if outcome.choice.refused else []
        warn(f"{opened.title}: {'; '.join(reasons)}")
    if json_:
        print_json({"bundle": str(bundle), "backend": backend, "wanted": precision, **outcome.to_dict()})
        return
    print(printable(f"{opened.title}: {outcome.choice}"))
    for built in outcome.engines:
        print(printable(_line(built)))
    for words, found in outcome.parity.items():
        print(f"the engines of profile {words} lose {found.lost:.3f} dB against PyTorch")
    for words, why in outcome.unmeasured.items():
        print(f"the engines of profile {words} were not run: {why}")


def _line(built: Built) -> str:
    size = f"{built.info.bytes / 1e6:.1f} MB"
    if built.reused:
        return f"{built.info.path}: {size}, kept"
    why = f" ({built.reason})" if built.reason else ""
    return f"{built.info.path}: {size}, built in {built.seconds:.1f} s{why}"


@contextlib.contextmanager
def _bar() -> Iterator[tuple[Progress | None, Any]]:
    """The builder's present phase and its steps, and the engines that are done, on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield None, None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Checking the graphs", total=None)
        yield (
            lambda phase, step, steps: bar.update(task, description=phase, completed=step, total=steps or None),
            lambda built: bar.console.print(f"{built.info.graph} {built.info.precision}: {'kept' if built.reused else 'built'}"),
        )


@app.command()
def inspect(
    engine: Annotated[Path, typer.Argument(help="Engine or its sidecar.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """What an engine is for, and whether it is whole. Needs no GPU. Exit code 1 if it cannot be used."""
    found = inspection.report(engine)
    if json_:
        print_json(found)
    else:
        print(inspection.as_text(found))
    return 1 if found["problem"] else 0


@app.command("list")
def list_(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by rescale-export.")],
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """A bundle's engines, and what is wrong with those that cannot be used."""
    opened = Bundle(bundle)
    _require_folder(out)
    folder = engines_folder(opened, out)
    entries = scan(folder, opened, _versions())
    if json_:
        print_json({"folder": str(folder), "engines": [e.to_dict() for e in entries]})
        return
    for entry in entries:
        print(printable(f"{entry.path.name}: {'ready' if entry.problem is None else _short(entry)}"))
    if not entries:
        print(printable(f"{folder}: no engines; make some with {build_command(opened, out)}"))


def _require_folder(out: Path | None) -> None:
    if out is not None and not out.is_dir():
        raise OutputError(f"--out {out}: no such folder")


def _short(entry: Entry) -> str:
    # The line begins with the file's name already.
    return (entry.problem or "").removeprefix(f"{entry.path}: ")


def _versions() -> dict[str, str]:
    """Versions of the installed libraries; their modules are loaded, nothing of them is constructed."""
    found = {}
    for name in NAMES:
        with contextlib.suppress(BackendError, MissingExtraError):
            found[name] = load(name, needs_device=False).version
    return found


@app.command()
def clean(
    bundle: Annotated[Path | None, typer.Argument(help="Only this bundle's engines. Default: those of all bundles.")] = None,
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also engines that are in order.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Delete engines that cannot be used: damaged, half-written, of another library version, or of graphs exported since.

    With BUNDLE, engines of other bundles stay, wherever they lie.
    """
    opened = None if bundle is None else Bundle(bundle)
    _require_folder(out)
    if opened is not None:
        folders = [engines_folder(opened, out)]
    elif out is not None:
        folders = [out]
    else:
        root = cache_folder() / "engines"
        folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    versions = _versions()
    rows: list[dict[str, Any]] = []
    for folder in folders:
        for entry in scan(folder, opened, versions):
            if entry.foreign or (entry.problem is None and not all_):
                continue
            reason = _short(entry) if entry.problem else "in order"
            rows.append({"path": str(entry.path), "reason": reason, "deleted": not dry_run and remove(entry)})
        for path in abandoned(folder):
            if not dry_run:
                _unlink(path)
            rows.append({"path": str(path), "reason": "left behind by a killed process", "deleted": not dry_run})
    if json_:
        print_json(rows)
        return
    for row in rows:
        verb = "would be deleted" if dry_run else "deleted" if row["deleted"] else "kept: another process is building it"
        print(printable(f"{row['path']}: {verb} ({row['reason']})"))
    if not rows:
        print("nothing to delete")


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise OutputError(f"{path}: cannot delete: {e.strerror}") from None


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``rescale-engine``; returns the exit code."""
    return run_app(app, argv)


if __name__ == "__main__":
    raise SystemExit(main())
