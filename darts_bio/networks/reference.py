"""The mixed operation as published DARTS codes write it: slow and obvious.

Each candidate on each edge is a module of its own, and they run one by one. `mixed.MixedCell`, the
cell that a search runs, is built from these and tested against them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.networks.cells import build_candidate
from darts_bio.spaces import Space
from darts_bio.spaces.base import Row


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
    """

    def __init__(self, row: Row, channels: int, stride: int, partial: int = 1) -> None:
        super().__init__(
            build_candidate(candidate, channels // partial, stride, supernet=True)
            for candidate in row
            if candidate is not None
        )
        self.stride, self.partial = stride, partial

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Map x (N, C, H, W) and weights (candidates and padding,) to the sum (N, C, H', W')."""
        weights = weights[: len(self)]  # the padding of a row stands at its end
        chosen = x[:, : x.shape[1] // self.partial]  # (N, C/k, H, W)
        mixed = sum(
            weight * candidate(chosen)
            for weight, candidate in zip(weights.unbind(), self, strict=True)
        )
        if self.partial == 1:
            return mixed
        passing = x[:, chosen.shape[1] :]  # (N, C - C/k, H, W)
        if self.stride > 1:
            passing = F.max_pool2d(passing, self.stride, ceil_mode=True)
        side_by_side = torch.cat([mixed, weights.sum() * passing], dim=1)
        # Every k-th channel comes from the candidates, so that the next edge's first C/k hold some
        # of both.
        return F.channel_shuffle(side_by_side, self.partial)


class ReferenceCell(nn.Module):
    """A supernet's cell, as a function of its prepared inputs and of edge weights.

    Args:
        space: What says which edges there are, and at which stride they work.
        cell_type: The type of the cell.
        rows: The candidates of each edge, in the order of `space.edges`.
        channels: The channels of a node.
        partial: k of PC-DARTS, see `MixedOperation`.
    """

    memory_format = torch.contiguous_format  # as in the codes that it stands for

    def __init__(
        self, space: Space, cell_type: str, rows: Sequence[Row], channels: int, partial: int = 1
    ) -> None:
        super().__init__()
        self.wiring, self.outputs = space.edges, space.outputs
        self.edges = nn.ModuleList(
            MixedOperation(row, channels, space.stride(cell_type, source), partial)
            for row, (_, source) in zip(rows, space.edges, strict=True)
        )

    def forward(self, states: list[Tensor], weights: Tensor) -> Tensor:
        """Map the inputs of the cell to the concatenation of the space's output nodes.

        Args:
            states: The prepared inputs, each (N, C, H, W).
            weights: (edges, candidates).
        """
        sums: dict[int, Tensor] = {}
        for (node, source), edge, edge_weights in zip(
            self.wiring, self.edges, weights.unbind(), strict=True
        ):
            # Edges are ordered by node: with the first edge into a node, the one before is done.
            if node not in sums and node > len(states):
                states.append(sums[node - 1])
            out = edge(states[source], edge_weights)
            sums[node] = sums[node] + out if node in sums else out
        return torch.cat([sums[node] for node in self.outputs], dim=1)
