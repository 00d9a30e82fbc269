"""A run that diverges goes back to the beginning of the epoch, and on with half the learning rate."""

from __future__ import annotations

import io
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from killing import equal, events_of, killed, operations, records_of, same_runs
from several import several

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.monitoring.boards import FitBoard
from darts_bio.runs.rollbacks import going_back
from darts_bio.runs.running import Watching, perform
from darts_bio.runs.search import search
from darts_bio.runs.train import train
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.status import read_status
from darts_bio.training import optim
from darts_bio.training.engine import DivergedError, never
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers, Sums
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

pytestmark = pytest.mark.filterwarnings("ignore:.*the run goes back")
EPOCHS, STEPS = 3, 4
CONFIG = SearchConfig(log_every=3, rollbacks=4, save_every=300.0)
RATES = (1e10, 1e90, 1e90)
"""By epochs: a step multiplies the weight by the rate, with some chance in it."""


class Growth:
    """A task whose weight is multiplied by a rate in each step, until it is more than a float."""

    epochs, steps_per_epoch, images_per_step = EPOCHS, STEPS, 1
    finished, measures, subject = False, True, {"data set": "growth"}

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.weight = torch.ones(1, dtype=torch.float64)
        self.scale = self.rate = 1.0

    def slow_down(self, factor: float) -> None:
        self.scale = factor

    def cause(self) -> str:
        return ""

    def begin_epoch(self, epoch: int) -> None:
        # Half the rate is half the exponent.
        self.rate = RATES[epoch] ** self.scale

    def synchronize(self) -> None: ...

    def statistics(self) -> list[torch.Tensor]:
        return []

    def learning_rates(self) -> Numbers:
        return {"lr/weights": self.rate}

    def step(self, t: int) -> dict[str, Sums]:
        self.weight = self.weight * self.rate * (1 + torch.rand(1, dtype=torch.float64))
        return {"train": Sums(("train/loss",), self.weight.clone(), 1)}

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        return {"test/loss": self.weight.item()}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


def expected() -> tuple[list[tuple[int, float, float]], float, int]:
    """The same by a plain loop: (step, loss, rate) of each record, the last weight, the rollbacks."""
    torch.manual_seed(0)
    weight, rollbacks, epoch = 1.0, 0, 0
    records: list[tuple[int, float, float]] = []
    losses: list[float] = []  # since the last record
    while epoch < EPOCHS:
        before = weight, list(records), list(losses), torch.get_rng_state()
        rate = RATES[epoch] ** (0.5**rollbacks)
        for step in range(epoch * STEPS + 1, (epoch + 1) * STEPS + 1):
            weight *= rate
            weight *= 1 + torch.rand(1, dtype=torch.float64).item()
            losses.append(weight)
            if step % CONFIG.log_every == 0:
                records.append((step, sum(losses) / len(losses), rate))
                losses = []
        epoch += 1
        if not math.isfinite(weight):
            weight, records, losses, state = before
            torch.set_rng_state(state)
            rollbacks, epoch = rollbacks + 1, epoch - 1
    return records, weight, rollbacks


class Ask(Listener):
    """Asks for a stop after so many steps of this process."""

    def __init__(self, after: int | None) -> None:
        self.left = after

    def on_step(self, progress: Progress, images: int) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGTERM)


def grow(
    out: Path, stop_after: int | None = None, console: TextIO | None = None, **options: Any
) -> None:
    """The command, or the same with --resume."""
    listener = Ask(stop_after)
    config = replace(CONFIG, out=str(out), resume=(out / "config.yaml").exists(), **options)
    watching = Watching(console, tensorboard=True, listener=listener)

    @going_back
    def run(config: SearchConfig, opened: Callable[[], RunFolder], number: int) -> Any:
        folder = opened()
        return perform(
            Growth(), folder, [], watching, lambda _: ["begins"], lambda: FitBoard(folder), facts={}
        )

    run(config, lambda: RunFolder.open("search", config, "grow"), 0)


