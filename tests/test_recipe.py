"""The parts of a recipe: schedules, smoothing, mixing, averaging, accumulation, held-out images,
seeds, the card.
"""

from __future__ import annotations

import json
import re
import shlex
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import TRAIN, forked, refused

from darts_bio.cli.parser import parse
from darts_bio.config import ImageNetConfig, RetrainConfig, SearchConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.data.sources import InMemory, open_source
from darts_bio.errors import InputError
from darts_bio.figures.curves import draw_curves
from darts_bio.networks import build_network, multiply_adds, parameters
from darts_bio.spaces import load_genotype
from darts_bio.strategies import WeightPhase
from darts_bio.training.optim import WeightOptimizer, learning_rate
from darts_bio.training.retrain import Mixing, Retraining

CPU = torch.device("cpu")
WORDS = shlex.split(
    "--genotype darts_v2 --epochs 1 --channels 4 --train-images 64 --batch-size 16 --device cpu"
)
SMALL: dict[str, Any] = {
    "channels": 4,
    "layers": 3,
    "batch_size": 16,
    "crop_padding": 1,
    "flip": False,
    "cutout": 0,
}
SMALL |= {"auxiliary": 0.0, "drop_path": 0.0, "lr": 0.05, "epochs": 2}
CONFIG = RetrainConfig(genotype="darts_v2", **SMALL)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


def training(data: ImageData, **options: Any) -> Retraining:
    return Retraining.of_genotype(replace(CONFIG, **options), load_genotype("darts_v2"), data, CPU)


class TestProtocols:
    def test_a_protocol_gives_what_is_not_given(self) -> None:
        words = [
            "--genotype",
            "darts_v2",
            "--dataset",
            "cifar10",
            "--protocol",
            "fast",
            "--epochs",
            "7",
        ]
        config = parse(RetrainConfig, words, "")
        assert (config.epochs, config.ema, config.label_smoothing, config.amp) == (
            7,
            0.999,
            0.1,
            "bf16",
        )

    def test_one_that_is_named_goes_before_the_data_sets(self) -> None:
        config = parse(RetrainConfig, ["--genotype", "darts_v2", "--protocol", "darts"], "")
        assert config == replace(RetrainConfig(genotype="darts_v2"), protocol="darts")
        assert parse(RetrainConfig, ["--genotype", "darts_v2"], "").epochs == 30

    def test_of_imagenet(self) -> None:
        """As published: 250 epochs, C=48, 14 cells; batch 128, .1 x 0.97 an epoch, or batch 1024,
        .5, linear.
        """
        config = parse(ImageNetConfig, ["--genotype", "darts_v2"], "")
        expected: dict[str, Any] = {
            "channels": 48,
            "layers": 14,
            "epochs": 250,
            "batch_size": 128,
            "lr": 0.1,
        }
        expected |= {
            "weight_decay": 3e-5,
            "label_smoothing": 0.1,
            "auxiliary": 0.4,
            "clip": 5.0,
            "drop_path": 0.0,
        }
        assert {name: getattr(config, name) for name in expected} == expected
        assert [learning_rate(config, e) for e in (0, 1, 249)] == pytest.approx(
            [0.1, 0.097, 0.1 * 0.97**249]
        )
        other = parse(ImageNetConfig, ["--genotype", "darts_v2", "--protocol", "p_darts"], "")
        assert (other.batch_size, other.channels) == (1024, 48)
        rates = [learning_rate(other, e) for e in (0, 4, 5, 125, 249)]
        assert rates == pytest.approx([0.1, 0.5, 0.5 * 245 / 250, 0.25, 0.5 / 250])

    def test_of_nas_bench_201_on_its_small_images(self) -> None:
        cell = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
        config = parse(RetrainConfig, ["--genotype", cell, "--dataset", "imagenet16-120"])
        assert (config.crop_padding, config.cutout, config.auxiliary) == (2, 0, 0.0)
        assert (config.epochs, config.batch_size, config.optimizer) == (200, 256, "nesterov")

    def test_an_unknown_one(self) -> None:
        with pytest.raises(InputError, match="unknown protocol 'fst': did you mean 'fast'"):
            parse(RetrainConfig, ["--genotype", "darts_v2", "--protocol", "fst"], "")


