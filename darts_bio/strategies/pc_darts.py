"""PC-DARTS (Xu 2020, arXiv 1907.05737): partial channels, and edges that compete.

1/k of the channels go through the candidates, so a step takes less memory and time; an edge's candidates are weighted
by softmax(alpha), and a node's incoming edges by softmax(beta). The genotype follows their product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_bio.errors import check_whole
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import GradientStrategy


@STRATEGIES.register("pc_darts")
class PcDarts(GradientStrategy):
    """Partial channels and edge normalisation: softmax(alpha) times softmax(beta) (Xu 2020)."""

    warmup = 0.3  # 15 of 50 epochs

    def __init__(
        self,
        context: Context,
        k: int = 4,
        lr: float = 6e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
        init: float = 1e-3,
    ) -> None:
        """1/k of the channels go through the candidates; `betas` are Adam's."""
        check_whole("strategy pc_darts: k", k)
        self.partial = k
        nodes = torch.tensor([node for node, _ in context.space.edges], device=context.device)
        self.same_node = nodes.unsqueeze(0) == nodes.unsqueeze(1)  # (edges, edges)
        super().__init__(context, lr=lr, betas=betas, weight_decay=weight_decay, init=init)

    def further_parameters(self) -> dict[str, Tensor]:
        context = self.context
        return {
            f"{t}/beta": (self.init * torch.randn(len(rows), generator=generator("cpu", "beta", context.seed, t)))
            .to(context.device)
            .requires_grad_()
            for t, rows in context.table.rows.items()
        }

    def edge_shares(self) -> dict[str, Tensor]:
        """Per cell type (edges,): softmax of beta over the edges that lead into the same node."""
        shares = {}
        for t in self.masks:
            beta = self.parameters[f"{t}/beta"].expand_as(self.same_node)
            shares[t] = beta.masked_fill(~self.same_node, -torch.inf).softmax(1).diagonal()
        return shares

    def shares(self) -> EdgeWeights:
        return super().mean_weights()

    def mean_weights(self) -> dict[str, Tensor]:
        edges = self.edge_shares()
        return {t: shares * edges[t].unsqueeze(1) for t, shares in self.shares().items()}
