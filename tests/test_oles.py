"""Operation-level early stopping against the published algorithm written out, on a supernet of one
module a candidate, in float64.

The plain version shares with the package the reference supernet, how alpha becomes edge weights and
how Adam moves it, none of what finds an operation's weights, compares gradients or moves w.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from searching import PAIR, search
from several import several
from test_graphs import assert_equal_after, pair
from test_graphs import search as search_to_record
from torch import Tensor, nn

from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.modes import frozen
from darts_bio.networks import FoldedCell, MixedCell, SuperNet
from darts_bio.networks.lanes import OwnedWeights
from darts_bio.networks.reference import ReferenceCell
from darts_bio.process_group import process_group
from darts_bio.rules import held_feedback
from darts_bio.rules.shared_feedback import FlatFeedback
from darts_bio.runtime import derive_seed
from darts_bio.spaces import SPACES
from darts_bio.strategies import REGULARIZERS, detached
from darts_bio.training.engine import named_tensors
from darts_bio.training.method import Method
from darts_bio.training.search import Search

STEPS, WINDOW = 5, 2
RULES = ("bp", "usf(scale='match')")  # whose errors depend on nothing that is drawn
SPACE = "darts(nodes=1, operations=(none, skip_connect, max_pool_3x3, sep_conv_3x3, dil_conv_3x3))"


def of_operations(owned: OwnedWeights) -> dict[str, list[Tensor]]:
    """The weights of each operation, in the order of its layers."""
    found: dict[str, list[Tensor]] = {str(operation): [] for operation in owned.operations}
    for parameter, owners, rows in owned.weights:
        pieces = parameter.detach().split(rows)
        for owner, piece in zip(owners, pieces, strict=True):
            found[str(owned.operations[owner])].append(piece.clone())
    return found


class TestOwnedWeights:
    @pytest.mark.parametrize(
        "space",
        [
            "darts(nodes=2)",
            "nb201",
            "robust_darts(space=s4)",  # noise, and rows that differ by edge
            "by_depth(space=darts(nodes=1), cells=3)",
        ],
    )
    @pytest.mark.parametrize("shared", [None, "match"])
    @pytest.mark.parametrize("cell", [MixedCell, FoldedCell])
    def test_the_rows_of_an_operation_are_the_weights_of_its_module(
        self, space: str, shared: Any, cell: type[MixedCell]
    ) -> None:
        """All forms of a cell begin with the same weights. Those under pfa are not batched."""
        rules = ("bp", "kolen_pollack", "usf", *([] if shared else ["pfa"]))
        nets = []
        for form in (cell, ReferenceCell):
            torch.manual_seed(0)
            nets.append(
                SuperNet(
                    SPACES.build(space),
                    rules,
                    channels=4,
                    layers=3,
                    num_classes=10,
                    cell=form,
                    shared=shared,
                )
            )
        net, plain = nets
        owned = net.owned_weights()
        found, expected = of_operations(owned), {}
        for number, each in enumerate(plain.cells):
            for edge, candidates in enumerate(each.edges):
                for place, module in enumerate(candidates):
                    weights = [p for name, p in module.named_parameters() if "feedback" not in name]
                    if weights:
                        expected[number, edge, place] = weights
        # In the same order, of the same length and values.
        assert [(o.cell, o.edge) for o in owned.operations] == [key[:2] for key in expected]
        for (key, own), weights in zip(found.items(), expected.values(), strict=True):
            assert len(own) == len(weights), key
            assert all(torch.equal(a, b) for a, b in zip(own, weights, strict=True)), key
        for operation in owned.operations:
            row = net.table.rows[operation.cell_type][operation.edge]
            named = [row[column] for column in operation.columns]
            assert [(c.op, c.rule) for c in named if c is not None] == [
                (operation.name, rule) for rule in operation.rules
            ]
            assert len(operation.columns) == (3 if shared else 1)

    @pytest.mark.parametrize("shared", [None, "match"])
    def test_the_rows_of_learned_feedback(self, shared: Any) -> None:
        """Where each weight is the number of its operation, so is what feedback carries."""
        net = SuperNet(
            SPACES.build(SPACE),
            ("bp", "kolen_pollack"),
            channels=4,
            layers=3,
            num_classes=10,
            shared=shared,
        )
        owned = net.owned_weights()
        for of_parameter in owned.weights:
            rows = of_parameter.by_row().view(-1, *[1] * (of_parameter.parameter.dim() - 1))
            of_parameter.parameter.data.copy_(rows.expand_as(of_parameter.parameter))
        of_feedback = {id(f.parameter): f.by_row() for f in owned.feedback}
        carriers = [m for m in net.feedback.modules() if isinstance(m, FlatFeedback)]
        learned = [
            c for c in carriers if any(isinstance(v, nn.Parameter) for v in c.feedback.values())
        ]
        assert learned
        assert len(of_feedback) == len(learned)
        for carrier in learned:
            (kernel,) = carrier.feedback.values()
            assert torch.equal(of_feedback[id(kernel)], carrier.carried_weight.long())


class Plain:
    """The search of one process that stops operations as published, passing each batch in `parts`."""

    def __init__(
        self, task: Search, threshold: float, against: str = "sum", parts: int = 1
    ) -> None:
        self.task, self.threshold, self.against, self.parts = task, threshold, against, parts
        config = task.config
        method = Method.of(config)
        torch.manual_seed(derive_seed("weights", config.seed))
        self.net = SuperNet(
            task.space,
            config.rules,
            channels=config.channels,
            layers=config.layers,
            num_classes=10,
            in_channels=1,
            backbone_rule=config.backbone_rule,
            partial=method.partial,
            shared=config.kernel_scale if method.shares_weights else None,
            cell=ReferenceCell,
        ).double()
        self.strategy: Any = task.strategy
        self.state = self.strategy.begin(task.strategy_state.context)
        in_double(self.state)
        self.weights = list(self.net.parameters())
        self.buffers = [torch.zeros_like(w) for w in self.weights]
        self.operations = {
            (number, edge, place): list(module.parameters())
            for number, cell in enumerate(self.net.cells)
            for edge, candidates in enumerate(cell.edges)
            for place, module in enumerate(candidates)
            if any(True for _ in module.parameters()) and not is_skip(self.net, number, edge, place)
        }
        self.scores: dict[Any, list[float]] = {key: [] for key in self.operations}
        self.stopped: set[Any] = set()
        self.nearest = 1.0

    def loss(self, batch: Any, edges: Any) -> list[Tensor]:
        return [
            F.cross_entropy(self.net(x, edges), y) / self.parts
            for x, y in zip(*(half.chunk(self.parts) for half in batch), strict=True)
        ]

    def gradients(self, batch: Any, edges: Any, of: Sequence[Tensor]) -> list[Tensor]:
        with self.net.drawn(self.strategy.drawn(self.state)):
            return list(
                torch.autograd.grad(
                    sum(self.loss(batch, edges)), of, allow_unused=True, materialize_grads=True
                )
            )

    def kept(self) -> set[int]:
        return {id(p) for key in self.stopped for p in self.operations[key]}

    def of_alpha(self, train: Any, valid: Any) -> list[Tensor]:
        alpha = list(self.state.parameters.values())
        if getattr(self.strategy, "order", 1) == 1:
            with frozen(self.net):
                return self.gradients(valid, self.strategy.edge_weights(self.state), alpha)
        # Equations 6 to 8 of DARTS, where w' and so v know nothing of what is stopped.
        config, rate, kept = self.task.config, self.task.optimizer.lr, self.kept()
        before = [w.detach().clone() for w in self.weights]
        edges = detached(self.strategy.edge_weights(self.state))
        step = self.gradients(train, edges, self.weights)
        for w, g, buffer in zip(self.weights, step, self.buffers, strict=True):
            if id(w) not in kept:
                w.data -= rate * (g + config.weight_decay * w.data + config.momentum * buffer)
        both = [*alpha, *self.weights]
        found = self.gradients(valid, self.strategy.edge_weights(self.state), both)
        v = [
            g * (id(w) not in kept) for w, g in zip(self.weights, found[len(alpha) :], strict=True)
        ]
        small, sides = 0.01 / torch.cat([x.flatten() for x in v]).norm(), []
        put(self.weights, before)
        with held_feedback(self.net):
            for sign in (1, -1):
                put(self.weights, [w + sign * small * x for w, x in zip(before, v, strict=True)])
                edges = self.strategy.edge_weights(self.state)
                sides.append(self.gradients(train, edges, alpha))
        put(self.weights, before)
        return [
            a - rate * (p - m) / (2 * small)
            for a, p, m in zip(found[: len(alpha)], *sides, strict=True)
        ]

    def step(self, t: int) -> None:
        task, config = self.task, self.task.config
        train, valid = task.train_batches.batch(t), task.valid_batches.batch(t)
        self.strategy.prepare(self.state)
        self.strategy.move(self.state, self.of_alpha(train, valid))
        self.strategy.prepare(self.state)
        edges = detached(self.strategy.edge_weights(self.state))
        g = dict(
            zip(map(id, self.weights), self.gradients(train, edges, self.weights), strict=True)
        )
        h = dict(
            zip(map(id, self.weights), self.gradients(valid, edges, self.weights), strict=True)
        )
        for key, parameters in self.operations.items():
            if all((g[id(p)] == 0).all() for p in parameters):  # not drawn
                continue
            of_weights = []
            for p in parameters:
                one, other = g[id(p)], h[id(p)]
                other = one + other if self.against == "sum" else other
                products = (one * other).sum(0)
                norms = one.square().sum(0).sqrt() * other.square().sum(0).sqrt()
                of_weights.append((products / norms.clamp_min(1e-300)).mean().item())
            scores = self.scores[key]
            scores.append(sum(of_weights) / len(of_weights))
            if len(scores) == WINDOW:
                mean = sum(scores) / WINDOW
                self.nearest = min(self.nearest, abs(mean - self.threshold))
                if mean < self.threshold:
                    self.stopped.add(key)
                scores.clear()
        kept = self.kept()
        moved = [w for w in self.weights if id(w) not in kept]
        norm = torch.cat([g[id(w)].flatten() for w in moved]).norm().item()
        factor = min(1.0, config.clip / (norm + 1e-6))
        for w, buffer in zip(self.weights, self.buffers, strict=True):
            if id(w) not in kept:
                buffer.mul_(config.momentum).add_(
                    factor * g[id(w)] + config.weight_decay * w.detach()
                )
                w.data -= task.optimizer.lr * buffer


def put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.data.copy_(value)


def is_skip(net: SuperNet, number: int, edge: int, place: int) -> bool:
    row = net.table.rows[net.plan[number]][edge]
    operations = list(dict.fromkeys(c.op for c in row if c is not None))
    columns = [c.op for c in row if c is not None]
    return (operations if net.shares_weights else columns)[place] == "skip_connect"


def in_double(state: Any) -> None:
    for parameter in state.parameters.values():
        parameter.data = parameter.data.double()


def in_float64(data: ImageData, strategy: str, oles: str, **options: Any) -> Search:
    further = options.pop("regularizers", ())
    task = search(
        data,
        strategy,
        **{"rules": RULES, "space": SPACE, "lr": 0.1, "weight_decay": 0.01} | options,
        regularizers=(oles, "warmup(epochs=0)", *further),
    )
    task.supernet.double()
    in_double(task.strategy_state)
    for batches in (task.train_batches, task.valid_batches):
        read = batches.batch
        batches.batch = lambda t, read=read: (read(t)[0].double(), read(t)[1])  # type: ignore[method-assign]
    task.begin_epoch(0)
    return task


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


CASES: dict[str, tuple[str, str, float, dict[str, Any]]] = {
    "darts": ("darts", "sum", 0.65, {}),
    "the paper's formula": ("darts", "validation", 0.05, {}),
    "second order": ("darts(order=2)", "sum", 0.65, {"clip": 0.5}),
    "one candidate an edge": ("gdas", "sum", 0.65, {}),
    "partial channels": ("pc_darts(k=2)", "sum", 0.65, {}),
    "low memory": ("darts", "sum", 0.65, {"memory": "low"}),
    "shared weights": ("darts", "sum", 0.65, {"weights": "shared"}),
}
"""Strategy, what is compared, a threshold that some operations reach, and further options."""


def numbered(task: Search, values: Tensor) -> dict[Any, Any]:
    """What a search keeps of each operation, by the places of the plain version."""
    found, places = {}, {}
    for operation, value in zip(
        task.regularization.states[0].operations, values.tolist(), strict=True
    ):
        row = task.table.rows[operation.cell_type][operation.edge]
        operations = list(dict.fromkeys(c.op for c in row if c is not None))
        shares = task.supernet.shares_weights
        place = operations.index(operation.name) if shares else operation.columns[0]
        places[operation.cell, operation.edge, place] = operation
        found[operation.cell, operation.edge, place] = value
    return found


def assert_as_plain(task: Search, plain: Plain, further: dict[str, Tensor]) -> None:
    """Scores of the present window, what is stopped, weights; `further` is the task's state."""
    sums, counts, stopped = (
        numbered(task, further[name]) for name in ("sums", "counts", "stopped")
    )
    assert {key for key, value in stopped.items() if value} == plain.stopped
    for key, scores in plain.scores.items():
        assert counts[key] == len(scores)
        assert sums[key] == pytest.approx(sum(scores), abs=1e-10)
    assert plain.nearest > 1e-6  # no rounding decides


