"""Random choices, without which no search is to be judged (arXiv 2507.13485's control; Li 2019, arXiv 1902.07638).

Nothing is trained: the genotype is there at once, a function of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.spaces import Candidate, Edge, Genotype, load_genotype
from darts_bio.strategies.base import STRATEGIES, Bilevel, Context, Strategy


@STRATEGIES.register("random")
class Random(Strategy):
    """A uniform genotype; with `genotype`, uniform rules on its operations. Nothing is trained."""

    finished = True

    def __init__(self, context: Context, genotype: str = "") -> None:
        """`genotype` is whatever `load_genotype` reads, a path in quotes. Raises InputError if its edges or operations
        are not those of the search."""
        source = generator("cpu", "random genotype", context.seed)
        fixed = load_genotype(genotype) if genotype else None
        if fixed is not None:
            context.space.validate(fixed, genotype)
        self.weights = {t: self._draw(context, t, fixed, source).to(context.device) for t in context.table.rows}

    @staticmethod
    def _draw(context: Context, cell_type: str, fixed: Genotype | None, source: torch.Generator) -> Tensor:
        """1 for what is drawn and 0 for all else."""
        rows, space = context.table.rows[cell_type], context.space
        weights = torch.zeros(context.table.shape(cell_type))
        kept = _kept_edges(context, cell_type, source) if fixed is None else fixed.cells[cell_type].edges
        for edge in kept:
            e = space.edges.index((edge.node, edge.input)) if (edge.node, edge.input) in space.edges else -1
            if e < 0:
                assert fixed is not None
                raise InputError(
                    f"strategy random: genotype: it has the edge {edge.input}->{edge.node}, and this search's space "
                    f"has not; use a --space as large as its own, here {fixed.space}"
                )
            choices = [
                i
                for i, candidate in enumerate(rows[e])
                if candidate is not None
                and space.selectable(candidate)
                and (fixed is None or candidate.op == edge.candidate.op)
            ]
            if not choices:
                raise InputError(
                    f"strategy random: genotype: expected operations of --space, found {edge.candidate.op}"
                )
            weights[e, choices[int(torch.randint(len(choices), (), generator=source))]] = 1.0
        return weights

    @property
    def alpha(self) -> dict[str, Tensor]:
        return {}

    def edge_weights(self) -> EdgeWeights:
        return self.weights

    def step(self, bilevel: Bilevel) -> None:
        return None

    def final_weights(self) -> EdgeWeights:
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = {t: weights.to(self.weights[t]) for t, weights in state["weights"].items()}


def _kept_edges(context: Context, cell_type: str, source: torch.Generator) -> Sequence[Edge]:
    """Uniformly chosen incoming edges of each node, as many as the space keeps."""
    by_node: dict[int, list[Edge]] = {}
    for node, node_input in context.space.edges:
        by_node.setdefault(node, []).append(Edge(node, node_input, Candidate("none")))
    limit = context.space.kept_edges
    kept: list[Edge] = []
    for edges in by_node.values():
        order = torch.randperm(len(edges), generator=source).tolist()
        kept += [edges[i] for i in order[:limit]]
    return kept
