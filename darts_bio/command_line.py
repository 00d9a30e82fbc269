"""The command line and YAML files of a configuration, made from its dataclass; and how a script runs.

A value comes from the first of these that gives one: the command line, the file of `--config`, the run folder that
`--resume` goes on from, the preset of `--protocol` (or else of the data set, then of the space), the default.

This module imports no PyTorch, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from darts_bio.config import CONFIG_FILE, PRESETS, SCRIPTS, RunConfig, SearchConfig, class_of, flag
from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.registry import parse_spec, split_specs

C = TypeVar("C", bound=RunConfig)


def _convert(name: str, hint: Any, value: Any) -> Any:
    """`value`, a text of the command line or what YAML made of one, as the field's type."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(t for t in get_args(hint) if t is not type(None))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str) and "\0" not in value:
        return value
    if get_origin(hint) is tuple:
        kind, items = get_args(hint)[0], split_specs(value) if isinstance(value, str) else value
        items = items if isinstance(items, (list, tuple)) else [items]
        if kind is not str or all(isinstance(item, str) for item in items):
            return tuple(_convert(name, kind, item) for item in items)
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
    raise InputError(f"{flag(name)}: expected {expected.get(hint, 'names separated by commas')}, found {value!r}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def _parser(cls: type[RunConfig], description: str) -> _Parser:
    presets = (
        "Defaults are the protocol of DARTS; [NAME: value] is the value of the protocol, data set or space of that "
        "name."
    )
    parser = _Parser(
        description=description,
        epilog="`python -m darts_bio list` shows all names. " + (presets if PRESETS[cls] else ""),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )
    hints = get_type_hints(cls)
    common = {f.name for f in fields(RunConfig)}
    for f in sorted(fields(cls), key=lambda f: (f.name not in ("genotype", "checkpoint"), f.name in common)):
        default = ",".join(map(_shown, f.default)) if isinstance(f.default, tuple) else f.default
        shown = [] if default in (None, "", False) else [str(default)]
        shown += [f"{name}: {preset[f.name]}" for name, preset in PRESETS[cls].items() if f.name in preset]
        text = (f.metadata["help"] + (f" [{'; '.join(shown)}]" if shown else "")).replace("%", "%%")
        if hints[f.name] is bool:
            action: Any = "store_true" if f.name == "resume" else argparse.BooleanOptionalAction
            parser.add_argument(flag(f.name), action=action, help=text)
            continue
        kind = hints[f.name]
        choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else None
        metavar = (
            f.metadata["metavar"] or choices or {str: "NAME"}.get(kind, "A,B,..." if get_origin(kind) is tuple else "N")
        )
        parser.add_argument(flag(f.name), metavar=metavar, help=text)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    return parser


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which would let a later key replace an earlier one of the same name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, cls: type[RunConfig]) -> dict[str, Any]:
    """Options from a YAML file; `-` and `_` in names are the same. Raises InputError for unknown ones and bad files."""
    hints, values = get_type_hints(cls), {}
    known = {f.name for f in fields(cls)} - {"resume"}
    for key, value in _yaml_mapping(path).items():
        name = key.replace("-", "_")
        if name not in known:
            raise InputError(f"{path}: {unknown_name('option', key, known)}")
        try:
            values[name] = _convert(name, hints[name], value)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return values


def class_of_file(path: Path, expected: type[RunConfig]) -> type[RunConfig]:
    """Which configuration a run's file is of, in doubt the expected one. Raises InputError if it cannot be read."""
    return class_of([key.replace("-", "_") for key in _yaml_mapping(path)], expected, *SCRIPTS)


