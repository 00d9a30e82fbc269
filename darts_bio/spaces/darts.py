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

With `strided_skip_rule=bp` the factorized reductions of skips at stride 2 learn by bp whatever rules
are searched among. The published code does so: it makes a layer of the candidate's rule, and then
keeps the ordinary one. `layout=paper` has as many copies then as else, `clean` a single one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from darts_bio.bounded import MOST_NODES
from darts_bio.errors import InputError, check_whole, unknown_name
from darts_bio.rules import RULES
from darts_bio.spaces.base import SPACES, Row, Space, pairs_of
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


class DartsCells(Space):
    """Cells as DARTS has them: the nodes, the edges, and how a cell is derived and validated.

    Subclasses say how many nodes there are, and what stands on each edge (`row`).
    """

    cell_types = ("normal", "reduce")

    nodes: int
    """The nodes besides the two inputs."""

    @property
    @abstractmethod
    def kept_edges(self) -> int | None:
        """How many incoming edges a node keeps in a genotype; None for any number of them."""

    @property
    def optional_edges(self) -> bool:
        return self.kept_edges is None

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
                "--layers: expected at least 3, for two reduction cells and a normal one, found "
                f"{layers}; "
                "use --layers 3 or more"
            )
        reductions = self.reductions(layers)
        return tuple("reduce" if layer in reductions else "normal" for layer in range(layers))

    def reductions(self, layers: int) -> tuple[int, ...]:
        return layers // 3, 2 * layers // 3

    def derive_cell(
        self, cell_type: str, weights: Sequence[Sequence[float]], rows: Sequence[Row]
    ) -> Cell:
        """Return the cell in which each node keeps its strongest incoming edges.

        This is the rule of DARTS (arXiv 1806.09055, section 2.4), extended to edges that have
        different numbers of candidates:

        1. On each edge the candidate of largest weight wins. `none` cannot win, although it has had
           its share of the softmax.
        2. The score of an edge is the weight of its winner times the number of candidates on the
           edge. Weights of n candidates are 1/n on average, so without this factor an edge with
           fewer candidates would have an advantage (in `reduce` cells of the clean layout edges
           differ by the rules of the skip). Where all edges have equally many, it changes nothing.
        3. Each node keeps the edges of highest score, `kept_edges` of them (two in DARTS), listed
           in the order of their inputs.
        4. A winner that has no weights at its stride is written without a rule (in the paper's
           layout a skip has one).
        5. Where edges are optional, those whose winner has weight zero are left out, and with a node
           that no edge leads into all edges that come from it; such a node is no output of the cell.

        A tie goes to the earlier candidate and to the earlier edge, as in the published code.

        >>> space = DartsSpace(nodes=1, operations=("none", "skip_connect", "sep_conv_3x3"))
        >>> rows = space.table(("usf",)).rows["normal"]
        >>> print(space.derive_cell("normal", [[0.8, 0.1, 0.1], [0.2, 0.3, 0.5]], rows))
          node 2: skip_connect <- 0,  sep_conv_3x3:usf <- 1
        >>> space = DartsSpace(nodes=1, operations=space.operations, kept_edges=None)
        >>> print(space.derive_cell("normal", [[0.8, 0.0, 0.0], [0.2, 0.3, 0.5]], rows))
          node 2: sep_conv_3x3:usf <- 1
        """
        scored_edges: dict[int, list[tuple[float, Edge]]] = {}  # by the node they lead into
        for (node, source), row, row_weights in zip(self.edges, rows, weights, strict=True):
            weight, candidate = self.strongest(row, row_weights)
            edge = self._without_idle_rule(Edge(node, source, candidate), cell_type)
            candidates = len(row) - row.count(None)  # padding not counted
            scored_edges.setdefault(node, []).append((candidates * weight, edge))
        kept: list[Edge] = []
        for scored in scored_edges.values():
            # Sorting is stable: of equal scores the earlier edge stays first.
            strongest = sorted(scored, key=lambda scored_edge: -scored_edge[0])[: self.kept_edges]
            if self.optional_edges:
                reached = {*range(INPUTS), *(edge.node for edge in kept)}
                strongest = [(s, edge) for s, edge in strongest if s > 0 and edge.input in reached]
            kept += sorted((edge for _, edge in strongest), key=lambda edge: edge.input)
        present = {edge.node for edge in kept}
        return Cell(tuple(kept), tuple(node for node in self.outputs if node in present))

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

    def validate_cell(self, cell: Cell, cell_type: str, where: str) -> None:
        """Check the edges and the concatenated nodes of a cell, of any number of nodes.

        Several edges may lead from one node to another.

        Raises:
            InputError: If one of them cannot be. The message names the field, after `where`.
        """
        last = max((edge.node for edge in cell.edges), default=INPUTS)
        if self.kept_edges is not None:
            # Counted before each edge is looked at: a node without edges would go unnoticed there.
            for node in range(INPUTS, last + 1):
                incoming = sum(edge.node == node for edge in cell.edges)
                expected = min(self.kept_edges, node)  # as many as a search can keep
                if incoming != expected:
                    raise InputError(
                        f"{where}.edges: expected {expected} edges into node {node}, found "
                        f"{incoming}"
                    )
        reached = {*range(INPUTS), *(edge.node for edge in cell.edges)}
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
            if edge.input not in reached:
                raise InputError(
                    f"{place}.input: expected a node that an edge leads into, found {edge.input}"
                )
            check_carried_rule(edge, self.stride(cell_type, edge.input), place)
        if not cell.concat or len(set(cell.concat)) < len(cell.concat):
            raise InputError(
                f"{where}.concat: expected distinct nodes, at least one, found {list(cell.concat)}"
            )
        for node in cell.concat:
            if not INPUTS <= node <= last:
                raise InputError(f"{where}.concat: expected nodes {INPUTS} to {last}, found {node}")
            if node not in reached:
                raise InputError(
                    f"{where}.concat: expected nodes that an edge leads into, found {node}"
                )


