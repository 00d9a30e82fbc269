"""Fair DARTS (Chu 2020, arXiv 1911.12126): candidates that do not compete.

Each has its own sigmoid(alpha) as its weight, and the zero-one loss -w mean (sigmoid(alpha) -
1/2)^2 drives these away from the middle. The published derivation drops edges below a threshold;
here a node keeps as many as its space asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy


class FairState(AlphaState):
    """Alpha, and per cell type the numbers of the candidates that there are, in its flattened
    (edges, candidates).
    """

    def __init__(self, strategy: GradientStrategy, context: Context) -> None:
        super().__init__(strategy, context)
        # Numbers, since to select by a mask Python has to wait for how many there are.
        self.present = {
            t: context.table.mask(t).flatten().nonzero().squeeze(1).to(context.device)
            for t in context.table.rows
        }


@STRATEGIES.register("fair_darts")
@dataclass(frozen=True)
class FairDarts(GradientStrategy):
    """Independent candidates: sigmoid of alpha with a zero-one loss (Chu 2020).

    `zero_one` is the weight of the zero-one loss.
    """

    zero_one: float = 10.0

    def __post_init__(self) -> None:
        check_number(f"{self.where}: zero_one", self.zero_one)
        super().__post_init__()

    def mean_weights(self, state: AlphaState) -> dict[str, Tensor]:
        return {t: logits.sigmoid() * state.masks[t] for t, logits in state.alpha.items()}

    def begin(self, context: Context) -> FairState:
        return FairState(self, context)

    def own_penalty(self, state: AlphaState) -> Tensor:
        assert isinstance(state, FairState)
        sigmoids = torch.cat(
            [logits.sigmoid().flatten()[state.present[t]] for t, logits in state.alpha.items()]
        )
        return -self.zero_one * (sigmoids - 0.5).square().mean()

    @torch.no_grad()
    def final_weights(self, state: AlphaState) -> EdgeWeights:
        # As shares, since a space that compares edges multiplies them by the number of candidates.
        return {
            t: weights / state.masks[t].sum(1, keepdim=True)
            for t, weights in self.mean_weights(state).items()
        }
