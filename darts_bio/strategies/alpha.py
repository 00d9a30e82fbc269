"""Alpha: the architecture parameters, and the logits of the candidates that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_bio.runtime import generator
from darts_bio.spaces import CandidateTable
from darts_bio.spaces.base import Row

ABSENT = -1e9
"""The logit of what a row does not have: finite, so that a group without members has a gradient, of
zero."""


class Alpha:
    """A parameter for each candidate, drawn from N(0, init^2)."""

    def __init__(self, table: CandidateTable, seed: int, init: float, device: torch.device) -> None:
        self.masks = {t: table.mask(t).to(device) for t in table.rows}
        self.parameters = {
            name: (init * torch.randn(shape, generator=generator("cpu", "alpha", seed, name)))
            .to(device)
            .requires_grad_()
            for name, shape in self._shapes(table).items()
        }

    def _shapes(self, table: CandidateTable) -> dict[str, tuple[int, int]]:
        return {t: table.shape(t) for t in table.rows}

    def logits(self) -> dict[str, Tensor]:
        """Per cell type (edges, candidates)."""
        return dict(self.parameters)


def grouped_by_operation(rows: Sequence[Row]) -> Tensor:
    """(edges, candidates, operations) bool: whether the candidate is one of that operation, of
    those in `rows`.
    """
    operations = list(dict.fromkeys(c.op for row in rows for c in row if c is not None))
    return torch.tensor(
        [[[c is not None and c.op == op for op in operations] for c in row] for row in rows]
    )


class FactorisedAlpha(Alpha):
    """A parameter for each operation of an edge and one for each rule given the operation: the
    logit of a pair is log p(operation) + log p(rule | operation), so that operations with many
    rules have no more weight than others.
    """

    def __init__(self, table: CandidateTable, seed: int, init: float, device: torch.device) -> None:
        self.members = {t: grouped_by_operation(rows).to(device) for t, rows in table.rows.items()}
        self.groups = {
            t: member.int().argmax(2) for t, member in self.members.items()
        }  # (edges, candidates)
        self.absent = {
            t: ~member.any(1) for t, member in self.members.items()
        }  # (edges, operations)
        super().__init__(table, seed, init, device)

    def _shapes(self, table: CandidateTable) -> dict[str, tuple[int, int]]:
        operations = {f"{t}/operation": (len(m), m.shape[2]) for t, m in self.members.items()}
        return operations | {f"{t}/rule": table.shape(t) for t in table.rows}

    def logits(self) -> dict[str, Tensor]:
        logits = {}
        for t, member in self.members.items():
            operation, rule = self.parameters[f"{t}/operation"], self.parameters[f"{t}/rule"]
            group = self.groups[t]
            total = (
                rule.unsqueeze(2).masked_fill(~member, ABSENT).logsumexp(1)
            )  # (edges, operations)
            among = operation.masked_fill(self.absent[t], ABSENT).log_softmax(1)
            logits[t] = among.gather(1, group) + rule - total.gather(1, group)
        return logits
