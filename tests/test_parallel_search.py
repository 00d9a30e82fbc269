"""Several processes that share a search's batches against one that accumulates gradients over their
parts, in float64.

The one process is written here from the papers' formulas: it shares with the package the supernet,
how alpha becomes edge weights and what is drawn, none of what averages, moves or exchanges.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from searching import search
from several import several
from torch import Tensor

from darts_bio.data.datasets import load_data
from darts_bio.modes import frozen
from darts_bio.process_group import process_group
from darts_bio.rules import draw_feedback, held_feedback, true_gradients
from darts_bio.rules.tangents import tangents
from darts_bio.strategies import REGULARIZERS, detached
from darts_bio.strategies.eigenvalue_stop import dominant_eigenvalue
from darts_bio.training.meters import Meters
from darts_bio.training.search import Search, _Lookout

STEPS = 2
CASES: dict[str, dict[str, Any]] = {
    "darts": {"rules": ("fa", "kolen_pollack"), "objective": ("parameters(weight=0.3)",)},
    "darts(order=2)": {"rules": ("usf", "brsf"), "regularizers": ("entropy(weight=0.2)",)},
    "rule_aware": {
        "rules": ("usf", "brsf", "bp"),
        "objective": ("weight_transport(weight=0.2)",),
        "arch_gradient": "true",
    },
    "pc_darts(k=2)": {"rules": ("bp", "hebbian"), "regularizers": ("warmup(epochs=0)",)},
    "gdas": {"rules": ("frsf", "weight_mirror")},
    "snas": {"rules": ("fa", "usf"), "arch_gradient": "true", "memory": "low"},
    "drnas": {"rules": ("brsf",), "clip": 0.5},
    "fair_darts": {"rules": ("bp", "predictive"), "regularizers": ("factorised",)},
}
"""For each strategy that moves alpha along a gradient, options that bring further gradients into
play."""

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def in_float64(strategy: str) -> Search:
    task = search(
        load_data("digits", train_images=64), strategy, batch_size=8, lr=0.1, **CASES[strategy]
    )
    task.supernet.double()
    state: Any = task.strategy_state
    for parameter in state.parameters.values():
        parameter.data = parameter.data.double()
    for batches in (task.train_batches, task.valid_batches):
        read = batches.batch
        batches.batch = lambda t, read=read: (read(t)[0].double(), read(t)[1])  # type: ignore[method-assign]
    task.begin_epoch(0)
    return task


def weights_of(task: Search) -> dict[str, Tensor]:
    """The supernet's weights, feedback and running statistics; batch norms also count their
    passes.
    """
    return {
        name: value.clone()
        for name, value in task.supernet.state_dict().items()
        if value.is_floating_point()
    }


def attacked(task: Search) -> dict[str, Tensor]:
    """The edge weights at which the adversarial `smooth` would train w next."""
    smooth = REGULARIZERS.build("smooth(kind=adversarial, steps=3)")
    state = smooth.begin(task.strategy_state.context)
    smooth.prepare(state)
    state.epsilon.fill_(0.2)
    weights = detached(task.strategy.edge_weights(task.strategy_state))
    x, labels = task.train_batches.batch(STEPS)
    loss = functools.partial(task._attacked_loss, x, labels)
    return dict(smooth.perturbed(state, weights, loss))


def each_strategy(number: int, count: int, file: Path) -> None:
    """What each of several processes does."""
    found: dict[str, Any] = {}
    with process_group():
        for strategy in CASES:
            task, losses = in_float64(strategy), []
            state: Any = task.strategy_state
            for t in range(STEPS):
                meters = Meters()
                meters.add(*task.step(t).values())
                losses.append(meters.read())
            task.synchronize()
            found[strategy] = {
                "weights": weights_of(task),
                "alpha": state.values(),
                "losses": losses,
            }
            found[strategy]["genotype"] = task.genotype().to_json()
            if strategy == "darts" and count == 2:
                loss = _Lookout(task, STEPS).validation_loss
                found[strategy]["eigenvalue"] = dominant_eigenvalue(task.strategy, state, loss)  # type: ignore[arg-type]
                found[strategy]["attacked"] = attacked(task)
        if number == 0:
            torch.save(found, file)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, dict[str, Any]]:
    """How many processes searched, and what they left, by strategy."""
    count, place = request.param, tmp_path_factory.mktemp("parallel")
    ended = several(count, each_strategy, count, place / "found", place=place)
    assert [process.code for process in ended] == [0] * count, ended
    return count, torch.load(place / "found", weights_only=True)


class Oracle:
    """One process that passes each batch in `count` parts, and follows the mean of their
    gradients.
    """

    def __init__(self, task: Search, count: int) -> None:
        self.task, self.net, self.count = task, task.supernet, count
        self.strategy: Any = task.strategy
        self.state: Any = task.strategy_state
        self.alpha = list(self.state.parameters.values())
        self.weights, self.moved = task.optimizer.weights, task.optimizer.parameters
        self.statistics = [b for name, b in self.net.named_buffers() if "running_" in name]
        self.buffers = [torch.zeros_like(w) for w in self.moved]
        self.moments = [[torch.zeros_like(a), torch.zeros_like(a)] for a in self.alpha]

    def gradients(
        self, batch: Any, edges: Any, of: Sequence[Tensor], exact: bool = False
    ) -> tuple[Any, list[Tensor]]:
        """The mean over the parts of the cross entropy and of its gradients. Batch norms see a part
        at a time; their running statistics move from where they were by each part alone, and become
        the mean of that.
        """
        loss, sums = 0.0, [torch.zeros_like(x) for x in of]
        before, after = (
            [b.clone() for b in self.statistics],
            [torch.zeros_like(b) for b in self.statistics],
        )
        for x, labels in zip(*(half.chunk(self.count) for half in batch), strict=True):
            put(self.statistics, before)
            exactly = true_gradients(self.net) if exact else contextlib.nullcontext()
            with exactly, self.net.drawn(self.strategy.drawn(self.state)):
                own = F.cross_entropy(self.net(x, edges), labels)
            found = torch.autograd.grad(own, of, allow_unused=True)
            loss += own.item() / self.count
            sums = [
                s if g is None else s + g / self.count for s, g in zip(sums, found, strict=True)
            ]
            after = [a + b / self.count for a, b in zip(after, self.statistics, strict=True)]
        put(self.statistics, after)
        return loss, sums

    def of_alpha(
        self, batch: Any, further: Sequence[Tensor] = (), penalized: bool = True
    ) -> tuple[Any, list[Tensor]]:
        """The loss, and the gradients of alpha and of `further`."""
        weights = self.strategy.edge_weights(self.state)
        leaves = {t: w.detach().requires_grad_() for t, w in weights.items()}
        exact = penalized and self.task.config.arch_gradient == "true"
        loss, found = self.gradients(batch, leaves, [*leaves.values(), *further], exact)
        through = sum((w * g).sum() for w, g in zip(weights.values(), found, strict=False))
        if penalized:
            shares, alpha = self.strategy.mean_weights(self.state), self.state.alpha
            through = (
                through + self.task._penalty(shares, alpha) + self.strategy.own_penalty(self.state)
            )
        return loss, [*torch.autograd.grad(through, self.alpha), *found[len(leaves) :]]

    def ahead(self, train: Any, valid: Any) -> tuple[list[Tensor], Any, list[Tensor], list[Tensor]]:
        """The weights before, and after a step of SGD the loss and its gradients of alpha and of
        the weights, which stay where the step has led.
        """
        config, before = self.task.config, [w.detach().clone() for w in self.weights]
        edges = {t: w.detach() for t, w in self.strategy.edge_weights(self.state).items()}
        _, g = self.gradients(train, edges, self.weights)
        decay, momentum, rate = config.weight_decay, config.momentum, self.task.optimizer.lr
        for w, own, buffer in zip(self.weights, g, self.buffers, strict=False):
            w.data -= rate * (own + decay * w.data + momentum * buffer)
        loss, found = self.of_alpha(valid, self.weights)
        return before, loss, found[: len(self.alpha)], found[len(self.alpha) :]

    def second_order(self, train: Any, valid: Any) -> tuple[Any, list[Tensor]]:
        """Equations 6 to 8 of DARTS."""
        before, loss, own, v = self.ahead(train, valid)
        small = 0.01 / torch.cat([x.flatten() for x in v]).norm()
        put(self.weights, before)
        with held_feedback(self.net):
            put(self.weights, [w + small * x for w, x in zip(before, v, strict=True)])
            _, plus = self.of_alpha(train, penalized=False)
            put(self.weights, [w - small * x for w, x in zip(before, v, strict=True)])
            _, minus = self.of_alpha(train, penalized=False)
        put(self.weights, before)
        rate = self.task.optimizer.lr
        return loss, [
            a - rate * (p - m) / (2 * small) for a, p, m in zip(own, plus, minus, strict=True)
        ]

    def through_the_step(self, train: Any, valid: Any) -> tuple[Any, list[Tensor]]:
        """The hypergradient of rules: each part is swept along the mean of the parts' v."""
        statistics = [b.clone() for b in self.statistics]
        before, loss, own, v = self.ahead(train, valid)
        put(self.weights, before)
        put(self.statistics, statistics)
        rate = self.task.optimizer.lr
        rules = [n for n, name in enumerate(self.state.parameters) if name.endswith("/rule")]
        for x, labels in zip(*(half.chunk(self.count) for half in train), strict=True):
            with frozen(self.net), self.net.batch_statistics():
                with tangents(self.weights, v):
                    logits = self.net(x, self.strategy.edge_weights(self.state))
                    part = F.cross_entropy(logits, labels)
                swept = torch.autograd.grad(part, [self.alpha[n] for n in rules])
            for n, of_part in zip(rules, swept, strict=True):
                own[n] = own[n] - rate * of_part / self.count
        return loss, own

    def step(self, t: int) -> dict[str, float]:
        train, valid = self.task.train_batches.batch(t), self.task.valid_batches.batch(t)
        order = getattr(self.strategy, "order", 1)
        self.strategy.prepare(self.state)
        if self.strategy.shares_weights:
            valid_loss, gradients = self.through_the_step(train, valid)
        else:
            valid_loss, gradients = (
                self.second_order(train, valid) if order == 2 else self.of_alpha(valid)
            )
        beta, gamma = self.strategy.betas
        for name, a, g, (first, second) in zip(
            self.state.parameters, self.alpha, gradients, self.moments, strict=True
        ):
            of_rules = self.strategy.shares_weights and name.endswith("/rule")
            decay, rate = (
                (0.0, self.strategy.rule_lr)
                if of_rules
                else (self.strategy.weight_decay, self.strategy.lr)
            )
            g = g + decay * a.detach()
            first.mul_(beta).add_((1 - beta) * g)
            second.mul_(gamma).add_((1 - gamma) * g * g)
            step = (first / (1 - beta ** (t + 1))) / (
                (second / (1 - gamma ** (t + 1))).sqrt() + 1e-8
            )
            a.data -= rate * step
        self.strategy.prepare(self.state)
        edges = {name: w.detach() for name, w in self.strategy.edge_weights(self.state).items()}
        train_loss, found = self.gradients(train, edges, self.moved)
        norm = torch.cat([g.flatten() for g in found[: len(self.weights)]]).norm()
        factor = min(1.0, self.task.config.clip / (norm.item() + 1e-6))
        for w, g, buffer in zip(self.moved, found, self.buffers, strict=True):
            buffer.mul_(self.task.config.momentum).add_(
                factor * g + self.task.config.weight_decay * w.detach()
            )
            w.data -= self.task.optimizer.lr * buffer
        draw_feedback(self.net, self.task.config.seed, t + 1)
        return {"train/loss": train_loss, "valid/loss": valid_loss}

    def validation_loss(self, edges: Any) -> Tensor:
        x, labels = self.task.valid_batches.batch(STEPS)
        with self.net.batch_statistics(), true_gradients(self.net):
            parts = zip(x.chunk(self.count), labels.chunk(self.count), strict=True)
            return torch.stack(
                [F.cross_entropy(self.net(own, edges), y) for own, y in parts]
            ).mean()


