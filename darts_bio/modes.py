"""Changes to a model that last for a while: its mode, what of it is trained, or anything that a
measurement does to it.

`restored` is what the others are made of, here and where a module has a switch of its own
(`rules.true_gradients`, `SuperNet.batch_statistics`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def restored(objects: Iterable[nn.Module | Tensor], attribute: str) -> Iterator[None]:
    """Put an attribute of each object back at the end to what it is now, also after an exception.

    >>> layer = nn.Linear(2, 3)
    >>> with restored([layer.weight], "requires_grad"):
    ...     layer.weight.requires_grad_(False).requires_grad
    False
    >>> layer.weight.requires_grad
    True
    """
    before = [(found, getattr(found, attribute)) for found in objects]
    try:
        yield
    finally:
        for found, value in before:
            setattr(found, attribute, value)


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model into training or evaluation mode, and each of its modules back into its own
    mode at the end.
    """
    with restored(model.modules(), "training"):
        model.train(training)
        yield


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Compute no gradient of the model's parameters within; those that were frozen before stay
    so.
    """
    with restored(model.parameters(), "requires_grad"):
        model.requires_grad_(False)
        yield


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model into training or evaluation mode, and its modes, buffers (batch norm
    statistics, feedback) and .grad back at the end. The values of parameters are not looked after.

    All buffers are copied for that. `in_mode` is enough for a pass in evaluation mode, which
    changes none of them.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with in_mode(model, training=training), restored(model.parameters(), "grad"):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
