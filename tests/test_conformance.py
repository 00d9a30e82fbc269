"""Whatever is registered works everywhere: rules, operations, spaces and strategies, our own and
anybody's.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import pkgutil
import re
import textwrap
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import context
from torch import Tensor, nn

import darts_bio
from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.config.protocols import values_of
from darts_bio.data.batches import Split
from darts_bio.data.datasets import DATASETS, ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.figures.cells import draw_genotype
from darts_bio.networks import build_network
from darts_bio.plugins import import_plugins
from darts_bio.rules import (
    RULES,
    InitialLaw,
    LearningRule,
    RuleConv2d,
    RuleLinear,
    connect_output,
    rule_layers,
    true_gradients,
)
from darts_bio.runtime import generator
from darts_bio.spaces import OPERATIONS, SPACES, Genotype, from_json, load_genotype, shipped_names
from darts_bio.spaces.darts import DartsSpace
from darts_bio.spaces.operations import operation
from darts_bio.strategies import BLACK_BOX_STRATEGIES, REGULARIZERS, STRATEGIES
from darts_bio.strategies.darts import Darts
from darts_bio.training.engine import run_epoch
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "crop_padding": 1,
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "epochs": 1,
    "lr": 0.05,
}
PAIR = "darts(nodes=1, operations=(skip_connect, sep_conv_3x3))"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=32)


@pytest.fixture
def half_rule() -> Iterator[str]:
    """A rule of a user's own, in one class: half of W."""

    @RULES.register("half")
    @dataclass(frozen=True)
    class Half(LearningRule):
        """K = share W + a trace of a fixed random kernel."""

        share: float = 0.5
        carries = "values"

        def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
            return {"noise": law.sample(generator)}

        def kernel(self, weight: Tensor, state: Any) -> Tensor:
            return self.share * weight + 1e-3 * state["noise"]

    yield "half"
    RULES.unregister("half")


def train_a_little(genotype: Genotype, data: ImageData) -> Retraining:
    config = RetrainConfig(genotype="x", cutout=0, auxiliary=0.0, drop_path=0.0, **SMALL)
    task = Retraining.of_genotype(config, genotype, data, CPU)
    # Where a rule sends nothing down, norms and biases below it stay as they are.
    cut_off = any(layer.rule.local for _, layer in rule_layers(task.network))
    learning = (
        [layer.weight for _, layer in rule_layers(task.network)]
        if cut_off
        else task.network.parameters()
    )
    before = {p: p.detach().clone() for p in learning}
    task.begin_epoch(0)
    for t in range(2):
        task.step(t)
    assert all(not torch.equal(p, old) for p, old in before.items())
    return task


class TestANewRule:
    def test_is_searchable_derivable_importable_and_trainable(
        self, half_rule: str, data: ImageData
    ) -> None:
        config = SearchConfig(
            space=PAIR, rules=("half(share=0.25)", "usf"), strategy="darts(init=0.0)", **SMALL
        )
        search = Search(config, data, CPU)
        search.begin_epoch(0)
        search.step(0)
        with torch.no_grad():
            for cell_type, rows in search.supernet.table.rows.items():
                for e, row in enumerate(rows):
                    for c, candidate in enumerate(row):
                        if candidate is not None and candidate.rule == "half(share=0.25)":
                            search.strategy_state.alpha[cell_type][e, c] += 5.0
        genotype = search.genotype()
        assert {e.candidate.rule for c in genotype.cells.values() for e in c.edges} == {
            "half(share=0.25)"
        }
        read = from_json(genotype.to_json(), "mine.json")
        assert read == genotype
        network = train_a_little(read, data).network
        shares = {
            m.rule.share
            for m in network.modules()
            if isinstance(m, RuleConv2d) and hasattr(m.rule, "share")
        }
        assert shares == {0.25}
        assert "half(share=0.25)" in draw_genotype(read).svg()

    def test_is_unknown_without_its_module(self, half_rule: str) -> None:
        text = load_genotype("darts_v2").to_json().replace('"rule": "bp"', '"rule": "half"')
        RULES.unregister("half")
        with pytest.raises(InputError, match=r"edges\[0\].rule: unknown learning rule 'half'"):
            from_json(text, "mine.json")

    def test_from_a_users_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_rules_for_test.py").write_text(
            textwrap.dedent(
                """
                from dataclasses import dataclass
                from darts_bio.rules import RULES, LearningRule

                @RULES.register("mine")
                @dataclass(frozen=True)
                class Mine(LearningRule):
                    def kernel(self, weight, state):
                        return 2 * weight
                """
            )
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
        import_plugins(("my_rules_for_test",))
        try:
            assert RULES.build("mine").kernel(torch.ones(2), {}).tolist() == [2, 2]
        finally:
            RULES.unregister("mine")
        with pytest.raises(InputError, match="--plugin nowhere: cannot be imported"):
            import_plugins(("nowhere",))
        (tmp_path / "bad_rules_for_test.py").write_text(
            "x = 1\nraise ValueError('learning rule is registered')\n"
        )
        failed = (
            r"its import failed with ValueError \(learning rule is registered\), "
            r"raised at .*bad_rules_for_test.py:2"
        )
        with pytest.raises(InputError, match=failed):
            import_plugins(("bad_rules_for_test",))
        # The user's line is named, not the one of this package that refused.
        (tmp_path / "taken_for_test.py").write_text(
            "from darts_bio.rules import RULES\n\nRULES.register('bp')(int)\n"
        )
        with pytest.raises(
            InputError, match=r"'bp' is registered already.*raised at .*taken_for_test.py:3"
        ):
            import_plugins(("taken_for_test",))
        (tmp_path / "typo_for_test.py").write_text("x = 1\ny = = 2\n")
        with pytest.raises(InputError, match=r"SyntaxError.*raised at .*typo_for_test.py:2"):
            import_plugins(("typo_for_test",))


