"""benchmarks/truth_table.py and known_answer.py: the planted rules, the statistics against plain
versions of them, and that what was interrupted goes on.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import darts_bio
from darts_bio.config import SearchConfig
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.rules import RULES, InitialLaw, true_gradients
from darts_bio.spaces import SPACES, Genotype
from darts_bio.training.search import Search

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODULES = ("planted_rules", "truth_table", "known_answer")
GOOD = ("planted_0", "planted_1", "planted_1", "planted_0")
"""The rule that is backpropagation on normal edges 0 and 1, then on reduce edges 0 and 1."""
BAD = ("planted_1", "planted_0", "planted_0", "planted_1")
OPERATIONS = ("nor_conv_1x1", "sep_conv_3x3")


@pytest.fixture(scope="module", autouse=True)
def _modules() -> Iterator[None]:
    """The benchmarks can be imported, and no other test meets the rules that they register."""
    sys.path.insert(0, str(BENCHMARKS))
    before = set(RULES)
    yield
    for rule in set(RULES) - before:
        RULES.unregister(rule)
    for module in MODULES:
        sys.modules.pop(module, None)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module truth_table, with small networks, short runs and no further processes."""
    module = importlib.import_module("truth_table")
    for name in ("TRAINING", "SEARCHING"):
        short = getattr(module, name) | {"epochs": 1, "layers": 3}
        monkeypatch.setattr(module, name, short)
    monkeypatch.setattr(module, "ProcessPoolExecutor", ThreadPoolExecutor)
    return module


@pytest.fixture
def answer(truth: Any) -> Any:
    return importlib.import_module("known_answer")


def choice_of(truth: Any, operations: tuple[str, ...], rules: tuple[str, ...]) -> tuple[int, ...]:
    pairs = [(candidate.op, candidate.rule) for candidate in truth.PLANTED.candidates]
    return tuple(pairs.index(pair) for pair in zip(operations, rules, strict=True))