def _yaml_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file holds by name. Raises InputError if it cannot be read."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that there is not
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())[:200]})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected lines of the form 'option: value', found {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


SpaceOf = Callable[[Mapping[str, Any]], str]
"""From the values that are given to the spec of the space that a run is about."""


def _searched_space(values: Mapping[str, Any]) -> str:
    return values.get("space", SearchConfig.space)


def parse(cls: type[C], argv: Sequence[str], description: str, space_of: SpaceOf = _searched_space) -> C:
    """The configuration that a command line asks for. Raises InputError for anything that it cannot mean."""
    tokens = [token.partition("=") for token in argv]
    normal = [(a.replace("_", "-") if a.startswith("--") else a) + sep + b for a, sep, b in tokens]
    parser = _parser(cls, description)
    namespace, unknown = parser.parse_known_args(normal)
    if unknown:
        name = unknown[0].partition("=")[0]
        known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        raise (
            unknown_name("option", name, known)
            if name.startswith("-")
            else InputError(
                f"expected options only, several values with commas between them, found {name!r} (see --help)"
            )
        )
    given, hints = vars(namespace), get_type_hints(cls)
    file = given.pop("config", None)
    given = {name: _convert(name, hints[name], value) for name, value in given.items()}
    if file is not None:
        given = read_yaml(Path(file), cls) | given
    base: dict[str, Any] = {}
    if given.get("resume"):
        base = _resumed(given.get("out"), cls)
    return cls(**(base | given if base else _preset(cls, given, space_of) | given))


def _preset(cls: type[RunConfig], given: Mapping[str, Any], space_of: SpaceOf) -> dict[str, Any]:
    """The values of the protocol that is named, or of the space's preset and, over it, the data set's."""
    presets, defaults = PRESETS[cls], {f.name: f.default for f in fields(cls)}
    protocol = given.get("protocol", "auto")
    if protocol != "auto":
        if protocol not in presets:
            raise unknown_name("protocol", protocol, ("auto", *presets))
        return dict(presets[protocol])
    if not presets:
        return {}
    own = dict(presets.get(given.get("dataset", defaults["dataset"]), {}))
    space, _ = parse_spec(space_of(own | dict(given)))
    return dict(presets.get(space, {})) | own


def _resumed(out: str | None, cls: type[RunConfig]) -> dict[str, Any]:
    if out is None:
        raise InputError("--resume needs --out DIR, the folder of the run to go on with")
    path = Path(out) / CONFIG_FILE
    try:
        found = path.is_file()
    except OSError as error:
        raise InputError(f"--out {out[:80]}...: not a folder's name ({first_line(error)})") from None
    if not found:
        raise InputError(f"--resume: {path} does not exist, so {out} holds no run; start one without --resume")
    theirs = class_of_file(path, cls)
    if theirs is not cls:
        raise InputError(f"--resume: {out} is a run of {SCRIPTS[theirs]}; go on with it by that script")
    return read_yaml(path, cls)


def run_script(
    cls: type[C],
    main: Callable[[C], int],
    description: str,
    argv: Sequence[str] | None = None,
    space_of: SpaceOf = _searched_space,
) -> int:
    """Parses the command line, imports the plug-ins, runs `main`; returns the exit code.

    An InputError, from wherever it comes, is one line on standard error and exit code 2.
    """
    try:
        config = parse(cls, sys.argv[1:] if argv is None else argv, description, space_of)
        import_plugins(config.plugin)
        return main(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the run takes signals itself, or a second one
        print("interrupted", file=sys.stderr)
        return 130


def import_plugins(modules: Sequence[str]) -> None:
    """Imports users' modules, whose decorators register what they add. The working directory is searched as well."""
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            if not isinstance(error, ImportError):
                raise InputError(
                    f"--plugin {module}: its import failed with {type(error).__name__} ({first_line(error)}), "
                    f"raised at {_users_line(error)}"
                ) from error
            raise InputError(
                f"--plugin {module}: cannot be imported ({first_line(error)}); expected a module, such as "
                "my_package.my_rule, that is installed or lies in the working directory"
            ) from None


def _users_line(error: BaseException) -> str:
    """Where a plug-in's import went wrong: the last line of it that is not of this package or of Python's importing."""
    own = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        f for f in frames if not f.filename.startswith((own, "<frozen importlib")) and "importlib" not in f.filename
    ]
    if isinstance(error, SyntaxError) and error.filename:  # it has no frame of its own
        return f"{error.filename}:{error.lineno}"
    place = (theirs or frames)[-1]
    return f"{place.filename}:{place.lineno}"
