"""The NAS-Bench-201 space (Dong 2020, arXiv 2001.00326) with pairs of operation and rule.

A cell has one input, node 0, and three nodes more. An edge leads from each node to every later one,
and a derived cell keeps all six: a node sums what arrives over its edges (an edge of `none` brings
zeros), and the last node is the cell's output. Cells are of one type and keep the size of their
input; residual blocks between them halve it after a third and two thirds of the depth.

The supernet is that of the published code (github.com/D-X-Y/AutoDL-Projects, cell_operations.py):
batch norms have no gain and bias, and none follows the pool, unlike in DARTS. The code gives the
supernet's convolutions a bias, which is left out here: the batch norm behind takes it out again.

The text form of a cell is `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`: a group for each of the nodes 1 to
3, in it an entry for each edge, and after the tilde the node that the edge comes from. An operation
that has weights is written with its rule, `op:rule~0`; without one its rule is bp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from darts_bio.errors import InputError
from darts_bio.registry import parse_spec
from darts_bio.spaces.base import SPACES, Row, Space, pairs_of
from darts_bio.spaces.genotype import (
    TEXT_FORMS,
    Candidate,
    Cell,
    Edge,
    Genotype,
    TextForm,
    check_carried_rule,
    read_candidate,
)
from darts_bio.spaces.operations import OPERATIONS, check_operations

NODES = 4
"""Nodes of a cell, the input among them."""

PUBLISHED_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

CELL = "cell"
"""The name of the only cell type."""

STAGES = 3
"""Groups of cells that work at one size."""


@SPACES.register("nb201")
@dataclass(frozen=True)
class NasBench201Space(Space):
    """The NAS-Bench-201 cell space: 4 nodes, 6 edges, 15,625 cells of 5 operations under one rule.

    `operations` are names from `OPERATIONS`.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> [str(candidate) for candidate in space.table(("usf", "fa")).rows["cell"][0][1:4]]
    ['skip_connect', 'nor_conv_1x1:usf', 'nor_conv_1x1:fa']
    >>> space.reductions(15)
    (5, 10)
    """

    cell_types = (CELL,)
    skeleton = "residual"
    normalizes_pools = False

    operations: tuple[str, ...] = PUBLISHED_OPERATIONS

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: If an operation is unknown, or if `none` is the only one.
        """
        check_operations(self.operations, self.where)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        return tuple((node, source) for node in range(1, NODES) for source in range(node))

    @property
    def outputs(self) -> tuple[int, ...]:
        return (NODES - 1,)

    def stride(self, cell_type: str, source: int) -> int:
        return 1

    def plan(self, layers: int) -> tuple[str, ...]:
        if layers < STAGES or layers % STAGES:
            raise InputError(
                f"--layers: expected a multiple of {STAGES}, as many cells at each size (published: "
                f"15), found {layers}; "
                f"use --layers {max(STAGES, layers - layers % STAGES)}"
            )
        return (CELL,) * layers

    def reductions(self, layers: int) -> tuple[int, ...]:
        return tuple(stage * layers // STAGES for stage in range(1, STAGES))

    def row(self, cell_type: str, edge: int, rules: Sequence[str]) -> Row:
        _, source = self.edges[edge]
        return pairs_of(self.operations, self.stride(cell_type, source), rules)

    def derive_cell(
        self, cell_type: str, weights: Sequence[Sequence[float]], rows: Sequence[Row]
    ) -> Cell:
        """Return the cell in which each edge has its strongest candidate.

        Unlike in the DARTS space `none` may win. A tie goes to the earlier candidate.
        """
        edges = []
        for (node, source), row, row_weights in zip(self.edges, rows, weights, strict=True):
            _, candidate = self.strongest(row, row_weights)
            edges.append(Edge(node, source, candidate))
        return Cell(tuple(edges), self.outputs)

    def validate_cell(self, cell: Cell, cell_type: str, where: str) -> None:
        connections = sorted((edge.node, edge.input) for edge in cell.edges)
        if connections != list(self.edges):
            shown = ", ".join(f"{source}->{node}" for node, source in connections) or "none"
            raise InputError(
                f"{where}.edges: expected one edge from each of the nodes 0 to {NODES - 1} to "
                f"every later one, found {shown}"
            )
        for i, edge in enumerate(cell.edges):
            check_carried_rule(edge, self.stride(cell_type, edge.input), f"{where}.edges[{i}]")
        if cell.concat != self.outputs:
            raise InputError(
                f"{where}.concat: expected {list(self.outputs)}, the last node, found "
                f"{list(cell.concat)}"
            )


def from_nb201_text(text: str) -> Genotype:
    """Read a genotype from the text form `|op:rule~0|+|op~0|op~1|+|op~0|op~1|op~2|`.

    An operation that has weights and is written without a rule is under bp.

    Raises:
        InputError: If the text is no such cell. The message names the node and the entry.

    >>> genotype = from_nb201_text("|nor_conv_3x3:fa~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|")
    >>> print(genotype.cells["cell"])
      node 1: nor_conv_3x3:fa <- 0
      node 2: none <- 0,  skip_connect <- 1
      node 3: none <- 0,  avg_pool_3x3 <- 1,  nor_conv_1x1:bp <- 2
    """
    source, form = "NAS-Bench-201 text", "expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
    groups = [group.strip() for group in text.strip().split("+")]
    if len(groups) != NODES - 1:
        raise InputError(
            f"{source}: {form}, a group for each of {NODES - 1} nodes, found {len(groups)} in "
            f"{text[:120]!r}"
        )
    edges = []
    for node, group in enumerate(groups, 1):
        between_bars = len(group) > 2 and group[0] == group[-1] == "|"
        entries = group[1:-1].split("|") if between_bars else []
        if len(entries) != node:  # one from each node before
            raise InputError(
                f"{source}: {form}, {node} entries between bars for node {node}, found "
                f"{group[:80]!r}"
            )
        for entry in entries:
            where = f"{source}, node {node}"
            match = re.fullmatch(r"(\w+)(?::(.+))?~(\d)", entry)  # op:rule~input, or op~input
            if match is None:
                raise InputError(
                    f"{where}: expected an entry such as nor_conv_3x3~0 or nor_conv_3x3:fa~0, "
                    f"found {entry!r}"
                )
            op, rule, node_input = match[1], match[2], int(match[3])
            candidate = read_candidate(op, rule, where)
            if OPERATIONS.get(op).carries_rule(1) and rule is None:
                candidate = Candidate(op, "bp")
            edges.append(Edge(node, node_input, candidate))
    cell = Cell(tuple(sorted(edges, key=lambda edge: (edge.node, edge.input))), (NODES - 1,))
    genotype = Genotype("nb201", {CELL: cell}, provenance={"source": "imported NAS-Bench-201 text"})
    NasBench201Space().validate(genotype, source)
    return genotype


def to_nb201_text(genotype: Genotype, rules: bool = True) -> str:
    """Return the text form of a genotype of this space.

    Without `rules` it is the form of the benchmark, `|op~0|+...`, which knows no rules: all its
    cells were trained by backpropagation.

    >>> text = "|nor_conv_3x3:fa~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1:bp~2|"
    >>> to_nb201_text(from_nb201_text(text)) == text
    True
    >>> to_nb201_text(from_nb201_text(text), rules=False)
    '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|'
    """
    entries_of: dict[int, list[str]] = {}
    for edge in sorted(genotype.cells[CELL].edges, key=lambda edge: (edge.node, edge.input)):
        name = str(edge.candidate) if rules else edge.candidate.op
        entries_of.setdefault(edge.node, []).append(f"{name}~{edge.input}")
    return "+".join(f"|{'|'.join(entries)}|" for entries in entries_of.values())


def is_nb201(genotype: Genotype) -> bool:
    """Return whether a genotype is of this space, whatever the options of the space.

    >>> text = "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"
    >>> is_nb201(from_nb201_text(text))
    True
    """
    return parse_spec(genotype.space)[0] == "nb201"


TEXT_FORMS.register("nb201")(
    TextForm(
        "|op:rule~0|+|op~0|op~1|+|op~0|op~1|op~2|, without a rule bp",
        "nb201",
        lambda text: text.startswith("|"),
        from_nb201_text,
        to_nb201_text,
    )
)
