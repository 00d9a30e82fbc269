"""The auxiliary skip connection of DARTS-, a regularizer (Chu 2021, arXiv 2009.01027)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from darts_bio.errors import InputError, check_number, unknown_name
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import Context
from darts_bio.strategies.regularizers import REGULARIZERS, Regularizer, ScheduledState

NEARLY_NOTHING = 1e-12
"""The weight of an edge's skip connections below which the auxiliary ones have equal shares."""

Decay = Literal["linear", "cosine"]
"""How a weight falls from its first value to 0 over the epochs."""


class AuxiliarySkipState(ScheduledState):
    """The weight of the auxiliary skips, and which candidates are skip connections.

    `skips` is (edges, candidates) bool per cell type; `any` tells whether one of them is True.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        are_skips = {
            t: [[c is not None and c.op == "skip_connect" for c in row] for row in rows]
            for t, rows in context.table.rows.items()
        }
        self.skips = {t: torch.tensor(of_t, device=context.device) for t, of_t in are_skips.items()}
        self.any = any(True in row for of_t in are_skips.values() for row in of_t)


@REGULARIZERS.register("auxiliary_skip")
@dataclass(frozen=True)
class AuxiliarySkip(Regularizer[AuxiliarySkipState]):
    """A skip connection beside the candidates, fading out (DARTS-, Chu 2021, arXiv 2009.01027).

    A skip helps to train the network whatever it is worth in the architecture, and is chosen for
    that. So each edge that has a skip connection among its candidates gets another one, outside the
    competition, whose weight falls over the epochs from `weight` to 0, linearly (`linear`) or by
    half a cosine (`cosine`). An edge all of whose weights are 0, which is taken out, gets none.

    At stride 1 that is the identity. At stride 2 a skip connection has weights, which the auxiliary
    one shares with the candidates (under several rules, by their shares), where the published code
    has further ones.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> skip = REGULARIZERS.build("auxiliary_skip")
    >>> state = skip.begin(Context(space, table, 0, cpu, epochs=50, steps_per_epoch=5))
    >>> skip.begin_epoch(state, 10)
    >>> skip.lent(state, {"cell": torch.full((6, 5), 0.2)})["cell"][0]
    tensor([0.2000, 1.0000, 0.2000, 0.2000, 0.2000])
    """

    spreads = True

    weight: float = 1.0
    decay: Decay = "linear"

    def __post_init__(self) -> None:
        check_number(f"{self.where}: weight", self.weight, above=0)
        if self.decay not in get_args(Decay):
            raise unknown_name("decay of the auxiliary skip", str(self.decay), get_args(Decay))

    def begin(self, context: Context) -> AuxiliarySkipState:
        state = AuxiliarySkipState(context)
        if not state.any:
            raise InputError(
                f"{self.where}: expected skip_connect among the operations of the space, found "
                "none; leave the regularizer out, or use another --space"
            )
        return state

    def begin_epoch(self, state: AuxiliarySkipState, epoch: int) -> None:
        progress = epoch / state.context.epochs
        falls = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        state.number.fill_(self.weight * falls[self.decay])

    def lent(self, state: AuxiliarySkipState, weights: EdgeWeights) -> EdgeWeights:
        lent = {}
        for t, of_type in weights.items():
            skips = state.skips[t].to(of_type)
            total = (of_type * skips).sum(-1, keepdim=True)
            # Of less, as cold samples have it, the gradient of a share would overflow.
            some = total > NEARLY_NOTHING
            equal = skips / skips.sum(-1, keepdim=True).clamp_min(1)
            of_skips = torch.where(some, of_type * skips / torch.where(some, total, 1), equal)
            # An edge without weight was taken out of the cell, and a skip would stand in its place.
            present = (of_type != 0).any(-1, keepdim=True)
            lent[t] = of_type + state.number.to(of_type) * of_skips * present
        return lent
