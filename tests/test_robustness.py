"""Measurements of robustness: what they count, what they doubt, and that they can be stopped and
gone on with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, forked, here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_attacks import fit, small_net
from torch import Tensor, nn

from darts_bio.config import RetrainConfig, RobustnessConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.evaluation.attacks import ATTACKS, perturb
from darts_bio.evaluation.doubts import Doubt, doubts, excess
from darts_bio.evaluation.robustness import Job, Measurement, Plan
from darts_bio.evaluation.subjects import load_subjects
from darts_bio.rules import convert
from darts_bio.runs.train import train
from darts_bio.runtime import derive_seed

ROBUSTNESS = str(ROOT / "evaluate" / "robustness.py")
PLAN = Plan(
    attacks=("fgsm", "pgd(steps=10)", "apgd_ce(steps=10)", "square(queries=200)"),
    eps=(20.0, 60.0),
    gradients=("true", "rule"),
)


@pytest.fixture(scope="module")
def images() -> Split:
    return load_data("digits").test[torch.arange(120)]


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return fit(small_net())


def done(
    networks: dict[str, nn.Module], images: Split, plan: Plan = PLAN, **options: Any
) -> Measurement:
    measured = Measurement(networks, images, plan, **options)
    assert measured.done == 0
    assert sum(1 for _ in measured.run()) == measured.steps == measured.done
    return measured


class Backwards(torch.autograd.Function):
    """The identity, with a derivative that has nothing to do with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:  # type: ignore[override]
        return torch.randn(error.shape, generator=torch.Generator().manual_seed(0)) * error.norm()


class Broken(nn.Module):
    """A network whose backward pass is broken on purpose."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(Backwards.apply(pixels))


class Rounded(Broken):
    """A network that sees 16 shades, so that no gradient reaches the image."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels * 15).round() / 15)


class TestDoubts:
    def test_none_about_an_honest_network(self, plain: nn.Module, images: Split) -> None:
        measured = done({"plain": plain, "bp": convert(plain, "bp").eval()}, images)
        assert doubts(measured) == []
        job = Job("attack", "plain", "pgd(steps=10)", 60.0, "true")
        assert measured.survived(job).float().mean() < 0.1  # type: ignore[union-attr]

    def test_a_broken_backward_pass_is_found_out(self, plain: nn.Module, images: Split) -> None:
        found = doubts(done({"broken": Broken(plain)}, images))
        assert {doubt.gradients for doubt in found} == {"true", "rule"}
        assert {"slope", "black box", "large eps"} <= {
            doubt.check for doubt in found if doubt.gradients == "true"
        }
        slope = next(doubt for doubt in found if doubt.check == "slope")
        assert "what is differentiated is not what is computed" in slope.found

    def test_a_gradient_that_vanishes_is_found_out(self, plain: nn.Module, images: Split) -> None:
        found = {
            (doubt.gradients, doubt.check)
            for doubt in doubts(done({"rounded": Rounded(plain)}, images))
        }
        assert {("true", "no gradient"), ("true", "black box"), ("true", "large eps")} <= found

    def test_a_rule_masks_its_own_gradient_and_not_the_true_one(self, images: Split) -> None:
        found = doubts(done({"fa": fit(convert(small_net(), "fa"))}, images))
        assert {doubt.gradients for doubt in found} == {"rule"}
        assert {"cosine", "masking gap", "black box"} <= {doubt.check for doubt in found}

    def test_an_attack_that_does_something_at_eps_0_is_found_out(
        self, plain: nn.Module, images: Split
    ) -> None:
        measured = done({"plain": plain}, images, Plan(attacks=("fgsm",), eps=(20.0,)))
        measured.found[Job("attack", "plain", "fgsm", 0.0, "true", 8).key][:4] = False
        assert doubts(measured) == [
            Doubt("plain", "true", "eps = 0", "fgsm makes 50 % of right images wrong")
        ]

    @pytest.mark.parametrize(
        ("attack", "gradients"), [("fgsm", "rule"), ("square(queries=5)", "none")]
    )
    def test_a_doubt_is_filed_under_the_gradients_that_were_measured(
        self, plain: nn.Module, images: Split, attack: str, gradients: Any
    ) -> None:
        """That of an attack without a gradient too."""
        plan = Plan(attacks=(attack,), eps=(20.0,), gradients=("rule",))
        measured = Measurement({"plain": plain}, images, plan)
        key = Job("attack", "plain", attack, 0.0, gradients, 8).key
        measured.found[key] = torch.zeros(8, dtype=torch.bool)
        assert [(doubt.gradients, doubt.check) for doubt in doubts(measured)] == [
            ("rule", "eps = 0")
        ]

    def test_images_of_another_network_that_do_more_than_its_own(
        self, plain: nn.Module, images: Split
    ) -> None:
        plan = Plan(attacks=("fgsm",), eps=(20.0,), transfer="fgsm")
        found = doubts(done({"plain": plain, "rounded": Rounded(plain)}, images, plan))
        transfer = [doubt for doubt in found if doubt.check == "transfer"]
        assert [doubt.network for doubt in transfer] == ["rounded"]
        assert "images made on plain leave" in transfer[0].found

    def test_a_difference_counts_beyond_chance(self) -> None:
        def rows(right: int) -> Tensor:
            return torch.arange(100) < right

        assert excess(rows(60), rows(50)) == pytest.approx(0.1)
        assert excess(rows(50), rows(60)) is None
        assert excess(rows(53), rows(50)) is None  # three of three: within two deviations
        mixed = rows(50).roll(30)
        assert excess(mixed, rows(50)) is None


