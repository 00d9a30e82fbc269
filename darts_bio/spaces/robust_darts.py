"""The spaces S1 to S4 of RobustDARTS (Zela 2020, arXiv 1909.09656, section 3), in which DARTS fails.

They are the DARTS space with few operations on each edge, paired here with learning rules:

- S1: two operations on each edge, those that two runs of DARTS preferred; they differ by edge and
  by type of cell. (The lists are those of the published code, github.com/automl/RobustDARTS.)
- S2: sep_conv_3x3 and skip_connect.
- S3: none, sep_conv_3x3 and skip_connect.
- S4: sep_conv_3x3 and noise, which replaces the input by N(0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from darts_bio.errors import InputError, unknown_name
from darts_bio.spaces.base import SPACES, Row, pairs_of
from darts_bio.spaces.darts import KEPT_EDGES, DartsCells
from darts_bio.spaces.genotype import Cell

Operations = tuple[str, ...]

SKIP_OR_DIL_3 = ("skip_connect", "dil_conv_3x3")
SKIP_OR_DIL_5 = ("skip_connect", "dil_conv_5x5")
SKIP_OR_SEP = ("skip_connect", "sep_conv_3x3")
MAX_OR_SKIP = ("max_pool_3x3", "skip_connect")
MAX_OR_AVG = ("max_pool_3x3", "avg_pool_3x3")
MAX_OR_DIL = ("max_pool_3x3", "dil_conv_3x3")
MAX_OR_SEP = ("max_pool_3x3", "sep_conv_3x3")
DIL_3_OR_5 = ("dil_conv_3x3", "dil_conv_5x5")


def _everywhere(*operations: str) -> dict[str, tuple[Operations, ...]]:
    """Return the same operations for each of the 14 edges of both types of cells."""
    return {"normal": (operations,) * 14, "reduce": (operations,) * 14}


OPERATIONS_BY_EDGE: Mapping[str, Mapping[str, tuple[Operations, ...]]] = {
    "s1": {
        "normal": (
            *(SKIP_OR_DIL_3, SKIP_OR_DIL_5),  # into node 2, from 0 and 1
            *(SKIP_OR_DIL_5, SKIP_OR_SEP, SKIP_OR_DIL_3),  # into node 3
            *(MAX_OR_SKIP, SKIP_OR_SEP, SKIP_OR_SEP, SKIP_OR_DIL_3),
            *(SKIP_OR_SEP, MAX_OR_SKIP, SKIP_OR_DIL_3, DIL_3_OR_5, DIL_3_OR_5),
        ),
        "reduce": (
            *(MAX_OR_AVG, MAX_OR_DIL),
            *(MAX_OR_AVG, MAX_OR_AVG, SKIP_OR_DIL_5),
            *(MAX_OR_AVG, MAX_OR_SEP, SKIP_OR_DIL_3, SKIP_OR_DIL_5),
            *(MAX_OR_AVG, MAX_OR_AVG, SKIP_OR_DIL_5, SKIP_OR_DIL_5, SKIP_OR_DIL_5),
        ),
    },
    "s2": _everywhere("skip_connect", "sep_conv_3x3"),
    "s3": _everywhere("none", "skip_connect", "sep_conv_3x3"),
    "s4": _everywhere("noise", "sep_conv_3x3"),
}
"""Space -> cell type -> the operations of each edge, in the order of `Space.edges`."""


@SPACES.register("robust_darts")
@dataclass(frozen=True)
class RobustDartsSpace(DartsCells):
    """The DARTS cell with few operations an edge: S1 to S4 of RobustDARTS.

    `space` is s1, s2, s3 or s4.

    >>> from darts_bio.spaces import SPACES
    >>> rows = SPACES.build("robust_darts(space=s1)").table(("usf",)).rows
    >>> for (node, source), row in zip(SPACES.build("darts").edges[:3], rows["normal"]):
    ...     print(source, "->", node, *row)
    0 -> 2 skip_connect dil_conv_3x3:usf
    1 -> 2 skip_connect dil_conv_5x5:usf
    0 -> 3 skip_connect dil_conv_5x5:usf
    """

    nodes = 4
    kept_edges = KEPT_EDGES

    space: str = "s1"

    def __post_init__(self) -> None:
        """Check the option.

        Raises:
            InputError: If there is no such space.
        """
        if str(self.space) not in OPERATIONS_BY_EDGE:
            raise unknown_name(f"space of {self.where}", str(self.space), OPERATIONS_BY_EDGE)

    def row(self, cell_type: str, edge: int, rules: Sequence[str]) -> Row:
        _, source = self.edges[edge]
        operations = OPERATIONS_BY_EDGE[self.space][cell_type][edge]
        return pairs_of(operations, self.stride(cell_type, source), rules)

    def validate_cell(self, cell: Cell, cell_type: str, where: str) -> None:
        """Check the cell as DARTS' is, and that each edge holds an operation that it offers.

        Raises:
            InputError: If the cell is none of this space. The message names the field, after
                `where`.
        """
        super().validate_cell(cell, cell_type, where)
        offered = dict(zip(self.edges, OPERATIONS_BY_EDGE[self.space][cell_type], strict=True))
        for i, edge in enumerate(cell.edges):
            # A genotype of more nodes than the space has holds edges that offer nothing.
            operations = offered.get((edge.node, edge.input), ())
            if edge.candidate.op not in operations:
                raise InputError(
                    f"{where}.edges[{i}].op: expected {' or '.join(operations) or 'no edge'} from "
                    f"node {edge.input} to {edge.node} in {self.space}, found {edge.candidate.op}"
                )
