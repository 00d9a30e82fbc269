"""A bound on a cost: the share of it that an architecture is allowed, hit by a multiplier.

A price on a cost moves all edges at once: below some value it changes nothing, above it every edge
pays. What a user wants is a share, such as weight transport in at most three tenths of the
parameters, spent where it helps most. That is a constrained problem,

    minimize L_val(alpha)   such that   E[part](alpha) <= share * E[whole](alpha)

with both costs linear in the candidates' shares of their edges. Its Lagrangian adds

    multiplier * E[part - share * whole] / (whole of equal shares)

to the loss. The multiplier rises while too much is spent and falls while too little is: dual
ascent, on its logarithm, since nobody knows its scale beforehand. Alone it would swing for long; a
spring, by which each excess counts at once too, brings it to rest. Where edges differ in what a
transport is worth to them, those to which it is worth less give way first.

Alpha's shares are not yet a genotype: there each edge has one candidate. `Bound.hold` rounds them to
one that spends what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.networks import EdgeWeights
from darts_bio.spaces import Candidate, CandidateTable, Cell, Edge, Space
from darts_bio.spaces.base import by_operation

RATE, SPRING = 0.3, 10.0
"""What a unit of share in excess adds to the multiplier's logarithm: in each step, and at once."""
FIRST = 0.01
"""The multiplier at the beginning."""
RANGE = (1e-6, 1e3)
"""Bounds of the multiplier: beyond them no alpha would notice it for long."""
ROUNDING = 1e-6
"""What counts as nothing left over, in units of the cost, which is a number of parameters."""
TINY = 1e-300
"""The weight that a rule without any has, where logarithms are compared."""


def expected(shares: EdgeWeights, cost: Mapping[str, Tensor]) -> Tensor:
    """Return the expected cost of shares (..., edges, candidates) per cell type: (...)."""
    return torch.stack([(shares[t] * of_type).sum((-2, -1)) for t, of_type in cost.items()]).sum(0)


