"""Edges that compete: each edge's share of its node (PC-DARTS, Xu 2020, arXiv 1907.05737).

Alpha compares the candidates of an edge, and says nothing of how edges compare. With edge
normalization each edge has a parameter beta of its own, and its candidates' weights are multiplied
by softmax(beta) over the edges into the node. Where fewer channels make alpha's gradient noisier,
that steadies the choice of edges, since beta is shared by all candidates of one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.strategies.base import Context


class EdgeShares:
    """A beta for each edge, drawn from N(0, init^2), and the shares that these stand for.

    Args:
        context: The search. The draw depends on its seed and on the cell type alone, and is made on
            the CPU, so equal on all devices.
        init: The standard deviation of the draw.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("darts(nodes=1)")  # a node with two edges
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> shares = EdgeShares(Context(space, table, 0, cpu, epochs=1, steps_per_epoch=1), init=0.0)
    >>> shares.of_edges()["normal"].tolist()
    [0.5, 0.5]
    """

    def __init__(self, context: Context, init: float) -> None:
        self.parameters: dict[str, Tensor] = {}
        """The betas (edges,), by name: the cell type with "/beta" behind it."""
        for t, rows in context.table.rows.items():
            draw = torch.randn(len(rows), generator=generator("cpu", "beta", context.seed, t))
            self.parameters[f"{t}/beta"] = (init * draw).to(context.device).requires_grad_()
        nodes = torch.tensor([node for node, _ in context.space.edges], device=context.device)
        self.same_node = nodes.unsqueeze(0) == nodes.unsqueeze(1)
        """(edges, edges) bool: whether two edges lead into the same node."""

    def of_edges(self) -> dict[str, Tensor]:
        """Return each edge's share of its node, (edges,) per cell type, with its gradient."""
        shares = {}
        for name, beta in self.parameters.items():
            # Row e is a softmax over the edges into the node of edge e; its own share is on the
            # diagonal. No loop over nodes, which have different numbers of edges.
            rows = beta.expand_as(self.same_node).masked_fill(~self.same_node, -torch.inf)
            shares[name.removesuffix("/beta")] = rows.softmax(1).diagonal()
        return shares

    def applied_to(self, weights: EdgeWeights) -> EdgeWeights:
        """Multiply weights (edges, candidates) per cell type by the shares of their edges."""
        shares = self.of_edges()
        return {t: of_type * shares[t].unsqueeze(1) for t, of_type in weights.items()}
