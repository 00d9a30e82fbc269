"""Random draws for the samples of a batch, which do not depend on how many processes share it.

Each process draws for the samples of all, from a generator in the same state, and takes its own
part.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from darts_bio.distributed import rank, world_size


def drawn_for_part(
    n: int, draw: Callable[[int], Tensor], share: tuple[int, int] | None = None
) -> Tensor:
    """Draw for the samples of all parts of a batch, and return the draws (n, ...) of one part.

    Args:
        n: The samples of the part; all parts have as many.
        draw: Draws for a number of samples: k -> (k, ...).
        share: (i, k) for the i-th of k parts, None where processes have a part each.

    >>> import torch
    >>> drawn_for_part(2, torch.arange, share=(1, 3))
    tensor([2, 3])
    """
    part, parts = share or (rank(), world_size())
    return draw(n * parts)[n * part :][:n]


class DrawsForSamples(nn.Module):
    """A module whose forward pass draws for each sample of a batch, by `drawn`."""

    share: tuple[int, int] | None = None
    """(i, k) where a batch is the i-th of k parts, None where processes have a part each."""

    def drawn(self, n: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Return the draws (n, ...) of the n samples of a batch; see `drawn_for_part`."""
        return drawn_for_part(n, draw, self.share)
