"""The search strategies: gradients against brute force, samples, selection, and what a step leaves
behind.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from searching import PAIR, begin, epoch, search
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence
from torch.func import functional_call

from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.networks import SuperNet
from darts_bio.networks.reference import ReferenceCell
from darts_bio.rules import RULES, RuleConv2d, held_feedback, true_gradients
from darts_bio.runtime import generator
from darts_bio.spaces import Genotype, load_genotype, to_nb201_text
from darts_bio.strategies import STRATEGIES
from darts_bio.strategies.darts import Darts
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.search import Search


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


class TestSecondOrder:
    """alpha's gradient against that of the whole map alpha -> L_val(w'(alpha)), with w' = w - lr
    (momentum buffer + gradient + decay w).
    """

    RATE, MOMENTUM, DECAY, CLIP = 0.05, 0.9, 0.01, 0.5

    def loss_after_a_step(
        self, net: SuperNet, alpha: Mapping[str, Tensor], buffers: Mapping[str, Tensor], t: int
    ) -> Tensor:
        """L_val(w'(alpha)), which autograd can differentiate through the step."""
        weights = dict(net.named_parameters())
        shares = {cell_type: logits.softmax(1) for cell_type, logits in alpha.items()}
        (x, labels), (valid_x, valid_labels) = self.batches(t)
        loss = F.cross_entropy(net(x, shares), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        after = {
            name: w - self.RATE * (self.MOMENTUM * buffers[name] + gradient + self.DECAY * w)
            for (name, w), gradient in zip(weights.items(), gradients, strict=True)
        }
        logits = functional_call(net, after, (valid_x, shares))
        return F.cross_entropy(logits, valid_labels)

    def plain_step(
        self, net: SuperNet, alpha: Mapping[str, Tensor], buffers: dict[str, Tensor], t: int
    ) -> None:
        """SGD with momentum, decay and a bound on the gradient's norm, in place."""
        (x, labels), _ = self.batches(t)
        shares = {cell_type: logits.detach().softmax(1) for cell_type, logits in alpha.items()}
        loss = F.cross_entropy(net(x, shares), labels)
        weights = dict(net.named_parameters())
        gradients = torch.autograd.grad(loss, list(weights.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for (name, w), g in zip(weights.items(), gradients, strict=True):
                scale = min(1.0, self.CLIP / (norm.item() + 1e-6))  # as PyTorch clips
                direction = scale * g + self.DECAY * w
                buffers[name] = self.MOMENTUM * buffers.get(name, 0.0) + direction
                w -= self.RATE * buffers[name]

    def batches(self, t: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """A training batch of 16 images of 8x8 and a validation batch, of 10 classes."""
        source = torch.Generator().manual_seed(t)
        x = torch.randn(2, 16, 1, 8, 8, generator=source, dtype=torch.float64)
        labels = torch.randint(10, (2, 16), generator=source)
        return (x[0], labels[0]), (x[1], labels[1])

    def smooth(self, data: ImageData) -> Search:
        """A search on a net without kinks, at which neither kind of difference would converge."""
        task = search(
            data,
            "darts(order=2, init=0.5)",
            rules=("bp",),
            batch_size=16,
            lr=self.RATE,
            momentum=self.MOMENTUM,
            weight_decay=self.DECAY,
            clip=self.CLIP,
        )
        torch.manual_seed(0)
        net = SuperNet(
            task.space,
            ("bp",),
            channels=4,
            layers=3,
            num_classes=10,
            in_channels=1,
            cell=ReferenceCell,
        )
        for module in list(net.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, nn.Softplus())
        task.supernet = net.double()
        task.optimizer = WeightOptimizer(net, task.config)
        for place, batches in enumerate((task.train_batches, task.valid_batches)):
            batches.batch = lambda t, place=place: self.batches(t)[place]  # type: ignore[method-assign]
        return task

    def test_equals_brute_force_in_float64_with_momentum_and_decay(
        self, data: ImageData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = self.smooth(data)
        net, state = task.supernet, task.strategy_state
        for parameter in state.parameters.values():
            parameter.data = parameter.data.double()
        alpha, captured = state.alpha, []

        def still(self: Darts, state: Any, bilevel: Any) -> Any:
            captured.append(bilevel)
            return [torch.zeros_like(a) for a in alpha.values()], torch.zeros(16, 10)

        plain, buffers = copy.deepcopy(net), {}
        with monkeypatch.context() as seen:
            seen.setattr(Darts, "gradients", still)
            seen.setattr(Darts, "move", lambda *_: None)
            for t in range(2):  # so that there is a momentum buffer
                task.step(t)
                self.plain_step(plain, alpha, buffers, t)
        for own, expected in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)

        before = copy.deepcopy(net.state_dict())
        bilevel = captured[-1]
        with net.batch_statistics(), plain.batch_statistics():
            found, _ = task.strategy.second_order_gradients(state, bilevel)
            first, _ = Darts().gradients(state, bilevel)
            whole = self.loss_after_a_step(plain, alpha, buffers, 1)
            expected = torch.autograd.grad(whole, list(alpha.values()))
        found, first, expected = (
            torch.cat([g.flatten() for g in gradients]) for gradients in (found, first, expected)
        )
        # What is left is the error of the strategy's difference, of the order of its step's square.
        assert (found - expected).norm() <= 1e-4 * expected.norm()
        assert (found - first).norm() > 1e-2 * expected.norm()
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())

    def test_gradients_of_weights_are_computed_where_they_are_used(self, data: ImageData) -> None:
        """At w and at w', not on the two sides of the difference, which only alpha is changed by;
        then in the step of w.
        """
        task = search(data, "darts(order=2)")
        asked: list[bool] = []
        task.supernet.register_forward_pre_hook(
            lambda net, inputs: asked.append(any(w.requires_grad for w in net.parameters()))
        )
        task.begin_epoch(0)
        task.step(0)
        assert asked == [True, True, False, False, True]

    @pytest.mark.parametrize(
        "rule", [rule for rule in RULES if not (RULES.get(rule).direct or RULES.get(rule).local)]
    )
    def test_feedback_is_held_while_weights_are_moved(self, rule: str) -> None:
        layer = RuleConv2d(4, 6, 3, padding=1, rule=RULES.build(rule))
        x = torch.randn(2, 4, 5, 5, requires_grad=True)

        def down() -> Tensor:
            return torch.autograd.grad(layer(x).sum(), x)[0]

        before = down()
        with held_feedback(layer):
            with torch.no_grad():
                layer.weight.neg_()
            assert torch.equal(down(), -before if layer.rule.transports_weights else before)
            with true_gradients(layer):
                assert torch.allclose(
                    down(), torch.autograd.grad(RuleConv2d.forward(layer, x).sum(), x)[0]
                )
        after = down()
        follows = rule not in ("fa", "kolen_pollack", "pfa", "weight_mirror")
        assert torch.equal(after, -before if follows else before)

    def test_says_what_it_assumes_of_other_rules_than_bp(self, data: ImageData) -> None:
        assert search(data, "darts(order=2)", rules=("bp",)).notes() == []
        (note,) = search(data, "darts(order=2)", rules=("bp", "usf", "fa")).notes()
        assert "Under usf, fa it follows the rule's gradient" in note

    @pytest.mark.parametrize(
        "strategy", ["darts(order=2)", "rule_aware", "darts_pt(base='darts(order=2)')"]
    )
    def test_asks_for_sgd_before_anything_is_built(self, data: ImageData, strategy: str) -> None:
        with pytest.raises(
            InputError, match=r"--optimizer: expected sgd or nesterov for .*found adamw"
        ):
            search(data, strategy, optimizer="adamw")
        search(data, "darts", optimizer="adamw")
        search(data, strategy, optimizer="nesterov").step(0)


class TestRuleAware:
    def test_options_that_contradict_it(self, data: ImageData) -> None:
        with pytest.raises(InputError, match="--weights: expected shared for .*found own"):
            search(data, "rule_aware", weights="own")
        with pytest.raises(InputError, match="--kernel-scale init: .*add --weights shared"):
            search(data, "darts", kernel_scale="init")
        assert search(data, "rule_aware", kernel_scale="init").supernet.shared == "init"

    @pytest.mark.parametrize("rule", RULES)
    def test_takes_a_backbone_whose_kernels_carry_the_error(
        self, data: ImageData, rule: str
    ) -> None:
        if rule in ("dfa", "dkp", "hebbian", "predictive"):
            with pytest.raises(InputError, match=f"--backbone-rule: .*, found {rule}; use bp or"):
                search(data, "rule_aware", backbone_rule=rule)
        else:
            search(data, "rule_aware", backbone_rule=rule).step(0)

    def test_says_where_rules_cannot_be_told_apart(self, data: ImageData) -> None:
        (note,) = search(data, "rule_aware", rules=("usf",)).notes()
        assert "one learning rule" in note
        assert search(data, "rule_aware", rules=("usf", "fa")).notes() == []
        (note,) = search(data, "darts", rules=("usf", "fa"), weights="shared").notes()
        assert "rules by chance" in note
        assert search(data, "darts", rules=("usf",), weights="shared").notes() == []


class TestPcDarts:
    def test_weights_are_the_product_of_both_softmaxes_by_hand(self) -> None:
        pc, state = begin("pc_darts(init=1.0)", "darts(nodes=2)")
        for t, weights in pc.edge_weights(state).items():
            alpha, beta, mask = (
                state.alpha[t].detach(),
                state.parameters[f"{t}/beta"].detach(),
                state.masks[t],
            )
            for first, last in ((0, 2), (2, 5)):  # the edges into node 2, into node 3
                shares = beta[first:last].exp() / beta[first:last].exp().sum()
                for e in range(first, last):
                    own = alpha[e].exp() * mask[e]
                    assert torch.allclose(
                        weights[e], own / own.sum() * shares[e - first], atol=1e-6
                    )
        assert pc.partial == 4

    def test_alpha_and_beta_both_move_after_the_warm_up_and_not_before(
        self, data: ImageData
    ) -> None:
        task = search(data, "pc_darts", space="darts(nodes=2)")
        assert task.warmup_epochs == 1
        assert task.notes() == ["alpha stays as it is until epoch 2"]
        pc: Any = task.strategy_state
        before = {name: p.detach().clone() for name, p in pc.parameters.items()}
        epoch(task, 0)
        assert all(torch.equal(p, before[name]) for name, p in pc.parameters.items())
        epoch(task, 1)
        assert all(not torch.equal(p, before[name]) for name, p in pc.parameters.items())

    def test_channels_that_cannot_be_divided(self, data: ImageData) -> None:
        with pytest.raises(InputError, match="expected a multiple of 4"):
            search(data, "pc_darts", channels=6)


def sample(strategy: Any, state: Any) -> dict[str, Tensor]:
    strategy.prepare(state)
    return strategy.edge_weights(state)


class TestSamples:
    def test_gdas_draws_one_candidate_an_edge_by_its_softmax(self) -> None:
        gdas, state = begin("gdas(init=1.0)", PAIR)
        counts = {t: torch.zeros_like(w) for t, w in state.alpha.items()}
        for _ in range(4000):
            for t, weights in sample(gdas, state).items():
                assert weights.sum(1).allclose(torch.ones(len(weights)))
                assert (weights.detach().round(decimals=5) == 1).sum(1).eq(1).all()
                counts[t] += weights.detach().round()
        for t, mean in gdas.mean_weights(state).items():
            assert torch.allclose(counts[t] / 4000, mean, atol=0.035)

    def test_gdas_gradient_is_that_of_the_soft_weights(self) -> None:
        (gdas, state), (_, twin) = (begin("gdas(init=1.0)", PAIR) for _ in range(2))
        gdas.begin_epoch(state, 9)
        assert gdas.temperature(state) == pytest.approx(0.1)
        gdas.begin_epoch(state, 0)
        assert gdas.temperature(state) == 10
        down = torch.randn(2, 4)
        hard = sample(gdas, state)["normal"]
        own = torch.autograd.grad((hard * down).sum(), state.alpha["normal"])[0]
        noise = -(-torch.rand(2, 4, generator=twin.next_draw()).clamp(1e-10, 1 - 1e-7).log()).log()
        mask = twin.masks["normal"]
        soft = ((twin.alpha["normal"] + noise) / 10).masked_fill(~mask, -torch.inf).softmax(1)
        assert torch.allclose(
            own, torch.autograd.grad((soft * down).sum(), twin.alpha["normal"])[0], atol=1e-7
        )

    def test_snas_nears_single_candidates(self) -> None:
        snas, state = begin("snas", PAIR)
        largest = []
        for number in (0, 9):
            snas.begin_epoch(state, number)
            drawn = torch.cat([sample(snas, state)["normal"] for _ in range(100)])
            assert drawn.sum(1).allclose(torch.ones(len(drawn)))
            largest.append(drawn.max(1).values.mean().item())
        assert (snas.tau, snas.temperature(state)) == pytest.approx((1.0, 0.03))
        assert largest[0] < 0.75
        assert largest[1] > 0.97

    def test_drnas_draws_from_its_dirichlet_and_is_anchored_by_the_divergence(self) -> None:
        drnas, state = begin("drnas(init=1.0, anchor=0.001, weight_decay=0)", PAIR)
        draws: dict[str, list[Tensor]] = {t: [] for t in state.alpha}
        random_state = torch.get_rng_state()
        for _ in range(3000):
            for t, weights in sample(drnas, state).items():
                draws[t].append(weights.detach())
        assert torch.equal(random_state, torch.get_rng_state())
        expected = torch.zeros(())
        for t, rows in draws.items():
            drawn, mask = torch.stack(rows), state.masks[t]
            for e, own in enumerate(mask):
                concentration = drnas.concentrations(state)[t][e][own].detach()
                law = Dirichlet(concentration)
                assert torch.allclose(drawn[:, e, own].mean(0), law.mean, atol=0.03)
                assert torch.allclose(drawn[:, e, own].var(0), law.variance, atol=0.02)
                assert drawn[:, e, ~own].eq(0).all()
                expected = expected + kl_divergence(law, Dirichlet(torch.ones_like(concentration)))
        assert torch.allclose(drnas.own_penalty(state), 1e-3 * expected, rtol=1e-4)
        for t, weights in drnas.final_weights(state).items():
            for row, mask, alpha in zip(weights, state.masks[t], state.alpha[t], strict=True):
                powers = alpha[mask].exp()
                assert torch.allclose(row[mask], powers / powers.sum())

    def test_drnas_is_finite_where_alpha_is_very_low(self) -> None:
        """elu(alpha) + 1 is 0 in float32 from -17 on, where a Dirichlet law has no density."""
        drnas, state = begin("drnas(anchor=0.001, weight_decay=0)", PAIR)
        for parameter in state.parameters.values():
            parameter.data[:, 0] = -30.0
        loss = drnas.own_penalty(state)
        for weights in sample(drnas, state).values():
            assert torch.allclose(weights.sum(1), torch.ones(len(weights)))
            loss = loss + weights[:, 1].sum()
        assert loss.isfinite()
        for gradient in torch.autograd.grad(loss, list(state.parameters.values())):
            assert gradient.isfinite().all()

    def test_drnas_by_default_has_a_decay_and_no_anchor(self) -> None:
        """Two steps of Adam written out, on a gradient of 1, alpha's decay being added to it."""
        drnas, state = begin("drnas(init=1.0)", PAIR)
        assert drnas.own_penalty(state) == 0
        (name, alpha), *_ = state.parameters.items()
        expected, m, v = alpha.detach().double().clone(), 0.0, 0.0
        for step in (1, 2):
            gradient = 1 + 1e-3 * expected
            m, v = 0.5 * m + 0.5 * gradient, 0.999 * v + 0.001 * gradient**2
            expected = expected - 6e-4 * (m / (1 - 0.5**step)) / (
                (v / (1 - 0.999**step)).sqrt() + 1e-8
            )
            drnas.move(state, [torch.ones_like(p) for p in state.parameters.values()])
        assert torch.allclose(state.parameters[name].double(), expected, atol=1e-6)

    @pytest.mark.parametrize("spec", ["gdas", "snas", "drnas"])
    def test_are_a_function_of_the_seed_and_go_on_from_the_state(self, spec: str) -> None:
        (sampler, one), (equal, other) = (begin(spec) for _ in range(2))
        assert sampler == equal
        for _ in range(3):
            drawn = sample(sampler, one)
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        again, first = sample(sampler, other), sample(sampler, one)
        assert all(
            torch.equal(first[t], again[t]) and not torch.equal(first[t], drawn[t]) for t in first
        )


class TestFairDarts:
    def test_weights_do_not_compete_and_are_driven_from_the_middle(self) -> None:
        fair, state = begin("fair_darts(init=1.0)", PAIR)
        weights = torch.cat([w[state.masks[t]] for t, w in fair.edge_weights(state).items()])
        alpha = torch.cat([a[state.masks[t]] for t, a in state.alpha.items()])
        assert torch.allclose(weights, 1 / (1 + (-alpha).exp()))
        assert torch.allclose(fair.own_penalty(state), -10 * ((weights - 0.5) ** 2).mean())

    def test_a_step_of_its_adam(self) -> None:
        """Written out: rate 3e-3, betas .9 and .999, decay 1e-3, on gradients of 1 and of -2."""
        fair, state = begin("fair_darts(init=1.0)", PAIR)
        (name, alpha), *_ = state.parameters.items()
        expected, m, v = alpha.detach().double().clone(), 0.0, 0.0
        for step, sent in ((1, 1.0), (2, -2.0)):
            gradient = sent + 1e-3 * expected
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            expected = expected - 3e-3 * (m / (1 - 0.9**step)) / (
                (v / (1 - 0.999**step)).sqrt() + 1e-8
            )
            fair.move(state, [torch.full_like(p, sent) for p in state.parameters.values()])
        assert torch.allclose(state.parameters[name].double(), expected, atol=1e-6)

    def test_edges_of_more_candidates_have_no_advantage(self) -> None:
        fair, state = begin("fair_darts", "darts(nodes=2)", ("fa", "usf"))
        with torch.no_grad():
            state.alpha["reduce"].zero_()
            state.alpha["reduce"][4, 1] = (
                1.0  # the only edge of stride 1, which has fewer candidates
            )
        cell = state.context.space.derive(fair.final_weights(state), state.context.table)["reduce"]
        assert (3, 2) in {(edge.node, edge.input) for edge in cell.edges}


class TestRandom:
    def test_is_there_at_once_and_uniform(self) -> None:
        counts: dict[str, int] = {}
        for seed in range(600):
            assert STRATEGIES.get("random").finished
            genotype = Genotype("nb201", random_cells("random", "nb201", ("bp",), seed))
            for edge in genotype.cells["cell"].edges:
                counts[edge.candidate.op] = counts.get(edge.candidate.op, 0) + 1
        assert set(counts) == {
            "none",
            "skip_connect",
            "nor_conv_1x1",
            "nor_conv_3x3",
            "avg_pool_3x3",
        }
        assert all(abs(n - 720) < 5 * (3600 * 0.2 * 0.8) ** 0.5 for n in counts.values())

    def test_edges_are_drawn_too(self) -> None:
        kept = set()
        for seed in range(200):
            edges = random_cells("random", "darts", ("fa", "usf"), seed)["normal"].edges
            kept.add(tuple(edge.input for edge in edges if edge.node == 5))
        assert len(kept) == 10  # two of five

    def test_random_rules_on_a_fixed_genotype(self) -> None:
        fixed = load_genotype("darts_v2")
        rules = ("fa", "usf", "brsf")
        seen = set()
        for seed in range(40):
            cells = random_cells("random(genotype=darts_v2)", "darts", rules, seed)
            for t, cell in cells.items():
                ops = sorted((e.node, e.input, e.candidate.op) for e in cell.edges)
                assert ops == sorted(
                    (e.node, e.input, e.candidate.op) for e in fixed.cells[t].edges
                )
            seen |= {
                e.candidate.rule for e in cells["normal"].edges if e.candidate.op == "sep_conv_3x3"
            }
        assert seen == set(rules)

    def test_half_precision_on_a_cpu_is_said_to_be_slow(self, data: ImageData) -> None:
        (note,) = search(data, "darts", amp="bf16").notes()
        assert note.startswith("--amp bf16 on a CPU")

    def test_what_would_have_no_say_is_refused(self, data: ImageData, tmp_path: Any) -> None:
        given: list[dict[str, Any]] = [
            {"regularizers": ("skip_stop",)},
            {"objective": ("parameters(weight=1)",)},
        ]
        for options in [*given, {"supernet": str(tmp_path)}]:
            with pytest.raises(
                InputError, match=f"--{next(iter(options))}: has no say with --strategy random"
            ):
                search(data, "random", **options)
        assert search(data, "random").notes() == [
            "nothing is trained: the genotype is there at once"
        ]

    @pytest.mark.parametrize(
        ("spec", "space", "message"),
        [
            ("random(genotype=darts_v3)", "darts", "unknown genotype"),
            ("random(genotype=darts_v2)", "nb201", "cell type"),
            (
                "random(genotype=darts_v2)",
                "darts(operations=(none, skip_connect))",
                "expected operations of --space",
            ),
            ("random(genotype=darts_v2)", "darts(nodes=2)", "has the edge 1->4, .* here darts"),
        ],
    )
    def test_a_genotype_that_does_not_fit(self, spec: str, space: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            begin(spec, space)


def random_cells(spec: str, space: str, rules: tuple[str, ...], seed: int) -> Any:
    random, state = begin(spec, space, rules, seed=seed)
    return state.context.space.derive(random.final_weights(state), state.context.table)


class TestDartsPt:
    def test_keeps_what_is_missed_most(self) -> None:
        """A measure that knows which candidates and edges matter."""
        pt, state = begin("darts_pt(share=0)", "darts(nodes=2)", epochs=1)
        needed = {
            t: torch.rand(w.shape, generator=generator("cpu", t))
            for t, w in pt.final_weights(state).items()
        }
        space, table = state.context.space, state.context.table

        def measure(weights: Any, batches: int) -> tuple[Tensor, Tensor]:
            assert batches == 8
            accuracy = torch.zeros(len(weights["normal"]))
            for t, own in weights.items():
                accuracy = accuracy + ((own > 0) * needed[t]).sum((1, 2))
            return torch.zeros_like(accuracy), accuracy

        pt.end_epoch(state, 0, measure)
        cells = space.derive(pt.final_weights(state), table)
        for t, cell in cells.items():
            best = {}
            for e, ((node, source), row) in enumerate(zip(space.edges, table.rows[t], strict=True)):
                options = [i for i, c in enumerate(row) if c is not None and c.op != "none"]
                winner = max(options, key=lambda i: needed[t][e, i])
                best[node, source] = (needed[t][e, winner].item(), row[winner])
            for node in (2, 3):
                own = sorted((k for k in best if k[0] == node), key=lambda k: -best[k][0])[:2]
                assert {(e.node, e.input) for e in cell.edges if e.node == node} == set(own)
            assert all(e.candidate.op == best[e.node, e.input][1].op for e in cell.edges)

    @pytest.mark.parametrize(
        "base", ["random", "random(genotype=bionas_darts)", "random_paths", "darts_pt(base=drnas)"]
    )
    def test_a_base_that_leaves_no_choice_is_refused(self, base: str) -> None:
        with pytest.raises(
            InputError, match="base: expected a strategy that ends with weights for"
        ):
            begin(f"darts_pt(base={base})", "darts(nodes=2)", epochs=2)
        begin("darts_pt(base=gdas)", "darts(nodes=2)", epochs=2)  # draws, too, but has an alpha

    def test_what_its_base_measures_in_its_last_epoch_is_recorded(self, data: ImageData) -> None:
        task = search(data, "darts_pt(base='eg(population=4, samples=1)', batches=1)", epochs=4)
        assert [sorted(epoch(task, number)) for number in range(4)] == [
            [],  # the warm-up
            ["evolution/best_fitness", "evolution/mean_fitness", "selection/choices"],
            ["selection/choices"],
            ["selection/choices"],
        ]

    def test_equal_accuracies_are_told_apart_by_the_loss(self) -> None:
        pt, state = begin("darts_pt(share=0)", "nb201", ("bp",), epochs=1)

        def measure(weights: Any, batches: int) -> tuple[Tensor, Tensor]:
            return (weights["cell"][:, :, 2] == 0).sum(1).double(), torch.ones(len(weights["cell"]))

        pt.end_epoch(state, 0, measure)
        cells = state.context.space.derive(pt.final_weights(state), state.context.table)
        assert set(to_nb201_text(Genotype("nb201", cells), rules=False)) >= {"1"}
        assert {edge.candidate.op for edge in cells["cell"].edges} == {"nor_conv_1x1"}

    def test_warms_up_as_its_base_in_the_epochs_that_this_trains(self, data: ImageData) -> None:
        """pc_darts holds alpha for 0.3 of them: 6 of 20, which are half of 40."""
        task = search(data, "darts_pt(base='pc_darts', share=0.5)", epochs=40)
        assert task.warmup_epochs == 6
        assert search(data, "pc_darts", epochs=40).warmup_epochs == 12
        assert search(data, "darts_pt(base='pc_darts', share=0)", epochs=40).warmup_epochs == 0

    def test_choices_are_spread_over_the_epochs_after_the_base_and_alpha_moves_on(
        self, data: ImageData
    ) -> None:
        space = "darts(nodes=2, operations=(none, skip_connect, sep_conv_3x3))"
        task = search(data, "darts_pt(base='drnas', share=0.5, batches=1)", space=space, epochs=4)
        pt: Any = task.strategy_state
        decided, alphas = [], []
        for number in range(4):
            epoch(task, number)
            decided.append(pt.decided)
            alphas.append({t: a.detach().clone() for t, a in pt.alpha.items()})
        # Five edges and the one node of three edges.
        assert decided == [0, 2, 4, 6]
        assert not torch.equal(alphas[0]["normal"], alphas[1]["normal"])
        assert not torch.equal(alphas[1]["normal"], alphas[3]["normal"])
        assert task.genotype().cells.keys() == {"normal", "reduce"}

    def test_on_the_supernet_of_another_run(self, data: ImageData, tmp_path: Any) -> None:
        from darts_bio.storage.run_folder import RunFolder

        task = search(data, "darts(init=1.0)")
        epoch(task, 0)
        folder = RunFolder.open("search", replace(task.config, out=str(tmp_path / "run")), "x")
        folder.save({"task": task.state_dict()})
        other = search(data, "darts_pt(share=0)", supernet=str(folder.path), epochs=1)
        pt: Any = other.strategy_state
        assert all(torch.equal(a, task.strategy_state.alpha[t]) for t, a in pt.alpha.items())
        assert all(
            torch.equal(v, other.supernet.state_dict()[k])
            for k, v in task.supernet.state_dict().items()
        )
        with pytest.raises(
            InputError,
            match=r"--supernet .*: that run's supernet is not one of this search .*use its --space",
        ):
            search(data, "darts", supernet=str(folder.path), channels=4)
        with pytest.raises(InputError, match="not a readable checkpoint"):
            search(data, "darts", supernet=str(tmp_path))


class TestMeasure:
    @pytest.mark.parametrize(
        "rules", [(rule,) for rule in RULES] + [("fa", "dfa", "kolen_pollack")], ids="-".join
    )
    @pytest.mark.parametrize(("space", "strategy"), [(PAIR, "darts"), ("nb201", "pc_darts(k=2)")])
    def test_individuals_together_equal_one_pass_each(
        self, data: ImageData, space: str, strategy: str, rules: tuple[str, ...]
    ) -> None:
        task = search(data, strategy, space=space, rules=rules)
        stacked = {t: torch.rand(5, *task.table.shape(t)).softmax(2) for t in task.table.rows}
        alone = task.individuals.measure(stacked, 3, 1)
        task.individuals.together = 3
        together = task.individuals.measure(stacked, 3, 1)
        assert task.individuals.together == 3
        assert torch.allclose(alone[0], together[0], rtol=1e-5)
        assert torch.equal(alone[1], together[1])

    def test_fewer_together_where_memory_or_an_operation_does_not_allow_it(
        self, data: ImageData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = search(data)
        stacked = {t: torch.rand(8, *task.table.shape(t)).softmax(2) for t in task.table.rows}
        expected, run = task.individuals.measure(stacked, 0, 1), task.individuals._logits
        for error, left in (
            (torch.OutOfMemoryError("full"), 2),
            (RuntimeError("no batching rule"), 1),
        ):

            def limited(
                x: Tensor, own: Any, alone: bool, error: Exception = error, most: int = left
            ) -> Tensor:
                if len(own["normal"]) > most:
                    raise error
                return run(x, own, alone)

            monkeypatch.setattr(task.individuals, "_logits", limited)
            task.individuals.together = 8
            assert torch.allclose(
                task.individuals.measure(stacked, 0, 1)[0], expected[0], rtol=1e-5
            )
            assert task.individuals.together == left

    def test_one_that_fails_leaves_generators_as_they_were(
        self, data: ImageData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*given: Any) -> Tensor:
            torch.rand(3)
            raise RuntimeError("no more")

        task = search(data)
        monkeypatch.setattr(task.individuals, "_logits", failing)
        equal = {t: torch.ones(2, *task.table.shape(t)) for t in task.table.rows}
        before = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="no more"):
            task.individuals.measure(equal, 0, 1)
        assert torch.equal(torch.get_rng_state(), before)

    def test_means_over_batches_and_leaves_no_trace(self, data: ImageData) -> None:
        task = search(data, "darts", objective=("parameters(weight=0.1)",))
        epoch(task, 0)
        state = copy.deepcopy(task.supernet.state_dict())
        stacked = {t: torch.rand(5, *task.table.shape(t)).softmax(2) for t in task.table.rows}
        losses, _ = task.individuals.measure(stacked, 3, 2)
        assert all(torch.equal(v, task.supernet.state_dict()[k]) for k, v in state.items())
        one = {t: w[2] for t, w in stacked.items()}
        values = []
        for number in (3, 4):
            x, labels = task.valid_batches.batch(number)
            values.append(torch.nn.functional.cross_entropy(task.supernet(x, one), labels).item())
        penalty = task.objective.penalty(one).item()
        assert losses[2].item() == pytest.approx(sum(values) / 2 + penalty, rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("darts(order=3)", "strategy darts: order: expected 1 or 2, found 3"),
        ("pc_darts(k=0)", "strategy pc_darts: k: expected a whole number of at least 1, found 0"),
        ("gdas(tau=0.01)", "strategy gdas: tau: expected a number of at least 0.1, found 0.01"),
        ("gdas(tau_min=0)", "strategy gdas: tau_min: expected a number above 0, found 0"),
        ("snas(tau=high)", "strategy snas: tau: expected a number of at least 0.03, found 'high'"),
        (
            "drnas(anchor=0.1)",
            "strategy drnas: expected an anchor or a decay of alpha, found anchor=0.1 and "
            "weight_decay=0.001; add weight_decay=0",
        ),
        ("drnas(anchor=-1)", "strategy drnas: anchor: expected a number of at least 0, found -1"),
        ("fair_darts(betas=1)", "strategy fair_darts: betas: expected two numbers"),
        ("darts(betas=(0.5, 0.9, 0.9))", "strategy darts: betas: expected two numbers"),
        ("darts(betas=(a, b))", "betas: expected a number of at least 0 and below 1, found 'a'"),
        ("darts(betas=(None, 0.9))", "betas: expected a number of .*, found None"),
        ("darts(betas=('0.5', '0.9'))", "betas: expected a number of .*, found '0.5'"),
        ("darts(betas=(0.9, False))", "betas: expected a number of .*, found False"),
        ("darts(betas=(0.9, 1))", "betas: expected a number of .* below 1, found 1"),
        (
            "darts_pt(share=1)",
            "strategy darts_pt: share: expected a number of at least 0 and below 1, found 1",
        ),
        (
            "darts_pt(base=rule_aware)",
            "darts_pt: base: expected a strategy on weights of each rule",
        ),
        ("darts_pt(base=dart)", "unknown strategy 'dart': did you mean 'darts'"),
        (
            "eg(population=2)",
            "strategy eg: population: expected a whole number of at least 4, found 2",
        ),
        ("eg(published=3)", "strategy eg: published: expected True or False, found 3"),
        ("eg(step=0)", "strategy eg: step: expected a number above 0 and below 1, found 0"),
    ],
)
def test_bad_options_are_told_in_a_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        STRATEGIES.build(spec)
