"""Complete the options that a user gives, on a command line or in Python, to a configuration.

This module imports no PyTorch, so that the command line can use it before a command runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from darts_bio.config import CONFIG_FILE, CommandConfig, RunConfig, SearchConfig, TrainingConfig
from darts_bio.config.files import read_run, read_yaml
from darts_bio.config.options import convert, refuse_idle, types_of
from darts_bio.config.protocols import preset
from darts_bio.errors import InputError
from darts_bio.plugins import import_plugins

C = TypeVar("C", bound=CommandConfig)


def complete(
    cls: type[C], given: dict[str, Any], file: str | None = None, space: str | None = None
) -> C:
    """Build a configuration from the options that are given; a file and protocols fill the rest.

    The first of these that has an option decides it: `given`, the YAML file, and then the run that
    is resumed, or for a new one the protocols and at last the defaults.

    Args:
        cls: The configuration to build.
        given: The options that the user gave, by name.
        file: The path of a YAML file with further options (`--config`).
        space: The search space of the run, where the options do not tell it.

    Raises:
        InputError: For a value that is not possible, or a folder that cannot be resumed.
    """
    # A file may be the config.yaml of a run, which holds all options, idle ones too.
    by_hand = set(given)
    if file is not None:
        file_options = read_yaml(Path(file), cls)
        if file_options.pop("plugin", ()):
            raise InputError(
                f"{file}: plug-ins are code, which no file may bring; name them by --plugin"
            )
        given = file_options | given
    # Before any name is looked up: plug-ins register rules, spaces, strategies and protocols.
    import_plugins(convert("plugin", types_of(cls)["plugin"], given.get("plugin", ())))
    resume = given.get("resume", False)
    if resume and issubclass(cls, RunConfig):
        if given.get("out") is None:
            raise InputError("--resume needs --out DIR, the folder of the run to go on with")
        folder = Path(given["out"])
        # "auto" resumes the run in the folder if there is one, and begins one otherwise.
        if resume is True or (folder / CONFIG_FILE).is_file():
            return _checked(cls(**{**read_run(folder, cls), **given}), by_hand)
    protocol_options = preset(cls, given, lambda values: space or space_of(cls, values))
    return _checked(cls(**{**protocol_options, **given}), by_hand)


def _checked(config: C, by_hand: Iterable[str]) -> C:
    """Return the options; raise InputError if one of those given by hand has no say."""
    refuse_idle(config, by_hand)
    return config


def space_of(cls: type[CommandConfig], values: Mapping[str, Any]) -> str:
    """Return the name of the space that is searched, or that the trained genotype comes from."""
    if issubclass(cls, TrainingConfig):
        if not values.get("genotype"):
            return "darts"
        from darts_bio.spaces import load_genotype

        return load_genotype(values["genotype"]).space
    return str(values.get("space", SearchConfig.space))
