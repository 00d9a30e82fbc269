"""The one exception that means "what you gave cannot be used", and its wording.

The entry scripts print an `InputError` as one line and end with exit code 2; every other exception
is a defect of this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what was expected, what was found,
    how to mend it.
    """


def first_line(error: BaseException) -> str:
    """What an exception says, in one line: its kind if it says nothing."""
    text = getattr(error, "strerror", None) or str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[
        :160
    ]


def install_hint(extra: str) -> str:
    """Name the command that installs what an extra of this package needs, in a checkout as from a
    wheel.

    torchattacks stands by itself: it asks for a requests of 2021, which it never imports, and
    `--no-deps` leaves the one that is installed alone.

    >>> install_hint("plot")
    "pip install 'darts-bio[plot]'"
    """
    command = f"pip install 'darts-bio[{extra}]'"
    return f"{command} && pip install --no-deps torchattacks" if extra == "attacks" else command


LONGEST_LIST = 300
"""Characters of the known names that a message lists."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`, with close matches suggested.

    >>> print(unknown_name("learning rule", "ufs", ["bp", "fa", "usf"]))
    unknown learning rule 'ufs': did you mean 'usf'? (known: bp, fa, usf)
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f": did you mean {' or '.join(map(repr, close))}?" if close else ""
    listed = ", ".join(known)
    if len(listed) > LONGEST_LIST:  # a line is to be read
        listed = f"{listed[:LONGEST_LIST].rpartition(',')[0]}, ... {len(known)} in all"
    return InputError(f"unknown {kind} {name[:240]!r}{hint} (known: {listed})")


def check_number(
    where: str,
    value: Any,
    *,
    least: float = 0,
    above: float | None = None,
    below: float = float("inf"),
) -> None:
    """Raises InputError unless it is a number of at least `least` (or above `above`) and below
    `below`.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and (value >= least if above is None else value > above) and value < below):
        lower = f"of at least {least}" if above is None else f"above {above}"
        upper = "" if below == float("inf") else f" and below {below}"
        raise InputError(f"{where}: expected a number {lower}{upper}, found {value!r}")


def check_whole(where: str, value: Any, least: int = 1) -> None:
    """Raises InputError unless it is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{where}: expected a whole number of at least {least}, found {value!r}")
