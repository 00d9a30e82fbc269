"""One module outside the repository adds a member of every kind, and the commands use them all.

No file of the package is touched: the module is named by --plugin, or is an entry point of an
installed package.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import forked, refused
from torch import Tensor, nn

import darts_bio
from darts_bio.cli import main
from darts_bio.errors import InputError
from darts_bio.networks import Network, SuperNet
from darts_bio.plugins import import_plugins
from darts_bio.rules import RULES, LearningRule, RuleConv2d, RuleLinear
from darts_bio.rules.probe import mistake_in
from darts_bio.spaces import OPERATIONS, SPACES, Candidate, Cell, Edge, Genotype
from darts_bio.spaces.operations import operation

MEMBERS = '''
from dataclasses import dataclass

import torch
from torch import nn

from darts_bio.config import PROTOCOLS, Protocol
from darts_bio.data.datasets import DATASETS, load_data
from darts_bio.evaluation.attacks import ATTACKS, Attack
from darts_bio.evaluation.corruptions import CORRUPTIONS
from darts_bio.learners import LEARNERS, Evaluation, LearningMethod
from darts_bio.networks import STEMS
from darts_bio.networks.stems import CifarStem
from darts_bio.rules import RULES, LearningRule, RuleConv2d
from darts_bio.spaces import SPACES, TEXT_FORMS, TextForm, load_genotype
from darts_bio.spaces.darts import DartsSpace
from darts_bio.spaces.operations import operation
from darts_bio.strategies import COSTS, REGULARIZERS, STRATEGIES, Regularizer
from darts_bio.strategies.darts import Darts
from darts_bio.training.adversarial import ADVERSARIES, PGD
from darts_bio.training.schedules import SCHEDULES


@RULES.register("my_rule")
@dataclass(frozen=True)
class Half(LearningRule):
    """Half of the weight."""

    carries = "values"
    elementwise = True

    def kernel(self, weight, state):
        return 0.5 * weight


@LEARNERS.register("my_learner")
@dataclass(frozen=True)
class LastBlock(LearningMethod):
    """Only the last block learns."""

    def backward(self, chain, state, x, loss):
        inputs, outputs = Evaluation(chain).forward(x)
        value = loss(outputs[-1])
        value.backward(inputs=chain.parameters)
        return value, outputs[-1]


@operation("my_operation")
def my_operation(channels, stride, rule, supernet):
    """A 3x3 convolution."""
    return nn.Sequential(RuleConv2d(channels, channels, 3, stride, 1, bias=False, rule=rule),
                         nn.BatchNorm2d(channels, affine=not supernet))


@SPACES.register("my_space")
@dataclass(frozen=True)
class Tiny(DartsSpace):
    """One node a cell."""

    nodes: int = 1
    operations: tuple = ("none", "skip_connect", "my_operation")


@STRATEGIES.register("my_strategy")
@dataclass(frozen=True)
class Quick(Darts):
    """First-order DARTS at another rate."""

    lr: float = 0.1


@REGULARIZERS.register("my_regularizer")
@dataclass(frozen=True)
class Even(Regularizer):
    """Adds the sum of squared shares."""

    def penalty(self, state, shares):
        return 0.1 * sum(share.square().sum((-2, -1)) for share in shares.values())


@COSTS.register("my_cost")
def my_cost(place):
    """One a weighted candidate."""
    return float(place.candidate.rule is not None)


@DATASETS.register("my_data")
def my_data(data_dir, image_size):
    """Fewer digits."""
    return load_data("digits", train_images=48)


@ATTACKS.register("my_attack")
@dataclass(frozen=True)
class Brighter(Attack):
    """Adds eps."""

    white_box = False

    def build(self, library, model, eps, classes, seed):
        return lambda pixels, labels: (pixels + eps).clamp(0, 1)


@ADVERSARIES.register("my_adversary")
@dataclass(frozen=True)
class OneStep(PGD):
    """PGD of one step."""

    eps: float = 8.0
    step: float = 8.0
    steps: int = 1


@CORRUPTIONS.register("my_corruption")
def my_corruption(pixels, severity, sources):
    """Darker."""
    return pixels * (1 - severity / 10)


@SCHEDULES.register("my_schedule")
def my_schedule(peak, last, epoch, config):
    """Half of the rate in the second half."""
    return peak if epoch < config.epochs / 2 else peak / 2


PROTOCOLS.register("my_protocol")(Protocol("quick", {"train": {"epochs": 2, "batch_size": 8, "auxiliary": 0.0,
    "cutout": 0, "drop_path": 0.0, "crop_padding": 1, "schedule": "my_schedule", "adversarial": "my_adversary",
    "stem": "my_stem", "log_every": 1, "channels": 2, "layers": 3, "lr": 0.05}}))
PROTOCOLS.register("my_data")(Protocol("its search", {"search": {"epochs": 1, "batch_size": 8, "channels": 2,
    "layers": 3, "crop_padding": 1, "space": "my_space", "strategy": "my_strategy", "rules": ("my_rule", "fa")}}))


@STEMS.register("my_stem")
class Stem(CifarStem):
    """CIFAR's, by another name."""


