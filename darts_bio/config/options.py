"""Declare an option once: a field of a frozen dataclass that checks and converts its value.

The command line, YAML files and the Python functions all follow from these fields.

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
import os
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
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

from darts_bio.errors import InputError, brief, unknown_name
from darts_bio.registry import canonical_spec, split_specs

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
    positional: bool | Literal["rest"] = False,
    spec: bool = False,
    needs: str | None = None,
) -> Any:
    """Declare an option as a field of a configuration class.

    Args:
        default: The value where none is given.
        help: A few words for `--help`.
        minimum: The smallest value allowed.
        below: A bound that the value must stay below.
        metavar: The placeholder of the value in `--help`.
        identity: Whether a checkpoint is of no use under another value of the option. Where it is
            False, the value may change when a run is resumed.
        group: The heading in `--help`; by default that of the class.
        positional: Whether the value stands on the command line without the option's name; "rest":
            all words that follow, whatever they look like.
        spec: Whether the value is a spec, or a list of specs, which is then kept in its canonical
            form (see `darts_bio.registry`); "" and None are no specs and stay.
        needs: Another option, true or false, without which this one has no say: who gives it is
            told so.

    Example:
        >>> @configuration("network")
        ... class Sizes:
        ...     layers: int = option(8, "cells stacked", minimum=1)
        ...     rule: str = option("bp", "the learning rule", spec=True)
        >>> Sizes().layers, Sizes(rule="hebbian(temperature=.5)").rule
        (8, 'hebbian(temperature=0.5)')
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "below": below,
        "metavar": metavar,
        "identity": identity,
        "group": group,
        "positional": positional,
        "spec": spec,
        "needs": needs,
    }
    return field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def configuration(group: str, **defaults: Any) -> Callable[[type[T]], type[T]]:
    """Make a class whose fields are options a frozen dataclass that checks its values.

    Values are converted as the command line converts them, so "8" is 8 where a whole number is
    expected.

    Args:
        group: The heading in `--help` of the options that the class declares itself.
        **defaults: New defaults of options that the class inherits.

    Example:
        >>> @configuration("network")
        ... class Sizes:
        ...     layers: int = option(8, "cells stacked", minimum=1)
        >>> @configuration("network", layers=20)
        ... class Deep(Sizes):
        ...     '''The same option with another default.'''
        >>> Deep().layers, Deep(layers="30").layers
        (20, 30)
    """

    def make(cls: type[T]) -> type[T]:
        annotations = inspect.get_annotations(cls)
        for name in annotations:
            declared: Any = cls.__dict__.get(name)
            if hasattr(declared, "metadata") and declared.metadata.get("group") is None:
                metadata = {**declared.metadata, "group": group}
                setattr(cls, name, field(default=declared.default, metadata=metadata))
        inherited = {}
        for base in cls.__mro__[1:]:
            for f in getattr(base, "__dataclass_fields__", {}).values():
                inherited[f.name] = f
        # A dataclass takes a new default only from a field that the class itself annotates.
        cls.__annotations__ = {**annotations, **{name: inherited[name].type for name in defaults}}
        for name, default in defaults.items():
            setattr(cls, name, field(default=default, metadata=inherited[name].metadata))
        # A class with a __post_init__ of its own calls `check_values` there.
        if "__post_init__" not in {name for base in cls.__mro__ for name in vars(base)}:
            cls.__post_init__ = check_values  # type: ignore[attr-defined]
        return dataclass(frozen=True, kw_only=True)(cls)

    return make


def check_values(config: Any) -> None:
    """Convert and check each value of a configuration in place; raise InputError for a bad one."""
    hints = types_of(type(config))
    for f in fields(config):
        if "help" in f.metadata:
            value = getattr(config, f.name)
            if f.metadata["spec"]:
                _refuse_objects(f.name, value)
            value = convert(f.name, hints[f.name], value)
            _check_bounds(f.name, value, f.metadata)
            value = _canonical(f.name, value) if f.metadata["spec"] else value
            object.__setattr__(config, f.name, value)  # as the dataclass is frozen


