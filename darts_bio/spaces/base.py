"""Space: which cells there are, what can stand on their edges, and how a genotype is derived."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from darts_bio.registry import Registry
from darts_bio.spaces.genotype import Candidate, Cell, Genotype

Row = tuple[Candidate | None, ...]
"""The candidates of one edge; None pads the row where this edge has fewer than others."""


@dataclass(frozen=True)
class CandidateTable:
    """All candidates of a search: `rows[cell_type][edge]`, rows of one cell type equally long."""

    rows: Mapping[str, tuple[Row, ...]]

    def shape(self, cell_type: str) -> tuple[int, int]:
        """(edges, candidates a row)."""
        return len(self.rows[cell_type]), len(self.rows[cell_type][0])

    def mask(self, cell_type: str) -> Tensor:
        """(edges, candidates) bool: True where there is a candidate."""
        return torch.tensor(
            [[candidate is not None for candidate in row] for row in self.rows[cell_type]]
        )


class Space(ABC):
    """A cell-based space. Subclasses are frozen dataclasses, whose fields are their options,
    registered in `SPACES`.
    """

    cell_types: ClassVar[tuple[str, ...]]
    skeleton: ClassVar[str] = "darts"
    """What surrounds the cells, by its name in `networks.skeletons.SKELETONS`."""

    kept_edges: ClassVar[int | None] = None
    """Incoming edges a node keeps when a genotype is derived; None for all."""

    def selectable(self, candidate: Candidate) -> bool:
        """Whether a derived cell may hold this candidate."""
        return True

    @property
    @abstractmethod
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(node, input) of every edge of a cell, in the order of the rows of alpha."""

    def incoming(self) -> list[list[int]]:
        """The edges, by their place in `edges`, that lead into each node, node by node."""
        by_node: dict[int, list[int]] = {}
        for e, (node, _) in enumerate(self.edges):
            by_node.setdefault(node, []).append(e)
        return list(by_node.values())

    @property
    @abstractmethod
    def outputs(self) -> tuple[int, ...]:
        """The nodes whose concatenation is the output of a cell of the supernet."""

    @abstractmethod
    def stride(self, cell_type: str, source: int) -> int:
        """The stride of the edges that leave node `source` in a cell of that type."""

    @abstractmethod
    def plan(self, layers: int) -> tuple[str, ...]:
        """The cell type of each layer. Raises InputError for a number of layers that there cannot
        be.
        """

    @abstractmethod
    def reductions(self, layers: int) -> tuple[int, ...]:
        """The layers whose cells work at half the size of those before, with twice their
        channels.
        """

    @abstractmethod
    def table(self, rules: Sequence[str]) -> CandidateTable:
        """The candidates of a search among these rules."""

    @abstractmethod
    def derive(self, weights: Mapping[str, Tensor], table: CandidateTable) -> dict[str, Cell]:
        """The discrete cells that edge weights (edges, candidates) per cell type stand for."""

    @abstractmethod
    def validate(self, genotype: Genotype, source: str) -> None:
        """Raises InputError, naming the field, unless the genotype's cells belong to this space."""


SPACES: Registry[type[Space]] = Registry("space")