class TestAgainstThePaper:
    @pytest.mark.parametrize("case", CASES)
    def test_scores_stops_and_weights(self, case: str, data: ImageData) -> None:
        strategy, against, threshold, options = CASES[case]
        oles = f"oles(threshold={threshold}, window={WINDOW}, against={against})"
        task = in_float64(data, strategy, oles, **options)
        plain = Plain(task, threshold, against)
        held: dict[str, list[Tensor]] = {}
        for t in range(STEPS):
            task.step(t)
            plain.step(t)
            assert_as_plain(task, plain, task.regularization.states[0].state_dict())
            own = of_operations(task.supernet.owned_weights())
            expected = of_operations(plain.net.owned_weights())
            for key, values in own.items():
                for value, other in zip(values, expected[key], strict=True):
                    torch.testing.assert_close(value, other, rtol=0, atol=1e-10)
            for operation, stops in zip(
                task.regularization.states[0].operations,
                task.regularization.states[0].stopped.tolist(),
                strict=True,
            ):
                if stops:  # from the step on in which that was found
                    values = held.setdefault(str(operation), own[str(operation)])
                    assert all(map(torch.equal, values, own[str(operation)]))
        assert 0 < len(plain.stopped) < len(plain.operations)
        alpha = task.strategy_state.values()  # type: ignore[attr-defined]
        for name, value in plain.state.values().items():
            torch.testing.assert_close(alpha[name], value, rtol=0, atol=1e-9)


