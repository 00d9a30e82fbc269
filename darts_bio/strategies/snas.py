"""SNAS (Xie 2019, arXiv 1812.09926): edge weights drawn from a concrete distribution.

With Gumbel noise g the weights are softmax((log softmax(alpha) + g) / tau); tau falls
geometrically, so that they near single candidates. The published search moves alpha and w by one
loss on all the data; here alpha moves by the validation half, as every strategy's, so that
strategies are compared on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy, GumbelState


@STRATEGIES.register("snas")
@dataclass(frozen=True)
class Snas(GradientStrategy):
    """Soft weights by Gumbel softmax, its temperature falling (Xie 2019)."""

    tau: float = 1.0
    tau_min: float = 0.03

    def __post_init__(self) -> None:
        check_number(f"{self.where}: tau_min", self.tau_min, above=0)
        check_number(f"{self.where}: tau", self.tau, least=self.tau_min)
        super().__post_init__()

    def temperature(self, state: AlphaState) -> float:
        """Returns the temperature of the present epoch, on its way from `tau` to `tau_min`."""
        return self.tau * (self.tau_min / self.tau) ** (
            state.epoch / max(1, state.context.epochs - 1)
        )

    def begin(self, context: Context) -> GumbelState:
        return GumbelState(self, context)

    def prepare(self, state: AlphaState) -> None:
        assert isinstance(state, GumbelState)
        state.sample(self.temperature(state))

    def edge_weights(self, state: AlphaState) -> EdgeWeights:
        assert isinstance(state, GumbelState)
        # A constant added to all logits of an edge changes nothing, so alpha does as well as log
        # softmax(alpha).
        return state.soft_sample()
