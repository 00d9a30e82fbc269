"""The objective of a search: the validation loss, and what an architecture costs.

A cost is a number for each candidate on each edge; the shares of alpha make it an expected cost,
differentiable in alpha:

    penalty = sum over costs of weight * (expected cost / cost of equal shares)

It is relative to the cost of equal shares, so that a weight of 0.1 means: an architecture that
costs twice as much as the average one is worth it if its loss is lower by 0.1. Where a cost is part
of another (`WHOLES`), a bound on its share of that can be asked for in place of a weight: `bound`
tells how it is kept.

A cost of one's own is a function of a candidate's place (in a module that `--plugin` names):

>>> from darts_bio.strategies import COSTS
>>> @COSTS.register("layers_of_doctest")
... def layers(place):
...     '''Layers of the cells' operations that have weights.'''
...     return sum(1 for m in place.build().modules() if hasattr(m, "weight"))
>>> COSTS.unregister("layers_of_doctest")

Those that there are:

>>> from darts_bio.spaces import Candidate
>>> place = Place(Candidate("sep_conv_3x3", "usf"), channels=16, stride=1, size=(8, 8))
>>> {name: COSTS.get(name)(place) for name in ("parameters", "multiply_adds", "weight_transport")}
{'parameters': 864.0, 'multiply_adds': 51200.0, 'weight_transport': 0.0}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number
from darts_bio.networks import EdgeWeights, build_candidate, multiply_adds, parameters
from darts_bio.registry import Registry, parse_spec
from darts_bio.rules import count_rules
from darts_bio.spaces import Candidate, CandidateTable, Space
from darts_bio.strategies.bound import Bound


@dataclass(frozen=True)
class Place:
    """Where a candidate stands in the discrete network, which is what a cost is a function of.

    `size` is (height, width) of its input, in pixels.
    """

    candidate: Candidate
    channels: int
    stride: int
    size: tuple[int, int]

    def build(self) -> nn.Module:
        """Build the candidate's operation as it is in the discrete network."""
        return build_candidate(self.candidate, self.channels, self.stride, supernet=False)


COSTS: Registry[Callable[[Place], float]] = Registry("cost")
"""What `--objective` may count: functions from a candidate's place to a number."""


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
    return float(count_rules(place.build()).transported)


WHOLES: dict[str, Callable[[Place], float]] = {
    "weight_transport": lambda place: float(count_rules(place.build()).parameters)
}
"""For a cost that is part of another: that other, of which a bound on its share can be asked for."""


class Objective:
    """The weighted costs that a search adds to its validation loss, and the bound it keeps.

    Args:
        specs: Costs and their weights, such as `("parameters(weight=0.1)",)`, or one with the share
            of the whole that it may have, such as `("weight_transport(share=0.3)",)`.
        space: The space that is searched.
        table: Its candidates.
        channels: The channels of a node in the first cell.
        layers: The number of cells.
        image_size: Height and width of the images, in pixels.
        device: Where shares of alpha are.

    Raises:
        InputError: For an unknown cost, a bad weight or share, a cost that no candidate has, or a
            second bound.

    At equal shares each cost is 1 times its weight:

    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import Objective
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> objective = Objective(
    ...     ["parameters(weight=0.1)"],
    ...     space,
    ...     table,
    ...     channels=4,
    ...     layers=3,
    ...     image_size=(8, 8),
    ...     device=cpu,
    ... )
    >>> round(objective.penalty({"cell": torch.full((6, 5), 1 / 5)}).item(), 4)
    0.1
    >>> [candidate.op for candidate in table.rows["cell"][0]]
    ['none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3']
    >>> only_skips = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).expand(6, 5)
    >>> objective.penalty({"cell": only_skips})
    tensor(0.)
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
        self.tables: list[tuple[float, Mapping[str, Tensor]]] = []
        """For each cost its weight, and the cost of each candidate, (edges, candidates) per cell
        type, relative to that of an average architecture."""
        self.bound: Bound | None = None
        """The bound that the search keeps, if there is one."""

        def table_of(cost: Callable[[Place], float]) -> dict[str, Tensor]:
            return _table(cost, space, table, channels, layers, image_size)

        for spec in specs:
            name, options = parse_spec(spec)
            cost = COSTS.get(name)
            bounded = set(options) == {"share"} and name in WHOLES
            if bounded:
                check_number(f"--objective {name}: share", options["share"], below=1)
                if self.bound is not None:
                    raise InputError(
                        f"--objective: expected one bound, found another, {spec}; leave one out"
                    )
            elif set(options) == {"weight"}:
                check_number(f"--objective {name}: weight", options["weight"], above=0)
            else:
                share_too = f" or {name}(share=...)" if name in WHOLES else ""
                raise InputError(
                    f"--objective: expected {name}(weight=...){share_too}, found {spec}"
                )
            values = table_of(cost)
            average = sum(float((v * table.equal_shares(t)).sum()) for t, v in values.items())
            if average == 0:
                way = "add bp to --rules, or " if name == "weight_transport" else ""
                raise InputError(
                    f"--objective {name}: no candidate of this search has that cost; {way}leave it "
                    "out"
                )
            if bounded:
                whole = table_of(WHOLES[name])
                share = float(options["share"])
                self.bound = Bound(name, share, values, whole, space, table, device)
                continue
            scaled = {
                t: (v / average).to(device=device, dtype=torch.get_default_dtype())
                for t, v in values.items()
            }
            self.tables.append((float(options["weight"]), scaled))

    def penalty(self, shares: EdgeWeights) -> Tensor:
        """Return the sum of the expected costs, each times its weight, and the bound's penalty.

        Args:
            shares: Each candidate's share of its edge, (..., edges, candidates) per cell type. What
                stands before the last two dimensions, such as individuals, is kept: (...).
        """
        first = next(iter(shares.values()))
        total = first.new_zeros(first.shape[:-2])
        for weight, table in self.tables:
            for cell_type, cost in table.items():
                total = total + weight * (shares[cell_type] * cost).sum((-2, -1))
        return total if self.bound is None else total + self.bound.penalty(shares)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what changes in a search: the logarithm of the bound's multiplier."""
        if self.bound is None:
            return {}
        return {"log_multiplier": self.bound.log_multiplier.clone()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        if self.bound is not None:
            self.bound.log_multiplier.copy_(saved["log_multiplier"])


def _table(
    cost: Callable[[Place], float],
    space: Space,
    table: CandidateTable,
    channels: int,
    layers: int,
    image_size: tuple[int, int],
) -> dict[str, Tensor]:
    """Return each candidate's cost in all layers of its cell type together.

    It is (edges, candidates) per cell type in float64, zero where the table is padded. Arguments
    are those of `Objective`.
    """
    reductions = space.reductions(layers)
    values = {t: torch.zeros(table.shape(t), dtype=torch.float64) for t in table.rows}
    # Most places occur many times, and measuring one takes building it.
    known: dict[Place, float] = {}
    # (height, width) of a layer's nodes, and of what its edges of stride 2 read.
    height, width = image_size
    size = before = (height, width)
    for layer, cell_type in enumerate(space.plan(layers)):
        if layer in reductions:
            channels *= 2
            before, size = size, (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
        for e, (_, source) in enumerate(space.edges):
            stride = space.stride(cell_type, source)
            for i, candidate in enumerate(table.rows[cell_type][e]):
                if candidate is None:  # padding, which stands at the end
                    break
                place = Place(candidate, channels, stride, before if stride > 1 else size)
                if place not in known:
                    known[place] = cost(place)
                values[cell_type][e, i] += known[place]
    return values