class Bound:
    """The largest share that one cost may have of another, and its multiplier.

    Args:
        name: The cost that is bounded.
        share: The largest share of it, a fraction below 1.
        part: That cost of each candidate, (edges, candidates) per cell type, in float64.
        whole: What it is a share of, likewise.
        space: The space that is searched.
        table: Its candidates.
        device: Where shares of alpha are.

    Raises:
        InputError: If there are operations whose rules do not allow to keep to the share.

    Two edges under bp or fa, of which the second counts three times as much; a quarter may be
    transported, and bp is worth most on the second:

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("darts(nodes=1, operations=(sep_conv_3x3,))")
    >>> table, cpu = space.table(["bp", "fa"]), torch.device("cpu")
    >>> whole = {t: torch.tensor([[1.0, 1.0], [3.0, 3.0]]).double() for t in table.rows}
    >>> part = {t: w * torch.tensor([1.0, 0.0]) for t, w in whole.items()}
    >>> bound = Bound("weight_transport", 0.25, part, whole, space, table, cpu)
    >>> weights = {t: torch.tensor([[0.6, 0.4], [0.7, 0.3]]) for t in table.rows}
    >>> cells = space.derive(weights, table)
    >>> bound.share_of(cells)
    1.0
    >>> print(bound.hold(cells, weights)["normal"])
      node 2: sep_conv_3x3:bp <- 0,  sep_conv_3x3:fa <- 1
    """

    def __init__(
        self,
        name: str,
        share: float,
        part: Mapping[str, Tensor],
        whole: Mapping[str, Tensor],
        space: Space,
        table: CandidateTable,
        device: torch.device,
    ) -> None:
        self.name, self.share = name, share
        self._part, self._whole, self._space, self._table = part, whole, space, table
        self._refuse_what_cannot_be_kept()
        scale = float(expected({t: table.equal_shares(t) for t in part}, whole))

        def lent(cost: Mapping[str, Tensor]) -> dict[str, Tensor]:
            dtype = torch.get_default_dtype()
            return {t: (c / scale).to(device=device, dtype=dtype) for t, c in cost.items()}

        self._scaled_part, self._scaled_whole = lent(part), lent(whole)
        self.log_multiplier = torch.tensor(math.log(FIRST), device=device)

    def _refuse_what_cannot_be_kept(self) -> None:
        """Raise InputError if some derived cell has a larger share whatever its rules are.

        That is so if an operation of some edge has, under each of its rules there, a larger share
        of its own.
        """
        for t, rows in self._table.rows.items():
            for e, row in enumerate(rows):
                for pool in by_operation(row):
                    columns = list(pool.columns)
                    part = float(self._part[t][e, columns].min())
                    whole = float(self._whole[t][e, columns].min())
                    if part > self.share * whole:
                        raise InputError(
                            f"--objective {self.name}: share: expected a rule for {pool.op} with no "
                            f"more than {self.share:g} of it, found {part / whole:.3g} at the least "
                            f"({', '.join(pool.rules)}, edge {e} of {t} cells); add a rule without "
                            "weight transport to --rules, or leave the operation out"
                        )

    def penalty(self, shares: EdgeWeights) -> Tensor:
        """Return what the bound adds to the loss: (...) for shares (..., edges, candidates)."""
        part, whole = expected(shares, self._scaled_part), expected(shares, self._scaled_whole)
        spring = SPRING * (part / whole - self.share).detach()
        multiplier = self._bounded(self.log_multiplier + spring).exp()
        return multiplier * (part - self.share * whole)

    @torch.no_grad()
    def expected_share(self, shares: EdgeWeights) -> Tensor:
        """Return the expected share of the cost: (...) for shares (..., edges, candidates)."""
        return expected(shares, self._scaled_part) / expected(shares, self._scaled_whole)

    @torch.no_grad()
    def adapt(self, shares: EdgeWeights) -> None:
        """Raise the multiplier if these shares of alpha spend too much, else lower it; in place."""
        excess = self.expected_share(shares) - self.share
        self.log_multiplier.copy_(self._bounded(self.log_multiplier + RATE * excess))

    @staticmethod
    def _bounded(log_multiplier: Tensor) -> Tensor:
        low, high = map(math.log, RANGE)
        return log_multiplier.clamp(low, high)

    def share_of(self, cells: Mapping[str, Cell]) -> float:
        """Return the share of the cost in derived cells."""
        part = whole = 0.0
        for place in self._places(cells):
            column = place.columns[place.candidates.index(place.edge.candidate)]
            part += float(self._part[place.cell_type][place.row, column])
            whole += float(self._whole[place.cell_type][place.row, column])
        return part / whole if whole else 0.0

    def hold(self, cells: Mapping[str, Cell], weights: EdgeWeights) -> dict[str, Cell]:
        """Return derived cells with rules that spend the share, and otherwise as they are.

        On each edge the strongest rule of least cost is compared with the strongest of all others.
        In the order of the logarithm of the quotient of both weights, edges take the dearer one as
        long as it fits into what is left. Where that is negative, the price made it so: what is
        allowed is spent in any case.

        Args:
            cells: The cells that the weights stand for.
            weights: The final weights of the strategy, (edges, candidates) per cell type.
        """
        left, offers = 0.0, []
        chosen: dict[tuple[str, Edge], Candidate] = {}
        for place in self._places(cells):
            t, row, columns = place.cell_type, place.row, place.columns
            costs = self._part[t][row, columns].tolist()
            strengths = weights[t][row, columns].tolist()
            least = min(costs)
            left += self.share * float(self._whole[t][row, columns[0]]) - least
            by_strength = sorted(range(len(costs)), key=lambda i: -strengths[i])
            cheap = next(i for i in by_strength if costs[i] == least)
            chosen[t, place.edge] = place.candidates[cheap]
            dear = next((i for i in by_strength if costs[i] > least), None)
            if dear is not None:
                gain = math.log(max(strengths[dear], TINY) / max(strengths[cheap], TINY))
                offers.append((gain, costs[dear] - least, place, place.candidates[dear]))
        for _, price, place, candidate in sorted(offers, key=lambda offer: -offer[0]):
            if price <= left + ROUNDING:
                left -= price
                chosen[place.cell_type, place.edge] = candidate
        return {
            t: replace(cell, edges=tuple(replace(e, candidate=chosen[t, e]) for e in cell.edges))
            for t, cell in cells.items()
        }

    def _places(self, cells: Mapping[str, Cell]) -> Iterator[_Place]:
        """Yield for each edge of derived cells what could stand there with its operation."""
        for t, cell in cells.items():
            for edge in cell.edges:
                row = self._space.edges.index((edge.node, edge.input))
                pools = by_operation(self._table.rows[t][row])
                pool = next(pool for pool in pools if pool.op == edge.candidate.op)
                if edge.candidate.rule is None:  # no weights, whatever rules its candidates had
                    yield _Place(t, edge, row, list(pool.columns[:1]), [edge.candidate])
                else:
                    candidates = [Candidate(pool.op, rule) for rule in pool.rules]
                    yield _Place(t, edge, row, list(pool.columns), candidates)


class _Place(NamedTuple):
    """An edge of a derived cell, and the candidates of its operation.

    Attributes:
        cell_type: The type of the cell.
        edge: The edge as it was derived.
        row: The index of its row in the table.
        columns: The columns of the candidates in that row.
        candidates: These candidates.
    """

    cell_type: str
    edge: Edge
    row: int
    columns: list[int]
    candidates: list[Candidate]
