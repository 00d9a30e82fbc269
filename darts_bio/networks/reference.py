"""The mixed operation as published DARTS codes write it: slow and obvious.

Each candidate on each edge is a module of its own, and they run one by one. `mixed.MixedCell`, the
cell that a search runs, draws the same weights and is tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.networks.candidates import row_blueprints
from darts_bio.networks.pooled import LEFT_OUT, rule_shares
from darts_bio.rules import rule_carriers
from darts_bio.rules.feedback import Scale
from darts_bio.spaces import Space
from darts_bio.spaces.base import Row, by_operation


class MixedOperation(nn.ModuleList):
    """Every candidate of one edge, and the weighted sum of their outputs.

    With `partial` = k > 1 the first C/k channels go through the candidates, and the others pass by,
    weighted by the sum of the weights and max-pooled at stride 2; then channels are shuffled in k
    groups (PC-DARTS, arXiv 1907.05737).

    Args:
        row: The candidates of the edge; padding, None, stands at its end.
        channels: C, the channels of a node.
        stride: The stride of the edge, 1 or 2.
        partial: k, of which one part of the channels goes through the candidates.
        normalizes_pools: Whether operations without weights end with a batch norm.
        skip_rate: The rate of the dropout behind skip connections; None for no dropout.
    """

    def __init__(
        self,
        row: Row,
        channels: int,
        stride: int,
        partial: int = 1,
        normalizes_pools: bool = True,
        skip_rate: Tensor | None = None,
    ) -> None:
        blueprints = row_blueprints(
            row,
            channels // partial,
            stride,
            normalizes_pools=normalizes_pools,
            skip_rate=skip_rate,
        )
        super().__init__(blueprint.build() for blueprint in blueprints)
        self.stride, self.partial = stride, partial

    def forward(self, x: Tensor, weights: Tensor, drawn: int | None = None) -> Tensor:
        """Map x (N, C, H, W) and weights (candidates and padding,) to the sum (N, C, H', W').

        Where a candidate is `drawn`, it alone is computed, and the others count as zero; where that
        is LEFT_OUT, they all do.
        """
        weights = weights[: len(self)]  # the padding of a row stands at its end
        chosen = x[:, : x.shape[1] // self.partial]  # (N, C/k, H, W)
        mixed = sum(
            weight * candidate(chosen)
            for column, (weight, candidate) in enumerate(zip(weights.unbind(), self, strict=True))
            if drawn in (None, column)
        )
        if drawn == LEFT_OUT:
            n, c, h, w = chosen.shape
            mixed = chosen.new_zeros(n, c, -(-h // self.stride), -(-w // self.stride))
        if self.partial == 1:
            return mixed
        passing = x[:, chosen.shape[1] :]  # (N, C - C/k, H, W)
        if self.stride > 1:
            passing = F.max_pool2d(passing, self.stride, ceil_mode=True)
        side_by_side = torch.cat([mixed, weights.sum() * passing], dim=1)
        # Every k-th channel comes from the candidates, so that the next edge's first C/k hold some
        # of both.
        return F.channel_shuffle(side_by_side, self.partial)


class PooledOperation(MixedOperation):
    """A `MixedOperation` in which the rules of an operation share its weights.

    The candidates of one operation are one module, under the `RuleMixture` of their rules. Its
    weight in the sum is the sum of theirs, and the shares of the rules are their parts of it.

    Args:
        row: The candidates of the edge.
        channels: C, the channels of a node.
        stride: The stride of the edge, 1 or 2.
        scale: The scale of the mixture's kernels.
        partial: k of PC-DARTS, see `MixedOperation`.
        normalizes_pools: Whether operations without weights end with a batch norm.
        skip_rate: The rate of the dropout behind skip connections; None for no dropout.
    """

    def __init__(
        self,
        row: Row,
        channels: int,
        stride: int,
        scale: Scale,
        partial: int = 1,
        normalizes_pools: bool = True,
        skip_rate: Tensor | None = None,
    ) -> None:
        blueprints = row_blueprints(
            row,
            channels // partial,
            stride,
            shared=scale,
            normalizes_pools=normalizes_pools,
            skip_rate=skip_rate,
        )
        nn.ModuleList.__init__(self, (blueprint.build() for blueprint in blueprints))
        self.stride, self.partial = stride, partial
        self.pools = by_operation(row)

    def forward(self, x: Tensor, weights: Tensor, drawn: int | None = None) -> Tensor:
        """Map x (N, C, H, W) and weights (candidates and padding,) to the sum (N, C, H', W')."""
        gains = []
        for pool, module in zip(self.pools, self, strict=True):
            of_rules = weights[list(pool.columns)]
            gains.append(of_rules.sum())
            shares = rule_shares(of_rules.detach())
            for _, carrier in rule_carriers(module):
                carrier.feedback["share"].copy_(shares)
        if drawn is not None and drawn != LEFT_OUT:
            drawn = next(n for n, pool in enumerate(self.pools) if drawn in pool.columns)
        return super().forward(x, torch.stack(gains), drawn)


class ReferenceCell(nn.Module):
    """A supernet's cell, as a function of its prepared inputs and of edge weights.

    Args:
        space: What says which edges there are, and at which stride they work.
        cell_type: The type of the cell.
        rows: The candidates of each edge, in the order of `space.edges`.
        channels: The channels of a node.
        partial: k of PC-DARTS, see `MixedOperation`.
        shared: None for weights of each candidate's own; else the rules of an operation share one
            weight, and this is the scale of their kernels (`PooledOperation`).
        skip_rate: The rate of the dropout behind skip connections; None for no dropout.
    """

    memory_format = torch.contiguous_format  # as in the codes that it stands for

    def __init__(
        self,
        space: Space,
        cell_type: str,
        rows: Sequence[Row],
        channels: int,
        partial: int = 1,
        shared: Scale | None = None,
        skip_rate: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.wiring, self.outputs = space.edges, space.outputs
        self.edges = nn.ModuleList()
        for row, (_, source) in zip(rows, space.edges, strict=True):
            stride = space.stride(cell_type, source)
            last = (partial, space.normalizes_pools, skip_rate)
            self.edges.append(
                MixedOperation(row, channels, stride, *last)
                if shared is None
                else PooledOperation(row, channels, stride, shared, *last)
            )

    def forward(
        self, states: list[Tensor], weights: Tensor, drawn: Sequence[int] | None = None
    ) -> Tensor:
        """Map the inputs of the cell to the concatenation of the space's output nodes.

        Args:
            states: The prepared inputs, each (N, C, H, W).
            weights: (edges, candidates).
            drawn: For each edge the column of the one candidate that is computed, or LEFT_OUT; None
                for all.
        """
        sums: dict[int, Tensor] = {}
        columns = [None] * len(self.wiring) if drawn is None else drawn
        for (node, source), edge, edge_weights, column in zip(
            self.wiring, self.edges, weights.unbind(), columns, strict=True
        ):
            # Edges are ordered by node: with the first edge into a node, the one before is done.
            if node not in sums and node > len(states):
                states.append(sums[node - 1])
            out = edge(states[source], edge_weights, column)
            sums[node] = sums[node] + out if node in sums else out
        return torch.cat([sums[node] for node in self.outputs], dim=1)