def ended(out: Path, **options: Any) -> int | None:
    """The exit code of the command in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=grow, args=(out,), kwargs=options)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert not killed(lambda: grow(out))
    return out


class TestOneProcess:
    def test_it_is_what_a_plain_loop_does(self, whole: Path) -> None:
        records, weight, rollbacks = expected()
        assert rollbacks == 3  # one in the second epoch, two in the third
        found = records_of(whole)["metrics.jsonl"]
        steps = [(r["step"], r["train/loss"], r["lr/weights"]) for r in found if "lr/weights" in r]
        assert [step for step, _, _ in steps] == [step for step, _, _ in records]
        for one, other in zip(steps, records, strict=True):
            assert one == pytest.approx(other, rel=1e-12)
        assert [r["step"] for r in found if r["event"] == "epoch"] == [4, 8, 12]
        state = read_checkpoint(whole / "checkpoint.pt", "search")
        assert state["rollbacks"] == 3
        assert state["task"]["weight"].item() == pytest.approx(weight, rel=1e-12)
        tags = [(step, tag) for step, tag, _ in events_of(whole).elements()]
        assert sorted(step for step, tag in tags if tag == "epoch/test_loss") == [4, 8, 12]

    def test_saved_at_each_step_it_is_the_same(self, whole: Path, tmp_path: Path) -> None:
        grow(tmp_path / "run", save_every=0.0)
        same_runs(tmp_path / "run", whole)

    @pytest.mark.parametrize("save_every", [0.0, 300.0])
    def test_stopped_after_any_step_it_is_the_same(
        self, whole: Path, tmp_path: Path, save_every: float
    ) -> None:
        codes = []
        for after in range(1, 16, 3):
            out = tmp_path / f"{after}"
            codes.append(ended(out, stop_after=after, save_every=save_every))
            assert ended(out, save_every=save_every) == 0
            same_runs(out, whole)
        assert set(codes) <= {0, -signal.SIGTERM}

    def test_killed_at_some_file_operations_it_is_the_same(
        self, whole: Path, tmp_path: Path
    ) -> None:
        work = partial(grow, save_every=0.0)
        made = operations(lambda: work(tmp_path / "counted"))
        for at in range(10, made, 61):
            out = tmp_path / f"{at}"
            assert killed(partial(work, out), at)
            assert not killed(partial(work, out)), at
            same_runs(out, whole)

    @pytest.mark.slow
    def test_killed_at_any_file_operation_it_is_the_same(self, whole: Path, tmp_path: Path) -> None:
        work = partial(grow, save_every=0.0)
        made = operations(lambda: work(tmp_path / "counted"))
        for at in range(6, made + 1):
            out = tmp_path / f"{at}"
            assert killed(partial(work, out), at)
            assert not killed(partial(work, out)), at
            same_runs(out, whole)

    def test_the_one_before_stands_in_for_one_that_is_damaged(
        self, whole: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        grow(out, stop_after=6, save_every=0.0)
        assert read_checkpoint(out / "checkpoint-before.pt", "search")["step"] == 4
        (out / "checkpoint.pt").unlink()
        with pytest.warns(UserWarning, match="goes on from checkpoint-before.pt, of step 4"):
            grow(out)
        same_runs(out, whole)

    def test_no_more_than_so_many(self, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        with (
            pytest.warns(
                UserWarning, match=r"is inf at step \d; .* 1/2 of the.*\(rollback 1 of 1\)"
            ),
            pytest.raises(
                DivergedError, match=r"is inf at step 1\d: .* --resume --rollbacks 4, or"
            ),
        ):
            grow(out, rollbacks=1)
        assert (read_status(out) or {})["state"] == "dead"
        state = read_checkpoint(out / "checkpoint.pt", "search")
        assert (state["step"], state["rollbacks"]) == (8, 1)
        grow(out)
        same_runs(out, whole)

    def test_in_vain_no_more_are_advised(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half of infinity is infinity."""
        monkeypatch.setattr("test_rollbacks.RATES", (1.0, math.inf, 1.0))
        out, advice = tmp_path / "run", "diverged; a smaller --lr in a new --out"
        for options in ({"rollbacks": 2}, {"rollbacks": 3}):
            with pytest.raises(DivergedError, match=advice):
                grow(out, **options)
        assert (read_status(out) or {})["reason"].endswith(advice)

    def test_the_console_says_each_in_one_line(self, tmp_path: Path) -> None:
        stream = io.StringIO()
        grow(tmp_path / "run", console=stream)
        lines = stream.getvalue().splitlines()
        assert lines[0] == "begins"
        kinds = ["epoch", "warning", "epoch", "warning", "warning", "epoch", "time"]
        for kind, line in zip(kinds, lines[1:], strict=True):
            assert kind in line.split(":")[0]

    def test_a_run_without_them_can_be_given_some(self, tmp_path: Path) -> None:
        """It goes back to the last checkpoint, where none begins an epoch."""
        out = tmp_path / "run"
        with pytest.raises(DivergedError):
            grow(out, rollbacks=0, save_every=0.0)
        at = read_checkpoint(out / "checkpoint.pt", "search")["step"]
        assert at % STEPS
        grow(out, rollbacks=4)
        state = read_checkpoint(out / "checkpoint.pt", "search")
        assert state["step"] == 12
        assert [r["step"] for r in records_of(out)["metrics.jsonl"] if r["event"] == "epoch"] == [
            4,
            8,
            12,
        ]

    def test_a_stop_in_the_step_that_diverges_ends_the_process_and_loses_nothing(
        self, whole: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        assert ended(out, stop_after=7, save_every=0.0) == -signal.SIGTERM
        assert (read_status(out) or {})["state"] == "stopped"
        state = read_checkpoint(out / "checkpoint.pt", "search")
        assert (state["step"], state["rollbacks"]) == (4, 1)
        grow(out)
        same_runs(out, whole)


GENOTYPE = (
    "Genotype(normal=[('sep_conv_3x3_br', 0), ('dil_conv_3x3_br', 1)], normal_concat=[2],"
    "reduce=[('sep_conv_3x3_br', 0), ('max_pool_3x3', 1)], reduce_concat=[2])"
)
SIZES: dict[str, Any] = {
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "log_every": 1,
    "crop_padding": 1,
    "epochs": 2,
    "save_every": 0.0,
    "device": "cpu",
}
SEARCH = SearchConfig(
    space="darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))",
    rules=("usf", "brsf"),
    **SIZES,
)
TRAIN = RetrainConfig(
    genotype=GENOTYPE, drop_path=0.3, auxiliary=0.0, cutout=3, optimizer="nesterov", **SIZES
)
AT = 2
"""The step of the second epoch that spoils a weight."""


def spoilt(kind: type[Search] | type[Retraining]) -> None:
    """Have a weight be no number after a step of the second epoch at the rate that was asked for."""
    step = kind.step

    def spoil(self: Any, t: int) -> Any:
        sums = step(self, t)
        if (
            t % self.steps_per_epoch == AT
            and t > self.steps_per_epoch
            and self.optimizer.scale == 1
        ):
            with torch.no_grad():
                self.optimizer.weights[0].view(-1)[0] = torch.nan
        return sums

    kind.step = spoil  # type: ignore[method-assign]


def slower(kind: type[Search] | type[Retraining]) -> None:
    """The oracle: half the rate from the second epoch on, and nothing that is spoilt."""
    asked_for = optim.learning_rate

    def half(config: Any, epoch: int, phase: Any = None) -> float:
        return asked_for(config, epoch, phase) / (2 if epoch > 0 else 1)

    optim.learning_rate = half


def make(config: Any, out: Path, change: Callable[[Any], None]) -> None:
    """Make a run, in a fork, which `change` has changed the code of."""
    is_search = isinstance(config, SearchConfig)
    change(Search if is_search else Retraining)
    data = load_data("digits", train_images=64 if is_search else 32)
    config = replace(config, out=str(out))
    if is_search:
        search(config, "run", data)
    else:
        train(config, "run", None, data)


def of_process(number: int, config: Any, out: Path, change: Callable[[Any], None]) -> None:
    make(config, out, change)
    sys.exit(0)


def same_but_for_the_count(back: Path, straight: Path, kind: str) -> None:
    first, second = (read_checkpoint(run / "checkpoint.pt", kind) for run in (back, straight))
    assert (first.pop("rollbacks"), second.pop("rollbacks")) == (1, 0)
    assert equal(first, second)
    assert records_of(back) == records_of(straight)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SEARCH, id="search"),
        pytest.param(TRAIN, id="training", marks=pytest.mark.slow),
        pytest.param(
            replace(SEARCH, strategy="eg(population=4, samples=3, batches=1)"),
            id="eg",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            replace(TRAIN, ema=0.9, optimizer="adamw", lr=0.001),
            id="ema, adamw",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_is_a_run_with_half_the_rate_from_there_on(config: Any, tmp_path: Path) -> None:
    kind = "search" if isinstance(config, SearchConfig) else "train"
    for name, change in (("back", spoilt), ("straight", slower)):
        assert not killed(partial(make, replace(config, rollbacks=1), tmp_path / name, change))
    same_but_for_the_count(tmp_path / "back", tmp_path / "straight", kind)
    said = "diverged and went back: at the end with 0.5 of the weights' learning rate"
    assert said in (tmp_path / "back" / "report.md").read_text()


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        pytest.param(TRAIN, "train", id="training"),
        pytest.param(SEARCH, "search", id="search", marks=pytest.mark.slow),
    ],
)
def test_two_processes_go_back_together(config: Any, kind: str, tmp_path: Path) -> None:
    for name, change in (("back", spoilt), ("straight", slower)):
        arguments = (replace(config, rollbacks=1), tmp_path / name, change)
        ended = several(2, of_process, *arguments, place=tmp_path)
        assert [process.code for process in ended] == [0, 0], ended
    same_but_for_the_count(tmp_path / "back", tmp_path / "straight", kind)


def test_a_stage_goes_back_alone(tmp_path: Path) -> None:
    config = replace(
        SEARCH, stages=("stage", "stage(candidates=2)"), rollbacks=1, epochs=2, save_every=300.0
    )
    assert not killed(partial(make, config, tmp_path / "run", spoilt))
    counts = [
        read_checkpoint(tmp_path / "run" / f"stage-{n}" / "checkpoint.pt", "search")["rollbacks"]
        for n in (1, 2)
    ]
    assert counts == [1, 1]


def test_a_search_by_queries_has_none(tmp_path: Path) -> None:
    config = replace(SEARCH, strategy="random_search", queries=2, epochs=1, rollbacks=1)
    with pytest.raises(InputError, match="--rollbacks: has no say with --strategy random_search"):
        make(config, tmp_path / "run", lambda kind: None)
