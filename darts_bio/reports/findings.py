"""Tell at the head of a search's report what it found: choices, runners-up, whether it collapsed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darts_bio.config import SearchConfig
from darts_bio.reports.markdown import code, markdown_table
from darts_bio.reports.time_lapse import edge_shares, epochs_unchanged
from darts_bio.spaces import SPACES, CandidateTable, Genotype, Space
from darts_bio.storage.logs import ALPHA_FILE, read_records
from darts_bio.strategies import STRATEGIES
from darts_bio.training.search import Search

IN_SHORT = "In short"
"""The heading of what is said first."""
SKIPS_OF_A_COLLAPSE = 2
"""Skip connections in a normal cell at which DARTS+ (arXiv 1909.06035) ends a search as collapsing."""
UNDECIDED_BELOW = 1.1
"""How many times the runner-up's share a choice has to have, not to count as undecided."""


@dataclass(frozen=True)
class Decision:
    """The candidate that was chosen on an edge of a genotype, and the runner-up.

    Attributes:
        cell_type: The type of the cell.
        edge: The edge, "input -> node".
        choice: The candidate that was chosen.
        share: Its share of the edge.
        runner_up: The strongest of the other candidates that could have been chosen; "-" if none.
        runner_up_share: Its share, 0 if there is none.
        barred: The strongest of the candidates that cannot be chosen, as `none`; "-" if none.
        barred_share: Its share, 0 if there is none.
        evenness: The entropy of the shares over that of equal shares: 1 where nothing was decided,
            0 where one candidate has it all.
    """

    cell_type: str
    edge: str
    choice: str
    share: float
    runner_up: str
    runner_up_share: float
    barred: str
    barred_share: float
    evenness: float

    @property
    def undecided(self) -> bool:
        """Whether the choice has not much more than the runner-up, or less."""
        return self.runner_up != "-" and self.share < UNDECIDED_BELOW * self.runner_up_share


def decisions(
    space: Space,
    table: CandidateTable,
    genotype: Genotype,
    shares: Mapping[str, Sequence[Sequence[float]]],
) -> list[Decision]:
    """Return what was decided on each edge of a genotype.

    Args:
        space: The space of the search.
        table: The candidates of each edge.
        genotype: What was derived.
        shares: `time_lapse.edge_shares` of the search.

    >>> from darts_bio.spaces import SPACES
    >>> import torch
    >>> space = SPACES.build("nb201(operations=(none, skip_connect, nor_conv_1x1))")
    >>> table, rows = space.table(("usf",)), [[0.2, 0.5, 0.3]] * 6
    >>> genotype = Genotype("nb201", space.derive({"cell": torch.tensor(rows)}, table))
    >>> first = decisions(space, table, genotype, {"cell": rows})[0]
    >>> first.edge, first.choice, first.runner_up, first.runner_up_share
    ('0 -> 1', 'skip_connect', 'nor_conv_1x1:usf', 0.3)
    """
    decided = []
    for cell_type, cell in genotype.cells.items():
        for edge in cell.edges:
            number = space.edges.index((edge.node, edge.input))
            row = [c for c in table.rows[cell_type][number] if c is not None]
            of_edge = shares[cell_type][number]
            share_of = dict(zip(row, of_edge, strict=True))
            # A skip without weights is derived without the rule that it may have in its row.
            taken = [c for c in row if c == edge.candidate] or [
                c for c in row if c.op == edge.candidate.op
            ]
            others = [c for c in row if c not in taken and space.selectable(c)]
            barred = [c for c in row if not space.selectable(c)]
            runner_up = max(others, key=share_of.__getitem__, default=None)
            strongest_barred = max(barred, key=share_of.__getitem__, default=None)
            decided.append(
                Decision(
                    cell_type,
                    f"{edge.input} -> {edge.node}",
                    str(edge.candidate),
                    max(share_of[candidate] for candidate in taken),
                    "-" if runner_up is None else str(runner_up),
                    0.0 if runner_up is None else share_of[runner_up],
                    "-" if strongest_barred is None else str(strongest_barred),
                    0.0 if strongest_barred is None else share_of[strongest_barred],
                    evenness(of_edge),
                )
            )
    return decided


