"""The interface of a cell-based search space, and the table of its candidates.

A space holds no weights. It describes, as data, the cells, the candidates that compete on their
edges, and how the weights that a search gave to these candidates become a discrete cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from darts_bio.errors import InputError, unknown_name
from darts_bio.registry import Registry
from darts_bio.spaces.genotype import Candidate, Cell, Genotype
from darts_bio.spaces.operations import OPERATIONS

Row = tuple[Candidate | None, ...]
"""The candidates of one edge; None pads the row where this edge has fewer than others."""


def pairs_of(operations: Sequence[str], stride: int, rules: Sequence[str]) -> Row:
    """Return the candidates of an edge: each operation with each rule, or alone without weights.

    >>> [str(candidate) for candidate in pairs_of(("skip_connect", "sep_conv_3x3"), 1, ("usf", "fa"))]
    ['skip_connect', 'sep_conv_3x3:usf', 'sep_conv_3x3:fa']
    """
    row: list[Candidate] = []
    for op in operations:
        paired_rules = rules if OPERATIONS.get(op).carries_rule(stride) else ()
        row += [Candidate(op, rule) for rule in paired_rules] or [Candidate(op)]
    return tuple(row)


def padded(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows of all edges, padded by None to the length of the longest.

    >>> padded([(Candidate("none"),), ()])
    ((Candidate(op='none', rule=None),), (None,))
    """
    width = max(map(len, rows))
    return tuple(row + (None,) * (width - len(row)) for row in rows)


@dataclass(frozen=True)
class CandidateTable:
    """The candidates of a search: `rows[cell_type][edge]`, padded to one length per cell type.

    Rows are in the order of `Space.edges`, which is the order of the rows of alpha.

    >>> from darts_bio.spaces import SPACES
    >>> table = SPACES.build("darts").table(("usf", "fa"))
    >>> [str(candidate) for candidate in table.rows["normal"][0][3:6]]
    ['skip_connect', 'sep_conv_3x3:usf', 'sep_conv_3x3:fa']

    In a reduce cell an edge of stride 2 has one candidate more, since a skip has weights there:

    >>> table.shape("reduce")
    (14, 13)
    >>> table.mask("reduce").sum(1).tolist()
    [13, 13, 13, 13, 12, 13, 13, 12, 12, 13, 13, 12, 12, 12]
    """

    rows: Mapping[str, tuple[Row, ...]]

    def shape(self, cell_type: str) -> tuple[int, int]:
        """Return the shape of alpha of a cell type: (edges, candidates of the longest row)."""
        rows = self.rows[cell_type]
        return len(rows), len(rows[0])

    def mask(self, cell_type: str) -> Tensor:
        """Return a bool tensor (edges, candidates), True for candidates and False for padding."""
        return torch.tensor(
            [[candidate is not None for candidate in row] for row in self.rows[cell_type]]
        )

    def strongest(self, weights: Mapping[str, Tensor], count: int) -> CandidateTable:
        """Return a table of the strongest candidates of each edge, in the order of its row.

        Of equal weights the earlier candidates count. An edge that has no more than `count` keeps
        all of them.

        Args:
            weights: (edges, candidates) per cell type.
            count: How many candidates an edge keeps.

        >>> from darts_bio.spaces import SPACES
        >>> table = SPACES.build("nb201").table(("usf",))
        >>> weights = torch.tensor([[0.2, 0.1, 0.4, 0.1, 0.2]]).expand(6, 5)
        >>> [str(candidate) for candidate in table.strongest({"cell": weights}, 3).rows["cell"][0]]
        ['none', 'nor_conv_1x1:usf', 'avg_pool_3x3']
        """
        kept: dict[str, tuple[Row, ...]] = {}
        for cell_type, rows in self.rows.items():
            of_type = []
            for row, of_edge in zip(rows, weights[cell_type].tolist(), strict=True):
                columns = [column for column, candidate in enumerate(row) if candidate is not None]
                ranked = sorted(columns, key=lambda column: -of_edge[column])
                of_type.append(tuple(row[column] for column in sorted(ranked[:count])))
            kept[cell_type] = padded(of_type)
        return CandidateTable(kept)

    def equal_shares(self, cell_type: str) -> Tensor:
        """Return the same share for each candidate of an edge, (edges, candidates) in float64."""
        mask = self.mask(cell_type).double()
        return mask / mask.sum(1, keepdim=True)


