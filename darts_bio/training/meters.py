"""Numbers on their way: summed on the device in each step, read as means now and then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.distributed import gathered, rank, world_size
from darts_bio.modes import in_mode
from darts_bio.private_torch import add_all
from darts_bio.runtime import autocast, rng_kept, send

Numbers = dict[str, float]
"""Measurements by name, such as {"train/loss": 2.3, "lr/weights": 0.025}."""


@dataclass(frozen=True)
class Sums:
    """Several numbers, each summed over the same `count` values, such as the images of a step.

    Attributes:
        names: The numbers' names.
        totals: The sums (numbers,) float64, in the order of `names`, on the device that made them.
        count: How many values were summed.

    >>> Sums(("train/loss",), torch.tensor([5.0], dtype=torch.float64), 2).count
    2
    """

    names: tuple[str, ...]
    totals: Tensor
    count: int


class Meters:
    """Running means by name, over all processes.

    Sums stay on the device until they are read, so that Python does not wait for a GPU.

    >>> meters = Meters()
    >>> for loss in (3.0, 2.0):
    ...     meters.add(Sums(("loss",), torch.tensor([loss], dtype=torch.float64), 1))
    >>> meters.read()
    {'loss': 2.5}
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        """The sums (numbers,) on the device, by the names that were added together."""
        self._begun: dict[str, float] = {}
        """Sums that were loaded, by name, until more is added to them."""
        self._counts: dict[str, int] = {}
        """How many values were summed, by name."""

    def add(self, *several: Sums) -> None:
        """Add to the sums of the same names, on a GPU by one kernel for all."""
        if not several:
            return
        for sums in several:
            if sums.names not in self._sums:
                begun = torch.tensor(
                    [self._begun.pop(name, 0.0) for name in sums.names], dtype=torch.float64
                )
                self._sums[sums.names] = send(begun, sums.totals.device)
            for name in sums.names:
                self._counts[name] = self._counts.get(name, 0) + sums.count
        add_all([self._sums[sums.names] for sums in several], [sums.totals for sums in several])

    def read(self) -> Numbers:
        """Return the means since the last `clear`. All processes have to read equally often."""
        return {name: total / count for name, (total, count) in self._totals().items()}

    def _totals(self) -> dict[str, tuple[float, int]]:
        """Return (sum, count) by name, over all processes, the same in each."""
        # In the order of the processes, so that rounding is the same in all.
        return _added(gathered(self.state_dict()))

    def clear(self) -> None:
        """Begin all means anew."""
        self._sums, self._begun, self._counts = {}, {}, {}

    def state_dict(self) -> dict[str, tuple[float, int]]:
        """Return (sum, count) by name, of this process."""
        sums_here = dict(self._begun)
        for names, sums in self._sums.items():
            sums_here |= zip(names, sums.tolist(), strict=True)
        return {name: (total, self._counts[name]) for name, total in sums_here.items()}

    def load_state_dicts(self, states: Sequence[dict[str, tuple[float, int]]]) -> None:
        """Go on from what all processes had, by their numbers.

        If there are as many now, each goes on from its own; else the first takes over all.
        """
        self.clear()
        if len(states) == world_size():
            states = [states[rank()]]
        elif rank() > 0:
            states = []
        for name, (total, count) in _added(states).items():
            self._begun[name], self._counts[name] = total, count


def _added(several: Sequence[dict[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """Add up (sum, count) by name."""
    totals: dict[str, tuple[float, int]] = {}
    for each in several:
        for name, (total, count) in each.items():
            before = totals.get(name, (0.0, 0))
            totals[name] = (before[0] + total, before[1] + count)
    return totals


@torch.no_grad()
def loss_and_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a batch's cross entropy and number of correct answers, summed over images.

    Args:
        logits: Logits (N, classes).
        labels: Labels (N,), or the classes' shares (N, classes), the largest of which counts as the
            label.

    Returns:
        Both sums, (2,) float64, on the device of the logits.

    >>> loss_and_accuracy(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    tensor([2.7726, 3.0000], dtype=torch.float64)
    """
    logits = logits.detach().float()
    likeliest = labels if labels.dim() == 1 else labels.argmax(1)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    correct = (logits.argmax(1) == likeliest).sum()
    return torch.stack([loss.double(), correct.double()])


def measured(prefix: str, loss_and_accuracy: Tensor, count: int) -> Sums:
    """Name what `loss_and_accuracy` returned for `count` images.

    Read as means, the loss is per image and the accuracy a fraction in [0, 1].

    >>> measured("train", torch.tensor([2.7726, 3.0]), 4).names
    ('train/loss', 'train/accuracy')
    """
    return Sums((f"{prefix}/loss", f"{prefix}/accuracy"), loss_and_accuracy, count)


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, prefix: str, amp: str = "none"
) -> Numbers:
    """Return a model's mean loss and accuracy on batches, in evaluation mode, over all processes.

    Modes, feedback and the states of generators are left as they were.

    Args:
        model: A network from images to logits (N, classes).
        batches: Images (N, C, H, W) and labels (N,), of this process.
        prefix: What the numbers' names begin with, such as "test".
        amp: The precision of the passes, "none" or "bf16".

    >>> batches = [(torch.eye(2), torch.tensor([0, 1]))]
    >>> evaluate(nn.Identity(), batches, prefix="test")["test/accuracy"]
    1.0
    """
    meters = Meters()
    # A network may draw in evaluation too: the operation `noise` does.
    with in_mode(model, training=False), rng_kept():
        for x, labels in batches:
            with autocast(x.device, amp):
                logits = model(x)
            meters.add(measured(prefix, loss_and_accuracy(logits, labels), len(labels)))
    return meters.read()
