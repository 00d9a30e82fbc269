"""The command line of a configuration, made from its dataclass.

A value comes from the first of these that gives one: the command line, the file of `--config`, the
run folder that `--resume` goes on from, the protocol (by default that of the data set, then of the
space), the default.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from darts_bio.config.options import convert, flag, types_of
from darts_bio.config.protocols import values_of
from darts_bio.config.schema import CommandConfig, RunConfig
from darts_bio.errors import InputError, unknown_name
from darts_bio.runs.options import complete

C = TypeVar("C", bound=CommandConfig)

NARROW, WIDE = 60, 118
"""Columns of help texts, at least and at most."""


def help_width() -> int:
    """Give the columns for help texts: the terminal's, within bounds."""
    return max(NARROW, min(WIDE, shutil.get_terminal_size().columns - 2))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def make_parser(
    cls: type[CommandConfig], description: str, about: str = ""
) -> argparse.ArgumentParser:
    """Make the parser of a configuration: an option for each field, in groups, with its default and
    the protocols'.
    """
    protocols = values_of(cls.command)
    remarks = [about, "`darts-bio list` shows all names."]
    if protocols:
        remarks.append(
            "Defaults are the protocol of DARTS; [NAME: value] is the value of the protocol, data "
            "set or space of that "
            "name."
        )
    parser = _Parser(
        prog=f"darts-bio {cls.command}",
        description=description,
        epilog=" ".join(filter(None, remarks)),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(
            prog, max_help_position=34, width=help_width()
        ),
        usage=f"darts-bio {cls.command} [OPTIONS]"
        + "".join(f" {f.metadata['metavar']}" for f in fields(cls) if f.metadata["positional"]),
    )
    groups: dict[str, Any] = {}
    for f in _in_order(cls):
        title = f.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], cls, f, protocols)
    if issubclass(cls, RunConfig):
        groups["this run"].add_argument(
            "--config", metavar="FILE", help="YAML file with any of these options"
        )
    return parser


def _in_order(cls: type[CommandConfig]) -> list[Any]:
    """Sort the options: positional ones first, then what the run is of, groups of few general use
    last.
    """
    last = ["this run", "plug-ins"]
    groups = list(dict.fromkeys(f.metadata["group"] for f in fields(cls)))
    order = sorted(groups, key=lambda g: (last.index(g) + 1 if g in last else 0, g != "data"))
    return sorted(
        fields(cls), key=lambda f: (not f.metadata["positional"], order.index(f.metadata["group"]))
    )


def _add(
    group: Any, cls: type[CommandConfig], f: Any, protocols: Mapping[str, Mapping[str, Any]]
) -> None:
    default = ",".join(map(_shown, f.default)) if isinstance(f.default, tuple) else f.default
    shown = [] if default in (None, "", False) else [_shown(default)]
    shown += [
        f"{name}: {_shown(values[f.name])}"
        for name, values in protocols.items()
        if f.name in values
    ]
    text = (f.metadata["help"] + (f" [{'; '.join(shown)}]" if shown else "")).replace("%", "%%")
    kind = types_of(cls)[f.name]
    if f.metadata["positional"]:
        nargs: Any = (
            argparse.REMAINDER
            if get_origin(kind) is tuple
            else ("?" if f.default is None else None)
        )
        group.add_argument(f.name, nargs=nargs, metavar=f.metadata["metavar"], help=text)
    elif f.name == "resume":
        group.add_argument(flag(f.name), nargs="?", const=True, metavar="auto", help=text)
    elif kind is bool:
        group.add_argument(flag(f.name), action=argparse.BooleanOptionalAction, help=text)
    else:
        choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else None
        usual = {str: "NAME"}.get(kind, "A,B,..." if get_origin(kind) is tuple else "N")
        group.add_argument(
            flag(f.name), metavar=f.metadata["metavar"] or choices or usual, help=text
        )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse(cls: type[C], argv: Sequence[str], description: str = "", about: str = "") -> C:
    """Read the configuration that a command line asks for; print the help and exit where it asks
    for that.

    Plug-ins that it names are imported on the way, since they may bring the protocol. Raises
    InputError for anything that it cannot mean.
    """
    parser = make_parser(cls, description, about)
    namespace, unknown = parser.parse_known_args(_normal(argv))
    if unknown:
        _refuse(unknown[0].partition("=")[0], parser)
    given, hints = vars(namespace), types_of(cls)
    file = given.pop("config", None)
    given = {name: convert(name, hints[name], value) for name, value in given.items()}
    return complete(cls, given, file)


def _normal(argv: Sequence[str]) -> list[str]:
    """Take `_` in the names of options for `-`."""
    tokens = [token.partition("=") for token in argv]
    return [(a.replace("_", "-") if a.startswith("--") else a) + sep + b for a, sep, b in tokens]


def _refuse(name: str, parser: argparse.ArgumentParser) -> NoReturn:
    known = [
        flag
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
    ]
    if name.startswith("-"):
        raise unknown_name("option", name, known)
    raise InputError(
        f"expected options only, several values with commas between them, found {name!r} (see "
        "--help)"
    )
