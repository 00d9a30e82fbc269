"""Where a search stands in a sequence of stages, and among which candidates it chooses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from darts_bio.spaces import CandidateTable


@dataclass(frozen=True)
class StagePlace:
    """Where a search stands in a sequence of stages.

    Attributes:
        schedule: The length of schedules, in epochs: summed over the stages that go on with one
            another's weights, of which the search is one.
        first_epoch: The number, in these, of its first epoch.
        epochs_before: The epochs of all stages before it. Images come in another order than in
            those; renewed feedback begins with the same draws in each stage.
        table: The candidates that are left on each edge; None for all.
    """

    schedule: int
    first_epoch: int = 0
    epochs_before: int = 0
    table: CandidateTable | None = None


def candidates_by_edge(
    table: CandidateTable, edges: Sequence[tuple[int, int]]
) -> dict[str, dict[str, list[str]]]:
    """Return the candidates of a table as texts: cell type -> "input -> node" -> candidates.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> candidates_by_edge(space.table(("fa",)), space.edges)["cell"]["0 -> 1"][:3]
    ['none', 'skip_connect', 'nor_conv_1x1:fa']
    """
    return {
        t: {
            f"{source} -> {node}": [str(candidate) for candidate in row if candidate is not None]
            for (node, source), row in zip(edges, rows, strict=True)
        }
        for t, rows in table.rows.items()
    }


def table_identity(table: CandidateTable) -> str:
    """Return a digest of the candidates of each edge, equal for equal tables.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> table_identity(space.table(("fa",))) == table_identity(space.table(("usf",)))
    False
    """
    rows = {t: [list(map(str, row)) for row in rows] for t, rows in table.rows.items()}
    return f"digest {hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()}"