class TestSchedules:
    def test_warm_up_and_cosine(self) -> None:
        config = replace(CONFIG, epochs=10, warmup=2, lr=0.4, lr_min=0.1)
        rates = [learning_rate(config, epoch) for epoch in range(10)]
        cosine = [0.1 + 0.3 * (1 + np.cos(np.pi * epoch / 10)) / 2 for epoch in range(10)]
        assert rates == pytest.approx([0.2, 0.4, *cosine[2:]])

    def test_the_rate_is_scaled_with_the_batch(self) -> None:
        config = replace(CONFIG, batch_size=512, lr_batch=128, schedule="linear", lr_min=0.01)
        assert learning_rate(config, 0) == pytest.approx(4 * 0.05)
        assert learning_rate(config, 1) == pytest.approx(4 * (0.05 + 0.01) / 2)

    def test_the_rate_of_an_epoch_and_where_none_is_left_of_the_last(self) -> None:
        """A run that has ended and is gone on with tells the rate that it ended at."""
        config = replace(CONFIG, epochs=4, lr=0.5, lr_min=0.1, schedule="linear")
        optimizer = WeightOptimizer(torch.nn.Linear(1, 1), config)
        assert optimizer.lr == pytest.approx(0.2)
        optimizer.begin_epoch(1)
        assert optimizer.lr == optimizer.optimizer.param_groups[0]["lr"] == pytest.approx(0.4)

    def test_where_no_epoch_is_left_of_a_phase(self) -> None:
        """The second half of 4 epochs goes from 0.05 down a half cosine to 0: half-way at its last."""
        config = SearchConfig(epochs=4, lr=0.5, lr_min=0.0)
        optimizer = WeightOptimizer(
            torch.nn.Linear(1, 1), config, phase=WeightPhase(first=2, epochs=2, scale=0.1)
        )
        assert optimizer.lr == pytest.approx(0.025)

    def test_a_search_follows_its_cosine(self) -> None:
        assert learning_rate(SearchConfig(epochs=2), 1) == pytest.approx((0.025 + 0.001) / 2)

    @pytest.mark.parametrize(("option", "value"), [("warmup", 2), ("accumulate", 3)])
    def test_what_does_not_fit(self, option: str, value: int) -> None:
        with pytest.raises(InputError, match=f"--{option}: expected"):
            replace(CONFIG, **{option: value})


class TestLoss:
    def test_labels_are_smoothed(self, data: ImageData) -> None:
        """(1 - e) times the entropy of the label plus e times the mean over all classes (arXiv
        1512.00567).
        """
        task = training(data, label_smoothing=0.2)
        logits, labels = torch.randn(5, 10), torch.arange(5)
        log = logits.log_softmax(1)
        expected = -(0.8 * log[range(5), labels] + 0.2 * log.mean(1)).mean()
        torch.testing.assert_close(task.loss(logits, labels), expected)
        both = task.loss((logits, logits), labels)
        torch.testing.assert_close(both, (1 + task.config.auxiliary) * expected)

    def test_what_is_recorded_is_not_smoothed(self, data: ImageData) -> None:
        task, plain = training(data, label_smoothing=0.2), training(data)
        for one in (task, plain):
            one.begin_epoch(0)
        assert torch.equal(task.step(0)["train"].totals, plain.step(0)["train"].totals)


class TestMixing:
    @pytest.mark.parametrize("option", ["mixup", "cutmix"])
    def test_by_hand(self, option: str) -> None:
        """Each image with the one at the mirrored place of the batch; the targets by the same
        share, smoothed.
        """
        mix = Mixing(replace(CONFIG, label_smoothing=0.1, **{option: 1.0}), 10)
        x, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
        mixed, targets = mix(7, x.clone(), labels)
        smoothed = F.one_hot(labels, 10) * 0.9 + 0.01
        share = (targets[0, 0] - 0.01) / 0.9
        assert 0 < share < 1
        torch.testing.assert_close(targets, share * smoothed + (1 - share) * smoothed.flip(0))
        if option == "mixup":
            torch.testing.assert_close(mixed, share * x + (1 - share) * x.flip(0))
        else:
            pasted = (mixed == x.flip(0)).all(1)
            assert ((mixed == x).all(1) | pasted).all()
            assert pasted[0].double().mean().item() == pytest.approx(1 - share.item(), abs=1e-6)

    def test_it_depends_on_the_seed_and_the_step_alone(self) -> None:
        mix = Mixing(replace(CONFIG, mixup=1.0), 10)
        x, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
        state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
        one, other = mix(1, x.clone(), labels), mix(2, x.clone(), labels)
        assert not torch.equal(one[1], other[1])
        assert torch.equal(mix(1, x.clone(), labels)[0], one[0])
        assert (np.random.get_state()[1] == state).all()

    def test_in_a_training_accuracy_is_that_of_the_larger_share(self, data: ImageData) -> None:
        task = training(data, mixup=0.5, lr=0.0)
        task.begin_epoch(0)
        loss, correct = task.step(0)["train"].totals.float()
        mirror = training(data, mixup=0.5)
        x, targets = mirror.mixing(0, *mirror.source.batch(0))  # type: ignore[misc]
        logits = mirror.network(x)
        assert correct == (logits.argmax(1) == targets.argmax(1)).sum()
        torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="sum"))