def types_of(cls: type) -> dict[str, Any]:
    """Return the type of each field of a configuration class, by name."""
    return _types_of(cls)


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def flag(name: str) -> str:
    """Return an option's name as it is written on the command line.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def convert(name: str, hint: Any, value: Any) -> Any:
    """Convert an option's value to its type.

    Args:
        name: The option, for the error message.
        hint: The type: int, float, bool, str, a `Literal`, a tuple of any number of one of these,
            or such a type or None.
        value: Text from the command line, what YAML made of such text, or a Python value.

    Raises:
        InputError: If the value is not of that type.

    Example:
        >>> convert("lr", float, "1e-3"), convert("rules", tuple[str, ...], "fa,usf")
        (0.001, ('fa', 'usf'))
        >>> from pathlib import Path
        >>> convert("out", str, Path("runs"))
        'runs'
        >>> convert("layers", int, "many")
        Traceback (most recent call last):
        darts_bio.errors.InputError: --layers: expected a whole number, found 'many'
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
    if hint is str and isinstance(value, os.PathLike):  # a Path, from Python
        value = os.fspath(value)
    if hint is str and isinstance(value, str) and "\0" not in value:
        return value
    if get_origin(hint) is tuple:
        item_hint = get_args(hint)[0]
        items = split_specs(value) if isinstance(value, str) else value
        items = items if isinstance(items, (list, tuple)) else [items]
        # Names have to be text: YAML makes numbers and dates of some words.
        if item_hint is not str or all(isinstance(item, str) for item in items):
            return tuple(convert(name, item_hint, item) for item in items)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise unknown_name(
            f"value of {flag(name)}",
            value if isinstance(value, str) else brief(value),
            get_args(hint),
        )
    if hint in (int, float) and not isinstance(value, bool):
        try:
            # 3.0 is a whole number, 3.5 is not.
            if hint is float or isinstance(value, str) or value == int(value):
                number = hint(value)
                if hint is float or abs(number) < 2**63:  # of a file, which holds any number
                    return number
        except (TypeError, ValueError, OverflowError):
            pass
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise InputError(
        f"{flag(name)}: expected {expected.get(hint, 'names separated by commas')}, "
        f"found {brief(value)}"
    )


def _check_bounds(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Raise InputError for a number, or one in a tuple, outside the bounds of its option."""
    if isinstance(value, tuple):
        for item in value:
            _check_bounds(name, item, metadata)
        return
    minimum, below = metadata["minimum"], metadata["below"]
    if value is None or (minimum is None and below is None):
        return
    # NaN compares False with everything, so asking for what is allowed refuses it too.
    low_enough = below is None or value < below
    if not (value >= minimum and low_enough and value != float("inf")):
        bounds = f"at least {minimum}" + (f" and below {below}" if below is not None else "")
        raise InputError(f"{flag(name)}: expected {bounds}, found {brief(value)}")


def refuse_idle(config: Any, given: Iterable[str]) -> None:
    """Raise InputError for a given option that has no say, since another one is not set.

    Args:
        config: The options as they were completed.
        given: The names of those that the user gave.

    Example:
        >>> @configuration("search")
        ... class Choosing:
        ...     choose: bool = option(False, "choose one of several searches")
        ...     choice_epochs: int = option(100, "the length of its trainings", needs="choose")
        >>> refuse_idle(Choosing(choice_epochs=3), {"choice_epochs"})
        Traceback (most recent call last):
        darts_bio.errors.InputError: --choice-epochs: has no say without --choose; add it, or leave --choice-epochs out
    """
    for f in fields(config):
        needs = f.metadata.get("needs")
        if needs is not None and f.name in given and not getattr(config, needs):
            raise InputError(
                f"{flag(f.name)}: has no say without {flag(needs)}; add it, or leave "
                f"{flag(f.name)} out"
            )


def _refuse_objects(name: str, value: Any) -> None:
    """Raise InputError if a spec is given, from Python, as the object or the class that it builds."""
    for item in value if isinstance(value, (tuple, list)) else [value]:
        if is_dataclass(item):
            raise InputError(
                f"{flag(name)}: expected text, found {brief(item)}; write name(option=value), such "
                'as "darts(lr=3e-4)" for a strategy'
            )


def _canonical(name: str, value: Any) -> Any:
    """Return the specs of an option in canonical form; raise InputError, which names the option."""
    if isinstance(value, tuple):
        for item in value:
            words = item.split()
            if len(words) > 1 and all(map(str.isidentifier, words)):
                raise InputError(
                    f"{flag(name)}: expected a comma between two names, found {item!r}; did you mean "
                    f"{','.join(words)!r} (or, as one name, {'_'.join(words).lower()!r})?"
                )
        return tuple(_canonical(name, item) for item in value)
    try:
        return canonical_spec(value) if value else value
    except InputError as error:
        raise InputError(f"{flag(name)}: {error}") from None


def plain(value: Any) -> Any:
    """Return a value as YAML and JSON can hold it: a tuple becomes a list."""
    return list(value) if isinstance(value, tuple) else value
