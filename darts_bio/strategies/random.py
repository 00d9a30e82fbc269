"""Random choices, without which no search is to be judged (arXiv 2507.13485's control; Li 2019,
arXiv 1902.07638).

Nothing is trained: the genotype is there at once, a function of the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.spaces import Genotype, Space, load_genotype
from darts_bio.strategies.base import STRATEGIES, Context, Strategy, StrategyState


class RandomState(StrategyState):
    """The weights of the genotype that was drawn: 1 for a candidate that is part of it, 0 for all
    others.
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

    `genotype` is whatever `load_genotype` reads, a path in quotes.
    """

    finished = True

    genotype: str = ""

    def begin(self, context: Context) -> RandomState:
        """Draws the genotype. Raises InputError if `genotype` has edges or operations that the
        search has not.
        """
        source = generator("cpu", "random genotype", context.seed)
        fixed = load_genotype(self.genotype) if self.genotype else None
        if fixed is not None:
            context.space.validate(fixed, self.genotype)
        weights = {
            t: _draw(context, t, fixed, source).to(context.device) for t in context.table.rows
        }
        return RandomState(context, weights)

    def edge_weights(self, state: RandomState) -> EdgeWeights:
        return state.weights

    def final_weights(self, state: RandomState) -> EdgeWeights:
        return state.weights


def _draw(
    context: Context, cell_type: str, fixed: Genotype | None, source: torch.Generator
) -> Tensor:
    """Draws weights (edges, candidates): 1 for a candidate that is drawn and 0 for all others."""
    rows, space = context.table.rows[cell_type], context.space
    weights = torch.zeros(context.table.shape(cell_type))
    for e, op in (
        _kept_edges(space, source) if fixed is None else _fixed_edges(space, fixed, cell_type)
    ):
        choices = [
            i
            for i, candidate in enumerate(rows[e])
            if candidate is not None and space.selectable(candidate) and op in (None, candidate.op)
        ]
        if not choices:
            raise InputError(
                f"strategy random: genotype: expected operations of --space, found {op}"
            )
        weights[e, choices[int(torch.randint(len(choices), (), generator=source))]] = 1.0
    return weights


def _kept_edges(space: Space, source: torch.Generator) -> list[tuple[int, None]]:
    """Uniformly chosen incoming edges of each node, as many as the space keeps, for any
    operation.
    """
    kept: list[tuple[int, None]] = []
    for edges in space.incoming():
        order = torch.randperm(len(edges), generator=source).tolist()
        kept += [(edges[i], None) for i in order[: space.kept_edges]]
    return kept


def _fixed_edges(space: Space, genotype: Genotype, cell_type: str) -> list[tuple[int, str]]:
    """A genotype's edges and their operations."""
    for edge in genotype.cells[cell_type].edges:
        if (edge.node, edge.input) not in space.edges:
            raise InputError(
                f"strategy random: genotype: it has the edge {edge.input}->{edge.node}, and this "
                "search's space has "
                f"not; use a --space as large as its own, here {genotype.space}"
            )
    edges = genotype.cells[cell_type].edges
    return [(space.edges.index((edge.node, edge.input)), edge.candidate.op) for edge in edges]
