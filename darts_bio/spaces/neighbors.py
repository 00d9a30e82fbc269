"""The neighbors of a genotype: the genotypes of its space that differ from it by one change.

One change is, on one edge of one cell,

- another operation. The rule stays; an operation without weights has none, and from there to one
  with weights each rule makes a neighbor;
- another rule of the same operation;
- where nodes keep some of their possible edges (`Space.kept_edges`, as in the DARTS space), another
  input node that no other edge of the node has. Operation and rule stay, as far as weights go: a
  skip connection has some at stride 2 alone. An operation that the new edge does not offer makes no
  neighbor.

So neighbors differ in one of (input, operation, rule), where having no weights agrees with every
rule, and whoever is a neighbor of a genotype has it for a neighbor. In a space by depth each cell
changes by itself. Under one rule a cell of NAS-Bench-201 has the 24 neighbors of the literature
(White 2020, arXiv 2005.02960), six edges with four other operations each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from darts_bio.errors import InputError
from darts_bio.spaces.base import CandidateTable, Row, Space
from darts_bio.spaces.genotype import Candidate, Edge, Genotype
from darts_bio.spaces.operations import OPERATIONS


class Change(NamedTuple):
    """A change of one edge: the cell type, the place in `Cell.edges`, the edge that comes there."""

    cell_type: str
    place: int
    edge: Edge

    def of(self, genotype: Genotype) -> Genotype:
        """Return the changed genotype, the edges of the cell by node and input."""
        cell = genotype.cells[self.cell_type]
        edges = [*cell.edges[: self.place], self.edge, *cell.edges[self.place + 1 :]]
        edges.sort(key=lambda edge: (edge.node, edge.input))
        changed = replace(cell, edges=tuple(edges))
        return replace(genotype, cells={**genotype.cells, self.cell_type: changed}, provenance={})


def changes(genotype: Genotype, space: Space, table: CandidateTable) -> list[Change]:
    """Return all changes that lead to a neighbor, each to another one, in the order of the edges.

    Args:
        genotype: A genotype of the space.
        space: The space.
        table: The candidates of a search in it.

    Raises:
        InputError: If the genotype is not one of the space, or has edges that it does not have.

    >>> from darts_bio.spaces import SPACES, load_genotype
    >>> space = SPACES.build("darts")
    >>> for change in changes(load_genotype("darts_v1"), space, space.table(["bp"]))[:2]:
    ...     print(change.cell_type, change.edge.node, change.edge.input, change.edge.candidate)
    normal 2 1 max_pool_3x3
    normal 2 1 avg_pool_3x3
    """
    space.validate(genotype, "genotype")
    return [
        Change(cell_type, place, other)
        for cell_type in space.cell_types
        for place, edge in enumerate(genotype.cells[cell_type].edges)
        # Changes of two edges that are alike lead to the same genotype.
        if genotype.cells[cell_type].edges.index(edge) == place
        for other in _other_edges(genotype, cell_type, edge, space, table)
    ]


def neighbors(genotype: Genotype, space: Space, table: CandidateTable) -> list[Genotype]:
    """Return all neighbors of a genotype, each once.

    The arguments and errors are those of `changes`.

    >>> from darts_bio.spaces import SPACES, load_genotype, neighbors
    >>> space = SPACES.build("nb201")
    >>> genotype = load_genotype("|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3:bp~2|")
    >>> len(neighbors(genotype, space, space.table(["bp"])))
    24
    """
    return [change.of(genotype) for change in changes(genotype, space, table)]


def random_neighbor(
    genotype: Genotype, space: Space, table: CandidateTable, source: torch.Generator
) -> Genotype:
    """Draw a neighbor of a genotype, each with the same probability.

    Args:
        genotype: A genotype of the space.
        space: The space.
        table: The candidates of a search in it.
        source: A generator on the CPU.

    Raises:
        InputError: As `changes` does, or if the genotype has no neighbor.

    >>> from darts_bio.spaces import SPACES, load_genotype, random_neighbor
    >>> space, source = SPACES.build("darts"), torch.Generator().manual_seed(0)
    >>> genotype = load_genotype("darts_v2")
    >>> neighbor = random_neighbor(genotype, space, space.table(["bp"]), source)
    >>> sum(len(set(neighbor.cells[t].edges) - set(genotype.cells[t].edges)) for t in neighbor.cells)
    1
    """
    all_changes = changes(genotype, space, table)
    if not all_changes:
        raise InputError(
            f"{space.where}: expected edges with a choice of operations or --rules, found one "
            "candidate on each; add operations or rules"
        )
    return all_changes[int(torch.randint(len(all_changes), (), generator=source))].of(genotype)


def _other_edges(
    genotype: Genotype, cell_type: str, edge: Edge, space: Space, table: CandidateTable
) -> Iterator[Edge]:
    """Yield the edges that may stand in place of one edge of a cell."""
    edges = genotype.cells[cell_type].edges
    taken = [other.input for other in edges if other.node == edge.node]
    if (edge.node, edge.input) not in space.edges:
        raise InputError(
            f"genotype.cells.{cell_type}: expected edges of the {space.where}, found "
            f"{edge.input}->{edge.node}; use a --space as large as the genotype's"
        )
    for number, (node, source) in enumerate(space.edges):
        stays = source == edge.input
        moves = space.kept_edges is not None and source not in taken
        if node != edge.node or not (stays or moves):
            continue
        row = table.rows[cell_type][number]
        for candidate in _offered(row, space, space.stride(cell_type, source)):
            same_op = candidate.op == edge.candidate.op
            same_rule = None in (candidate.rule, edge.candidate.rule) or (
                candidate.rule == edge.candidate.rule
            )
            if (not stays) + (not same_op) + (not same_rule) == 1:
                yield Edge(node, source, candidate)


def _offered(row: Row, space: Space, stride: int) -> list[Candidate]:
    """Return the candidates that a derived cell may hold on an edge, each once.

    They are as genotypes have them, without a rule where they have no weights: the published layout
    of DARTS pairs skip connections with rules in any case.
    """
    offered = [
        candidate if OPERATIONS.get(candidate.op).carries_rule(stride) else Candidate(candidate.op)
        for candidate in row
        if candidate is not None and space.selectable(candidate)
    ]
    return list(dict.fromkeys(offered))
