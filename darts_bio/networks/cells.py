"""The cell of the discrete network, its drop path, and how any cell builds a candidate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from darts_bio.draws import DrawsForSamples
from darts_bio.networks.trial import built
from darts_bio.rules import RULES, DirectOperation, LearningRule
from darts_bio.spaces import OPERATIONS, Candidate, Cell, Space


def build_candidate(
    candidate: Candidate, channels: int, stride: int, *, supernet: bool
) -> nn.Module:
    """Build the operation of a candidate under its learning rule.

    The module maps (N, channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)). Under
    a direct rule the operation itself is exact, and its input receives the error at the model's
    output.

    Args:
        candidate: The operation, and the rule of its layers.
        channels: The channels of its input and of its output.
        stride: 1 or 2.
        supernet: Whether to build it as a search has it, where batch norms learn no gain or bias.

    >>> from darts_bio.networks import build_candidate
    >>> operation = build_candidate(Candidate("sep_conv_3x3", "usf"), 16, 2, supernet=False)
    >>> operation(torch.zeros(2, 16, 9, 9)).shape
    torch.Size([2, 16, 5, 5])
    """
    # An operation without weights has no rule; it is handed bp, which it has no use for.
    rule = RULES.build(candidate.rule or "bp")
    return build_operation(candidate.op, rule, channels, stride, supernet)


def build_operation(
    op: str, rule: LearningRule, channels: int, stride: int, supernet: bool
) -> nn.Module:
    """Build the operation of that name with all its layers under `rule`; see `build_candidate`."""
    operation = OPERATIONS.get(op)
    if rule.direct and operation.carries_rule(stride):
        exact = built(operation, channels, stride, RULES.build("bp"), supernet)
        return DirectOperation(exact, channels, rule)
    return built(operation, channels, stride, rule, supernet)


class DropPath(DrawsForSamples):
    """Drop path: for a sample, the whole output of an edge is zero (Larsson 2017, 1605.07648).

    In training each sample of (N, C, H, W) is dropped with the `probability`, and what is kept is
    divided by 1 - probability. In evaluation it does nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._probability = 0.0
        # The probability that a sample is kept: a tensor, so that a pass that was recorded as a CUDA
        # graph sees it change.
        self.register_buffer("keep", torch.ones(()), persistent=False)

    @property
    def probability(self) -> float:
        """The probability, in [0, 1), that a sample is dropped."""
        return self._probability

    @probability.setter
    def probability(self, value: float) -> None:
        self._probability = value
        self.get_buffer("keep").fill_(1 - value)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = self.get_buffer("keep")
        kept = self.drawn(len(x), lambda k: keep.expand(k, 1, 1, 1).bernoulli())
        return x * (kept / keep).to(x.dtype)


class SkipDropout(DrawsForSamples):
    """Dropout of single values, behind a skip connection of the supernet (P-DARTS, 1904.12760).

    In training each value of (N, C, H, W) is zero with the probability `rate`, and what is kept is
    divided by 1 - rate. In evaluation it does nothing.

    Values are drawn by PyTorch's default generator.

    Args:
        rate: The probability, in [0, 1): a scalar tensor that its owner changes in place, so that a
            pass that was recorded as a CUDA graph sees it change.
    """

    def __init__(self, rate: Tensor) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        n, c, h, w = x.shape
        keep = 1 - self.rate
        # Drawn channels last, as the maps of a supernet lie in memory.
        kept = self.drawn(n, lambda k: keep.expand(k, h, w, c).bernoulli()).permute(0, 3, 1, 2)
        return x * (kept / keep).to(x.dtype)


class DiscreteCell(nn.Module):
    """A cell of the discrete network (Liu 2019, arXiv 1806.09055, section 2.1).

    Each node is the sum of its edges' outputs, and the cell's output the concatenation of nodes.
    All edges have drop path but identities.

    Args:
        space: What says at which stride an edge works.
        cell_type: The type of the cell.
        cell: The edges of the genotype, and the nodes that are concatenated.
        channels: The channels of a node.
    """

    def __init__(self, space: Space, cell_type: str, cell: Cell, channels: int) -> None:
        super().__init__()
        # Node by node, so that each node is complete when an edge leaves it. The sort is stable:
        # the edges of a node keep the genotype's order.
        in_order = sorted(cell.edges, key=lambda edge: edge.node)
        self.genotype_edges = tuple(in_order)
        """The edges of the genotype, in the order of `edges`."""
        self.wiring = [(edge.node, edge.input) for edge in in_order]
        self.concat = cell.concat
        self.edges = nn.ModuleList()
        for edge in in_order:
            stride = space.stride(cell_type, edge.input)
            op = build_candidate(edge.candidate, channels, stride, supernet=False)
            self.edges.append(op if isinstance(op, nn.Identity) else nn.Sequential(op, DropPath()))

    def forward(self, states: list[Tensor]) -> Tensor:
        """Map the prepared inputs, each (N, C, H, W), to the concatenation of the output nodes.

        The result is (N, C * output nodes, H', W'), at half the size where the cell reduces.
        """
        sums: dict[int, Tensor] = dict(enumerate(states))
        for (node, source), edge in zip(self.wiring, self.edges, strict=True):
            out = edge(sums[source])
            sums[node] = sums[node] + out if node in sums else out
        return torch.cat([sums[node] for node in self.concat], dim=1)
