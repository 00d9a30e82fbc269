"""The words and tables on what a search decided: which edges are in doubt, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from darts_bio.reports.decisions import (
    UNDECIDED_BELOW,
    Contest,
    Decision,
    beaten,
    mostly_undecided,
)
from darts_bio.reports.markdown import code, markdown_table
from darts_bio.spaces import Genotype
from darts_bio.training.search import Search

MOST_NAMED = 6
"""The edges that are named at the head of a report."""


def undecided_in_words(decided: Sequence[Decision], close: Sequence[str] = ()) -> str:
    """Return in words on which edges the choice is hardly ahead, and how even the shares are.

    Args:
        decided: The decisions of a search, at least one.
        close: The edges that were hardly left out (`hardly_left_out`).
    """
    undecided = [decision for decision in decided if decision.undecided]
    lead = f"{UNDECIDED_BELOW:g} times the runner-up's share"
    if undecided:
        yes = "Yes, on" if mostly_undecided(decided) else "On"
        answer = (
            f"{yes} {len(undecided)} of {len(decided)} edges, whose choice has less than {lead}: "
            f"{_named(list(map(_doubt, undecided)))}."
        )
    else:
        answer = f"On no edge: each choice has {lead} or more."
    if close:
        answer += f" Hardly left out by their nodes: {_named(close)}."
    entropy = sum(decision.evenness for decision in decided) / len(decided)
    what = "operations" if decided[0].factorised else "pairs"
    return (
        f"{answer} The entropy of the {what}' shares on the kept edges is {entropy:.3f} on average "
        f"(1: all equal; 0: one has all)."
    )


def _doubt(decision: Decision) -> str:
    """Return the name of an undecided edge, and what is undecided there."""
    name = f"{decision.cell_type} {decision.edge}"
    if not decision.factorised:
        same = decision.main.runner_up.partition(":")[0] == decision.choice.op
        return f"{name} (its rule)" if same else name
    doubtful = ["operation"] if decision.main.undecided else []
    if decision.of_rules is not None and decision.of_rules.undecided:
        doubtful.append("rule")
    return f"{name} ({' and '.join(doubtful)})"


def _named(names: Sequence[str]) -> str:
    """Return names in a row, and how many more there are."""
    more = f"; and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return "; ".join(names[:MOST_NAMED]) + more


def choices(decided: Sequence[Decision]) -> list[str]:
    """Return the table of what was chosen on each edge, against what, and by how much.

    Args:
        decided: The decisions of a search, at least one.
    """
    factorised = decided[0].factorised
    what = "operation" if factorised else "pair"
    head = ["cell", "edge", f"{what}, share on its edge", "runner-up, share", "times the runner-up"]
    if factorised:
        head += ["rule, share given the operation", "runner-up, share", "times the runner-up"]
    rows = [_row(decision, len(head)) for decision in decided]
    lines = [*markdown_table(head, rows), ""]
    never = dict.fromkeys(code(decision.barred) for decision in decided if decision.barred != "-")
    if never:
        lines += [f"{', '.join(never)} cannot be chosen, and so is no runner-up.", ""]
    if any(decision.undecided for decision in decided):
        lines += [
            f"Undecided is what has less than {UNDECIDED_BELOW:g} times the runner-up's share: with "
            f"a softmax, less than {math.log(UNDECIDED_BELOW):.3f} between their alphas.",
            "",
        ]
    barred = [
        decision
        for decision in decided
        if decision.barred_share > max(decision.main.share, decision.main.runner_up_share)
    ]
    if barred:
        names = ", ".join(dict.fromkeys(code(decision.barred) for decision in barred))
        edges = ", ".join(
            f"{decision.cell_type} {decision.edge} ({decision.barred_share:.3f})"
            for decision in barred
        )
        lines += [
            f"Left out is {names}, though it has the largest share on {len(barred)} of {len(decided)} "
            f"edges: {edges}.",
            "",
        ]
    if any(contest.lost for decision in decided for contest in decision.contests):
        lines += [
            "Where a choice has less than the runner-up, something else than the share decided: the "
            "strategy, a regularizer or a bound.",
            "",
        ]
    return lines


def left_out(search: Search, genotype: Genotype) -> list[str]:
    """Return the lines on the edges that no cell of a genotype has, if the space drops any.

    By the rule of `Space.derive_cell`: a node keeps the edges of highest score, which is the share
    of an edge's winner times the number of its candidates, 1 where all are equal. With factorised
    alpha these are operations.
    """
    weights = search.strategy.final_weights(search.strategy_state)
    factorised = search.strategy_state.context.factorised
    rows = []
    for cell_type, cell in genotype.cells.items():
        strongest, scores = {}, {}
        for edge, row, of_edge in zip(
            search.space.edges,
            search.table.rows[cell_type],
            weights[cell_type].tolist(),
            strict=True,
        ):
            weight, strongest[edge] = search.space.strongest(row, of_edge)
            scores[edge] = weight * (len(row) - row.count(None))
        for (node, source), least in beaten(cell, scores).items():
            candidate = strongest[node, source]
            rows.append(
                (
                    cell_type,
                    f"{source} -> {node}",
                    candidate.op if factorised else str(candidate),
                    f"{scores[node, source]:.3f}",
                    f"{least:.3f}",
                )
            )
    if not rows:
        return []
    what = "operation" if factorised else "candidate"
    head = ("cell", "edge", f"its strongest {what}", "score", "least score kept at that node")
    return [
        "Edges that were left out: a node keeps those of highest score, the share of an edge's "
        f"strongest {what} (`none` is never chosen) over an equal share.",
        "",
        *markdown_table(head, rows),
        "",
    ]


def _row(decision: Decision, columns: int) -> list[str]:
    """Return a decision's row of the table of choices, of so many columns."""
    row = [decision.cell_type, decision.edge]
    row += chain.from_iterable(map(_fields, decision.contests))
    return row + ["-"] * (columns - len(row))


def _fields(contest: Contest) -> tuple[str, str, str]:
    """Return what was chosen, the runner-up, each with its share, and how far they are apart."""
    choice = f"{contest.choice} {contest.share:.3f}"
    if contest.runner_up == "-":
        return choice, "-", "-"
    times = "-" if math.isinf(contest.times) else f"{contest.times:.2f}"
    return (
        choice,
        f"{contest.runner_up} {contest.runner_up_share:.3f}",
        f"{times}, undecided" if contest.undecided else times,
    )