class TestEveryRule:
    @pytest.mark.parametrize("rule", RULES)
    def test_convolution_and_linear_are_ordinary_forward_and_exact_when_asked(
        self, rule: str
    ) -> None:
        for layer, x in (
            (
                RuleConv2d(4, 6, 3, stride=2, padding=1, groups=2, rule=RULES.build(rule)),
                torch.randn(2, 4, 5, 5),
            ),
            (RuleLinear(4, 3, rule=RULES.build(rule)), torch.randn(2, 5, 4)),
        ):
            parent = nn.Conv2d.forward if isinstance(layer, RuleConv2d) else nn.Linear.forward
            connect_output(layer, 3)
            x.requires_grad_()
            expected = parent(layer, x)  # type: ignore[arg-type]
            assert torch.equal(layer(x), expected)
            gradient = torch.autograd.grad(expected.square().sum(), x)[0]
            with true_gradients(layer):
                assert torch.equal(torch.autograd.grad(layer(x).square().sum(), x)[0], gradient)

    @pytest.mark.parametrize("rule", RULES)
    def test_feedback_is_a_function_of_its_generator(self, rule: str) -> None:
        law = RuleLinear(5, 4, rule=RULES.build("bp")).initial_law
        one, same, other = (RULES.build(rule).state(law, generator("cpu", s)) for s in (0, 0, 1))
        assert all(torch.equal(one[k], same[k]) for k in one)
        assert all(v.numel() == 1 or not torch.equal(v, other[k]) for k, v in one.items())

    @pytest.mark.parametrize("rule", RULES)
    def test_as_the_only_rule_of_a_network(self, rule: str, data: ImageData) -> None:
        genotype = load_genotype("darts_v1").with_rule(rule)
        edges = [edge for cell in genotype.cells.values() for edge in cell.edges]
        assert {edge.candidate.rule for edge in edges} == {rule, None}
        assert genotype.backbone_rule == rule
        train_a_little(genotype, data)

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("strategy", ["darts", "darts(order=2)"])
    def test_as_the_rule_of_a_searchs_backbone(
        self, strategy: str, rule: str, data: ImageData
    ) -> None:
        """While alpha is moved the stem's weights are frozen, and so is feedback that is
        learned.
        """
        config = SearchConfig(
            space=PAIR, rules=("fa",), backbone_rule=rule, strategy=strategy, **SMALL
        )
        search = Search(config, data, CPU)
        stem = next(layer for _, layer in rule_layers(search.supernet))
        assert stem.rule == RULES.build(rule)
        before = [p.detach().clone() for p in stem.parameters()]
        search.begin_epoch(0)
        search.step(0)
        assert all(
            not torch.equal(p, old) for p, old in zip(stem.parameters(), before, strict=True)
        )

    @pytest.mark.parametrize("memory", ["normal", "low"])
    def test_together_in_a_search_that_goes_on_from_its_state(
        self, memory: str, data: ImageData
    ) -> None:
        options = SMALL | {"epochs": 2}
        config = SearchConfig(
            space=PAIR, rules=tuple(RULES), strategy="darts(order=2)", memory=memory, **options
        )
        search, other = Search(config, data, CPU), Search(config, data, CPU)
        search.begin_epoch(0)
        search.step(0)
        file = io.BytesIO()
        torch.save(search.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        for task in (search, other):
            task.begin_epoch(0)
            task.step(1)
        for name, value in search.supernet.state_dict().items():
            assert value.isfinite().all()
            assert torch.equal(value, other.supernet.state_dict()[name])


class TestEveryOptimizer:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "lion", "batch_manhattan"])
    def test_goes_with_every_rule_and_on_from_its_state(
        self, optimizer: str, rule: str, data: ImageData
    ) -> None:
        options = {**SMALL, "lr": 1e-3, "epochs": 3}
        config = RetrainConfig(
            genotype="x", cutout=0, auxiliary=0.0, drop_path=0.0, optimizer=optimizer, **options
        )
        genotype = load_genotype("darts_v1").with_rule(rule)
        task, other = (Retraining.of_genotype(config, genotype, data, CPU) for _ in range(2))
        task.begin_epoch(0)
        task.step(0)
        file = io.BytesIO()
        torch.save(task.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        for one in (task, other):
            one.begin_epoch(1)
            one.step(1)
        assert all(
            map(
                torch.equal, task.network.state_dict().values(), other.network.state_dict().values()
            )
        )

    def test_that_is_unknown(self, data: ImageData) -> None:
        config = RetrainConfig(genotype="x", cutout=0, auxiliary=0.0, optimizer="adamm", **SMALL)
        with pytest.raises(InputError, match=r"unknown optimizer 'adamm': did you mean 'adam"):
            Retraining.of_genotype(config, load_genotype("darts_v1"), data, CPU)


class TestEveryOperation:
    @pytest.mark.parametrize("op", OPERATIONS)
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("supernet", [False, True])
    def test_keeps_the_contract_of_shapes_and_rules(
        self, op: str, stride: int, supernet: bool
    ) -> None:
        member = OPERATIONS.get(op)
        module = member.build(4, stride, RULES.build("fa"), supernet)
        for side in (7, 8):
            out = module(torch.randn(2, 4, side, side))
            assert out.shape == (2, 4, -(-side // stride), -(-side // stride))
        carriers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert all(
            isinstance(m, (RuleConv2d, RuleLinear)) and m.rule == RULES.build("fa")
            for m in carriers
        )
        assert bool(carriers) == member.carries_rule(stride)

    def test_a_new_one_is_searchable(self, data: ImageData) -> None:
        @operation("double", weighted=())
        def double(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
            """Twice average pooling."""
            return nn.Sequential(nn.AvgPool2d(3, stride, padding=1), nn.AvgPool2d(3, 1, padding=1))

        try:
            config = SearchConfig(
                space="darts(nodes=1, operations=(none, double))", rules=("usf",), **SMALL
            )
            search = Search(config, data, CPU)
            search.step(0)
            assert {e.candidate.op for c in search.genotype().cells.values() for e in c.edges} == {
                "double"
            }
            task = Retraining.of_genotype(
                RetrainConfig(genotype="x", cutout=0, auxiliary=0.0, **SMALL),
                search.genotype(),
                data,
                CPU,
            )
            task.step(0)
        finally:
            OPERATIONS.unregister("double")

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (
                lambda x: x[:, : x.shape[1] if x.shape[2] > 8 else 1],
                r"\(Odd\): expected an output .* at stride 1 from an input",
            ),
            (lambda x: x if x.shape[2] > 8 else x.mean((2, 3), keepdim=True), "expected an output"),
            (lambda x: x if x.shape[2] > 8 else None, "found NoneType; mend the operation"),
            (lambda x: x.mul_(1.5), "found it changed in place"),
        ],
    )
    @pytest.mark.parametrize("strategy", ["darts", "gdas"])
    def test_a_new_one_that_is_none(
        self, strategy: str, function: Any, message: str, data: ImageData
    ) -> None:
        """Smaller maps would be broadcast, and what changes its input changes that of others.

        At the size of a trial, 16, all is well.
        """

        class Odd(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return function(x)

        @operation("odd", weighted=())
        def odd(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
            """None, where it does not halve."""
            return Odd() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)

        try:
            config = SearchConfig(
                space="darts(nodes=1, operations=(odd, skip_connect))",
                rules=("usf",),
                strategy=strategy,
                **SMALL,
            )
            search = Search(config, data, CPU)
            with pytest.raises(InputError, match=message):
                deque(map(search.step, range(3)), maxlen=0)  # of which gdas draws it in one
        finally:
            OPERATIONS.unregister("odd")


# Where the default is sized for real data.
QUICK = {
    "eg": "eg(population=4, samples=2, batches=1)",
    "darts_pt": "darts_pt(batches=1)",
    "darts": "darts(order=2)",
    "random_paths": "random_paths(samples=4, best=2)",
}

FEW = "(none, skip_connect, max_pool_3x3, sep_conv_3x3)"
SMALL_SPACES = {
    "darts": f"darts(nodes=2, operations={FEW})",
    "by_depth": f"by_depth(space=darts(nodes=1, operations={FEW}), cells=3)",
}


# A generator, which drnas draws from, is of a device that computes.
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "drnas"])
def test_edge_weights_are_made_on_the_device_of_the_search(strategy: str) -> None:
    """The meta device refuses what another device takes part in, as a GPU does."""
    on_meta = replace(context(PAIR), device=torch.device("meta"))
    built = STRATEGIES.build(strategy)
    state = built.begin(on_meta)
    built.begin_epoch(state, 0)
    weights = built.edge_weights(state)
    for cell_type, of_type in weights.items():
        assert of_type.shape == on_meta.table.shape(cell_type)
        assert of_type.device.type == "meta"


class TestEveryPair:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("space", SPACES)
    def test_searches_two_epochs_goes_on_from_its_state_and_gives_a_genotype_that_trains(
        self, space: str, strategy: str, data: ImageData
    ) -> None:
        options = SMALL | {"epochs": 2, "channels": 8}  # pc_darts takes a quarter of them
        config = SearchConfig(
            space=SMALL_SPACES.get(space, space),
            strategy=QUICK.get(strategy, strategy),
            rules=("fa", "brsf"),
            **options,
        )
        search, other = Search(config, data, CPU), Search(config, data, CPU)
        table, last = search.table, 2 * search.steps_per_epoch
        moved = [search.strategy.final_weights(search.strategy_state)]

        def run(task: Search, steps: range) -> None:
            for t in steps:
                epoch, position = divmod(t, task.steps_per_epoch)
                if position == 0 or t == steps[0]:
                    task.begin_epoch(epoch)
                task.step(t)
                if (t + 1) % task.steps_per_epoch == 0:
                    task.end_epoch(epoch)

        for stop in (1, last - 1):  # within the first epoch, within the second
            run(search, range(stop) if stop == 1 else range(1, stop))
            file = io.BytesIO()
            torch.save(search.state_dict(), file)
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=True))
        for task in (search, other):
            run(task, range(last - 1, last))
        moved.append(search.strategy.final_weights(search.strategy_state))
        for cell_type, weights in search.strategy.final_weights(search.strategy_state).items():
            assert weights.shape == table.shape(cell_type)
            assert not weights.requires_grad
            assert torch.equal(
                weights, other.strategy.final_weights(other.strategy_state)[cell_type]
            )
            assert weights[~table.mask(cell_type)].eq(0).all()
            assert strategy == "random" or not torch.equal(moved[0][cell_type], moved[1][cell_type])
        for name, value in search.supernet.state_dict().items():
            assert torch.equal(value, other.supernet.state_dict()[name])
        genotype = search.genotype()
        assert genotype == other.genotype()
        SPACES.build(genotype.space).validate(genotype, "found")
        train_a_little(genotype, data)


