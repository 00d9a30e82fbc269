"""Fair DARTS (Chu 2020, arXiv 1911.12126): candidates that do not compete.

Each has its own sigmoid(alpha) as its weight, and the zero-one loss -w mean (sigmoid(alpha) - 1/2)^2 drives these away
from the middle. The published derivation drops edges below a threshold; here a node keeps as many as its space asks
for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import GradientStrategy


@STRATEGIES.register("fair_darts")
class FairDarts(GradientStrategy):
    """Independent candidates: sigmoid of alpha with a zero-one loss (Chu 2020)."""

    def __init__(
        self,
        context: Context,
        zero_one: float = 10.0,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
        init: float = 1e-3,
    ) -> None:
        """`zero_one` is the weight of the zero-one loss."""
        check_number("strategy fair_darts: zero_one", zero_one)
        super().__init__(context, lr=lr, betas=betas, weight_decay=weight_decay, init=init)
        self.zero_one = zero_one

    def mean_weights(self) -> dict[str, Tensor]:
        return {t: logits.sigmoid() * self.masks[t] for t, logits in self.alpha.items()}

    def own_penalty(self) -> Tensor:
        sigmoids = torch.cat([logits.sigmoid()[self.masks[t]] for t, logits in self.alpha.items()])
        return -self.zero_one * (sigmoids - 0.5).square().mean()

    @torch.no_grad()
    def final_weights(self) -> EdgeWeights:
        # As shares, since a space that compares edges multiplies them by the number of candidates.
        return {t: weights / self.masks[t].sum(1, keepdim=True) for t, weights in self.mean_weights().items()}
