"""What a search decided on each edge, against what, and by how much.

Margins are taken as the strategy decides. Most strategies compare pairs of operation and rule: then
there is one contest on an edge. Where alpha is an operation times a rule given the operation
(`alpha.FactorizedAlpha`), operations are compared first, and then the rules of the best one: two
contests, in which a skip that has no rules meets a convolution and not a quarter of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from darts_bio.config import SearchConfig
from darts_bio.spaces import Candidate, CandidateTable, Cell, Genotype, Space
from darts_bio.spaces.base import Row
from darts_bio.strategies import REGULARIZERS, STRATEGIES

UNDECIDED_BELOW = 1.1
"""How many times the runner-up's share a choice has to have, not to count as undecided."""


@dataclass(frozen=True)
class Contest:
    """What was chosen among several, and the runner-up.

    Attributes:
        choice: What was chosen: a pair, an operation, or a rule.
        share: Its share.
        runner_up: The strongest of the others that could have been chosen; "-" if none.
        runner_up_share: Its share, 0 if there is none.

    >>> contest = Contest("skip_connect", 0.21, "sep_conv_3x3", 0.2)
    >>> f"{contest.times:.2f}", contest.undecided
    ('1.05', True)
    """

    choice: str
    share: float
    runner_up: str = "-"
    runner_up_share: float = 0.0

    @property
    def times(self) -> float:
        """How many times the runner-up's share the choice has; infinite if that has none."""
        return self.share / self.runner_up_share if self.runner_up_share > 0 else math.inf

    @property
    def undecided(self) -> bool:
        """Whether the choice has not much more than the runner-up, or less."""
        return self.runner_up != "-" and self.share < UNDECIDED_BELOW * self.runner_up_share

    @property
    def lost(self) -> bool:
        """Whether the runner-up has the larger share: something else decided."""
        return self.share < self.runner_up_share


@dataclass(frozen=True)
class Decision:
    """What was decided on an edge that a genotype has.

    Attributes:
        cell_type: The type of the cell.
        edge: The edge, "input -> node".
        choice: The candidate that was chosen.
        factorised: Whether operations competed, and then the rules of the best one.
        main: The contest of pairs, or of operations.
        of_rules: The contest of the rules of the chosen operation; None where pairs compete, and
            where the operation has no choice of rules.
        barred: The strongest of what competes but cannot be chosen, as `none`; "-" if none.
        barred_share: Its share, 0 if there is none.
        evenness: The entropy of the shares in the main contest over that of equal shares: 1 where
            nothing was decided, 0 where one has it all.
    """

    cell_type: str
    edge: str
    choice: Candidate
    factorised: bool
    main: Contest
    of_rules: Contest | None
    barred: str
    barred_share: float
    evenness: float

    @property
    def contests(self) -> list[Contest]:
        """The contests on the edge, one or two."""
        return [self.main] if self.of_rules is None else [self.main, self.of_rules]

    @property
    def undecided(self) -> bool:
        """Whether any of the contests is undecided."""
        return any(contest.undecided for contest in self.contests)


def operations_first(config: SearchConfig) -> bool:
    """Return whether a search compares operations first, and then the rules of the best one.

    >>> operations_first(SearchConfig()), operations_first(SearchConfig(strategy="rule_aware"))
    (False, True)
    """
    asked = any(REGULARIZERS.build(spec).factorised for spec in config.regularizers)
    return asked or STRATEGIES.build(config.strategy).factorised


def edges_compete(config: SearchConfig) -> bool:
    """Return whether the edges into a node compete by shares of their own.

    >>> edges_compete(SearchConfig()), edges_compete(SearchConfig(strategy="pc_darts"))
    (False, True)
    """
    asked = any(REGULARIZERS.build(spec).normalizes_edges for spec in config.regularizers)
    return asked or STRATEGIES.build(config.strategy).normalizes_edges


