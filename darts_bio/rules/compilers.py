"""What PyTorch's compiler is to leave alone. Its import takes seconds: it is asked for where a
model needs it only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Uncompiled:
    """Calls functions that no compiler is to see, and tells one that asks for a whole graph the
    reason why not.

    `prepare` has to be called before a model that uses it may be compiled.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self._call: Callable[..., object] = _call

    def prepare(self) -> None:
        if self._call is _call:
            self._call = torch.compiler.disable(_call, reason=self._reason)

    def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        return self._call(function, *arguments)  # type: ignore[return-value]


def _call(function: Callable[..., T], *arguments: object) -> T:
    return function(*arguments)
