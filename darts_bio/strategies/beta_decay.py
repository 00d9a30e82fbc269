"""Beta-DARTS' decay of edge weights, a regularizer (Ye 2022, arXiv 2203.01665)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError, check_number
from darts_bio.strategies.base import Context, Strategy, StrategyState
from darts_bio.strategies.regularizers import (
    REGULARIZERS,
    Regularizer,
    ScheduledState,
    refuse_without_gradient,
)


@REGULARIZERS.register("beta_decay")
@dataclass(frozen=True)
class BetaDecay(Regularizer[ScheduledState]):
    """A penalty on the logsumexp of alpha: beta-DARTS' decay of edge weights (Ye 2022, 2203.01665).

    The loss that alpha follows gets lambda times the mean over all edges of log sum exp(alpha). Its
    gradient is lambda times the edge weights themselves, and so keeps large ones from growing.
    lambda rises linearly over the epochs from 0 to `weight`, which is that of the published code's
    search of 100 epochs; one of 50 epochs ends with half of that there. There alpha keeps Adam's
    decay beside it. What `factorised` makes of alpha has a logsumexp of 0: the two do not go
    together.

    >>> import math
    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> decay = REGULARIZERS.build("beta_decay(weight=50)")
    >>> state = decay.begin(Context(space, table, 0, cpu, epochs=100, steps_per_epoch=5))
    >>> decay.begin_epoch(state, 2)  # lambda is 2 % of 50
    >>> penalty = decay.alpha_penalty(state, {"cell": torch.zeros(6, 5)})
    >>> round(penalty.item(), 4) == round(math.log(5), 4)
    True
    """

    weight: float = 50.0

    def __post_init__(self) -> None:
        check_number(f"{self.where}: weight", self.weight, above=0)

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        refuse_without_gradient(self, strategy.trainer)
        if state.context.factorised:
            raise InputError(
                f"{self.where}: expected an alpha of logits, found one of operations times rules "
                "(factorised, or that of rule_aware), whose logsumexp is 0; leave one of both out"
            )

    def begin(self, context: Context) -> ScheduledState:
        return ScheduledState(context)

    def begin_epoch(self, state: ScheduledState, epoch: int) -> None:
        state.number.fill_(self.weight * epoch / state.context.epochs)

    def alpha_penalty(self, state: ScheduledState, alpha: Mapping[str, Tensor]) -> Tensor:
        sums = [
            logits.masked_fill(~state.masks[t], -torch.inf).logsumexp(1)
            for t, logits in alpha.items()
        ]
        return state.number * torch.cat(sums).mean()
