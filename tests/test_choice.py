"""Several searches, the choice among them and the full training: what is chosen, by which images,
and that a run that was stopped at any stage ends as one that was not.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SEARCH, StopAfter, call, here, torchrun
from searching import going_on, in_short, verdicts
from test_runs import metrics, same

import darts_bio
from darts_bio.cli import main
from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.evaluation.choice import ChoiceCandidate, choose
from darts_bio.reports.choice import choice_card
from darts_bio.reports.findings import Findings
from darts_bio.runs.choice import ChoiceResult, _next_command
from darts_bio.spaces import SPACES, load_genotype
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.training.engine import DivergedError
from darts_bio.training.listeners import Listener, Progress

QUIET: dict[str, Any] = {"progress": False, "tensorboard": False}
SEARCHES: dict[str, Any] = {
    "space": "darts(nodes=1, operations=(none, skip_connect, max_pool_3x3, sep_conv_3x3))",
    "rules": ("usf", "fa"),
    "strategy": "darts(lr=0.05)",
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "epochs": 1,
    "crop_padding": 1,
    "lr": 0.1,
}
TRAINING: dict[str, Any] = {
    "channels": 4,
    "layers": 3,
    "batch_size": 8,
    "crop_padding": 1,
    "cutout": 0,
    "auxiliary": 0.0,
    "drop_path": 0.1,
    "lr": 0.1,
}
OPTIONS = {
    **SEARCHES,
    "seed": 5,
    "seeds": 2,
    "choice_epochs": 2,
    "training": f"auto({', '.join(f'{name}={value}' for name, value in TRAINING.items())}, epochs=1)",
}
# Steps of 8 images: two of each search (16 of w's images), four of each short training (two epochs
# of 16 images), four of the full one (32 images).


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=32)


def run(data: ImageData, out: Path, listener: Listener | None = None) -> ChoiceResult:
    """The whole run, begun or gone on with."""
    resume: dict[str, Any] = {"resume": True} if out.exists() else OPTIONS
    return darts_bio.search_and_train(data, out=str(out), listener=listener, **resume, **QUIET)


@pytest.fixture(scope="module")
def whole(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> ChoiceResult:
    result = run(data, tmp_path_factory.mktemp("choice") / "run")
    assert result.finished
    return result


class TestRule:
    @pytest.mark.parametrize(
        ("measured", "chosen", "reason"),
        [
            ([(0.90, 0.2), (0.92, 0.9), (0.91, 0.1)], 4, "the highest accuracy"),
            ([(0.92, 0.3), (0.91, 0.1), (0.92, 0.2)], 5, "the lowest loss of 2 of the highest acc"),
            ([(0.5, 0.3), (0.5, 0.3), (0.5, 0.3)], 3, "the lowest seed of 3 of the same accuracy"),
            ([(0.4, 0.1), (0.5, 0.3), (0.5, 0.3)], 4, "the lowest seed of 2 of the same accuracy"),
        ],
    )
    def test_accuracy_then_loss_then_seed(
        self, measured: list[tuple[float, float]], chosen: int, reason: str
    ) -> None:
        candidates = [
            ChoiceCandidate(3 + i, f"digest {i}", *pair) for i, pair in enumerate(measured)
        ]
        for order in (candidates, candidates[::-1]):
            choice = choose(order)
            assert choice.chosen.seed == chosen
            assert choice.reason.startswith(reason)
            assert [candidate.seed for candidate in choice.candidates] == [3, 4, 5]
            assert choice.alike == ()

    def test_a_diverged_training_is_never_chosen(self) -> None:
        diverged = [ChoiceCandidate(seed, "digest 1f", None, None) for seed in (0, 1)]
        assert choose([*diverged, ChoiceCandidate(2, "digest 2e", 0.1, 9.0)]).chosen.seed == 2
        with pytest.raises(InputError, match="--choose: .* does not diverge, found none of 2"):
            choose(diverged)

    def test_a_run_follows_it(self, whole: ChoiceResult) -> None:
        """By what the files of the short trainings hold."""
        last = {
            seed: metrics(whole.folder / "choice" / f"seed-{seed}")[-1] for seed in whole.candidates
        }
        assert list(last) == [5, 6]
        best = min(
            last, key=lambda seed: (-last[seed]["valid/accuracy"], last[seed]["valid/loss"], seed)
        )
        written = json.loads((whole.folder / "choice.json").read_text())
        assert written["chosen"] == best
        assert written["held_out_images"] == written["trained_images"] == 16
        for candidate in written["candidates"]:
            measured = last[candidate["seed"]]
            assert candidate["accuracy"] == measured["valid/accuracy"]
            assert candidate["loss"] == measured["valid/loss"]
        assert load_genotype(whole.folder) == load_genotype(
            whole.folder / "searches" / f"seed-{best}"
        )
        assert whole.genotype == load_genotype(whole.folder / "final")
        report = (whole.folder / "report.md").read_text()
        assert f"| {best} (chosen) |" in report
        assert f"Chosen was seed {best}: {written['reason']}." in report
        reached = re.escape(f"test accuracy: {100 * whole.accuracy:.2f} %")
        assert re.search(rf"{reached}, on \d+ images", report)
        searched = verdicts(whole.folder / "searches" / f"seed-{best}" / "report.md")
        assert len(searched) >= 2
        assert verdicts(whole.folder / "report.md") == searched
        first, *_, cost, _, next_step = in_short(whole.folder / "report.md")
        assert first.startswith(
            "**Data:** images given in Python. A search learns from half of the training images"
        )
        assert "learns from 16 and is measured on the 16 others" in first
        assert re.fullmatch(
            r"\*\*Cost:\*\* \d+ s: 2 searches \d+ s, 2 short trainings \d+ s, the full training \d+ s",
            cost,
        )
        # Its search decided little, which is said first, in the words of that search's report.
        of_search = whole.folder / "searches" / f"seed-{best}" / "report.md"
        assert next_step == in_short(of_search)[-1]
        assert next_step.startswith("**Next:** search longer, or move alpha faster")
        advice = going_on(of_search).partition("`darts_bio.train(")[0]
        assert "Most edges of this genotype are undecided" in advice
        assert going_on(whole.folder / "report.md").startswith(advice)
        assert "on the images that you handed over" in going_on(whole.folder / "report.md")


@pytest.mark.parametrize(
    ("name", "digests", "step"),
    [
        ("darts_v2", "aab", "search longer"),
        ("darts_v2", "aaa", "train the chosen"),
        ("amoebanet", "aaa", "search again with fewer skips"),  # half of its edges are poolings
        ("amoebanet", "", "train the chosen"),  # by queries, which train what they compare
    ],
)
def test_further_seeds_are_for_what_a_search_decided(name: str, digests: str, step: str) -> None:
    genotype = load_genotype(name)
    history = [{"epoch": n, "genotype": digest} for n, digest in enumerate(digests, 1)]
    found = Findings(SPACES.build("darts"), genotype, (), history)
    choice = choose([ChoiceCandidate(seed, f"digest {seed}", 0.9, 0.1) for seed in (0, 1)])
    config, training = SearchConfig(seeds=2, choose=True), RetrainConfig(genotype="searches")
    spent = {"2 searches": 1.0}
    text = choice_card(
        config, training, "c", choice, genotype, "91 %", found, 16, spent, "train --seeds 3"
    )
    assert f"- **Next:** {step}" in text
    assert ("`--epochs 100` and another `--out`" in text) == (step == "search longer")
    assert ("compare with cells that have fewer" in text) == bool(digests)
    assert "train --seeds 3" in text
    stopped = choice_card(config, training, "c", choice, genotype, None, found, 16, spent, None)
    assert "- **Next:** go on with the full training" in stopped


def test_how_to_go_on_is_the_recipe_of_the_full_training(tmp_path: Path) -> None:
    images = load_data("digits", train_images=32)
    training = "fast(epochs=3, flip=False)"
    options: dict[str, Any] = {"dataset": "digits", "train_images": 32, "seed": 4, "seeds": 2}
    config = SearchConfig(**options, choose=True, training=training)
    command = _next_command(config, tmp_path / "run", images)
    assert command is not None
    assert "train --genotype run --dataset digits " in command
    for words in (
        "--protocol fast",
        "--train-images 32 --data-seed 4",
        "--epochs 3 --no-flip --seeds 3",
    ):
        assert words in command


class TestStages:
    """Each stage is the ordinary run that its options describe."""

    def test_the_searches(self, data: ImageData, whole: ChoiceResult, tmp_path: Path) -> None:
        out = tmp_path / "alone"
        darts_bio.search(data, seed=6, data_seed=5, out=str(out), **SEARCHES, **QUIET)
        same_states(out, whole.folder / "searches" / "seed-6", "search")

    def test_the_short_trainings(
        self, data: ImageData, whole: ChoiceResult, tmp_path: Path
    ) -> None:
        """Both hold out the images that the first seed draws."""
        for seed, search in whole.searches.seeds.items():
            out = tmp_path / str(seed)
            options: dict[str, Any] = {"holdout": 16, "test_at_end": False, "epochs": 2, **TRAINING}
            alone = darts_bio.train(
                search, data, seed=seed, data_seed=5, out=str(out), **options, **QUIET
            )
            same_states(out, whole.folder / "choice" / f"seed-{seed}", "train")
            assert isinstance(alone, darts_bio.api.TrainResult)
            assert alone.accuracy == whole.candidates[seed].accuracy
            assert alone.measured == "accuracy on held-out images"

    def test_the_full_training(self, data: ImageData, whole: ChoiceResult, tmp_path: Path) -> None:
        assert whole.choice is not None
        chosen, out = whole.choice.chosen.seed, tmp_path / "alone"
        alone = darts_bio.train(
            whole.genotype, data, seed=chosen, data_seed=5, epochs=1, out=str(out), **TRAINING, **QUIET
        )  # fmt: skip
        same_states(out, whole.folder / "final", "train")
        assert isinstance(alone, darts_bio.api.TrainResult)
        assert (
            alone.accuracy == whole.accuracy == metrics(whole.folder / "final")[-1]["test/accuracy"]
        )

    def test_the_same_genotype_twice_is_trained_twice(
        self, data: ImageData, tmp_path: Path
    ) -> None:
        one = {**OPTIONS, "space": "darts(nodes=1, operations=(skip_connect,))", "rules": ("bp",)}
        result = darts_bio.search_and_train(data, out=str(tmp_path / "run"), **one, **QUIET)
        assert result.choice is not None
        assert result.choice.alike == ((5, 6),)
        assert json.loads((result.folder / "choice.json").read_text())["same_genotype"] == [[5, 6]]
        assert "seeds 5, 6 found the same genotype" in (result.folder / "report.md").read_text()
        first, second = (candidate.network for candidate in result.candidates.values())
        assert not torch.equal(next(first.parameters()), next(second.parameters()))


def same_states(one: Path, other: Path, kind: str, data_set: bool = True) -> None:
    """The same weights, alpha, numbers and options, of runs that were begun by other commands, or
    on another data set.
    """
    states = [read_checkpoint(path / "checkpoint.pt", kind) for path in (one, other)]
    for state in states:
        if not data_set:
            del state["subject"]["data set"]
        del state["command"]
        state["config"].pop("genotype", None)  # the name that it was given by
        state["task"].pop("genotype", None)  # with its provenance
    same(*states)
    assert metrics(one) == metrics(other)
    assert load_genotype(one) == load_genotype(other)


class TestTestImages:
    def test_they_are_not_seen_before_the_full_training(
        self, data: ImageData, whole: ChoiceResult, tmp_path: Path
    ) -> None:
        """Other ones change nothing before it, and none are measured."""
        noise = torch.randint(0, 256, (7, *data.train.images.shape[1:]), dtype=torch.uint8)
        other = replace(data, test=Split(noise, torch.arange(7)))
        result = run(other, tmp_path / "run")
        for stage, kind in (("searches", "search"), ("choice", "train")):
            for seed in (5, 6):
                mine, theirs = (r.folder / stage / f"seed-{seed}" for r in (result, whole))
                same_states(mine, theirs, kind, data_set=False)
                assert not any("test" in name for record in metrics(mine) for name in record)
        choices = [(r.folder / "choice.json").read_text() for r in (result, whole)]
        assert choices[0] == choices[1]
        assert result.accuracy * 7 == pytest.approx(round(result.accuracy * 7))
        numbers = [metrics(r.folder / "final")[-1] for r in (result, whole)]
        assert numbers[0]["train/loss"] == numbers[1]["train/loss"]
        assert numbers[0]["test/loss"] != numbers[1]["test/loss"]


class FailAfter(Listener):
    """Fails after so many steps of this process, by default as if it were killed."""

    def __init__(self, steps: int, error: Exception | None = None) -> None:
        self._left, self._error = steps, error or RuntimeError("killed")

    def on_step(self, progress: Progress, images: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error


def same_whole(result: ChoiceResult, whole: ChoiceResult) -> None:
    """The same in all stages, bit for bit."""
    assert result.finished
    for seed in (5, 6):
        for stage, kind in (("searches", "search"), ("choice", "train")):
            path = Path(stage, f"seed-{seed}")
            same_states(result.folder / path, whole.folder / path, kind)
    same_states(result.folder / "final", whole.folder / "final", "train")
    assert result.accuracy == whole.accuracy
    choices = [(r.folder / "choice.json").read_text() for r in (result, whole)]
    assert choices[0] == choices[1]


def test_the_others_go_on_where_one_training_diverges(
    data: ImageData, whole: ChoiceResult, tmp_path: Path
) -> None:
    """In the second step of the first short training."""
    result = run(data, tmp_path / "run", FailAfter(6, DivergedError("the training diverged")))
    assert result.finished
    assert result.choice is not None
    assert (result.choice.chosen.seed, list(result.candidates)) == (6, [6])
    written = json.loads((result.folder / "choice.json").read_text())
    assert written["candidates"][0]["accuracy"] is None
    assert "| diverged | - |" in (result.folder / "report.md").read_text()
    assert result.candidates[6].accuracy == whole.candidates[6].accuracy


class TestResume:
    # In the first and the second search, the first and the second short training, the full one.
    @pytest.mark.parametrize("after", [1, 3, 6, 10, 14])
    def test_a_run_that_was_stopped_at_any_stage(
        self, data: ImageData, whole: ChoiceResult, tmp_path: Path, after: int
    ) -> None:
        stopped = run(data, tmp_path / "run", StopAfter(after))
        assert (stopped.finished, stopped.exit_code) == (False, 130)
        assert math.isnan(stopped.accuracy)
        assert (stopped.choice is None) == (after < 12)
        result = run(data, tmp_path / "run")
        assert result.exit_code == 0
        same_whole(result, whole)
        # Reports name the command that began the run.
        for report in ("report.md", "choice/seed-6/report.md", "final/report.md"):
            assert "seeds=2" in (result.folder / report).read_text()

    @pytest.mark.parametrize("after", [3, 8, 16])
    def test_a_run_that_was_killed(
        self, data: ImageData, whole: ChoiceResult, tmp_path: Path, after: int
    ) -> None:
        with pytest.raises(RuntimeError, match="killed"):
            run(data, tmp_path / "run", FailAfter(after))
        same_whole(run(data, tmp_path / "run"), whole)

    def test_a_run_that_was_killed_as_it_made_a_folder(
        self, data: ImageData, whole: ChoiceResult, tmp_path: Path
    ) -> None:
        with pytest.raises(RuntimeError, match="killed"):
            run(data, tmp_path / "run", FailAfter(5))
        folder = tmp_path / "run" / "choice" / "seed-6"
        folder.mkdir()
        (folder / "genotype.json").write_text("{}")
        (folder / ".config.yaml.partial").write_text("seed")
        same_whole(run(data, tmp_path / "run"), whole)

    def test_a_finished_run_is_left_as_it_is(self, data: ImageData, whole: ChoiceResult) -> None:
        before = {p: p.read_bytes() for p in whole.folder.rglob("*.pt")}
        card = (whole.folder / "report.md").read_text()
        again = run(data, whole.folder)
        assert again.accuracy == whole.accuracy
        assert {p: p.read_bytes() for p in whole.folder.rglob("*.pt")} == before
        assert (whole.folder / "report.md").read_text() == card

    def test_a_stage_goes_on_by_itself(
        self, data: ImageData, whole: ChoiceResult, tmp_path: Path
    ) -> None:
        """As the ordinary run that it is, then the whole one."""
        run(data, tmp_path / "run", StopAfter(6))
        out = str(tmp_path / "run" / "choice" / "seed-5")
        assert darts_bio.train("searches/seed-5", data, out=out, resume=True, **QUIET).finished
        same_whole(run(data, tmp_path / "run"), whole)


WORDS = (
    "--seeds 2 --choose --train-images 64 --epochs 1 --batch-size 16 --channels 2 --choice-epochs 1 "
    '--rules usf --training "auto(epochs=2, channels=2)" --out run'
)


class TestCommand:
    def test_from_end_to_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["search", *shlex.split(WORDS)]) == 0
        said = capsys.readouterr()
        chosen = json.loads(Path("run/choice.json").read_text())["chosen"]
        assert re.search(rf"^chosen: seed {chosen}, the \w+ \w+", said.out, re.MULTILINE)
        accuracy = metrics(Path("run/final"))[-1]["test/accuracy"]
        assert said.out.endswith(f"\ntest accuracy: {100 * accuracy:.2f} %, on 359 images\n")
        assert "choice: seed 1, 2 of 2" in said.err
        assert f"final: seed {chosen}" in said.err
        for place in ("searches/seed-1", "choice/seed-1", "final"):
            names = {path.name.partition(".")[0] for path in Path("run", place).iterdir()}
            assert {"config", "report", "metrics", "checkpoint", "events", "genotype"} <= names
        assert darts_bio.load_run("run").genotype == load_genotype(Path("run/final"))
        trained = darts_bio.load_run("run/choice/seed-1").options
        assert (trained["seed"], trained["data_seed"], trained["holdout"]) == (1, 0, 32)
        # Options of the trainings do not change what is done already; the run says that it is done.
        assert main(["search", "--out", "run", "--resume"]) == 0
        assert f"test accuracy: {100 * accuracy:.2f} %" in capsys.readouterr().out
        assert main(["train", "--out", "run/choice/seed-1", "--resume"]) == 0
        assert "accuracy on held-out images: " in capsys.readouterr().out

    @pytest.mark.slow
    def test_in_two_processes(self, tmp_path: Path) -> None:
        done = call(*torchrun(SEARCH, *shlex.split(WORDS))[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("chosen: seed") == 1
        measured = [metrics(tmp_path / f"run/choice/seed-{seed}")[-1] for seed in (0, 1)]
        written = json.loads((tmp_path / "run/choice.json").read_text())
        assert [c["loss"] for c in written["candidates"]] == [m["valid/loss"] for m in measured]


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--choose", "--choose: expected several searches to choose among, found --seeds 1"),
            ("--seeds 0 --choose", "--seeds: expected at least 1, found 0"),
            ("--seeds 2 --choose --supernet x", "--choose: expected searches that each train"),
            ("--choice-epochs 3", "--choice-epochs: has no say without --choose"),
            ("--training fast", "--training: has no say without --choose"),
            ("--seeds 2 --choose --choice-epochs 0", "--choice-epochs: expected at least 1"),
            ("--seeds 2 --choose --strategy dart", "unknown strategy 'dart'"),
            ("--seeds 2 --choose --training 3", "--training: expected 'name' or"),
            ("--seeds 2 --choose --training fas", "unknown protocol 'fas'"),
            (
                "--seeds 2 --choose --training 'auto(chanels=3)'",
                "unknown option of --training 'chanels': did you mean 'channels'",
            ),
            (
                "--seeds 2 --choose --training 'auto(holdout=3)'",
                "--training: holdout is set by the search, or by the stages of --choose",
            ),
            ("--seeds 2 --choose --training 'auto(lr=-1)'", "--lr: expected at least 0, found -1"),
        ],
    )
    def test_nothing_is_left_behind(
        self, words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        assert message in here(SEARCH, words, tmp_path, monkeypatch, capsys)
        assert list(tmp_path.iterdir()) == []

    def test_from_python(self, data: ImageData, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="call darts_bio.search_and_train"):
            darts_bio.search("digits", seeds=2, choose=True, out=str(tmp_path / "run"), **QUIET)
        with pytest.raises(InputError, match="search_and_train: expected test images beside"):
            darts_bio.search_and_train((data.train.images, data.train.labels), seeds=2, **QUIET)
        with pytest.raises(InputError, match="unknown option 'epoch'"):
            darts_bio.search_and_train("digits", seeds=2, epoch=3, **QUIET)
        assert list(tmp_path.iterdir()) == []

    def test_another_folder_or_another_run(
        self, data: ImageData, whole: ChoiceResult, tmp_path: Path
    ) -> None:
        out = str(whole.folder)
        with pytest.raises(InputError, match="exists and is not empty"):
            darts_bio.search_and_train(data, out=out, **OPTIONS, **QUIET)
        for seeds in (3, 4):
            with pytest.raises(InputError, match=rf"--seeds: expected the 2 of .*, found {seeds}"):
                darts_bio.search_and_train(data, out=out, seeds=seeds, resume=True, **QUIET)
        with pytest.raises(InputError, match="choose was True, is False"):
            darts_bio.search(data, out=out, choose=False, resume=True, **QUIET)
        with pytest.raises(InputError, match="epochs was 2, is 3"):
            darts_bio.search_and_train(data, out=out, choice_epochs=3, resume=True, **QUIET)
        searches = str(whole.folder / "searches")
        with pytest.raises(InputError, match="choose was False, is True"):
            darts_bio.search_and_train(data, out=searches, resume=True, **QUIET)
