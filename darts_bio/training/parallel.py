"""What a task of several processes brings together, or compares, before it is measured or saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from darts_bio.distributed import average, refuse_drift
from darts_bio.errors import InputError


def refuse_uneven_shares(batch_size: int, processes: int, parts: int = 1) -> None:
    """Raise InputError if the processes, each of which passes its share of a batch through the
    network in so many parts, cannot share it out evenly: then the mean over processes would not be
    that over images.
    """
    whole = processes * parts
    if batch_size % whole:
        raise InputError(
            f"--batch-size: expected a multiple of {whole}, since {processes} process(es) share it "
            f"in {parts} part(s) "
            f"each, found {batch_size}; use for example --batch-size "
            f"{max(1, round(batch_size / whole)) * whole}"
        )


def shared_otherwise(before: int, now: int) -> str:
    """Say that a run goes on whose batches were shared out by another number of processes."""
    return (
        f"goes on in {now} process(es) where there were "
        f"{before}: batch norms see other parts of a batch from here on"
    )


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Return the running means and variances of batch norms."""
    ends = ("running_mean", "running_var")
    return [buffer for name, buffer in network.named_buffers() if name.rpartition(".")[2] in ends]


def synchronise(networks: Iterable[nn.Module], further: Mapping[str, Sequence[Tensor]]) -> None:
    """Average the running statistics of the networks' batch norms over the processes, and raise
    InputError if anything else of them, or of the `further` tensors by what they are, is not the
    same in all.

    The statistics are linear in what the batches bring, so that it makes no difference how often
    they are averaged.
    """
    same: list[Tensor] = []
    for network in networks:
        statistics = running_statistics(network)
        average(statistics)
        apart = set(map(id, statistics))
        same += network.parameters()
        same += [b for b in network.buffers() if id(b) not in apart and b.is_floating_point()]
    refuse_drift({"the weights and their feedback": same, **further})
