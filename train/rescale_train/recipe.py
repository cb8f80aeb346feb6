"""Recipes: TOML files with the tables ``[net]`` and ``[train]`` of `rescale_train.config`, and the ones that ship."""

from __future__ import annotations

import tomllib
import types
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rescale.errors import ConfigError, UnknownModelError
from rescale_train.config import NetConfig, Recipe, TrainConfig, net_config, require
from rescale_train.tables import convert, from_dict, to_dict


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("rescale_train") / "recipes"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: it is none, or holds what no message can show: lists in lists without end, numbers of thousands of digits.
    """
    try:
        table = tomllib.loads(text)
        repr(table)
    except RecursionError:
        raise ValueError("tables or lists nested too deep") from None
    return table


def load_recipe(name_or_path: str, overrides: Mapping[str, str] = types.MappingProxyType({})) -> Recipe:
    """Read a recipe by shipped name or by path.

    A ``[net]`` table may name a ``size`` of `SIZES` instead of listing blocks and growth; what it lists beside it wins, what
    its base listed does not. ``base = "NAME"`` on top takes all values of a shipped recipe that this one does not state; of
    several, ``base = ["NAME", "parts/NAME"]``, a later one wins.
    What ships in ``parts`` is a share of a recipe, good for nothing but a base.

    Args:
        name_or_path: a name from `recipe_names`, or the path of a TOML file.
        overrides: dotted keys and TOML values, such as ``{"train.steps": "2000"}``.

    Raises:
        ConfigError: no such recipe, or its content is wrong; the message names the key, and the file if it is one.
        UnknownModelError: of an unknown model, scale or size; the message names the file if it is one.
    """
    table = _recipe_table(name_or_path)
    if "net.size" in overrides:
        _give_way_to_size(table)
    for key, value in overrides.items():
        group, _, name = key.partition(".")
        if group not in ("net", "train") or not name:
            raise ConfigError(f"--set {key}: the key is net.NAME, train.NAME or train.loss.NAME")
        target = table.setdefault(group, {})
        while "." in name and isinstance(target, dict):
            head, _, name = name.partition(".")
            target = target.setdefault(head, {})
        require(isinstance(target, dict), f"--set {key}: what it would go into is not a table")
        try:
            target[name] = parse_toml(f"v = {value}")["v"]
        except ValueError:
            raise ConfigError(f"--set {key}: {value[:100]!r} is not a TOML value; quote text, as in '\"bfloat16\"'") from None
    try:
        return _of_tables(table)
    except (ConfigError, UnknownModelError) as e:
        if not _is_file(name_or_path):
            raise
        raise type(e)(f"{name_or_path}{' with what overrides it' if overrides else ''}: {e}") from None


def _of_tables(table: dict[str, Any]) -> Recipe:
    require(isinstance(table.get("net", {}), dict), f"net: a table was expected, got {table.get('net')!r}")
    net = dict(table.get("net", {}))
    if "size" in net:
        for key in ("model", "scale"):
            if key not in net:
                raise ConfigError(f"net.{key}: missing")
        base = to_dict(net_config(str(net["model"]), convert(net["scale"], int, "net.scale"), str(net.pop("size"))))
        net = {**base, **net}
    require("train" in table, "no table [train], which every recipe has")
    return Recipe(from_dict(NetConfig, net, "net"), from_dict(TrainConfig, table["train"], "train"))


def differences(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Keys, such as ``train.steps``, whose values differ, with both."""
    a, b = (dict(_leaves(to_dict(recipe))) for recipe in (before, now))
    return {key: (a[key], value) for key, value in b.items() if a[key] != value}


def _leaves(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _is_file(name_or_path: str) -> bool:
    return Path(name_or_path).suffix == ".toml"


def _recipe_table(name_or_path: str, derived: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tables of a recipe over those of its base; `derived` are the recipes that led here."""
    path = Path(name_or_path)
    if _is_file(name_or_path) and not derived:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: cannot read the recipe: {getattr(e, 'strerror', None) or e}") from None
    elif name_or_path in recipe_names() or (derived and name_or_path in _parts()):
        text = (resources.files("rescale_train") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        where = f"{derived[-1]}: base: " if derived else ""
        choice = "one of" if derived else "give a .toml file or one of"
        known = [*recipe_names(), *(_parts() if derived else [])]
        raise ConfigError(f"{where}unknown recipe {name_or_path!r}: {choice} {', '.join(known)}")
    try:
        table = parse_toml(text)
    except ValueError as e:
        raise ConfigError(f"{name_or_path}: not valid TOML: {e}") from None
    base = table.pop("base", None)
    extra = set(table) - {"net", "train"}
    if extra:
        raise ConfigError(f"{name_or_path}: unknown table(s) {', '.join(sorted(extra))}; known are net, train")
    if base is None:
        return table
    bases = base if isinstance(base, list) and base else [base]
    whole: dict[str, Any] = {}
    for name in bases:
        require(isinstance(name, str), f"{name_or_path}: base: the name of a recipe or a list of names was expected, got {name!r}")
        require(name not in (*derived, name_or_path), f"{name_or_path}: base: {name!r} is derived from this recipe")
        whole = _derived(whole, _recipe_table(name, (*derived, name_or_path)))
    return _derived(whole, table)


def _derived(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The tables of a recipe over those that it is derived from."""
    if isinstance(over.get("net"), dict) and "size" in over["net"]:
        _give_way_to_size(base)
    return _merged(base, over)


def _give_way_to_size(table: dict[str, Any]) -> None:
    """Take from a recipe's tables what a size stated later decides."""
    net = table.get("net")
    if isinstance(net, dict):
        for key in ("blocks", "growth", "lr_growth", "shared_trunk"):
            net.pop(key, None)


def _parts() -> list[str]:
    folder = resources.files("rescale_train") / "recipes" / "parts"
    return sorted(f"parts/{p.name.removesuffix('.toml')}" for p in folder.iterdir() if p.name.endswith(".toml"))


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, table by table."""
    both = {key: _merged(base[key], over[key]) for key in over if isinstance(base.get(key), dict) and isinstance(over[key], dict)}
    return {**base, **over, **both}
