"""The bound on weight transport: its multiplier finds the known optimum, and derived cells keep to it."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searching import CPU, search
from torch import Tensor

from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.networks import build_candidate, build_network
from darts_bio.rules import audit
from darts_bio.spaces import SPACES, Candidate, CandidateTable, Cell, Genotype, Space
from darts_bio.strategies import Objective
from darts_bio.strategies.bound import FIRST, SPRING, Bound
from darts_bio.training.engine import run_epoch

RULES = ("fa", "usf", "bp")
CONVOLUTIONS = "darts(nodes=2, operations=(skip_connect, sep_conv_3x3))"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


def objective(
    specs: tuple[str, ...],
    rules: tuple[str, ...] = RULES,
    spec: str = CONVOLUTIONS,
    layers: int = 5,
) -> tuple[Objective, Space, CandidateTable]:
    space = SPACES.build(spec)
    table = space.table(rules)
    sizes: dict[str, Any] = {"channels": 4, "layers": layers, "image_size": (8, 8)}
    return Objective(specs, space, table, device=CPU, **sizes), space, table


def bound(share: float, **options: Any) -> tuple[Bound, Space, CandidateTable]:
    built, space, table = objective((f"weight_transport(share={share})",), **options)
    assert built.bound is not None
    return built.bound, space, table


def random_weights(table: CandidateTable, seed: int, sharpness: float = 2.0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    weights = {}
    for t in table.rows:
        logits = sharpness * torch.randn(table.shape(t), generator=source)
        weights[t] = logits.masked_fill(~table.mask(t), -math.inf).softmax(1)
    return weights


class TestThePenalty:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    def test_is_the_multiplier_times_the_excess(self, share: float, float64: None) -> None:
        """The oracle counts the parameters of a network built for each candidate."""
        held, space, table = bound(share)
        weights = random_weights(table, 1)
        part = whole = equal = 0.0
        counts = table_of_parameters(space, table, layers=5)
        for t, rows in table.rows.items():
            for e, row in enumerate(rows):
                candidates = [c for c in row if c is not None]
                for i, candidate in enumerate(candidates):
                    count = counts[t, e, candidate.op]
                    part += float(weights[t][e, i]) * count * (candidate.rule == "bp")
                    whole += float(weights[t][e, i]) * count
                    equal += count / len(candidates)
        assert float(held.expected_share(weights)) == pytest.approx(part / whole, rel=1e-12)
        multiplier = FIRST * math.exp(SPRING * (part / whole - share))
        expected = multiplier * (part - share * whole) / equal
        assert float(held.penalty(weights)) == pytest.approx(expected, rel=1e-12)
        several = {t: torch.stack([w, w]) for t, w in weights.items()}
        torch.testing.assert_close(held.penalty(several), torch.tensor([expected] * 2))

    def test_moves_shares_as_a_price_does_and_not_the_multiplier(self, float64: None) -> None:
        held, space, table = bound(0.2)
        weights = {t: w.requires_grad_() for t, w in random_weights(table, 2).items()}
        gradients = torch.autograd.grad(held.penalty(weights), list(weights.values()))
        spring = SPRING * (float(held.expected_share(weights).detach()) - 0.2)
        counts = table_of_parameters(space, table, layers=5)
        equal = sum(
            counts[t, e, c.op] / sum(map(bool, row))
            for t, rows in table.rows.items()
            for e, row in enumerate(rows)
            for c in row
            if c is not None
        )
        for t, gradient in zip(weights, gradients, strict=True):
            for e, row in enumerate(table.rows[t]):
                for i, candidate in enumerate(row):
                    if candidate is not None:
                        transported = candidate.rule == "bp"
                        price = counts[t, e, candidate.op] * (transported - 0.2) / equal
                        expected = FIRST * math.exp(spring) * price
                        assert float(gradient[e, i]) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def table_of_parameters(
    space: Space, table: CandidateTable, layers: int
) -> dict[tuple[str, int, str], int]:
    """Weights of an operation's convolutions on an edge, in all cells of the type, as built."""
    counts: dict[tuple[str, int, str], int] = {}
    channels = 4
    for layer, t in enumerate(space.plan(layers)):
        channels *= 2 if layer in space.reductions(layers) else 1
        for e, row in enumerate(table.rows[t]):
            stride = space.stride(t, space.edges[e][1])
            for candidate in {c.op: c for c in row if c is not None}.values():
                module = build_candidate(candidate, channels, stride, supernet=False)
                key = (t, e, candidate.op)
                counts[key] = counts.get(key, 0) + sum(
                    p.numel() for p in module.parameters() if p.dim() == 4
                )
    return counts


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_the_multiplier_finds_the_best_use_of_a_share(
    share: float, scale: float, float64: None
) -> None:
    """A loss that is linear in shares has a known optimum, the fractional knapsack's: edges are under
    bp in the order of what that is worth to them for a parameter. Its scale is not known beforehand.
    """
    held, _, table = bound(
        share, rules=("fa", "bp"), spec="darts(nodes=2, operations=(sep_conv_3x3,))"
    )
    source = np.random.default_rng(3)
    places = [(t, e) for t, rows in table.rows.items() for e in range(len(rows))]
    worth = {place: float(source.uniform(0.2, 1.0)) for place in places}
    costs = {(t, e): float(held._part[t][e, 1]) for t, e in places}
    logits = {t: torch.zeros(len(rows), requires_grad=True) for t, rows in table.rows.items()}
    optimizer = torch.optim.Adam(list(logits.values()), lr=0.03, betas=(0.5, 0.999))

    def shares() -> dict[str, Tensor]:
        return {t: torch.stack([1 - p.sigmoid(), p.sigmoid()], 1) for t, p in logits.items()}

    for _ in range(600):
        now = shares()
        loss = -scale * sum(worth[t, e] * now[t][e, 1] for t, e in places) / len(places)
        optimizer.zero_grad()
        (loss + held.penalty(now)).backward()
        optimizer.step()
        held.adapt(shares())
    spent = float(held.expected_share(shares()))
    assert share - 0.1 < spent < share + 0.02
    left, whole = share * sum(costs.values()), {True: [1.0], False: [0.0]}
    for t, e in sorted(places, key=lambda place: -worth[place] / costs[place]):
        wanted = min(1.0, left / costs[t, e])
        left -= wanted * costs[t, e]
        if wanted in (0.0, 1.0):
            whole[wanted == 1].append(float(shares()[t][e, 1].detach()))
    assert min(whole[True]) > max(whole[False])


