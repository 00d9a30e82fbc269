"""Whether the cells of a genotype have collapsed: how much of them are skips and poolings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from darts_bio.reports.markdown import counted
from darts_bio.spaces import Genotype, Space

SKIPS_OF_A_COLLAPSE = 2
"""Skip connections in a normal cell at which DARTS+ (arXiv 1909.06035) ends a search as collapsing."""


@dataclass(frozen=True)
class Emptiness:
    """How many edges of the cells of a kind have no weights.

    Attributes:
        kind: The kind of cell.
        skips: Edges with a skip that has no weights.
        poolings: Edges with a pooling.
        others: Other edges without weights, as `none`.
        edges: All edges.

    >>> Emptiness("reduce", skips=1, poolings=2, others=0, edges=8).in_words()
    '3 of 8 edges of reduce cells (1 skip, 2 poolings)'
    """

    kind: str
    skips: int
    poolings: int
    others: int
    edges: int

    @property
    def total(self) -> int:
        """How many of the edges have no weights."""
        return self.skips + self.poolings + self.others

    def in_words(self) -> str:
        """Return the counts in words."""
        each = {"skip": self.skips, "pooling": self.poolings, "other": self.others}
        parts = [counted(count, name) for name, count in each.items() if count]
        of_them = f" ({', '.join(parts)})" if parts else ""
        return f"{self.total} of {self.edges} edges of {self.kind} cells{of_them}"


@dataclass(frozen=True)
class Collapse:
    """How much of a genotype's cells has no weights.

    Attributes:
        cell_type: The cell type with most skips, among those of the kind that most layers have
            ("normal" in DARTS' space).
        skips: Its skip connections.
        edges: Its edges.
        kinds: The edges without weights in each kind of cells, that kind first.

    >>> normal = Emptiness("normal", skips=1, poolings=3, others=0, edges=8)
    >>> collapse = Collapse("normal", 1, 8, (normal,))
    >>> collapse.marked, collapse.hollow
    (False, False)
    """

    cell_type: str
    skips: int
    edges: int
    kinds: tuple[Emptiness, ...]

    @property
    def marked(self) -> bool:
        """Whether DARTS+ would have ended the search."""
        return self.skips >= SKIPS_OF_A_COLLAPSE

    @property
    def hollow(self) -> bool:
        """Whether more than half of the edges have no weights, in the first kind of cells."""
        return 2 * self.kinds[0].total > self.kinds[0].edges

    def in_words(self) -> str:
        """Return it as an entry of the list at the head of a report."""
        has = f"{self.cell_type} has {counted(self.skips, 'skip')} on {counted(self.edges, 'edge')}"
        stops = f"DARTS+ stops at {SKIPS_OF_A_COLLAPSE}"
        if self.marked:
            answer = f"Yes: {has}, and {stops}"
        elif self.hollow:
            answer = (
                f"Yes: more than half of the edges of {self.kinds[0].kind} cells have no weights, though "
                f"{has}, and {stops}"
            )
        else:
            answer = f"No: {has}, and {stops}"
        without = ", ".join(kind.in_words() for kind in self.kinds)
        return f"**Collapsed?** {answer}. Without weights: {without}."


def collapse_of(space: Space, genotype: Genotype) -> Collapse:
    """Return how much of a genotype's cells has no weights.

    >>> from darts_bio.spaces import SPACES, load_genotype
    >>> collapse = collapse_of(SPACES.build("darts"), load_genotype("darts_v2"))
    >>> [kind.in_words() for kind in collapse.kinds]  # doctest: +NORMALIZE_WHITESPACE
    ['2 of 8 edges of normal cells (2 skips)',
     '8 of 8 edges of reduce cells (3 skips, 5 poolings)']
    """
    by_kind: dict[str, Counter[str]] = {}
    for cell_type, cell in genotype.cells.items():
        counts = by_kind.setdefault(space.kind(cell_type), Counter())
        for edge in cell.edges:
            op = edge.candidate.op
            counts["edges"] += 1
            if edge.candidate.rule is None:
                counts["skip" if op == "skip_connect" else "pool" if "pool" in op else "other"] += 1
    first = next(iter(by_kind))
    skips = {
        cell_type: sum(edge.candidate.op == "skip_connect" for edge in cell.edges)
        for cell_type, cell in genotype.cells.items()
        if space.kind(cell_type) == first
    }
    most = max(skips, key=skips.__getitem__)
    kinds = tuple(
        Emptiness(kind, counts["skip"], counts["pool"], counts["other"], counts["edges"])
        for kind, counts in by_kind.items()
    )
    return Collapse(most, skips[most], len(genotype.cells[most].edges), kinds)