@SPACES.register("darts")
@dataclass(frozen=True)
class DartsSpace(DartsCells):
    """The DARTS cell space: 4 nodes, 14 edges, normal and reduce cells.

    `layout` and `strided_skip_rule` are explained at the top of this file, `nodes` counts the nodes
    besides the two inputs, and `operations` are names from `OPERATIONS`. A node of a genotype has
    `kept_edges` incoming edges; with None a search keeps all to which its strategy leaves a weight,
    and genotypes may have any number at each node.

    >>> from darts_bio.spaces import SPACES
    >>> rules = ("usf", "brsf", "frsf", "fa")
    >>> for layout in ("clean", "paper"):
    ...     space = SPACES.build(f"darts(layout={layout})")
    ...     print(layout, space.table(rules).shape("normal"))
    clean (14, 20)
    paper (14, 22)
    >>> space = SPACES.build("darts(operations=(none, skip_connect), strided_skip_rule=bp)")
    >>> [str(candidate) for candidate in space.table(rules).rows["reduce"][0]]
    ['none', 'skip_connect:bp']
    """

    layout: Layout = "clean"
    nodes: int = 4
    operations: tuple[str, ...] = PUBLISHED_OPERATIONS
    kept_edges: int | None = KEPT_EDGES
    strided_skip_rule: str | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: If the layout, an operation or the rule is unknown, if there is no node, if
                nodes keep no edge, or if `none` is the only operation.
        """
        if self.layout not in get_args(Layout):
            raise unknown_name("layout of the darts space", str(self.layout), get_args(Layout))
        check_whole(f"{self.where}: nodes", self.nodes, most=MOST_NODES)
        if self.kept_edges is not None:
            check_whole(f"{self.where}: kept_edges", self.kept_edges)
        check_operations(self.operations, self.where)
        if self.strided_skip_rule is not None:
            try:
                RULES.build(str(self.strided_skip_rule))
            except InputError as error:
                raise InputError(f"{self.where}: strided_skip_rule: {error}") from None

    def row(self, cell_type: str, edge: int, rules: Sequence[str]) -> Row:
        _, source = self.edges[edge]
        stride = self.stride(cell_type, source)
        row: list[Candidate | None] = []
        for op in self.operations:
            fixed = self.strided_skip_rule if op == "skip_connect" and stride == 2 else None
            pairs = pairs_of((op,), stride, (fixed,) if fixed else rules)
            if self.layout == "paper" and op == "skip_connect":
                # With fa as the only rule nothing is left to pair, and the skip stays as it is.
                others = [Candidate(op, fixed or rule) for rule in rules if rule != "fa"]
                pairs = tuple(others) or pairs
            row += pairs
        return tuple(row)
