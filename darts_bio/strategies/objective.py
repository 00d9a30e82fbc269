"""The objective of a search: the validation loss, and what an architecture costs.

A cost is a number for each candidate on each edge; the shares of alpha make it an expected cost,
differentiable in alpha. It is counted relative to the cost of equal shares, so that a weight of 0.1
means: an architecture that costs twice as much as the average one is worth it if its loss is lower
by 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number
from darts_bio.networks import EdgeWeights, build_candidate, multiply_adds, parameters
from darts_bio.registry import Registry, parse_spec
from darts_bio.rules import audit
from darts_bio.spaces import Candidate, CandidateTable, Space


@dataclass(frozen=True)
class Place:
    """Where a candidate stands in the network that is derived: `size` is (height, width) of its
    input.
    """

    candidate: Candidate
    channels: int
    stride: int
    size: tuple[int, int]

    def build(self) -> nn.Module:
        return build_candidate(self.candidate, self.channels, self.stride, supernet=False)


COSTS: Registry[Callable[[Place], float]] = Registry("cost")


@COSTS.register("parameters")
def _parameters(place: Place) -> float:
    """Parameters of the cells' operations."""
    return float(parameters(place.build()))


@COSTS.register("multiply_adds")
def _multiply_adds(place: Place) -> float:
    """Multiply-adds a sample of the cells' operations (convolutions and linear layers)."""
    module = place.build()
    return float(multiply_adds(module, lambda: module(torch.zeros(1, place.channels, *place.size))))


@COSTS.register("weight_transport")
def _weight_transport(place: Place) -> float:
    """Parameters of layers whose own weights carry the error down, as `audit` counts them."""
    return float(audit(place.build()).transported)


class Objective:
    """The weighted costs of an objective such as `("parameters(weight=0.1)",)`.

    `penalty(shares)` maps shares (..., edges, candidates) per cell type to the sum (...).
    """

    def __init__(
        self,
        specs: Sequence[str],
        space: Space,
        table: CandidateTable,
        *,
        channels: int,
        layers: int,
        image_size: tuple[int, int],
        device: torch.device,
    ) -> None:
        """Raises InputError for an unknown cost, a bad weight, or a cost that no candidate has."""
        self.tables: list[tuple[float, Mapping[str, Tensor]]] = []
        for spec in specs:
            name, options = parse_spec(spec)
            cost = COSTS.get(name)
            if set(options) != {"weight"}:
                raise InputError(f"--objective: expected {name}(weight=...), found {spec}")
            check_number(f"--objective {name}: weight", options["weight"], above=0)
            values = _table(cost, space, table, channels, layers, image_size)
            average = sum(float((v * _equal_shares(table, t)).sum()) for t, v in values.items())
            if average == 0:
                raise InputError(
                    f"--objective {name}: no candidate of this search has that cost; leave it out"
                )
            scaled = {
                t: (v / average).to(device=device, dtype=torch.get_default_dtype())
                for t, v in values.items()
            }
            self.tables.append((float(options["weight"]), scaled))

    def penalty(self, shares: EdgeWeights) -> Tensor:
        first = next(iter(shares.values()))
        total = first.new_zeros(first.shape[:-2])
        for weight, table in self.tables:
            for cell_type, cost in table.items():
                total = total + weight * (shares[cell_type] * cost).sum((-2, -1))
        return total


def _equal_shares(table: CandidateTable, cell_type: str) -> Tensor:
    mask = table.mask(cell_type).double()
    return mask / mask.sum(1, keepdim=True)


def _table(
    cost: Callable[[Place], float],
    space: Space,
    table: CandidateTable,
    channels: int,
    layers: int,
    image_size: tuple[int, int],
) -> dict[str, Tensor]:
    """Per cell type (edges, candidates): the cost in all layers of that type together."""
    reductions, (height, width) = space.reductions(layers), image_size
    known: dict[Place, float] = {}
    values = {t: torch.zeros(table.shape(t), dtype=torch.float64) for t in table.rows}
    before = (height, width)
    for layer, cell_type in enumerate(space.plan(layers)):
        if layer in reductions:
            channels, before, (height, width) = (
                2 * channels,
                (height, width),
                (-(-height // 2), -(-width // 2)),
            )
        for e, (_, source) in enumerate(space.edges):
            stride = space.stride(cell_type, source)
            size = before if stride > 1 else (height, width)
            for i, candidate in enumerate(table.rows[cell_type][e]):
                if candidate is not None:
                    place = Place(candidate, channels, stride, size)
                    if place not in known:
                        known[place] = cost(place)
                    values[cell_type][e, i] += known[place]
    return values
