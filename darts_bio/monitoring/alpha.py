"""Numbers that tell at a glance what a search is doing: what it prefers, and how sure it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from darts_bio.figures.drawing import Drawing
from darts_bio.figures.grid import draw_grid
from darts_bio.reports.decisions import competing_shares, decisions, evenness
from darts_bio.spaces import CandidateTable, Genotype, Space
from darts_bio.training.meters import Numbers

EdgeShares = Mapping[str, Sequence[Sequence[float]]]
"""The shares of alpha: `reports.time_lapse.edge_shares`."""


def alpha_numbers(
    space: Space, table: CandidateTable, genotype: Genotype, shares: EdgeShares, factorised: bool
) -> Numbers:
    """Return what the shares of alpha come to, by TensorBoard's tag.

    Cell types that differ by depth are taken together, as their kind.

    search/decided_edges   how many edges of the genotype are decided: their choice has 1.1 times the
                           runner-up's share or more (`reports.decisions.UNDECIDED_BELOW`)
    search/entropy/KIND    the mean over edges of the entropy of their shares, over that of equal
                           shares: 1 where nothing is decided, 0 where one candidate has all; with
                           factorised alpha that of the operations
    operations/KIND/NAME   the mean over edges of the share of an operation, under any rule
    rules/KIND/NAME        the same of a rule, in any operation; what is missing from 1 in their sum
                           are operations without weights

    Args:
        space: The space of the search.
        table: The candidates of each edge.
        genotype: What is derived from alpha.
        shares: The shares of alpha.
        factorised: Whether operations compete, and then the rules of the best one, in place of
            pairs (`reports.decisions`).

    >>> from darts_bio.spaces import SPACES
    >>> import torch
    >>> space = SPACES.build("nb201(operations=(skip_connect, nor_conv_1x1))")
    >>> table, rows = space.table(("usf",)), [[0.5, 0.5]] * 6
    >>> genotype = Genotype("nb201", space.derive({"cell": torch.tensor(rows)}, table))
    >>> numbers = alpha_numbers(space, table, genotype, {"cell": rows}, False)
    >>> numbers["search/entropy/cell"], numbers["rules/cell/usf"], numbers["search/decided_edges"]
    (1.0, 0.5, 0.0)
    """
    decided = decisions(space, table, genotype, shares, factorised)
    numbers = {"search/decided_edges": float(sum(not edge.undecided for edge in decided))}
    for kind, cell_types in _kinds(space, table).items():
        numbers[f"search/entropy/{kind}"] = fmean(
            evenness(list(competing_shares(row, of_edge, factorised).values()))
            for t in cell_types
            for row, of_edge in zip(table.rows[t], shares[t], strict=True)
        )
        operations, rules = _preferences(table, cell_types, shares)
        numbers |= {f"operations/{kind}/{name}": share for name, share in operations.items()}
        numbers |= {f"rules/{kind}/{name}": share for name, share in rules.items()}
    return numbers


def draw_by_depth(space: Space, table: CandidateTable, shares: EdgeShares) -> Drawing | None:
    """Draw the shares of operations and rules, a row for each cell from the first to the last.

    Returns None where cells do not differ by depth.
    """
    if all(space.kind(cell_type) == cell_type for cell_type in table.rows):
        return None
    by_cell = {t: _preferences(table, [t], shares) for t in table.rows}
    found = {t: {**operations, **rules} for t, (operations, rules) in by_cell.items()}
    operations, rules = (
        dict.fromkeys(name for each in by_cell.values() for name in each[part]) for part in (0, 1)
    )
    columns = [*operations, *rules]
    rows = {t: [of_cell.get(name) for name in columns] for t, of_cell in found.items()}
    most = max(share for of_cell in found.values() for share in of_cell.values())
    return draw_grid(
        "shares of operations and rules by depth", columns, rows, (0.0, most), "mean over edges"
    )


def _kinds(space: Space, table: CandidateTable) -> dict[str, list[str]]:
    """Return the cell types of each kind."""
    kinds: dict[str, list[str]] = {}
    for cell_type in table.rows:
        kinds.setdefault(space.kind(cell_type), []).append(cell_type)
    return kinds


def _preferences(
    table: CandidateTable, cell_types: Sequence[str], shares: EdgeShares
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean share of each operation, and of each rule, over the edges of cell types."""
    operations: dict[str, float] = defaultdict(float)
    rules: dict[str, float] = defaultdict(float)
    edges = 0
    for cell_type in cell_types:
        for row, of_edge in zip(table.rows[cell_type], shares[cell_type], strict=True):
            edges += 1
            candidates = [candidate for candidate in row if candidate is not None]
            for candidate, share in zip(candidates, of_edge, strict=True):
                operations[candidate.op] += share
                if candidate.rule is not None:
                    rules[candidate.rule] += share
    return (
        {name: total / edges for name, total in operations.items()},
        {name: total / edges for name, total in rules.items()},
    )
