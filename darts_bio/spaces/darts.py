"""The DARTS space (Liu 2019, arXiv 1806.09055) with (operation, learning rule) pairs as candidates
(arXiv 2507.13485).

A cell has two inputs and four nodes; each node sums what its edges bring and the cell's output is
the concatenation of the nodes. Cells of type `reduce`, at a third and two thirds of the depth, take
their inputs at stride 2.

Layouts of the candidates:

- `clean`: a candidate for each operation that has no weights at the edge's stride (so one identity
  at stride 1) and one for each (operation, rule) otherwise, the factorised reduction at stride 2
  among them.
- `paper`: the published 22-way layout. Skips are paired with every rule but fa at both strides, although the identity
  has no weights: its copies take 3/22 of the softmax, a built-in bias to skip that `clean` does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from darts_bio.errors import InputError, check_whole, unknown_name
from darts_bio.spaces.base import SPACES, CandidateTable, Row, Space
from darts_bio.spaces.genotype import Candidate, Cell, Edge, Genotype, check_carried_rule
from darts_bio.spaces.operations import OPERATIONS, check_operations

INPUTS = 2
KEPT_EDGES = 2
"""Incoming edges a node keeps when a genotype is derived."""

PUBLISHED_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

Layout = Literal["clean", "paper"]


@SPACES.register("darts")
@dataclass(frozen=True)
class DartsSpace(Space):
    """The DARTS cell space: 4 nodes, 14 edges, normal and reduce cells."""

    cell_types = ("normal", "reduce")
    kept_edges = KEPT_EDGES

    layout: Layout = "clean"
    nodes: int = 4
    operations: tuple[str, ...] = PUBLISHED_OPERATIONS

    def __post_init__(self) -> None:
        """Raises InputError for a layout or an operation that there is not, or for a space without
        any connection.
        """
        if self.layout not in get_args(Layout):
            raise unknown_name("layout of the darts space", str(self.layout), get_args(Layout))
        check_whole("darts space: nodes", self.nodes)
        check_operations(self.operations, "darts space")

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        last = INPUTS + self.nodes
        return tuple((node, source) for node in range(INPUTS, last) for source in range(node))

    def selectable(self, candidate: Candidate) -> bool:
        return candidate.op != "none"

    @property
    def outputs(self) -> tuple[int, ...]:
        return tuple(range(INPUTS, INPUTS + self.nodes))

    def stride(self, cell_type: str, source: int) -> int:
        return 2 if cell_type == "reduce" and source < INPUTS else 1

    def plan(self, layers: int) -> tuple[str, ...]:
        if layers < 3:
            raise InputError(
                "layers: expected at least 3, for two reduction cells and a normal one, found "
                f"{layers}; "
                "use --layers 3 or more"
            )
        reductions = self.reductions(layers)
        return tuple("reduce" if layer in reductions else "normal" for layer in range(layers))

    def reductions(self, layers: int) -> tuple[int, ...]:
        return layers // 3, 2 * layers // 3

    def table(self, rules: Sequence[str]) -> CandidateTable:
        rows = {
            cell_type: [
                self._row(self.stride(cell_type, source), rules) for _, source in self.edges
            ]
            for cell_type in self.cell_types
        }
        widths = {cell_type: max(map(len, cell_rows)) for cell_type, cell_rows in rows.items()}
        return CandidateTable(
            {
                t: tuple(row + (None,) * (widths[t] - len(row)) for row in cell_rows)
                for t, cell_rows in rows.items()
            }
        )

    def _row(self, stride: int, rules: Sequence[str]) -> Row:
        row: list[Candidate] = []
        for op in self.operations:
            paired = rules if OPERATIONS.get(op).carries_rule(stride) else ()
            if self.layout == "paper" and op == "skip_connect":
                paired = [rule for rule in rules if rule != "fa"] or paired
            row += [Candidate(op, rule) for rule in paired] or [Candidate(op)]
        return tuple(row)

    def derive(self, weights: Mapping[str, Tensor], table: CandidateTable) -> dict[str, Cell]:
        """Per node the two incoming edges whose best candidate other than none is strongest, with
        that candidate.

        Edges are compared by that candidate's weight times the number of candidates it competes
        with, so that an edge with fewer of them has no advantage; where all have equally many it is
        the published rule. Ties go to the earlier edge and the earlier candidate, as in the
        published code.
        """
        cells = {}
        for cell_type in self.cell_types:
            best: dict[int, list[tuple[float, Edge]]] = {}
            values, rivals = weights[cell_type].tolist(), table.mask(cell_type).sum(1).tolist()
            for (node, source), row, row_values, n in zip(
                self.edges, table.rows[cell_type], values, rivals, strict=True
            ):
                choices = [
                    (v, c)
                    for v, c in zip(row_values, row, strict=True)
                    if c is not None and self.selectable(c)
                ]
                value, candidate = max(choices, key=lambda choice: choice[0])
                edge = self._normalised(Edge(node, source, candidate), cell_type)
                best.setdefault(node, []).append((n * value, edge))
            kept = [
                edge
                for edges in best.values()
                for edge in sorted(
                    (edge for _, edge in sorted(edges, key=lambda item: -item[0])[:KEPT_EDGES]),
                    key=lambda e: e.input,
                )
            ]
            cells[cell_type] = Cell(tuple(kept), self.outputs)
        return cells

    def normalise(self, genotype: Genotype) -> Genotype:
        """The same genotype with rule None wherever the operation has no weights at its stride."""
        cells = {
            cell_type: replace(
                cell, edges=tuple(self._normalised(edge, cell_type) for edge in cell.edges)
            )
            for cell_type, cell in genotype.cells.items()
        }
        return replace(genotype, cells=cells)

    def _normalised(self, edge: Edge, cell_type: str) -> Edge:
        op = edge.candidate.op
        carries = OPERATIONS.get(op).carries_rule(self.stride(cell_type, edge.input))
        return edge if carries else replace(edge, candidate=Candidate(op))

    def validate(self, genotype: Genotype, source: str) -> None:
        for cell_type in genotype.cells:
            if cell_type not in self.cell_types:
                raise InputError(
                    f"{source}.cells: {unknown_name('cell type', cell_type, self.cell_types)}"
                )
        for cell_type in self.cell_types:
            where = f"{source}.cells.{cell_type}"
            if cell_type not in genotype.cells:
                raise InputError(
                    f"{where}: missing; a genotype of the darts space has "
                    f"{' and '.join(self.cell_types)}"
                )
            self._validate_cell(genotype.cells[cell_type], cell_type, where)

    def _validate_cell(self, cell: Cell, cell_type: str, where: str) -> None:
        last = max((edge.node for edge in cell.edges), default=INPUTS)
        for node in range(INPUTS, last + 1):
            found = sum(edge.node == node for edge in cell.edges)
            if found != KEPT_EDGES:
                raise InputError(
                    f"{where}.edges: expected {KEPT_EDGES} edges into node {node}, found {found}"
                )
        for i, edge in enumerate(cell.edges):
            place = f"{where}.edges[{i}]"
            if edge.node < INPUTS:
                raise InputError(
                    f"{place}.node: expected {INPUTS} or more (0 and 1 are inputs), found "
                    f"{edge.node}"
                )
            if not 0 <= edge.input < edge.node:
                raise InputError(
                    f"{place}.input: expected a node before {edge.node}, found {edge.input}"
                )
            check_carried_rule(edge, self.stride(cell_type, edge.input), place)
        if not cell.concat or len(set(cell.concat)) < len(cell.concat):
            raise InputError(
                f"{where}.concat: expected distinct nodes, at least one, found {list(cell.concat)}"
            )
        for node in cell.concat:
            if not INPUTS <= node <= last:
                raise InputError(f"{where}.concat: expected nodes {INPUTS} to {last}, found {node}")
