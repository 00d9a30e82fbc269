"""DrNAS (Chen 2021, arXiv 2006.10355): edge weights drawn from a Dirichlet distribution.

Its concentration is elu(alpha) + 1, and the gradient goes through the draw (implicit reparameterisation). The
Kullback-Leibler divergence to the uniform Dirichlet, times `anchor`, keeps the concentration near 1. The genotype
follows the distribution's mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Gamma

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import GradientStrategy

SMALLEST = 1e-5
"""Of a concentration and of a draw: below it their logarithms are lost in float32."""


@STRATEGIES.register("drnas")
class DrNas(GradientStrategy):
    """Weights drawn from a Dirichlet distribution, anchored to the uniform one (Chen 2021)."""

    def __init__(
        self,
        context: Context,
        anchor: float = 1e-3,
        lr: float = 6e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
        init: float = 1e-3,
    ) -> None:
        """`anchor` is the weight of the divergence to the uniform distribution."""
        check_number("strategy drnas: anchor", anchor)
        super().__init__(context, lr=lr, betas=betas, weight_decay=weight_decay, init=init)
        self.anchor = anchor

    def concentrations(self) -> dict[str, Tensor]:
        """Per cell type (edges, candidates), 1 where the table is padded."""
        return {
            t: (F.elu(logits) + 1).clamp_min(SMALLEST).masked_fill(~self.masks[t], 1.0)
            for t, logits in self.alpha.items()
        }

    def mean_weights(self) -> dict[str, Tensor]:
        return {t: _normalised(c * self.masks[t]) for t, c in self.concentrations().items()}

    def edge_weights(self) -> EdgeWeights:
        seed = int(torch.randint(2**62, (), generator=self.next_draw()))
        drawn = {}
        # The distribution takes no generator: it draws from the default one, which is put back.
        with torch.random.fork_rng([self.context.device] if self.context.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for t, concentration in self.concentrations().items():
                draws = Gamma(concentration, torch.ones_like(concentration)).rsample().clamp_min(SMALLEST)
                drawn[t] = _normalised(draws * self.masks[t])
        return drawn

    def own_penalty(self) -> Tensor:
        divergences = [_divergence(c, self.masks[t]).sum() for t, c in self.concentrations().items()]
        return self.anchor * torch.stack(divergences).sum()


def _normalised(values: Tensor) -> Tensor:
    return values / values.sum(1, keepdim=True)


def _divergence(concentration: Tensor, mask: Tensor) -> Tensor:
    """KL(Dirichlet(c) || Dirichlet(1)) of each row: log G(c0) - sum log G(c) - log G(n) + sum (c - 1)(D(c) - D(c0))."""
    total = (concentration * mask).sum(1)
    terms = (concentration - 1) * (concentration.digamma() - total.digamma().unsqueeze(1)) - concentration.lgamma()
    return total.lgamma() - mask.sum(1).to(total).lgamma() + (terms * mask).sum(1)
