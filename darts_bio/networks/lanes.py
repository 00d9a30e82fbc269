"""Whose weights are whose in a supernet: the rows of its parameters, operation by operation.

In a batched cell the weights of many candidates stand in one parameter, member by member
(`networks.stacking`). What treats a candidate's weights as a whole (comparing its gradients,
keeping it as it is) finds them here, in whatever form the cells are.

An *operation* is what has weights of its own: a candidate on an edge of one cell. Where rules share
weights, all candidates of an operation on that edge are one.

>>> from darts_bio.networks import SuperNet
>>> from darts_bio.spaces import SPACES
>>> space = SPACES.build("darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))")
>>> net = SuperNet(space, ("fa", "usf"), channels=4, layers=3, num_classes=10)
>>> owned = net.owned_weights()
>>> [str(operation) for operation in owned.operations[:2]]
['cell 0 (normal), edge 0, sep_conv_3x3:fa', 'cell 0 (normal), edge 0, sep_conv_3x3:usf']
>>> first = owned.weights[0]  # a layer of two members, from the input node of edge 0
>>> tuple(first.parameter.shape), first.owners, first.rows
((8, 1, 3, 3), (0, 1), 4)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_bio.networks.mixed import MixedCell, SourceBlock
from darts_bio.networks.reference import ReferenceCell
from darts_bio.networks.stacking import member_place
from darts_bio.rules import learned_feedback
from darts_bio.rules.shared_feedback import FlatFeedback
from darts_bio.rules.stacked import StackedConv2d
from darts_bio.spaces.base import Row, by_operation


@dataclass(frozen=True)
class Operation:
    """An operation of a supernet that has weights of its own.

    Attributes:
        cell: The number of its cell in the network.
        cell_type: The type of that cell.
        edge: The number of its edge in the cell.
        name: The operation, such as sep_conv_3x3.
        rules: Its rule, or the rules that share its weights.
        columns: The columns of these candidates in the edge weights.
    """

    cell: int
    cell_type: str
    edge: int
    name: str
    rules: tuple[str, ...]
    columns: tuple[int, ...]

    def __str__(self) -> str:
        rules = " + ".join(self.rules)
        return f"cell {self.cell} ({self.cell_type}), edge {self.edge}, {self.name}:{rules}"


class OwnedRows(NamedTuple):
    """A parameter (M*rows, ...), and the numbers of the operations that own its M lanes.

    An operation owns `rows` successive rows for each time its number stands in `owners`.
    """

    parameter: nn.Parameter
    owners: tuple[int, ...]
    rows: int

    def by_row(self) -> Tensor:
        """Return the number of the operation of each row: (M*rows,), on the CPU."""
        return torch.tensor(self.owners).repeat_interleave(self.rows)


class OwnedFeedback(NamedTuple):
    """A parameter that is feedback, learned as weights are, and the operation of each of its rows."""

    parameter: nn.Parameter
    rows: Tensor

    def by_row(self) -> Tensor:
        """Return the number of the operation of each row, on the CPU."""
        return self.rows


class OwnedWeights(NamedTuple):
    """The operations of a supernet, ordered by cell, edge and column, and what they own."""

    operations: list[Operation]
    weights: list[OwnedRows]
    feedback: list[OwnedFeedback]


def owned_weights(
    cell_types: Sequence[str],
    cells: Sequence[nn.Module],
    rows: Mapping[str, Sequence[Row]],
    feedback: Sequence[nn.Module],
    shared: bool,
) -> OwnedWeights:
    """Find the operations of a supernet's cells, and their rows of its parameters.

    Args:
        cell_types: The type of each cell.
        cells: The cells, in any of their forms.
        rows: The candidates of each edge, by cell type.
        feedback: The feedback that cells share (`SharedFeedback`).
        shared: Whether the rules of an operation share its weights.
    """
    found: dict[tuple[int, int, int], list[tuple[nn.Parameter, int]]] = {}
    homes: dict[StackedConv2d, int] = {}
    for number, cell in enumerate(cells):
        for layer in cell.modules():
            if isinstance(layer, StackedConv2d):
                homes[layer] = number
        for edge, place, parameter, lane in _lanes(cell):
            found.setdefault((number, edge, place), []).append((parameter, lane))
    places = sorted(found)
    numbers = {place: number for number, place in enumerate(places)}
    operations = [
        _operation(cell, cell_types[cell], edge, place, rows[cell_types[cell]][edge], shared)
        for cell, edge, place in places
    ]
    by_parameter: dict[nn.Parameter, dict[int, int]] = {}
    for home, lanes in found.items():
        for parameter, lane in lanes:
            by_parameter.setdefault(parameter, {})[lane] = numbers[home]
    learned: dict[nn.Parameter, None] = {}
    for module in [*cells, *feedback]:
        learned |= dict.fromkeys(learned_feedback(module))
    weights, of_feedback = [], []
    for parameter, owners in by_parameter.items():
        in_order = tuple(owners[lane] for lane in range(len(owners)))
        owned = OwnedRows(parameter, in_order, len(parameter) // len(owners))
        if parameter in learned:
            of_feedback.append(OwnedFeedback(parameter, owned.by_row()))
        else:
            weights.append(owned)
    for module in feedback:
        for carrier in module.modules():
            if isinstance(carrier, FlatFeedback):
                owners_of_flat = _owners_of_flat(carrier, homes, numbers)
                of_feedback += [
                    OwnedFeedback(value, owners_of_flat)
                    for value in carrier.feedback.values()
                    if isinstance(value, nn.Parameter)
                ]
    return OwnedWeights(operations, weights, of_feedback)


def _lanes(cell: nn.Module) -> Iterator[tuple[int, int, nn.Parameter, int]]:
    """Yield (edge, place on it, parameter, number of the lane in it) of a cell's weights.

    The place is a column, or where rules share weights the number of the operation.
    """
    if isinstance(cell, ReferenceCell):
        for edge, candidates in enumerate(cell.edges):
            assert isinstance(candidates, nn.ModuleList)
            for place, module in enumerate(candidates):
                for parameter in module.parameters():
                    yield edge, place, parameter, 0
        return
    assert isinstance(cell, MixedCell)
    for layer in cell.stacked_layers():
        for lane, name in enumerate(layer.names):
            yield *member_place(name), layer.weight, lane
    for block in cell.blocks:
        assert isinstance(block, SourceBlock)
        for name, module in zip(block.names, block.alone, strict=True):
            for parameter in module.parameters():
                yield *member_place(name), parameter, 0


def _operation(
    cell: int, cell_type: str, edge: int, place: int, row: Row, shared: bool
) -> Operation:
    if shared:
        pool = by_operation(row)[place]
        return Operation(cell, cell_type, edge, pool.op, tuple(pool.rules), tuple(pool.columns))
    candidate = row[place]
    assert candidate is not None
    rules = () if candidate.rule is None else (candidate.rule,)
    return Operation(cell, cell_type, edge, candidate.op, rules, (place,))


def _owners_of_flat(
    carrier: FlatFeedback,
    homes: dict[StackedConv2d, int],
    numbers: dict[tuple[int, int, int], int],
) -> Tensor:
    """Return the number of the operation of each entry of a flat feedback."""
    owners = []
    for number in carrier.order:
        layer = carrier.layers[number]
        of_rule = layer.members // len(layer.rules)
        names = layer.names[carrier.number * of_rule :][:of_rule]
        own = [numbers[(homes[layer], *member_place(name))] for name in names]
        owners.append(torch.tensor(own).repeat_interleave(layer.weight.numel() // layer.members))
    return torch.cat(owners)
