"""What holds back skip connections: dropout behind them, and a limit on those of a derived cell."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from searching import context, epoch, search
from test_ingredients import tensors

from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.networks import FoldedCell, MixedCell, SuperNet
from darts_bio.networks.cells import SkipDropout
from darts_bio.networks.reference import ReferenceCell
from darts_bio.spaces import SPACES
from darts_bio.strategies import REGULARIZERS
from darts_bio.strategies.base import masked_softmax
from darts_bio.training.search import Search


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


class TestDropout:
    def test_a_value_is_dropped_or_scaled(self, float64: None) -> None:
        """By the rate at present; of n values the share that is kept has the deviation
        sqrt(p (1 - p) / n), and 5 of these leave one draw in a million outside."""
        rate, x = torch.tensor(0.7), torch.rand(8, 5, 32, 32) + 1
        dropout = SkipDropout(rate)
        for p in (0.7, 0.4):
            rate.fill_(p)
            y = dropout(x)
            kept = y != 0
            torch.testing.assert_close(y[kept], x[kept] / (1 - p))
            deviation = math.sqrt(p * (1 - p) / x.numel())
            assert abs(kept.double().mean().item() - (1 - p)) < 5 * deviation
        assert torch.equal(dropout.eval()(x), x)
        rate.fill_(0.0)
        assert torch.equal(dropout.train()(x), x)

    def test_processes_draw_the_parts_of_one_batch(self) -> None:
        x = torch.rand(6, 2, 4, 4)
        whole = SkipDropout(torch.tensor(0.5))
        whole.share = (0, 1)
        torch.manual_seed(3)
        expected = whole(x)
        for i in range(3):
            part = SkipDropout(torch.tensor(0.5))
            part.share = (i, 3)
            torch.manual_seed(3)
            assert torch.equal(part(x[2 * i : 2 * i + 2]), expected[2 * i : 2 * i + 2])

    @pytest.mark.parametrize("cell", [MixedCell, FoldedCell, ReferenceCell])
    @pytest.mark.parametrize("shared", [None, "match"])
    def test_it_stands_behind_each_identity(
        self, float64: None, cell: type, shared: str | None
    ) -> None:
        """Where all values are dropped, the network is that whose identities have no weight."""
        space = SPACES.build("darts(nodes=2, operations=(none, skip_connect, sep_conv_3x3))")

        def build(skip_rate: torch.Tensor | None) -> SuperNet:
            torch.manual_seed(1)
            return SuperNet(
                space, ("fa", "usf"), channels=4, layers=3, num_classes=5, cell=cell,
                shared=shared, skip_rate=skip_rate,
            )  # fmt: skip

        rate = torch.tensor(1 - 1e-12)
        dropped, plain = build(rate), build(None)
        weights, without = {}, {}
        for t in plain.table.rows:
            weights[t] = torch.rand(plain.table.shape(t)) * plain.table.mask(t)
            without[t] = weights[t].clone()
            for e, (_, source) in enumerate(space.edges):
                if space.stride(t, source) == 1:
                    without[t][e, 1] = 0
        x = torch.randn(3, 3, 8, 8)
        torch.testing.assert_close(dropped(x, weights), plain(x, without), rtol=1e-9, atol=1e-9)
        with dropped.batch_statistics(), plain.batch_statistics():
            here, there = dropped(x, weights), plain(x, weights)
            torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
        assert all(m.training for m in dropped.modules() if isinstance(m, SkipDropout))
        columns = {t: [1] * len(space.edges) for t in weights}
        single = {t: torch.eye(w.shape[1])[columns[t]] for t, w in weights.items()}
        rate.fill_(0.0)
        if shared is None:
            with dropped.drawn(columns), plain.drawn(columns):
                torch.testing.assert_close(dropped(x, single), plain(x, single))

    def test_the_published_rates(self) -> None:
        """train_search.py: 25 epochs, in the first 10 of which alpha stays as it is."""
        dropout = REGULARIZERS.build("skip_dropout(rate=0.7)")
        state = dropout.begin(context(epochs=25, warmup_epochs=10))
        for number in range(25):
            dropout.begin_epoch(state, number)
            published = (
                0.7 * (25 - number - 1) / 25
                if number < 10
                else 0.7 * math.exp(-(number - 10) * 0.2)
            )
            assert state.number.item() == pytest.approx(published, rel=1e-6)

    def test_a_search_goes_on_bit_for_bit(self, data: ImageData) -> None:
        options = {"regularizers": ("skip_dropout(rate=0.4)", "warmup(epochs=1)")}
        task = search(data, **options)
        for number in range(2):
            epoch(task, number)
        saved, rng = copy.deepcopy(task.state_dict()), torch.get_rng_state()
        resumed = search(data, **options)
        resumed.load_state_dict(saved)
        for one in (task, resumed):
            torch.set_rng_state(rng)
            epoch(one, 2)
        ends, ends_resumed = tensors(task), tensors(resumed)
        assert all(torch.equal(ends[name], ends_resumed[name]) for name in ends)
        plain, dropped = search(data, regularizers=("warmup(epochs=1)",)), search(data, **options)
        for one in (plain, dropped):
            epoch(one, 0)
        stems = [tensors(one)["supernet.stem.0.weight"] for one in (plain, dropped)]
        assert not torch.equal(*stems)


def published_limit(probabilities: torch.Tensor, most: int) -> list[tuple[int, int]]:
    """The (edge, operation) of each edge kept, by the published code's way of restricting skips.

    Operation 0 is `none`, 3 the skip. As long as there are too many, the probability of the weakest
    skip that is kept becomes 0, and operations and edges are chosen anew.
    """
    p = probabilities.tolist()
    while True:
        best = [max(range(1, len(row)), key=lambda o, row=row: row[o]) for row in p]
        kept, first = [], 0
        for edges in (2, 3, 4, 5):
            ranked = sorted(range(first, first + edges), key=lambda e: p[e][best[e]])
            kept += sorted(ranked[-2:])
            first += edges
        skips = [e for e in kept if best[e] == 3]
        if len(skips) <= most:
            return [(e, best[e]) for e in kept]
        p[min(skips, key=lambda e: p[e][3])][3] = 0.0


class TestLimit:
    @pytest.mark.parametrize("most", [0, 1, 2, 5])
    def test_as_published(self, most: int) -> None:
        limit, searched = REGULARIZERS.build(f"skip_limit(most={most})"), context(rules=("bp",))
        state, space, table = limit.begin(searched), searched.space, searched.table

        def derive(weights: dict[str, torch.Tensor]) -> dict:
            return space.derive(weights, table)

        source = torch.Generator().manual_seed(most)
        struck = 0
        for _ in range(50):
            # Of few groups of logits, so that skips are among the strongest on many edges.
            alpha = {t: torch.randn(table.shape(t), generator=source) for t in table.rows}
            alpha["normal"][:, 3] += 1.5
            weights = {t: masked_softmax(a, table.mask(t)) for t, a in alpha.items()}
            before = {t: w.clone() for t, w in weights.items()}
            cells = derive(limit.decisive(state, weights, derive))
            assert all(torch.equal(before[t], weights[t]) for t in weights)  # left as they were
            operations = [candidate.op for candidate in table.rows["normal"][0] if candidate]
            expected = [
                (*space.edges[e], operations[o])
                for e, o in published_limit(weights["normal"], most)
            ]
            found = [(e.node, e.input, e.candidate.op) for e in cells["normal"].edges]
            assert found == expected
            assert cells["reduce"] == derive(weights)["reduce"]
            struck += cells["normal"] != derive(weights)["normal"]
        assert struck > 20  # otherwise nothing was tried

    def test_a_search_derives_by_it(self, data: ImageData) -> None:
        """With two edges of its single node, on which skips are strongest."""
        limited = search(data, regularizers=("skip_limit(most=1)",))
        plain = search(data)
        for task in (limited, plain):
            for alpha in task.strategy_state.alpha.values():
                alpha.data.fill_(0.0)[:, 1] = torch.tensor([2.0, 1.0])

        def skips(task: Search) -> list[int]:
            cells = task.genotype().cells
            return [sum(e.candidate.op == "skip_connect" for e in c.edges) for c in cells.values()]

        assert skips(plain) == [2, 2]
        assert skips(limited) == [1, 2]

    def test_skips_stay_where_there_is_nothing_else(self) -> None:
        limit = REGULARIZERS.build("skip_limit(most=0)")
        searched = context("darts(nodes=2, operations=(none, skip_connect))", rules=("bp",))
        state = limit.begin(searched)
        shares = {t: searched.table.equal_shares(t) for t in searched.table.rows}
        derive = lambda w: searched.space.derive(w, searched.table)  # noqa: E731
        cells = derive(limit.decisive(state, shares, derive))
        assert [e.candidate.op for e in cells["normal"].edges] == ["skip_connect"] * 4


def test_bad_options(data: ImageData) -> None:
    for spec, message in (
        ("skip_dropout(rate=1)", "rate: expected a number above 0 and below 1"),
        ("skip_dropout(rate=0)", "rate: expected a number above 0 and below 1"),
        ("skip_limit(most=-1)", "most: expected a whole number of at least 0"),
    ):
        with pytest.raises(InputError, match=message):
            search(data, regularizers=(spec,))
    with pytest.raises(InputError, match="moves alpha along a gradient, found eg"):
        search(data, "eg", regularizers=("skip_limit",))
