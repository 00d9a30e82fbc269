"""Read options from files: YAML that a user writes, and the config.yaml of a run folder.

Files hold data and never bring code. A run folder that was made with plug-ins names them, but they
are only imported when the user names them once more.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from darts_bio.bounded import LARGEST_YAML, parse_yaml, read_text
from darts_bio.config.common import CONFIG_FILE, CommandConfig, RunConfig
from darts_bio.config.evaluation import RobustnessConfig
from darts_bio.config.options import convert, types_of
from darts_bio.config.search import SearchConfig
from darts_bio.config.training import ImageNetConfig, RetrainConfig
from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.invocation import named

C = TypeVar("C", bound=RunConfig)

RUNS: Mapping[str, type[RunConfig]] = {
    cls.command: cls for cls in (SearchConfig, RetrainConfig, ImageNetConfig, RobustnessConfig)
}
"""The configurations of commands that write a run folder, by the command's name."""


def read_yaml(path: Path, cls: type[CommandConfig]) -> dict[str, Any]:
    """Read the options of a command from a YAML file; `-` and `_` in their names are the same.

    Raises InputError for an unknown option, an impossible value, or a file that cannot be read.
    """
    return checked_options(_yaml_mapping(path), cls, path)


def checked_options(
    options: Mapping[str, Any], cls: type[CommandConfig], path: Path
) -> dict[str, Any]:
    """Return the options of a command that a file gives, by name, in the types that it declares.

    Raises InputError for an unknown option or an impossible value; the message names the file.
    """
    hints, values = types_of(cls), {}
    known = {f.name for f in fields(cls)} - {"resume"}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in known:
            raise InputError(f"{path}: {unknown_name('option', key, known)}")
        try:
            values[name] = convert(name, hints[name], value)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return values


def read_run(folder: Path, cls: type[C]) -> dict[str, Any]:
    """Read the options of the run in a folder, which has to be a run of the command of `cls`.

    Raises InputError if there is no such run, or if it needs plug-ins that are not imported.
    """
    path = folder / CONFIG_FILE
    try:
        exists = path.is_file()
    except OSError as error:  # such as a name that is too long
        raise InputError(
            f"--out {str(folder)[:80]}...: not a folder's name ({first_line(error)})"
        ) from None
    if not exists:
        raise InputError(
            f"--resume: {path} does not exist, so {folder} holds no run; start one without --resume"
        )
    saved_cls = kind_of(path, cls)
    if saved_cls is not cls:
        raise InputError(
            f"--resume: {folder} is a run of {named(saved_cls.command)}; go on with it by that "
            "command"
        )
    refuse_missing_plugins(folder)
    return read_yaml(path, cls)


def refuse_missing_plugins(folder: Path) -> None:
    """Raise InputError if the run in a folder was made with plug-ins that are not imported.

    Plug-ins are code, so the user has to name them, by --plugin or by an import in Python: nothing
    is imported because a file says so. A folder without a configuration needs no plug-ins.
    """
    path = folder / CONFIG_FILE
    names = _yaml_mapping(path).get("plugin", ()) if path.is_file() else ()
    missing = []
    if isinstance(names, list):
        missing = [str(name) for name in names if str(name) not in sys.modules]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise InputError(
            f"{folder}: was made with the plug-in{plural} {', '.join(missing)[:200]}, code that no "
            f"run folder can bring; if you trust it, add --plugin {','.join(missing)[:200]}"
        )


def kind_of(path: Path, expected: type[RunConfig]) -> type[RunConfig]:
    """Return the configuration class that a run's config.yaml was written from.

    The file does not name its command, so this is the class that knows most of the options in it;
    among equals `expected` wins. Raises InputError if the file cannot be read.
    """
    return kind_of_options(raw_options(path), expected)


def raw_options(path: Path) -> dict[str, Any]:
    """Return the options in a YAML file as they stand there, unchecked.

    Raises InputError if the file cannot be read.
    """
    return {key.replace("-", "_"): value for key, value in _yaml_mapping(path).items()}


def kind_of_options(options: Collection[str], expected: type[RunConfig]) -> type[RunConfig]:
    """Return the configuration class that has most of these options; among equals `expected`.

    >>> from darts_bio.config import RetrainConfig, SearchConfig
    >>> kind_of_options(["seed", "genotype", "cutout"], SearchConfig) is RetrainConfig
    True
    """
    return max(
        (expected, *RUNS.values()),
        key=lambda cls: len({f.name for f in fields(cls)}.intersection(options)),
    )


def _yaml_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of `option: value` lines; raise InputError for any other file."""
    data = parse_yaml(read_text(path, LARGEST_YAML), str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: expected lines of the form 'option: value', found {type(data).__name__}"
        )
    return {str(key): value for key, value in data.items()}
