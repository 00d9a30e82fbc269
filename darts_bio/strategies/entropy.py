"""A regularizer that makes edges decide: a penalty on the entropy of their shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from darts_bio.errors import check_number, unknown_name
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.alpha import grouped_by_operation
from darts_bio.strategies.base import Context, shares_of_edges
from darts_bio.strategies.regularizers import REGULARIZERS, Regularizer, RegularizerState

Level = Literal["pair", "operation", "rule"]
"""What an entropy is of: (operation, rule) pairs, operations, or rules given the operation."""


class EntropyState(RegularizerState):
    """Which candidates are of which operation.

    `members` is (edges, candidates, operations) bool per cell type.
    """

    def __init__(self, context: Context) -> None:
        self.members = {
            t: grouped_by_operation(rows).to(context.device)
            for t, rows in context.table.rows.items()
        }


@REGULARIZERS.register("entropy")
@dataclass(frozen=True)
class Entropy(Regularizer[EntropyState]):
    """A penalty of weight times the mean entropy of edges: of pairs, operations, or rules in these.

    A positive weight drives alpha to single candidates, a negative one keeps it even. `level` says
    what the entropy, in nats, is of: pair, operation or rule. That of an edge without weight is 0.

    >>> import math
    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")  # under two rules 7 candidates, of 5 operations
    >>> table, cpu = space.table(["bp", "fa"]), torch.device("cpu")
    >>> entropy = REGULARIZERS.build("entropy(weight=1, level=pair)")
    >>> state = entropy.begin(Context(space, table, 0, cpu, epochs=10, steps_per_epoch=5))
    >>> penalty = entropy.penalty(state, {"cell": torch.full((6, 7), 1 / 7)})
    >>> round(penalty.item(), 4) == round(math.log(7), 4)
    True
    """

    weight: float = 0.1
    level: Level = "pair"

    def __post_init__(self) -> None:
        check_number(f"{self.where}: weight", self.weight, above=-float("inf"))
        if self.level not in get_args(Level):
            raise unknown_name("level of the entropy regularizer", str(self.level), get_args(Level))

    def begin(self, context: Context) -> EntropyState:
        return EntropyState(context)

    def penalty(self, state: EntropyState, shares: EdgeWeights) -> Tensor:
        entropies = []
        for t, weights in shares.items():
            pair_shares = shares_of_edges(weights)
            # Summed over the candidates of each operation:
            # (..., edges, candidates) -> (..., edges, operations)
            operation_shares = torch.einsum(
                "...ec,eco->...eo", pair_shares, state.members[t].to(weights)
            )
            pairs, operations = _entropy(pair_shares), _entropy(operation_shares)
            # H(operation, rule) = H(operation) + H(rule | operation)
            of_level = {"pair": pairs, "operation": operations, "rule": pairs - operations}
            entropies.append(of_level[self.level])
        return self.weight * torch.cat(entropies, dim=-1).mean(-1)


def _entropy(shares: Tensor) -> Tensor:
    """Return the entropy, in nats, of shares along the last dimension: (..., n) -> (...)."""
    # The bound keeps the gradient finite where a share is zero.
    return -torch.special.xlogy(shares, shares.clamp_min(torch.finfo(shares.dtype).tiny)).sum(-1)
