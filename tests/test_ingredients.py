"""Ingredients of methods that go with any strategy, each against its paper written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from searching import PAIR, begin, context, epoch, search
from test_conformance import train_a_little
from torch import Tensor

from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.networks import SuperNet
from darts_bio.spaces import SPACES
from darts_bio.strategies import REGULARIZERS
from darts_bio.training.engine import named_tensors

SAMPLERS = ("darts", "darts(order=2)", "gdas", "snas", "snas(hard=True)", "drnas", "fair_darts")
PC_DARTS = ("partial_channels(k=2)", "edge_normalization", "warmup(epochs=1)")
INGREDIENTS = (
    *[(name, PC_DARTS) for name in SAMPLERS],
    ("rule_aware", PC_DARTS),
    ("darts_pt(base=drnas, batches=1)", PC_DARTS),
    ("darts", ("auxiliary_skip", "beta_decay", "warmup(epochs=0)")),
    ("gdas", ("auxiliary_skip", "smooth", "warmup(epochs=0)")),
    ("drnas", ("smooth(kind=adversarial, steps=2)", "warmup(epochs=0)")),
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


def tensors(task: Any) -> dict[str, Tensor]:
    """All tensors of a search's state, by name."""
    return {name: tensor.detach().clone() for name, tensor in named_tensors(task.state_dict())}


class TestTogether:
    @pytest.mark.parametrize(("strategy", "regularizers"), INGREDIENTS)
    def test_runs_resumes_and_retrains(
        self, strategy: str, regularizers: tuple[str, ...], data: ImageData
    ) -> None:
        """Saved after its second epoch and gone on with in a new search, it ends bit for bit as
        without; of what it finds every layer learns."""
        task = search(data, strategy, regularizers=regularizers)
        before = tensors(task)
        for number in range(2):
            epoch(task, number)
        saved = copy.deepcopy(task.state_dict())
        resumed = search(data, strategy, regularizers=regularizers)
        resumed.load_state_dict(saved)
        for one in (task, resumed):
            for number in (2, 3):
                epoch(one, number)
        ends, ends_resumed = tensors(task), tensors(resumed)
        assert ends.keys() == ends_resumed.keys()
        assert all(torch.equal(ends[name], ends_resumed[name]) for name in ends)
        assert all(tensor.isfinite().all() for tensor in ends.values())
        # Every kind of parameter moved: w, alpha, and the betas of edges.
        moved = [name for name in before if not torch.equal(before[name], ends[name])]
        assert any(name.startswith("supernet") for name in moved)
        alpha = [n for n in before if "parameters." in n and n.startswith("strategy")]
        assert set(alpha) <= set(moved)
        assert any(name.endswith("/beta") for name in alpha) == (regularizers == PC_DARTS)

        train_a_little(task.genotype(), data)

    def test_pc_darts_is_darts_with_its_three_ingredients(self, data: ImageData) -> None:
        """Bit for bit: weights, alpha, betas, genotype."""
        whole = search(data, "pc_darts(k=2)", regularizers=("warmup(epochs=1)",))
        parts = search(data, "darts(lr=6e-4)", regularizers=PC_DARTS)
        for number in range(3):
            epoch(whole, number)
            epoch(parts, number)
        one, other = tensors(whole), tensors(parts)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert whole.genotype() == parts.genotype()

    @pytest.mark.parametrize("strategy", SAMPLERS)
    def test_each_sampler_is_weighted_by_the_edges_shares(
        self, float64: None, strategy: str
    ) -> None:
        """Node by node."""
        sampler, state = begin(strategy, "darts(nodes=3)", normalizes_edges=True)
        sampler.prepare(state)
        for name, beta in state.parameters.items():
            if name.endswith("/beta"):
                beta.data = torch.randn(len(beta))
        sampled = sampler.sampled_weights(state)
        edges = state.context.space.edges
        for t, weights in sampler.edge_weights(state).items():
            beta = state.parameters[f"{t}/beta"].detach()
            for e, (node, _) in enumerate(edges):
                rivals = [i for i, (other, _) in enumerate(edges) if other == node]
                share = beta[e].exp() / beta[rivals].exp().sum()
                if strategy.startswith("drnas"):  # each call draws anew
                    assert weights[e].sum().item() == pytest.approx(share.item(), rel=1e-10)
                else:
                    torch.testing.assert_close(
                        weights[e], sampled[t][e] * share, rtol=1e-10, atol=1e-14
                    )

    def test_bad_pairs(self, data: ImageData) -> None:
        for strategy, regularizer, message in (
            ("pc_darts(k=2)", "partial_channels(k=4)", "has a k of its own, 2; leave the"),
            ("eg", "edge_normalization", "that moves alpha along a gradient, found eg"),
            ("eg", "beta_decay", "that moves alpha along a gradient, found eg"),
            ("random_paths", "skip_stop", "takes shape epoch by epoch, found random_paths"),
            ("darts", "partial_channels(k=3)", "expected a multiple of 3"),
            ("darts", "partial_channels(k=0)", "k: expected a whole number"),
            ("darts", "smooth(epsilon=2)", "epsilon: expected a number"),
            ("darts", "smooth(kind=worst)", "unknown kind of the smooth regularizer 'worst'"),
            ("darts", "auxiliary_skip(decay=square)", "unknown decay of the auxiliary skip"),
        ):
            with pytest.raises(InputError, match=message):
                search(data, strategy, regularizers=(regularizer,))
        with pytest.raises(InputError, match="whose logsumexp is 0; leave one of both out"):
            search(data, regularizers=("beta_decay", "factorised"))
        with pytest.raises(InputError, match="expected one smooth, found 2"):
            search(data, regularizers=("smooth", "smooth(epsilon=0.1)"))
        with pytest.raises(InputError, match="expected skip_connect among the operations"):
            search(
                data,
                space="darts(nodes=1, operations=(none, sep_conv_3x3))",
                regularizers=("auxiliary_skip",),
            )


