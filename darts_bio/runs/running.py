"""What searches and trainings share: listeners, resuming, and runs of several seeds."""

from __future__ import annotations

import contextlib
import itertools
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from darts_bio.config import CONFIG_FILE, FitConfig, flag
from darts_bio.config.files import read_yaml
from darts_bio.distributed import (
    apart,
    first_says,
    gathered,
    patient_group,
    rank,
    text_from_first,
    world_size,
)
from darts_bio.errors import InputError
from darts_bio.invocation import watch_line
from darts_bio.monitoring.boards import FitBoard
from darts_bio.monitoring.console import Console, FitConsole
from darts_bio.monitoring.trackers import trackers
from darts_bio.process_group import leave_note, note, process_group, refuse_differences
from darts_bio.reports.markdown import counted
from darts_bio.runs.files import MetricsFile
from darts_bio.runs.rollbacks import Run, WentBack
from darts_bio.runtime import code_identity, generators_kept, stop_on_signals
from darts_bio.spaces import GENOTYPE_FILE
from darts_bio.storage.owner import owning
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.status import StatusFile
from darts_bio.storage.whole_files import write_text
from darts_bio.training.engine import DivergedError, Outcome, Task, fit
from darts_bio.training.listeners import Listener, Listeners, Progress
from darts_bio.training.meters import Numbers
from darts_bio.training.search import Search

C = TypeVar("C", bound=FitConfig)


@dataclass(frozen=True)
class Watching:
    """The ways in which a run is shown while it goes on.

    `console` is the stream that progress is written to, None for no progress; `tensorboard` says
    whether events are written; `listener` is the user's own.
    """

    console: TextIO | None = None
    tensorboard: bool = False
    listener: Listener | None = None


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run, which `SearchResult` and `TrainResult` extend.

    `epochs` holds, for each epoch, what was measured in it and at its end (`train/loss`,
    `test/accuracy`, ...). `step` is the number of weight updates so far. `finished` tells whether
    the run came to its end; `resume=True` continues one that was stopped. `exit_code` is the
    command's exit status: 0, or 128 plus the number of the signal that stopped the run.
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
        epochs = counted(len(self.epochs), "epoch")
        return f"{type(self).__name__}({str(self.folder)!r}, {epochs}{state}; {numbers})"


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class SeedResults(Generic[R]):
    """The results of several seeds, by seed, and the folder that holds their runs' folders."""

    folder: Path
    seeds: Mapping[int, R]

    @property
    def finished(self) -> bool:
        """Whether the runs of all seeds came to their end."""
        return all(result.finished for result in self.seeds.values())

    @property
    def exit_code(self) -> int:
        """The largest exit code of the runs: 0 if none was stopped."""
        return max(result.exit_code for result in self.seeds.values())


_runs = itertools.count()
"""Numbers the runs of this process, so that each leaves its folder under a key of its own."""

OF_A_MACHINE = ("data_dir", "device", "workers")
"""Options that may differ from machine to machine."""


@contextlib.contextmanager
def started(config: C) -> Iterator[C]:
    """Join the other processes of torchrun within the context; yield the options as all have them.

    `resume="auto"` is then True or False: the first process decides for all of them.

    The folders of its runs are this process' own until the end of the context.

    After an elastic restart of torchrun the options are those that go on with the run which the
    processes before it began.

    Raises:
        InputError: In every process, unless all were started with the same options and code, or if
            a run of several seeds is resumed with fewer of them, or one of one seed with several.
    """

    def begun(folder: Path) -> None:
        with apart(False):
            if rank() == 0:
                leave_note(key, str(folder))

    with process_group(), owning(begun) as outermost:
        _refuse_other_start(config)
        if outermost:
            key = f"run {next(_runs)}"
            config = _restarted(config, key)
        yield _settled(config)


def _restarted(config: C, key: str) -> C:
    """Go on with what this job of torchrun has begun, if this is a restart of it.

    The folder is found under `key`, where the processes before the restart left it. A run that the
    job had not begun, such as one in an `--out` that was there already, is not gone on with.
    """
    folder = text_from_first((note(key) if rank() == 0 else None) or "")
    begun = first_says(bool(folder) and Path(folder, CONFIG_FILE).is_file())
    return replace(config, out=folder, resume=True) if begun else config


def _refuse_other_start(config: FitConfig) -> None:
    """Raise InputError in every process unless all were started with the same options and code."""
    options = {
        flag(name): str(value) for name, value in asdict(config).items() if name not in OF_A_MACHINE
    }
    refuse_differences({"the command": config.command, "the code": code_identity(), **options})


