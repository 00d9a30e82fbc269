"""Each strategy beside a plain version written from its paper, with given draws and in float64.

The plain versions have one module a candidate, autograd, and PyTorch's SGD and Adam. What
`test_strategies.py`, `test_golden.py` and `test_ingredients.py` compare is not repeated here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from searching import PAIR, begin, search
from test_golden import batch
from test_mixed import Twins
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from darts_bio.config import SearchConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData
from darts_bio.errors import InputError
from darts_bio.networks import SuperNet, build_network
from darts_bio.networks.reference import ReferenceCell
from darts_bio.rules import RULES, rule_layers
from darts_bio.rules.stacked import StackedConv2d
from darts_bio.runtime import generator
from darts_bio.spaces import SPACES, Genotype, load_genotype
from darts_bio.strategies import drnas
from darts_bio.training.schedules import learning_rate

Weights = dict[str, Tensor]
"""Edge weights (edges, candidates), or anything else that is given per cell type."""


@pytest.fixture(autouse=True)
def _double(float64: None) -> None:
    """Everything is drawn and computed in float64."""


def made(strategy: str, **options: Any) -> Any:
    """A search whose batches are those of `test_golden.batch`."""
    data = Split(torch.zeros(32, 1, 8, 8, dtype=torch.uint8), torch.arange(32) % 4)
    options = {"rules": ("fa", "frsf"), "clip": 1.0, **options}
    task = search(ImageData(data, data, ("a", "b", "c", "d")), strategy, **options)
    for source, batches in ((0, task.train_batches), (10, task.valid_batches)):
        batches.batch = lambda t, source=source: batch(source + t, 1)  # type: ignore[method-assign]
    return task


class Plain:
    """What a search computes, by PyTorch alone: from the same weights and alpha on.

    Args:
        task: The search.
        rate, betas: Those of alpha's Adam, whose decay is 1e-3.
        beta: Whether the edges into a node compete.
    """

    def __init__(
        self,
        task: Any,
        rate: float,
        betas: tuple[float, float] = (0.5, 0.999),
        beta: bool = False,
        partial: int = 1,
    ) -> None:
        self.task = task
        self.masks = {t: task.table.mask(t) for t in task.table.rows}
        self.alpha = {
            t: a.detach().clone().requires_grad_() for t, a in task.strategy_state.alpha.items()
        }
        self.beta = {
            name.removesuffix("/beta"): value.clone().requires_grad_()
            for name, value in getattr(task.strategy_state, "values", dict)().items()
            if beta and name.endswith("/beta")
        }
        self.net = SuperNet(
            task.space,
            task.config.rules,
            channels=task.config.channels,
            layers=3,
            num_classes=4,
            in_channels=1,
            cell=ReferenceCell,
            partial=partial,
        )
        self.twins = Twins(task.supernet, self.net)
        self.twins.give_feedback()
        with torch.no_grad():
            for here, there in self.pairs():
                there.copy_(here)
        moved = [*self.alpha.values(), *self.beta.values()]
        self.adam = torch.optim.Adam(moved, rate, betas, weight_decay=1e-3)
        self.sgd = self.new_sgd(task.config.lr)

    def new_sgd(self, rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(self.net.parameters(), rate, momentum=0.9, weight_decay=3e-4)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each weight of the search, and the one here that it stands for."""
        yield from self.twins.pairs(lambda layer: layer.weight, StackedConv2d)
        theirs = dict(self.net.named_parameters())
        for name, parameter in self.task.supernet.named_parameters():
            if not name.startswith(("cells.", "feedback.")) or ".alone." in name:
                yield parameter, theirs[self.twins.reference_name(name)]

    def softmax(self) -> Weights:
        """softmax(alpha) over what is a candidate."""
        return {
            t: a.masked_fill(~self.masks[t], -torch.inf).softmax(1) for t, a in self.alpha.items()
        }

    def loss(self, number: int, weights: Weights) -> Tensor:
        x, labels = batch(number, 1)
        return F.cross_entropy(self.net(x, weights), labels)

    def step(
        self,
        t: int,
        shares: Callable[[], Weights],
        penalty: Callable[[], Tensor] = lambda: torch.zeros(()),
    ) -> None:
        """Algorithm 1 of DARTS, first order. `shares` is asked before each of both passes."""
        for number, optimizer in ((10 + t, self.adam), (t, self.sgd)):
            self.adam.zero_grad()
            self.sgd.zero_grad()
            loss = self.loss(number, shares())
            if optimizer is self.adam:
                loss = loss + penalty()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()

    def expect(self) -> None:
        """Asserts that the search has the same weights, alpha and beta."""
        for t, alpha in self.task.strategy_state.alpha.items():
            mask = self.masks[t]
            assert torch.allclose(alpha[mask], self.alpha[t][mask], rtol=1e-10, atol=1e-13)
        for t, beta in self.beta.items():
            own = self.task.strategy_state.parameters[f"{t}/beta"]
            assert torch.allclose(own, beta, rtol=1e-10, atol=1e-13)
        compared = 0
        for here, there in self.pairs():
            assert torch.allclose(here, there, rtol=1e-10, atol=1e-12)
            compared += here.numel()
        assert compared == sum(p.numel() for p in self.net.parameters())


