"""PC-DARTS (Xu 2020, arXiv 1907.05737): partial channels, and edges that compete.

1/k of the channels go through the candidates, so a step takes less memory and time. The candidates
of an edge are weighted by softmax(alpha), as in DARTS, and the edges into a node by softmax(beta):
fewer channels make alpha's gradient noisier, and beta steadies the choice of edges. The genotype
follows the product of both.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from darts_bio.errors import check_whole
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy


class PcDartsState(AlphaState):
    """Alpha, a beta for each edge, drawn from N(0, init^2), and which edges compete."""

    def __init__(self, strategy: PcDarts, context: Context) -> None:
        betas = {}
        for t, rows in context.table.rows.items():
            draw = torch.randn(len(rows), generator=generator("cpu", "beta", context.seed, t))
            betas[f"{t}/beta"] = (strategy.init * draw).to(context.device).requires_grad_()
        super().__init__(strategy, context, betas)
        nodes = torch.tensor([node for node, _ in context.space.edges], device=context.device)
        self.same_node = nodes.unsqueeze(0) == nodes.unsqueeze(1)
        """(edges, edges) bool: whether two edges lead into the same node."""


@STRATEGIES.register("pc_darts")
@dataclass(frozen=True)
class PcDarts(GradientStrategy):
    """Partial channels and edge normalization: softmax(alpha) times softmax(beta) (Xu 2020).

    1/k of the channels go through the candidates. `betas` are Adam's, as in every
    `GradientStrategy`, and not the beta of edges.

    >>> from darts_bio.strategies import STRATEGIES
    >>> STRATEGIES.options("pc_darts")
    {'k': 4, 'lr': 0.0006, 'betas': (0.5, 0.999), 'weight_decay': 0.001, 'init': 0.001}
    >>> pc_darts = STRATEGIES.build("pc_darts(k=2)")
    >>> pc_darts.partial, pc_darts.warmup_share(50)  # 1/2 of the channels; 15 of 50 epochs
    (2, 0.3)
    """

    warmup = 0.3  # 15 of 50 epochs

    k: int = 4
    _: KW_ONLY
    lr: float = 6e-4

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: k", self.k)
        super().__post_init__()

    @property
    def partial(self) -> int:  # type: ignore[override]
        return self.k

    def begin(self, context: Context) -> PcDartsState:
        return PcDartsState(self, context)

    def edge_shares(self, state: PcDartsState) -> dict[str, Tensor]:
        """Return each edge's share of its node, (edges,) per cell type: softmax of beta."""
        shares = {}
        for t in state.masks:
            # Row e is a softmax over the edges into the node of edge e; its own share is on the
            # diagonal. No loop over nodes, which have different numbers of edges.
            beta = state.parameters[f"{t}/beta"].expand_as(state.same_node)
            shares[t] = beta.masked_fill(~state.same_node, -torch.inf).softmax(1).diagonal()
        return shares

    def shares(self, state: AlphaState) -> EdgeWeights:
        return super().mean_weights(state)

    def mean_weights(self, state: AlphaState) -> dict[str, Tensor]:
        assert isinstance(state, PcDartsState)
        edges = self.edge_shares(state)
        return {t: shares * edges[t].unsqueeze(1) for t, shares in self.shares(state).items()}