class TestBetaDecay:
    def test_its_gradient_is_lambda_times_the_edge_weights(self, float64: None) -> None:
        searched = context(PAIR, epochs=100)
        decay = REGULARIZERS.build("beta_decay")
        state = decay.begin(searched)
        decay.begin_epoch(state, 30)
        table = searched.table
        alpha = {t: torch.randn(table.shape(t), requires_grad=True) for t in table.rows}
        decay.alpha_penalty(state, alpha).backward()
        edges = sum(len(rows) for rows in table.rows.values())
        for t, logits in alpha.items():
            for e, row in enumerate(table.rows[t]):
                exponents = [math.exp(v) for v in logits[e].tolist()]
                total = sum(x for x, c in zip(exponents, row, strict=True) if c is not None)
                for i, candidate in enumerate(row):
                    expected = 0.0 if candidate is None else exponents[i] / total
                    assert logits.grad is not None
                    # Published: lambda = 50 * epoch / 100, here in the 30th epoch of 100.
                    assert logits.grad[e, i].item() == pytest.approx(
                        50 * 0.3 * expected / edges, rel=1e-10, abs=1e-14
                    )


class TestAuxiliarySkip:
    def test_the_supernet_has_another_skip_connection(self, float64: None) -> None:
        """Against the same supernet whose edges each add beta times their input by hand."""
        space = SPACES.build("nb201")
        supernet = SuperNet(space, ("bp", "fa"), channels=4, layers=3, num_classes=10)
        x = torch.randn(2, 3, 8, 8)
        searched = context("nb201", ("bp", "fa"), epochs=50)
        skip = REGULARIZERS.build("auxiliary_skip(weight=0.8, decay=cosine)")
        state = skip.begin(searched)
        skip.begin_epoch(state, 20)
        weights = {"cell": torch.rand(searched.table.shape("cell"))}
        with supernet.batch_statistics():
            found = supernet(x, skip.lent(state, weights))
            # The cell is a sum over edges: node j = sum over i < j of mixture(node i) + beta node i.
            beta = 0.8 * (1 + math.cos(math.pi * 20 / 50)) / 2
            hooks = []
            for cell in supernet.cells:
                for block in getattr(cell, "blocks", []):
                    hooks.append(
                        block.register_forward_hook(
                            lambda _, inputs, sums: {
                                e: y + beta * inputs[0] for e, y in sums.items()
                            }
                        )
                    )
            expected = supernet(x, weights)
            for hook in hooks:
                hook.remove()
        assert len(hooks) == 9  # three cells of three nodes that edges leave
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)

    def test_at_stride_2_by_the_rules_shares(self) -> None:
        searched = context(PAIR, epochs=10)
        skip = REGULARIZERS.build("auxiliary_skip")
        state = skip.begin(searched)
        skip.begin_epoch(state, 0)
        row = searched.table.rows["reduce"][0]
        places = [i for i, c in enumerate(row) if c is not None and c.op == "skip_connect"]
        weights = {t: torch.rand(searched.table.shape(t)) for t in searched.table.rows}
        lent = skip.lent(state, weights)["reduce"][0]
        assert len(places) == 2
        total = sum(weights["reduce"][0, i].item() for i in places)
        for i in range(len(row)):
            added = weights["reduce"][0, i].item() / total if i in places else 0.0
            assert lent[i].item() == pytest.approx(weights["reduce"][0, i].item() + added, rel=1e-6)

    @pytest.mark.parametrize("total", [0.0, 1e-38, 1e-20, 1e-13])
    def test_of_cold_samples_the_gradient_is_finite(self, total: float) -> None:
        """A sample's share of a skip connection may be next to nothing, or nothing."""
        searched = context(PAIR)
        skip = REGULARIZERS.build("auxiliary_skip")
        state = skip.begin(searched)
        skip.begin_epoch(state, 1)
        weights = {
            t: (state.skips[t] * total + ~state.skips[t]).float().requires_grad_()
            for t in searched.table.rows
        }
        lent = skip.lent(state, weights)
        sum(w.square().sum() for w in lent.values()).backward()
        assert all(w.grad is not None and w.grad.isfinite().all() for w in weights.values())
        assert lent["normal"][0][state.skips["normal"][0]].item() == pytest.approx(0.9)

    def test_what_was_not_drawn_is_computed_too(self, data: ImageData) -> None:
        task = search(data, "gdas", regularizers=("auxiliary_skip", "warmup(epochs=0)"))
        task.begin_epoch(0)
        before = {n: b.clone() for n, b in task.supernet.named_buffers() if "running_mean" in n}
        task.step(0)
        after = dict(task.supernet.named_buffers())
        # Every candidate's batch norm has seen the batch.
        assert all((before[name] != after[name]).any() for name in before)


