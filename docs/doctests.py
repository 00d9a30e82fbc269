"""Show the examples in docstrings as code, for `mkdocs build`.

A docstring of this package has its examples as doctests, which Markdown takes for quotations.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^( *)>>> .*\n?(?:^(?! *$).*\n?)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """A griffe extension that puts each doctest between the fences of a code block."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    r"""Return a docstring with fences around each example, which reaches to the next blank line.

    >>> fenced("Add.\n\n>>> 1 + 1\n2\n").splitlines()
    ['Add.', '', '```pycon', '>>> 1 + 1', '2', '```']
    """

    def fence(match: re.Match[str]) -> str:
        indent = match[1]
        return f"{indent}```pycon\n{match[0].rstrip()}\n{indent}```\n"

    return _EXAMPLE.sub(fence, docstring)
