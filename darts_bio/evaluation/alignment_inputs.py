"""What an alignment is measured on: batches, a model and a loss, read and refused where they cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from darts_bio.errors import InputError, brief
from darts_bio.passes import refused, refused_by
from darts_bio.training.engine import DivergedError

Batch = tuple[Tensor, Tensor]
"""Inputs and labels, as the model's loss takes them."""


def check_loss(loss: Any) -> None:
    """Raise InputError for what cannot be called as a loss; a class of losses makes one."""
    if isinstance(loss, type):
        raise InputError(
            f"alignment: loss: expected a function of model(x) and labels, found the class "
            f"{loss.__name__}; make one: {loss.__name__}()"
        )
    if not callable(loss):
        raise InputError(
            "alignment: loss: expected a function of model(x) and labels, such as "
            f"nn.functional.cross_entropy, found {brief(loss)}; hand over the function itself"
        )


def read_batches(batches: Iterable[Batch]) -> Iterator[tuple[str, Tensor, Any]]:
    """Yield of each batch what messages call it, its inputs and its labels, fit for autograd.

    Raises InputError for what is no batch.
    """
    mend = "hand over several of them, as in [(x, labels), (x, labels)], or a DataLoader that gives them"
    try:
        numbered = enumerate(batches, 1)
    except TypeError:
        raise InputError(
            f"alignment: expected batches (x, labels), found {type(batches).__name__}; {mend}"
        ) from None
    for number, batch in numbered:
        where = f"alignment: batch {number}"
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            several = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise InputError(
                f"{where}: expected (x, labels), found {type(batch).__name__}{several}; {mend}"
            )
        x, labels = batch
        if not isinstance(x, Tensor):
            raise InputError(
                f"{where}: x: expected a tensor, found {type(x).__name__}; make it one by "
                "torch.as_tensor, on the model's device"
            )
        yield where, _recorded(x), _recorded(labels)


def _recorded(value: Any) -> Any:
    """Return a tensor of inference mode as one that autograd takes; others as they are."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def loss_of(model: nn.Module, loss: Any, x: Tensor, labels: Any, where: str) -> Tensor:
    """Return the loss of a batch; raise InputError unless it is a number to differentiate."""
    with refused_by(model, x, where):
        output = model(x)
    with refused(
        f"{where}: the loss cannot take model(x), labels",
        "give labels, and a loss, that go with it",
    ):
        value = loss(output, labels)
    if not isinstance(value, Tensor):
        raise InputError(
            f"{where}: expected the loss as a tensor, found {type(value).__name__}; leave out .item()"
        )
    if value.numel() != 1:
        raise InputError(
            f"{where}: expected one number as the loss, found {tuple(value.shape)}; take its mean"
        )
    check_finite("loss", value.item(), x, where)
    if not value.requires_grad:
        raise InputError(
            f"{where}: expected a loss that depends on the weights, found one that autograd sees no "
            "dependence of; leave detach() and torch.no_grad() out of the model's forward and the loss"
        )
    return value


def check_finite(what: str, number: float, x: Tensor, where: str) -> None:
    """Raise InputError if a number is not finite since x is not, or else DivergedError."""
    if math.isfinite(number):
        return
    if not x.isfinite().all():
        raise InputError(
            f"{where}: expected finite inputs, found nan or inf in x; mend the data that it is from"
        )
    found = f"{where}: the {what} is {number}"
    raise DivergedError(
        f"{found}, where x is finite: the weights have diverged, or the labels do not go with the "
        "loss; measure an earlier state of the model, or mend the labels",
        found,
    )
