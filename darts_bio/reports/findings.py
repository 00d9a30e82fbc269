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
from darts_bio.reports.choices import undecided_in_words
from darts_bio.reports.collapse import Collapse, collapse_of
from darts_bio.reports.decisions import (
    Decision,
    decisions,
    edges_compete,
    hardly_left_out,
    mostly_undecided,
    operations_first,
)
from darts_bio.reports.markdown import counted
from darts_bio.reports.rules_of_cells import transport_in_words
from darts_bio.reports.time_lapse import edge_shares, epochs_unchanged
from darts_bio.spaces import SPACES, CandidateTable, Genotype, Space
from darts_bio.storage.logs import ALPHA_FILE, read_records
from darts_bio.strategies import STRATEGIES
from darts_bio.training.search import Search

IN_SHORT = "In short"
"""The heading of what is said first."""
MOST_CHANGES = 6
"""The last changes of a genotype that are named by their epochs."""
UNSETTLED_SHARE = 10
"""A genotype is not settled that changed within the last of so many parts of a search."""


@dataclass(frozen=True)
class Findings:
    """What a search found, and how sure it is of it.

    Attributes:
        space: The space of the search.
        genotype: What it found.
        decided: What was decided on each edge; empty of a strategy that has no shares.
        history: The records of alpha.jsonl; none of a search that trains nothing.
        close: The edges that were hardly left out; none where edges compete by shares of their own,
            which are not recorded.
    """

    space: Space
    genotype: Genotype
    decided: Sequence[Decision] = ()
    history: Sequence[Mapping[str, Any]] = ()
    close: Sequence[str] = ()

    @cached_property
    def collapse(self) -> Collapse:
        """How much of the genotype has no weights."""
        return collapse_of(self.space, self.genotype)

    @property
    def undecided(self) -> bool:
        """Whether more than half of the edges are undecided."""
        return mostly_undecided(self.decided)

    @property
    def unsettled(self) -> bool:
        """Whether the genotype changed in the last epoch, or in the last tenth of the epochs."""
        epochs = len(self.history)
        unchanged = epochs_unchanged(self.history) if self.history else epochs
        # One that is as it was in the first epoch has never changed.
        return unchanged < epochs and unchanged - 1 < max(1, epochs / UNSETTLED_SHARE)

    def verdicts(self) -> list[str]:
        """Return entries of a list: did it collapse, is it decided, settled, what are its rules?"""
        lines = [f"- {self.collapse.in_words()}"]
        if self.decided:
            lines.append(f"- **Undecided?** {undecided_in_words(self.decided, self.close)}")
        if self.history:
            lines.append(f"- **Settled?** {_settled(self)}")
        return [*lines, f"- **Weight transport?** {transport_in_words(self.genotype)}"]


def of_search(search: Search, genotype: Genotype, history: Sequence[Mapping[str, Any]]) -> Findings:
    """Return what a search with a supernet found.

    A strategy that draws is sure of everything, so nothing counts as decided by it.

    Args:
        search: The search.
        genotype: What it found.
        history: The records of alpha.jsonl.
    """
    if search.strategy.finished:
        return Findings(search.space, genotype, (), history)
    return _findings(search.config, search.table, genotype, edge_shares(search), history)


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
    return _findings(config, space.table(config.rules), genotype, shares, history)


def _findings(
    config: SearchConfig,
    table: CandidateTable,
    genotype: Genotype,
    shares: Mapping[str, Sequence[Sequence[float]]],
    history: Sequence[Mapping[str, Any]],
) -> Findings:
    """Return what these shares of a search say; `table` has the candidates that they are of."""
    space: Space = SPACES.build(config.space)
    factorised = operations_first(config)
    decided = decisions(space, table, genotype, shares, factorised)
    close: Sequence[str] = ()
    if not edges_compete(config):
        close = hardly_left_out(space, table, genotype, shares, factorised)
    return Findings(space, genotype, decided, history, close)


def unlearned(search: Search, epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return in words that a supernet learned nothing; "" where it did, or was not trained.

    It learned if its last epoch's loss is below that of a guess by which all classes are alike.

    Args:
        search: The search.
        epochs: The numbers of its epochs as metrics.jsonl has them.
    """
    guess = math.log(search.supernet.classifier.out_features)
    loss = epochs[-1]["train/loss"] if epochs else -math.inf
    if loss < guess:
        return ""
    return (
        f"the supernet has learned nothing: its loss on the training images was {loss:.5g} in the "
        f"last epoch, and that of a guess is {guess:.5g}, so the genotype is one of chance; search "
        f"with another --lr than {search.config.lr:g}, or longer"
    )


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


def _settled(found: Findings) -> str:
    """Return in words whether the genotype has settled, and in which epochs it changed."""
    history, epochs = found.history, len(found.history)
    changes = [
        after["epoch"]
        for before, after in pairwise(history)
        if before["genotype"] != after["genotype"]
    ]
    if epochs == 1:
        return "It cannot be told from one epoch."
    if not changes:
        return f"Yes: it has been the same from the first of {epochs} epochs on."
    named = ", ".join(map(str, changes[-MOST_CHANGES:]))
    which = f"the latest {MOST_CHANGES}: " if len(changes) > MOST_CHANGES else ""
    changed = f"in {len(changes)} of {counted(epochs, 'epoch')} ({which}{named})"
    if found.unsettled:
        return f"No: the genotype changed {changed}."
    return f"{unchanged_in_words(history).capitalize()}; it changed {changed}."


def unchanged_in_words(history: Sequence[Mapping[str, Any]]) -> str:
    """Return for how long the genotype of the records has been the same.

    >>> unchanged_in_words([{"genotype": "digest 1f"}, {"genotype": "digest 1f"}])
    'unchanged in the last epoch'
    """
    epochs = epochs_unchanged(history) - 1
    return f"unchanged in the last {'epoch' if epochs == 1 else f'{epochs} epochs'}"
