"""From the options that a user gives, on a command line or in Python, to the whole configuration.

This module imports no PyTorch, so that the command line can use it before a command runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from darts_bio.config.files import read_run, read_yaml
from darts_bio.config.protocols import preset
from darts_bio.config.schema import (
    CONFIG_FILE,
    CommandConfig,
    RunConfig,
    SearchConfig,
    TrainingConfig,
)
from darts_bio.errors import InputError
from darts_bio.plugins import import_plugins

C = TypeVar("C", bound=CommandConfig)


def complete(
    cls: type[C], given: dict[str, Any], file: str | None = None, space: str | None = None
) -> C:
    """Make the configuration of the options that are given, and of a file's: protocols and defaults
    fill the rest.

    `space` is that which the run is about, where the options do not tell.
    """
    if file is not None:
        written = read_yaml(Path(file), cls)
        if written.pop("plugin", ()):
            raise InputError(
                f"{file}: plug-ins are code, which no file may bring; name them by --plugin"
            )
        given = written | given
    import_plugins(given.get("plugin", ()))
    resume = given.get("resume", False)
    if resume and issubclass(cls, RunConfig):
        if given.get("out") is None:
            raise InputError("--resume needs --out DIR, the folder of the run to go on with")
        folder = Path(given["out"])
        if resume is True or (folder / CONFIG_FILE).is_file():
            return cls(**{**read_run(folder, cls), **given})
    return cls(**{**preset(cls, given, lambda values: space or space_of(cls, values)), **given})


def space_of(cls: type[CommandConfig], values: Mapping[str, Any]) -> str:
    """Name the space that a run is about: the one searched, or that of the genotype which is
    trained.
    """
    if issubclass(cls, TrainingConfig):
        if not values.get("genotype"):
            return "darts"
        from darts_bio.spaces import load_genotype

        return load_genotype(values["genotype"]).space
    return str(values.get("space", SearchConfig.space))