def _settled(config: C) -> C:
    """Replace `resume="auto"` by True or False: the first process decides for all of them.

    Raises InputError if a run of several seeds is resumed with fewer of them, or a run of one seed
    with several.
    """
    if config.resume == "auto":
        begun = rank() == 0 and config.out is not None and Path(config.out, CONFIG_FILE).is_file()
        config = replace(config, resume=first_says(begun))
    if config.resume:
        saved = read_yaml(Path(config.out or "", CONFIG_FILE), type(config))
        saved_seeds = saved.get("seeds", 1)
        # One seed's run lies in the folder itself, several seeds' runs in folders within it.
        if saved_seeds == 1 and config.seeds > 1:
            raise InputError(
                f"--seeds: {config.out} is the run of one seed, found {config.seeds}; start anew "
                "in another --out"
            )
        if config.seeds < saved_seeds:
            raise InputError(
                f"--seeds: expected at least the {saved_seeds} of {config.out}, found "
                f"{config.seeds}"
            )
    return config


def perform(
    task: Task,
    folder: RunFolder,
    files: Sequence[Listener],
    watching: Watching,
    introduction: Callable[[Progress], Sequence[str]],
    board: Callable[[], FitBoard],
    facts: Mapping[str, Any],
    news: Callable[[], Iterable[str]] = tuple,
    extra: Callable[[Progress], Numbers] = lambda progress: {},
    epoch: str = "epoch",
) -> tuple[Outcome, int]:
    """Run a task to its end, or until it is stopped; return its outcome and the exit code.

    Of several processes only the first writes files and shows the run.

    Raises:
        DivergedError: A number or a weight is no longer finite, and `--rollbacks` allows no more.
        WentBack: The same, and the run has gone back (see `going_back`).

    Args:
        task: The search or the training.
        folder: The folder of the run.
        files: Listeners that write files into the folder.
        watching: How the run is shown.
        introduction: Returns the lines that the console shows at the start.
        board: Makes the TensorBoard listener; called only if `watching` asks for one.
        facts: What the run's status.json holds of the network (see `storage.status`).
        news: Returns the lines that have come up since it was last called (see `FitConsole`).
        extra: Measures further numbers at the end of an epoch, for the listeners.
        epoch: What the console calls an epoch.
    """
    config = folder.config
    assert isinstance(config, FitConfig)

    def remarks_first(progress: Progress) -> list[str]:
        # What a run that has gone back begins with was said before.
        return [] if folder.has_gone_back else [*folder.remarks, *introduction(progress)]

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        about = {"epochs": task.epochs, "data": task.subject["data set"]}
        status = _Status(folder.path, **about, **facts)
        sinks = trackers(folder, config.log)  # in all processes, which end alike if one is missing
        listeners: list[Listener] = []
        shown: FitBoard | None = None
        console: FitConsole | None = None
        if rank() == 0:
            listeners += [stack.enter_context(status), MetricsFile(folder), *files]
            if watching.tensorboard:
                shown = stack.enter_context(board())
                listeners.append(shown)
            if watching.console is not None:
                name = f"seed {config.seed}"
                console = FitConsole(watching.console, remarks_first, news, epoch, name)
                listeners.append(stack.enter_context(console))
                if isinstance(task, Search):
                    task.individuals.on_measure = console.on_measure
            else:
                listeners.append(_Remarks(folder))
            listeners += map(stack.enter_context, sinks)
            if watching.listener is not None:
                listeners.append(_Guest(watching.listener))
        listener = _WithExtraNumbers(extra, *listeners) if listeners else Listener()
        try:
            outcome = fit(
                task,
                folder,
                listener,
                stop,
                log_every=config.log_every,
                save_every=config.save_every,
            )
        except DivergedError as error:
            remark = _gone_back(folder, error)
            if remark is None:
                raise
            if console is not None:
                console.goes_on = True
        else:
            if shown is not None and outcome.finished:
                shown.conclude(outcome.step, facts)
            status.finished = outcome.finished
            return outcome, 0 if outcome.finished else stop.exit_code
    # The listeners have ended with the context, as those of a run that is stopped.
    _tell(remark, watching)
    if stop:  # as between two seeds: nothing is unsaved
        assert stop.signal is not None
        signal.raise_signal(stop.signal)
    raise WentBack


def _gone_back(folder: RunFolder, error: DivergedError) -> str | None:
    """Have a run that diverged go back, and return what to say of it; None if it may not."""
    # What diverges is the same in all processes; the first has the checkpoints.
    times = gathered(folder.go_back())[0]
    if times is None:
        return None
    assert isinstance(folder.config, FitConfig)
    return (
        f"warning: {error.what}; the run goes back to the beginning of the epoch, and on with "
        f"1/{2**times} of the weights' learning rate (rollback {times} of "
        f"{folder.config.rollbacks})"
    )


def _tell(remark: str, watching: Watching) -> None:
    """Say a remark on the console, or warn of it where there is none; of several processes once."""
    if rank() == 0 and watching.console is not None:
        Console(watching.console).say(remark)
    elif rank() == 0:
        warn_of([remark])


