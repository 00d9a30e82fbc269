"""Send a run a signal in a phase of it: at a call of a function, not at a moment."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from several import import_for_forks

from darts_bio.cli import main
from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data import sources
from darts_bio.data.batches import Batches
from darts_bio.monitoring.boards import FitBoard
from darts_bio.reports import page
from darts_bio.runs import search as search_runs
from darts_bio.runs.files import MetricsFile
from darts_bio.runs.search import SearchFiles
from darts_bio.storage import run_folder
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.status import StatusFile
from darts_bio.training import retrain
from darts_bio.training.individuals import Individuals
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

EPOCHS, STEPS = 2, 2
"""Of the runs below: epochs, and steps of each."""
_SIZES: dict[str, Any] = {
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "log_every": 1,
    "crop_padding": 1,
    "epochs": EPOCHS,
    "dataset": "digits",
    "device": "cpu",
}
_SEARCH = SearchConfig(
    space="darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))",
    rules=("usf", "brsf"),
    train_images=32,
    **_SIZES,
)
SIGNALED: dict[str, SearchConfig | RetrainConfig] = {
    "search": replace(_SEARCH, regularizers=("warmup(epochs=1)",)),
    "eg": replace(
        _SEARCH,
        strategy="eg(population=4, samples=3, batches=1)",
        regularizers=("warmup(epochs=0)",),
    ),
    "darts_pt": replace(_SEARCH, strategy="darts_pt(share=0.4, batches=1)"),
    "train": RetrainConfig(
        genotype="darts_v2",
        drop_path=0.3,
        auxiliary=0.0,
        cutout=3,
        alignment_every=1,
        warmup=1,
        train_images=16,
        **_SIZES,
    ),
}
"""The runs that signals are sent to; a checkpoint is due at the end of an epoch and at a stop."""

Outcome = Literal["stops", "dies", "ends"]


@dataclass(frozen=True)
class Phase:
    """A call of a function: of what `owner` calls `name`, the call number `at`, counted from 1.

    `outcome` says what becomes of a run that is sent a signal there. It "stops" and tells so by its
    exit code; it "dies" of the signal where it has nothing to save; or it "ends" as it always does,
    since it has made its last step.
    """

    owner: Any
    name: str
    at: int = 1
    outcome: Outcome = "stops"

    def exit_code(self, number: signal.Signals) -> int:
        """The exit code of the process as Python tells it: negative for one that died."""
        if self.outcome == "ends":
            return 0
        # Of Ctrl-C Python makes an exception, which the commands end in good order by.
        return 128 + number if self.outcome == "stops" or number == signal.SIGINT else -number


def _phases(task: type[Search] | type[Retraining], data: Phase, **more: Phase) -> dict[str, Phase]:
    """The phases that all runs have, and those of one kind."""
    last = EPOCHS * STEPS
    return {
        "reading data": data,
        "start": Phase(task, "__init__", outcome="dies"),
        "new folder": Phase(run_folder, "new_folder", outcome="dies"),
        "first checkpoint": Phase(RunFolder, "save"),
        "status": Phase(StatusFile, "begin"),
        "warm-up": Phase(task, "step"),
        "step": Phase(task, "step", STEPS + 1),
        "update": Phase(WeightOptimizer, "step", STEPS + 1),
        "record": Phase(MetricsFile, "on_record", STEPS + 1),
        "last step": Phase(task, "step", last, "ends"),
        "end of an epoch": Phase(task, "end_epoch"),
        "records of an epoch": Phase(MetricsFile, "on_epoch"),
        "checkpoint": Phase(RunFolder, "save", 2),
        "checkpoint takes its place": Phase(RunFolder, "_keep_before", 2),
        "summary": Phase(FitBoard, "conclude", outcome="ends"),
        "report": Phase(page, "write_report", outcome="dies"),
        **more,
    }


_OF_SEARCH = {
    "data": Phase(search_runs, "load_data", outcome="dies"),
    "batch": Phase(Batches, "batch", 3),
    "derivation": Phase(Search, "genotype"),
    "last derivation": Phase(SearchFiles, "write", EPOCHS + 1, "dies"),
}
PHASES: dict[str, dict[str, Phase]] = {
    "search": _phases(Search, **_OF_SEARCH),
    # These leave between two measures, and measure anew. No epoch is a warm-up.
    "eg": {
        "first measure": Phase(Individuals, "measure"),
        "a later measure": Phase(Individuals, "measure", 2),
        "end of an epoch": Phase(Search, "end_epoch"),
        "last epoch's measure": Phase(Individuals, "measure", 4),
    },
    "darts_pt": {
        "first measure": Phase(Individuals, "measure"),
        "a later measure": Phase(Individuals, "measure", 2),
        "end of an epoch": Phase(Search, "end_epoch"),
    },
    "train": _phases(
        Retraining,
        Phase(sources, "load_data", outcome="dies"),
        batch=Phase(Batches, "batch", 3),
        test=Phase(retrain, "evaluate"),
        **{"last test": Phase(retrain, "evaluate", EPOCHS, "ends")},
    ),
}
"""The phases of a run by its kind."""


def signaled(
    config: SearchConfig | RetrainConfig,
    out: Path,
    phase: Phase | None = None,
    number: signal.Signals = signal.SIGTERM,
) -> tuple[int | None, int]:
    """Make a run by its command, or go on with it, in a process that is sent a signal in a phase.

    What it prints goes into a file beside `out`. Return its exit code, negative if it died of the
    signal, and the number of steps that it began.
    """
    import_for_forks()
    file = out.with_name(f"{out.name}.yaml")
    file.write_text(replace(config, out=None).to_yaml())
    words = ["--config", str(file), "--out", str(out), "--resume", "auto"]
    context: Any = multiprocessing.get_context("fork")
    begun = context.Value("i", 0, lock=False)
    process = context.Process(
        target=_process, args=(words, config.command, out, phase, number, begun)
    )
    process.start()
    process.join()
    return process.exitcode, begun.value


def saved_step(out: Path, kind: str) -> int:
    """The step of a run's checkpoint, "search" or "train"; 0 if there is none."""
    path = out / "checkpoint.pt"
    return int(read_checkpoint(path, kind)["step"]) if path.exists() else 0


def files_of(out: Path) -> set[str]:
    """The names of a run's files; those of TensorBoard, one for each start, have one name."""
    return {path.name.partition("tfevents")[0] for path in out.iterdir()}


def _process(
    words: list[str],
    command: str,
    out: Path,
    phase: Phase | None,
    number: signal.Signals,
    begun: Any,
) -> None:
    torch.set_num_threads(1)
    written = os.open(out.with_name(f"{out.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(written, descriptor)
    # Under nohup or in the background signals are ignored, and stay so.
    for each in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [command]

    def wrapped(function: Any, before: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            before()
            return function(*args, **options)

        return call

    def count() -> None:
        begun.value += 1

    for task in (Search, Retraining):
        task.step = wrapped(task.step, count)  # type: ignore[method-assign]
    if phase is not None:
        calls = 0

        def send() -> None:
            nonlocal calls
            calls += 1
            if calls == phase.at:
                os.kill(os.getpid(), number)

        setattr(phase.owner, phase.name, wrapped(getattr(phase.owner, phase.name), send))
    sys.exit(main(words, command=command))