def decisions(
    space: Space,
    table: CandidateTable,
    genotype: Genotype,
    shares: Mapping[str, Sequence[Sequence[float]]],
    factorised: bool,
) -> list[Decision]:
    """Return what was decided on each edge of a genotype.

    Args:
        space: The space of the search.
        table: The candidates of each edge.
        genotype: What was derived.
        shares: `time_lapse.edge_shares` of the search.
        factorised: Whether operations compete, and then the rules of the best one, in place of
            pairs (`operations_first`).

    >>> from darts_bio.spaces import SPACES
    >>> import torch
    >>> space = SPACES.build("nb201(operations=(none, skip_connect, nor_conv_1x1))")
    >>> table, rows = space.table(("fa", "usf")), [[0.1, 0.4, 0.2, 0.3]] * 6
    >>> genotype = Genotype("nb201", space.derive({"cell": torch.tensor(rows)}, table))
    >>> first = decisions(space, table, genotype, {"cell": rows}, factorised=False)[0]
    >>> first.edge, str(first.choice), first.main.runner_up, first.main.runner_up_share
    ('0 -> 1', 'skip_connect', 'nor_conv_1x1:usf', 0.3)

    By operations the convolution has 0.5, and its rules 0.4 and 0.6 of that:

    >>> cell = genotype.cells["cell"]
    >>> from dataclasses import replace
    >>> convolution = Candidate("nor_conv_1x1", "usf")
    >>> edges = tuple(replace(edge, candidate=convolution) for edge in cell.edges)
    >>> genotype = Genotype("nb201", {"cell": replace(cell, edges=edges)})
    >>> first = decisions(space, table, genotype, {"cell": rows}, factorised=True)[0]
    >>> first.main
    Contest(choice='nor_conv_1x1', share=0.5, runner_up='skip_connect', runner_up_share=0.4)
    >>> first.of_rules
    Contest(choice='usf', share=0.6, runner_up='fa', runner_up_share=0.4)
    """
    decided = []
    for cell_type, cell in genotype.cells.items():
        for edge in cell.edges:
            number = space.edges.index((edge.node, edge.input))
            row = [c for c in table.rows[cell_type][number] if c is not None]
            share_of = dict(zip(row, shares[cell_type][number], strict=True))
            of_operation = [
                (c, share) for c, share in share_of.items() if c.op == edge.candidate.op
            ]
            competing = competing_shares(tuple(row), list(share_of.values()), factorised)
            of_rules = None
            if factorised:
                chosen, mine = edge.candidate.op, {edge.candidate.op}
                total = competing[chosen]
                if edge.candidate.rule is not None and len(of_operation) > 1 and total > 0:
                    given = {str(c.rule): share / total for c, share in of_operation}
                    of_rules = _contest(edge.candidate.rule, {edge.candidate.rule}, given, set())
            else:
                chosen = str(edge.candidate)
                # A skip without weights is derived without the rule that it may have in its row.
                copies = {str(c) for c, _ in of_operation}
                mine = {chosen} if chosen in competing else copies
            barred = _barred(space, row, factorised)
            strongest = max(
                (name for name in competing if name in barred),
                key=competing.__getitem__,
                default=None,
            )
            decided.append(
                Decision(
                    cell_type,
                    f"{edge.input} -> {edge.node}",
                    edge.candidate,
                    factorised,
                    _contest(chosen, mine, competing, barred),
                    of_rules,
                    "-" if strongest is None else strongest,
                    0.0 if strongest is None else competing[strongest],
                    evenness(list(competing.values())),
                )
            )
    return decided


def competing_shares(row: Row, shares: Sequence[float], factorised: bool) -> dict[str, float]:
    """Return the shares of what competes on an edge by name: of its pairs, or of its operations.

    Args:
        row: The candidates of the edge, maybe padded.
        shares: The share of each candidate, padding left out.
        factorised: Whether operations compete.

    >>> row = (Candidate("none"), Candidate("conv", "fa"), Candidate("conv", "usf"))
    >>> competing_shares(row, (0.5, 0.25, 0.25), factorised=True)
    {'none': 0.5, 'conv': 0.5}
    """
    competing: dict[str, float] = {}
    for candidate, share in zip(filter(None, row), shares, strict=True):
        name = candidate.op if factorised else str(candidate)
        competing[name] = competing.get(name, 0.0) + share
    return competing


