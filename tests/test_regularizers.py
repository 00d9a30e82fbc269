"""Regularisers and objectives: hand-computed penalties, known eigenvalues, and how a search ends by
them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searching import CPU, PAIR, begin, context, epoch, search
from torch import Tensor

from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.networks import build_network, multiply_adds, parameters
from darts_bio.rules import audit
from darts_bio.spaces import SPACES, Genotype
from darts_bio.strategies import REGULARIZERS, Objective, Regularizer
from darts_bio.strategies.eigenvalue_stop import dominant_eigenvalue, largest_eigenvalue


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


class TestWarmup:
    def test_holds_alpha_for_its_epochs_under_any_strategy(self, data: ImageData) -> None:
        for strategy in ("darts", "gdas", "pc_darts(k=1)"):
            task = search(data, strategy=strategy, regularizers=("warmup(epochs=2)",))
            alphas = [{t: a.detach().clone() for t, a in task.strategy_state.alpha.items()}]
            for number in range(3):
                epoch(task, number)
                alphas.append({t: a.detach().clone() for t, a in task.strategy_state.alpha.items()})
            still = [
                all(torch.equal(a, alphas[0][t]) for t, a in now.items()) for now in alphas[1:]
            ]
            assert still == [True, True, False]

    def test_more_than_one(self, data: ImageData) -> None:
        with pytest.raises(InputError, match="expected one warmup, found 2"):
            search(data, regularizers=("warmup(epochs=1)", "warmup(epochs=2)"))

    def test_as_long_as_the_search(self, data: ImageData) -> None:
        with pytest.raises(
            InputError,
            match=r"expected fewer than the 4 of the search, found 15; use warmup\(epochs=3",
        ):
            search(data, regularizers=("warmup",))


class TestFactorised:
    def test_a_pair_is_operation_times_rule_given_the_operation(self) -> None:
        darts, state = begin("darts(init=1.0)", "darts(nodes=1)", factorised=True)
        table = state.context.table
        for t, weights in darts.edge_weights(state).items():
            a, b = (state.parameters[f"{t}/{part}"].detach() for part in ("operation", "rule"))
            for e, row in enumerate(table.rows[t]):
                names = list(dict.fromkeys(c.op for r in table.rows[t] for c in r if c is not None))
                present = [op for op in names if any(c is not None and c.op == op for c in row)]
                total = sum(math.exp(a[e, names.index(op)]) for op in present)
                for i, c in enumerate(row):
                    if c is None:
                        assert weights[e, i] == 0
                        continue
                    among = [
                        math.exp(b[e, j])
                        for j, d in enumerate(row)
                        if d is not None and d.op == c.op
                    ]
                    expected = (
                        math.exp(a[e, names.index(c.op)]) / total * math.exp(b[e, i]) / sum(among)
                    )
                    assert weights[e, i].item() == pytest.approx(expected, rel=1e-5)

    def test_operations_of_many_rules_weigh_no_more_at_first(self) -> None:
        darts, state = begin("darts(init=0)", PAIR, rules=("fa", "usf", "brsf"), factorised=True)
        assert darts.edge_weights(state)["normal"][0].tolist() == pytest.approx(
            [1 / 3, 1 / 3, 1 / 9, 1 / 9, 1 / 9]
        )

    def test_the_operation_is_chosen_before_its_rule(self) -> None:
        """The convolution has 0.6 and the skip 0.4; of its three rules none has more than 0.24."""
        darts, state = begin("darts(init=0)", PAIR, rules=("fa", "usf", "brsf"), factorised=True)
        names = [c.op for c in state.context.table.rows["normal"][0] if c is not None]
        place = {op: number for number, op in enumerate(dict.fromkeys(names))}
        with torch.no_grad():
            for name, parameter in state.parameters.items():
                if name.endswith("/operation"):
                    parameter.fill_(-9.0)
                    parameter[:, place["skip_connect"]] = math.log(0.4)
                    parameter[:, place["sep_conv_3x3"]] = math.log(0.6)
                else:
                    parameter.zero_()
                    parameter[:, names.index("sep_conv_3x3") + 1] = math.log(4 / 3)
        shares = darts.edge_weights(state)["normal"][0]
        assert shares.argmax() == names.index("skip_connect")
        cells = state.context.space.derive(darts.final_weights(state), state.context.table)
        assert {str(edge.candidate) for edge in cells["normal"].edges} == {"sep_conv_3x3:usf"}

    @pytest.mark.parametrize(
        "strategy",
        ["darts", "darts(order=2)", "pc_darts(k=2)", "gdas", "snas", "drnas", "fair_darts"],
    )
    def test_every_gradient_strategy_moves_it(self, strategy: str, data: ImageData) -> None:
        task = search(data, strategy=strategy, regularizers=("factorised", "warmup(epochs=0)"))
        own: Any = task.strategy_state
        before = {name: p.detach().clone() for name, p in own.parameters.items()}
        epoch(task, 0)
        assert {"normal/operation", "normal/rule"} <= set(before)
        assert all(
            not torch.equal(p, before[name]) and p.isfinite().all()
            for name, p in own.parameters.items()
        )

    @pytest.mark.parametrize("strategy", ["eg", "random_paths"])
    @pytest.mark.parametrize("name", ["factorised", "edge_normalization"])
    def test_where_there_is_no_alpha(self, name: str, strategy: str, data: ImageData) -> None:
        with pytest.raises(InputError) as error:
            search(data, strategy=strategy, regularizers=(name,))
        assert str(error.value) == (
            f"regularizer {name}: expected a strategy that moves alpha along a gradient, found "
            f"{strategy}; choose one that does, such as darts, or leave the regularizer out"
        )


class TestEntropy:
    @pytest.mark.parametrize("level", ["pair", "operation", "rule"])
    def test_by_hand(self, level: str) -> None:
        entropy, searched = REGULARIZERS.build(f"entropy(weight=2.0, level={level})"), context(PAIR)
        state, table = entropy.begin(searched), searched.table
        shares = {t: torch.rand(table.shape(t), dtype=torch.float64) for t in table.rows}
        values = []
        for t, own in shares.items():
            own *= table.mask(t)
            own /= own.sum(1, keepdim=True)
            for row, p in zip(table.rows[t], own.tolist(), strict=True):
                ops: dict[str, list[float]] = {}
                for c, q in zip(row, p, strict=True):
                    if c is not None:
                        ops.setdefault(c.op, []).append(q)
                pairs = -sum(q * math.log(q) for q in p if q > 0)
                operations = -sum(sum(qs) * math.log(sum(qs)) for qs in ops.values())
                rules = -sum(q * math.log(q / sum(qs)) for qs in ops.values() for q in qs)
                values.append({"pair": pairs, "operation": operations, "rule": rules}[level])
        assert entropy.penalty(state, shares).item() == pytest.approx(
            2 * sum(values) / len(values), rel=1e-9
        )

    def test_of_single_candidates_is_zero_with_a_gradient(self) -> None:
        entropy = REGULARIZERS.build("entropy")
        state = entropy.begin(context(PAIR))
        alpha = {
            t: torch.full(m.shape[:2], -200.0)
            .index_fill(1, torch.tensor([1]), 200.0)
            .requires_grad_()
            for t, m in state.members.items()
        }
        penalty = entropy.penalty(state, {t: a.softmax(1) for t, a in alpha.items()})
        penalty.backward()
        assert penalty.item() == pytest.approx(0, abs=1e-6)
        assert all(a.grad is not None and a.grad.isfinite().all() for a in alpha.values())

    def test_drives_alpha_to_single_candidates_or_keeps_it_even(self, data: ImageData) -> None:
        found = []
        for weight in (3.0, 0.0, -3.0):
            task = search(
                data,
                strategy="darts(lr=0.1, init=0.1)",
                regularizers=(f"entropy(weight={weight})",),
            )
            epoch(task, 0)
            epoch(task, 1)
            shares = task.strategy.final_weights(task.strategy_state)["reduce"]
            found.append(-(shares * shares.clamp_min(1e-9).log()).sum(1).mean().item())
        assert found[0] < found[1] < found[2]


class TestPenaltiesOnAlpha:
    @pytest.mark.parametrize("order", [1, 2])
    def test_the_gradient_of_alpha_grows_by_that_of_its_penalty(
        self, data: ImageData, order: int
    ) -> None:
        """A third of the squared norm of the logits, whose gradient is two thirds of alpha."""

        @REGULARIZERS.register("norm_test_regularizer")
        @dataclass(frozen=True)
        class Norm(Regularizer[Any]):
            def alpha_penalty(self, state: Any, alpha: Mapping[str, Tensor]) -> Tensor:
                return sum((a.square().sum() for a in alpha.values()), torch.zeros(())) / 3

        try:
            plain, with_norm = (
                search(data, strategy=f"darts(order={order}, init=1.0)", regularizers=names)
                for names in ((), ("norm_test_regularizer",))
            )
            before = {t: a.detach().clone() for t, a in plain.strategy_state.alpha.items()}
            for task in (plain, with_norm):
                task.begin_epoch(0)
                task.step(0)
            for t, own in before.items():
                gradients = [task.strategy_state.alpha[t].grad for task in (plain, with_norm)]
                assert gradients[0] is not None
                assert gradients[1] is not None
                assert torch.allclose(gradients[1] - gradients[0], 2 / 3 * own, atol=1e-5)
        finally:
            REGULARIZERS.unregister("norm_test_regularizer")


OPTIONS = {
    "entropy": ("level=pair", "level=operation", "level=rule"),
    "oles": ("window=5",),
    "smooth": ("kind=random", "kind=adversarial"),
    "warmup": ("epochs=1",),
}
SPECS = [
    f"{name}({options})" if options else name
    for name in REGULARIZERS
    for options in OPTIONS.get(name, ("",))
]


class TestEdgesWithoutWeight:
    """Individuals have such: a genotype leaves edges out, and so do the trials of darts_pt."""

    @pytest.mark.parametrize("spec", SPECS)
    def test_whatever_is_made_of_them_is_finite(self, spec: str) -> None:
        regularizer, searched = REGULARIZERS.build(spec), context(PAIR)
        state = regularizer.begin(searched)
        regularizer.begin_epoch(state, 3)
        regularizer.prepare(state)
        weights = {}
        for t in searched.table.rows:
            equal = searched.table.equal_shares(t).float()
            equal[0] = 0.0
            weights[t] = torch.stack([equal, equal * 0]).requires_grad_()
        lent = regularizer.lent(state, weights)
        penalty = torch.as_tensor(regularizer.penalty(state, weights))
        total = penalty.sum() + sum(of_type.square().sum() for of_type in lent.values())
        gradients = torch.autograd.grad(total, list(weights.values()))
        first = {t: of_type[0].detach() for t, of_type in weights.items()}
        moved = regularizer.perturbed(
            state, first, lambda at: sum((w.square().sum() for w in at.values()), torch.zeros(()))
        )
        for tensor in (*lent.values(), penalty, *gradients, *moved.values()):
            assert tensor.isfinite().all()
        for t in weights:  # what is taken out stays out
            assert (lent[t][0, 0] == 0).all()
            assert (lent[t][1] == 0).all()
            assert (moved[t][0] == 0).all()

    @pytest.mark.parametrize("level", ["pair", "operation", "rule"])
    def test_have_no_entropy(self, level: str) -> None:
        entropy, searched = REGULARIZERS.build(f"entropy(weight=1, level={level})"), context(PAIR)
        state = entropy.begin(searched)
        whole = {t: searched.table.equal_shares(t).double() for t in searched.table.rows}
        half = {t: of_type.clone() for t, of_type in whole.items()}
        for of_type in half.values():  # both edges have the same candidates, so the mean halves
            of_type[0] = 0.0
        assert entropy.penalty(state, half).item() == pytest.approx(
            entropy.penalty(state, whole).item() / 2
        )

    @pytest.mark.parametrize("strategy", ["random_paths(samples=8, best=2)", "darts_pt(share=0)"])
    def test_individuals_with_them_are_compared_by_their_losses(
        self, strategy: str, data: ImageData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        space = "darts(nodes=2, operations=(none, skip_connect, max_pool_3x3))"
        task = search(data, strategy, space=space, regularizers=("entropy",), epochs=1)
        losses, measure = [], task.individuals.measure

        def noted(*args: Any) -> tuple[Tensor, Tensor]:
            losses.append(measure(*args)[0])
            return measure(*args)

        monkeypatch.setattr(task.individuals, "measure", noted)
        epoch(task, 0)
        assert torch.cat(losses).isfinite().all()

    def test_a_penalty_that_is_no_number_is_refused(
        self, data: ImageData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = search(data, "random_paths(samples=8, best=2)", epochs=1, regularizers=("entropy",))
        penalties = torch.tensor([1.0, *7 * [math.nan]])
        monkeypatch.setattr(
            type(task.regularization.regularizers[0]), "penalty", lambda *_: penalties
        )
        with pytest.raises(InputError, match="finite penalty of each .*, found nan for 7 of 8"):
            epoch(task, 0)


class TestEarlyStops:
    def test_skips_end_the_search_with_the_cell_that_has_them(self, data: ImageData) -> None:
        task = search(data, regularizers=("skip_stop(most=2)",), strategy="darts(init=0)")
        own: Any = task.strategy_state
        with torch.no_grad():
            own.alpha["normal"][0, 1] = 5.0
        assert epoch(task, 0)["regularizer/skips"] == 1
        assert not task.finished
        with torch.no_grad():
            own.alpha["normal"][1, 1] = 5.0
        assert epoch(task, 1)["regularizer/skips"] == 2
        assert task.finished

    def test_dominant_eigenvalue_of_a_known_hessian(self) -> None:
        """Fair DARTS at alpha = 0 has weights 1/2 + alpha/4 + O(alpha^3): the Hessian of w^T A w is
        A/8 there.
        """
        fair, state = begin("fair_darts(init=0)", PAIR, rules=("fa",))
        n = [m.sum().item() for m in state.masks.values()]
        matrix = torch.randn(sum(n), sum(n), generator=torch.Generator().manual_seed(0))
        matrix = matrix + matrix.T

        def loss(weights: Any) -> Tensor:
            w = torch.cat([weights[t][m] for t, m in state.masks.items()]) - 0.5
            return w @ matrix @ w

        expected = (torch.linalg.eigvalsh(matrix).max() / 8).item()
        assert dominant_eigenvalue(fair, state, loss) == pytest.approx(expected, rel=2e-2)
        assert all(a.eq(0).all() for a in state.alpha.values())

    @pytest.mark.parametrize("n", [1, 2, 13, 80, 300])
    @pytest.mark.parametrize("kind", ["zero", "rank one", "indefinite", "negative", "clustered"])
    def test_largest_eigenvalue_within_its_residual(self, kind: str, n: int) -> None:
        draw = np.random.default_rng(n)
        square = draw.standard_normal((n, n))
        axes = np.linalg.qr(square)[0]
        matrix = {
            "zero": np.zeros((n, n)),
            "rank one": np.outer(square[0], square[0]),
            "indefinite": square + square.T,
            "negative": -square @ square.T - np.eye(n),
            "clustered": axes @ np.diag(np.linspace(1, 1.05, n)) @ axes.T,
        }[kind]
        products = 0

        def product(x: np.ndarray) -> np.ndarray:
            nonlocal products
            products += 1
            assert np.linalg.norm(x) == pytest.approx(1)
            return matrix @ x

        spectrum = np.linalg.eigvalsh(matrix)
        found = largest_eigenvalue(product, n)
        assert products <= n
        # A Ritz value is at most the largest eigenvalue, and its residual bounds the distance to
        # the nearest one.
        assert found <= spectrum[-1] + 1e-9 * abs(spectrum).max()
        assert abs(spectrum - found).min() <= 1.01e-2 * abs(found)
        if n <= 12 or kind in ("zero", "rank one"):
            assert found == pytest.approx(spectrum[-1], rel=1e-9, abs=1e-9)

    def test_a_grown_eigenvalue_ends_the_search_with_the_alpha_of_before(
        self, data: ImageData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = iter([1.0, 1.0, 1.0, 1.0, 1.6, 3.0])
        monkeypatch.setattr(
            "darts_bio.strategies.eigenvalue_stop.dominant_eigenvalue", lambda *_: next(values)
        )
        options: dict[str, Any] = {
            "epochs": 8,
            "regularizers": ("eigenvalue_stop(window=2, lag=2, start=2)",),
        }
        task, other = search(data, **options), search(data, **options)
        alphas = []
        for number in range(8):
            if number == 3:
                other.load_state_dict(copy.deepcopy(task.state_dict()))
                assert other.regularization.states[0].state_dict()["measured"] == [1.0, 1.0, 1.0]
            numbers = epoch(task, number)
            alphas.append({t: a.detach().clone() for t, a in task.strategy_state.alpha.items()})
            if task.finished:
                break
        # Means over two: 1, 1, 1, 1, 1.3, 2.3; the sixth is more than 1.3 times the fourth, which
        # stands for the third epoch.
        assert number == 5
        assert numbers["regularizer/eigenvalue"] == 3.0
        assert all(torch.equal(a, alphas[2][t]) for t, a in task.strategy_state.alpha.items())

    @given(
        values=st.lists(st.floats(0.1, 3.0), min_size=30, max_size=30),
        window=st.integers(1, 6),
        lag=st.integers(1, 5),
        every=st.integers(1, 3),
        start=st.integers(0, 12),
    )
    def test_stops_when_and_where_the_published_criterion_does(
        self, values: list[float], window: int, lag: int, every: int, start: int
    ) -> None:
        """The criterion, as its authors' code states it, on a list of eigenvalues that is known."""
        stop = REGULARIZERS.build(
            f"eigenvalue_stop(window={window}, lag={lag}, every={every}, start={start})"
        )
        strategy, alpha = begin("darts", PAIR)
        state = stop.begin(alpha.context)
        told = iter(values)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "darts_bio.strategies.eigenvalue_stop.dominant_eigenvalue", lambda *_: next(told)
            )
            found = None
            for number in range(30):
                for parameter in alpha.parameters.values():
                    parameter.data.fill_(float(number))
                lookout = SimpleNamespace(
                    strategy=strategy, strategy_state=alpha, validation_loss=None
                )
                ends, _ = stop.after_epoch(state, number, lookout)
                if ends:
                    value = next(iter(alpha.parameters.values())).flatten()[0]
                    found = number, float(value.detach())
                    break
        measured: list[float] = []
        averages: list[float] = []
        expected = None
        for number in range(0, 30, every):
            measured.append(values[number // every])
            if len(measured) < math.ceil(window / 2):
                continue
            last = measured if len(measured) < window else measured[len(measured) - window :]
            averages.append(sum(last) / len(last))
            of_average = number - every * (window // 2)
            late = of_average - every * lag >= start and len(averages) > lag
            if late and averages[-1] / averages[-1 - lag] > 1.3:
                expected = number, float(of_average - every * lag)
                break
        assert found == expected

    def test_eigenvalue_of_a_search_is_finite_and_leaves_no_trace(self, data: ImageData) -> None:
        task = search(data, regularizers=("eigenvalue_stop",), strategy="darts(init=1.0)")
        epoch(task, 0)
        state = copy.deepcopy(task.state_dict())
        numbers = [task.end_epoch(0)["regularizer/eigenvalue"] for _ in range(2)]
        assert numbers[0] == numbers[1] != 0
        assert math.isfinite(numbers[0])
        for name, value in task.supernet.state_dict().items():
            assert torch.equal(value, state["supernet"][name])
        assert all(
            torch.equal(a, state["strategy"]["parameters"][t])
            for t, a in task.strategy_state.alpha.items()
        )

    def test_needs_a_gradient(self, data: ImageData) -> None:
        with pytest.raises(
            InputError, match="expected a strategy that moves alpha along a gradient, found random"
        ):
            search(data, strategy="random", regularizers=("eigenvalue_stop",))


def test_any_number_goes_together_and_goes_on_from_the_state(data: ImageData) -> None:
    every = (
        "warmup(epochs=1)",
        "factorised",
        "entropy(level=rule)",
        "skip_stop(most=9)",
        "eigenvalue_stop",
    )
    tasks = [search(data, regularizers=every) for _ in range(2)]
    epoch(tasks[0], 0)
    numbers = epoch(tasks[0], 1)
    assert set(numbers) == {"regularizer/skips", "regularizer/eigenvalue"}
    tasks[1].load_state_dict(copy.deepcopy(tasks[0].state_dict()))
    assert epoch(tasks[0], 2) == epoch(tasks[1], 2)


class TestObjective:
    def objective(
        self, *specs: str, space: str = "darts(nodes=2)", rules: tuple[str, ...] = ("bp", "fa")
    ) -> Any:
        built = SPACES.build(space)
        sizes: dict[str, Any] = {
            "channels": 4,
            "layers": 4 if "darts" in space else 3,
            "image_size": (9, 12),
        }
        return (
            Objective(specs, built, built.table(rules), device=CPU, **sizes),
            built,
            built.table(rules),
            sizes,
        )

    @pytest.mark.parametrize("space", ["darts(nodes=2)", "nb201"])
    @pytest.mark.parametrize("cost", ["parameters", "multiply_adds", "weight_transport"])
    def test_differences_of_penalties_are_those_of_networks(self, cost: str, space: str) -> None:
        """What two genotypes differ in is their edges alone: measured on the networks
        themselves.
        """
        objective, built, table, sizes = self.objective(f"{cost}(weight=1)", space=space)
        draw = torch.Generator().manual_seed(0)
        penalties, costs = [], []
        for _ in range(5):
            weights = {t: torch.rand(table.shape(t), generator=draw) for t in table.rows}
            if built.kept_edges:  # with every edge the same number of candidates compete
                weights = {t: w / table.mask(t).sum(1, keepdim=True) for t, w in weights.items()}
            cells = built.derive({t: w * table.mask(t) for t, w in weights.items()}, table)
            shares = {t: torch.zeros(table.shape(t)) for t in table.rows}
            for t, cell in cells.items():
                for edge in cell.edges:
                    e = built.edges.index((edge.node, edge.input))
                    column = next(
                        i
                        for i, c in enumerate(table.rows[t][e])
                        if c is not None
                        and c.op == edge.candidate.op
                        and c.rule in (edge.candidate.rule, "bp")
                        and (edge.candidate.rule is None or c.rule == edge.candidate.rule)
                    )
                    shares[t][e, column] = 1.0
            penalties.append(objective.penalty(shares).item())
            genotype = Genotype(space, cells)
            net = build_network(genotype, channels=4, layers=sizes["layers"], in_channels=3)
            if cost == "parameters":
                costs.append(parameters(net))
            elif cost == "multiply_adds":
                costs.append(multiply_adds(net, lambda net=net: net(torch.zeros(1, 3, 9, 12))))
            else:
                costs.append(audit(net).transported)
        scale = (penalties[1] - penalties[0]) / (costs[1] - costs[0])
        assert scale > 0
        for penalty, own in zip(penalties, costs, strict=True):
            assert penalty - penalties[0] == pytest.approx(
                scale * (own - costs[0]), rel=1e-3, abs=1e-5
            )

    def test_equal_shares_cost_the_weight(self) -> None:
        objective, _, table, _ = self.objective(
            "parameters(weight=0.3)", "multiply_adds(weight=0.1)"
        )
        equal = {t: table.mask(t) / table.mask(t).sum(1, keepdim=True) for t in table.rows}
        assert objective.penalty(equal).item() == pytest.approx(0.4)
        stacked = {t: torch.stack([w, 0 * w]) for t, w in equal.items()}
        assert objective.penalty(stacked).tolist() == pytest.approx([0.4, 0.0])

    def test_a_search_for_plausible_nets_leaves_weight_transport(self, data: ImageData) -> None:
        shares = []
        for objective in ((), ("weight_transport(weight=30)",)):
            options: dict[str, Any] = {
                "rules": ("bp", "usf"),
                "strategy": "darts(lr=0.2)",
                "objective": objective,
            }
            task = search(data, **options, epochs=2)
            epoch(task, 0)
            epoch(task, 1)
            shares.append(
                task.strategy.final_weights(task.strategy_state)["reduce"][:, [1, 3]].sum().item()
            )  # skip and sep_conv by bp
        assert shares[1] < 0.2 * shares[0]
        assert all(e.candidate.rule != "bp" for e in task.genotype().cells["reduce"].edges)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("parameter(weight=1)", "unknown cost 'parameter': did you mean 'parameters'"),
            ("parameters", r"--objective: expected parameters\(weight=...\), found parameters"),
            (
                "parameters(weight=0)",
                "--objective parameters: weight: expected a number above 0, found 0",
            ),
            (
                "parameters(weight=a)",
                "--objective parameters: weight: expected a number above 0, found 'a'",
            ),
        ],
    )
    def test_bad_ones(self, spec: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            self.objective(spec)

    def test_a_cost_that_nobody_has(self) -> None:
        with pytest.raises(
            InputError,
            match="weight_transport: no candidate of this search has that cost; add bp to --rules, or",
        ):
            self.objective("weight_transport(weight=1)", rules=("fa", "usf"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("skip_stop(most=0)", "expected a whole number of at least 1, found 0"),
        ("entropy(level=op)", "unknown level of the entropy regularizer 'op'"),
        ("entropy(weight=much)", "entropy: weight: expected a number, found 'much'"),
        ("eigenvalue_stop(lag=0)", "lag: expected a whole number of at least 1, found 0"),
        ("eigenvalue_stop(start=-1)", "start: expected a whole number of at least 0, found -1"),
        ("eigenvalue_stop(factor=0)", "factor: expected a number above 0, found 0"),
        ("skip_sop", "unknown regularizer 'skip_sop': did you mean 'skip_stop'"),
    ],
)
def test_bad_options_are_told_in_a_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        REGULARIZERS.build(spec)


def test_smooth_climbs_where_the_loss_depends_on_one_type_of_cells_alone() -> None:
    """The other type has the gradient 0, and its edges weigh 1 as before."""
    smooth, of = REGULARIZERS.build("smooth(kind=adversarial)"), context("darts(nodes=1)")
    state = smooth.begin(of)
    smooth.begin_epoch(state, 5)
    smooth.prepare(state)
    masks = {t: of.table.mask(t) for t in of.table.rows}
    weights = {t: mask / mask.sum(1, keepdim=True) for t, mask in masks.items()}
    slope = torch.arange(weights["normal"].numel()).view_as(weights["normal"]) % 3
    moved = smooth.perturbed(state, weights, lambda w: (w["normal"] * slope).sum())
    assert (moved["normal"] * slope).sum() > (weights["normal"] * slope).sum()
    for of_type in moved.values():
        torch.testing.assert_close(of_type.sum(1), torch.ones(len(of_type)))
