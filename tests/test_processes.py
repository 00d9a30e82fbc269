"""Several processes: they do together what one does, go on after a kill, and end with a reason."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import several as several_processes
import torch
from commands import SEARCH, TRAIN, call, torchrun
from PIL import Image
from several import LAUNCHERS, free_port, several

from darts_bio import draws
from darts_bio.cli import main
from darts_bio.config import RetrainConfig
from darts_bio.data import sources
from darts_bio.data.batches import Augmentation, Batches, Normalization
from darts_bio.data.datasets import load_data
from darts_bio.data.sources import InMemory
from darts_bio.distributed import first_says, gathered, summed, text_from_first
from darts_bio.errors import InputError
from darts_bio.networks.cells import DropPath
from darts_bio.process_group import process_group, refuse_differences
from darts_bio.spaces import load_genotype
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.training import retrain
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

CPU = torch.device("cpu")
RUN = shlex.split(
    "--genotype genotype.json --epochs 3 --channels 4 --train-images 96 --batch-size 24 --lr 0.01 "
    "--device cpu --log-every 1 --plugin planned"
)
# At step 6, if HOW says so: what may become of process 1, or time to act for who waits outside.
PLUGIN = """
import os, signal, time
from darts_bio.errors import InputError
from darts_bio.training.retrain import Retraining

whole = Retraining.step

def step(self, t):
    if t >= 6 and os.environ.get("HOW") == "slow":
        time.sleep(0.5)
    if t == 6 and os.environ.get("RANK") == "1":
        if os.environ.get("HOW") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("HOW") == "fail":
            raise InputError("the cable was pulled")
    return whole(self, t)

Retraining.step = step
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a genotype under brsf, whose feedback is drawn at every step, and the
    plug-in.
    """
    folder = tmp_path_factory.mktemp("processes")
    (folder / "genotype.json").write_text(load_genotype("darts_v2").with_rule("brsf").to_json())
    (folder / "planned.py").write_text(PLUGIN)
    return folder


def training_of(number: int, words: list[str]) -> None:
    sys.exit(main(words, command="train"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run by two processes that nothing disturbs."""
    ended = several(2, training_of, [*RUN, "--out", "whole"], place=place)
    assert [process.code for process in ended] == [0, 0], ended
    assert [process.output.count("test accuracy") for process in ended] == [1, 0]
    return place / "whole"


def numbers(run: Path, event: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == event]