class TestAveraging:
    def test_the_averaged_network_by_hand(self, data: ImageData) -> None:
        """a <- d a + (1 - d) w, d rising to --ema: 1 - (1 + step)^(-2/3), step counted from 0."""
        task = training(data, ema=0.6)
        task.begin_epoch(0)
        expected = [p.detach().clone() for p in task.network.parameters()]
        for t in range(4):
            task.step(t)
            decay = 0.0 if t == 0 else min(0.6, 1 - (1 + t) ** (-2 / 3))
            for mean, p in zip(expected, task.network.parameters(), strict=True):
                mean.lerp_(p.detach(), 1 - decay)
        for mean, p in zip(expected, task.averaged.module.parameters(), strict=True):
            torch.testing.assert_close(p, mean)
        numbers = task.end_epoch(0)
        assert set(numbers) == {
            f"{name}/{q}" for name in ("test", "test_averaged") for q in ("loss", "accuracy")
        }
        assert numbers["test/loss"] != numbers["test_averaged/loss"]
        assert task.result == "test_averaged/accuracy"

    def test_it_is_part_of_the_state(self, data: ImageData) -> None:
        task, other = training(data, ema=0.6), training(data, ema=0.6, seed=1)
        task.begin_epoch(0)
        task.step(0)
        other.load_state_dict(task.state_dict())
        assert other.end_epoch(0) == task.end_epoch(0)


class TestAccumulation:
    def test_one_update_along_the_sum_of_several_losses(self) -> None:
        layers = [torch.nn.Linear(3, 2).double() for _ in range(2)]
        layers[1].load_state_dict(layers[0].state_dict())
        one, other = (WeightOptimizer(layer, replace(CONFIG, clip=0.1)) for layer in layers)
        x = torch.randn(4, 3, dtype=torch.float64)
        one.differentiate([layers[0](x).square().sum()])
        other.differentiate(layers[1](part).square().sum() for part in x.chunk(4))
        for optimizer in (one, other):
            optimizer.update()
        torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=1e-12, atol=0)

    def test_the_loss_is_that_of_the_whole_batch(self, data: ImageData) -> None:
        """Of a network in which samples do not meet: the batch norms are those of evaluation."""
        steps = []
        for accumulate in (1, 4):
            task = training(data, accumulate=accumulate)
            task.begin_epoch(0)
            task.network.eval()
            steps.append((task.step(0), [p.detach().clone() for p in task.network.parameters()]))
        torch.testing.assert_close(steps[0][0]["train"].totals, steps[1][0]["train"].totals)
        torch.testing.assert_close(steps[0][1], steps[1][1], rtol=1e-4, atol=1e-6)


