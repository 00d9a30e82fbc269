"""GDAS (Dong 2019, arXiv 1910.04465): one candidate an edge, drawn anew at each pass.

With Gumbel noise g the candidate drawn is the largest of alpha + g. Its weight is 1 and all others' 0, with the
gradient of softmax((alpha + g) / tau); tau falls linearly over the epochs.

The supernet computes every candidate, of which all but the drawn one have weight zero: a pass costs what one of darts
costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, masked_softmax, one_hot_like
from darts_bio.strategies.gradient import AlphaState, GradientStrategy, gumbel


@STRATEGIES.register("gdas")
@dataclass(frozen=True)
class Gdas(GradientStrategy):
    """One candidate an edge by hard Gumbel softmax, straight-through gradient (Dong 2019)."""

    tau: float = 10.0
    tau_min: float = 0.1

    def __post_init__(self) -> None:
        check_number(f"{self.where}: tau_min", self.tau_min, above=0)
        check_number(f"{self.where}: tau", self.tau, least=self.tau_min)
        super().__post_init__()

    def temperature(self, state: AlphaState) -> float:
        """Returns the temperature of the present epoch, on its way from `tau` to `tau_min`."""
        return self.tau + (self.tau_min - self.tau) * state.epoch / max(1, state.context.epochs - 1)

    def edge_weights(self, state: AlphaState) -> EdgeWeights:
        tau, source = self.temperature(state), state.next_draw()
        drawn = {}
        for t, logits in state.alpha.items():
            soft = masked_softmax((logits + gumbel(logits, source)) / tau, state.masks[t])
            hard = one_hot_like(soft, soft.argmax(1))
            drawn[t] = hard + soft - soft.detach()
        return drawn