def plain_projection(values: list[float]) -> list[float]:
    bounded = [min(1.0, max(0.0, v)) for v in values]
    if sum(bounded) == 0:
        bounded[values.index(max(values))] = 1.0
    return [b / sum(bounded) for b in bounded]


class TestSmooth:
    @pytest.fixture
    def prepared(self, float64: None) -> tuple[Any, Any, dict[str, Tensor]]:
        smooth = REGULARIZERS.build("smooth(kind=adversarial, steps=3, epsilon=0.5)")
        state = smooth.begin(context(PAIR, epochs=10))
        smooth.begin_epoch(state, 4)
        smooth.prepare(state)
        table = state.context.table
        weights = {}
        for t in table.rows:
            w = torch.rand(table.shape(t)) * table.mask(t)
            # As where edges compete: a row's sum is not 1.
            weights[t] = 0.3 * w / w.sum(1, keepdim=True)
        return smooth, state, weights

    def test_random_shares_by_hand(self, prepared: tuple[Any, Any, dict[str, Tensor]]) -> None:
        _, state, weights = prepared
        random = REGULARIZERS.build("smooth(epsilon=0.5)")
        moved = random.perturbed(state, weights, lambda _: torch.zeros(()))
        # Published: 0.03 + (0.5 - 0.03) * epoch / epochs
        epsilon = 0.03 + 0.47 * 4 / 10
        for t, rows in state.context.table.rows.items():
            for e, row in enumerate(rows):
                n = sum(c is not None for c in row)
                noise = state.noise[t][e, :n].tolist()
                shares = [w / 0.3 for w in weights[t][e, :n].tolist()]
                expected = plain_projection(
                    [s + epsilon * u for s, u in zip(shares, noise, strict=True)]
                )
                assert moved[t][e, :n].tolist() == pytest.approx(
                    [0.3 * p for p in expected], rel=1e-10, abs=1e-14
                )
                assert (moved[t][e, n:] == 0).all()
        assert max(u.abs().max().item() for u in state.noise.values()) <= 1

    def test_the_attack_by_hand(self, prepared: tuple[Any, Any, dict[str, Tensor]]) -> None:
        """Three steps of ascent on a quadratic loss, whose gradient is known in closed form."""
        smooth, state, weights = prepared
        targets = {t: torch.rand_like(w) for t, w in weights.items()}

        def loss(at: Mapping[str, Tensor]) -> Tensor:
            return torch.stack([(w - targets[t]).square().sum() for t, w in at.items()]).sum()

        moved = smooth.perturbed(state, weights, loss)
        epsilon = 0.03 + 0.47 * 4 / 10
        for t, rows in state.context.table.rows.items():
            for e, row in enumerate(rows):
                n = sum(c is not None for c in row)
                s = [w / 0.3 for w in weights[t][e, :n].tolist()]
                noise = state.noise[t][e, :n].tolist()
                a = plain_projection([x + epsilon * u for x, u in zip(s, noise, strict=True)])
                for _ in range(3):
                    slopes = [
                        2 * (0.3 * x - y)
                        for x, y in zip(a, targets[t][e, :n].tolist(), strict=True)
                    ]
                    steps = [
                        x + 2 * epsilon / 3 * ((g > 0) - (g < 0))
                        for x, g in zip(a, slopes, strict=True)
                    ]
                    a = plain_projection(
                        [
                            x + min(epsilon, max(-epsilon, y - x))
                            for x, y in zip(s, steps, strict=True)
                        ]
                    )
                assert moved[t][e, :n].tolist() == pytest.approx(
                    [0.3 * x for x in a], rel=1e-10, abs=1e-14
                )
        assert loss(moved) > loss(weights)

    def test_an_attack_that_fails_is_given_up(
        self, prepared: tuple[Any, Any, dict[str, Tensor]]
    ) -> None:
        smooth, state, weights = prepared

        def peak(at: Mapping[str, Tensor]) -> Tensor:
            """Greatest where the weights are."""
            return -torch.stack([(w - weights[t]).abs().sum() for t, w in at.items()]).sum()

        moved = smooth.perturbed(state, weights, peak)
        assert all(torch.equal(moved[t], weights[t]) for t in weights)

    def test_w_learns_at_the_perturbed_weights_and_alpha_at_its_own(self, data: ImageData) -> None:
        task = search(data, regularizers=("smooth", "warmup(epochs=0)"))
        plain = search(data, regularizers=("warmup(epochs=0)",))
        task.begin_epoch(0)
        plain.begin_epoch(0)
        x, labels = task.train_batches.batch(0)
        smooth, state = task.regularization.regularizers[0], task.regularization.states[0]
        smooth.prepare(state)
        lent = {t: w.detach() for t, w in task.strategy.edge_weights(task.strategy_state).items()}
        moved = smooth.perturbed(state, lent, lambda _: torch.zeros(()))
        assert not torch.equal(moved["normal"], lent["normal"])
        task._weight_gradients(x, labels, *lent.values())
        plain._weight_gradients(x, labels, *moved.values())
        pairs = zip(task.optimizer.weights, plain.optimizer.weights, strict=True)
        assert all(torch.equal(p.grad, q.grad) for p, q in pairs if p.grad is not None)
        batches = (x, labels, *task.valid_batches.batch(0))
        one, other = (search._alpha_gradients(*batches)[0] for search in (task, plain))
        assert all(torch.equal(g, h) for g, h in zip(one, other, strict=True))

    def test_the_attack_leaves_no_trace_in_the_supernet(self, data: ImageData) -> None:
        task = search(data, regularizers=("smooth(kind=adversarial, steps=1)",))
        task.begin_epoch(0)
        x, labels = task.train_batches.batch(0)
        before = {name: b.clone() for name, b in task.supernet.state_dict().items()}
        lent = {t: w.detach() for t, w in task.strategy.edge_weights(task.strategy_state).items()}
        at = {t: w.requires_grad_() for t, w in lent.items()}
        torch.autograd.grad(task._attacked_loss(x, labels, at), list(at.values()))
        after = task.supernet.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert task.supernet.training
        assert all(p.grad is None for p in task.supernet.parameters())


