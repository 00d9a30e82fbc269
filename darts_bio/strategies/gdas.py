"""GDAS (Dong 2019, arXiv 1910.04465): one candidate an edge, drawn anew at each pass.

With Gumbel noise g the candidate drawn is the largest of alpha + g. Its weight is 1 and all others' 0, with the
gradient of softmax((alpha + g) / tau); tau falls linearly over the epochs.

The supernet computes every candidate, of which all but the drawn one have weight zero: a pass costs what one of darts
costs.
"""

from __future__ import annotations

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context, masked_softmax, one_hot_like
from darts_bio.strategies.gradient import GradientStrategy, gumbel


@STRATEGIES.register("gdas")
class Gdas(GradientStrategy):
    """One candidate an edge by hard Gumbel softmax, straight-through gradient (Dong 2019)."""

    def __init__(
        self,
        context: Context,
        tau: float = 10.0,
        tau_min: float = 0.1,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
        init: float = 1e-3,
    ) -> None:
        """The temperature falls from `tau` to `tau_min`."""
        check_number("strategy gdas: tau_min", tau_min, above=0)
        check_number("strategy gdas: tau", tau, least=tau_min)
        super().__init__(context, lr=lr, betas=betas, weight_decay=weight_decay, init=init)
        self.start, self.end, self.tau = tau, tau_min, tau

    def begin_epoch(self, epoch: int) -> None:
        self.tau = self.start + (self.end - self.start) * epoch / max(1, self.context.epochs - 1)

    def edge_weights(self) -> EdgeWeights:
        source = self.next_draw()
        drawn = {}
        for t, logits in self.alpha.items():
            soft = masked_softmax((logits + gumbel(logits, source)) / self.tau, self.masks[t])
            hard = one_hot_like(soft, soft.argmax(1))
            drawn[t] = hard + soft - soft.detach()
        return drawn
