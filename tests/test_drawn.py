"""A pass that computes one candidate an edge equals one whose other candidates do not exist, or have
no weight.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_mixed import ELEMENTWISE, OTHERS, Twins, near
from torch import Tensor, nn

from darts_bio.networks import SuperNet
from darts_bio.networks.mixed import FoldedCell, MixedCell
from darts_bio.networks.pooled import LEFT_OUT
from darts_bio.networks.reference import ReferenceCell
from darts_bio.networks.stacking import StackedBatchNorm
from darts_bio.rules import draw_feedback
from darts_bio.rules.stacked import StackedConv2d
from darts_bio.spaces import SPACES

Columns = dict[str, list[int]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def draw(net: SuperNet, optional: Collection[int] = ()) -> Columns:
    """Draws a candidate for each edge; of edges that are optional half are left out."""
    return {
        t: [
            LEFT_OUT
            if edge in optional and torch.rand(()) < 0.5
            else int(torch.randint(int(row.sum()), ()))
            for edge, row in enumerate(net.table.mask(t))
        ]
        for t in net.table.rows
    }


def behind_the_first(space: str) -> set[int]:
    """The edges into a node but for its first, without which it would be empty."""
    return {edge for edges in SPACES.build(space).incoming() for edge in edges[1:]}


def single(net: SuperNet, columns: Columns) -> dict[str, Tensor]:
    """Edge weights 0.7 for what is drawn and 0 for all others."""
    dtype = next(net.parameters()).dtype
    weights = {}
    for t, of_type in columns.items():
        weights[t] = torch.zeros(net.table.shape(t), dtype=dtype)
        for edge, column in enumerate(of_type):
            if column != LEFT_OUT:
                weights[t][edge, column] = 0.7
        weights[t].requires_grad_()
    return weights


def outcome(
    net: SuperNet, x: Tensor, weights: dict[str, Tensor], columns: Columns | None
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """The logits, the gradients of edge weights, and those of w, zero where there is none."""
    net.zero_grad()
    with net.drawn(columns):
        logits = net(x, weights)
    loss = F.cross_entropy(logits, torch.arange(len(x)) % 5)
    of_edges = torch.autograd.grad(
        loss,
        list(weights.values()),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    loss.backward(inputs=list(net.parameters()))
    of_weights = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in net.named_parameters()
    }
    return logits.detach(), list(of_edges), of_weights


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in net.named_buffers() if "running_" in name}


@pytest.mark.parametrize("cell", [MixedCell, FoldedCell])
@pytest.mark.parametrize(
    ("space", "rules", "partial"),
    [
        ("darts", ELEMENTWISE, 1),
        ("darts(layout=paper, nodes=2)", ("fa", "usf"), 1),
        ("darts(nodes=3)", ("fa", "usf"), 2),
        ("nb201", ELEMENTWISE, 1),
        ("nb201", OTHERS, 2),
        *[("darts(nodes=3)", ("fa", rule), 1) for rule in OTHERS],
    ],
)
def test_equals_the_reference(cell: type, space: str, rules: tuple[str, ...], partial: int) -> None:
    twins = Twins.of(space, rules, cell=cell, partial=partial)
    assert all(
        torch.equal(piece, weight)
        for piece, weight in twins.pairs(lambda layer: layer.weight, StackedConv2d)
    )
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    ran = set[str]()
    for number in range(4):
        columns = draw(twins.fast, behind_the_first(space) if number == 3 else ())
        weights = single(twins.fast, columns)
        fast, slow = (outcome(net, x, weights, columns) for net in (twins.fast, twins.reference))
        near(fast[0], slow[0], 1e-11)
        for one, other in zip(fast[1], slow[1], strict=True):
            near(one, other, 1e-10)
        for piece, weight in twins.pairs(_gradient, StackedConv2d):
            near(piece, weight, 1e-10)
        for name, gradient in fast[2].items():
            if not name.startswith(("cells.", "feedback.")) or ".alone." in name:
                near(gradient, slow[2][twins.reference_name(name)], 1e-10)
        for piece, norm in twins.pairs(lambda norm: norm.running_var, StackedBatchNorm):
            near(piece, norm, 1e-11)
        ran |= {f"{t}{e}{c}" for t in columns for e, c in enumerate(columns[t])}
    assert len(ran) > 10


def _gradient(layer: Any) -> Tensor:
    weight = layer.weight
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


@pytest.mark.parametrize("shared", [None, "match"])
def test_equals_the_pass_that_computes_all(shared: Any) -> None:
    """With edge weights of zero for all others: what is drawn and w move alike."""
    torch.manual_seed(1)
    sizes = {"channels": 4, "layers": 3, "num_classes": 5, "shared": shared}
    net = SuperNet(SPACES.build("darts(nodes=3)"), ELEMENTWISE, **sizes).double()
    draw_feedback(net, 3)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for number in range(3):
        columns = draw(net, behind_the_first("darts(nodes=3)") if number == 2 else ())
        weights = single(net, columns)
        before = statistics(net)
        one = outcome(net, x, weights, columns)
        moved = statistics(net)
        other = outcome(net, x, weights, None)
        near(one[0], other[0], 1e-11)
        for name, gradient in one[2].items():
            near(gradient, other[2][name], 1e-10)
        for t, mine, every in zip(columns, one[1], other[1], strict=True):
            for edge, column in enumerate(columns[t]):
                if column != LEFT_OUT:
                    near(mine[edge, column], every[edge, column], 1e-10)
            for row, gradient, column in zip(net.table.rows[t], mine, columns[t], strict=True):
                for candidate, value in zip(row, gradient.tolist(), strict=True):
                    same = candidate == row[column] or (
                        shared and candidate and row[column] and candidate.op == row[column].op
                    )
                    assert same or value == 0  # no gradient for what was not drawn
        stays = [
            torch.equal(before[name], after) for name, after in moved.items() if "cells" in name
        ]
        assert not all(stays)
        changed = sum(int((before[name] != moved[name]).sum()) for name in before)
        assert changed < sum(v.numel() for v in before.values()) / 2


def test_a_cell_of_none_brings_zeros() -> None:
    net = SuperNet(
        SPACES.build("darts(nodes=2)"), ("fa",), channels=4, layers=3, num_classes=5
    ).double()
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    columns = {t: [0] * net.table.shape(t)[0] for t in net.table.rows}
    weights = single(net, columns)
    logits, of_edges, _ = outcome(net, x, weights, columns)
    assert torch.equal(logits, net.classifier.bias.detach().expand(2, -1))
    assert not any(gradient.any() for gradient in of_edges)


def test_statistics_of_what_is_not_drawn_stay() -> None:
    net = SuperNet(
        SPACES.build("nb201"),
        ("fa", "usf"),
        channels=4,
        layers=3,
        num_classes=5,
        cell=ReferenceCell,
    )
    columns = {"cell": [2] * 6}
    before = statistics(net)
    with net.drawn(columns):
        net(torch.randn(2, 3, 8, 8), single(net, columns))
    moved = {
        name for name, value in statistics(net).items() if not torch.equal(value, before[name])
    }
    in_cells = {name for name in moved if name.startswith("cells")}
    assert in_cells
    assert all(name.split(".")[4] == "2" for name in in_cells)