class TestRandomPaths:
    def test_a_step_moves_the_path_and_nothing_else(self, data: ImageData) -> None:
        """Gradients of w equal those of a pass over all candidates, zero off the path."""
        task = search(data, "random_paths", space="darts(nodes=2)", regularizers=())
        task.begin_epoch(0)
        task.strategy.prepare(task.strategy_state)
        weights = {t: w.clone() for t, w in task.strategy.edge_weights(task.strategy_state).items()}
        assert all(w.sum() == 4 for w in weights.values())  # two nodes of two edges
        task.supernet.double()
        x, labels = task.train_batches.batch(0)
        x, weights = x.double(), {t: w.double() for t, w in weights.items()}
        gradients = []
        for columns in (task.strategy.drawn(task.strategy_state), None):
            with task.supernet.batch_statistics(), task.supernet.drawn(columns):
                task._weight_gradients(x, labels, *weights.values())
            zero = torch.zeros((), dtype=x.dtype)
            gradients.append(
                [zero if p.grad is None else p.grad.clone() for p in task.optimizer.weights]
            )
        assert any((g == 0).any() for g in gradients[0])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one.expand_as(other), other, rtol=1e-9, atol=1e-12)

    def test_it_chooses_as_a_plain_loop_would(self) -> None:
        """By made losses: a function of the genotype and of the number of batches."""
        strategy, state = begin("random_paths(samples=120, best=7)", "nb201", ("bp", "fa"))
        seen: list[tuple[int, Tensor]] = []
        secret = {
            batches: torch.randn(state.context.table.shape("cell"), dtype=torch.float64)
            for batches in (1, 5)
        }

        def loss_of(genotype: Tensor, batches: int) -> float:
            return float((genotype.double() * secret[batches]).sum())

        def measure(individuals: Mapping[str, Tensor], batches: int) -> tuple[Tensor, Tensor]:
            seen.extend((batches, genotype) for genotype in individuals["cell"])
            losses = torch.tensor([loss_of(g, batches) for g in individuals["cell"]])
            return losses, torch.zeros_like(losses)

        assert strategy.end_epoch(state, 8, measure) == {}  # nine of ten epochs
        strategy.end_epoch(state, 9, measure)
        first = [genotype for batches, genotype in seen if batches == 1]
        again = [genotype for batches, genotype in seen if batches == 5]
        assert (len(first), len(again)) == (120, 7)
        passes = sum(batches for batches, _ in seen)
        assert f"measures 120 genotypes by {passes} passes" in strategy.notes(state, ())[0]
        ranked = sorted(first, key=lambda genotype: loss_of(genotype, 1))
        assert all(torch.equal(g, h) for g, h in zip(ranked, again, strict=False))
        best = min(again, key=lambda genotype: loss_of(genotype, 5))
        assert torch.equal(strategy.final_weights(state)["cell"], best)
        # Drawn uniformly: six edges of seven candidates.
        counts = torch.stack(first).sum(0)
        assert (counts.sum(1) == 120).all()
        # Chi-squared of 36 degrees of freedom: p = 0.00003.
        assert ((counts - 120 / 7).square() / (120 / 7)).sum() < 80

    def test_what_is_measured_is_the_genotype_alone(self, data: ImageData) -> None:
        """As by the pass over all candidates with zero weights."""
        task = search(data, "random_paths", space="darts(nodes=2)", regularizers=())
        genotypes = []
        for _ in range(3):
            task.strategy.prepare(task.strategy_state)
            weights = task.strategy.edge_weights(task.strategy_state)
            genotypes.append({t: w.double() for t, w in weights.items()})
        individuals = {t: torch.stack([g[t] for g in genotypes]) for t in genotypes[0]}
        task.supernet.double()
        x = task.valid_batches.batch(0)[0].double()
        with torch.no_grad(), task.supernet.batch_statistics():
            found = task.individuals.logits(x, individuals)
            expected = torch.stack([task.supernet(x, genotype) for genotype in genotypes])
        # Logits of individuals are handed on in float32.
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)

    def test_bad_options(self, data: ImageData) -> None:
        with pytest.raises(InputError, match="best: expected at most samples=5, found 10"):
            search(data, "random_paths(samples=5)")