def _barred(space: Space, candidates: Iterable[Candidate], factorised: bool) -> set[str]:
    """Return the names of what competes on an edge but cannot be chosen (see `competing_shares`)."""
    return {c.op if factorised else str(c) for c in candidates if not space.selectable(c)}


def _contest(
    choice: str, mine: Set[str], share_of: Mapping[str, float], barred: Set[str]
) -> Contest:
    """Return the contest that a choice won, or was made to win.

    Args:
        choice: The name of what was chosen.
        mine: The names that it has among those which competed: several if it has copies.
        share_of: The share of each that competed, by name.
        barred: Those of them that cannot be chosen, and so are no runner-up either.
    """
    share = max(share_of[name] for name in mine)
    others = [name for name in share_of if name not in barred and name not in mine]
    if not others:
        return Contest(choice, share)
    runner_up = max(others, key=share_of.__getitem__)
    return Contest(choice, share, runner_up, share_of[runner_up])


def mostly_undecided(decided: Sequence[Decision]) -> bool:
    """Return whether more than half of the edges are undecided."""
    return 2 * sum(decision.undecided for decision in decided) > len(decided)


def hardly_left_out(
    space: Space,
    table: CandidateTable,
    genotype: Genotype,
    shares: Mapping[str, Sequence[Sequence[float]]],
    factorised: bool,
) -> list[str]:
    """Return the edges that a node did not keep, though one that it kept is hardly ahead of them.

    Compared is what `Space.derive_cell` compares where edges do not compete themselves: the share of
    an edge's winner over an equal share. The arguments are those of `decisions`.

    >>> from darts_bio.spaces import SPACES
    >>> import torch
    >>> space = SPACES.build("darts(nodes=2, operations=(skip_connect, max_pool_3x3))")
    >>> table, rows = space.table(("fa",)), [[0.6, 0.4]] * 2 + [[0.7, 0.3], [0.6, 0.4], [0.61, 0.39]]
    >>> shares = {"normal": rows, "reduce": [[0.3, 0.7]] * 5}
    >>> weights = {t: torch.tensor(of_type) for t, of_type in shares.items()}
    >>> genotype = Genotype("darts(nodes=2)", space.derive(weights, table))
    >>> hardly_left_out(space, table, genotype, shares, factorised=False)
    ['normal 1 -> 3 (1.02 times)', 'reduce 2 -> 3 (1.00 times)']
    """
    close = []
    for cell_type, cell in genotype.cells.items():
        scores: dict[tuple[int, int], float] = {}
        for edge, row, of_edge in zip(
            space.edges, table.rows[cell_type], shares[cell_type], strict=True
        ):
            competing = competing_shares(row, of_edge, factorised)
            barred = _barred(space, filter(None, row), factorised)
            best = max(share for name, share in competing.items() if name not in barred)
            scores[edge] = len(competing) * best
        for (node, source), least in beaten(cell, scores).items():
            times = least / scores[node, source]
            if times < UNDECIDED_BELOW:
                close.append(f"{cell_type} {source} -> {node} ({times:.2f} times)")
    return close


def beaten(cell: Cell, scores: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """Return the edges that a cell left out, each with the least score that its node kept.

    Edges of score 0 are not among them, nor those into a node that kept none.

    Args:
        cell: The cell that was derived.
        scores: The score of each edge, by its (node, input).
    """
    kept = {(edge.node, edge.input) for edge in cell.edges}
    of_nodes = {node: min(scores[edge] for edge in kept if edge[0] == node) for node, _ in kept}
    return {
        edge: of_nodes[edge[0]]
        for edge, score in scores.items()
        if edge not in kept and edge[0] in of_nodes and score > 0
    }


def evenness(shares: Sequence[float]) -> float:
    """Return the entropy of shares over that of equal shares; 0 for a single one.

    The shares need not sum to 1.

    >>> evenness([0.25] * 4), evenness([0.5, 0.5, 0.0, 0.0])
    (1.0, 0.5)
    """
    if len(shares) == 1:
        return 0.0
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    return entropy / math.log(len(shares))
