"""The order in which a training meets its samples: a function of the seed, so that a checkpoint
need not hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.runtime import generator


class ShuffledOrder:
    """Batches of the numbers of samples, shuffled anew in each epoch; an epoch leaves out what does
    not fill a batch.

    `indices(t)` depends on (seed, name of the stream, t) alone. With `share` = (i, n) it is the
    i-th of n equal parts of that batch. Raises InputError if a batch is larger than all samples
    together.

    >>> order = ShuffledOrder(10, 4, seed=0, name="train", share=(1, 2))
    >>> order.per_epoch, order.share, len(order.indices(7))
    (2, slice(2, 4, None), 2)
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
        if batch_size > samples:
            raise InputError(
                f"--batch-size: expected at most {samples}, the images of the {name} split, found "
                f"{batch_size}"
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
        return self._shuffled[position * self.batch_size : (position + 1) * self.batch_size][
            self.share
        ]
