"""Tell at the head of a search's report what it found: did it collapse, is it sure, which rules?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from darts_bio.config import SearchConfig
from darts_bio.reports.decisions import (
    Decision,
    decisions,
    mostly_undecided,
    operations_first,
    undecided_in_words,
)
from darts_bio.reports.rules_of_cells import transport_in_words
from darts_bio.reports.time_lapse import edge_shares, epochs_unchanged
from darts_bio.spaces import SPACES, Genotype, Space
from darts_bio.storage.logs import ALPHA_FILE, read_records
from darts_bio.strategies import STRATEGIES
from darts_bio.training.search import Search

IN_SHORT = "In short"
"""The heading of what is said first."""
SKIPS_OF_A_COLLAPSE = 2
"""Skip connections in a normal cell at which DARTS+ (arXiv 1909.06035) ends a search as collapsing."""
MOST_CHANGES = 6
"""The last changes of a genotype that are named by their epochs."""


@dataclass(frozen=True)
class Collapse:
    """How much of a genotype's cells has no weights.

    Attributes:
        kind: The kind of cell that most layers have, "normal" in DARTS' space.
        cell_type: The cell type of that kind which has most skips.
        skips: Its skip connections.
        edges: Its edges.
        pooled: Edges with a skip or a pooling in all cells of that kind, and how many edges those
            cells have.
        without: Edges without weights in all cells, and how many edges those have.

    >>> collapse = Collapse("normal", "normal", 2, 8, (3, 8), (4, 16))
    >>> collapse.marked, collapse.hollow
    (True, False)
    """

    kind: str
    cell_type: str
    skips: int
    edges: int
    pooled: tuple[int, int]
    without: tuple[int, int]

    @property
    def marked(self) -> bool:
        """Whether DARTS+ would have ended the search."""
        return self.skips >= SKIPS_OF_A_COLLAPSE

    @property
    def hollow(self) -> bool:
        """Whether most edges of the cells of that kind are skips or poolings."""
        return 2 * self.pooled[0] > self.pooled[1]

    def in_words(self) -> str:
        """Return it as an entry of the list at the head of a report."""
        without, edges = self.without
        answer = "Yes," if self.marked else "No,"
        if self.hollow and not self.marked:
            answer = f"Yes, most edges of {self.kind} cells have no weights; it has not"
        return (
            f"**Collapsed?** {answer} by DARTS+'s mark of {SKIPS_OF_A_COLLAPSE} skips: "
            f"{self.cell_type} has {self.skips} on {self.edges} edges. "
            f"Skips or poolings: {self.pooled[0]} of {self.pooled[1]} edges of {self.kind} cells. Of "
            f"all edges {without} of {edges} ({100 * without / max(1, edges):.0f} %) have no weights."
        )


@dataclass(frozen=True)
class Findings:
    """What a search found, and how sure it is of it.

    Attributes:
        space: The space of the search.
        genotype: What it found.
        decided: What was decided on each edge; empty of a strategy that has no shares.
        history: The records of alpha.jsonl; none of a search that trains nothing.
    """

    space: Space
    genotype: Genotype
    decided: Sequence[Decision] = ()
    history: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def collapse(self) -> Collapse:
        """How much of the genotype has no weights."""
        genotype = self.genotype
        kinds = {cell_type: self.space.kind(cell_type) for cell_type in genotype.cells}
        first = next(iter(kinds.values()))
        ops = {
            cell_type: [edge.candidate.op for edge in genotype.cells[cell_type].edges]
            for cell_type, kind in kinds.items()
            if kind == first
        }
        skips = {cell_type: of_cell.count("skip_connect") for cell_type, of_cell in ops.items()}
        most = max(skips, key=skips.__getitem__)
        of_kind = [op for of_cell in ops.values() for op in of_cell]
        pooled = sum(op == "skip_connect" or "pool" in op for op in of_kind)
        edges = [edge for cell in genotype.cells.values() for edge in cell.edges]
        without = sum(edge.candidate.rule is None for edge in edges)
        return Collapse(
            first,
            most,
            skips[most],
            len(ops[most]),
            (pooled, len(of_kind)),
            (without, len(edges)),
        )

    @property
    def undecided(self) -> bool:
        """Whether more than half of the edges are undecided."""
        return mostly_undecided(self.decided)

    @property
    def unsettled(self) -> bool:
        """Whether the genotype came up in the last epoch, after others."""
        return len(self.history) > 1 and epochs_unchanged(self.history) == 1

    def verdicts(self) -> list[str]:
        """Return entries of a list: did it collapse, is it decided, settled, what are its rules?"""
        lines = [f"- {self.collapse.in_words()}"]
        if self.decided:
            lines.append(f"- **Undecided?** {undecided_in_words(self.decided)}")
        if self.history:
            lines.append(f"- **Settled?** {_settled(self.history)}")
        return [*lines, f"- **Weight transport?** {transport_in_words(self.genotype)}"]


def of_search(search: Search, genotype: Genotype, history: Sequence[Mapping[str, Any]]) -> Findings:
    """Return what a search with a supernet found.

    A strategy that draws is sure of everything, so nothing counts as decided by it.

    Args:
        search: The search.
        genotype: What it found.
        history: The records of alpha.jsonl.
    """
    decided: Sequence[Decision] = ()
    if not search.strategy.finished:
        decided = decisions(
            search.space,
            search.table,
            genotype,
            edge_shares(search),
            search.strategy_state.context.factorised,
        )
    return Findings(search.space, genotype, decided, history)


def of_folder(config: SearchConfig, genotype: Genotype, folder: Path) -> Findings:
    """Return what was found in a search's folder, by the last of the records of alpha.jsonl.

    Where there are none, as of a search by queries, the genotype alone tells.
    """
    space: Space = SPACES.build(config.space)
    history = read_records(folder / ALPHA_FILE)
    if not history or STRATEGIES.build(config.strategy).finished:
        return Findings(space, genotype, (), history)
    shares = {
        cell_type: [[math.nan if share is None else share for share in row] for row in rows]
        for cell_type, rows in history[-1]["shares"].items()
    }
    table = space.table(config.rules)
    decided = decisions(space, table, genotype, shares, operations_first(config))
    return Findings(space, genotype, decided, history)


def in_short(first: Sequence[str], said: Sequence[str], last: Sequence[str]) -> list[str]:
    """Return the section at the head of a report.

    Args:
        first: Entries of its list before the verdicts: on what data it rests.
        said: The verdicts (`Findings.verdicts`).
        last: Entries after them: what the run took, how to repeat it, and what to do next.

    >>> in_short(["**Data:** digits."], ["- **Collapsed?** No."], ["**Cost:** 2 h"])[2:5]
    ['- **Data:** digits.', '- **Collapsed?** No.', '- **Cost:** 2 h']
    """
    before, after = ([f"- {entry}" for entry in entries] for entries in (first, last))
    return [f"## {IN_SHORT}", "", *before, *said, *after, ""]


def _settled(history: Sequence[Mapping[str, Any]]) -> str:
    """Return in words when the genotype changed, and for how long it has been the same."""
    unchanged, epochs = epochs_unchanged(history), len(history)
    since = history[-1]["epoch"] - unchanged + 1
    changes = [
        after["epoch"]
        for before, after in pairwise(history)
        if before["genotype"] != after["genotype"]
    ]
    named = ", ".join(map(str, changes[-MOST_CHANGES:]))
    last = f", the last {MOST_CHANGES}" if len(changes) > MOST_CHANGES else ""
    times = f"{len(changes)} time{'s' if len(changes) > 1 else ''}"
    which = f" It changed {times} in {epochs} epochs: in {named}{last}." if changes else ""
    if unchanged == 1:
        return f"It cannot be told: the genotype came up in the last epoch, {since}.{which}"
    return (
        f"The genotype is that of epoch {since}, and has not changed in the {unchanged - 1} epochs "
        f"since.{which}"
    )
