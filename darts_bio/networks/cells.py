"""The cell of the discrete network, its drop path, and how any cell builds a candidate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from darts_bio.distributed import rank, world_size
from darts_bio.rules import RULES, DirectOperation
from darts_bio.spaces import OPERATIONS, Candidate, Cell, Space


def build_candidate(
    candidate: Candidate, channels: int, stride: int, *, supernet: bool
) -> nn.Module:
    """Build the operation of a candidate, (N, channels, H, W) -> (N, channels, ceil(H/stride),
    ceil(W/stride)).

    An operation without weights is handed bp, which it has no use for. Under a direct rule the
    operation itself is exact, and its input receives the error at the model's output.
    """
    operation, rule = OPERATIONS.get(candidate.op), RULES.build(candidate.rule or "bp")
    if rule.direct and operation.carries_rule(stride):
        return DirectOperation(
            operation.build(channels, stride, RULES.build("bp"), supernet), channels, rule
        )
    return operation.build(channels, stride, rule, supernet)


class DropPath(nn.Module):
    """Drop the whole output of an edge for a sample with probability `probability`, scaling what is
    kept.

    (N, C, H, W) -> (N, C, H, W); does nothing in evaluation (Larsson 2017, arXiv 1605.07648). Each
    of several processes draws for the samples of all and takes its own part, so that the draws do
    not depend on how many processes there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._probability = 0.0
        # A tensor, so that a pass that was recorded as a CUDA graph sees it change.
        self.register_buffer("keep", torch.ones(()), persistent=False)

    @property
    def probability(self) -> float:
        return self._probability

    @probability.setter
    def probability(self, value: float) -> None:
        self._probability = value
        self.get_buffer("keep").fill_(1 - value)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep, n = self.get_buffer("keep"), x.shape[0]
        kept = keep.expand(n * world_size(), 1, 1, 1).bernoulli()[n * rank() :][:n]
        return x * (kept / keep).to(x.dtype)


class DiscreteCell(nn.Module):
    """The kept edges of a cell, each with drop path but for identities (Liu 2019, arXiv 1806.09055,
    section 2.1).
    """

    def __init__(self, space: Space, cell_type: str, cell: Cell, channels: int) -> None:
        super().__init__()
        self.wiring = sorted(
            ((edge.node, edge.input) for edge in cell.edges), key=lambda edge: edge[0]
        )
        self.concat = cell.concat
        self.edges = nn.ModuleList()
        for edge in sorted(cell.edges, key=lambda edge: edge.node):
            stride = space.stride(cell_type, edge.input)
            op = build_candidate(edge.candidate, channels, stride, supernet=False)
            self.edges.append(op if isinstance(op, nn.Identity) else nn.Sequential(op, DropPath()))

    def forward(self, states: list[Tensor]) -> Tensor:
        """Map the prepared inputs, each (N, C, H, W), to the concatenation of the output nodes."""
        sums: dict[int, Tensor] = dict(enumerate(states))
        for (node, source), edge in zip(self.wiring, self.edges, strict=True):
            out = edge(sums[source])
            sums[node] = sums[node] + out if node in sums else out
        return torch.cat([sums[node] for node in self.concat], dim=1)
