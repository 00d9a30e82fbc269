"""Users' modules, whose decorators register what they add: named by --plugin, or of installed
packages.

An installed package names its modules as entry points of the group `darts_bio`, which are imported
at each start:

    [project.entry-points.darts_bio]
    my_rules = "my_package.my_rules"

No file that is read at run time, a run folder least of all, can have a module imported.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from darts_bio.errors import InputError, first_line

GROUP = "darts_bio"


def import_plugins(modules: Sequence[str]) -> None:
    """Import these modules, and those of installed packages. The working directory is searched as
    well.

    Raises InputError, naming the module and the line, if an import fails.
    """
    for point in entry_points(group=GROUP):
        _import(point.module, f"the plug-in {point.name} of an installed package")
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for module in modules:
        _import(module, f"--plugin {module}")


def _import(module: str, asked: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        if not isinstance(error, ImportError):
            raise InputError(
                f"{asked}: its import failed with {type(error).__name__} ({first_line(error)}), "
                "raised at "
                f"{_users_line(error)}"
            ) from error
        if module.endswith(".py"):
            raise InputError(
                f"{asked}: expected a module's name, not a file's; write "
                f"{module.removesuffix('.py')}"
            ) from None
        raise InputError(
            f"{asked}: cannot be imported ({first_line(error)}); expected a module, such as "
            "my_package.my_rule, that "
            "is installed or lies in the working directory"
        ) from None


def _users_line(error: BaseException) -> str:
    """Say where an import went wrong: the last line of it that is not of this package or of
    Python's importing.
    """
    own = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        f
        for f in frames
        if not f.filename.startswith((own, "<frozen importlib")) and "importlib" not in f.filename
    ]
    if isinstance(error, SyntaxError) and error.filename:  # it has no frame of its own
        return f"{error.filename}:{error.lineno}"
    place = (theirs or frames)[-1]
    return f"{place.filename}:{place.lineno}"
