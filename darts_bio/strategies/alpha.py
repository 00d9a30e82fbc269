"""Alpha: the architecture parameters, and the logits of the candidates that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_bio.networks import EdgeWeights
from darts_bio.networks.pooled import rule_shares
from darts_bio.runtime import generator
from darts_bio.spaces import Candidate, CandidateTable
from darts_bio.spaces.base import Row, by_operation
from darts_bio.strategies.base import Context

ABSENT = -1e9
"""The logit of what a row does not have.

It is finite, so that a group without members has a gradient, which is zero; minus infinity would
make it NaN."""


class Alpha:
    """A parameter for each candidate on each edge, drawn from N(0, init^2).

    Args:
        context: The search. The draw depends on its seed and on the parameter's name alone, and is
            made on the CPU, so equal on all devices.
        init: The standard deviation of the draw.
    """

    def __init__(self, context: Context, init: float) -> None:
        table, seed, device = context.table, context.seed, context.device
        self.kind = context.space.kind
        self.masks = {t: table.mask(t).to(device) for t in table.rows}
        """(edges, candidates) bool per cell type: True where there is a candidate."""
        self.parameters = {
            name: (init * torch.randn(shape, generator=generator("cpu", "alpha", seed, name)))
            .to(device)
            .requires_grad_()
            for name, shape in self._shapes(table).items()
        }

    def _shapes(self, table: CandidateTable) -> dict[str, tuple[int, int]]:
        """Return the shape of each parameter, by its name."""
        return {t: table.shape(t) for t in table.rows}

    def logits(self) -> dict[str, Tensor]:
        """Return the logits (edges, candidates) per cell type, with their gradient."""
        return dict(self.parameters)


def grouped_by_operation(rows: Sequence[Row]) -> Tensor:
    """Return (edges, candidates, operations) bool: whether the candidate is of that operation.

    The operations are those that occur in `rows`, in the order in which they do. A padded entry is
    of no operation.
    """
    candidates = [candidate for row in rows for candidate in row if candidate is not None]
    operations = list(dict.fromkeys(candidate.op for candidate in candidates))

    def membership(candidate: Candidate | None) -> list[bool]:
        return [candidate is not None and candidate.op == op for op in operations]

    return torch.tensor([[membership(candidate) for candidate in row] for row in rows])


def operation_first(weights: EdgeWeights, table: CandidateTable) -> EdgeWeights:
    """Return weights of which the largest on an edge is the best rule of the best operation.

    Of pairs with weights w the largest need not be that: an operation with one rule, or without
    rules, keeps its weight whole, and one with four has a quarter of it at each pair. So a pair gets
    the weight of its operation, the sum over its rules, times its own over that of the operation's
    best rule.

    `Space.derive` multiplies by the candidates of an edge, to compare edges. Operations count here,
    so the quotient is taken out: unless anything is decided, each edge has the same score.

    Args:
        weights: (edges, candidates) per cell type, not negative. They are left as they are.
        table: The candidates of each edge.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201(operations=(skip_connect, nor_conv_1x1))")
    >>> table = space.table(("fa", "usf"))
    >>> weights = torch.tensor([[0.4, 0.2, 0.4]] * 6)  # the convolution has 0.6
    >>> scores = operation_first({"cell": weights}, table)["cell"]
    >>> [round(score, 6) for score in (1.5 * scores[0]).tolist()]
    [0.4, 0.3, 0.6]
    """
    scores = {t: of_type.clone() for t, of_type in weights.items()}
    for t, rows in table.rows.items():
        for edge, row in enumerate(rows):
            pools = by_operation(row)
            candidates = sum(len(pool.columns) for pool in pools)
            for pool in pools:
                of_rules = weights[t][edge, list(pool.columns)]
                gain, shares = of_rules.sum() * len(pools) / candidates, rule_shares(of_rules)
                scores[t][edge, list(pool.columns)] = gain * shares / shares.max()
    return scores


class FactorizedAlpha(Alpha):
    """A parameter for each operation of an edge, and one for each rule given the operation.

    The logit of a pair is log p(operation) + log p(rule | operation), so that an operation with
    many rules has no more weight than others. Before alpha moves, each operation of an edge has
    about the same share, and each rule of an operation the same part of it. A genotype has the best
    operation of an edge, under its best rule (`operation_first`).

    Cell types of one kind (`Space.kind`) have the parameters of operations in common, and those of
    rules each for itself.
    """

    def __init__(self, context: Context, init: float) -> None:
        table, device = context.table, context.device
        self.members = {t: grouped_by_operation(rows).to(device) for t, rows in table.rows.items()}
        """(edges, candidates, operations) bool per cell type, see `grouped_by_operation`."""
        # (edges, candidates): the index of each candidate's operation.
        self.groups = {t: member.int().argmax(2) for t, member in self.members.items()}
        # (edges, operations): True where an edge has no candidate of that operation.
        self.absent = {t: ~member.any(1) for t, member in self.members.items()}
        super().__init__(context, init)

    def _shapes(self, table: CandidateTable) -> dict[str, tuple[int, int]]:
        operations = {
            f"{self.kind(t)}/operation": (len(member), member.shape[2])
            for t, member in self.members.items()
        }
        return operations | {f"{t}/rule": table.shape(t) for t in table.rows}

    def logits(self) -> dict[str, Tensor]:
        logits = {}
        for t, member in self.members.items():
            operation = self.parameters[f"{self.kind(t)}/operation"]
            rule = self.parameters[f"{t}/rule"]
            group = self.groups[t]
            # The normalizer of p(rule | operation): a logsumexp over the candidates of each
            # operation, (edges, candidates, operations) -> (edges, operations).
            log_total = rule.unsqueeze(2).masked_fill(~member, ABSENT).logsumexp(1)
            # log p(operation), (edges, operations).
            log_operation = operation.masked_fill(self.absent[t], ABSENT).log_softmax(1)
            # Each candidate looks both up at its own operation, (edges, candidates).
            logits[t] = log_operation.gather(1, group) + rule - log_total.gather(1, group)
        return logits
