"""DrNAS (Chen 2021, arXiv 2006.10355): edge weights drawn from a Dirichlet distribution.

Its concentration is elu(alpha) + 1, and the gradient goes through the draw (implicit
reparameterisation). The Kullback-Leibler divergence to the uniform Dirichlet, times `anchor`, keeps
the concentration near 1. The genotype follows the distribution's mean.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy

SMALLEST = 1e-5
"""Of a concentration and of a draw: below it their logarithms are lost in float32."""


class DirichletState(AlphaState):
    """Alpha, and the generator, on the search's device, that its next sample is drawn from."""

    def __init__(self, strategy: GradientStrategy, context: Context) -> None:
        super().__init__(strategy, context)
        self.source = torch.Generator(context.device)

    @property
    def generators(self) -> list[torch.Generator]:
        return [self.source]


@STRATEGIES.register("drnas")
@dataclass(frozen=True)
class DrNas(GradientStrategy):
    """Weights drawn from a Dirichlet distribution, anchored to the uniform one (Chen 2021).

    `anchor` is the weight of the divergence to the uniform distribution.
    """

    anchor: float = 1e-3
    _: KW_ONLY
    lr: float = 6e-4

    def __post_init__(self) -> None:
        check_number(f"{self.where}: anchor", self.anchor)
        super().__post_init__()

    def concentrations(self, state: AlphaState) -> dict[str, Tensor]:
        """Returns per cell type (edges, candidates), 1 where the table is padded."""
        return {
            t: (F.elu(logits) + 1).clamp_min(SMALLEST).masked_fill(~state.masks[t], 1.0)
            for t, logits in state.alpha.items()
        }

    def mean_weights(self, state: AlphaState) -> dict[str, Tensor]:
        return {t: _normalised(c * state.masks[t]) for t, c in self.concentrations(state).items()}

    def begin(self, context: Context) -> DirichletState:
        return DirichletState(self, context)

    def prepare(self, state: AlphaState) -> None:
        assert isinstance(state, DirichletState)
        state.source.manual_seed(int(torch.randint(2**62, (), generator=state.next_draw())))

    def edge_weights(self, state: AlphaState) -> EdgeWeights:
        assert isinstance(state, DirichletState)
        drawn = {}
        for t, concentration in self.concentrations(state).items():
            # As torch.distributions.Gamma draws, which takes no generator.
            draws = torch._standard_gamma(concentration, generator=state.source).clamp_min(SMALLEST)
            drawn[t] = _normalised(draws * state.masks[t])
        return drawn

    def own_penalty(self, state: AlphaState) -> Tensor:
        divergences = [
            _divergence(c, state.masks[t]).sum() for t, c in self.concentrations(state).items()
        ]
        return self.anchor * torch.stack(divergences).sum()


def _normalised(values: Tensor) -> Tensor:
    return values / values.sum(1, keepdim=True)


def _divergence(concentration: Tensor, mask: Tensor) -> Tensor:
    """KL(Dirichlet(c) || Dirichlet(1)) of each row: log G(c0) - sum log G(c) - log G(n) + sum (c -
    1)(D(c) - D(c0)).
    """
    total = (concentration * mask).sum(1)
    terms = (concentration - 1) * (
        concentration.digamma() - total.digamma().unsqueeze(1)
    ) - concentration.lgamma()
    return total.lgamma() - mask.sum(1).to(total).lgamma() + (terms * mask).sum(1)