def warn_of(remarks: Iterable[str]) -> None:
    """Warn of what a run's folder remarks, where there is no console to say it.

    >>> warn_of([])
    """
    for remark in remarks:
        warnings.warn(remark.removeprefix("warning: "), stacklevel=2)


class _Remarks(Listener):
    """A listener that warns of what a run's folder remarks."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_start(self, progress: Progress) -> None:
        warn_of(self._folder.remarks)


class _Status(StatusFile, Listener):
    """The run's status.json, which begins once the run has read its checkpoint."""

    def on_start(self, progress: Progress) -> None:
        self.begin()


class _Guest(Listener):
    """The user's listener, whose draws from the default generators do not reach the run."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def on_start(self, progress: Progress) -> None:
        with generators_kept():
            self._listener.on_start(progress)

    def on_step(self, progress: Progress, images: int) -> None:
        with generators_kept():
            self._listener.on_step(progress, images)

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        with generators_kept():
            self._listener.on_record(progress, numbers)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        with generators_kept():
            self._listener.on_epoch(progress, numbers)


class _WithExtraNumbers(Listeners):
    """Listeners that receive the numbers of `extra` together with those of an epoch."""

    def __init__(self, extra: Callable[[Progress], Numbers], *listeners: Listener) -> None:
        super().__init__(*listeners)
        self._extra = extra

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        super().on_epoch(progress, numbers | self._extra(progress))


def each_seed(
    config: C,
    open_folder: Callable[[C], RunFolder],
    run: Run[C, R],
    divide: bool = False,
) -> tuple[RunFolder, dict[int, R]]:
    """Make a run for each seed, in a folder `seed-N` of its own; resume the runs that are there.

    No further run begins after one that was stopped.

    Args:
        config: The configuration of all seeds: `seed` is the first, `seeds` their number.
        open_folder: Opens the folder of a configuration.
        run: `run(config, open, number)` makes the run of that number, counted from 0. It calls
            `open()` for its folder once the task is built, so that bad input leaves no folder.
        divide: Whether each process makes some of the runs, as if it were alone. The results are
            exchanged between the processes at the end, so they must be plain data.

    Returns:
        The folder that holds the folders of the seeds, and the result of each seed.
    """
    parent: RunFolder | None = None
    results: dict[int, R] = {}
    group = patient_group() if divide else None
    numbers = range(config.seeds)[rank() :: world_size()] if divide else range(config.seeds)
    with apart(divide):  # within it a process acts as if it were the only one
        for number in numbers:
            seed_config = replace(config, seed=config.seed + number, seeds=1)

            # The default binds this round's configuration, not the loop's last one.
            def open_seed_folder(seed_config: C = seed_config) -> RunFolder:
                nonlocal parent
                if parent is None:
                    with apart(False):  # all processes open the common folder together
                        parent = open_folder(config)
                        if rank() == 0:  # there may be more seeds than when the run began
                            write_text(parent.path / CONFIG_FILE, config.to_yaml())
                path = parent.path / f"seed-{seed_config.seed}"
                begun = first_says((path / CONFIG_FILE).exists())
                return open_folder(replace(seed_config, out=str(path), resume=begun))

            result = run(seed_config, open_seed_folder, number)
            results[seed_config.seed] = result
            if not result.finished:
                break
    assert parent is not None
    if divide:
        all_results: dict[int, R] = {}
        for process_results in gathered(results, group):
            all_results |= process_results
        results = dict(sorted(all_results.items()))
    return parent, results


def has_begun(path: Path) -> bool:
    """Tell whether the run of a stage has begun in this folder, in all processes alike.

    A run that was killed as it made its folder has not: what it left there is removed.
    """
    begun = (path / CONFIG_FILE).is_file()
    if rank() == 0 and not begun:
        for leftover in (path / GENOTYPE_FILE, *path.glob(".*.partial")):
            leftover.unlink(missing_ok=True)
    return first_says(begun)


def beginning(
    progress: Progress, folder: RunFolder, watching: Watching, seed: tuple[int, int, int]
) -> list[str]:
    """Return the console's lines on where a run begins and how to watch it in TensorBoard.

    `seed` is (the run's seed, its number from 0, the number of seeds).
    """
    seed_value, number, count = seed
    lines = [f"seed {seed_value}, {number + 1} of {count}"] if count > 1 else []
    if progress.step:
        lines.append(f"goes on from step {progress.step} of {progress.steps}")
    if watching.tensorboard:
        # By default runs lie side by side in one folder, and TensorBoard shows them together. A
        # folder that the user named may lie among anything, so it is shown alone.
        log_dir = folder.path if folder.config.out else folder.path.parent
        lines.append(f"watch: {watch_line(log_dir)}")
    return lines
