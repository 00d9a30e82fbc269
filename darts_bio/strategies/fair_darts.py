"""Fair DARTS (Chu 2020, arXiv 1911.12126): candidates that do not compete.

Each candidate has its own sigmoid(alpha) as its weight, in place of a share of a softmax. The
zero-one loss -w mean (sigmoid(alpha) - 1/2)^2 drives the weights away from the middle. The options
are those of the published code (github.com/xiaomi-automl/FairDARTS); its search has no `none` and a
recipe of its own for w, both of which `--protocol fair_darts` brings. The published derivation drops
edges below a threshold; here a node keeps as many edges as its space asks for.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy


class FairState(AlphaState):
    """Alpha, and which entries of its flattened tables are candidates and not padding."""

    def __init__(self, strategy: GradientStrategy, context: Context) -> None:
        super().__init__(strategy, context)
        # Indices rather than a mask: to select by a mask, Python waits for the GPU to say how many
        # entries there are, which a recorded step cannot.
        self.present = {
            t: context.table.mask(t).flatten().nonzero().squeeze(1).to(context.device)
            for t in context.table.rows
        }
        """(candidates of all edges,) indices into the flattened (edges, candidates), per type."""


@STRATEGIES.register("fair_darts")
@dataclass(frozen=True)
class FairDarts(GradientStrategy):
    """Independent candidates: sigmoid of alpha with a zero-one loss (Chu 2020).

    `zero_one` is the weight w of the zero-one loss; the other options are those of
    `GradientStrategy`.

    >>> from darts_bio.strategies import STRATEGIES
    >>> STRATEGIES.options("fair_darts")
    {'zero_one': 10.0, 'lr': 0.003, 'betas': (0.9, 0.999), 'weight_decay': 0.001, 'init': 0.001}
    >>> STRATEGIES.build("fair_darts(zero_one=1)").zero_one
    1
    """

    zero_one: float = 10.0
    _: KW_ONLY
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        check_number(f"{self.where}: zero_one", self.zero_one)
        super().__post_init__()

    def mean_weights(self, state: AlphaState) -> EdgeWeights:
        return {t: logits.sigmoid() * state.masks[t] for t, logits in state.alpha.items()}

    def begin(self, context: Context) -> FairState:
        return FairState(self, context)

    def own_penalty(self, state: AlphaState) -> Tensor:
        assert isinstance(state, FairState)
        sigmoids = torch.cat(
            [logits.sigmoid().flatten()[state.present[t]] for t, logits in state.alpha.items()]
        )
        return -self.zero_one * (sigmoids - 0.5).square().mean()

    def strengths(self, state: AlphaState) -> EdgeWeights:
        # Divided by the number of candidates of the edge: a space that compares edges takes rows
        # for shares, and multiplies them by that number.
        return {
            t: weights / state.masks[t].sum(1, keepdim=True)
            for t, weights in self.mean_weights(state).items()
        }