def shared_out(number: int, file: Path) -> None:
    """What each of two processes does."""
    with process_group():
        task = in_float64(
            load_data("digits", train_images=64), "darts", f"oles(threshold=0.65, window={WINDOW})"
        )
        for t in range(STEPS):
            task.step(t)
        task.synchronize()
    if number == 0:
        torch.save(
            {
                "state": task.regularization.states[0].state_dict(),
                "weights": of_operations(task.supernet.owned_weights()),
            },
            file,
        )


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes_stop_as_one_that_accumulates(tmp_path: Path, data: ImageData) -> None:
    ended = several(2, shared_out, tmp_path / "found", place=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    found = torch.load(tmp_path / "found", weights_only=True)
    task = in_float64(data, "darts", f"oles(threshold=0.65, window={WINDOW})")
    plain = Plain(task, 0.65, parts=2)
    for t in range(STEPS):
        plain.step(t)
    assert_as_plain(task, plain, found["state"])
    assert 0 < len(plain.stopped) < len(plain.operations)
    for key, values in of_operations(plain.net.owned_weights()).items():
        for value, other in zip(values, found["weights"][key], strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-10)


def tensors(task: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(task.state_dict())}


class TestInASearch:
    @pytest.mark.parametrize(
        "options",
        [
            {"rules": ("fa", "brsf"), "amp": "bf16"},
            {"strategy": "rule_aware"},
            {"strategy": "eg(population=4)"},
            {"strategy": "darts_pt(batches=1, share=0.5)"},
            {"strategy": "drnas", "regularizers": ("smooth(kind=adversarial, steps=1)",)},
        ],
    )
    def test_resumed_amid_a_window(self, options: dict[str, Any], data: ImageData) -> None:
        """Bit for bit as without."""
        further = options.get("regularizers", ())
        options = options | {"regularizers": ("oles(threshold=0.8, window=3)", *further)}
        task, resumed = search(data, **options), search(data, **options)

        def train(one: Search, epochs: range) -> None:
            for number in epochs:
                one.begin_epoch(number)
                for t in range(number * one.steps_per_epoch, (number + 1) * one.steps_per_epoch):
                    one.step(t)

        train(task, range(2))
        assert task.steps_per_epoch == 4
        assert task.regularization.states[0].counts.any()
        resumed.load_state_dict(copy.deepcopy(task.state_dict()))
        for one in (task, resumed):
            train(one, range(2, 3))
        ends, others = tensors(task), tensors(resumed)
        assert ends.keys() == others.keys()
        assert all(torch.equal(ends[name], others[name]) for name in ends)
        assert task.regularization.states[0].stopped.any()

    @pytest.mark.parametrize(
        ("optimizer", "weights"), [("sgd", "own"), ("nesterov", "shared"), ("adamw", "own")]
    )
    def test_nothing_moves_what_is_stopped(
        self, optimizer: str, weights: str, data: ImageData
    ) -> None:
        """Neither momentum nor decay; not feedback that is learned beside it either."""
        task = search(
            data,
            rules=("bp", "kolen_pollack"),
            weights=weights,
            optimizer=optimizer,
            weight_decay=0.1,
            regularizers=("oles(threshold=0.99, window=1)",),
        )
        owned = task.supernet.owned_weights()
        skips = {n for n, o in enumerate(owned.operations) if o.name == "skip_connect"}
        task.begin_epoch(0)
        before = tensors(task)
        task.step(0)  # in which all are found to disagree
        state = task.regularization.states[0]
        assert state.stopped.tolist() == [n not in skips for n in range(len(state.stopped))]
        statistics = tensors(task)
        task.step(1)
        after = {id(p): p.detach() for p in task.supernet.parameters()}
        names = {id(p): f"supernet.{name}" for name, p in task.supernet.named_parameters()}
        for of_parameter in [*owned.weights, *owned.feedback]:
            value = after[id(of_parameter.parameter)]
            old = before[names[id(of_parameter.parameter)]]
            same = (value == old).flatten(1).all(1) if value.dim() > 1 else value == old
            assert same.tolist() == [n not in skips for n in of_parameter.by_row().tolist()]
        # What is no operation's moves on, and so do batch norms' statistics.
        assert (
            after[id(task.supernet.classifier.weight)] != before["supernet.classifier.weight"]
        ).any()
        moving = [name for name in statistics if "cells" in name and name.endswith("running_mean")]
        ends = tensors(task)
        assert moving
        assert not any(torch.equal(statistics[name], ends[name]) for name in moving)

    def test_the_further_pass_leaves_no_trace(self, data: ImageData) -> None:
        """Where nothing is ever stopped, the search is the one without, bit for bit."""
        task = search(data, regularizers=("oles(window=5)",))
        plain = search(data, regularizers=())
        for one in (task, plain):
            one.begin_epoch(0)
            for t in range(4):
                one.step(t)
        ends, expected = tensors(task), tensors(plain)
        assert all(torch.equal(ends[name], expected[name]) for name in expected)

    @pytest.mark.parametrize(
        "strategy", [pytest.param("darts(order=2)", marks=pytest.mark.slow), "gdas"]
    )
    def test_recorded(self, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
        tasks = pair(
            monkeypatch,
            lambda: search_to_record(
                strategy=strategy,
                space=PAIR,
                regularizers=("oles(threshold=0.65, window=2)", "warmup(epochs=0)"),
                rules=("bp", "fa"),
                epochs=3,
            ),
        )
        assert_equal_after(tasks, epochs=2)
        recorded = set(tasks[0].run.recorded)
        assert {"compare", "_update"} <= recorded
        assert ("_both_gradients" in recorded) == (strategy != "gdas")
        for task in tasks:
            stopped = task.regularization.states[0].stopped
            assert stopped.any()
            assert not stopped.all()

    def test_what_is_recorded_of_an_epoch(self, data: ImageData) -> None:
        task = search(data, regularizers=("oles(threshold=0.99, window=1)", "warmup(epochs=0)"))
        task.begin_epoch(0)
        task.step(0)
        assert task.end_epoch(0)["regularizer/stopped"] == 1  # of those that have a score

    def test_bad_options(self, data: ImageData) -> None:
        for oles, message in (
            ("oles(threshold=2)", "oles: threshold: expected a number"),
            ("oles(window=0)", "oles: window: expected a whole number"),
            ("oles(against=train)", "unknown value of against in oles 'train'"),
        ):
            with pytest.raises(InputError, match=message):
                REGULARIZERS.build(oles)
        with pytest.raises(InputError, match="expected an operation with weights in the space"):
            search(
                data,
                space="darts(nodes=1, operations=(none, skip_connect, max_pool_3x3))",
                regularizers=("oles",),
            )
        with pytest.raises(
            InputError, match=r"window: expected at most the \d+ steps of the search"
        ):
            search(data, regularizers=("oles(window=1000)",))
        with pytest.raises(InputError, match="--regularizers: has no say"):
            search(data, "random", regularizers=("oles(window=1)",))