def state(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoint.pt", "train")


def test_two_processes_train_as_one_does_that_passes_the_batch_in_two_parts(
    place: Path, whole: Path
) -> None:
    """Batch norm sees the same halves. Its running statistics are the mean over processes, not a
    sequence: these do differ, and with them what is measured between epochs.
    """
    config = RetrainConfig(
        genotype="x", epochs=3, channels=4, layers=3, batch_size=24, lr=0.01, crop_padding=1, flip=False, cutout=0,
        auxiliary=0.0, drop_path=0.0, accumulate=2,
    )  # fmt: skip
    data = load_data("digits", train_images=96)
    task = Retraining.of_genotype(config, load_genotype(place / "genotype.json"), data, CPU)
    losses = []
    for t in range(12):
        if t % 4 == 0:
            task.begin_epoch(t // 4)
        sums = task.step(t)["train"]
        losses.append(sums.totals[0].item() / sums.count)
    assert [record["train/loss"] for record in numbers(whole, "record")] == pytest.approx(
        losses, rel=2e-4
    )
    weights = state(whole)["task"]["network"]
    for name, parameter in task.network.named_parameters():
        assert torch.allclose(weights[name], parameter, atol=2e-4), name


def test_the_measures_are_those_of_all_processes(whole: Path, place: Path) -> None:
    """Counted over the whole test split by the network that was saved."""
    saved = state(whole)["task"]
    data = load_data("digits")
    network = cells_of(saved, place)
    normalized = Normalization(**saved["normalisation"])(data.test.images)
    with torch.no_grad():
        accuracy = (network(normalized).argmax(1) == data.test.labels).double().mean().item()
    assert numbers(whole, "epoch")[-1]["test/accuracy"] == pytest.approx(accuracy, abs=1e-9)


def cells_of(saved: dict[str, Any], place: Path) -> torch.nn.Module:
    from darts_bio.networks import build_network

    network = build_network(load_genotype(place / "genotype.json"), **saved["form"])
    network.load_state_dict(saved["network"])
    return network.eval()


def test_killed_within_an_epoch_and_resumed_it_ends_with_the_same_weights(
    place: Path, whole: Path
) -> None:
    """All processes at once, as by the machine's end, after the first checkpoint."""
    process = subprocess.Popen(
        torchrun(TRAIN, *RUN, "--out", "killed"),
        cwd=place,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOW": "slow"},
    )
    metrics, deadline = place / "killed" / "metrics.jsonl", time.monotonic() + 120
    while (
        not (metrics.exists() and '"step": 6' in metrics.read_text())
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    children = subprocess.run(
        ["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for line in children.splitlines():
        if "--out killed" in line and "torch.distributed" not in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)
    assert 4 <= state(place / "killed")["step"] < 12
    words = ["--out", "killed", "--resume", "--plugin", "planned"]
    ended = several(2, training_of, words, place=place)
    assert [process.code for process in ended] == [0, 0], ended
    one, other = state(whole), state(place / "killed")
    assert one["last"] == other["last"]
    weights = other["task"]["network"]
    assert all(torch.equal(value, weights[name]) for name, value in one["task"]["network"].items())


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            "fail",
            "error: process 0 ends, since process 1 failed: the cable was pulled. The last "
            "checkpoint is whole",
        ),
        pytest.param(
            "kill",
            "error: process 0 ends, since another one ended without a word (killed, perhaps for "
            "its memory).",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_that_dies_ends_the_others_within_a_minute(
    place: Path, how: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOW", how)
    start = time.monotonic()
    done = call(*torchrun(TRAIN, *RUN, "--out", how), cwd=place, python=False)
    assert time.monotonic() - start < 60
    assert done.returncode != 0
    assert reason in done.stderr
    assert ("error: the cable was pulled" in done.stderr) == (how == "fail")
    assert state(place / how)["step"] == 4


FIND = shlex.split(
    "--epochs 3 --channels 4 --layers 3 --train-images 64 --batch-size 8 --rules fa,brsf "
    "--crop-padding 1 --lr 0.01 "
    "--device cpu --log-every 1"
)
SPACE = ["--space", "darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))"]


# Kills process 1 at step 6, the first time that it comes there.
ONCE = """
import os, signal
from darts_bio.training.search import Search

whole = Search.step

def step(self, t):
    if t == 6 and os.environ["RANK"] == "1" and not os.path.exists("killed"):
        os.mkdir("killed")
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, t)

Search.step = step
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes of `several` have: "bit for bit" is promised for one number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def search_of(
    number: int,
    words: list[list[str]],
    killed: int | None = None,
    failing: int | None = None,
    at: int = 6,
) -> None:
    """What one of several processes does: the command, with its own words. At step `at` the process
    `killed` is killed, and the process `failing` fails.
    """
    whole = Search.step

    def step(self: Search, t: int) -> Any:
        if t == at and number == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if t == at and number == failing:
            raise InputError("the cable was pulled")
        return whole(self, t)

    if (killed, failing) != (None, None):
        Search.step = step  # type: ignore[method-assign]
    sys.exit(main(words[number], command="search"))


def task_of(run: Path) -> dict[str, Any]:
    return dict(read_checkpoint(run / "checkpoint.pt", "search")["task"])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same search by two processes, as torchrun starts them and as srun does."""
    place = tmp_path_factory.mktemp("search")
    for launcher in LAUNCHERS:
        words = [*FIND, *SPACE, "--out", launcher]
        ended = several(2, search_of, [words] * 2, place=place, launcher=launcher)
        assert [process.code for process in ended] == [0, 0], ended
        assert "each of 2 processes takes 4 of a batch's 8 images" in ended[0].errors
        assert ended[1].output == ended[1].errors == ""
    return place


class TestSearch:
    def test_a_start_by_srun_is_one_by_torchrun(self, searches: Path) -> None:
        assert same(task_of(searches / "srun"), task_of(searches / "torchrun"))
        assert load_genotype(searches / "srun") == load_genotype(searches / "torchrun")
        report = (searches / "srun" / "report.md").read_text()
        assert "srun python" in report

    def test_it_is_another_search_than_that_of_one_process(self, searches: Path) -> None:
        """Whose batch norms see whole batches; its losses are near."""
        assert main([*FIND, *SPACE, "--out", str(searches / "alone")], command="search") == 0
        names = ("train/loss", "valid/loss")
        alone, shared = (numbers(searches / run, "record") for run in ("alone", "torchrun"))
        assert [one["step"] for one in alone] == [other["step"] for other in shared]
        for one, other in zip(alone, shared, strict=True):
            assert [one[name] for name in names] == pytest.approx(
                [other[name] for name in names], rel=0.3
            )
        assert not same(task_of(searches / "alone"), task_of(searches / "torchrun"))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "out", [["--out", "elastic", "--resume", "auto"], ["--out", "elastic"], []]
    )
    def test_an_elastic_restart_goes_on_and_ends_the_same(
        self, out: list[str], searches: Path
    ) -> None:
        """Also with a folder that is named by its time alone."""
        for folder in ("elastic", "killed", "runs"):
            shutil.rmtree(searches / folder, ignore_errors=True)
        (searches / "once.py").write_text(ONCE)
        words = [*FIND, *SPACE, *out, "--plugin", "once"]
        command = torchrun(SEARCH, *words)
        done = call(*command[:3], "--max-restarts", "1", *command[3:], cwd=searches, python=False)
        assert done.returncode == 0, done.stderr
        assert (searches / "killed").exists()
        assert "goes on from step 4 of 12" in done.stderr
        run = searches / "elastic" if out else next((searches / "runs").iterdir())
        assert same(task_of(run), task_of(searches / "torchrun"))

    @pytest.mark.slow
    def test_an_elastic_restart_leaves_the_run_of_another_job_alone(self, searches: Path) -> None:
        words = [*FIND, *SPACE, "--out", "torchrun"]
        command = torchrun(SEARCH, *words)
        before = (searches / "torchrun" / "checkpoint.pt").read_bytes()
        done = call(*command[:3], "--max-restarts", "1", *command[3:], cwd=searches, python=False)
        assert done.returncode != 0
        assert done.stderr.count("error: --out torchrun: exists and is not empty") == 2
        assert (searches / "torchrun" / "checkpoint.pt").read_bytes() == before

    def test_one_that_is_killed_ends_the_other_with_a_reason(self, searches: Path) -> None:
        start = time.monotonic()
        words = [*FIND, *SPACE, "--out", "killed-one"]
        first, second = several(2, search_of, [words] * 2, 1, place=searches)
        assert time.monotonic() - start < 60
        assert (first.code, second.code) == (2, -signal.SIGKILL)
        assert (
            "error: process 0 ends, since another one ended without a word (killed, perhaps for"
            in first.errors
        )
        assert read_checkpoint(searches / "killed-one" / "checkpoint.pt", "search")["step"] == 4

    def test_saved_at_each_step_killed_and_resumed_it_is_the_same(self, searches: Path) -> None:
        """Batch norms' statistics differ between the processes then, and a save leaves them so."""
        words = [*FIND, *SPACE, "--out", "saved", "--save-every", "0"]
        several(2, search_of, [words] * 2, 1, place=searches)
        saved = read_checkpoint(searches / "saved" / "checkpoint.pt", "search")
        assert saved["step"] == 6
        assert not same(*saved["statistics"])
        ended = several(2, search_of, [[*words, "--resume"]] * 2, place=searches)
        assert [process.code for process in ended] == [0, 0], ended
        one, other = (
            read_checkpoint(searches / run / "checkpoint.pt", "search")
            for run in ("saved", "torchrun")
        )
        assert same(one, other | {"command": one["command"]})
        clock = ("seconds", "images_per_second")
        for event in ("record", "epoch"):
            lines = [numbers(searches / run, event) for run in ("saved", "torchrun")]
            assert len(lines[0]) == len(lines[1])
            for line, expected in zip(*lines, strict=True):
                assert [v for k, v in line.items() if k not in clock] == [
                    v for k, v in expected.items() if k not in clock
                ]

    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            (
                ["--lr", "0.02"],
                "--lr: expected the same in all processes, found 0.01 in process 0 and 0.02 in "
                "process",
            ),
            (
                ["--resume", "auto"],
                "--resume: expected the same in all processes, found False in process 0 and auto",
            ),
            (
                ["--data-dir", "other"],
                "the data set: expected the same in all processes, found 4 training + 2 test images of 3x8x8",
            ),
        ],
    )
    def test_processes_that_were_started_otherwise(
        self, tmp_path: Path, other: list[str], reason: str
    ) -> None:
        words = [*FIND, *SPACE, "--out", "run"]
        if "--data-dir" in other:
            for folder, images in (("data", 2), ("other", 3)):
                for part in ("train", "val"):
                    for name in ("a", "b"):
                        (tmp_path / folder / part / name).mkdir(parents=True)
                        for i in range(images if part == "train" else 1):
                            Image.new("L", (8, 8), i).save(
                                tmp_path / folder / part / name / f"{i}.png"
                            )
            words = shlex.split(
                "--dataset folder --image-size 8 --data-dir data --batch-size 2 --out run"
            )
        ended = several(2, search_of, [words, [*words, *other]], place=tmp_path)
        assert [process.code for process in ended] == [2, 2]
        assert any(f"error: {reason}" in process.errors for process in ended), ended
        assert all("without a word" not in process.errors for process in ended)
        assert not (tmp_path / "run").exists()

    def test_the_first_ends_with_the_reason_of_the_one_that_fails(self, tmp_path: Path) -> None:
        words = [*FIND, *SPACE, "--out", "run"]
        first, second = several(
            2, search_of, [words] * 2, None, 1, 1, place=tmp_path, launcher="srun"
        )
        assert (first.code, second.code) == (2, 2)
        assert second.errors == "error: the cable was pulled\n"
        assert (
            "error: process 0 ends, since process 1 failed: the cable was pulled. The last"
            in first.errors
        )

    @pytest.mark.usefixtures("one_thread")
    def test_seeds_are_spread_over_processes(self, tmp_path: Path) -> None:
        """Three seeds by two processes are what one process makes of each, bit for bit."""
        words = [*FIND, *SPACE, "--epochs", "2", "--seeds", "3", "--seed", "5"]
        ended = several(2, search_of, [[*words, "--out", "spread"]] * 2, place=tmp_path)
        assert [process.code for process in ended] == [0, 0], ended
        assert main([*words, "--out", str(tmp_path / "alone")], command="search") == 0
        for seed in ("seed-5", "seed-6", "seed-7"):
            assert same(task_of(tmp_path / "spread" / seed), task_of(tmp_path / "alone" / seed))
            assert numbers(tmp_path / "spread" / seed, "record")
            assert f"seed {seed[-1]}:" in ended[0].output
        spread, alone = (
            (tmp_path / run / "report.md").read_text().partition("## Recipe")[0].splitlines()
            for run in ("spread", "alone")
        )
        different = [ours for ours, theirs in zip(spread, alone, strict=True) if ours != theirs]
        # All else is the same, what was found and what to do next.
        assert all(line.startswith(("- **Cost:**", "- **Repeat:**")) for line in different)
        assert (
            "2 processes, each with other seeds; shown are the searches of the first"
            in ended[0].errors
        )
        assert ended[1].output == ended[1].errors == ""

    def test_fewer_seeds_than_processes(self, tmp_path: Path) -> None:
        words = [*FIND, *SPACE, "--seeds", "2", "--out", "run"]
        ended = several(3, search_of, [words] * 3, place=tmp_path)
        assert [process.code for process in ended] == [2, 2, 2]
        expected = "error: --seeds: expected at least one for each of 3 processes, found 2; start 2 processes, or use"
        assert any(expected in process.errors for process in ended)
        assert not (tmp_path / "run").exists()


def told(number: int, silent: int | None) -> None:
    with process_group():
        if number == silent:
            time.sleep(3)
            return
        refuse_differences({"x": "1"}, datetime.timedelta(seconds=1))


def test_a_process_that_does_not_say_what_it_was_started_with(tmp_path: Path) -> None:
    ended = several(3, told, None, place=tmp_path)
    assert [process.code for process in ended] == [0, 0, 0]
    ended = several(3, told, 2, place=tmp_path)
    assert all(process.code in (1, 2) for process in ended[:2])
    expected = "InputError: process 2 did not say within 1 s what it was started with"
    assert any(expected in process.errors for process in ended[:2])


def test_a_process_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARTS_BIO_START_SECONDS", "2")
    monkeypatch.setattr(
        several_processes,
        "_variables",
        lambda *_: {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    )
    (ended,) = several(1, told, None, place=tmp_path)
    assert "InputError: process 0: the 2 processes did not all come to localhost:" in ended.errors
    assert (
        "see whether each was started, and whether MASTER_ADDR and MASTER_PORT are the same"
        in ended.errors
    )


def silent_port() -> int:
    """A port on which another program listens, which never says a word; open to the end of the
    tests, since PyTorch goes on waiting there, and writes a page when it is closed.
    """
    other = socket.socket()
    other.bind(("localhost", 0))
    other.listen()
    port = int(other.getsockname()[1])
    other.detach()
    return port


class TestStart:
    """Whatever is wrong with the start of several processes ends in one line, and soon."""

    def said(self, capsys: pytest.CaptureFixture[str], started: float) -> str:
        assert main([*FIND, *SPACE, "--out", "never"], command="search") == 2
        assert time.monotonic() - started < 15
        (line,) = capsys.readouterr().err.splitlines()
        return line

    @pytest.mark.parametrize(
        ("variables", "reason"),
        [
            ({"RANK": "x"}, "the environment variable RANK: expected a whole number, found 'x'"),
            (
                {"RANK": "5"},
                "RANK: expected a number from 0 to 1, since there are 2 processes, found",
            ),
            ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE: expected a whole number"),
            ({"MASTER_PORT": "99999"}, "MASTER_PORT: expected a number from 1 to 65535"),
            ({"MASTER_ADDR": None}, "several processes, but MASTER_ADDR does not say where they"),
            ({"DARTS_BIO_START_SECONDS": "0"}, "DARTS_BIO_START_SECONDS: expected a number of at"),
            ({"RANK": "1"}, "process 1: the 2 processes did not all come to localhost:"),
            ({}, "process 0: the 2 processes did not all come to localhost:"),
            (
                {"RANK": "1", "PORT": "taken"},
                "process 1: the 2 processes did not all come to local",
            ),
            ({"PORT": "taken"}, "where the processes are to meet, is in use by another program"),
        ],
    )
    def test_one_line_says_what_is_wrong(
        self,
        variables: dict[str, str | None],
        reason: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        port = silent_port() if variables.get("PORT") == "taken" else free_port()
        right = {
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port), "DARTS_BIO_START_SECONDS": "1",
        }  # fmt: skip
        for name, value in (right | variables).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        assert reason in self.said(capsys, time.monotonic())


class Two:
    """Two processes, one at a time: the modules that ask are told what each would be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def be(self, rank: int, size: int = 2) -> None:
        for module in (draws, sources, retrain):
            self._monkeypatch.setattr(module, "world_size", lambda: size)
            if hasattr(module, "rank"):
                self._monkeypatch.setattr(module, "rank", lambda: rank)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Two:
    return Two(monkeypatch)


class TestShares:
    """What each of two processes takes of a batch, put side by side, is what one takes."""

    def test_of_batches(self) -> None:
        split = load_data("digits").train
        options: dict[str, Any] = {"seed": 3, "name": "train", "device": CPU}
        parts = [
            Batches(
                split,
                12,
                Normalization.of(split.images),
                Augmentation(1, True, 3),
                share=share,
                **options,
            )
            for share in ((0, 1), (0, 3), (1, 3), (2, 3))
        ]
        for t in (0, 1, 200):
            whole, *shares = (part.batch(t) for part in parts)
            assert torch.equal(torch.cat([x for x, _ in shares]), whole[0])
            assert torch.equal(torch.cat([labels for _, labels in shares]), whole[1])

    def test_of_images_that_are_measured(self, two: Two) -> None:
        data = load_data("digits")
        config = RetrainConfig(genotype="x", batch_size=8, cutout=0)
        labels = []
        for rank in range(2):
            two.be(rank)
            labels.append(torch.cat([y for _, y in InMemory(data, config, CPU).measured("test")]))
        assert [len(part) for part in labels] == [180, 179]
        assert torch.equal(torch.cat(labels).sort().values, data.test.labels.sort().values)

    def test_of_drop_path(self, two: Two) -> None:
        drop, x = DropPath(), torch.randn(6, 2, 3, 3)
        drop.probability = 0.5
        torch.manual_seed(0)
        whole = drop(x)
        parts = []
        for rank in range(2):
            two.be(rank)
            torch.manual_seed(0)
            parts.append(drop(x[3 * rank :][:3]))
        assert torch.equal(torch.cat(parts), whole)


def test_a_batch_that_cannot_be_shared_out(two: Two) -> None:
    config = RetrainConfig(
        genotype="x", batch_size=30, cutout=0, auxiliary=0.0, channels=4, layers=3
    )
    data, genotype = load_data("digits", train_images=64), load_genotype("darts_v2")
    two.be(0, size=4)
    expected = r"expected a multiple of 4, since 4 process\(es\) share it in 1 part\(s\) each, found 30; use .* 32"
    with pytest.raises(InputError, match=expected):
        Retraining.of_genotype(config, genotype, data, CPU)
    two.be(0, size=15)
    with pytest.raises(
        InputError, match=r"multiple of 30, since 15 process\(es\) share it in 2 part"
    ):
        Retraining.of_genotype(replace(config, batch_size=64, accumulate=2), genotype, data, CPU)
    with pytest.raises(InputError, match=r"expected an even number of images for each of 15"):
        Retraining.of_genotype(replace(config, batch_size=45, mixup=0.2), genotype, data, CPU)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux' list of threads")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    # One that does, and still lets go of a tensor while the interpreter ends, aborts the process.
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "import torch\n"
        "from darts_bio.distributed import summed\n"
        "from darts_bio.process_group import process_group\n"
        "def threads(): return sorted(path.read_text() for path in "
        "Path('/proc/self/task').glob('*/comm'))\n"
        "with process_group():\n"
        "    import torch._dynamo\n"
        "    summed(torch.zeros(1))\n"
        "    during = threads()\n"
        "left = [name for name in threads() if 'gloo' in name]\n"
        # In one piece, since two processes write.
        "print(f\"{left} {any('gloo' in name for name in during)}\\n\", end='')\n"
    )
    done = call(*torchrun("script.py"), cwd=tmp_path, python=False)
    assert done.stdout.split("\n") == ["[] True", "[] True", ""], done.stderr


class TestEnvironment:
    def test_an_allocation_of_slurm_is_not_yet_several_processes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_NTASKS", "4")
        with process_group():
            assert gathered(1) == [1]

    def test_srun_has_to_say_where_the_processes_meet(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "SLURM_STEP_NUM_TASKS": "4",
            "SLURM_NTASKS": "4",
            "SLURM_PROCID": "1",
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(
            InputError, match="MASTER_ADDR does not say where they meet; start them by torchrun, or"
        ):
            process_group().__enter__()

    @pytest.mark.slow
    def test_srun_numbers_the_processes(self, tmp_path: Path) -> None:
        code = (
            "import torch\n"
            "from darts_bio.distributed import rank, summed, world_size\n"
            "from darts_bio.process_group import process_group\n"
            "with process_group(): print(rank(), world_size(), summed(torch.tensor(rank() + "
            "1)).item())"
        )
        here = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        here |= {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "29513",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
        }
        tasks = [
            subprocess.Popen(
                [sys.executable, "-c", code], env=here | {"SLURM_PROCID": i}, stdout=-1, text=True
            )
            for i in "01"
        ]
        assert [task.communicate(timeout=120)[0].strip() for task in tasks] == ["0 2 3", "1 2 3"]

    def test_alone_everything_is_as_it_was_given(self) -> None:
        assert (first_says(True), text_from_first("x"), gathered({"a": 1})) == (
            True,
            "x",
            [{"a": 1}],
        )
        assert summed(torch.tensor(3.0)) == 3
