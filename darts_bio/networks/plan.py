"""The plan of a batched cell: which candidates are computed together, and where their weights go.

The edges that leave one node of a supernet's cell read the same maps. A `BlockPlan` stands for all
of them that have the same candidates. It has a `Part` for each operation (several, if its
candidates differ in more than their rules), which is computed in one of three ways:

    stacked   the same layers under R rules, on E edges: R*E members side by side in each layer
    shared    layers without weights: computed once, whatever the rules and edges; a batch norm
              behind them likewise, unless the part is joined
    alone     anything else: one candidate after the other, as in the reference

Stacked parts that end with a pointwise convolution and a batch norm (after another convolution),
and shared parts that end with a batch norm, are *joined*, if these norms are alike: one serves all
of them, with the edge weights as its gain. (`FoldedCell` computes joined parts one by one.)
Candidates that carry nothing (`none`) take no part, unless there are no others.

A *lane* is one candidate on one edge: the place where its weight is needed. (The lanes of a stacked
part are its members.) Lanes are numbered through the cell in the order part, candidate, edge;
`CellPlan.lane_order` says which entry of the (edges, candidates) weights each lane is handed.

A plan is plain data. Here are two input nodes and one node that both lead to, by one edge each:

>>> from darts_bio.networks import SuperNet
>>> from darts_bio.spaces import SPACES
>>> operations = "none, skip_connect, max_pool_3x3, sep_conv_3x3, dil_conv_3x3"
>>> space = SPACES.build(f"darts(nodes=1, operations=({operations}))")
>>> net = SuperNet(space, ("fa", "usf"), channels=4, layers=3, num_classes=10)
>>> print(net.cells[0].plan)
node 0, stride 1, by edge 0 to node 2
    max_pool_3x3   shared, joined    lane 0
    sep_conv_3x3   stacked, joined   lanes 1 to 2: fa, usf
    dil_conv_3x3   stacked, joined   lanes 3 to 4: fa, usf
    skip_connect   shared            lane 5
node 1, stride 1, by edge 1 to node 2
    max_pool_3x3   shared, joined    lane 6
    sep_conv_3x3   stacked, joined   lanes 7 to 8: fa, usf
    dil_conv_3x3   stacked, joined   lanes 9 to 10: fa, usf
    skip_connect   shared            lane 11

The weights of edge 0 are those of none, skip_connect, max_pool_3x3, sep_conv_3x3 under fa and under
usf, dil_conv_3x3 under both. Lane 0 takes entry 2:

>>> net.cells[0].plan.lane_order[:6]
(2, 3, 4, 5, 6, 1)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from darts_bio.networks.forms import Form, without_rules
from darts_bio.spaces import Space
from darts_bio.spaces.base import Row

Way = Literal["stacked", "shared", "alone"]
WAYS: tuple[Way, ...] = ("stacked", "shared", "alone")
"""In the order in which a block computes parts that are not joined; joined ones come first."""


@dataclass(frozen=True)
class Part:
    """One operation on the E edges that leave a node.

    `columns` are the places of its candidates in the row of edge weights, and `rules` the names of
    their rules, None where the operation has no weights.
    """

    operation: str
    way: Way
    joined: bool
    columns: tuple[int, ...]
    rules: tuple[str | None, ...]
    edges: int

    @property
    def lanes(self) -> list[tuple[int, int]]:
        """(edge, column) of each lane: candidate by candidate, and for each edge by edge."""
        return [(edge, column) for column in self.columns for edge in range(self.edges)]


@dataclass(frozen=True)
class BlockPlan:
    """The edges that leave the node `source`: edge `edges[e]` leads to the node `targets[e]`."""

    source: int
    stride: int
    edges: tuple[int, ...]
    targets: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class CellPlan:
    """The blocks of a cell in the order of their sources, and the width of a row of weights."""

    blocks: tuple[BlockPlan, ...]
    candidates: int

    @property
    def lane_order(self) -> tuple[int, ...]:
        """For each lane its entry in the flattened (edges, candidates) weights."""
        return tuple(
            block.edges[edge] * self.candidates + column
            for block in self.blocks
            for part in block.parts
            for edge, column in part.lanes
        )

    def __str__(self) -> str:
        lines, lane = [], 0
        for block in self.blocks:
            edges = " and ".join(
                f"edge {edge} to node {node}"
                for edge, node in zip(block.edges, block.targets, strict=True)
            )
            lines.append(f"node {block.source}, stride {block.stride}, by {edges}")
            for part in block.parts:
                last = lane + len(part.lanes) - 1
                numbers = f"lane {lane}" if last == lane else f"lanes {lane} to {last}"
                rules = ", ".join(rule for rule in part.rules if rule is not None)
                text = f"{numbers}: {rules}" if rules else numbers
                way = f"{part.way}, joined" if part.joined else part.way
                lines.append(f"    {part.operation:<14} {way:<17} {text}")
                lane = last + 1
        return "\n".join(lines)


def plan_cell(
    space: Space, cell_type: str, rows: Sequence[Row], forms: Sequence[Sequence[Form]]
) -> CellPlan:
    """Plan a cell from the forms of its candidates.

    Args:
        space: the space, which says which edges there are.
        cell_type: the type of the cell, which decides the strides.
        rows: the candidates of each edge.
        forms: for each edge the forms of its candidates, without those that pad the row.
    """
    # Edges with different candidates are in different blocks, though they leave the same node.
    leaving: dict[tuple[int, Row], list[int]] = {}
    for edge, (_, source) in enumerate(space.edges):
        leaving.setdefault((source, rows[edge]), []).append(edge)
    by_source = sorted(leaving.items(), key=lambda item: item[0][0])
    blocks = [
        BlockPlan(
            source,
            space.stride(cell_type, source),
            tuple(edges),
            tuple(space.edges[edge][0] for edge in edges),
            tuple(plan_parts(row, [forms[edge] for edge in edges])),
        )
        for (source, row), edges in by_source
    ]
    return CellPlan(tuple(blocks), len(rows[0]))


def plan_parts(row: Row, forms: Sequence[Sequence[Form]]) -> list[Part]:
    """Plan the edges that leave a node: `forms[e][column]` is that of a candidate on edge e.

    Joined parts come first, those without dilation before the others, whose pixels lie in another
    order (`networks.parts.JoinedOperations`); then the others in the order of `WAYS`. Where all
    that is equal, the order is that of the operations in the row.
    """
    columns = [column for column, candidate in enumerate(row) if candidate is not None]
    nonzero = [column for column in columns if not _is_zero([edge[column] for edge in forms])]
    groups: dict[object, _Group] = {}
    # Where all candidates are `none`, they are run, for zeros of the right shape.
    for column in nonzero or columns:
        candidate = row[column]
        assert candidate is not None
        members = [edge[column] for edge in forms]
        way = _way(members)
        shape = None if way == "alone" else without_rules(members[0])
        key = (candidate.op, way, shape)
        groups.setdefault(key, _Group(way, members[0], [])).columns.append(column)
    # Joined parts share one batch norm. Parts whose norm differs from that of the first one that
    # could join (in its eps, say) are not joined.
    norms = [group.form[-1] for group in groups.values() if group.can_join]
    planned = [(group, group.can_join and group.form[-1] == norms[0]) for group in groups.values()]
    planned.sort(key=_in_order)
    return [_part(row, group, joined, len(forms)) for group, joined in planned]


class _Group(NamedTuple):
    """Candidates of one operation that are computed in one way."""

    way: Way
    form: Form
    columns: list[int]

    @property
    def can_join(self) -> bool:
        """Whether its last batch norm, and a product before it, can serve other operations too."""
        kinds = [layer.kind for layer in self.form]
        if self.way == "alone" or kinds[-1:] != ["norm"]:
            return False
        if self.way == "shared":
            return len(kinds) > 1 and kinds.count("norm") == 1
        # A stacked part's last product is computed together with those of other parts, which takes
        # an input for each member. Members' common input becomes one by the first convolution, so
        # the product cannot be the first.
        return self.form[-2].is_product and not {"convolution", "even and odd"}.isdisjoint(
            kinds[:-2]
        )


def _in_order(planned: tuple[_Group, bool]) -> tuple[bool, int, int]:
    group, joined = planned
    return not joined, 0 if joined else WAYS.index(group.way), _dilation(group.form)


def _part(row: Row, group: _Group, joined: bool, edges: int) -> Part:
    candidates = [candidate for column in group.columns if (candidate := row[column]) is not None]
    rules = tuple(candidate.rule for candidate in candidates)
    return Part(candidates[0].op, group.way, joined, tuple(group.columns), rules, edges)


def _is_zero(members: Iterable[Form]) -> bool:
    return all([layer.kind for layer in form] == ["zero"] for form in members)


def _dilation(form: Form) -> int:
    """Return the largest dilation among the convolutions, 1 if there is none."""
    return max([max(layer.dilation) for layer in form if layer.kind == "convolution"], default=1)


def _way(members: Sequence[Form]) -> Way:
    """Choose how a candidate is computed, from its forms on the edges that leave the node."""
    form = members[0]
    return "alone" if any(other != form for other in members) else way_of(form)


def way_of(form: Form) -> Way:
    """Choose how a candidate of that form is computed, if it is of that form on all edges.

    >>> from darts_bio.networks.forms import LayerForm
    >>> way_of((LayerForm("weightless", ("MaxPool2d()",)), LayerForm("norm", (4, 1e-5, 0.1))))
    'shared'
    """
    if all(layer.kind in ("weightless", "norm") for layer in form):
        return "shared"
    return "stacked" if _stacks(form) else "alone"


def _stacks(form: Form) -> bool:
    """Tell whether members of this form can stand side by side.

    Their common input is repeated for each of them by their first convolution, so nothing but ReLUs
    may come before it.
    """
    after_relus = [layer for layer in form if layer.kind != "relu"]
    if not after_relus or after_relus[0].kind not in ("convolution", "even and odd"):
        return False
    known = all(layer.kind in ("convolution", "norm") for layer in after_relus[1:])
    return known and all(rule.batched for layer in form for rule in layer.rules)