def mostly_undecided(decided: Sequence[Decision]) -> bool:
    """Return whether more than half of the edges are undecided."""
    return 2 * sum(decision.undecided for decision in decided) > len(decided)


def choices(decided: Sequence[Decision]) -> list[str]:
    """Return the table of what was chosen on each edge, and by how much."""
    rows = [
        (
            decision.cell_type,
            decision.edge,
            decision.choice,
            f"{decision.share:.3f}",
            decision.runner_up,
            f"{decision.runner_up_share:.3f}",
            _ahead(decision),
        )
        for decision in decided
    ]
    head = (
        *("cell", "edge", "choice", "share of the pair on its edge"),
        *("runner-up", "share of that pair", "times the runner-up"),
    )
    lines = [*markdown_table(head, rows), ""]
    if any(decision.undecided for decision in decided):
        lines += [
            f"Undecided is what has less than {UNDECIDED_BELOW:g} times the runner-up's share: with "
            f"a softmax, less than {math.log(UNDECIDED_BELOW):.2f} between their alphas.",
            "",
        ]
    barred = [
        decision
        for decision in decided
        if decision.barred_share > max(decision.share, decision.runner_up_share)
    ]
    if barred:
        names = ", ".join(dict.fromkeys(code(decision.barred) for decision in barred))
        edges = ", ".join(
            f"{decision.cell_type} {decision.edge} ({decision.barred_share:.3f})"
            for decision in barred
        )
        lines += [
            f"Left out is {names}, which no cell may hold, though it has the largest share on "
            f"{len(barred)} of {len(decided)} edges: {edges}.",
            "",
        ]
    if any(decision.share < decision.runner_up_share for decision in decided):
        lines += [
            "Where a choice has less than the runner-up, something else than the share decided: the "
            "strategy, a regularizer or a bound.",
            "",
        ]
    return lines


def _ahead(decision: Decision) -> str:
    """Return how many times the runner-up's share a choice has, and whether that is undecided."""
    if not decision.runner_up_share > 0:
        return "-"
    times = f"{decision.share / decision.runner_up_share:.2f}"
    return f"{times}, undecided" if decision.undecided else times


