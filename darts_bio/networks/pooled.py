"""Candidates of a supernet whose rules share weights: what belongs to one operation is pooled.

Edge weights w stay what strategies lend, one for each (operation, rule). Of an operation with rules
r they say two things: its gain, the sum of its w_r, which weights its output in the mixture; and its
rules' shares p_r = w_r / sum, by which their kernels are mixed (`rules.mixture`). Gains act in the
forward pass and shares in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from darts_bio.networks.stacking import member_place
from darts_bio.rules.mixed_feedback import MixedFeedback
from darts_bio.rules.stacked import StackedConv2d
from darts_bio.spaces import Candidate, CandidateTable
from darts_bio.spaces.base import Row, by_operation

LEFT_OUT = -1
"""Stands for the column of a candidate on an edge of which nothing is drawn, nor computed."""


def rule_shares(weights: Tensor) -> Tensor:
    """Divide weights (..., R) of an operation's rules by their sum.

    Where that is zero, an error that meets it is multiplied by zero, and shares are equal.

    >>> rule_shares(torch.tensor([[0.1, 0.3], [0.0, 0.0]]))
    tensor([[0.2500, 0.7500],
            [0.5000, 0.5000]])
    """
    total = weights.sum(-1, keepdim=True)
    some = total > 0
    return torch.where(some, weights / torch.where(some, total, 1), 1 / weights.shape[-1])


class PooledRows(nn.Module):
    """The candidates of each edge, pooled by operation, where the rules of one share its weights.

    A pool is planned and computed as one candidate is. `rows` holds them, padded to one length;
    their rules are written as one, "fa + usf".

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201(operations=(none, nor_conv_1x1))")
    >>> pooled = PooledRows(space.table(("fa", "usf")).rows["cell"])
    >>> [str(candidate) for candidate in pooled.rows[0]]
    ['none', 'nor_conv_1x1:fa + usf']
    >>> pooled(torch.tensor([[0.5, 0.2, 0.3]] * 6))[0]
    tensor([0.5000, 0.5000])
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self.pools = [by_operation(row) for row in rows]
        width = max(map(len, self.pools))
        self.rows: list[Row] = [
            tuple(Candidate(pool.op, " + ".join(pool.rules) or None) for pool in pools)
            + (None,) * (width - len(pools))
            for pools in self.pools
        ]
        members = torch.zeros(len(rows), len(rows[0]), width)
        for edge, pools in enumerate(self.pools):
            for number, pool in enumerate(pools):
                members[edge, list(pool.columns), number] = 1
        self.register_buffer("members", members, persistent=False)

    def forward(self, weights: Tensor) -> Tensor:
        """Sum the weights (edges, candidates) over each pool: (edges, pools)."""
        return (weights.unsqueeze(2) * self.get_buffer("members")).sum(1)

    def columns(self, columns: Sequence[int]) -> list[int]:
        """Return, for the column of one candidate of each edge, the number of its pool.

        Where it is LEFT_OUT, the number is too.
        """
        return [
            next((number for number, pool in enumerate(pools) if column in pool.columns), LEFT_OUT)
            for pools, column in zip(self.pools, columns, strict=True)
        ]


class RulePlaces(nn.Module):
    """Where, among a network's edge weights, those of each stacked member's rules stand."""

    def __init__(
        self,
        table: CandidateTable,
        homes: Mapping[StackedConv2d, tuple[str, PooledRows]],
        feedback: Sequence[MixedFeedback],
    ) -> None:
        """Find them for the members of each `MixedFeedback`.

        Args:
            table: The candidates.
            homes: For each stacked layer the type of its cell, and the cell's pools.
            feedback: What asks for shares.
        """
        super().__init__()
        self.cell_types = tuple(table.rows)
        sizes = [math.prod(table.shape(cell_type)) for cell_type in self.cell_types]
        first = {t: sum(sizes[:number]) for number, t in enumerate(self.cell_types)}
        for number, mixed in enumerate(feedback):
            places = []
            for layer, member in mixed.members:
                cell_type, pooled = homes[layer]
                edge, pool = member_place(layer.names[member])
                row = first[cell_type] + edge * table.shape(cell_type)[1]
                places.append([row + column for column in pooled.pools[edge][pool].columns])
            self.register_buffer(f"places_{number}", torch.tensor(places), persistent=False)

    def forward(self, edge_weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the rules' shares for the members of each `MixedFeedback`: (members, R)."""
        flat = torch.cat([edge_weights[cell_type].flatten() for cell_type in self.cell_types])
        return [rule_shares(flat[places]) for places in self.buffers()]