class Pool(NamedTuple):
    """The candidates of one operation on an edge: their columns in the row, and their rules.

    `rules` is empty where the operation has no weights.
    """

    op: str
    columns: tuple[int, ...]
    rules: tuple[str, ...]


def by_operation(row: Row) -> list[Pool]:
    """Group the candidates of an edge by their operation, in the order of the row.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("darts(operations=(none, sep_conv_3x3))")
    >>> for pool in by_operation(space.table(("usf", "fa")).rows["normal"][0]):
    ...     print(pool)
    Pool(op='none', columns=(0,), rules=())
    Pool(op='sep_conv_3x3', columns=(1, 2), rules=('usf', 'fa'))
    """
    columns: dict[str, list[int]] = {}
    rules: dict[str, list[str]] = {}
    for column, candidate in enumerate(row):
        if candidate is not None:
            columns.setdefault(candidate.op, []).append(column)
            if candidate.rule is not None:
                rules.setdefault(candidate.op, []).append(candidate.rule)
    return [Pool(op, tuple(of_op), tuple(rules.get(op, ()))) for op, of_op in columns.items()]


class Space(ABC):
    """A cell-based search space.

    Subclasses are frozen dataclasses whose fields are the options of the space; they are registered
    in `SPACES`. Nodes of a cell are numbered from 0, its inputs first.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> space.edges
    ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
    >>> SPACES.build("darts").plan(6)
    ('normal', 'normal', 'reduce', 'normal', 'reduce', 'normal')

    `derive` turns weights (edges, candidates) into cells. Here edge i prefers candidate i:

    >>> import torch
    >>> table = space.table(("usf",))
    >>> print(space.derive({"cell": torch.eye(*table.shape("cell"))}, table)["cell"])
      node 1: none <- 0
      node 2: skip_connect <- 0,  nor_conv_1x1:usf <- 1
      node 3: nor_conv_3x3:usf <- 0,  avg_pool_3x3 <- 1,  none <- 2
    """

    @property
    @abstractmethod
    def cell_types(self) -> tuple[str, ...]:
        """Names of the types of cells, each with an alpha of its own, such as normal and reduce."""

    @property
    def skeleton(self) -> str:
        """Name, in `networks.skeletons.SKELETONS`, of the network around the cells."""
        return "darts"

    @property
    def normalizes_pools(self) -> bool:
        """Whether operations without weights (pools) end with a batch norm in the supernet."""
        return True

    @property
    def kept_edges(self) -> int | None:
        """How many incoming edges a node keeps when a genotype is derived; None for all of them."""
        return None

    @property
    def optional_edges(self) -> bool:
        """Whether a node of a genotype may have fewer edges, or none.

        An edge whose candidates all have weight zero is then left out when a genotype is derived.
        """
        return False

    def kind(self, cell_type: str) -> str:
        """Return the kind of a cell type: types of one kind can have the same operations.

        It is the type itself, but in spaces whose types differ by depth (`by_depth`).
        """
        return cell_type

    @property
    def where(self) -> str:
        """The words that an error message about this space begins with."""
        return f"{SPACES.name_of(self)} space"

    def selectable(self, candidate: Candidate) -> bool:
        """Return whether a derived cell may hold this candidate."""
        return True

    @property
    @abstractmethod
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The (node, input) of every edge of a cell, in the order of the rows of alpha."""

    def incoming(self) -> list[list[int]]:
        """Return, for each node that has incoming edges, their indices in `edges`."""
        edges_by_node: dict[int, list[int]] = {}
        for e, (node, _) in enumerate(self.edges):
            edges_by_node.setdefault(node, []).append(e)
        return list(edges_by_node.values())

    @property
    @abstractmethod
    def outputs(self) -> tuple[int, ...]:
        """The nodes whose concatenation is the output of a cell of the supernet."""

    @abstractmethod
    def stride(self, cell_type: str, source: int) -> int:
        """Return the stride of the edges that leave node `source` in a cell of that type."""

    @abstractmethod
    def plan(self, layers: int) -> tuple[str, ...]:
        """Return the cell type of each of `layers` cells, from the first to the last.

        Raises:
            InputError: If a network of the space cannot have that number of cells.
        """

    @abstractmethod
    def reductions(self, layers: int) -> tuple[int, ...]:
        """Return the indices of the cells that halve height and width and double the channels."""

    @abstractmethod
    def row(self, cell_type: str, edge: int, rules: Sequence[str]) -> Row:
        """Return the candidates of an edge of a cell type, without padding.

        Args:
            cell_type: The type of the cell.
            edge: The index of the edge in `edges`.
            rules: The specs of the learning rules that are searched among.
        """

    def table(self, rules: Sequence[str]) -> CandidateTable:
        """Return the candidates of a search among the learning rules given by their specs."""
        edges = range(len(self.edges))
        return CandidateTable(
            {t: padded([self.row(t, edge, rules) for edge in edges]) for t in self.cell_types}
        )

    def derive(self, weights: Mapping[str, Tensor], table: CandidateTable) -> dict[str, Cell]:
        """Return the discrete cell of each cell type that the weights of a search stand for.

        Args:
            weights: For each cell type the weights of its candidates, (edges, candidates).
            table: The candidates, with rows and columns as those of `weights`.
        """
        return {
            cell_type: self.derive_cell(cell_type, weights[cell_type].tolist(), rows)
            for cell_type, rows in table.rows.items()
        }

    @abstractmethod
    def derive_cell(
        self, cell_type: str, weights: Sequence[Sequence[float]], rows: Sequence[Row]
    ) -> Cell:
        """Return the discrete cell that weights stand for.

        Args:
            cell_type: The type of the cell.
            weights: For each edge the weights of its candidates.
            rows: For each edge its candidates, as long as its weights.
        """

    def unused(self, layers: int) -> tuple[str, ...]:
        """Return the cell types of which a network of that many cells has none.

        >>> from darts_bio.spaces import SPACES
        >>> SPACES.build("by_depth(space=darts, cells=5)").unused(layers=3)
        ('normal_0', 'normal_4')
        """
        plan = self.plan(layers)
        return tuple(cell_type for cell_type in self.cell_types if cell_type not in plan)

    def adopt(self, genotype: Genotype) -> Genotype:
        """Return the genotype in this space: cells by their type, or else by its kind.

        Whether they are cells of this space is for `validate` to say.

        >>> from darts_bio.spaces import SPACES, load_genotype
        >>> genotype = SPACES.build("by_depth(space=darts, cells=4)").adopt(load_genotype("darts_v1"))
        >>> genotype.cells["reduce_1"] == load_genotype("darts_v1").cells["reduce"]
        True
        """
        cells = dict(genotype.cells)
        for cell_type in self.cell_types:
            kind = self.kind(cell_type)
            if cell_type not in cells and kind in genotype.cells:
                cells[cell_type] = genotype.cells[kind]
                cells.pop(kind, None)
        return replace(genotype, space=SPACES.spec(self), cells=cells)

    def strongest(self, row: Row, weights: Sequence[float]) -> tuple[float, Candidate]:
        """Return the largest weight among the selectable candidates of an edge, and its owner.

        Of equal weights the first one counts.
        """
        choices = [
            (weight, candidate)
            for weight, candidate in zip(weights, row, strict=True)
            if candidate is not None and self.selectable(candidate)
        ]
        return max(choices, key=lambda choice: choice[0])

    def validate(self, genotype: Genotype, source: str) -> None:
        """Check that the cells of a genotype belong to this space.

        Raises:
            InputError: If they do not. The message names the field, after `source`.
        """
        for cell_type in genotype.cells:
            if cell_type not in self.cell_types:
                raise InputError(
                    f"{source}.cells: {unknown_name('cell type', cell_type, self.cell_types)}"
                )
        for cell_type in self.cell_types:
            where = f"{source}.cells.{cell_type}"
            if cell_type not in genotype.cells:
                raise InputError(
                    f"{where}: missing; a genotype of the {self.where} has "
                    f"{', '.join(self.cell_types)}"
                )
            self.validate_cell(genotype.cells[cell_type], cell_type, where)

    @abstractmethod
    def validate_cell(self, cell: Cell, cell_type: str, where: str) -> None:
        """Check that a cell is one of this space, of that type.

        Raises:
            InputError: If it is not. The message names the field, after `where`.
        """


SPACES: Registry[type[Space]] = Registry("space", base=Space)