def of_search(
    search: Search,
    genotype: Genotype,
    history: Sequence[Mapping[str, Any]],
    first: Sequence[str],
    last: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Return the sections on what a search found: the one at the head of its report, and the others.

    At the head it is said in short; the others are the table of choices and that of rules. A
    strategy that draws is sure of everything, so its choices are not listed.

    Args:
        search: The search.
        genotype: What it found.
        history: The records of alpha.jsonl.
        first: Entries of the list at the head before the verdicts (`in_short`).
        last: Entries after them.
    """
    decided = present_decisions(search, genotype)
    said = verdicts(search.space, genotype, decided, history)
    table = ["## Choices", "", *choices(decided)] if decided else []
    return in_short(first, said, last), [*table, *_rules(genotype)]


def in_short(first: Sequence[str], said: Sequence[str], last: Sequence[str]) -> list[str]:
    """Return the section at the head of a report.

    Args:
        first: Entries of its list before the verdicts: on what data it rests.
        said: The `verdicts`.
        last: Entries after them: what the run took, and what to do next.

    >>> in_short(["**Data:** digits."], ["- **Collapsed?** No."], ["**Cost:** 2 h"])[2:5]
    ['- **Data:** digits.', '- **Collapsed?** No.', '- **Cost:** 2 h']
    """
    before, after = ([f"- {entry}" for entry in entries] for entries in (first, last))
    return [f"## {IN_SHORT}", "", *before, *said, *after, ""]


def present_decisions(search: Search, genotype: Genotype) -> list[Decision]:
    """Return what was decided on each edge; none by a strategy that draws."""
    if search.strategy.finished:
        return []
    return decisions(search.space, search.table, genotype, edge_shares(search))


def recorded_decisions(
    config: SearchConfig, genotype: Genotype, history: Sequence[Mapping[str, Any]]
) -> list[Decision]:
    """Return what was decided on each edge, by the last of the records of alpha.jsonl.

    None without records, or from a strategy that draws and so is sure of everything.
    """
    strategy: Any = STRATEGIES.build(config.strategy) if history else None
    if strategy is None or strategy.finished:
        return []
    space: Space = SPACES.build(config.space)
    shares = {
        cell_type: [[math.nan if share is None else share for share in row] for row in rows]
        for cell_type, rows in history[-1]["shares"].items()
    }
    return decisions(space, space.table(config.rules), genotype, shares)


def of_folder(config: SearchConfig, genotype: Genotype, folder: Path) -> list[str]:
    """Return the `verdicts` on what was found in a search's folder.

    Where there is no alpha.jsonl, as of a search by queries, they tell of the genotype alone.
    """
    history = read_records(folder / ALPHA_FILE)
    space: Space = SPACES.build(config.space)
    return verdicts(space, genotype, recorded_decisions(config, genotype, history), history)


def verdicts(
    space: Space,
    genotype: Genotype,
    decided: Sequence[Decision],
    history: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Return entries of a list: did the search collapse, is it decided, has it settled?

    `decided` is empty for a strategy that has no shares; `history` are the records of alpha.jsonl.
    """
    lines = [f"- {_collapse(space, genotype)}"]
    if decided:
        undecided = sum(decision.undecided for decision in decided)
        evenness = sum(decision.evenness for decision in decided) / len(decided)
        lines.append(
            f"- **Undecided?** {'Yes: ' if mostly_undecided(decided) else ''}"
            f"{undecided} of {len(decided)} edges, whose choice has less than {UNDECIDED_BELOW:g} times "
            f"the runner-up's share. The shares' entropy is on average {evenness:.3f} (1: all equal; "
            "0: one has all)."
        )
    if history:
        unchanged, epoch = epochs_unchanged(history), history[-1]["epoch"]
        since = epoch - unchanged + 1
        lines.append(
            f"- **Settled?** The genotype is that of epoch {since}, and has not changed in the "
            f"{unchanged - 1} epochs since."
            if unchanged > 1
            else f"- **Settled?** It cannot be told: the genotype came up in the last epoch, {since}."
        )
    return lines


def _collapse(space: Space, genotype: Genotype) -> str:
    """Return a line on how much of the genotype has no weights."""
    kinds = {cell_type: space.kind(cell_type) for cell_type in genotype.cells}
    first = next(iter(kinds.values()))  # the kind that most layers have: normal in DARTS' space
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
    return (
        f"**Collapsed?** {'Yes' if skips[most] >= SKIPS_OF_A_COLLAPSE else 'No'}, by DARTS+'s mark of "
        f"{SKIPS_OF_A_COLLAPSE} skips: {most} has {skips[most]} on {len(ops[most])} edges. Skips or "
        f"poolings: {pooled} of {len(of_kind)} edges of {first} cells. Of all edges {without} of "
        f"{len(edges)} ({100 * without / max(1, len(edges)):.0f} %) have no weights."
    )


def _rules(genotype: Genotype) -> list[str]:
    """Return the section that counts the edges of each learning rule."""
    counts = {
        cell_type: Counter(edge.candidate.rule or "none (no weights)" for edge in cell.edges)
        for cell_type, cell in genotype.cells.items()
    }
    rules = sorted({rule for of_type in counts.values() for rule in of_type})
    rows = [(rule, *(str(of_type[rule]) for of_type in counts.values())) for rule in rules]
    head = ("learning rule", *(f"edges in {cell_type}" for cell_type in counts))
    without = Counter(
        edge.candidate.op
        for cell in genotype.cells.values()
        for edge in cell.edges
        if edge.candidate.rule is None
    )
    lines = ["## Which rule where", "", *markdown_table(head, rows), ""]
    if without:
        names = ", ".join(f"{count} {op}" for op, count in without.most_common())
        lines += [
            f"Without weights: {names}. Collapsed, by the mark of DARTS+ (arXiv 1909.06035), is a search "
            f"whose normal cell has {SKIPS_OF_A_COLLAPSE} or more skip connections.",
            "",
        ]
    return lines


def evenness(shares: Sequence[float]) -> float:
    """Return the entropy of shares over that of equal shares; 0 for a single candidate.

    >>> evenness([0.25] * 4), evenness([0.5, 0.5, 0.0, 0.0])
    (1.0, 0.5)
    """
    if len(shares) == 1:
        return 0.0
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    return entropy / math.log(len(shares))
