"""What several processes that train one network share out, bring together and compare.

Each process passes its share of a batch through its own copy of the network. Two kinds of state
follow from that:

- Weights, feedback, momentum and alpha are the same in all processes, since their gradients are
  averaged before each update. They are compared, never repaired: a difference is a mistake.
- The running statistics of batch norms differ, since each process sees other images. They are
  averaged in `synchronize`, which the training loop calls before the network is measured or saved;
  after a save each process goes on with its own.

The exchanges themselves are in `darts_bio.distributed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from darts_bio.distributed import average, refuse_drift
from darts_bio.errors import InputError


def refuse_uneven_shares(batch_size: int, processes: int, parts: int = 1) -> None:
    """Raise InputError unless a batch can be shared out evenly.

    With uneven shares the mean over processes would not be the mean over images.

    Args:
        batch_size: The images of a batch, over all processes.
        processes: How many processes share it.
        parts: In how many passes each process computes its share (`--accumulate`).

    >>> refuse_uneven_shares(96, processes=4)
    >>> refuse_uneven_shares(90, processes=4)
    Traceback (most recent call last):
    darts_bio.errors.InputError: --batch-size: expected a multiple of 4, since 4 process(es) share \
it in 1 part(s) each, found 90; use for example --batch-size 88
    """
    divisor = processes * parts
    if batch_size % divisor:
        nearest = max(1, round(batch_size / divisor)) * divisor
        raise InputError(
            f"--batch-size: expected a multiple of {divisor}, since {processes} process(es) share "
            f"it in {parts} part(s) each, found {batch_size}; use for example --batch-size "
            f"{nearest}"
        )


def shared_otherwise(before: int, now: int) -> str:
    """Return a note for a run that goes on with another number of processes than it had before.

    >>> shared_otherwise(2, 4)
    'goes on in 4 process(es) where there were 2: batch norms see other parts of a batch from here on'
    """
    return (
        f"goes on in {now} process(es) where there were "
        f"{before}: batch norms see other parts of a batch from here on"
    )


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Return the running means and variances of a network's batch norms.

    >>> running_statistics(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
    [tensor([0., 0.]), tensor([1., 1.])]
    """
    statistics = ("running_mean", "running_var")
    return [
        buffer for name, buffer in network.named_buffers() if name.rpartition(".")[2] in statistics
    ]


def synchronize(networks: Iterable[nn.Module], further: Mapping[str, Sequence[Tensor]]) -> None:
    """Average batch norms' running statistics over all processes, and compare everything else.

    It makes no difference to the statistics how often they are averaged, rounding apart: each is a
    moving average, linear in the batches' own statistics, so that averaging commutes with its
    updates.

    Args:
        networks: Networks of the same weights in all processes.
        further: Other tensors that have to be the same in all, by what they are, in the plural:
            {"alpha and what moves it": ...}.

    Raises:
        InputError: A weight, feedback or one of the `further` tensors is not the same in all.

    >>> synchronize([nn.BatchNorm2d(2)], {})  # of a process that runs alone nothing can differ
    """
    to_compare: list[Tensor] = []
    for network in networks:
        statistics = running_statistics(network)
        average(statistics)
        averaged = set(map(id, statistics))
        to_compare += network.parameters()
        to_compare += [
            buffer
            for buffer in network.buffers()
            # Counters, which are whole numbers, say nothing of a drift.
            if id(buffer) not in averaged and buffer.is_floating_point()
        ]
    refuse_drift({"the weights and their feedback": to_compare, **further})
