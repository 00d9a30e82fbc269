"""Users' modules, whose decorators register rules, operations, spaces, strategies and the like.

A module is named by `--plugin`, or by an installed package as an entry point of the group
`darts_bio`, which is imported at each start:

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
"""The group of entry points under which installed packages name their modules."""


def import_plugins(modules: Sequence[str]) -> None:
    """Import these modules, and those that installed packages name as entry points.

    The working directory is searched for `modules` as well.

    Raises:
        InputError: An import fails; the message names the module and the line.

    >>> import_plugins(["colorsys"])
    >>> import_plugins(["my_rules.py"])
    Traceback (most recent call last):
    darts_bio.errors.InputError: --plugin my_rules.py: expected a module's name, not a file's; write my_rules
    """
    for point in entry_points(group=GROUP):
        _import(point.module, f"the plug-in {point.name} of an installed package")
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for module in modules:
        _import(module, f"--plugin {module}")


def _import(module: str, where: str) -> None:
    """Import a module, with InputError for any failure; `where` says who asked for it."""
    if module.startswith(".") or "/" in module:
        raise _file_given(module, where)
    try:
        importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            if module.endswith(".py"):
                raise _file_given(module, where) from None
            raise InputError(
                f"{where}: cannot be imported ({first_line(error)}); expected a module, such as "
                "my_package.my_rule, that is installed or lies in the working directory"
            ) from None
        if missing is not None:
            raise InputError(
                f"{where}: it imports the module {missing}, which is missing, at "
                f"{_users_line(error)}; install that, or put its folder into PYTHONPATH"
            ) from error
        raise InputError(
            f"{where}: its import failed with {type(error).__name__} ({first_line(error)}), "
            f"raised at {_users_line(error)}"
        ) from error


def _file_given(file: str, where: str) -> InputError:
    """Return the error for a file where a module is expected, which says how that is written.

    >>> for file in ("./my_rules.py", "package/my_rules.py", "../my_rules.py"):
    ...     print(_file_given(file, "--plugin"))
    --plugin: expected a module's name, not a file's; write my_rules
    --plugin: expected a module's name, not a file's; write package.my_rules
    --plugin: expected a module's name, not a file's; write my_rules, with its folder in PYTHONPATH
    """
    path = Path(file.removesuffix(".py"))
    if path.is_absolute() or ".." in path.parts:
        name = f"{path.name}, with its folder in PYTHONPATH"
    else:
        name = ".".join(path.parts).lstrip(".")
    return InputError(f"{where}: expected a module's name, not a file's; write {name}")


def _users_line(error: BaseException) -> str:
    """Return `file:line` of the user's code that a failed import was last in.

    Frames of this package and of Python's import machinery are passed over, unless there are no
    others.
    """
    if isinstance(error, SyntaxError) and error.filename:  # the faulty file has no frame of its own
        return f"{error.filename}:{error.lineno}"
    not_users = (str(Path(__file__).parent), "<frozen importlib")
    frames = traceback.extract_tb(error.__traceback__)
    users_frames = [
        frame
        for frame in frames
        if not frame.filename.startswith(not_users) and "importlib" not in frame.filename
    ]
    frame = (users_frames or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"
