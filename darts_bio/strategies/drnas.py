"""DrNAS (Chen 2021, arXiv 2006.10355): edge weights drawn from a Dirichlet distribution.

The distribution of an edge has the concentration c = elu(alpha) + 1, and the gradient goes through
the draw (implicit reparameterization). What keeps the concentration near 1, that of the uniform
distribution, is Adam's decay of alpha, or in its place `anchor` times the Kullback-Leibler
divergence to the uniform distribution: the published code (github.com/xiangning-chen/DrNAS) has the
first by default, and with the second no decay. As there, the genotype follows softmax(alpha).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.errors import InputError, check_number
from darts_bio.networks import EdgeWeights
from darts_bio.private_torch import gamma_draws
from darts_bio.strategies.base import STRATEGIES, Context, masked_softmax
from darts_bio.strategies.gradient import AlphaState, GradientStrategy

SMALLEST = 1e-5
"""The least concentration and the least draw: below it their logarithms are lost in float32."""


class DirichletState(AlphaState):
    """Alpha, and the generator on the search's device that its next sample is drawn from."""

    def __init__(self, strategy: GradientStrategy, context: Context) -> None:
        super().__init__(strategy, context)
        self.source = torch.Generator(context.device)

    @property
    def generators(self) -> list[torch.Generator]:
        return [self.source]


@STRATEGIES.register("drnas")
@dataclass(frozen=True)
class DrNas(GradientStrategy):
    """Weights drawn from a Dirichlet distribution, kept near the uniform one (Chen 2021).

    `anchor` is the weight of the divergence to the uniform distribution, which takes the place of
    `weight_decay`; the other options are those of `GradientStrategy`.

    >>> from darts_bio.strategies import STRATEGIES
    >>> STRATEGIES.options("drnas")
    {'anchor': 0.0, 'lr': 0.0006, 'betas': (0.5, 0.999), 'weight_decay': 0.001, 'init': 0.001}
    >>> STRATEGIES.build("drnas(anchor=0.001, weight_decay=0)").anchor
    0.001
    """

    anchor: float = 0.0
    _: KW_ONLY
    lr: float = 6e-4

    def __post_init__(self) -> None:
        check_number(f"{self.where}: anchor", self.anchor)
        super().__post_init__()
        if self.anchor and self.weight_decay:
            raise InputError(
                f"{self.where}: expected an anchor or a decay of alpha, found anchor="
                f"{self.anchor:g} and weight_decay={self.weight_decay:g}; add weight_decay=0"
            )

    def concentrations(self, state: AlphaState) -> dict[str, Tensor]:
        """Return the concentrations (edges, candidates) per cell type, 1 where padded."""
        return {
            t: (F.elu(logits) + 1).clamp_min(SMALLEST).masked_fill(~state.masks[t], 1.0)
            for t, logits in state.alpha.items()
        }

    def mean_weights(self, state: AlphaState) -> EdgeWeights:
        return {t: _normalized(c * state.masks[t]) for t, c in self.concentrations(state).items()}

    def begin(self, context: Context) -> DirichletState:
        return DirichletState(self, context)

    def prepare(self, state: AlphaState) -> None:
        # The draw itself happens in `sampled_weights`, on the device; here its generator is seeded
        # anew, so that a sample is a function of the search's seed and of how many came before.
        assert isinstance(state, DirichletState)
        state.source.manual_seed(int(torch.randint(2**62, (), generator=state.next_draw())))

    def sampled_weights(self, state: AlphaState) -> EdgeWeights:
        assert isinstance(state, DirichletState)
        weights = {}
        for t, concentration in self.concentrations(state).items():
            # Gamma draws divided by their sum are a Dirichlet draw. This is how
            # torch.distributions.Gamma draws, gradient included; but that takes no generator.
            draws = gamma_draws(concentration, state.source).clamp_min(SMALLEST)
            weights[t] = _normalized(draws * state.masks[t])
        return weights

    def strengths(self, state: AlphaState) -> EdgeWeights:
        return {t: masked_softmax(logits, state.masks[t]) for t, logits in state.alpha.items()}

    def own_penalty(self, state: AlphaState) -> Tensor | float:
        if not self.anchor:
            return 0.0
        divergences = [
            _divergence(c, state.masks[t]).sum() for t, c in self.concentrations(state).items()
        ]
        return self.anchor * torch.stack(divergences).sum()


def _normalized(values: Tensor) -> Tensor:
    """Return values (edges, candidates) divided by the sum of their row."""
    return values / values.sum(1, keepdim=True)


def _divergence(concentration: Tensor, mask: Tensor) -> Tensor:
    """Return KL(Dirichlet(c) || Dirichlet(1)) of each edge, (edges,), in nats.

    With c0 the sum of the n concentrations of an edge, G the gamma function and D the digamma
    function it is

        log G(c0) - sum log G(c) - log G(n) + sum (c - 1) (D(c) - D(c0)).

    Args:
        concentration: (edges, candidates).
        mask: (edges, candidates) bool: which entries count.
    """
    total = (concentration * mask).sum(1)  # c0, (edges,)
    offset = concentration - 1
    digammas = concentration.digamma() - total.digamma().unsqueeze(1)
    terms = offset * digammas - concentration.lgamma()
    return total.lgamma() - mask.sum(1).to(total).lgamma() + (terms * mask).sum(1)
