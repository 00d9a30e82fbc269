"""A genotype drawn at random: the control without which no search is to be judged.

The control is that of arXiv 2507.13485; see also Li 2019, arXiv 1902.07638. Nothing is trained: the
genotype is known at once, a function of the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.spaces import Cell, Space, load_genotype
from darts_bio.strategies.base import STRATEGIES, Context, Strategy, StrategyState

Operations = list[tuple[int, str]]
"""Edges of a cell, as indices in `Space.edges`, and the operation of each."""


class RandomState(StrategyState):
    """The weights of the genotype that was drawn, (edges, candidates) per cell type.

    They are 1 for a candidate that is part of it and 0 for all others.
    """

    def __init__(self, context: Context, weights: dict[str, Tensor]) -> None:
        super().__init__(context)
        self.weights = weights

    @property
    def alpha(self) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.weights = {t: weights.to(self.weights[t]) for t, weights in saved["weights"].items()}


@STRATEGIES.register("random")
@dataclass(frozen=True)
class Random(Strategy[RandomState]):
    """A uniform genotype; with `genotype`, uniform rules on its operations. Nothing is trained.

    `genotype` is whatever `load_genotype` reads: the name of a shipped one, or a path in quotes.

    >>> import torch
    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import STRATEGIES, Context
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp", "fa"]), torch.device("cpu")
    >>> random = STRATEGIES.build("random")
    >>> state = random.begin(Context(space, table, 0, cpu, epochs=1, steps_per_epoch=1))
    >>> random.final_weights(state)["cell"].sum(dim=1).tolist()  # one candidate on each edge
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> STRATEGIES.build("random(genotype=darts_v2)")
    Random(genotype='darts_v2')
    """

    finished = True

    genotype: str = ""

    def begin(self, context: Context) -> RandomState:
        """Draw the genotype.

        Raises:
            InputError: If `genotype` has edges or operations that the search does not have.
        """
        source = generator("cpu", "random genotype", context.seed)
        space, fixed = context.space, dict[str, Operations]()
        if self.genotype:
            loaded = load_genotype(self.genotype)
            genotype = space.adopt(loaded)
            try:
                space.validate(genotype, self.genotype)
            except InputError as error:
                raise InputError(
                    f"{self.where}: genotype: {error}; it is of the space {loaded.space}, so search "
                    "in that, or in one by depth of it"
                ) from None
            fixed = {
                t: _fixed_operations(space, cell, loaded.space)
                for t, cell in genotype.cells.items()
            }
        weights = random_cells(context, source, fixed)
        return RandomState(context, {t: drawn.to(context.device) for t, drawn in weights.items()})

    def edge_weights(self, state: RandomState) -> EdgeWeights:
        return state.weights

    def final_weights(self, state: RandomState) -> EdgeWeights:
        return state.weights


def random_cells(
    context: Context, source: torch.Generator, fixed: Mapping[str, Operations] | None = None
) -> dict[str, Tensor]:
    """Draw a genotype: weights (edges, candidates) per cell type, on the CPU.

    They are 1 for a candidate that is part of it and 0 for all others.

    Args:
        context: The search.
        source: A generator on the CPU. All cell types draw from it, one after the other.
        fixed: The edges and operations of cell types whose rules alone are drawn.

    Raises:
        InputError: If the search has no candidate of one of the fixed operations.
    """
    space, weights = context.space, {}
    first_of_kind: dict[str, Operations] = {}
    for t in context.table.rows:
        # Cells of one kind have the operations of the first of them.
        operations = (fixed or {}).get(t) or first_of_kind.get(space.kind(t))
        weights[t] = _draw(context, t, operations, source)
        first_of_kind.setdefault(space.kind(t), _operations(context, t, weights[t]))
    return weights


def _draw(
    context: Context, cell_type: str, operations: Operations | None, source: torch.Generator
) -> Tensor:
    """Draw weights (edges, candidates): 1 for a candidate that is drawn and 0 for all others.

    Args:
        context: The search.
        cell_type: The cell that is drawn.
        operations: The edges and operations that the cell has; None if they too are drawn.
        source: The generator of all draws, on the CPU.

    Raises:
        InputError: If the search has no candidate of one of `operations`.
    """
    rows, space = context.table.rows[cell_type], context.space
    weights = torch.zeros(context.table.shape(cell_type))
    edges = operations if operations is not None else _kept_edges(space, source)
    for e, operation in edges:
        choices = [
            i
            for i, candidate in enumerate(rows[e])
            if candidate is not None
            and space.selectable(candidate)
            and operation in (None, candidate.op)
        ]
        if not choices:
            raise InputError(
                f"strategy random: genotype: expected operations of --space, found {operation}"
            )
        choice = int(torch.randint(len(choices), (), generator=source))
        weights[e, choices[choice]] = 1.0
    return weights


def _kept_edges(space: Space, source: torch.Generator) -> Sequence[tuple[int, None]]:
    """Draw incoming edges of each node, as many as the space keeps.

    Returns pairs of an edge's index and None, which stands for any operation.
    """
    kept: list[tuple[int, None]] = []
    for edges in space.incoming():
        # A space that keeps all edges has kept_edges None: the slice is the whole list.
        order = torch.randperm(len(edges), generator=source).tolist()
        kept += [(edges[i], None) for i in order[: space.kept_edges]]
    return kept


def _operations(context: Context, cell_type: str, weights: Tensor) -> Operations:
    """Return the edges and operations of a cell from its weights, which `_draw` returned."""
    row_of = context.table.rows[cell_type]
    chosen = ((e, row_of[e][i]) for e, i in weights.nonzero().tolist())
    return [(e, candidate.op) for e, candidate in chosen if candidate is not None]


def _fixed_operations(space: Space, cell: Cell, origin: str) -> Operations:
    """Return the edges and operations of a cell of a genotype, which came from space `origin`.

    Raises InputError for an edge that the space does not have.
    """
    for edge in cell.edges:
        if (edge.node, edge.input) not in space.edges:
            raise InputError(
                f"strategy random: genotype: it has the edge {edge.input}->{edge.node}, and this "
                f"search's space has not; use a --space as large as its own, here {origin}"
            )
    return [(space.edges.index((edge.node, edge.input)), edge.candidate.op) for edge in cell.edges]
