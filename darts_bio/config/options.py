"""How an option is declared, once: a field of a frozen dataclass, from which the command line, YAML
files, the Python functions and all checks follow.

>>> @configuration("network")
... class Sizes:
...     channels: int = option(16, "channels of a node in the first cell", minimum=2)
>>> @configuration("network", channels=36)
... class Larger(Sizes):
...     '''The same option with another default.'''
>>> Larger().channels, Larger(channels="8").channels
(36, 8)
>>> Larger(channels=1)
Traceback (most recent call last):
darts_bio.errors.InputError: --channels: expected at least 2, found 1
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from darts_bio.errors import InputError, unknown_name
from darts_bio.registry import split_specs

T = TypeVar("T")


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
    identity: bool = True,
    group: str | None = None,
    positional: bool = False,
) -> Any:
    """Declare a field of a configuration.

    `minimum` is the least value, `below` a bound that is not reached. `identity` says whether a
    checkpoint of one value is of no use under another; where it is False the value may change when
    a run goes on. `group` is the heading in `--help`, by default that of the class. A `positional`
    option stands on the command line without its name.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "below": below,
        "metavar": metavar,
        "identity": identity,
        "group": group,
        "positional": positional,
    }
    return field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def configuration(group: str, **defaults: Any) -> Callable[[type[T]], type[T]]:
    """Decorate a class whose fields are options: make it a frozen dataclass that checks its values.

    `group` is the heading of its own options in `--help`; `defaults` are new defaults of options
    that it inherits. Values are converted as the command line converts them, so "8" is 8 where a
    whole number is expected.
    """

    def make(cls: type[T]) -> type[T]:
        own = inspect.get_annotations(cls)
        for name in own:
            declared: Any = cls.__dict__.get(name)
            if hasattr(declared, "metadata") and declared.metadata.get("group") is None:
                setattr(
                    cls,
                    name,
                    field(default=declared.default, metadata={**declared.metadata, "group": group}),
                )
        inherited = {
            f.name: f
            for base in cls.__mro__[1:]
            for f in getattr(base, "__dataclass_fields__", {}).values()
        }
        cls.__annotations__ = {**own, **{name: inherited[name].type for name in defaults}}
        for name, default in defaults.items():
            setattr(cls, name, field(default=default, metadata=inherited[name].metadata))
        if "__post_init__" not in {name for base in cls.__mro__ for name in vars(base)}:
            cls.__post_init__ = check_values  # type: ignore[attr-defined]
        return dataclass(frozen=True, kw_only=True)(cls)

    return make


def check_values(config: Any) -> None:
    """Convert and check each value of a configuration, in place. Raise InputError for one that
    cannot be meant.
    """
    hints = types_of(type(config))
    for f in fields(config):
        if "help" in f.metadata:
            value = convert(f.name, hints[f.name], getattr(config, f.name))
            _check_bounds(f.name, value, f.metadata)
            object.__setattr__(config, f.name, value)


def types_of(cls: type) -> dict[str, Any]:
    """Give the type of each option by name."""
    return _types_of(cls)


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def flag(name: str) -> str:
    """Spell an option as the command line has it.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def convert(name: str, hint: Any, value: Any) -> Any:
    """Convert `value`, a text of the command line, what YAML made of one, or a Python value, to the
    option's type.

    Raises InputError, naming the option, for a value that is none of that type.

    >>> convert("lr", float, "1e-3"), convert("rules", tuple[str, ...], "fa,usf"), convert("flip", bool, True)
    (0.001, ('fa', 'usf'), True)
    """
    if get_origin(hint) in (Union, types.UnionType):
        members = get_args(hint)
        if value is None and type(None) in members:
            return None
        for member in members:  # a word that stands beside a type, as in bool | Literal["auto"]
            if get_origin(member) is Literal and value in get_args(member):
                return value
        hint = next(member for member in members if member is not type(None))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str) and "\0" not in value:
        return value
    if get_origin(hint) is tuple:
        kind, items = get_args(hint)[0], split_specs(value) if isinstance(value, str) else value
        items = items if isinstance(items, (list, tuple)) else [items]
        if kind is not str or all(isinstance(item, str) for item in items):
            return tuple(convert(name, kind, item) for item in items)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise unknown_name(f"value of {flag(name)}", str(value), get_args(hint))
    if hint in (int, float) and not isinstance(value, bool):
        try:
            if hint is float or isinstance(value, str) or value == int(value):
                return hint(value)
        except (TypeError, ValueError, OverflowError):
            pass
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise InputError(
        f"{flag(name)}: expected {expected.get(hint, 'names separated by commas')}, found {value!r}"
    )


def _check_bounds(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_bounds(name, item, metadata)
        return
    minimum, below = metadata["minimum"], metadata["below"]
    if value is None or (minimum is None and below is None):
        return
    # Written so that "not a number" fails both.
    low_enough = below is None or value < below
    if not (value >= minimum and low_enough and value != float("inf")):
        bounds = f"at least {minimum}" + (f" and below {below}" if below is not None else "")
        raise InputError(f"{flag(name)}: expected {bounds}, found {value}")


def plain(value: Any) -> Any:
    """Write a value as YAML and JSON can hold it."""
    return list(value) if isinstance(value, tuple) else value
