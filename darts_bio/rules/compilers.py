"""Functions that PyTorch's compiler is to leave alone.

Importing the compiler takes seconds, so it is imported where a model needs it only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Uncompiled:
    """A caller of functions that torch.compile must not trace.

    A compiler that comes across a call runs it as plain Python, between two graphs; one that was
    asked for a whole graph (`fullgraph=True`) fails and shows `reason`. `prepare` has to be called
    before a model that uses it may be compiled.

    >>> uncompiled = Uncompiled("it reads a file")
    >>> uncompiled(max, 3, 5)
    5
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self._call: Callable[..., object] = _call

    def prepare(self) -> None:
        """Mark the call for the compiler, which imports it; nothing if it is marked already."""
        if self._call is _call:
            self._call = torch.compiler.disable(_call, reason=self._reason)

    def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        """Return `function(*arguments)`."""
        return self._call(function, *arguments)  # type: ignore[return-value]


def _call(function: Callable[..., T], *arguments: object) -> T:
    """Return `function(*arguments)`; `prepare` replaces it by a marked copy."""
    return function(*arguments)
