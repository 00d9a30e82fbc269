"""Temporary changes to a model: its mode, what of it is trained, or what a measurement does to it.

All are context managers that undo the change at the end, also after an exception. `restored` is
what the others are made of, here and where a module has a switch of its own
(`rules.true_gradients`, `SuperNet.batch_statistics`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def restored(objects: Iterable[nn.Module | Tensor], attribute: str) -> Iterator[None]:
    """Restore an attribute of each object at the end to the value it has at the beginning.

    >>> layer = nn.Linear(2, 3)
    >>> with restored([layer.weight], "requires_grad"):
    ...     layer.weight.requires_grad_(False).requires_grad
    False
    >>> layer.weight.requires_grad
    True
    """
    before = [(owner, getattr(owner, attribute)) for owner in objects]
    try:
        yield
    finally:
        for owner, value in before:
            setattr(owner, attribute, value)


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and at the end each module back into its own.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    >>> with in_mode(model, training=False):
    ...     [module.training for module in model]
    [False, False]
    >>> [module.training for module in model]
    [True, False]
    """
    with restored(model.modules(), "training"):
        model.train(training)
        yield


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Have autograd compute no gradients of a model's parameters within the context.

    Gradients still flow through the model to its input. Parameters that were frozen before stay
    frozen afterwards.

    >>> layer, x = nn.Linear(2, 1), torch.ones(2, requires_grad=True)
    >>> with frozen(layer):
    ...     layer(x).sum().backward()
    >>> layer.weight.grad is None, x.grad is not None
    (True, True)
    """
    parameters = list(
        model.parameters()
    )  # once: a supernet has hundreds of modules to look through
    with restored(parameters, "requires_grad"):
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into a mode and undo at the end what passes through it change.

    The modes of modules, all buffers (batch norm statistics, feedback) and the parameters' `.grad`
    are put back. The values of parameters are not looked after.

    All buffers are copied for that. `in_mode` is enough for a pass in evaluation mode, which
    changes none of them.

    >>> norm = nn.BatchNorm1d(1)
    >>> with undisturbed(norm, training=True):
    ...     _ = norm(torch.tensor([[1.0], [3.0]]))
    ...     print(norm.running_mean)
    tensor([0.2000])
    >>> norm.running_mean
    tensor([0.])
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with in_mode(model, training=training), restored(model.parameters(), "grad"):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
