"""Configurations from files: YAML that a user writes, and the config.yaml of a run folder.

Files hold data and never bring code: a run folder that names plug-ins is told so, and they are
named again by whoever trusts them.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from darts_bio.config.options import convert, types_of
from darts_bio.config.schema import CONFIG_FILE, RUNS, CommandConfig, RunConfig
from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.invocation import named

C = TypeVar("C", bound=RunConfig)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which would let a later key replace an earlier one of the same name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, cls: type[CommandConfig]) -> dict[str, Any]:
    """Read options from a YAML file; `-` and `_` in names are the same.

    Raises InputError for unknown ones, for values that cannot be meant and for files that cannot be
    read.
    """
    hints, values = types_of(cls), {}
    known = {f.name for f in fields(cls)} - {"resume"}
    for key, value in _yaml_mapping(path).items():
        name = key.replace("-", "_")
        if name not in known:
            raise InputError(f"{path}: {unknown_name('option', key, known)}")
        try:
            values[name] = convert(name, hints[name], value)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return values


def read_run(folder: Path, cls: type[C]) -> dict[str, Any]:
    """Read the options of the run in a folder, which has to be one of `cls`.

    Raises InputError if there is no such run, or if it needs plug-ins that are not imported.
    """
    path = folder / CONFIG_FILE
    try:
        found = path.is_file()
    except OSError as error:
        raise InputError(
            f"--out {str(folder)[:80]}...: not a folder's name ({first_line(error)})"
        ) from None
    if not found:
        raise InputError(
            f"--resume: {path} does not exist, so {folder} holds no run; start one without --resume"
        )
    theirs = kind_of(path, cls)
    if theirs is not cls:
        raise InputError(
            f"--resume: {folder} is a run of {named(theirs.command)}; go on with it by that command"
        )
    refuse_missing_plugins(folder)
    return read_yaml(path, cls)


def refuse_missing_plugins(folder: Path) -> None:
    """Raise InputError if the run in a folder was made with plug-ins that are not imported.

    They are code: the user names them, by --plugin or by an import in Python. Nothing is imported
    because a file says so. A folder without a configuration needs none.
    """
    path = folder / CONFIG_FILE
    names = _yaml_mapping(path).get("plugin", ()) if path.is_file() else ()
    missing = (
        [str(name) for name in names if str(name) not in sys.modules]
        if isinstance(names, list)
        else []
    )
    if missing:
        several = "s" if len(missing) > 1 else ""
        raise InputError(
            f"{folder}: was made with the plug-in{several} {', '.join(missing)[:200]}, code that "
            "no run folder "
            f"can bring; if you trust it, add --plugin {','.join(missing)[:200]}"
        )


def kind_of(path: Path, expected: type[RunConfig]) -> type[RunConfig]:
    """Tell which configuration a run's file is of: that which knows most of its options, in doubt
    the expected one.

    Raises InputError if it cannot be read.
    """
    options = {key.replace("-", "_") for key in _yaml_mapping(path)}
    return max(
        (expected, *RUNS.values()),
        key=lambda cls: len({f.name for f in fields(cls)}.intersection(options)),
    )


def _yaml_mapping(path: Path) -> dict[str, Any]:
    """Read what a YAML file holds by name. Raise InputError if it cannot be read."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: a date or number that there is not
        raise InputError(
            f"{path}: not a YAML file ({' '.join(str(error).split())[:200]})"
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: expected lines of the form 'option: value', found {type(data).__name__}"
        )
    return {str(key): value for key, value in data.items()}
