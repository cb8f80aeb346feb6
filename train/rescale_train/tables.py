"""Configuration dataclasses as plain tables, as TOML and JSON have them, and back.

An unknown key, a missing table and a value of the wrong type are errors: nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from rescale.errors import ConfigError

T = TypeVar("T")


def convert(value: Any, want: Any, where: str) -> Any:
    """A parsed TOML or JSON value as the type that a field is annotated with; `ConfigError` names the key."""
    origin = typing.get_origin(want)
    if dataclasses.is_dataclass(want):
        return from_dict(typing.cast(type, want), value, where)
    if origin is tuple:
        args = typing.get_args(want)
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: a list was expected, got {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: {len(kinds)} values were expected, got {value!r}")
        return tuple(convert(v, k, where) for v, k in zip(value, kinds, strict=True))
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: a number of {len(str(value)):,} digits") from None
    if not isinstance(value, want) or (want is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: {getattr(want, '__name__', want)} was expected, got {value!r}")
    return value


def from_dict(cls: type[T], table: Any, where: str) -> T:
    """Build a configuration dataclass from parsed TOML or JSON.

    Raises:
        ConfigError: unknown or missing key, or a value of the wrong type; the message names the key.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: a table was expected, got {table!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in table:
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown key; known are {', '.join(fields)}")
    values = {k: convert(v, hints[k], f"{where}.{k}") for k, v in table.items()}
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name}: missing")
    return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `from_dict`: plain lists, numbers and strings."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