class TestSteps:
    """Three steps of a search in its second epoch of four, beside those of the paper."""

    def compare(
        self,
        task: Any,
        plain: Plain,
        shares: Callable[[], Weights],
        final: Callable[[], Weights],
        penalty: Callable[[], Tensor] = lambda: torch.zeros(()),
    ) -> None:
        before = {t: a.detach().clone() for t, a in plain.alpha.items()}
        task.begin_epoch(1)
        for t in range(3):
            task.step(t)
            plain.step(t, shares, penalty)
        plain.expect()
        assert not any(torch.equal(a, before[t]) for t, a in plain.alpha.items())
        for t, weights in task.strategy.final_weights(task.strategy_state).items():
            assert torch.allclose(weights, final()[t], rtol=1e-10, atol=1e-13)

    def test_pc_darts(self) -> None:
        """arXiv 1907.05737: a quarter of the channels, softmax(alpha) times softmax(beta)."""
        task = made(
            "pc_darts(lr=0.1, init=0.5)",
            space=PAIR.replace("nodes=1", "nodes=2"),
            regularizers=("warmup(epochs=0)",),
            lr_min=0.05,
        )
        plain = Plain(task, 0.1, beta=True, partial=4)

        def shares() -> Weights:
            # Two edges into the first node, three into the second.
            of_edges = {
                t: torch.cat([b[:2].softmax(0), b[2:].softmax(0)]) for t, b in plain.beta.items()
            }
            return {t: w * of_edges[t].unsqueeze(1) for t, w in plain.softmax().items()}

        assert len(plain.beta) == 2
        self.compare(task, plain, shares, shares)

    @pytest.mark.parametrize(
        ("spec", "temperature", "hard"),
        [
            ("gdas(lr=0.1, init=0.5)", 10 - 9.9 / 3, True),  # 10 to 0.1 along a line
            ("snas(lr=0.1, init=0.5)", 0.03 ** (1 / 3), False),  # 1 to 0.03 by equal factors
        ],
        ids=["gdas", "snas"],
    )
    def test_gumbel_samples(self, spec: str, temperature: float, hard: bool) -> None:
        """arXiv 1910.04465: one candidate, its gradient that of the sample; 1812.09926: the sample."""
        task = made(spec, lr_min=0.05)
        plain, state = Plain(task, 0.1), task.strategy_state
        source = torch.Generator().manual_seed(5)
        noises = [
            {
                t: -(-torch.rand(m.shape, generator=source).log()).log()
                for t, m in plain.masks.items()
            }
            for _ in range(6)
        ]
        here, there = iter(noises), iter(noises)

        def given(tau: float) -> None:
            for t, noise in next(here).items():
                state.noise[t].copy_(noise)
            state.temperature.fill_(tau)

        def shares() -> Weights:
            weights = {}
            for t, noise in next(there).items():
                energies = (plain.alpha[t].log_softmax(1) + noise) / temperature
                sample = energies.masked_fill(~plain.masks[t], -torch.inf).softmax(1)
                drawn = F.one_hot(sample.argmax(1), sample.shape[1])
                weights[t] = drawn * (1 + sample - sample.detach()) if hard else sample
            return weights

        state.sample = given
        self.compare(task, plain, shares, plain.softmax)

    @pytest.mark.parametrize("anchor", [False, True])
    def test_drnas(self, anchor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """arXiv 2006.10355: gamma draws of concentration elu(alpha) + 1, by their sum.

        Given are draws that are proportional to their concentration; alpha decays, or is anchored.
        """
        options = "anchor=0.5, weight_decay=0" if anchor else "weight_decay=1e-3"
        task = made(f"drnas(lr=0.1, init=0.5, {options})", lr_min=0.05)
        plain = Plain(task, 0.1)
        plain.adam.param_groups[0]["weight_decay"] = 0.0 if anchor else 1e-3
        source = torch.Generator().manual_seed(5)
        factors = [
            0.1 + torch.rand(mask.shape, generator=source)
            for _ in range(6)
            for mask in plain.masks.values()
        ]
        here, there = iter(factors), iter(factors)
        monkeypatch.setattr(drnas, "gamma_draws", lambda c, _: c * next(here))

        def concentrations() -> Weights:
            return {t: torch.where(a > 0, a + 1, a.exp()) for t, a in plain.alpha.items()}

        def shares() -> Weights:
            draws = {t: c * next(there) * plain.masks[t] for t, c in concentrations().items()}
            return {t: z / z.sum(1, keepdim=True) for t, z in draws.items()}

        def penalty() -> Tensor:
            total = torch.zeros(())
            for t, concentration in concentrations().items():
                for row, mask in zip(concentration, plain.masks[t], strict=True):
                    c = row[mask]
                    total = total + kl_divergence(Dirichlet(c), Dirichlet(torch.ones_like(c)))
            return 0.5 * total if anchor else torch.zeros(())

        self.compare(task, plain, shares, plain.softmax, penalty)

    def test_fair_darts(self) -> None:
        """arXiv 1911.12126: sigmoids, and a mean squared distance from 1/2 with weight -10."""
        task = made("fair_darts(lr=0.1, init=0.5)", lr_min=0.05)
        plain = Plain(task, 0.1, betas=(0.9, 0.999))

        def shares() -> Weights:
            return {t: plain.masks[t] / (1 + (-a).exp()) for t, a in plain.alpha.items()}

        def penalty() -> Tensor:
            sigmoids = torch.cat([w[plain.masks[t]] for t, w in shares().items()])
            return -10 * F.mse_loss(sigmoids, torch.full_like(sigmoids, 0.5))

        def final() -> Weights:
            # Relative to the number of candidates, by which the space multiplies.
            return {t: w / plain.masks[t].sum(1, keepdim=True) for t, w in shares().items()}

        self.compare(task, plain, shares, final, penalty)


class TestDartsPt:
    """arXiv 2108.04392, and projection.py of the published code."""

    @pytest.mark.parametrize(("epochs", "interval"), [(130, 5), (66, 1)])
    def test_choices_are_an_interval_apart_from_the_end_of_the_base_on(
        self, epochs: int, interval: int
    ) -> None:
        """50 epochs of the base, then 14 edges and 3 nodes; the last choice ends the search."""
        pt, state = begin(f"darts_pt(share={50 / epochs})", "darts", ("bp",), epochs=epochs)
        decided = []

        def measure(weights: Any, batches: int) -> tuple[Tensor, Tensor]:
            count = len(weights["normal"])
            return torch.zeros(count), torch.rand(count)

        for number in range(epochs):
            pt.end_epoch(state, number, measure)
            decided.append(state.decided)
        assert decided == [0] * 49 + [1 + done // interval for done in range(epochs - 49)]
        assert decided[-1] == 17

    def test_rates_of_both_phases(self) -> None:
        """A cosine to the end of the base, and one from a tenth of the rate on."""
        pt, _ = begin(f"darts_pt(share={50 / 130})", "darts", ("bp",), epochs=130)
        phase, config = pt.weight_phase(130), SearchConfig(epochs=130)

        def cosine(first: float, last: float, progress: float) -> float:
            return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2

        expected = [cosine(0.025, 0.001, e / 50) for e in range(50)]
        expected += [cosine(0.0025, 0.001, e / 80) for e in range(80)]
        rates = [learning_rate(config, e, phase) for e in range(130)]
        assert rates == pytest.approx(expected, rel=1e-12)
        # A tenth of a rate that is near the last one does not rise to it.
        low = SearchConfig(epochs=130, lr=0.005)
        assert [learning_rate(low, e, phase) for e in (50, 129)] == pytest.approx([5e-4, 5e-4])
        assert begin("darts_pt(share=0)", PAIR)[0].weight_phase(7).first == 0
        assert begin("darts", PAIR)[0].weight_phase(7) is None

    def test_tunes_w_and_alpha_under_what_is_chosen(self) -> None:
        """Two steps of the base, a choice, and two steps of an optimizer begun anew."""
        task = made("darts_pt(base='darts(lr=0.1, init=0.5)', share=0.5)", epochs=2)
        assert task.steps_per_epoch == 2
        plain = Plain(task, 0.1)

        def shares() -> Weights:
            weights = plain.softmax()
            for t, rows in chosen.items():
                for edge, candidate in rows.items():
                    row = torch.zeros_like(weights[t][edge])
                    row[candidate] = 1.0
                    weights[t] = torch.cat(
                        [weights[t][:edge], row.unsqueeze(0), weights[t][edge + 1 :]]
                    )
            return weights

        chosen: dict[str, dict[int, int]] = {"normal": {}, "reduce": {}}
        task.begin_epoch(0)
        for t in range(2):
            task.step(t)
            plain.step(t, shares)
        chosen["normal"][1], chosen["reduce"][0] = 3, 2
        for t, rows in chosen.items():
            for edge, candidate in rows.items():
                task.strategy_state.choose(t, edge, candidate)
        task.begin_epoch(1)
        # Begun anew, at a tenth of the rate; the minimum of a cosine of one epoch is never reached.
        plain.sgd = plain.new_sgd(0.05 / 10)
        before = {t: a.detach().clone() for t, a in plain.alpha.items()}
        for t in range(2, 4):
            task.step(t)
            plain.step(t, shares)
        plain.expect()
        assert not torch.equal(before["normal"][0], plain.alpha["normal"][0])

    def test_the_second_order_sees_what_is_chosen_too(self) -> None:
        """The gradient at decided edges is zero, at others it is not."""
        task = made("darts_pt(base='darts(order=2)', share=0.5)", epochs=2)
        task.begin_epoch(0)
        task.step(0)
        task.strategy_state.choose("normal", 1, 3)
        task.strategy_state.choose("reduce", 0, 2)
        batches = (*task.train_batches.batch(2), *task.valid_batches.batch(2))
        (normal, reduce), _ = task._alpha_gradients(*batches)
        for decided, free in ((normal[1], normal[0]), (reduce[0], reduce[1])):
            assert decided.abs().max() < 1e-12
            assert free.abs().max() > 1e-5

    def test_edges_are_measured_again_once_one_has_left(self) -> None:
        """Beside a plain loop, where edges stand in for each other: 0 and 1 of node 4 do the same.

        Measured once, both would be missed least and leave together.
        """
        pt, state = begin("darts_pt(share=0)", "darts(nodes=3)", ("bp",), epochs=1)
        asked = []

        def accuracy_of(present: Sequence[bool]) -> float:
            zero, one, two, three = present
            return 0.5 * (zero or one) + 0.3 * two + 0.2 * three

        def measure(weights: Any, batches: int) -> tuple[Tensor, Tensor]:
            rows = (weights["normal"][:, 5:9] > 0).any(2).tolist()  # the edges into node 4
            asked.append(rows)
            accuracies = torch.tensor([accuracy_of(row) for row in rows])
            return torch.zeros_like(accuracies), accuracies

        pt.end_epoch(state, 0, measure)
        left, present = [0, 1, 2, 3], [True] * 4
        rounds = []
        while len(left) > 2:
            trials = [[p and e != gone for e, p in enumerate(present)] for gone in left]
            rounds.append(trials)
            best = max(accuracy_of(trial) for trial in trials)
            gone = [e for e, trial in zip(left, trials, strict=True) if accuracy_of(trial) == best]
            left.remove(gone[-1])  # of equal ones the later leaves
            present[gone[-1]] = False
        assert left == [0, 2]
        assert state.dropped["normal"][5:9].tolist() == [False, True, False, True]
        assert all(trials in asked for trials in rounds)

    def test_goes_on_from_its_state_with_the_same_weights(self) -> None:
        (pt, one), (_, other) = (begin("darts_pt", "darts(nodes=2)") for _ in range(2))
        one.choose("normal", 1, 3)
        one.choose("normal", 2, 1)
        one.drop("normal", 2)
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        for weights, again in zip(
            pt.edge_weights(one).values(), pt.edge_weights(other).values(), strict=True
        ):
            assert torch.equal(weights, again)
        assert pt.edge_weights(other)["normal"][1:3].sum().item() == pytest.approx(1.0, rel=1e-12)


class TestFairDarts:
    """arXiv 1911.12126, and `threshold_sparse` of the published code."""

    SPACE = "darts(kept_edges=None, operations=(skip_connect, sep_conv_3x3, dil_conv_3x3))"

    @pytest.mark.parametrize("seed", range(8))
    def test_derives_at_most_two_edges_a_node_above_the_threshold(self, seed: int) -> None:
        fair, state = begin("fair_darts(threshold=0.85)", self.SPACE, ("bp",))
        torch.manual_seed(seed)
        with torch.no_grad():
            for alpha in state.alpha.values():
                alpha.copy_(2 * torch.randn_like(alpha))
        space, table = state.context.space, state.context.table
        cells = space.derive(fair.final_weights(state), table)
        for t, alpha in state.alpha.items():
            gene, start = [], 0
            for node in range(2, 6):
                shares = [[1 / (1 + math.exp(-a)) for a in row] for row in alpha[start:].tolist()]
                start += node
                strongest = sorted(range(node), key=lambda j: -max(shares[j]))[:2]
                for source in sorted(strongest):
                    best = max(range(3), key=lambda k: shares[source][k])
                    if shares[source][best] >= 0.85:
                        gene.append((node, source, space.operations[best]))
            # The published network passes over edges that come from a node without any.
            present, expected = {0, 1}, []
            for node, source, op in gene:
                if source in present:
                    expected.append((node, source, op))
                    present.add(node)
            assert len(expected) > 1
            assert [(e.node, e.input, e.candidate.op) for e in cells[t].edges] == expected
            assert cells[t].concat == tuple(sorted(present - {0, 1}))
        genotype = Genotype("darts(kept_edges=None)", cells)
        space.validate(genotype, "derived")
        network = build_network(genotype, channels=4, layers=3, num_classes=10).eval()
        assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 10)

    def test_of_nothing_above_the_threshold_one_edge_stays(self) -> None:
        fair, state = begin("fair_darts(threshold=0.85)", self.SPACE, ("bp",))
        with torch.no_grad():
            for alpha in state.alpha.values():
                alpha.fill_(-1.0)
                alpha[3, 1] = 0.0  # the second edge into the second node, from input 1
                alpha[4, 1] = 1.0  # the third, which comes from the first node
        cells = state.context.space.derive(fair.final_weights(state), state.context.table)
        for cell in cells.values():
            assert [(e.node, e.input, e.candidate.op) for e in cell.edges] == [
                (3, 1, "sep_conv_3x3")
            ]
            assert cell.concat == (3,)

    def test_a_search_by_it_ends_in_a_cell_of_its_space(self) -> None:
        task = made("fair_darts(threshold=0.5)", space=self.SPACE.replace("(", "(nodes=2, ", 1))
        task.begin_epoch(0)
        task.step(0)
        task.space.validate(task.genotype(), "found")

    def test_spaces_and_strategies_that_need_all_edges_refuse_it(self) -> None:
        for space in ("darts", "nb201", "by_depth(space=darts, cells=3)"):
            with pytest.raises(InputError, match=r"threshold: expected a space whose nodes may"):
                begin("fair_darts(threshold=0.85)", space)
        with pytest.raises(InputError, match=r'use --space "darts\(kept_edges=None, nodes=2\)"'):
            begin("fair_darts(threshold=0.85)", "darts(nodes=2)")
        begin("fair_darts(threshold=0.85)", "by_depth(space=darts(kept_edges=None), cells=3)")
        with pytest.raises(InputError, match="leave its threshold out"):
            begin("darts_pt(base='fair_darts(threshold=0.85)')", self.SPACE)
        with pytest.raises(InputError, match="threshold: expected a number"):
            begin("fair_darts(threshold=1)", self.SPACE)


class TestRandom:
    def test_rules_on_a_genotype_whose_nodes_have_fewer_edges(self) -> None:
        """No edge is added to those that the genotype has."""
        fixed = load_genotype("fair_darts_a")
        random, state = begin("random(genotype=fair_darts_a)", "darts(kept_edges=None)")
        cells = state.context.space.derive(random.final_weights(state), state.context.table)
        for t, cell in cells.items():
            assert [(e.node, e.input, e.candidate.op) for e in cell.edges] == sorted(
                (e.node, e.input, e.candidate.op) for e in fixed.cells[t].edges
            )
            assert cell.concat == fixed.cells[t].concat


class TestEgNas:
    """train_search.py of the published code (AAAI 2024), in plain loops."""

    @pytest.mark.parametrize("threshold", [0.3, 0.7])
    def test_a_generation_and_its_step(self, threshold: float) -> None:
        """About `threshold` of the individuals are more accurate than the present architecture."""
        eg, state = begin("eg(population=6, published=True)", PAIR)
        table, seen = state.context.table, []
        random = torch.Generator().manual_seed(0)

        def measure(weights: Any, batches: int) -> tuple[Tensor, Tensor]:
            assert batches == 1
            count = len(weights["normal"])
            assert not seen
            losses = torch.rand(count, generator=random)
            accuracies = torch.rand(count, generator=random)
            accuracies[0] = 1 - threshold
            seen.append((weights, losses, accuracies))
            return losses, accuracies

        present = {t: w.clone() for t, w in state.weights.items()}
        # The draws: of CMA-ES at its beginning, and of the mean's distance to the architecture.
        z = eg.sampler(state.context, 0).ask()
        source = generator("cpu", "mean of evolution", 0, 3)
        n = torch.randn(1, z.shape[1], generator=source).numpy()
        numbers = eg.end_epoch(state, 3, measure)
        ((weights, losses, accuracies),) = seen
        best: tuple[float, dict[tuple[str, int], list[float]]] | None = None
        for i in range(6):
            similarities, softmaxes, start = [], {}, 0
            for t in table.rows:
                of_edges = []
                for e, row in enumerate(table.rows[t]):
                    size = len(row) - row.count(None)
                    p = present[t][e, :size].tolist()
                    drawn = (0.01 * n[0] + z[i])[start : start + size]
                    start += size
                    v = [a + b for a, b in zip(p, drawn, strict=True)]
                    length = math.hypot(*v)
                    v = [a / length for a in v]
                    cosine = sum(a * b for a, b in zip(v, p, strict=True)) / math.hypot(*p)
                    of_edges.append((cosine + 1) / 2)
                    softmaxes[t, e] = plain_softmax(v)
                    measured = weights[t][1 + i, e]
                    assert measured[:size].tolist() == pytest.approx(softmaxes[t, e], rel=1e-10)
                    assert measured[size:].eq(0).all()
                similarities.append(sum(of_edges) / len(of_edges))
            similarity = sum(similarities) / len(similarities)
            sign = 1 if accuracies[1 + i] >= accuracies[0] else -1
            value = losses[1 + i].item() + sign * 0.4 * similarity
            if best is None or value <= best[0]:
                best = value, softmaxes
        assert best is not None
        assert numbers["evolution/best_fitness"] == pytest.approx(-best[0], rel=1e-10)
        for t, shares in state.weights.items():
            assert torch.equal(weights[t][0], present[t])
            for e, row in enumerate(table.rows[t]):
                size = len(row) - row.count(None)
                alpha = present[t][e, :size].log().tolist()
                added = plain_softmax(best[1][t, e])  # once more, as published
                grown = [a + 0.1 * b for a, b in zip(alpha, added, strict=True)]
                assert shares[e, :size].tolist() == pytest.approx(plain_softmax(grown), rel=1e-10)
                assert shares[e, size:].eq(0).all()

    def test_a_search_on_a_quarter_of_the_channels_goes_on(self) -> None:
        tasks = [
            made(
                "eg(population=4, published=True)",
                regularizers=("partial_channels(k=4)", "warmup(epochs=0)"),
                epochs=2,
            )
            for _ in range(2)
        ]
        tasks[0].begin_epoch(0)
        tasks[0].end_epoch(0)
        tasks[1].load_state_dict(copy.deepcopy(tasks[0].state_dict()))
        assert tasks[0].end_epoch(1) == tasks[1].end_epoch(1)
        one, other = (task.strategy_state.weights for task in tasks)
        assert all(torch.equal(one[t], other[t]) for t in one)


class TestStridedSkips:
    """arXiv 2507.13485 pairs them with rules, and its code trains them by bp."""

    RULES = ("fa", "usf", "brsf", "frsf")

    @pytest.mark.parametrize(("layout", "copies", "width"), [("paper", 3, 22), ("clean", 1, 20)])
    def test_are_candidates_under_bp(self, layout: str, copies: int, width: int) -> None:
        space = SPACES.build(f"darts(layout={layout}, strided_skip_rule=bp)")
        other = SPACES.build(f"darts(layout={layout})").table(self.RULES)
        table = space.table(self.RULES)
        assert table.rows["normal"] == other.rows["normal"]
        for (_, source), row in zip(space.edges, table.rows["reduce"], strict=True):
            assert len(row) - row.count(None) == width
            skips = [c.rule for c in row if c is not None and c.op == "skip_connect"]
            if source < 2:
                assert skips == copies * ["bp"]

    @pytest.mark.parametrize("layout", ["paper", "clean"])
    def test_their_layers_are_ordinary_ones(self, layout: str) -> None:
        """And all of a step equals the reference, where some candidates of a row are alike."""
        space = SPACES.build(f"darts(layout={layout}, nodes=2, strided_skip_rule=bp)")
        twins = Twins.of(SPACES.spec(space), ("fa", "usf", "brsf"))
        twins.equal(1e-11)
        table = twins.fast.table
        weights = {t: torch.zeros(table.shape(t)) for t in table.rows}
        for t, rows in table.rows.items():
            for e, row in enumerate(rows):
                column = [c is not None and c.op == "skip_connect" for c in row].index(True)
                weights[t][e, column] = 1.0
        cells = space.derive(weights, table)
        genotype = Genotype("darts(nodes=2, strided_skip_rule=bp)", cells)
        space.validate(genotype, "derived")
        assert {e.candidate.rule for e in cells["reduce"].edges if e.input < 2} == {"bp"}
        network = build_network(genotype, channels=4, layers=3, num_classes=10)
        assert {layer.rule for _, layer in rule_layers(network)} == {RULES.build("bp")}

    def test_an_unknown_rule(self) -> None:
        with pytest.raises(InputError, match="darts space: strided_skip_rule: unknown"):
            SPACES.build("darts(strided_skip_rule=bq)")


def plain_softmax(values: Sequence[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]
