"""SNAS (Xie 2019, arXiv 1812.09926): edge weights drawn from a concrete distribution.

With Gumbel noise g the weights are softmax((log softmax(alpha) + g) / tau); tau falls geometrically, so that they near
single candidates. The published search moves alpha and w by one loss on all the data; here alpha moves by the
validation half, as every strategy's, so that strategies are compared on the same data.
"""

from __future__ import annotations

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context, masked_softmax
from darts_bio.strategies.gradient import GradientStrategy, gumbel


@STRATEGIES.register("snas")
class Snas(GradientStrategy):
    """Soft weights by Gumbel softmax, its temperature falling (Xie 2019)."""

    def __init__(
        self,
        context: Context,
        tau: float = 1.0,
        tau_min: float = 0.03,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
        init: float = 1e-3,
    ) -> None:
        """The temperature falls from `tau` to `tau_min`."""
        check_number("strategy snas: tau_min", tau_min, above=0)
        check_number("strategy snas: tau", tau, least=tau_min)
        super().__init__(context, lr=lr, betas=betas, weight_decay=weight_decay, init=init)
        self.start, self.end, self.tau = tau, tau_min, tau

    def begin_epoch(self, epoch: int) -> None:
        self.tau = self.start * (self.end / self.start) ** (epoch / max(1, self.context.epochs - 1))

    def edge_weights(self) -> EdgeWeights:
        source = self.next_draw()
        # A constant added to all logits of an edge changes nothing, so alpha does as well as log softmax(alpha).
        return {
            t: masked_softmax((logits + gumbel(logits, source)) / self.tau, self.masks[t])
            for t, logits in self.alpha.items()
        }
