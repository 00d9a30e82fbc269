"""Regularizers that hold back skip connections.

A skip trains fastest, and so alpha comes to prefer it, the more the deeper the network is. In P-DARTS
(Chen 2019, arXiv 1904.12760, section 3.3) its output is dropped out while the search goes on, which
makes it worth less, and the cell that is derived at the end may have no more than so many. DARTS+
(Liang 2019, arXiv 1909.06035) ends the search once the cell has too many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from darts_bio.errors import InputError, check_number, check_whole
from darts_bio.networks import EdgeWeights
from darts_bio.spaces import Cell
from darts_bio.strategies.base import STRATEGIES, Context, Strategy, StrategyState
from darts_bio.strategies.regularizers import (
    REGULARIZERS,
    Lookout,
    Regularizer,
    RegularizerState,
    ScheduledState,
    refuse_without_gradient,
)

FALL = 0.2
"""The logarithm of the factor by which the rate falls in an epoch, once alpha moves."""


@REGULARIZERS.register("skip_dropout")
@dataclass(frozen=True)
class SkipDropout(Regularizer[ScheduledState]):
    """Dropout behind the skip connections of the supernet, fading out (P-DARTS, 1904.12760).

    The probability that a value is dropped begins at `rate`. While alpha stays as it is, it falls
    linearly, by rate / epochs in an epoch; once alpha moves, it begins at `rate` again and falls by
    the factor exp(-0.2) (train_search.py of the published code). At stride 2 a skip connection has
    weights, and no dropout.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("darts")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> dropout = REGULARIZERS.build("skip_dropout(rate=0.4)")
    >>> context = Context(space, table, 0, cpu, epochs=25, steps_per_epoch=5, warmup_epochs=10)
    >>> state = dropout.begin(context)
    >>> for epoch in (0, 9, 10, 11):
    ...     dropout.begin_epoch(state, epoch)
    ...     print(f"{state.number:.3f}")
    0.384
    0.240
    0.400
    0.327
    """

    drops_skips = True

    rate: float = 0.3

    def __post_init__(self) -> None:
        check_number(f"{self.where}: rate", self.rate, above=0, below=1)

    def begin(self, context: Context) -> ScheduledState:
        return ScheduledState(context)

    def begin_epoch(self, state: ScheduledState, epoch: int) -> None:
        warmup, epochs = state.context.warmup_epochs, state.context.epochs
        left = (epochs - epoch - 1) / epochs
        state.number.fill_(
            self.rate * (left if epoch < warmup else math.exp(-FALL * (epoch - warmup)))
        )


class LimitState(RegularizerState):
    """The table of candidates of a search, and the cell types whose skips are counted.

    The first kind of cells is the one that most layers have: normal in DARTS' space.
    """

    def __init__(self, context: Context) -> None:
        self._space, self._table = context.space, context.table
        first = context.space.kind(context.space.cell_types[0])
        self.limited = [t for t in context.space.cell_types if context.space.kind(t) == first]

    def skips(self, cell_type: str, cell: Cell) -> list[tuple[int, list[int]]]:
        """Return, for each skip of a cell, its edge's row and the columns of its candidates."""
        rows = [
            self._space.edges.index((edge.node, edge.input))
            for edge in cell.edges
            if edge.candidate.op == "skip_connect"
        ]
        return [
            (
                row,
                [
                    column
                    for column, candidate in enumerate(self._table.rows[cell_type][row])
                    if candidate is not None and candidate.op == "skip_connect"
                ],
            )
            for row in rows
        ]


@REGULARIZERS.register("skip_limit")
@dataclass(frozen=True)
class SkipLimit(Regularizer[LimitState]):
    """At most so many skip connections in a derived normal cell (P-DARTS, arXiv 1904.12760).

    As long as the cell has more than `most`, the weakest of them is struck out, and the cell is
    derived anew: the edge keeps its next candidate, or the node another edge. The search itself does
    not change. A cell keeps more of them only where its edges offer nothing else.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("darts(nodes=1, operations=(skip_connect, max_pool_3x3))")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> limit = REGULARIZERS.build("skip_limit(most=1)")
    >>> state = limit.begin(Context(space, table, 0, cpu, epochs=50, steps_per_epoch=5))
    >>> weights = {t: torch.tensor([[0.7, 0.3], [0.6, 0.4]]) for t in ("normal", "reduce")}
    >>> def derive(weights):
    ...     return space.derive(weights, table)
    >>> print(derive(limit.decisive(state, weights, derive))["normal"])
      node 2: skip_connect <- 0,  max_pool_3x3 <- 1
    """

    most: int = 2

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: most", self.most, 0)

    def begin(self, context: Context) -> LimitState:
        return LimitState(context)

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        refuse_without_gradient(self, strategy)

    def decisive(
        self,
        state: LimitState,
        weights: EdgeWeights,
        derive: Callable[[EdgeWeights], dict[str, Cell]],
    ) -> EdgeWeights:
        weights = {t: of_type.clone() for t, of_type in weights.items()}
        for cell_type in state.limited:
            of_type = weights[cell_type]
            while True:
                skips = state.skips(cell_type, derive(weights)[cell_type])
                strengths = [float(of_type[row, columns].max()) for row, columns in skips]
                # What was struck out stands there again where nothing else can.
                left = [strength for strength in strengths if strength > -torch.inf]
                if len(skips) <= self.most or not left:
                    break
                row, columns = skips[strengths.index(min(left))]
                of_type[row, columns] = -torch.inf
        return weights


@REGULARIZERS.register("skip_stop")
@dataclass(frozen=True)
class SkipStop(Regularizer[RegularizerState]):
    """A stop once the normal cell has too many skip connections (DARTS+, Liang 2019, 1909.06035).

    The cell is the one that would be derived after the epoch, `most` the number at which it stops.

    >>> REGULARIZERS.build("skip_stop(most=3)")
    SkipStop(most=3)
    """

    most: int = 2

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: most", self.most)

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        # (Of a strategy that trains nothing, any regularizer is refused by the search.)
        if not (state.alpha or strategy.finished):
            raise InputError(
                f"{self.where}: expected a strategy whose genotype takes shape epoch by epoch, found "
                f"{STRATEGIES.name_of(strategy)}; leave the regularizer out"
            )

    def after_epoch(
        self, state: RegularizerState, epoch: int, search: Lookout
    ) -> tuple[bool, dict[str, float]]:
        cells, kind = search.cells(), search.strategy_state.context.space.kind
        # The first kind of cells is the one that most layers have: normal in DARTS' space.
        first = kind(next(iter(cells)))
        skips = max(
            sum(edge.candidate.op == "skip_connect" for edge in cell.edges)
            for cell_type, cell in cells.items()
            if kind(cell_type) == first
        )
        return skips >= self.most, {"regularizer/skips": float(skips)}
