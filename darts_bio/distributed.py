"""Who this process is among several, and what they exchange.

Processes have ranks from 0; the first is the one of rank 0, which alone writes files and prints. A
process that runs alone is rank 0 of 1: then every function here returns what it was given, without
an exchange. Each exchange has to be entered by all processes, in the same order. How they come
together, and how they end, is in `process_group`.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from darts_bio.errors import InputError
from darts_bio.private_torch import copy_all

T = TypeVar("T")

AS_LONG_AS_IT_TAKES = datetime.timedelta(days=1000)
"""A time limit that is none, for processes that wait for each other's whole runs."""

_apart = False
"""Whether this process counts as alone for a while, though there are others."""


def rank() -> int:
    """Return the number of this process, from 0; 0 where it runs alone or is `apart`.

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_initialized() and not _apart else 0


def world_size() -> int:
    """Return how many processes there are; 1 where this one runs alone or is `apart`.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_initialized() and not _apart else 1


@contextlib.contextmanager
def apart(alone: bool = True) -> Iterator[None]:
    """Have this process count as alone within the context, as if there were no others.

    With `alone=False`, inside such a context, it is one of all again.

    >>> with apart():
    ...     rank(), world_size()
    (0, 1)
    """
    global _apart
    before, _apart = _apart, alone
    try:
        yield
    finally:
        _apart = before


def patient_group() -> Any:
    """Return a group for `gathered` whose processes wait for each other however long it takes.

    A process that ends is noticed at once all the same. All have to ask for it together. None where
    this process runs alone.

    >>> gathered("mine", patient_group())
    ['mine']
    """
    return dist.new_group(backend="gloo", timeout=AS_LONG_AS_IT_TAKES) if world_size() > 1 else None


@contextlib.contextmanager
def first_before_the_others() -> Iterator[None]:
    """Have the first process finish the context before the others begin it.

    So that only the first downloads what all of them read.

    >>> with first_before_the_others():
    ...     print("the data are there")
    the data are there
    """
    # `summed` is a barrier here: the others wait in theirs until the first comes to its own.
    if world_size() > 1 and rank() > 0:
        summed(torch.zeros(1))
    yield
    if world_size() > 1 and rank() == 0:
        summed(torch.zeros(1))


def from_first(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrite these tensors, in place, with the first process' values.

    >>> weight = torch.ones(2)
    >>> from_first([weight])  # alone, the values are the first process' already
    >>> weight
    tensor([1., 1.])
    """
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def text_from_first(text: str) -> str:
    """Return, in each process, the first one's text.

    >>> text_from_first("runs/search-1")
    'runs/search-1'
    """
    texts = [text]
    if world_size() > 1:
        dist.broadcast_object_list(texts, 0)
    return texts[0]


def first_says(flag: bool) -> bool:
    """Return, in each process, the first one's flag: for decisions that clocks could split.

    >>> first_says(True)
    True
    """
    if world_size() == 1:
        return flag
    flags = torch.tensor(flag)
    dist.broadcast(flags, 0)
    return bool(flags)


def gathered(value: T, group: Any = None) -> list[T]:
    """Return every process' value, in the order of their numbers.

    Args:
        value: Plain data of this process.
        group: The processes that take part, such as `patient_group`; by default all.

    >>> gathered({"loss": 2.5})
    [{'loss': 2.5}]
    """
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values  # type: ignore[return-value]


def summed(values: torch.Tensor) -> torch.Tensor:
    """Sum a CPU tensor over all processes, in place, and return it.

    >>> summed(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def largest(value: torch.Tensor) -> torch.Tensor:
    """Replace a CPU tensor, in place, by the largest over all processes, and return it.

    >>> largest(torch.tensor(3))
    tensor(3)
    """
    if world_size() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


@torch.no_grad()
def average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace these tensors, in place, by their means over all processes.

    Tensors of one dtype are exchanged together. A plug-in that computes gradients of its own calls
    this on them; `torch.autograd.grad` does not average.

    >>> gradient = torch.tensor([1.0, 2.0])
    >>> average([gradient])
    >>> gradient
    tensor([1., 2.])
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for members in by_dtype.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in members])
        dist.all_reduce(flat)
        flat /= world_size()
        pieces = flat.split([tensor.numel() for tensor in members])
        means = [piece.view_as(tensor) for tensor, piece in zip(members, pieces, strict=True)]
        # A few kernels, where a supernet has thousands of tensors.
        copy_all(members, means)


class _AverageGradients(torch.autograd.Function):
    """The identity, whose backward pass replaces gradients by their means over all processes."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        means = tuple(gradient.clone() for gradient in gradients)
        average(means)
        return means


def mean_of_all(
    function: Callable[[Sequence[torch.Tensor]], torch.Tensor], at: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the mean over all processes of `function(at)`, differentiable at `at`.

    For code that differentiates and knows nothing of processes: the gradient that it gets is the
    mean as well, the same in all.

    Args:
        function: A function to a scalar, of data that each process has its own share of.
        at: The tensors it is called with, the same in all processes.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> torch.autograd.grad(mean_of_all(lambda at: at[0] ** 2, [x]), x)
    (tensor(6.),)
    """
    if world_size() == 1:
        return function(at)
    local = function(_AverageGradients.apply(*at))
    mean = local.detach().clone()
    average([mean])
    # The value is the mean (local - local is 0), the gradient comes through `local`.
    return mean + (local - local.detach())


@torch.no_grad()
def refuse_drift(tensors: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Raise InputError unless these tensors are the same in all processes.

    For tensors that all compute alike. Their sums are compared. `tensors` names them by what they are, in the plural.

    >>> refuse_drift({"the weights": [torch.ones(2)]})  # alone, nothing can drift apart
    """
    named = [(name, tensor) for name, members in tensors.items() for tensor in members]
    if world_size() == 1 or not named:
        return
    # Tensors that diverged to nan alike are not an error of this function: they count as 0.
    sums = torch.stack([tensor.double().sum().cpu() for _, tensor in named]).nan_to_num()
    highest, lowest = sums.clone(), sums.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    drifted = dict.fromkeys(  # each name once, in its order
        name for (name, _), differs in zip(named, highest != lowest, strict=True) if differs
    )
    if drifted:
        raise InputError(
            f"the processes have drifted apart: {' and '.join(drifted)} are no longer the same in "
            "all; run all on the same kind of device and with the same versions, and have a "
            "plug-in average what it moves along (darts_bio.distributed.average)"
        )
