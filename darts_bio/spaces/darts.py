"""The DARTS space (Liu 2019, arXiv 1806.09055) with pairs of operation and rule as candidates.

A cell has two inputs, nodes 0 and 1, which are the outputs of the two cells before it, and four
nodes more. Each node sums what arrives over its incoming edges, and the cell's output is the
concatenation of the four. Cells of type `reduce`, at a third and two thirds of the depth, read
their inputs at stride 2.

Candidates are pairs (operation, learning rule), as in arXiv 2507.13485, in one of two layouts:

- `clean`: one candidate for each operation that has no weights at the edge's stride (so one
  identity at stride 1), and one for each (operation, rule) otherwise, the factorized reduction at
  stride 2 among them.
- `paper`: the published layout, with 22 candidates for the rules fa, usf, brsf and frsf. Skips are
  paired with every rule but fa at both strides, although the identity has no weights: its copies
  take 3/22 of the softmax, a built-in bias to skip that `clean` does not have.
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
"""Input nodes of a cell: the outputs of the two cells before it."""

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
    """The DARTS cell space: 4 nodes, 14 edges, normal and reduce cells.

    `layout` is explained at the top of this file, `nodes` counts the nodes besides the two inputs,
    and `operations` are names from `OPERATIONS`.

    >>> from darts_bio.spaces import SPACES
    >>> rules = ("usf", "brsf", "frsf", "fa")
    >>> for layout in ("clean", "paper"):
    ...     space = SPACES.build(f"darts(layout={layout})")
    ...     print(layout, space.table(rules).shape("normal"))
    clean (14, 20)
    paper (14, 22)
    """

    cell_types = ("normal", "reduce")
    kept_edges = KEPT_EDGES

    layout: Layout = "clean"
    nodes: int = 4
    operations: tuple[str, ...] = PUBLISHED_OPERATIONS

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: If the layout or an operation is unknown, if there is no node, or if `none`
                is the only operation.
        """
        if self.layout not in get_args(Layout):
            raise unknown_name("layout of the darts space", str(self.layout), get_args(Layout))
        check_whole("darts space: nodes", self.nodes)
        check_operations(self.operations, "darts space")

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The (node, input) of all edges: from every earlier node into each node but the inputs."""
        nodes = range(INPUTS, INPUTS + self.nodes)
        return tuple((node, source) for node in nodes for source in range(node))

    def selectable(self, candidate: Candidate) -> bool:
        """Return whether a derived cell may hold this candidate: any but `none`."""
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
        padded_rows: dict[str, tuple[Row, ...]] = {}
        for cell_type in self.cell_types:
            rows = [self._row(self.stride(cell_type, source), rules) for _, source in self.edges]
            width = max(map(len, rows))
            padded_rows[cell_type] = tuple(row + (None,) * (width - len(row)) for row in rows)
        return CandidateTable(padded_rows)

    def _row(self, stride: int, rules: Sequence[str]) -> Row:
        """Return the candidates of an edge of that stride, without padding."""
        row: list[Candidate] = []
        for op in self.operations:
            paired_rules = rules if OPERATIONS.get(op).carries_rule(stride) else ()
            if self.layout == "paper" and op == "skip_connect":
                # With fa as the only rule nothing is left to pair, and the skip stays as it is.
                paired_rules = [rule for rule in rules if rule != "fa"] or paired_rules
            row += [Candidate(op, rule) for rule in paired_rules] or [Candidate(op)]
        return tuple(row)

    def derive(self, weights: Mapping[str, Tensor], table: CandidateTable) -> dict[str, Cell]:
        """Return cells in which each node keeps its two strongest incoming edges.

        This is the rule of DARTS (arXiv 1806.09055, section 2.4), extended to edges that have
        different numbers of candidates:

        1. On each edge the candidate of largest weight wins. `none` cannot win, although it has had
           its share of the softmax.
        2. The score of an edge is the weight of its winner times the number of candidates on the
           edge. Weights of n candidates are 1/n on average, so without this factor an edge with
           fewer candidates would have an advantage (in `reduce` cells of the clean layout edges
           differ by the rules of the skip). Where all edges have equally many, it changes nothing.
        3. Each node keeps the two edges of highest score, listed in the order of their inputs.
        4. A winner that has no weights at its stride is written without a rule (in the paper's
           layout a skip has one).

        A tie goes to the earlier candidate and to the earlier edge, as in the published code.

        >>> import torch
        >>> space = DartsSpace(nodes=1, operations=("none", "skip_connect", "sep_conv_3x3"))
        >>> table = space.table(("usf",))
        >>> edge_weights = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.3, 0.5]])
        >>> print(space.derive({"normal": edge_weights, "reduce": edge_weights}, table)["normal"])
          node 2: skip_connect <- 0,  sep_conv_3x3:usf <- 1
        """
        cells = {}
        for cell_type in self.cell_types:
            rows = table.rows[cell_type]
            weights_of_rows = weights[cell_type].tolist()
            candidates_of_rows = table.mask(cell_type).sum(1).tolist()  # padding not counted
            scored_edges: dict[int, list[tuple[float, Edge]]] = {}  # by the node they lead into
            for (node, source), row, row_weights, candidates in zip(
                self.edges, rows, weights_of_rows, candidates_of_rows, strict=True
            ):
                weight, candidate = self._strongest(row, row_weights)
                edge = self._without_idle_rule(Edge(node, source, candidate), cell_type)
                scored_edges.setdefault(node, []).append((candidates * weight, edge))
            kept: list[Edge] = []
            for scored in scored_edges.values():
                # Sorting is stable: of equal scores the earlier edge stays first.
                strongest = sorted(scored, key=lambda scored_edge: -scored_edge[0])[:KEPT_EDGES]
                kept += sorted((edge for _, edge in strongest), key=lambda edge: edge.input)
            cells[cell_type] = Cell(tuple(kept), self.outputs)
        return cells

    def _strongest(self, row: Row, row_weights: Sequence[float]) -> tuple[float, Candidate]:
        """Return the largest weight among the selectable candidates of an edge, and its owner."""
        choices = [
            (weight, candidate)
            for weight, candidate in zip(row_weights, row, strict=True)
            if candidate is not None and self.selectable(candidate)
        ]
        return max(choices, key=lambda choice: choice[0])  # the first of equal ones

    def normalize(self, genotype: Genotype) -> Genotype:
        """Return the genotype with rule None wherever an operation has no weights at its stride."""
        cells = {}
        for cell_type, cell in genotype.cells.items():
            edges = tuple(self._without_idle_rule(edge, cell_type) for edge in cell.edges)
            cells[cell_type] = replace(cell, edges=edges)
        return replace(genotype, cells=cells)

    def _without_idle_rule(self, edge: Edge, cell_type: str) -> Edge:
        """Return the edge with rule None if its operation has no weights at its stride."""
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
        """Check the edges and the concatenated nodes of a cell, of any number of nodes.

        Raises:
            InputError: If one of them cannot be. The message names the field, after `where`.
        """
        last = max((edge.node for edge in cell.edges), default=INPUTS)
        # Counted before each edge is looked at: a node without edges would go unnoticed there.
        for node in range(INPUTS, last + 1):
            incoming = sum(edge.node == node for edge in cell.edges)
            if incoming != KEPT_EDGES:
                raise InputError(
                    f"{where}.edges: expected {KEPT_EDGES} edges into node {node}, found {incoming}"
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
