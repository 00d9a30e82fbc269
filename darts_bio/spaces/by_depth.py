"""Cells that differ by depth, so that each layer of a network can have a learning rule of its own.

In a space such as DARTS' all cells of one type are alike. Here each cell of a network of `cells`
cells is a type of its own, named after the type in the space it is made of and its index in the
network: normal_0, normal_1, reduce_2, ... Alpha, edge weights, genotype files and figures are kept
by cell type, so all of them are by depth here, and nothing else is different.

A network of another length takes over each cell's place relative to others of its kind: the k-th of
n cells of a kind is the floor((k + 1/2) m / n)-th of the m that the genotype has. With 8 cells in
the search and 20 in the network, three normal cells in a row are alike, and both reductions are
where they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from darts_bio.bounded import MOST_CELLS
from darts_bio.errors import InputError, check_whole
from darts_bio.registry import canonical_spec
from darts_bio.spaces.base import SPACES, Row, Space
from darts_bio.spaces.genotype import Candidate, Cell


@SPACES.register("by_depth")
@dataclass(frozen=True)
class ByDepth(Space):
    """A space in which each cell of the network is a type of its own.

    `space` is the spec of the space that the cells are of, and `cells` the number of cells.
    `rule_aware` and `random` keep the operations of a kind of cells alike at all depths; with other
    strategies they too are by depth. (Under the regularizer `factorised` the parameters of
    operations are those of a kind, but which pair is strongest depends on rules as well.)

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("by_depth(space=darts, cells=4)")
    >>> space.cell_types
    ('normal_0', 'reduce_1', 'reduce_2', 'normal_3')
    >>> space.plan(6)
    ('normal_0', 'normal_0', 'reduce_1', 'normal_3', 'reduce_2', 'normal_3')
    >>> space.kind("normal_3")
    'normal'
    """

    space: str = "darts"
    cells: int = 8

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: If there is no such space, or if it has no network of so many cells.
        """
        if not isinstance(self.space, str):
            raise InputError(
                f"{self.where}: space: expected the spec of a space, found {self.space!r}"
            )
        check_whole(f"{self.where}: cells", self.cells, most=MOST_CELLS)
        try:
            inner = self.of_cells
        except InputError as error:
            raise InputError(f"{self.where}: space: {error}") from None
        if isinstance(inner, ByDepth):
            raise InputError(
                f"{self.where}: space: expected a space whose cells are alike, found {self.space}; "
                "name the space in it, and how many cells there are by cells=N"
            )
        try:
            inner.plan(self.cells)
        except InputError as error:
            # There the number of cells is that of --layers; here it is an option of the space.
            expected, _, _ = str(error).removeprefix("--layers: ").partition(";")
            raise InputError(
                f"{self.where}: cells: {expected}; use another number of cells"
            ) from None
        # Equal spaces are equal values, however their spec was written.
        object.__setattr__(self, "space", canonical_spec(self.space))

    @cached_property
    def of_cells(self) -> Space:
        """The space that the cells are of."""
        space: Space = SPACES.build(self.space)
        return space

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The kind of each cell type, which is its type in `of_cells`."""
        plan = self.of_cells.plan(self.cells)
        return {f"{kind}_{index}": kind for index, kind in enumerate(plan)}

    @property
    def cell_types(self) -> tuple[str, ...]:
        return tuple(self.kinds)

    @property
    def skeleton(self) -> str:
        return self.of_cells.skeleton

    @property
    def normalizes_pools(self) -> bool:
        return self.of_cells.normalizes_pools

    @property
    def kept_edges(self) -> int | None:
        return self.of_cells.kept_edges

    @property
    def optional_edges(self) -> bool:
        return self.of_cells.optional_edges

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        return self.of_cells.edges

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.of_cells.outputs

    def kind(self, cell_type: str) -> str:
        return self.kinds[cell_type]

    def selectable(self, candidate: Candidate) -> bool:
        return self.of_cells.selectable(candidate)

    def stride(self, cell_type: str, source: int) -> int:
        return self.of_cells.stride(self.kind(cell_type), source)

    def plan(self, layers: int) -> tuple[str, ...]:
        kinds = self.of_cells.plan(layers)
        types = {
            kind: [cell_type for cell_type in self.kinds if self.kind(cell_type) == kind]
            for kind in self.kinds.values()
        }
        counts, before = Counter(kinds), Counter[str]()
        plan = []
        for kind in kinds:
            if kind not in types:
                raise InputError(
                    f"--layers: {layers} cells have one of type {kind}, and among the {self.cells} "
                    f"of the {self.where} there is none; use more cells in the space"
                )
            # floor((k + 1/2) m / n) in whole numbers.
            k, m, n = before[kind], len(types[kind]), counts[kind]
            plan.append(types[kind][(2 * k + 1) * m // (2 * n)])
            before[kind] += 1
        return tuple(plan)

    def reductions(self, layers: int) -> tuple[int, ...]:
        return self.of_cells.reductions(layers)

    def row(self, cell_type: str, edge: int, rules: Sequence[str]) -> Row:
        return self.of_cells.row(self.kind(cell_type), edge, rules)

    def derive_cell(
        self, cell_type: str, weights: Sequence[Sequence[float]], rows: Sequence[Row]
    ) -> Cell:
        return self.of_cells.derive_cell(self.kind(cell_type), weights, rows)

    def validate_cell(self, cell: Cell, cell_type: str, where: str) -> None:
        self.of_cells.validate_cell(cell, self.kind(cell_type), where)
