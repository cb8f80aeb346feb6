"""Studies: short runs that differ in one thing, trained on the same crops and measured on the same pictures.

A study is a TOML file: a base recipe, values that all arms share, and arms that each change a few of them.

    title = "..."                      what is asked
    recipe = "dlv_irn_a_x2_lite"       base
    [set]                              of all arms, dotted keys as for --set
    "train.steps" = 600
    [[arm]]
    name = "as the recipe"             the first arm of a group is what the others are compared with
    group = "alpha"                    optional; arms of one question
    paper = 33.12                      optional; the paper's figure for this setting
    set = { "net.alpha_gain" = 1.0 }
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from rescale.errors import ConfigError, InputError, RescaleError
from rescale.files import atomic_write
from rescale.json_text import as_json
from rescale_train import checkpoint
from rescale_train.config import Recipe
from rescale_train.cost import macs_per_lr_pixel
from rescale_train.data import CropSampler, Picture, Sampling, pictures_digest
from rescale_train.loop import DivergedError, Options, Trainer
from rescale_train.models import build
from rescale_train.recipe import load_recipe, parse_toml
from rescale_train.start import Start
from rescale_train.tables import to_dict
from rescale_train.validation import validate


@dataclass(frozen=True)
class Arm:
    """One run of a study.

    Attributes:
        name: unique in the study; also the name of its folder.
        group: the question that it belongs to.
        recipe: what it trains.
        changes: the arm's own values by dotted key.
        paper: the paper's figure for this setting in dB, if it has one.
    """

    name: str
    group: str
    recipe: Recipe
    changes: dict[str, Any]
    paper: float | None = None


@dataclass(frozen=True)
class Study:
    """A question and its arms."""

    title: str
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Setting:
    """What the arms of a study share beside their recipes.

    Attributes:
        start: digest of the weights that they begin with; None: fresh ones.
        trained_on: `data.pictures_digest` of the training pictures.
    """

    start: str | None
    trained_on: str


def study_names() -> list[str]:
    """Names of the studies that ship with the package."""
    folder = resources.files("rescale_train") / "studies"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load_study(name_or_path: str) -> Study:
    """Read a study by shipped name or path.

    Raises:
        ConfigError: no such study, or its content is wrong; the message names the key.
    """
    path = Path(name_or_path)
    try:
        if path.suffix == ".toml":
            text = path.read_text(encoding="utf-8-sig")
        elif name_or_path in study_names():
            text = (resources.files("rescale_train") / "studies" / f"{name_or_path}.toml").read_text(encoding="utf-8")
        else:
            raise ConfigError(f"unknown study {name_or_path!r}: give a .toml file or one of {', '.join(study_names())}")
        table = parse_toml(text)
    except OSError as e:
        raise ConfigError(f"{path}: cannot read the study: {e.strerror}") from None
    except ValueError as e:
        raise ConfigError(f"{name_or_path}: not valid TOML: {e}") from None
    unknown = set(table) - {"title", "recipe", "set", "arm"}
    if unknown:
        raise ConfigError(f"{name_or_path}: unknown key(s) {', '.join(sorted(unknown))}; known are title, recipe, set, arm")
    if not isinstance(table.get("recipe"), str) or not isinstance(table.get("arm"), list) or not table["arm"]:
        raise ConfigError(f"{name_or_path}: wants a recipe and at least one [[arm]]")
    shared = table.get("set", {})
    if not isinstance(shared, dict):
        raise ConfigError(f"{name_or_path}: set: a table was expected, got {shared!r}")
    arms: list[Arm] = []
    for number, row in enumerate(table["arm"], 1):
        extra = set(row) - {"name", "group", "paper", "set"} if isinstance(row, dict) else {"?"}
        if extra or not isinstance(row.get("name"), str) or not row["name"].strip():
            raise ConfigError(f"{name_or_path}: arm {number}: wants a name, and beside it group, paper and set only")
        own, group, paper = row.get("set", {}), row.get("group", ""), row.get("paper")
        for key, value, kind, wanted in (("set", own, dict, "a table"), ("group", group, str, "text")):
            if not isinstance(value, kind):
                raise ConfigError(f"{name_or_path}: arm {number}: {key}: {wanted} was expected, got {value!r}")
        if not isinstance(paper, int | float | None) or isinstance(paper, bool):
            raise ConfigError(f"{name_or_path}: arm {number}: paper: a figure in dB was expected, got {paper!r}")
        for other in arms:
            if arm_folder(Path(), other.name) == arm_folder(Path(), row["name"]):
                raise ConfigError(
                    f"{name_or_path}: arms {other.name!r} and {row['name']!r} would have one folder; name them differently"
                )
        if not row["name"].strip(". "):
            raise ConfigError(f"{name_or_path}: arm {number}: {row['name']!r} cannot be the name of a folder; name it otherwise")
        try:
            recipe = load_recipe(table["recipe"], {k: _toml(v) for k, v in {**shared, **own}.items()})
        except RescaleError as e:
            raise ConfigError(f"{name_or_path}: arm {row['name']!r}: {e}") from None
        arms.append(Arm(row["name"], group, recipe, dict(own), None if paper is None else float(paper)))
    return Study(str(table.get("title", name_or_path)), tuple(arms))


def run_arm(
    arm: Arm,
    folder: Path,
    sampler: CropSampler,
    held_out: list[str] | None,
    sets: dict[str, list[Picture]],
    device: torch.device,
    options: Options,
    start: Start | None = None,
) -> dict[str, Any]:
    """Train one arm, or take it up where it stopped, and measure it.

    A finished arm is not run again; one whose recipe has changed is refused.

    Args:
        arm: what to train.
        folder: of the study; the arm has its own inside.
        sampler: crops; the arm's seed and scale decide which.
        held_out: `data.file_digest` of each picture kept from training; None: the weights that it begins with do not say theirs.
        sets: pictures to measure on, by name of the set.
        device: where to train.
        options: its folder is set here.
        start: weights to start from instead of fresh ones.

    Returns:
        Name, group, recipe, steps, parameters, MACs, milliseconds a step and mean dB by set with `data.pictures_digest` of each;
        ``failed`` for a run that diverged.

    Raises:
        CheckpointError: the folder holds a run of another recipe, or of one that held out other pictures.
    """
    options.out = arm_folder(folder, arm.name)
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "checkpoint.safetensors"
    record: dict[str, Any] = {
        "name": arm.name,
        "group": arm.group,
        "changes": arm.changes,
        "recipe": to_dict(arm.recipe),
        "measured_on": {name: pictures_digest(pictures) for name, pictures in sets.items()},
        "paper": arm.paper,
        "parameters": sum(p.numel() for p in build(arm.recipe.net).parameters()),
        "macs_per_lr_pixel": macs_per_lr_pixel(arm.recipe.net),
    }
    trainer = Trainer(arm.recipe, device, start=start, pretrain=not target.exists())
    trainer.held_out = held_out
    if target.exists():
        trainer.resume(target)
    try:
        result = trainer.run(sampler, [], options)
    except DivergedError as e:
        return record | {"failed": str(e)}
    if not result["finished"]:
        return record | {"unfinished": result["step"]}
    found = checkpoint.read(target)
    net = checkpoint.load_net(found, str(target)).to(device)
    torch.backends.cudnn.allow_tf32 = False
    figures = {name: validate(net, pictures) for name, pictures in sets.items()}
    return record | {
        "steps": result["steps"],
        "ms": 1000.0 * trainer.seconds / max(1, trainer.step),
        "figures": figures,
    }


def table(study: Study, records: list[dict[str, Any]]) -> str:
    """Markdown: one row an arm, differences against the first arm of its group in parentheses."""
    done = [r for r in records if "figures" in r]
    sets = list(dict.fromkeys(s for r in done for s in r["figures"]))
    paper = any(r.get("paper") is not None for r in records)
    heads = ["arm", "parameters", "MAC/LR px", "ms a step", *(f"{s} HR / LR dB" for s in sets), *(["paper"] if paper else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for r in records:
        first = next(x for x in records if x["group"] == r["group"])
        cells = [r["name"], f"{r['parameters']:,}", f"{r['macs_per_lr_pixel'] / 1e3:,.0f}k"]
        if "figures" in r:
            cells.append(f"{r['ms']:.0f}")
            for s in sets:
                if s not in r["figures"]:
                    cells.append("")
                    continue
                hr, lr = (r["figures"][s][k] for k in ("hr_psnr_y", "lr_psnr_y"))
                change = ""
                if r is not first and s in first.get("figures", {}):
                    change = f" ({hr - first['figures'][s]['hr_psnr_y']:+.2f} / {lr - first['figures'][s]['lr_psnr_y']:+.2f})"
                cells.append(f"{hr:.2f} / {lr:.2f}{change}")
        else:
            cells += [r.get("failed") or f"stopped at step {r['unfinished']}", *[""] * len(sets)]
        if paper:
            change = ""
            if r is not first and None not in (r["paper"], first["paper"]):
                change = f" ({r['paper'] - first['paper']:+.2f})"
            cells.append("" if r["paper"] is None else f"{r['paper']:.2f}{change}")
        lines.append(f"| {' | '.join(cells)} |")
    return f"{study.title}\n\n" + "\n".join(lines) + "\n"


def write_results(study: Study, records: list[dict[str, Any]], folder: Path, setting: Setting) -> None:
    """study.json and study.md in the study's folder.

    Args:
        study: what was asked.
        records: of its arms, as `run_arm` returns them.
        folder: of the study.
        setting: of all arms.
    """
    content = {"title": study.title, "torch": torch.__version__, **asdict(setting), "arms": records}
    atomic_write(folder / "study.json", as_json(content).encode())
    atomic_write(folder / "study.md", table(study, records).encode())


def read_results(study: Study, folder: Path, setting: Setting, sets: dict[str, list[Picture]]) -> dict[str, dict[str, Any]]:
    """Records that `write_results` left in a study's folder, by name of the arm.

    Those of arms whose recipe has changed are left out, and those measured on other pictures than `sets` has under that name.

    Raises:
        InputError: study.json is not one, is of another study, or its arms began with other weights or were trained on other
            pictures.
    """
    path = folder / "study.json"
    recipes = {a.name: to_dict(a.recipe) for a in study.arms}
    digests = {name: pictures_digest(pictures) for name, pictures in sets.items()}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {r["name"]: r for r in content["arms"] if r["name"] in recipes and r.get("recipe") == recipes[r["name"]]}
        found = {k: r for k, r in found.items() if all(digests.get(n, d) == d for n, d in r["measured_on"].items())}
        before, trained_on, title = content.get("start"), content.get("trained_on"), content.get("title", study.title)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{path}: not the results of a study ({e}); remove it or give another --out") from None
    if title != study.title:
        raise InputError(f"{path}: results of another study, {title!r}, not {study.title!r}; give another --out")
    if before != setting.start:
        names = [f"weights {d[:12]}" if isinstance(d, str) else "fresh weights" for d in (before, setting.start)]
        raise InputError(f"{path}: its arms began with {names[0]}, these would with {names[1]}; give another --out")
    if trained_on not in (None, setting.trained_on):
        raise InputError(
            f"{path}: its arms were trained on other pictures; give the --data, --holdout and --measure that they had, "
            "or another --out"
        )
    return found


def samplers(study: Study, pictures: list[Picture], device: torch.device) -> dict[str, CropSampler]:
    """The crops of each arm. Arms that draw alike share a sampler, and so its copy of the pictures.

    Raises:
        RescaleError: the arms want more than 4, which would be 4 copies of the pictures.
    """
    wanted = {a.name: Sampling.of(a.recipe) for a in study.arms}
    ways = set(wanted.values())
    if len(ways) > 4:
        raise RescaleError(f"{study.title}: {len(ways)} combinations of scale, seed, mix and places, at most 4 fit one study")
    made = {way: way.sampler(pictures, device) for way in ways}
    return {name: made[way] for name, way in wanted.items()}


def arm_folder(folder: Path, name: str) -> Path:
    """Where an arm of a study in `folder` has its checkpoint and log."""
    return folder / "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def _toml(value: Any) -> str:
    """A value as TOML text, which overrides are given in."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if not isinstance(value, str | int | float):
        raise ConfigError(f"a value of a recipe is a number, true, false, text or a list of these, got {value!r}")
    return json.dumps(value)