class TestDerivedCells:
    @given(seed=st.integers(0, 10**6), share=st.floats(0, 0.99), by_depth=st.booleans())
    def test_keep_to_the_share_and_their_operations(
        self, seed: int, share: float, by_depth: bool
    ) -> None:
        spec = f"by_depth(space={CONVOLUTIONS}, cells=5)" if by_depth else CONVOLUTIONS
        held, space, table = bound(share, spec=spec)
        weights = random_weights(table, seed)
        cells = space.derive(weights, table)
        kept = held.hold(cells, weights)
        space.validate(Genotype(spec, kept), "kept")
        assert held.share_of(kept) <= share + 1e-9
        for t, cell in cells.items():
            for before, after in zip(cell.edges, kept[t].edges, strict=True):
                assert replace(after, candidate=before.candidate) == before
                assert after.candidate.op == before.candidate.op
        # What is left over is too little for one edge more.
        for t, cell in kept.items():
            for number, edge in enumerate(cell.edges):
                if edge.candidate.rule not in (None, "bp"):
                    edges = list(cell.edges)
                    edges[number] = replace(edge, candidate=Candidate(edge.candidate.op, "bp"))
                    more = kept | {t: Cell(tuple(edges), cell.concat)}
                    assert held.share_of(more) > share - 1e-9

    @given(seed=st.integers(0, 10**6))
    def test_that_spend_the_share_stay_as_they_are(self, seed: int) -> None:
        """Where each edge's best rule is among those that keep to the share, those are taken."""
        held, space, table = bound(0.5)
        weights = random_weights(table, seed)
        cells = space.derive(weights, table)
        share = held.share_of(cells)
        if 0 < share < 1:
            assert bound(share)[0].hold(cells, weights) == cells

    @pytest.mark.parametrize("seed", range(4))
    def test_share_is_what_audit_finds_in_the_cells_of_the_network(self, seed: int) -> None:
        spec = f"by_depth(space={CONVOLUTIONS}, cells=5)"
        held, space, table = bound(0.5, spec=spec)
        cells = space.derive(random_weights(table, seed), table)
        genotype = Genotype(spec, cells, backbone_rule="fa")
        report = audit(build_network(genotype, channels=4, layers=5, num_classes=10).cells)
        assert held.share_of(cells) == pytest.approx(report.transported / report.parameters)

    def test_the_edges_to_which_it_makes_most_difference_transport(self) -> None:
        """Four edges of 304, 304, 2 * 864 and 2 * 864 weights, in that order of the table."""
        spec = "darts(nodes=1, operations=(sep_conv_3x3,))"
        weights = {
            "normal": torch.tensor([[0.9, 0.1], [0.8, 0.2]]),
            "reduce": torch.tensor([[0.7, 0.3], [0.95, 0.05]]),
        }
        found = {}
        for share in (0.05, 0.1, 0.2, 0.3, 0.5, 0.6, 0.95):
            held, space, table = bound(share, rules=("bp", "fa"), spec=spec, layers=3)
            kept = held.hold(space.derive(weights, table), weights)
            rules = [e.candidate.rule for t in ("normal", "reduce") for e in kept[t].edges]
            found[share] = " ".join(map(str, rules))
        sizes = [float(held._whole[t][e, 0]) for t in ("normal", "reduce") for e in (0, 1)]
        assert [size / sum(sizes) for size in sizes] == pytest.approx(
            [0.04, 0.04, 0.46, 0.46], abs=0.03
        )
        # The order of what it is worth: reduce 1, normal 0, normal 1, reduce 0.
        assert found == {
            0.05: "bp fa fa fa",
            0.1: "bp bp fa fa",
            0.2: "bp bp fa fa",
            0.3: "bp bp fa fa",
            0.5: "bp fa fa bp",
            0.6: "bp bp fa bp",
            0.95: "bp bp fa bp",
        }


