"""The NAS-Bench-201 space (Dong 2020, arXiv 2001.00326) with (operation, learning rule) pairs as
candidates.

A cell has one input, node 0, and three nodes more; an edge leads from each node to every later one,
and all six are kept. A node sums what its edges bring, none included; the last one is the cell's
output. Cells are of one type and keep their size, which residual blocks halve after a third and two
thirds of the depth.

The text form of a cell is `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, a group a node, and `op:rule~0`
where the operation has weights: without a rule it is bp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from darts_bio.errors import InputError, unknown_name
from darts_bio.registry import parse_spec
from darts_bio.spaces.base import SPACES, CandidateTable, Row, Space
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
PUBLISHED_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CELL = "cell"
STAGES = 3


@SPACES.register("nb201")
@dataclass(frozen=True)
class NasBench201Space(Space):
    """The NAS-Bench-201 cell space: 4 nodes, 6 edges, 15,625 cells of 5 operations under one
    rule.
    """

    cell_types = (CELL,)
    skeleton = "residual"

    operations: tuple[str, ...] = PUBLISHED_OPERATIONS

    def __post_init__(self) -> None:
        """Raises InputError for an operation that there is not, or for a space without any
        connection.
        """
        check_operations(self.operations, "nb201 space")

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
                f"layers: expected a multiple of {STAGES}, as many cells at each size (published: "
                f"15), found {layers}; "
                f"use --layers {max(STAGES, layers - layers % STAGES)}"
            )
        return (CELL,) * layers

    def reductions(self, layers: int) -> tuple[int, ...]:
        return tuple(stage * layers // STAGES for stage in range(1, STAGES))

    def table(self, rules: Sequence[str]) -> CandidateTable:
        row: list[Candidate | None] = []
        for op in self.operations:
            paired = rules if OPERATIONS.get(op).carries_rule(1) else ()
            row += [Candidate(op, rule) for rule in paired] or [Candidate(op)]
        return CandidateTable({CELL: (tuple(row),) * len(self.edges)})

    def derive(self, weights: Mapping[str, Tensor], table: CandidateTable) -> dict[str, Cell]:
        """Every edge with its strongest candidate, none included. Ties go to the earlier
        candidate.
        """
        edges = []
        for (node, source), row, values in zip(
            self.edges, table.rows[CELL], weights[CELL].tolist(), strict=True
        ):
            edges.append(Edge(node, source, _strongest(row, values)))
        return {CELL: Cell(tuple(edges), self.outputs)}

    def validate(self, genotype: Genotype, source: str) -> None:
        for cell_type in genotype.cells:
            if cell_type != CELL:
                raise InputError(
                    f"{source}.cells: {unknown_name('cell type', cell_type, self.cell_types)}"
                )
        where = f"{source}.cells.{CELL}"
        if CELL not in genotype.cells:
            raise InputError(
                f"{where}: missing; a genotype of the nb201 space has one cell, named {CELL}"
            )
        cell = genotype.cells[CELL]
        found = sorted((edge.node, edge.input) for edge in cell.edges)
        if found != list(self.edges):
            shown = ", ".join(f"{source}->{node}" for node, source in found) or "none"
            raise InputError(
                f"{where}.edges: expected one edge from each of the nodes 0 to {NODES - 1} to "
                "every later one, found "
                f"{shown}"
            )
        for i, edge in enumerate(cell.edges):
            check_carried_rule(edge, self.stride(CELL, edge.input), f"{where}.edges[{i}]")
        if cell.concat != self.outputs:
            raise InputError(
                f"{where}.concat: expected {list(self.outputs)}, the last node, found "
                f"{list(cell.concat)}"
            )


def _strongest(row: Row, values: Sequence[float]) -> Candidate:
    choices = [
        (value, candidate)
        for value, candidate in zip(values, row, strict=True)
        if candidate is not None
    ]
    return max(choices, key=lambda choice: choice[0])[1]


def from_nb201_text(text: str) -> Genotype:
    """Reads `|op:rule~0|+|op~0|op~1|+|...|`; without a rule an operation that has weights is under
    bp.

    Raises InputError, naming the group and the entry, for anything that is not such a cell.

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
        entries = group[1:-1].split("|") if len(group) > 2 and group[0] == group[-1] == "|" else []
        if len(entries) != node:
            raise InputError(
                f"{source}: {form}, {node} entries between bars for node {node}, found "
                f"{group[:80]!r}"
            )
        for entry in entries:
            where = f"{source}, node {node}"
            match = re.fullmatch(r"(\w+)(?::(.+))?~(\d)", entry)
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
    """The text form of a genotype of this space; without `rules` the benchmark's own, which knows
    bp alone.

    >>> text = "|nor_conv_3x3:fa~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1:bp~2|"
    >>> to_nb201_text(from_nb201_text(text)) == text
    True
    """
    groups: dict[int, list[str]] = {}
    for edge in sorted(genotype.cells[CELL].edges, key=lambda edge: (edge.node, edge.input)):
        name = str(edge.candidate) if rules else edge.candidate.op
        groups.setdefault(edge.node, []).append(f"{name}~{edge.input}")
    return "+".join(f"|{'|'.join(entries)}|" for entries in groups.values())


def is_nb201(genotype: Genotype) -> bool:
    """Whether it is of this space, whatever its options, so that it has a text form."""
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