class TestPolicy:
    def test_images_are_altered_and_labels_stay(self, data: ImageData) -> None:
        """As many draws as images, the same whatever the number of workers; then cropped and
        normalized as ever.
        """
        config = replace(CONFIG, auto_augment="rand-m9-mstd0.5", batch_size=12)
        sources = [InMemory(data, replace(config, workers=n), CPU) for n in (0, 2)]
        plain = InMemory(data, replace(config, auto_augment=""), CPU)
        try:
            for t in (0, 1, 7, 0):
                one, other = (source.batch(t) for source in sources)
                assert torch.equal(one[0], other[0])
                assert torch.equal(one[1], plain.batch(t)[1])
                assert one[0].shape == plain.batch(t)[0].shape
                assert not torch.equal(one[0], plain.batch(t)[0])
        finally:
            for source in sources:
                source.close()

    def test_one_that_does_nothing_leaves_every_pixel(self, data: ImageData) -> None:
        config = replace(CONFIG, auto_augment="rand-m0-n1-t0-p0.0", workers=0)
        altered, plain = (
            InMemory(data, config, CPU),
            InMemory(data, replace(config, auto_augment=""), CPU),
        )
        assert torch.equal(altered.batch(3)[0], plain.batch(3)[0])

    def test_in_colour(self) -> None:
        images = torch.randint(0, 256, (20, 3, 12, 12), dtype=torch.uint8)
        data = ImageData(
            Split(images, torch.arange(20) % 10),
            Split(images, torch.arange(20) % 10),
            tuple("0123456789"),
        )
        source = InMemory(data, replace(CONFIG, auto_augment="original", workers=0), CPU)
        assert source.batch(0)[0].shape == (16, 3, 12, 12)

    @pytest.mark.parametrize(
        ("policy", "side"), [("rand-z9", 12), ("rnd-m9", 12), ("original", 11)]
    )
    def test_what_cannot_be_done(self, policy: str, side: int) -> None:
        images = torch.zeros(20, 3, 12, side, dtype=torch.uint8)
        data = ImageData(
            Split(images, torch.arange(20) % 10),
            Split(images, torch.arange(20) % 10),
            tuple("0123456789"),
        )
        with pytest.raises(InputError, match="--auto-augment"):
            InMemory(data, replace(CONFIG, auto_augment=policy, workers=0), CPU)