class TestMeasurement:
    def test_what_an_attack_is_counted_on(self, plain: nn.Module, images: Split) -> None:
        """Of all images those that are right, and still are: the attack alone gives the same."""
        measured = done({"plain": plain}, images, Plan(attacks=("pgd(steps=3)",), eps=(20.0,)))
        with torch.no_grad():
            right = plain(images.images.float() / 255).argmax(1) == images.labels
        assert torch.equal(measured.right["plain"], right)
        seed = derive_seed("robustness", 0, "attack", "pgd(steps=3)", "20", 0)
        pixels, labels = images.images[right].float() / 255, images.labels[right]
        changed = perturb(ATTACKS.build("pgd(steps=3)"), plain, pixels, labels, 20 / 255, seed=seed)
        with torch.no_grad():
            still = plain(changed).argmax(1) == labels
        survived = measured.survived(Job("attack", "plain", "pgd(steps=3)", 20.0, "true"))
        assert survived is not None
        assert torch.equal(survived[right], still)
        assert not survived[~right].any()

    def test_stopped_anywhere_it_ends_with_the_same(self, plain: nn.Module, images: Split) -> None:
        plan = Plan(
            attacks=("pgd(steps=2)", "square(queries=5)"),
            eps=(20.0,),
            gradients=("rule",),
            transfer="fgsm",
        )
        networks = {"plain": plain, "brsf": convert(plain, "brsf").eval()}
        whole = done(networks, images, plan, batch_size=50)
        state: dict[str, Any] = {}
        for steps in (1, 4, 7, 100):
            part = Measurement(networks, images, plan, batch_size=50)
            if state:
                part.load_state_dict(state)
            for number, _ in enumerate(part.run(), 1):
                if number == steps:
                    break
            state = part.state_dict()
        assert state["found"].keys() == whole.found.keys()
        assert all(torch.equal(rows, whole.found[key]) for key, rows in state["found"].items())

    def test_it_does_not_go_on_with_another_network(self, plain: nn.Module, images: Split) -> None:
        state = Measurement({"a": plain}, images, PLAN).state_dict()
        with pytest.raises(
            InputError, match="a: gets other images right than when the measurement began"
        ):
            Measurement({"a": small_net().eval()}, images, PLAN).load_state_dict(state)

    def test_a_prediction_that_hangs_on_the_last_bits_does_not_keep_it_from_going_on(
        self, plain: nn.Module, images: Split
    ) -> None:
        plan = Plan(attacks=("fgsm",), eps=(20.0,))
        whole = done({"a": plain}, images, plan)
        state = whole.state_dict()
        state["right"] = {"a": whole.right["a"].clone()}
        state["right"]["a"][int(whole.right["a"].nonzero()[0])] = False
        again = Measurement({"a": plain}, images, plan)
        again.load_state_dict(state)
        assert torch.equal(again.right["a"], state["right"]["a"])

    def test_an_attack_that_asks_for_more_classes_is_refused_before_anything_is_done(
        self, images: Split
    ) -> None:
        two = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        with pytest.raises(
            InputError, match="attack apgd_dlr: expected at least 3 classes, found 2; leave it out"
        ):
            Measurement({"two": two}, images, Plan(attacks=("fgsm", "apgd_dlr"), eps=(8.0,)))

    def test_networks_are_compared_under_the_same_draws(
        self, plain: nn.Module, images: Split
    ) -> None:
        plan = Plan(attacks=("pgd(steps=2)",), eps=(20.0,), gradients=("true", "rule"))
        measured = done({"a": plain, "b": convert(plain, "bp").eval()}, images, plan)
        rows = {
            measured.survived(Job("attack", n, plan.attacks[0], 20.0, s))
            for n in "ab"
            for s in plan.gradients
        }
        first, *others = rows
        assert all(torch.equal(first, other) for other in others)  # type: ignore[arg-type]

    def test_transfer_to_itself_is_the_attack(self, plain: nn.Module, images: Split) -> None:
        plan = Plan(attacks=("fgsm",), eps=(20.0,), transfer="fgsm")
        other = fit(small_net(), steps=30)
        measured = done({"a": plain, "b": other}, images, plan)
        for number, name in enumerate("ab"):
            rows = measured.found[Job("transfer", name, "fgsm", 20.0, "true").key]
            survived = measured.survived(Job("attack", name, "fgsm", 20.0, "true"))
            assert survived is not None
            assert torch.equal(rows[:, number] & measured.right[name], survived)
            assert (rows[:, 1 - number] & measured.right["ba"[number]]).sum() > survived.sum()

    def test_a_network_that_gets_nothing_right(self, images: Split) -> None:
        never = Split(images.images, torch.full_like(images.labels, 9))
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        nn.init.zeros_(model[1].weight)
        model[1].bias.data = torch.arange(10, 0, -1.0)
        measured = done({"zero": model}, never)
        assert measured.figures("zero") == {}
        assert doubts(measured) == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run folders bp, of two seeds, and fa, of one."""
    folder = tmp_path_factory.mktemp("robustness")
    cell = "|nor_conv_3x3:{0}~0|+|none~0|none~1|+|none~0|nor_conv_3x3:{0}~1|none~2|"
    small: dict[str, Any] = {
        "channels": 4,
        "layers": 3,
        "epochs": 4,
        "batch_size": 32,
        "lr": 0.1,
        "train_images": 600,
    }
    small |= {
        "crop_padding": 1,
        "flip": False,
        "cutout": 0,
        "auxiliary": 0.0,
        "drop_path": 0.0,
        "device": "cpu",
    }
    for rule, seeds in (("bp", 2), ("fa", 1)):
        config = RetrainConfig(
            genotype=cell.format(rule), seeds=seeds, out=str(folder / rule), **small
        )
        assert train(config, "test").finished
    return folder


COMMAND = [
    "--checkpoint",
    "bp,fa",
    "--attacks",
    "fgsm,pgd(steps=5),one_pixel(steps=1)",
    "--eps",
    "8,64",
]


@pytest.fixture(scope="module")
def attacked(runs: Path) -> Path:
    options = [
        "--gradients",
        "true,rule",
        "--transfer",
        "fgsm",
        "--images",
        "60",
        "--device",
        "cpu",
    ]
    corrupted = ["--corruptions", "gaussian_noise,contrast"]
    found = forked(ROBUSTNESS, *COMMAND, *options, *corrupted, "--out", "attacked", cwd=runs)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "report:  attacked/report.md"
    return runs / "attacked"


class TestScript:
    def test_clean_accuracy_is_that_of_the_trainings_log_to_the_digit(
        self, runs: Path, attacked: Path
    ) -> None:
        found = json.loads((attacked / "results.json").read_text())
        assert [network["network"] for network in found["networks"]] == [
            "bp/seed-0",
            "bp/seed-1",
            "fa",
        ]
        for network in found["networks"]:
            log = [
                json.loads(line)
                for line in (runs / network["network"] / "metrics.jsonl").read_text().splitlines()
            ]
            logged = [record for record in log if record["event"] == "epoch"][-1]["test/accuracy"]
            assert network["clean_all_test_images"] == network["clean_in_training_log"] == logged
        assert not [doubt for doubt in found["doubts"] if doubt["check"] == "clean accuracy"]

    def test_the_report(self, attacked: Path) -> None:
        text = (attacked / "report.md").read_text()
        found = json.loads((attacked / "results.json").read_text())
        bp = found["networks"][0]
        assert {(a["attack"], a["eps"]) for a in bp["attacks"]} >= {
            ("fgsm", 8.0),
            ("pgd(steps=5)", 64.0),
        }
        assert [len(bp[name]) for name in ("corruptions", "transfer_to")] == [10, 6]
        assert (
            "| network | rules | gradient | clean | fgsm | pgd(steps=5) | one_pixel(steps=1) | "
            "worst |" in text
        )
        row = next(line for line in text.splitlines() if line.startswith("| bp | bp | true |"))
        assert " +- " in row
        gap = next(line for line in text.splitlines() if line.startswith("| fa |  | gap |")).split(
            "|"
        )
        true, rule = (
            [
                100 * a["accuracy"]
                for a in found["networks"][2]["attacks"]
                if (a["attack"], a["eps"], a["gradients"], a["images"]) == ("fgsm", 8.0, side, 60)
            ]
            for side in ("true", "rule")
        )
        assert gap[5].strip() == f"{rule[0] - true[0]:+.1f}"
        for part in (
            "### eps 8/255",
            "## Doubts",
            "## Transfer, fgsm",
            "## Common corruptions",
            "| mean |",
        ):
            assert part in text
        for figure in ("accuracy.svg", "examples.svg"):
            assert f"]({figure})" in text
            assert (attacked / figure).read_text().startswith("<svg")

    def test_tensorboard(self, attacked: Path) -> None:
        events = EventAccumulator(str(attacked)).Reload()
        assert [event.step for event in events.Scalars("fgsm/rule/bp/seed-0")] == [8, 64]
        assert events.Tags()["images"] == ["accuracy", "examples"]
        assert events.Tags()["tensors"] == ["custom_scalars__config__", "report/text_summary"]

    def test_one_that_is_done_goes_on_to_the_same_report(self, runs: Path, attacked: Path) -> None:
        before = (attacked / "results.json").read_bytes()
        found = forked(ROBUSTNESS, "--out", "attacked", "--resume", cwd=runs)
        assert found.returncode == 0, found.stderr
        assert (attacked / "results.json").read_bytes() == before

    def test_the_images_are_the_test_images_as_they_were(self, runs: Path) -> None:
        test = load_data("digits").test
        subjects, images = load_subjects(
            [str(runs / "fa")], torch.device("cpu"), data_dir=None, images=10000, seed=0
        )
        assert torch.equal(images.images, test.images)
        assert torch.equal(images.labels, test.labels)
        assert (subjects[0].name, subjects[0].rules) == ("fa", "fa, bp")
        _, some = load_subjects(
            [str(runs / "fa")], torch.device("cpu"), data_dir=None, images=50, seed=1
        )
        known = {image.numpy().tobytes() for image in test.images}
        assert len(some) == 50
        assert all(image.numpy().tobytes() in known for image in some.images)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (
                "",
                "--checkpoint is required: one or several run folders of trainings, separated by "
                "commas",
            ),
            (
                "--checkpoint nowhere",
                "nowhere: expected the run folder of a training, found no config.yaml",
            ),
            (
                "--checkpoint bp,bp",
                "--checkpoint: expected each of them once, found bp more than once",
            ),
            (
                "--checkpoint bp,bp/seed-0",
                "--checkpoint: expected each run once, found bp, bp/seed-0",
            ),
            ("--checkpoint fa --attacks pdg", "unknown attack 'pdg': did you mean 'pgd'"),
            (
                "--checkpoint fa --attacks 'pgd(steps=2, step=1)'",
                "attack pgd: 2 steps of 1/255 end before eps 4/255",
            ),
            ("--checkpoint fa --gradients false", "unknown value of --gradients 'false'"),
            ("--checkpoint fa --eps 0", "--eps: expected at least 0.01 and below 256, found 0.0"),
            ("--checkpoint fa --eps eight", "--eps: expected a number, found 'eight'"),
            ("--checkpoint fa --corruptions fog", "unknown corruption 'fog'"),
            ("--checkpoint fa --transfer fgsn", "unknown attack 'fgsn': did you mean 'fgsm'"),
            (
                "--checkpoint attacked",
                "attacked: expected the run folder of a training, found a run of .*evaluate/robu",
            ),
            ("--checkpoint fa --out bp", "--out bp: exists and is not empty"),
            (
                "--out fa --resume",
                "--resume: fa is a run of .*evaluate/train_cifar.py; go on with it by that comm",
            ),
            (
                "--out attacked --resume --eps 9",
                r"attacked: a run of another configuration \(eps was ",
            ),
        ],
    )
    def test_refused(
        self,
        words: str,
        expected: str,
        runs: Path,
        attacked: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        import re

        assert re.match(expected, here(ROBUSTNESS, words, runs, monkeypatch, capsys))


def test_eps_are_sorted_and_specs_written_one_way() -> None:
    config = RobustnessConfig(
        checkpoint=("a",), eps=(8.0, 2.0), attacks=("pgd(restarts=2,steps=5)",), transfer="pgd()"
    )
    assert (config.eps, config.attacks, config.transfer) == (
        (2.0, 8.0),
        ("pgd(restarts=2, steps=5)",),
        "pgd",
    )