class TestANewSpaceAndStrategy:
    def test_in_one_class_each(self, data: ImageData) -> None:
        @SPACES.register("chain")
        @dataclass(frozen=True)
        class Chain(DartsSpace):
            """One node."""

            nodes: int = 1

        @STRATEGIES.register("still")
        @dataclass(frozen=True)
        class Still(Darts):
            """Alpha stays where it is, and no validation batch is looked at."""

            def begin_epoch(self, state: Any, epoch: int) -> None:
                begun.append(epoch)

            def descends(self, state: Any) -> bool:
                return False

        begun: list[int] = []
        try:
            search = Search(
                SearchConfig(space="chain", strategy="still(init=0.1)", rules=("fa",), **SMALL),
                data,
                CPU,
            )
            before = {t: a.detach().clone() for t, a in search.strategy_state.alpha.items()}
            search.begin_epoch(0)
            assert set(search.step(0)) == {"train"}
            assert begun == [0]
            assert all(torch.equal(before[t], a) for t, a in search.strategy_state.alpha.items())
            genotype = search.genotype()
            assert genotype.space == "chain"
            assert len(genotype.cells["normal"].edges) == 2
            train_a_little(from_json(genotype.to_json(), "x"), data)
        finally:
            SPACES.unregister("chain")
            STRATEGIES.unregister("still")

    def test_as_the_contributing_page_writes_them(
        self, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its examples of a space, strategies and a regularizer, in a user's module, together in
        one search.
        """
        page = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
        examples = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        assert len(examples) == 5
        (tmp_path / "my_members_for_test.py").write_text("\n\n".join(examples), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        import_plugins(("my_members_for_test",))
        try:
            options = SMALL | {"regularizers": ("even(weight=2.0)",), "rules": ("fa", "usf")}
            search = Search(
                SearchConfig(space="tiny", strategy="sharp(lr=0.1)", **options), data, CPU
            )
            before = {
                t: w.clone()
                for t, w in search.strategy.final_weights(search.strategy_state).items()
            }
            run_epoch(search, 0)
            after = search.strategy.final_weights(search.strategy_state)
            assert all(not torch.equal(weights, before[t]) for t, weights in after.items())
            assert len(search.genotype().cells["normal"].edges) == 2
            train_a_little(search.genotype(), data)
            with pytest.raises(
                InputError, match="strategy sharp: temperature: expected a number above 0, found 0"
            ):
                STRATEGIES.build("sharp(temperature=0)")
            search = Search(SearchConfig(strategy="sign_darts(lr=0.125)", **SMALL), data, CPU)
            alpha = {t: a.detach().clone() for t, a in search.strategy_state.alpha.items()}
            search.begin_epoch(0)
            search.step(0)
            for t, a in search.strategy_state.alpha.items():
                steps = (a - alpha[t]).abs()
                # A candidate that is not there has no gradient; float32 rounds a sum of about 0.125.
                assert torch.allclose(steps, 0.125 * steps.ne(0), rtol=0, atol=1e-7)
                assert steps.ne(0).any()
            assert search.strategy_state.learning_rates() == {"alpha": 0.125}
            cooling = SearchConfig(strategy="cooling(first=8, last=2)", **SMALL | {"epochs": 3})
            search, temperatures = Search(cooling, data, CPU), []
            for epoch in range(3):
                search.begin_epoch(epoch)
                temperatures.append(search.strategy_state.temperature.item())
            assert temperatures == pytest.approx([8.0, 4.0, 2.0])
            read_again = Search(cooling, data, CPU)
            read_again.load_state_dict(search.state_dict())
            assert read_again.strategy_state.temperature.item() == pytest.approx(2.0)
            for space, name in product(("darts", "nb201"), ("sign_darts", "cooling")):
                TestEveryPair().test_searches_two_epochs_goes_on_from_its_state_and_gives_a_genotype_that_trains(
                    space, name, data
                )
        finally:
            SPACES.unregister("tiny")
            STRATEGIES.unregister("sharp")
            STRATEGIES.unregister("sign_darts")
            STRATEGIES.unregister("cooling")
            REGULARIZERS.unregister("even")


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_genotype_builds_trains_and_names_its_source(
    name: str, data: ImageData
) -> None:
    genotype = load_genotype(name)
    assert genotype.provenance.get("source") or genotype.provenance["command"]
    train_a_little(genotype, data)
    assert json.loads(genotype.to_json())["format"] == 1


@pytest.mark.parametrize("name", DATASETS.summaries())
def test_every_data_set_says_what_it_is(name: str) -> None:
    assert len(DATASETS.summaries()[name]) > 20


@pytest.mark.parametrize(
    "config", [replace(SearchConfig(), **p) for p in values_of("search").values()]
)
def test_presets_of_the_search_build(config: SearchConfig) -> None:
    Search(config, load_data("digits"), CPU)


@pytest.mark.parametrize("preset", values_of("train").values())
def test_presets_of_retraining_build(preset: dict[str, Any]) -> None:
    split = Split(torch.zeros(256, 3, 32, 32, dtype=torch.uint8), torch.arange(256) % 10)
    data = ImageData(split, split, tuple("0123456789"))
    Retraining.of_genotype(
        RetrainConfig(genotype="darts_v2", **preset), load_genotype("darts_v2"), data, CPU
    )


def test_the_public_face() -> None:
    import darts_bio

    assert darts_bio.build_network is build_network
    runs = {
        "search",
        "search_and_train",
        "train",
        "attack",
        "align",
        "load_run",
        "Listener",
        "InputError",
    }
    models = {
        "list_runs",
        "load_genotype",
        "load_trained",
        "build_network",
        "convert",
        "BatchManhattan",
        "attach",
        "audit",
        "draw_feedback",
        "hebbian_block",
        "hebbian_pretraining",
        "learner",
        "revert",
        "true_gradients",
    }
    assert set(darts_bio.__all__) == {"__version__"} | runs | models
    assert all(hasattr(darts_bio, name) for name in darts_bio.__all__)
    assert dir(darts_bio) == sorted(darts_bio.__all__)  # what a prompt completes
    with pytest.raises(AttributeError, match="no attribute 'convrt'"):
        darts_bio.convrt  # noqa: B018


def test_the_tables_of_shipped_genotypes_are_true() -> None:
    """`python -m darts_bio genotype` makes them anew. What they count is checked against published
    values elsewhere.
    """
    from darts_bio.reports.genotype_table import genotype_tables

    tables = genotype_tables()
    assert all(tables.count(f"| `{name}` |") == 2 for name in shipped_names())
    assert tables in (Path(__file__).parent.parent / "genotypes" / "README.md").read_text(
        encoding="utf-8"
    )


def test_the_pages_of_the_rules_and_their_table_are_those_of_the_registry() -> None:
    """`python -m darts_bio rules NAME > docs/rules/NAME.md` makes them anew."""
    from darts_bio.reports.rule_pages import rule_page, rule_table

    root = Path(__file__).parent.parent
    pages = {
        path.stem: path.read_text(encoding="utf-8")
        for path in (root / "docs" / "rules").glob("*.md")
    }
    assert pages == {name: rule_page(name) for name in RULES}
    table = rule_table().replace("](docs/", "](")
    assert table in (root / "docs" / "rules.md").read_text(encoding="utf-8")
    for page in pages.values():
        assert all(f"**{section}.**" in page for section in ("State", "Cost", "When"))


def test_the_pages_show_the_defaults_of_regularizers_and_of_searches_by_queries() -> None:
    """In its tables each stands as `name(option=default, ...)`."""
    folder = Path(__file__).parent.parent / "docs" / "search"
    pages = [(folder / page).read_text("utf-8") for page in ("strategies.md", "queries.md")]
    rows = re.findall(r"^\| `((\w+)(?:\(.*?\))?)` \|", "\n".join(pages), re.MULTILINE)
    for registry in (REGULARIZERS, BLACK_BOX_STRATEGIES):
        shown = {name: spec for spec, name in rows if name in registry}
        assert shown.keys() == set(registry)
        for name, spec in shown.items():
            assert registry.build(spec) == registry.build(name)


def examples() -> str:
    """The lines of all examples in docstrings of the package."""
    folder = Path(darts_bio.__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]
    lines = [line.strip() for source in sources for line in source.splitlines()]
    return "\n".join(line for line in lines if line.startswith((">>> ", "... ")))


def test_what_is_exported_stands_in_an_example_that_runs() -> None:
    """Examples run as doctests; constants need none."""
    shown = set(re.findall(r"\w+", examples()))
    packages = [module.name for module in pkgutil.iter_modules(darts_bio.__path__) if module.ispkg]
    for name in ("darts_bio", *(f"darts_bio.{package}" for package in packages)):
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", ()):
            value = getattr(module, exported)
            if inspect.isroutine(value) or inspect.isclass(value):
                assert exported in shown or ">>>" in (value.__doc__ or ""), f"{name}.{exported}"
