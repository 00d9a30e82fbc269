"""The mixed operation as published DARTS codes write it: a module a candidate, summed one by one.
Slow and obvious.
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
    """Every candidate of one edge: x (N, C, H, W) and weights (candidates,) to the weighted sum of
    their outputs.

    With `partial` = k > 1 the first C/k channels go through the candidates, and the others pass by,
    weighted by the sum of the weights and pooled at stride 2; then channels are shuffled in k
    groups (PC-DARTS, arXiv 1907.05737).
    """

    def __init__(self, row: Row, channels: int, stride: int, partial: int = 1) -> None:
        super().__init__(
            build_candidate(candidate, channels // partial, stride, supernet=True)
            for candidate in row
            if candidate is not None
        )
        self.stride, self.partial = stride, partial

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        own = weights[: len(self)]  # the padding of a row stands at its end
        chosen = x[:, : x.shape[1] // self.partial]
        mixed = sum(
            weight * candidate(chosen) for weight, candidate in zip(own.unbind(), self, strict=True)
        )
        if self.partial == 1:
            return mixed
        passed = x[:, chosen.shape[1] :]
        if self.stride > 1:
            passed = F.max_pool2d(passed, self.stride, ceil_mode=True)
        return F.channel_shuffle(torch.cat([mixed, own.sum() * passed], dim=1), self.partial)


class ReferenceCell(nn.Module):
    """A supernet's cell on its prepared inputs; the output is the concatenation of the space's
    output nodes.
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
        """states: the inputs (N, C, H, W); weights: (edges, candidates)."""
        sums: dict[int, Tensor] = {}
        for (node, source), edge, edge_weights in zip(
            self.wiring, self.edges, weights.unbind(), strict=True
        ):
            if node not in sums and node > len(states):
                states.append(sums[node - 1])
            out = edge(states[source], edge_weights)
            sums[node] = sums[node] + out if node in sums else out
        return torch.cat([sums[node] for node in self.outputs], dim=1)
