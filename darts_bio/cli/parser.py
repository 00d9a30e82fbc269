"""Make the command line of a configuration from its dataclass, and read it.

An option's value comes from the first of these that has one: the command line, the file of
`--config`, the run folder that `--resume` continues, the protocol (by default that of the data set,
then of the space), the default.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from darts_bio.config.common import CommandConfig, RunConfig
from darts_bio.config.options import convert, flag, types_of
from darts_bio.config.protocols import values_of
from darts_bio.errors import InputError, unknown_name
from darts_bio.runs.options import complete

C = TypeVar("C", bound=CommandConfig)

NARROW, WIDE = 60, 118
"""The smallest and the largest width of help texts, in columns."""


def help_width() -> int:
    """Return the number of columns for help texts: the terminal's, within bounds."""
    return max(NARROW, min(WIDE, shutil.get_terminal_size().columns - 2))


class _Parser(argparse.ArgumentParser):
    """A parser that raises InputError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def make_parser(
    cls: type[CommandConfig], description: str, about: str = ""
) -> argparse.ArgumentParser:
    """Make the argument parser of a configuration, with an option for each of its fields.

    `description` stands above the options in the help, `about` below them. Help texts end with the
    option's default and the values of protocols in brackets. Options that are not given are absent
    from the parsed namespace.
    """
    protocols = values_of(cls.command)
    remarks = [about, "`darts-bio list` shows all names."]
    if protocols:
        remarks.append(
            "Defaults are the protocol of DARTS; [NAME: value] is the value of the protocol, data "
            "set or space of that name."
        )
    positional = "".join(
        f" {f.metadata['metavar']}" for f in fields(cls) if f.metadata["positional"]
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
        usage=f"darts-bio {cls.command} [OPTIONS]{positional}",
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
    """Return the fields of a configuration in the order of the help.

    Positional options come first, then the group "data", then the other groups as they are
    declared, and at last "this run" and "plug-ins", which all commands have.
    """
    last = ["this run", "plug-ins"]
    groups = list(dict.fromkeys(f.metadata["group"] for f in fields(cls)))
    order = sorted(
        groups, key=lambda group: (last.index(group) + 1 if group in last else 0, group != "data")
    )
    return sorted(
        fields(cls), key=lambda f: (not f.metadata["positional"], order.index(f.metadata["group"]))
    )


def _add(
    group: Any, cls: type[CommandConfig], f: Any, protocols: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add the option of field `f` to a group of the parser.

    `protocols` are the command's: protocol -> option -> value. argparse keeps the value as text; it
    is converted by `parse`.
    """
    default = ",".join(map(_value_text, f.default)) if isinstance(f.default, tuple) else f.default
    shown_values = [] if default in (None, "", False) else [_value_text(default)]
    shown_values += [
        f"{name}: {_value_text(values[f.name])}"
        for name, values in protocols.items()
        if f.name in values
    ]
    text = f.metadata["help"]
    if shown_values:
        text += f" [{'; '.join(shown_values)}]"
    text = text.replace("%", "%%")  # argparse formats help texts by %
    hint = types_of(cls)[f.name]
    is_tuple = get_origin(hint) is tuple
    metavar = f.metadata["metavar"]
    if f.metadata["positional"]:
        nargs: Any = None
        if is_tuple:
            nargs = argparse.REMAINDER if f.metadata["positional"] == "rest" else "*"
        elif f.default is None:
            nargs = "?"
        group.add_argument(f.name, nargs=nargs, metavar=metavar, help=text)
    elif f.name == "resume":
        group.add_argument(flag(f.name), nargs="?", const=True, metavar="auto", help=text)
    elif hint is bool:
        group.add_argument(flag(f.name), action=argparse.BooleanOptionalAction, help=text)
    else:
        choices = "|".join(get_args(hint)) if get_origin(hint) is Literal else None
        usual = {str: "NAME"}.get(hint, "A,B,..." if is_tuple else "N")
        group.add_argument(flag(f.name), metavar=metavar or choices or usual, help=text)


def _value_text(value: Any) -> str:
    """Return an option's value as the help shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse(cls: type[C], argv: Sequence[str], description: str = "", about: str = "") -> C:
    """Read a configuration from the words of a command line; for `--help` print that and exit.

    Plug-ins that the words name are imported, since they may register the protocol or any other
    name. Raises InputError for an unknown option or an impossible value.
    """
    parser = make_parser(cls, description, about)
    namespace, unknown = parser.parse_known_args(_with_hyphens(argv))
    if unknown:
        _refuse_unknown(unknown[0].partition("=")[0], parser)
    given, hints = vars(namespace), types_of(cls)
    file = given.pop("config", None)
    given = {name: convert(name, hints[name], value) for name, value in given.items()}
    return complete(cls, given, file)


def _with_hyphens(argv: Sequence[str]) -> list[str]:
    """Replace `_` by `-` in the names of options: `--batch_size=64` to `--batch-size=64`."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        words.append(name + equals + value)
    return words


def _refuse_unknown(name: str, parser: argparse.ArgumentParser) -> NoReturn:
    """Raise InputError for a word that the parser does not know."""
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
