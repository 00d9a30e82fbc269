"""Measures of individuals, for strategies that follow no gradient, such as evolution.

Each individual is a choice of edge weights of one supernet; all are measured on the same batches. The
processes share them; on a GPU many pass together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.data.batches import Batches
from darts_bio.distributed import from_first, rank, summed, world_size
from darts_bio.errors import InputError
from darts_bio.networks import EdgeWeights, SuperNet
from darts_bio.networks.supernet import single_columns
from darts_bio.runtime import autocast, rng_kept


class Individuals:
    """Measures individuals on validation batches.

    Args:
        supernet: The network whose weights they share.
        logits_at: Returns its logits (N, classes) for images (N, C, H, W) and edge weights, as
            they are trained.
        penalty: Returns what costs add to the losses (P,) of P individuals, from their edge weights.
        batches: The validation batches.
        amp: The precision of the passes, "none" or "bf16".
        together: How many individuals pass through the supernet at once, at most.
        spread: Whether `logits_at` gives weight to candidates that have none.

    Attributes:
        together: How many pass at once; fewer once memory or an operation has not allowed more.
        on_measure: Called with (done, total) as batches are measured.
    """

    def __init__(
        self,
        supernet: SuperNet,
        logits_at: Callable[[Tensor, EdgeWeights], Tensor],
        penalty: Callable[[EdgeWeights], Tensor],
        batches: Batches,
        amp: str,
        *,
        together: int,
        spread: bool,
    ) -> None:
        self.supernet, self.batches = supernet, batches
        self._logits_at, self._penalty = logits_at, penalty
        self.amp, self.spread = amp, spread
        self.together = together
        self.on_measure: Callable[[int, int], None] = lambda done, total: None

    @torch.no_grad()
    def measure(self, edge_weights: EdgeWeights, first: int, batches: int) -> tuple[Tensor, Tensor]:
        """Measure individuals on validation batches: `strategies.Measure`, from batch `first` on.

        The processes share the individuals.

        Args:
            edge_weights: The edge weights (P, ...) of P individuals, by cell type.
            first: The number of the first validation batch.
            batches: How many batches to measure on.

        Returns:
            The losses (P,), penalties included, and the accuracies (P,), float64 on the CPU.

        Raises:
            InputError: A penalty is not finite, by which individuals cannot be compared.
        """
        # All measure the first process' w, since GPUs round differently.
        from_first([*self.supernet.parameters(), *self.supernet.buffers()])
        count = len(next(iter(edge_weights.values())))
        mine = list(range(rank(), count, world_size()))  # the individuals of this process
        my_weights = {cell_type: weights[mine] for cell_type, weights in edge_weights.items()}
        # Of all individuals; the other processes' stay 0 here, and come in by the sum.
        losses_and_correct, images = torch.zeros(2, count, dtype=torch.float64), 0
        with self.supernet.batch_statistics():
            for number in range(first, first + batches):
                x, labels = self.batches.batch(number)
                images += len(labels)
                if mine:
                    logits = self.logits(x, my_weights)  # (P, N, classes)
                    losses = F.cross_entropy(
                        logits.transpose(1, 2),  # (P, N, classes) -> (P, classes, N)
                        labels.expand(len(mine), -1),  # (N,) -> (P, N)
                        reduction="none",
                    )
                    correct = logits.argmax(2) == labels  # (P, N)
                    losses_and_correct[0, mine] += losses.double().sum(1).cpu()
                    losses_and_correct[1, mine] += correct.sum(1).cpu()
                self.on_measure(number - first + 1, batches)
        mean_losses, accuracies = summed(losses_and_correct) / images
        penalties = self._penalty(edge_weights).double().cpu()
        # Where the loss itself is not finite, w has diverged, which the end of the epoch tells.
        spoilt = ~penalties.isfinite() & mean_losses.isfinite()
        if spoilt.any():
            raise InputError(
                "--objective, --regularizers: expected a finite penalty of each architecture that "
                f"is measured, found {penalties[spoilt][0].item()} for {int(spoilt.sum())} of {count};"
                " edges may have no weight at all, where a mean or a share is 0 / 0"
            )
        return mean_losses + penalties, accuracies

    def logits(self, x: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """Return the logits (P, N, classes) of P individuals on the same images.

        As many pass together as memory and the operations allow: where a pass fails, `together`
        is lowered for all further ones. All meet the same draws of operations such as noise, however
        they are spread over passes and processes, and generators are left as they were.
        """
        chunks: list[Tensor] = []
        count, start = len(next(iter(edge_weights.values()))), 0
        # One candidate an edge is computed alone, which is less than many together.
        alone = not self.spread and all(
            bool(((weights != 0).sum(2) <= 1).all()) for weights in edge_weights.values()
        )
        while start < count:
            together = 1 if alone else self.together
            chunk = slice(start, start + together)
            chunk_weights = {t: weights[chunk] for t, weights in edge_weights.items()}
            try:
                with rng_kept():
                    chunks.append(self._logits(x, chunk_weights, alone))
                start += together
            except RuntimeError as error:
                if together == 1:
                    raise
                # Out of memory, half as many may do; an operation of a user's own that torch.vmap
                # cannot batch fails with any number but one.
                out_of_memory = isinstance(error, torch.OutOfMemoryError)
                self.together = self.together // 2 if out_of_memory else 1
        return torch.cat(chunks)

    def _logits(self, x: Tensor, edge_weights: EdgeWeights, alone: bool) -> Tensor:
        """Return the logits (P, N, classes) of P individuals, in one pass for all.

        `alone` says of a single one that it has at most one candidate an edge, to compute alone.
        """
        with autocast(x.device, self.amp):
            if len(next(iter(edge_weights.values()))) == 1:
                # Without torch.vmap, which not every operation allows.
                weights_of_one = {t: weights[0] for t, weights in edge_weights.items()}
                columns = single_columns(weights_of_one) if alone else None
                with self.supernet.drawn(columns):
                    return self._logits_at(x, weights_of_one).float().unsqueeze(0)
            of_individual = functools.partial(self._logits_at, x)
            return torch.vmap(of_individual, randomness="same")(dict(edge_weights)).float()
