"""Passes of models and losses that anybody may have written: what they raise is told in a line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, first_line


@contextlib.contextmanager
def refused(what: str, mend: str) -> Iterator[None]:
    """Raise InputError for what a model, or a loss, raises because it cannot take what it is given.

    A lack of memory and an error of this package stay what they are. The exception itself is kept as
    the cause, with the place in the model.

    >>> with refused("alignment: the loss cannot take model(x), labels", "give labels that fit"):
    ...     nn.functional.cross_entropy(torch.zeros(2, 3), None)
    Traceback (most recent call last):
    darts_bio.errors.InputError: alignment: the loss cannot take model(x), labels \
(cross_entropy_loss(): argument 'target' (position 2) must be Tensor, not NoneType); give labels that fit

    Args:
        what: What cannot be taken, which begins the message.
        mend: What to do, which ends it.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"{what} ({first_line(error)}); {mend}") from error


def refused_by(model: nn.Module, x: Tensor, where: str) -> AbstractContextManager[None]:
    """Return the context for a pass of x through a model, which says that it cannot take it.

    `where` is what the message begins with.

    >>> model, x = nn.Linear(3, 2), torch.zeros(4, 3, dtype=torch.float64)
    >>> with refused_by(model, x, "attack"):
    ...     model(x)
    Traceback (most recent call last):
    darts_bio.errors.InputError: attack: the model cannot take (4, 3) of torch.float64 (mat1 and mat2 \
must have the same dtype, but got Double and Float); its weights are of torch.float32: convert one of the two
    """
    mend = "give it what it was trained on, on its own device"
    weight = next((p for p in model.parameters() if p.is_floating_point()), x)
    if x.is_floating_point() and weight.dtype != x.dtype:  # no mistake where the model converts it
        mend = f"its weights are of {weight.dtype}: convert one of the two"
    return refused(f"{where}: the model cannot take {tuple(x.shape)} of {x.dtype}", mend)