TEXT_FORMS.register("my_text")(TextForm("my:NAME", "darts", lambda text: text.startswith("my:"),
                                        lambda text: load_genotype(text.removeprefix("my:"))))
'''
KINDS = tuple(
    f"my_{kind}"
    for kind in (
        *("rule", "learner", "operation", "space", "strategy", "regularizer", "cost", "data"),
        *("attack", "adversary", "corruption", "schedule", "protocol", "stem", "text"),
    )
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "members.py").write_text(MEMBERS)
    return folder


def test_every_kind_of_member_from_one_module(place: Path) -> None:
    """In one process a command, as its user calls them."""
    listed = forked("-m", "darts_bio", "list", "--plugin", "members", cwd=place)
    assert all(f"  {name}" in listed.stdout for name in KINDS), listed.stderr
    searching = (
        "search --plugin members --dataset my_data "
        "--regularizers my_regularizer --objective my_cost(weight=0.1)"
    )
    done = forked("-m", "darts_bio", *searching.split(), "--out", "found", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "--plugin members" in done.stdout  # in the printed next command
    cells = json.loads((place / "found" / "genotype.json").read_text())["cells"]
    assert {edge["op"] for cell in cells.values() for edge in cell["edges"]} <= {
        "skip_connect",
        "my_operation",
    }
    training = "train --plugin members --genotype found --dataset my_data --protocol my_protocol --out trained"
    done = forked("-m", "darts_bio", *training.split(), cwd=place)
    assert done.returncode == 0, done.stderr
    records = [
        json.loads(line) for line in (place / "trained" / "metrics.jsonl").read_text().splitlines()
    ]
    rates = [record["lr/weights"] for record in records if record["event"] == "record"]
    assert sorted(set(rates)) == [0.025, 0.05]
    attacking = (
        "robustness --plugin members --checkpoint trained "
        "--attacks my_attack --eps 8 --corruptions my_corruption"
    )
    done = forked(
        "-m", "darts_bio", *attacking.split(), "--images", "300", "--out", "attacked", cwd=place
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((place / "attacked" / "results.json").read_text())["networks"][0]
    assert {attack["attack"] for attack in numbers["attacks"]} >= {"my_attack"}
    assert {row["corruption"] for row in numbers["corruptions"]} == {"my_corruption"}
    shown = forked("-m", "darts_bio", "genotype", "my:darts_v2", "--plugin", "members", cwd=place)
    assert "sep_conv_3x3:bp" in shown.stdout
    # A run folder names its plug-ins, and never brings them.
    for words in ("export trained --hub h", "robustness --checkpoint trained", "alignment --checkpoint trained",
                  "search --out found --resume", "train --out trained --resume"):  # fmt: skip
        said = refused(forked("-m", "darts_bio", *words.split(), cwd=place))
        assert "was made with the plug-in members, code that no run folder can bring" in said
        assert "add --plugin members" in said
    done = forked(
        "-m", "darts_bio", "alignment", "--checkpoint", "trained", "--plugin", "members", cwd=place
    )
    assert done.returncode == 0, done.stderr


def test_an_installed_package_brings_its_members(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = place / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[darts_bio]\nextra = extra_members\n")
    (place / "extra_members.py").write_text(
        "from darts_bio.config import PROTOCOLS, "
        "Protocol\nPROTOCOLS.register('of_a_package')(Protocol('x', {}))\n"
    )
    monkeypatch.syspath_prepend(str(place))
    assert main(["list"]) == 0
    assert "of_a_package" in capsys.readouterr().out
    (place / "extra_members.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.delitem(__import__("sys").modules, "extra_members")
    assert main(["list"]) == 2
    assert (
        "the plug-in extra of an installed package: its import failed with RuntimeError (broken)"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    "given", ["first_member, second_member", ("first_member", "second_member")]
)
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (darts_bio.search, {"dataset": "nowhere"}),
        (darts_bio.search_and_train, {"dataset": "nowhere", "seeds": 2}),
        (darts_bio.train, {"genotype": "darts_v2", "dataset": "nowhere"}),
        (darts_bio.attack, {"runs": "nowhere"}),
        (darts_bio.align, {"runs": "nowhere"}),
    ],
)
def test_python_takes_plugins_as_the_command_line_does(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    given: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Modules are imported before the other arguments are looked at, which are refused here."""
    names = ("first_member", "second_member")
    for name in names:
        (tmp_path / f"{name}.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(darts_bio.InputError, match="nowhere"):
        function(**arguments, plugin=given)
    assert all(sys.modules.pop(name, None) for name in names)
    with pytest.raises(darts_bio.InputError, match="--plugin: expected names separated by commas"):
        function(**arguments, plugin=3)


def test_a_run_from_python_names_its_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty_member.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = {"train_images": 64, "channels": 2, "layers": 3, "epochs": 1, "batch_size": 16}
    darts_bio.search(
        "digits", out="found", plugin="empty_member", progress=False, tensorboard=False, **small
    )
    assert darts_bio.load_run("found").options["plugin"] == ("empty_member",)
    del sys.modules["empty_member"]
    with pytest.raises(darts_bio.InputError, match="add --plugin empty_member"):
        darts_bio.load_run("found")


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("./mine.py", "--plugin ./mine.py: expected a module's name, not a file's; write mine"),
        (".mine", "--plugin .mine: expected a module's name, not a file's; write mine"),
        (
            "sub/mine.py",
            "--plugin sub/mine.py: expected a module's name, not a file's; write sub.mine",
        ),
        ("mine.py", "--plugin mine.py: expected a module's name, not a file's; write mine"),
        (
            "needy",
            "--plugin needy: it imports the module nowhere_to_be_found, which is missing, at "
            "{folder}/needy.py:2; install that, or put its folder into PYTHONPATH",
        ),
        (
            "wanting",
            "--plugin wanting: its import failed with ImportError (too old), raised at "
            "{folder}/wanting.py:1",
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported(
    plugin: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "needy.py").write_text("x = 1\nimport nowhere_to_be_found\n")
    (tmp_path / "wanting.py").write_text("raise ImportError('too old')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(darts_bio.InputError) as caught:
        import_plugins([plugin])
    sys.modules.pop("mine", None)
    assert str(caught.value) == message.format(folder=tmp_path)


def _convolved(channels: int, out: int, stride: int, rule: Any) -> nn.Module:
    """Known layers in a row, which a supernet stacks."""
    return nn.Sequential(
        nn.ReLU(),
        RuleConv2d(channels, out, 3, stride, padding=1, bias=False, rule=rule),
        nn.BatchNorm2d(out, affine=False),
    )


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such luck")


FAULTS: dict[str, tuple[Any, str]] = {
    "its stride": (
        lambda channels, stride, rule, supernet: _convolved(channels, channels, 1, rule),
        r"expected an output \(2, 8, 8, 8\) at stride 2 from an input \(2, 8, 16, 16\), found "
        r"\(2, 8, 16, 16\); mend the operation",
    ),
    "its channels": (
        lambda channels, stride, rule, supernet: _convolved(channels, 2 * channels, stride, rule),
        r"expected an output \(2, 4, \d+, \d+\) at stride . from an input .*, found \(2, 8, ",
    ),
    "no module": (
        lambda channels, stride, rule, supernet: None,
        "expected a torch.nn.Module at stride ., found NoneType; return one",
    ),
    "no tensor": (
        lambda channels, stride, rule, supernet: nn.MaxPool2d(1, stride, return_indices=True),
        "expected an output .* at stride . from an input .*, found tuple; mend the operation",
    ),
    "three arguments": (
        lambda channels, stride, rule: nn.Identity(),
        r"expected a function of \(channels, stride, rule, supernet\), found one of \(channels, "
        r"stride, rule\); have it take these four",
    ),
    "raises as it is built": (
        lambda channels, stride, rule, supernet: 1 / 0,
        r"expected it to build a module at stride ., found ZeroDivisionError \(division by zero\) "
        r"at .*test_plugins.py:\d+; mend the operation",
    ),
    "raises as it runs": (
        lambda channels, stride, rule, supernet: Failing(),
        r"expected it to take an input .*, found RuntimeError \(no such luck\) at "
        r".*test_plugins.py:\d+; mend the operation",
    ),
}


def _plain(channels: int, stride: int, rule: Any, supernet: bool) -> nn.Module:
    plain = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(_convolved(channels, channels, stride, rule), plain)


@pytest.fixture
def tried() -> Iterator[Callable[..., nn.Module]]:
    """Builds a network, by its kind, with an operation of that function on edges of both strides."""

    def network(kind: str, function: Any, rules: tuple[str, ...] = ("fa",)) -> nn.Module:
        OPERATIONS.unregister("tried")
        operation("tried")(function)
        space = SPACES.build("darts(nodes=1, kept_edges=1, operations=(none, tried))")
        if kind == "supernet":
            return SuperNet(space, rules, channels=4, layers=3, num_classes=5)
        cell = Cell((Edge(2, 0, Candidate("tried", rules[0])),), (2,))
        genotype = Genotype(SPACES.spec(space), {"normal": cell, "reduce": cell})
        return Network(genotype, channels=4, layers=3, num_classes=5)

    yield network
    OPERATIONS.unregister("tried")


class TestAnOperationIsTriedAsItIsBuilt:
    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.parametrize("kind", ["supernet", "discrete"])
    def test_what_is_wrong_is_told_in_a_line_that_names_it(
        self, kind: str, fault: str, tried: Callable[..., nn.Module]
    ) -> None:
        function, message = FAULTS[fault]
        place = rf"^operation tried \({__file__}:\d+\): "
        with pytest.raises(InputError, match=place + message):
            tried(kind, function)

    @pytest.mark.parametrize("kind", ["supernet", "discrete"])
    def test_a_layer_under_no_rule_is_refused_unless_backpropagation_is_the_rule(
        self, kind: str, tried: Callable[..., nn.Module]
    ) -> None:
        """It would be reported as learning under the candidate's rule, and learns by bp."""

        def deliberate(channels: int, stride: int, rule: Any, supernet: bool) -> nn.Module:
            exact = RuleConv2d(channels, channels, 3, padding=1, rule=RULES.build("bp"))
            return nn.Sequential(_convolved(channels, channels, stride, rule), exact)

        tried(kind, _plain, ("bp",))
        tried(kind, deliberate, ("usf",))
        message = (
            r"operation tried .*: expected its layers under the rule that it is given, usf, found a "
            r"Conv2d \(1\) under none; make it a RuleConv2d or RuleLinear with rule=rule, or with "
            r'rule=RULES.build\("bp"\) if backpropagation is meant'
        )
        with pytest.raises(InputError, match=message):
            tried(kind, _plain, ("usf",))

    @pytest.mark.parametrize("kind", ["supernet", "discrete"])
    def test_once_for_each_way_to_build_it(
        self, kind: str, tried: Callable[..., nn.Module]
    ) -> None:
        runs: list[tuple[int, ...]] = []

        class Noted(nn.Identity):
            def forward(self, x: Tensor) -> Tensor:
                runs.append(tuple(x.shape))
                return x

        def noted(channels: int, stride: int, rule: Any, supernet: bool) -> nn.Module:
            built.append((channels, stride))
            return nn.Sequential(Noted(), _convolved(channels, channels, stride, rule))

        built: list[tuple[int, int]] = []
        tried(kind, noted)
        assert sorted(runs) == [(2, channels, 16, 16) for channels, _ in sorted(set(built))]
        tried(kind, noted)
        assert len(runs) == len(set(built))

    def test_nothing_of_it_moves(self, tried: Callable[..., nn.Module]) -> None:
        """Generators, statistics, weights and hooks are those of a network without a trial."""
        calls: list[nn.Module] = []

        class Drawing(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                scale = torch.rand(()) + random.random() + np.random.rand()
                return super().forward(x) * scale

        class Counting(nn.Identity):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("count", torch.zeros(()))
                self.register_forward_hook(Counting.note)

            @staticmethod
            def note(module: nn.Module, _: Any, y: Tensor) -> None:
                calls.append(module)
                module.get_buffer("count").add_(1)

        built: list[tuple[nn.Module, dict[str, Tensor]]] = []

        def drawing(channels: int, stride: int, rule: Any, supernet: bool) -> nn.Module:
            module = Drawing(Counting(), _convolved(channels, channels, stride, rule))
            built.append((module, copy.deepcopy(module.state_dict())))
            return module

        def rest() -> tuple[Any, ...]:
            return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

        others = rest()[:2]
        torch.manual_seed(1)
        net = tried("supernet", drawing)
        assert rest()[:2] == others
        after, times = rest()[2], len(calls)
        assert set(net.modules()).isdisjoint(calls)
        for module, before in built:
            now = module.state_dict()
            assert all(torch.equal(now[name], value) for name, value in before.items())
        torch.manual_seed(1)
        twin = tried("supernet", drawing)
        assert len(calls) == times > 0  # no trial this time
        assert torch.equal(rest()[2], after)
        for one, other in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("kind", ["supernet", "discrete"])
    def test_on_the_meta_device_shapes_are_looked_at(
        self, kind: str, tried: Callable[..., nn.Module]
    ) -> None:
        class Asking(nn.Identity):
            def forward(self, x: Tensor) -> Tensor:
                return x if x.sum() > 0 else -x

        def asking(channels: int, stride: int, rule: Any, supernet: bool) -> nn.Module:
            return nn.Sequential(Asking(), _convolved(channels, channels, stride, rule))

        with torch.device("meta"):
            tried(kind, asking)  # which needs numbers, so that nothing can be told
            with pytest.raises(InputError, match="expected an output"):
                tried(kind, FAULTS["its stride"][0])


def _rule(kernel: Callable[[Tensor], Any], **said: Any) -> LearningRule:
    """A rule of that kernel, which says that of itself."""
    body = {"kernel": lambda self, weight, state: kernel(weight), **said}
    return type("Mine", (LearningRule,), body)()


class TestARuleIsWhatItSays:
    def test_a_kernel_of_other_arguments_is_refused(self) -> None:
        class Mine(LearningRule):
            def kernel(self, weight: Tensor) -> Tensor:  # type: ignore[override]
                return weight

        message = r"learning rule Mine: kernel: .* found one of \(self, weight.*; have it"
        with pytest.raises(InputError, match=message):
            RuleLinear(3, 2, rule=Mine())

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            (
                _rule(lambda w: 0.5 * w),
                "expected one that does not depend on the weight, as carries = 'fixed feedback' "
                "says, found one that follows its values; set carries = 'values'",
            ),
            (_rule(torch.sign), "found one that follows its signs; set carries = 'signs'"),
            (_rule(torch.sign, carries="nothing"), "as carries = 'nothing' says, found one that"),
            (
                _rule(lambda w: w.clamp(-0.1, 0.1), carries="signs"),
                "expected one that follows its signs alone, as carries = 'signs' says, found one "
                "that follows its values; set carries = 'values'",
            ),
            (
                _rule(lambda w: w.flatten(1), carries="values"),
                r"expected a tensor of the weight's shape, \(4, 3, 3, 3\), found \(4, 27\); return one",
            ),
            (_rule(lambda w: 1.0), "expected a tensor of the weight's shape, .*, found float"),
            (_rule(lambda w: None), "expected a tensor of the weight's shape, .*, found NoneType"),
            (
                _rule(lambda w: w.sign() * w.std(), carries="signs", elementwise=True),
                "as elementwise = True says, found two weights in one tensor to have another kernel "
                "than each by itself; set elementwise = False",
            ),
        ],
    )
    def test_or_is_refused(self, rule: LearningRule, message: str) -> None:
        before = torch.get_rng_state()
        with pytest.raises(InputError, match=f"learning rule Mine: kernel: .*{message}"):
            RuleLinear(3, 2, rule=rule)
        with torch.device("meta"), pytest.raises(InputError, match=message):
            RuleConv2d(3, 2, 1, rule=rule)
        torch.set_rng_state(before)
        weight = RuleLinear(3, 2, rule=RULES.build("bp")).weight
        torch.set_rng_state(before)
        good = RuleLinear(3, 2, rule=_rule(lambda w: 0.5 * w, carries="values"))
        assert torch.equal(good.weight, weight)

    @pytest.mark.parametrize(
        "rule",
        [
            _rule(lambda w: 0.5 * w, carries="values", elementwise=True),
            _rule(lambda w: w.sign() * w.std(), carries="signs"),
            _rule(torch.ones_like, elementwise=True),
            _rule(lambda w: torch.ones_like(w) * w.norm()),
            _rule(torch.rand_like, elementwise=True),  # cannot be told
            _rule(lambda w: w @ w.T @ w),  # of matrices alone, so it cannot be told
        ],
    )
    def test_is_taken(self, rule: LearningRule) -> None:
        layer = RuleLinear(3, 2, rule=RULES.build("bp"))
        before = torch.get_rng_state()
        layer.carry(rule)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", RULES)
    def test_so_are_the_built_in_ones(self, name: str) -> None:
        assert mistake_in(RULES.build(name)) is None

    def test_words_that_nobody_knows(self) -> None:
        with pytest.raises(InputError, match=r"unknown value of Mine.carries 'sign': did you mean"):
            _rule(torch.sign, carries="sign")
