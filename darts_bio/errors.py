"""The exception that means "what you gave cannot be used", and the wording of its messages.

The entry scripts print an `InputError` as one line and end with exit code 2. Every other exception
is a defect of this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Collection, Iterable
from typing import Any


class InputError(ValueError):
    r"""An error in what the user gave: an option, a file, a data set, a plug-in.

    The message says what was expected, what was found, and how to mend it. Names and values that it
    quotes may come from anybody's file, so it is kept to one line as `one_line` writes it. It is a
    `ValueError`, so callers from Python may catch either.

    >>> try:
    ...     check_whole("--epochs", -5)
    ... except InputError as error:
    ...     print(error)
    --epochs: expected a whole number of at least 1, found -5
    >>> print(InputError("found the file a\x1b[31m\n.png"))
    found the file a\x1b[31m .png
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


LONGEST_MESSAGE = 480
"""The most characters of a message; longer ones lose their middle."""


def printable(text: str) -> str:
    r"""Return a text with escapes in place of the characters that a terminal would act on.

    >>> printable("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def one_line(text: str, most: int = LONGEST_MESSAGE) -> str:
    r"""Return a text of any origin on one line of at most `most` characters, safe for a terminal.

    Line breaks become blanks, and characters that are not printable, such as those that move a
    terminal's cursor or turn the direction of writing, become escapes. A text that is too long keeps
    its beginning and its end, where a message says how to mend what is wrong.

    >>> print(one_line("two\nlines \x1b[2J"))
    two lines \x1b[2J
    >>> one_line("0123456789" * 9, most=20)
    '01234567 ... 3456789'
    """
    if len(text) > 2 * most:  # so that megabytes are not looked at one by one
        text = f"{text[:most]} {text[-most:]}"
    shown = printable(re.sub(r"\s*[\r\n]\s*", " ", text))
    if len(shown) <= most:
        return shown
    end = (most - 5) // 2
    return f"{shown[: most - 5 - end]} ... {shown[len(shown) - end :]}"


def first_line(error: BaseException) -> str:
    r"""Return the first line of an exception's message that is not blank, or its type's name.

    At most 160 characters are kept; of an `OSError` it is the system's reason without the path.

    >>> first_line(RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB"))
    'CUDA out of memory.'
    >>> first_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    text = getattr(error, "strerror", None) or str(error)
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line), type(error).__name__)[:160]


def line_in(modules: Collection[str], error: BaseException) -> str | None:
    """Return `file:line` of the innermost call in one of these modules that an error came through.

    None if there is none.

    >>> try:
    ...     one_line(3)
    ... except TypeError as error:
    ...     line_in([], error), str(line_in([__name__], error)).rpartition(":")[0] == __file__
    (None, True)
    """
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals.get("__name__") in modules:
            line = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return line


def brief(value: Any) -> str:
    """Return a value as text of at most 60 characters, for messages."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python prints, or deeper than it walks
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def install_hint(extra: str) -> str:
    """Return the command that installs one of this package's extras, for an error message.

    The extra `attacks` takes a second command: torchattacks pins a version of requests from 2021
    that it never imports, and `--no-deps` leaves alone the version that is installed.

    >>> install_hint("onnx")
    "pip install 'darts-bio[onnx]'"
    """
    command = f"pip install 'darts-bio[{extra}]'"
    return f"{command} && pip install --no-deps torchattacks" if extra == "attacks" else command


LONGEST_LIST = 300
"""The most characters that a message spends on the list of known names."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, own: str = "") -> InputError:
    """Return the error for a name that is not among `known`, with close matches suggested.

    Args:
        kind: What the name was to be a name of, as the message calls it.
        name: The name that was given.
        known: All names that would have been accepted; the message lists them sorted.
        own: How a name of the user's own comes to be known, which ends the message if the name is
            like no other.

    >>> print(unknown_name("learning rule", "ufs", ["bp", "fa", "usf"]))
    unknown learning rule 'ufs': did you mean 'usf'? (known: bp, fa, usf)
    """
    known = sorted(known)
    name = name[:240]  # difflib takes its time over megabytes
    listed = ", ".join(known)
    if len(listed) > LONGEST_LIST:
        # Cut after a whole name, and say how many names there are instead.
        listed = f"{listed[:LONGEST_LIST].rpartition(',')[0]}, ... {len(known)} in all"
    close = close_names(name, known)
    way = f"; {own}" if own and not close else ""
    return InputError(f"unknown {kind} {name!r}{close} (known: {listed}{way})")


def close_names(name: str, known: Iterable[str]) -> str:
    """Return ": did you mean ...?" with the names that are most like one that is not known.

    It is "" where none is. Capitals count as small letters.

    >>> close_names("epsilon", ["eps", "step"]), close_names("ufs", ["eps"])
    (": did you mean 'eps'?", '')
    >>> close_names("USF", ["usf", "fa"])
    ": did you mean 'usf'?"
    """
    spelled: dict[str, str] = {}
    for each in known:
        spelled.setdefault(each.lower(), each)
    matches = difflib.get_close_matches(name[:240].lower(), spelled, n=2, cutoff=0.5)
    close = [spelled[match] for match in matches]
    return f": did you mean {' or '.join(map(repr, close))}?" if close else ""


def check_number(
    where: str,
    value: Any,
    *,
    least: float = 0,
    above: float | None = None,
    below: float = float("inf"),
    most: float | None = None,
) -> None:
    """Check that an option's value is a number within bounds.

    Args:
        where: The option, as the message names it.
        value: The value to check; True and False are not numbers.
        least: The smallest value allowed; unused if `above` is given.
        above: A bound that the value has to exceed; minus infinity for any finite number.
        below: A bound that the value has to stay under.
        most: The largest value allowed, in place of `below`.

    Raises:
        InputError: The value is not a number, or lies outside the bounds.

    >>> check_number("--momentum", 0.9, below=1)
    >>> check_number("share", 1, most=1)
    >>> check_number("--momentum", 1.0, below=1)
    Traceback (most recent call last):
    darts_bio.errors.InputError: --momentum: expected a number of at least 0 and below 1, found 1.0
    """
    # bool is a subclass of int, but True as a learning rate is a mistake.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number:
        high_enough = value >= least if above is None else value > above
        if high_enough and (value < below if most is None else value <= most):
            return
    bounds = [f"of at least {least}"] if above is None else []
    if above is not None and above > -float("inf"):
        bounds.append(f"above {above}")
    if most is not None:
        bounds.append(f"at most {most}")
    elif below < float("inf"):
        bounds.append(f"below {below}")
    number = f"a number {' and '.join(bounds)}".rstrip()
    raise InputError(f"{where}: expected {number}, found {brief(value)}")


def check_whole(where: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return an option's value, a whole number from `least` to `most`, as an int.

    Args:
        where: The option, as the message names it.
        value: The value to check, whatever Python counts by, such as an integer of NumPy; True and
            False are no numbers.
        least: The smallest value allowed.
        most: The largest value allowed; None is no bound.

    Raises:
        InputError: The value is no whole number, or lies outside the bounds.

    >>> check_whole("--layers", 20)
    20
    >>> check_whole("--layers", 2.5)
    Traceback (most recent call last):
    darts_bio.errors.InputError: --layers: expected a whole number of at least 1, found 2.5
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or whole < least or (most is not None and whole > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{where}: expected a whole number {bounds}, found {brief(value)}")
    return whole
