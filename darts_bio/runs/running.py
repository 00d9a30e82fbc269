"""What searches and trainings share: who listens, how the folder is found, runs of several
seeds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TextIO, TypeVar

from darts_bio.config import CONFIG_FILE, FitConfig, flag
from darts_bio.config.files import read_yaml
from darts_bio.distributed import (
    apart,
    first_says,
    gathered,
    patient_group,
    rank,
    refuse_differences,
    world_size,
)
from darts_bio.errors import InputError
from darts_bio.invocation import watch_line
from darts_bio.monitoring.boards import FitBoard
from darts_bio.monitoring.console import FitConsole
from darts_bio.runs.files import MetricsFile
from darts_bio.runtime import code_identity, stop_on_signals
from darts_bio.training.engine import Listener, Listeners, Numbers, Outcome, Progress, Task, fit
from darts_bio.training.run_folder import RunFolder, write_text

C = TypeVar("C", bound=FitConfig)


@dataclass(frozen=True)
class Watching:
    """Who is shown a run while it goes on: `console` (None for nobody), TensorBoard, and a listener
    of the user's.
    """

    console: TextIO | None = None
    tensorboard: bool = False
    listener: Listener | None = None


@dataclass(frozen=True, repr=False)
class Result:
    """What a run left.

    `epochs` holds, for each epoch, what was measured in it and at its end (`train/loss`,
    `test/accuracy`, ...). `step` counts the updates of the weights. `finished` tells whether the
    run came to its end; one that was stopped goes on by `resume=True`. `exit_code` is what a shell
    is told: 0, or 128 and the number of the signal.
    """

    folder: Path
    epochs: tuple[Numbers, ...]
    step: int
    finished: bool
    exit_code: int

    def __repr__(self) -> str:
        last = self.epochs[-1] if self.epochs else {}
        numbers = ", ".join(
            f"{name}={value:.4g}"
            for name, value in last.items()
            if "/" in name and "lr/" not in name
        )
        state = "" if self.finished else ", stopped"
        return f"{type(self).__name__}({str(self.folder)!r}, {len(self.epochs)} epochs{state}; {numbers})"


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class SeedResults(Generic[R]):
    """What the runs of several seeds left: the result of each, and the folder in which their
    folders lie.
    """

    folder: Path
    seeds: Mapping[int, R]

    @property
    def finished(self) -> bool:
        return all(result.finished for result in self.seeds.values())

    @property
    def exit_code(self) -> int:
        return max(result.exit_code for result in self.seeds.values())


OF_A_MACHINE = ("data_dir", "device", "workers")
"""Options that may differ from machine to machine."""


def refuse_other_start(config: FitConfig) -> None:
    """Raise InputError, in all processes, if they were not all started with the same options and
    code.
    """
    options = {
        flag(name): str(value) for name, value in asdict(config).items() if name not in OF_A_MACHINE
    }
    refuse_differences({"the command": config.command, "the code": code_identity(), **options})


def settled(config: C) -> C:
    """Decide whether a run goes on where it was left to circumstances: one process says so for all.

    Raises InputError if a run of several seeds goes on with fewer of them, or that of one with
    several.
    """
    if config.resume == "auto":
        begun = rank() == 0 and config.out is not None and Path(config.out, CONFIG_FILE).is_file()
        config = replace(config, resume=first_says(begun))
    if config.resume:
        there = read_yaml(Path(config.out or "", CONFIG_FILE), type(config)).get("seeds", 1)
        if there == 1 and config.seeds > 1:
            raise InputError(
                f"--seeds: {config.out} is the run of one seed, found {config.seeds}; start anew "
                "in another --out"
            )
        if config.seeds < there:
            raise InputError(
                f"--seeds: expected at least the {there} of {config.out}, found {config.seeds}"
            )
    return config


def perform(
    task: Task,
    folder: RunFolder,
    files: Sequence[Listener],
    watching: Watching,
    introduction: Callable[[Progress], Sequence[str]],
    board: Callable[[], FitBoard],
    news: Callable[[], Iterable[str]] = tuple,
    extra: Callable[[Progress], Numbers] = lambda progress: {},
) -> tuple[Outcome, int]:
    """Train a task to its end, or until it is stopped; return its outcome and the exit code.

    `files` write the folder, and `watching` shows it; of several processes the first alone does
    either. `introduction` and `news` are the lines of a `FitConsole`; `extra` measures what
    listeners are told beside an epoch's numbers.
    """
    config = folder.config
    assert isinstance(config, FitConfig)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        listeners: list[Listener] = []
        if rank() == 0:
            listeners += [MetricsFile(folder), *files]
            if watching.tensorboard:
                listeners.append(stack.enter_context(board()))
            if watching.console is not None:
                listeners.append(
                    stack.enter_context(FitConsole(watching.console, introduction, news))
                )
            if watching.listener is not None:
                listeners.append(watching.listener)
        told = _Extended(extra, *listeners) if listeners else Listener()
        outcome = fit(task, folder, told, stop, log_every=config.log_every)
        return outcome, 0 if outcome.finished else stop.exit_code


class _Extended(Listeners):
    """Listeners that are told further numbers of an epoch."""

    def __init__(self, extra: Callable[[Progress], Numbers], *listeners: Listener) -> None:
        super().__init__(*listeners)
        self._extra = extra

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        super().on_epoch(progress, numbers | self._extra(progress))


def each_seed(
    config: C,
    open_folder: Callable[[C], RunFolder],
    run: Callable[[C, Callable[[], RunFolder], int], R],
    spread: bool = False,
) -> tuple[RunFolder, dict[int, R]]:
    """Make a run for each seed, in a folder `seed-N` of its own; those that are there are gone on
    with.

    `run(config, open, number)` makes the one of that number and opens its folder once it stands, so
    that bad input leaves nothing behind. Stops after a run that was stopped. With `spread` the runs
    are shared out: each process makes some, as if it were alone, and at the end all are told of
    all; the results are plain data then.
    """
    whole: RunFolder | None = None
    results: dict[int, R] = {}
    group = patient_group() if spread else None
    own_numbers = range(config.seeds)[rank() :: world_size()] if spread else range(config.seeds)
    with apart(spread):
        for number in own_numbers:
            own = replace(config, seed=config.seed + number, seeds=1)

            def opened(own: C = own) -> RunFolder:
                nonlocal whole
                if whole is None:
                    with apart(False):
                        whole = open_folder(config)
                        if rank() == 0:  # there may be more seeds than when the run began
                            write_text(whole.path / CONFIG_FILE, config.to_yaml())
                path = whole.path / f"seed-{own.seed}"
                begun = first_says((path / CONFIG_FILE).exists())
                return open_folder(replace(own, out=str(path), resume=begun))

            results[own.seed] = run(own, opened, number)
            if not results[own.seed].finished:
                break
    assert whole is not None
    if spread:
        everyone = gathered(results, group)
        results = dict(
            sorted((seed, result) for theirs in everyone for seed, result in theirs.items())
        )
    return whole, results


def beginning(
    progress: Progress, folder: RunFolder, watching: Watching, seed: tuple[int, int, int]
) -> list[str]:
    """Say where a run begins and how it is watched; `seed` is (its seed, its number from 0, how
    many there are).
    """
    own, number, count = seed
    lines = [f"seed {own}, {number + 1} of {count}"] if count > 1 else []
    if progress.step:
        lines.append(f"goes on from step {progress.step} of {progress.steps}")
    if watching.tensorboard:
        # A folder that was named may lie among anything.
        lines.append(
            f"watch: {watch_line(folder.path if folder.config.out else folder.path.parent)}"
        )
    return lines
