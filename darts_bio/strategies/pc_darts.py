"""PC-DARTS (Xu 2020, arXiv 1907.05737): partial channels, and edges that compete.

1/k of the channels go through the candidates, so a step takes less memory and time. The candidates
of an edge are weighted by softmax(alpha), as in DARTS, and the edges into a node by softmax(beta)
(`strategies.edges`); the genotype follows the product of both. For the first 15 of 50 epochs alpha
stays as it is. Each of the three is a regularizer too, for any strategy that moves an alpha:
`--strategy gdas --regularizers "partial_channels(k=4),edge_normalization,warmup(epochs=15)"`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from darts_bio.errors import check_whole
from darts_bio.strategies.base import STRATEGIES
from darts_bio.strategies.gradient import GradientStrategy


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

    normalizes_edges = True
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