WRONG: dict[tuple[str, ...], str] = {
    ("weight_transport(share=1)",): "--objective weight_transport: share: expected a number",
    ("weight_transport(share=-0.1)",): "--objective weight_transport: share: expected a number",
    ("weight_transport(share=none)",): "--objective weight_transport: share: expected a number",
    (
        "weight_transport(share=0.1, weight=1)",
    ): "--objective: expected weight_transport(weight=...) or weight_transport(share=...), found",
    ("parameters(share=0.5)",): "--objective: expected parameters(weight=...), found",
    (
        "weight_transport(share=0.1)",
        "weight_transport(share=0.2)",
    ): "--objective: expected one bound",
}


@pytest.mark.parametrize("specs", WRONG)
def test_bounds_that_cannot_be(specs: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        objective(specs)
    assert str(caught.value).startswith(WRONG[specs])


@pytest.mark.parametrize(
    ("rules", "spec", "message"),
    [
        (("bp",), CONVOLUTIONS, r"share: expected a rule for \w+ with no more than 0.5"),
        # The paper's layout has no skip under fa.
        (
            ("bp", "fa"),
            "darts(layout=paper)",
            r"for skip_connect .* found 1 at the least \(bp, edge 0",
        ),
        (("bp", "dfa"), "darts(nodes=1)", r"expected a rule for \w+ with no more than 0.5"),
        (
            ("fa", "usf"),
            CONVOLUTIONS,
            "no candidate of this search has that cost; add bp to --rules, or leave it out",
        ),
        (("bp", "fa"), "darts(operations=(max_pool_3x3,))", "no candidate of this search has that"),
    ],
)
def test_a_share_that_the_rules_do_not_allow(
    rules: tuple[str, ...], spec: str, message: str
) -> None:
    with pytest.raises(InputError, match=f"--objective weight_transport: .*{message}|{message}"):
        bound(0.5, rules=rules, spec=spec)


@pytest.mark.parametrize("strategy", ["random", "eg"])
def test_strategies_without_a_gradient_are_refused(data: ImageData, strategy: str) -> None:
    with pytest.raises(InputError, match=r"--objective weight_transport\(share=...\): expected a"):
        search(data, strategy, rules=RULES, objective=("weight_transport(share=0.3)",))


def test_a_search_goes_on_with_its_multiplier(data: ImageData) -> None:
    options: dict[str, Any] = {
        "rules": ("fa", "bp"),
        "objective": ("weight_transport(share=0.2)",),
    }
    whole, begun, resumed = (search(data, "rule_aware(rule_lr=0.1)", **options) for _ in range(3))
    numbers = [run_epoch(whole, 0), run_epoch(whole, 1)]
    del numbers
    run_epoch(begun, 0)
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert begun.objective.bound is not None
    assert float(begun.objective.bound.log_multiplier) != pytest.approx(math.log(FIRST))
    run_epoch(resumed, 1)
    for name, value in whole.strategy_state.state_dict()["parameters"].items():
        assert torch.equal(value, resumed.strategy_state.state_dict()["parameters"][name])
    for task in (whole, resumed):
        assert task.objective.bound is not None
    assert torch.equal(
        whole.objective.state_dict()["log_multiplier"],
        resumed.objective.state_dict()["log_multiplier"],
    )
    numbers_of_epoch = whole.end_epoch(1)
    assert 0 < numbers_of_epoch["objective/weight_transport_share"] < 1
    assert numbers_of_epoch["objective/multiplier"] > 0


def test_the_genotype_of_a_search_keeps_to_its_share(data: ImageData) -> None:
    for share in (0.0, 0.3):
        task = search(
            data,
            rules=("fa", "bp"),
            space=CONVOLUTIONS,
            objective=(f"weight_transport(share={share})",),
        )
        run_epoch(task, 0)
        assert task.objective.bound is not None
        assert task.objective.bound.share_of(task.genotype().cells) <= share
