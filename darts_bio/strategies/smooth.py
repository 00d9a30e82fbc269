"""SmoothDARTS (Chen 2020, arXiv 2002.05283): w is trained at edge weights beside those of alpha.

A genotype is far from the mixture that w was trained for, and its loss may be far above the
mixture's. Where w is trained for all edge weights within a distance epsilon, the loss is smooth
around alpha, and less is lost by rounding to a genotype. With the shares s of an edge's candidates:

    random        w meets  project(s + u),  u uniform in [-epsilon, epsilon]
    adversarial   w meets the s' within epsilon at which its loss is the greatest, as found by
                  `steps` steps of projected gradient ascent from a random start:
                  s' <- project(s + clip(s' + 2 epsilon / steps * sign(dL/ds') - s, epsilon))

project() bounds the shares of an edge to [0, 1] and divides them by their sum (where all are 0, the
greatest becomes 1). Alpha follows the loss at its own edge weights, as ever. The attack runs in
evaluation mode, and is given up where it has lowered the loss. In epoch e of E, counted from 0, the
distance is 0.03 + (`epsilon` - 0.03) e / E, so that the last epoch falls short of `epsilon` by a step.
All that is as in the published code (github.com/xiangning-chen/SmoothDARTS). Where edges compete,
the shares are those within an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from darts_bio.errors import check_number, check_whole, unknown_name
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import fill, generator
from darts_bio.strategies.base import Context, masks_of, shares_of_edges
from darts_bio.strategies.regularizers import REGULARIZERS, Regularizer, RegularizerState

Kind = Literal["random", "adversarial"]
"""How w's edge weights are moved away from alpha's."""

FIRST_EPSILON = 0.03
"""epsilon in the first epoch."""


class SmoothState(RegularizerState):
    """Noise and epsilon, as tensors that change in place, and the number of samples drawn.

    `noise` is (edges, candidates) per cell type, uniform in [-1, 1].
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.masks = masks_of(context)
        self.epsilon = torch.zeros((), device=context.device)
        sizes = [mask.numel() for mask in self.masks.values()]
        # The noise of all cell types is one tensor, so that a sample is one copy to a GPU.
        self._noise = torch.zeros(sum(sizes), device=context.device)
        self.noise = {
            t: noise.view_as(self.masks[t])
            for t, noise in zip(self.masks, self._noise.split(sizes), strict=True)
        }
        self.draws = 0

    def draw(self) -> None:
        """Draw the next noise: a function of the search's seed and of how many came before."""
        self.draws += 1
        source = generator("cpu", "smooth", self.context.seed, self.draws)
        fill(self._noise, 2 * torch.rand(len(self._noise), generator=source) - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.draws}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.draws = saved["draws"]


@REGULARIZERS.register("smooth")
@dataclass(frozen=True)
class Smooth(Regularizer[SmoothState]):
    """w is trained at edge weights near alpha's: random ones, or the worst (SmoothDARTS, 2002.05283).

    Attributes:
        epsilon: How far a share is moved at most: what the schedule rises to, and would reach in the
            epoch after the last.
        kind: random, or adversarial: that takes steps + 2 further passes a step.
        steps: The number of steps of the attack.

    >>> REGULARIZERS.build("smooth(kind=adversarial)")
    Smooth(epsilon=0.3, kind='adversarial', steps=7)
    """

    spreads = True

    epsilon: float = 0.3
    kind: Kind = "random"
    steps: int = 7

    def __post_init__(self) -> None:
        check_number(f"{self.where}: epsilon", self.epsilon, least=FIRST_EPSILON, below=1)
        check_whole(f"{self.where}: steps", self.steps)
        if self.kind not in get_args(Kind):
            raise unknown_name("kind of the smooth regularizer", str(self.kind), get_args(Kind))

    @property
    def exchanges(self) -> bool:  # type: ignore[override]
        return self.kind == "adversarial"

    def begin(self, context: Context) -> SmoothState:
        return SmoothState(context)

    def begin_epoch(self, state: SmoothState, epoch: int) -> None:
        rise = (self.epsilon - FIRST_EPSILON) * epoch / state.context.epochs
        state.epsilon.fill_(FIRST_EPSILON + rise)

    def prepare(self, state: SmoothState) -> None:
        state.draw()

    def perturbed(
        self, state: SmoothState, weights: EdgeWeights, loss: Callable[[EdgeWeights], Tensor]
    ) -> EdgeWeights:
        # An edge's candidates weigh 1 together, or as much as the edge does among its rivals.
        totals = {t: w.sum(1, keepdim=True) for t, w in weights.items()}
        shares = {t: shares_of_edges(w) for t, w in weights.items()}
        epsilon = state.epsilon

        def projected(moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {t: project(m, state.masks[t]) for t, m in moved.items()}

        def times_totals(moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {t: m * totals[t] for t, m in moved.items()}

        attacked = projected({t: s + epsilon * state.noise[t] for t, s in shares.items()})
        if self.kind == "random":
            return times_totals(attacked)
        for _ in range(self.steps):
            at = {t: a.detach().requires_grad_() for t, a in attacked.items()}
            with torch.enable_grad():
                gradients = torch.autograd.grad(
                    loss(times_totals(at)),
                    list(at.values()),
                    allow_unused=True,
                    materialize_grads=True,
                )
            # A step up the loss, back to within epsilon of the shares, back to shares.
            step = 2 * epsilon / self.steps
            offsets = {
                t: a + step * gradient.sign() - shares[t]
                for (t, a), gradient in zip(attacked.items(), gradients, strict=True)
            }
            attacked = projected(
                {t: shares[t] + o.clamp(-epsilon, epsilon) for t, o in offsets.items()}
            )
        with torch.no_grad():
            lowered = loss(weights) > loss(times_totals(attacked))
        return {
            t: torch.where(lowered, weights[t], moved)
            for t, moved in times_totals(attacked).items()
        }


def project(shares: Tensor, mask: Tensor) -> Tensor:
    """Bound shares (edges, candidates) to [0, 1], and divide each row by its sum.

    Where nothing is left of a row, its greatest entry becomes 1. The mask says which entries are
    candidates; all others become 0.

    >>> mask = torch.tensor([[True, True, True], [True, True, False]])
    >>> project(torch.tensor([[0.75, 0.5, -0.2], [-0.1, -0.2, 0.0]]), mask)
    tensor([[0.6000, 0.4000, 0.0000],
            [1.0000, 0.0000, 0.0000]])
    """
    bounded = shares.clamp(0, 1) * mask
    total = bounded.sum(1, keepdim=True)
    greatest = shares.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)
    single = torch.zeros_like(shares).scatter(1, greatest, 1.0)
    some = total > 0
    return torch.where(some, bounded / torch.where(some, total, 1), single)
