"""The order in which a training meets its samples: a function of (seed, name, t).

A checkpoint need not hold it, and a run that is resumed goes on with the samples it would have met.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.runtime import generator


class ShuffledOrder:
    """Batches of the numbers of samples, shuffled anew in each epoch.

    `indices(t)` depends on (seed, name of the stream, t) alone. Of an epoch, which is `per_epoch`
    batches, samples that do not fill a batch are left out.

    >>> order = ShuffledOrder(10, 4, seed=0, name="train")
    >>> order.per_epoch, len(order.indices(7))
    (2, 4)
    >>> second = ShuffledOrder(10, 4, seed=0, name="train", share=(1, 2))
    >>> second.share, torch.equal(second.indices(7), order.indices(7)[2:])
    (slice(2, 4, None), True)
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: int,
        name: str,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Fix the order.

        Args:
            samples: How many there are.
            batch_size: Samples of a batch, of all processes together.
            seed: The seed of the order.
            name: The name of the stream; streams of other names have other orders.
            share: (i, n) makes `indices` return the i-th of n equal parts of each batch.

        Raises:
            InputError: If a batch is larger than all samples together.
        """
        if batch_size > samples:
            raise InputError(
                f"--batch-size: expected at most {samples}, the images of the {name} split, found "
                f"{batch_size}; use a smaller --batch-size, or more images"
            )
        number, parts = share
        self.samples, self.batch_size, self.per_epoch = samples, batch_size, samples // batch_size
        self.share = slice(number * batch_size // parts, (number + 1) * batch_size // parts)
        self._stream = (seed, name)
        self._epoch, self._shuffled = -1, torch.empty(0)

    def indices(self, t: int) -> Tensor:
        """Return this part of batch t: the numbers of its samples (n,) int64."""
        epoch, position = divmod(t, self.per_epoch)
        if epoch != self._epoch:
            # Drawn on the CPU, so that a seed means the same on every device.
            self._shuffled = torch.randperm(
                self.samples, generator=generator("cpu", "order", *self._stream, epoch)
            )
            self._epoch = epoch
        first = position * self.batch_size
        return self._shuffled[first : first + self.batch_size][self.share]