@torch.no_grad()
def put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def close(values: Tensor, expected: Tensor) -> bool:
    return torch.allclose(values.double(), expected.double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("strategy", CASES)
def test_processes_that_share_batches_search_as_one_that_accumulates(
    strategy: str, found: tuple[int, dict[str, Any]]
) -> None:
    count, theirs = found[0], found[1][strategy]
    task = in_float64(strategy)
    oracle = Oracle(task, count)
    began = weights_of(task)
    losses = [oracle.step(t) for t in range(STEPS)]
    for own, other in zip(losses, theirs["losses"], strict=True):
        assert {name: other[name] for name in own} == pytest.approx(
            own, abs=1e-6
        )  # their mean is kept in float32
    alpha = oracle.state.values()
    assert alpha.keys() == theirs["alpha"].keys()
    assert all(close(theirs["alpha"][name], value) for name, value in alpha.items())
    weights = weights_of(task)
    assert all(close(theirs["weights"][name], value) for name, value in weights.items())
    assert not all(close(began[name], value) for name, value in weights.items())
    assert theirs["genotype"] == task.genotype().to_json()
    if "eigenvalue" in theirs:
        eigenvalue = dominant_eigenvalue(oracle.strategy, oracle.state, oracle.validation_loss)
        assert theirs["eigenvalue"] == pytest.approx(eigenvalue, rel=1e-9)
        # The attack of all is that of one process on the whole batch.
        for t, weights_of_type in attacked(task).items():
            assert close(theirs["attacked"][t], weights_of_type)