class TestHoldout:
    def test_what_is_held_out_is_never_trained_on(self, data: ImageData) -> None:
        source = InMemory(data, replace(CONFIG, holdout=14, crop_padding=0, batch_size=10), CPU)
        trained = torch.cat([source.batch(t)[0] for t in range(2 * source.per_epoch)])
        held = torch.cat([x for x, _ in source.measured("valid")])
        assert (len(held), source.per_epoch) == (14, 5)
        assert torch.cdist(trained.flatten(1), held.flatten(1)).min() > 1e-3
        whole = torch.cat([x for x, _ in source.measured("test")])
        assert len(whole) == len(data.test)

    def test_the_test_images_are_measured_once_at_the_end(self, data: ImageData) -> None:
        task = training(data, holdout=16)
        assert set(task.end_epoch(0)) == {"valid/loss", "valid/accuracy"}
        assert set(task.end_epoch(1)) == {
            "valid/loss",
            "valid/accuracy",
            "test/loss",
            "test/accuracy",
        }

    def test_or_never(self, data: ImageData) -> None:
        task = training(data, holdout=16, test_at_end=False, ema=0.9)
        assert not any(name.startswith("test") for name in task.end_epoch(0) | task.end_epoch(1))
        assert task.result == "valid_averaged/accuracy"
        assert task.result_in_words == "accuracy on held-out images of the averaged network"
        with pytest.raises(InputError, match="--no-test-at-end: expected together with --holdout"):
            replace(CONFIG, test_at_end=False)

    def test_runs_of_several_seeds_may_share_the_images(self) -> None:
        def images(seed: int, data_seed: int | None) -> tuple[list[list[float]], list[list[float]]]:
            options: dict[str, Any] = {"seed": seed, "data_seed": data_seed, "crop_padding": 0}
            source = open_source(replace(CONFIG, train_images=48, holdout=16, **options), CPU)
            trained = torch.cat([source.batch(t)[0] for t in range(source.per_epoch)])
            held = torch.cat([x for x, _ in source.measured("valid")])
            return sorted(trained.flatten(1).tolist()), sorted(held.flatten(1).tolist())

        assert images(1, None) == images(1, 1)
        assert images(2, 1) == images(3, 1) == images(1, 1)
        assert images(2, None) != images(1, None)

    def test_more_than_there_are(self, data: ImageData) -> None:
        with pytest.raises(
            InputError, match="--holdout: expected fewer than the 64 training images, found 64"
        ):
            training(data, holdout=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("card")
    done = forked(
        TRAIN, *WORDS, "--genotype", "bionas_darts", "--ema", "0.9", "--out", "run", cwd=place
    )
    assert done.returncode == 0, done.stderr
    return place / "run"


class TestSeeds:
    def test_one_and_several_are_not_mixed(self, tmp_path: Path, run: Path) -> None:
        message = refused(
            forked(TRAIN, "--out", str(run), "--resume", "--seeds", "2", cwd=tmp_path)
        )
        assert "is the run of one seed, found 2; start anew in another --out" in message
        (tmp_path / "config.yaml").write_text(replace(CONFIG, seeds=3).to_yaml())
        (tmp_path / "genotype.json").write_text(load_genotype("darts_v2").to_json())
        message = refused(forked(TRAIN, "--out", ".", "--resume", "--seeds", "1", cwd=tmp_path))
        assert "--seeds: expected at least the 3 of ., found 1" in message

    def test_several_in_one_command_and_more_of_them_later(self, tmp_path: Path) -> None:
        first = forked(TRAIN, *WORDS, "--seeds", "2", "--seed", "3", "--out", "run", cwd=tmp_path)
        assert first.returncode == 0, first.stderr
        found = [
            json.loads((tmp_path / f"run/seed-{s}/metrics.jsonl").read_text().splitlines()[-1])
            for s in (3, 4)
        ]
        accuracies = [100 * record["test/accuracy"] for record in found]
        said = re.search(r"test accuracy: ([\d.]+) \+- ([\d.]+) % \(.*n = 2\)", first.stdout)
        assert said is not None
        assert float(said[1]) == pytest.approx(np.mean(accuracies), abs=0.006)
        assert float(said[2]) == pytest.approx(np.std(accuracies, ddof=1), abs=0.006)
        before = (tmp_path / "run/seed-3/metrics.jsonl").read_text()
        more = forked(TRAIN, "--out", "run", "--resume", "--seeds", "3", cwd=tmp_path)
        assert more.returncode == 0, more.stderr
        assert "n = 3" in more.stdout
        assert (tmp_path / "run/seed-3/metrics.jsonl").read_text() == before
        assert "seeds: 3" in (tmp_path / "run/config.yaml").read_text()
        report = (tmp_path / "run/report.md").read_text()
        assert all(f"[{seed}](seed-{seed}/report.md)" in report for seed in (3, 4, 5))
        assert re.search(r"\(mean and standard deviation, n = 3\)\*\*, on \d+ images", report)
        assert "curves.svg" in report
        assert "standard deviation" in (tmp_path / "run/curves.svg").read_text()


class TestCard:
    def test_it_says_what_the_run_is_and_reaches(self, run: Path) -> None:
        card = (run / "report.md").read_text()
        assert "**test accuracy of the averaged network: " in card
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        network = build_network(load_genotype("bionas_darts"), channels=4, layers=3, in_channels=1)
        adds = multiply_adds(network, lambda: network(torch.zeros(1, 1, 8, 8)))
        for expected in (
            f"| test, averaged | {last['test_averaged/loss']:.4f} | "
            f"{100 * last['test_averaged/accuracy']:.2f} |",
            f"| parameters | {parameters(network):,} |",
            f"| multiply-adds of one 1x8x8 image (torch.utils.flop_counter) | {adds / 1e6:.2f} M |",
            str(load_genotype("bionas_darts")),
            "carry the error down by their own weights",
            "--genotype bionas_darts",
            "ema: 0.9",
            "64 training + 359 test images of 1x8x8",
        ):
            assert expected in card
        assert "usf" in card.partition("## Learning rules")[2]

    def test_its_figures_are_there(self, run: Path) -> None:
        card = (run / "report.md").read_text()
        for name in re.findall(r"\]\((\w+\.svg)\)", card):
            xml.dom.minidom.parse(str(run / name))
        assert {"curves.svg", "cells.svg"} <= {path.name for path in run.iterdir()}

    @pytest.mark.parametrize("epochs", [1, 2, 200])
    def test_curves(self, epochs: int) -> None:
        """A line for each group, whatever the numbers."""
        records = [
            {
                "epoch": e + 1,
                "train/loss": 2.0,
                "train/accuracy": e / 200,
                "test/loss": 1e-9 * e,
                "lr/x": 1.0,
            }
            for e in range(epochs)
        ]
        chart = draw_curves([records])
        text = chart.svg()
        assert text.count(">train<") == 1  # in the legend
        assert text.count(">test<") == 1
        loss, accuracy = (
            {line.name: line.points for line in panel.series} for panel in chart.panels
        )
        assert loss["train"] == [(e + 1, 2.0) for e in range(epochs)]
        assert loss["test"] == [(e + 1, 1e-9 * e) for e in range(epochs)]
        assert accuracy["train"] == [(e + 1, pytest.approx(e / 2)) for e in range(epochs)]
        assert list(accuracy) == ["train"]
        xml.dom.minidom.parseString(text)