class TestPlanted:
    @pytest.mark.parametrize("quality", [0.0, 0.6, 1.0])
    def test_a_kernel_holds_as_much_of_the_weight_as_its_quality_says(
        self, truth: Any, quality: float
    ) -> None:
        law = InitialLaw(torch.Size((4, 3, 1, 1)), bound=0.5)
        state = RULES.build("planted_0").state(law, torch.Generator().manual_seed(1))
        noise = law.sample(torch.Generator().manual_seed(1))
        weight = law.sample(torch.Generator().manual_seed(2))
        state["quality"].fill_(quality)
        expected = quality * weight.double() + math.sqrt(1 - quality**2) * noise.double()
        kernel = RULES.build("planted_0").kernel(weight, state)
        assert kernel is not None
        assert torch.allclose(kernel.double(), expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(("rules", "plain"), [(GOOD, "bp"), (BAD, "fa")])
    def test_a_genotype_of_good_rules_is_trained_as_under_bp_and_of_others_as_under_fa(
        self, truth: Any, rules: tuple[str, ...], plain: str, tmp_path: Path
    ) -> None:
        choice = choice_of(truth, ("sep_conv_3x3", "nor_conv_1x1") * 2, rules)
        name, seed, loss, accuracy = truth.train(truth.PLANTED, choice, 5, truth.plant_in_network)
        cells = truth.PLANTED.genotype(choice).cells
        text = " ".join(str(e.candidate) for t in ("normal", "reduce") for e in cells[t].edges)
        assert (name, seed) == (text, 5)
        space = SPACES.build(truth.PLANTED.spec)
        rows = space.table((plain,))
        weights = {
            t: torch.tensor([[0.0, 1.0], [1.0, 0.0]]) for t in rows.rows
        }  # sep_conv_3x3 is the second operation
        genotype = Genotype(truth.PLANTED.spec, space.derive(weights, rows))
        quiet: dict[str, Any] = {"progress": False, "tensorboard": False, "device": "cpu"}
        result = darts_bio.train(
            genotype, truth.images(), seed=5, out=tmp_path, **quiet, **truth.TRAINING
        )
        assert loss == result.epochs[-1]["test/loss"]
        assert accuracy == result.accuracy

    @pytest.mark.parametrize("strategy", ["darts", "rule_aware"])
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_a_supernet_has_true_gradients_where_every_edge_has_its_good_rule_and_only_there(
        self, truth: Any, strategy: str, operation: str
    ) -> None:
        config = SearchConfig(
            strategy=strategy,
            space=truth.PLANTED.spec,
            rules=truth.PLANTED.rules,
            **(truth.SEARCHING | {"layers": 5}),
        )
        task = Search(config, truth.images(), torch.device("cpu"))
        importlib.import_module("known_answer").plant(task, truth.GOOD)
        x, labels = task.train_batches.batch(0)

        def gradients(rules: tuple[str, ...]) -> Tensor:
            weights = {t: torch.zeros(2, 4) for t in ("normal", "reduce")}
            choice = choice_of(truth, (operation,) * 4, rules)
            for place, number in enumerate(choice):
                weights[("normal", "reduce")[place // 2]][place % 2, number] = 1
            loss = F.cross_entropy(task.supernet(x, weights), labels)
            found = torch.autograd.grad(
                loss, list(task.supernet.parameters()), allow_unused=True, materialize_grads=True
            )
            return torch.cat([gradient.flatten() for gradient in found])

        def distance(rules: tuple[str, ...]) -> float:
            with true_gradients(task.supernet):
                exact = gradients(rules)
            return float((gradients(rules) - exact).norm() / exact.norm())

        # Rounding of some 30 layers in float32, against errors of the size of the gradient.
        assert distance(GOOD) < 1e-4
        for place in range(4):
            one_bad = (*GOOD[:place], BAD[place], *GOOD[place + 1 :])
            assert distance(one_bad) > 1e-2

    def test_each_rule_is_good_on_one_edge_of_each_cell(self, truth: Any) -> None:
        by_name = {place: truth.PLANTED.rules[number] for place, number in truth.GOOD.items()}
        assert tuple(by_name.values()) == GOOD
        for t in ("normal", "reduce"):
            assert {by_name[t, 0], by_name[t, 1]} == {"planted_0", "planted_1"}


class TestTruth:
    def test_the_space_has_256_genotypes_and_reads_its_own(self, truth: Any) -> None:
        choices = truth.PLANTED.choices
        assert len({truth.PLANTED.name_of(choice) for choice in choices}) == 256
        for choice in choices[::17]:
            assert truth.PLANTED.choice_of(truth.PLANTED.genotype(choice)) == choice

    def test_ranks_are_places_in_the_sorted_list(self, truth: Any) -> None:
        values = [0.3, -1.0, 7.0, 0.25, 7.5]
        assert truth.ranks(values).tolist() == [sorted(values).index(v) + 1 for v in values]
        assert truth.ranks([1.0, 0.0, 0.0]).tolist() == [3, 1, 2]

    def test_reliability_is_what_a_plain_analysis_of_variance_finds(self, truth: Any) -> None:
        draw = np.random.default_rng(0)
        table = draw.normal(size=(30, 1)) + draw.normal(size=(30, 3)) / 2
        losses = {
            str(i): {str(j): float(value) for j, value in enumerate(row)}
            for i, row in enumerate(table)
        }
        groups = [list(of_seeds.values()) for of_seeds in losses.values()]
        means = [math.fsum(group) / 3 for group in groups]
        grand = math.fsum(means) / 30
        between = 3 * math.fsum((mean - grand) ** 2 for mean in means) / 29
        within = math.fsum(
            (value - mean) ** 2
            for group, mean in zip(groups, means, strict=True)
            for value in group
        ) / (30 * 2)
        assert truth.reliability(losses) == pytest.approx((between - within) / between, rel=1e-12)
        assert truth.means(losses) == pytest.approx(dict(zip(losses, means, strict=True)))

    def test_reliability_is_that_of_the_law_that_losses_were_drawn_from(self, truth: Any) -> None:
        # Means of four have the variance 1 + 1/4, of which 4/5 is that of genotypes. With 20,000
        # of them the estimate has a standard deviation of about 0.2 sqrt(2 / 20000 * 4/3) = 0.0023.
        draw = np.random.default_rng(1)
        table = draw.normal(size=(20000, 1)) + draw.normal(size=(20000, 4))
        losses = {i: dict(enumerate(row)) for i, row in enumerate(table)}
        assert truth.reliability(losses) == pytest.approx(0.8, abs=6 * 0.0023)

    def test_what_explains_a_made_up_loss_has_its_closed_form(self, truth: Any) -> None:
        # Independent halves: each effect b has the variance b^2 / 4. A sum over four edges, alike
        # on all of them, explains of effects b_e the share (sum b_e)^2 / 4 of sum b_e^2.
        losses = {}
        for choice in truth.PLANTED.choices:
            name = truth.PLANTED.name_of(choice)
            pairs = [label.split(":") for label in name.split()]
            operation, rule = pairs[0][0] == "sep_conv_3x3", pairs[1][1] == "planted_1"
            other, both = pairs[3][1] == "planted_1", pairs[2] == ["sep_conv_3x3", "planted_0"]
            losses[name] = 1.0 * operation + 4.0 * rule - 2.0 * other + 0.0 * both
        shares = truth.explained_by(truth.PLANTED, losses)
        total = 1 + 16 + 4
        assert shares["operations, by edge"] == pytest.approx(1 / total)
        assert shares["rules, by edge"] == pytest.approx(20 / total)
        assert shares["operations, alike on all edges"] == pytest.approx(1 / 4 / total)
        assert shares["rules, alike on all edges"] == pytest.approx((4 - 2) ** 2 / 4 / total)
        assert shares["operations and rules, by edge"] == pytest.approx(1)

    def test_what_no_choice_on_one_edge_explains_is_left_over(self, truth: Any) -> None:
        losses = {
            truth.PLANTED.name_of(choice): float((choice[0] % 2) == (choice[1] % 2))
            for choice in truth.PLANTED.choices
        }
        shares = truth.explained_by(truth.PLANTED, losses)
        assert shares["operations and rules, by edge"] == pytest.approx(0, abs=1e-12)


class TestNullModels:
    @pytest.fixture
    def rank(self, truth: Any) -> dict[tuple[int, ...], int]:
        order = np.random.default_rng(3).permutation(256) + 1
        return dict(zip(truth.PLANTED.choices, order.tolist(), strict=True))

    def test_they_draw_from_the_genotypes_that_their_names_say(
        self, truth: Any, answer: Any, rank: dict[tuple[int, ...], int]
    ) -> None:
        found = [(0, 3, 2, 1), (1, 1, 1, 1)]
        models = answer.null_models(rank, found)
        pairs = {
            choice: [label.split(":") for label in truth.PLANTED.name_of(choice).split()]
            for choice in rank
        }
        assert sorted(models["uniform"][1]) == list(range(1, 257))
        for place, choice in enumerate(found):
            for name, part in (("random rules", 0), ("random operations", 1)):
                alike = [
                    rank[other]
                    for other in rank
                    if [p[part] for p in pairs[other]] == [p[part] for p in pairs[choice]]
                ]
                assert len(alike) == 16
                assert sorted(models[name][place]) == sorted(alike)
        constant = {
            rule: [rank[c] for c in rank if all(pair[1] == rule for pair in pairs[c])]
            for rule in ("planted_0", "planted_1")
        }
        best = min(constant.values(), key=sum)
        assert [sorted(of_one) for of_one in models["constant rule"]] == [sorted(best)] * 2

    def test_the_better_of_the_constant_rules_is_taken(
        self, truth: Any, answer: Any, rank: dict[tuple[int, ...], int]
    ) -> None:
        ones = [choice for choice in rank if truth.PLANTED.name_of(choice).count("planted_1") == 4]
        others = [choice for choice in rank if choice not in ones]
        first = dict(zip([*ones, *others], range(1, 257), strict=True))
        assert sorted(answer.constant_rule(first)) == list(range(1, 17))

    def test_p_counts_the_draws_whose_sum_is_no_larger(self, answer: Any) -> None:
        populations = [[1, 2, 9], [4, 4, 5, 7], [1, 8]]
        sums = [sum(draw) for draw in itertools.product(*populations)]
        for total in range(min(sums) - 1, max(sums) + 2):
            share = Fraction(sum(each <= total for each in sums), len(sums))
            assert answer.p_of_sum(total, populations) == pytest.approx(float(share), abs=1e-15)

    def test_a_search_that_finds_the_best_beats_what_it_does_not_owe_to_chance(
        self, truth: Any, answer: Any
    ) -> None:
        # The truth counts good rules alone: operations decide nothing but the order of equals.
        def badness(choice: tuple[int, ...]) -> float:
            rules = [each.split(":")[1] for each in truth.PLANTED.name_of(choice).split()]
            return sum(a != b for a, b in zip(rules, GOOD, strict=True))

        losses = [badness(choice) for choice in truth.PLANTED.choices]
        rank = dict(zip(truth.PLANTED.choices, truth.ranks(losses).tolist(), strict=True))
        worst_of_best = max(choice for choice in rank if badness(choice) == 0)
        search = {"genotype": truth.PLANTED.name_of(worst_of_best), "seconds": 2.0}
        row = answer.row_of(rank, [search] * 10)
        assert row["ranks"] == [16] * 10
        assert row["good_rules"] == [4] * 10
        assert row["not_beaten"] == ["random operations"]
        models = row["null_models"]
        assert models["uniform"]["mean_rank"] == 128.5
        assert models["uniform"]["std_rank"] == pytest.approx(math.sqrt((256**2 - 1) / 12))
        assert models["random operations"] == {
            "mean_rank": 8.5,
            "std_rank": pytest.approx(math.sqrt((16**2 - 1) / 12)),
            "p": pytest.approx(1),
        }
        # Sums of ten ranks from 1 to 256 that are at most 160: by counting, C(160, 10).
        assert models["uniform"]["p"] == pytest.approx(math.comb(160, 10) / 256**10, rel=1e-9)
        line = answer.line_of("darts", row)
        assert line.startswith("| `darts` | 16 +- 0 | 4.0 +- 0.0 | < 0.001 | < 0.001 |")
        assert line.endswith("| random operations | 2 |")


class TestGoingOn:
    def test_a_table_that_was_interrupted_equals_one_that_was_not(
        self, truth: Any, tmp_path: Path
    ) -> None:
        small = truth.SmallSpace("darts(nodes=1, operations=(nor_conv_1x1,))", ("fa", "usf"))
        made: list[tuple[tuple[int, ...], int]] = []
        ends_at = 20

        def training(
            space: Any, choice: tuple[int, ...], seed: int
        ) -> tuple[str, int, float, float]:
            if len(made) == ends_at:
                raise KeyboardInterrupt
            made.append((choice, seed))
            return space.name_of(choice), seed, float(sum(choice)) + seed, 0.5

        path = tmp_path / "truth.json"
        with pytest.raises(KeyboardInterrupt):
            truth.complete(path, small, 2, training, 1)
        kept = json.loads(path.read_text())["losses"]
        assert sum(map(len, kept.values())) == 20
        ends_at = 1000
        resumed = truth.complete(path, small, 2, training, 1)
        assert sorted(made) == sorted(itertools.product(small.choices, range(2)))  # each once
        assert resumed == json.loads(path.read_text())
        assert truth.complete(tmp_path / "other.json", small, 2, training, 1) == resumed
        assert truth.of_first_seeds(resumed["losses"], 1) == {
            small.name_of(choice): {"0": float(sum(choice))} for choice in small.choices
        }

    def test_a_file_is_whole_whenever_writing_is_interrupted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        measuring, path = importlib.import_module("measuring"), tmp_path / "results.json"
        measuring.keep_results(path, {"n": 1})
        write_text = Path.write_text

        def interrupted(self: Path, text: str, **options: Any) -> int:
            write_text(self, text[: len(text) // 2], **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measuring.keep_results(path, {"n": 2})
        assert measuring.kept_results(path) == {"n": 1}

    def test_searches_are_kept_by_strategy_and_seed_and_the_table_is_the_same_again(
        self,
        truth: Any,
        answer: Any,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        losses = {
            truth.PLANTED.name_of(choice): {str(seed): number + seed / 4 for seed in range(3)}
            for number, choice in enumerate(truth.PLANTED.choices)
        }
        truth_file, file = tmp_path / "truth.json", tmp_path / "known_answer.json"

        def table_of(*words: str) -> str:
            command = ["known_answer.py", "--truth", str(truth_file), "--json", str(file), *words]
            monkeypatch.setattr(sys, "argv", command)
            answer.main()
            return capsys.readouterr().out

        with pytest.raises(InputError, match="found 0; run python benchmarks/truth_table.py first"):
            table_of()
        truth_file.write_text(json.dumps({"losses": losses}))
        with pytest.raises(InputError, match="with 4 trainings each, found 0; run"):
            table_of("--trainings", "4")
        with pytest.raises(InputError, match="--seeds: expected at least 2.*found 1"):
            table_of("--seeds", "1")
        table_of("--strategies", "darts", "--seeds", "2")
        two = json.loads(file.read_text())["searches"]
        for genotype in (search["genotype"] for search in two["darts"].values()):
            assert genotype in losses
        real, made = answer.search, []

        def noted(strategy: str, seed: int) -> Any:
            made.append((strategy, seed))
            return real(strategy, seed)

        monkeypatch.setattr(answer, "search", noted)
        more = ("--strategies", "darts", "gdas", "--seeds", "3")
        printed = table_of(*more)
        assert made == [("gdas", 0), ("gdas", 1), ("darts", 2), ("gdas", 2)]
        made.clear()
        assert table_of(*more) == printed
        assert table_of("--strategies", "gdas", "--seeds", "3") == printed  # darts is kept
        assert made == []
        result = json.loads(file.read_text())
        assert {seed: result["searches"]["darts"][seed] for seed in "01"} == two["darts"]
        # Losses ascend with the number of the choice, so that this is the rank.
        names = list(losses)
        for strategy, row in result["table"].items():
            of_seeds = result["searches"][strategy]
            expected = [names.index(of_seeds[str(seed)]["genotype"]) + 1 for seed in range(3)]
            assert row["ranks"] == expected
            assert f"| `{strategy}` | {statistics.mean(expected):.0f} +- " in printed

    def test_a_search_is_the_same_as_that_of_the_command(self, truth: Any, tmp_path: Path) -> None:
        space = truth.SmallSpace("darts(nodes=1, operations=(nor_conv_1x1,))", ("fa", "usf"))
        task = truth.searched(space, "darts", 3)
        result = darts_bio.search(
            load_data("digits", train_images=truth.IMAGES),
            strategy="darts",
            seed=3,
            space=space.spec,
            rules=space.rules,
            out=tmp_path,
            device="cpu",
            progress=False,
            tensorboard=False,
            **truth.SEARCHING,
        )
        assert result.genotype.cells == task.genotype().cells
