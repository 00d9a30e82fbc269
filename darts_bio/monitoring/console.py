"""Show a run on the console: a line for each epoch, and between them a progress bar.

Where the stream is no terminal, a line every few seconds takes the place of the bar.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

from darts_bio.evaluation.robustness import Job, Measurement
from darts_bio.evaluation.subjects import Subject
from darts_bio.monitoring.stream import UnfailingStream
from darts_bio.training.listeners import Listener, Pace, Progress
from darts_bio.training.meters import Numbers

LINE_EVERY_S = 10.0
"""Seconds between two lines of progress without a terminal."""


class Console:
    """A progress bar on a terminal and lines above it; leaving its context closes the bar.

    That the stream is lost ends nothing: see `UnfailingStream`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._bar = UnfailingStream(stream), tqdm(disable=True)
        # When the last line was written, and how fast the run goes.
        self._line_at, self.pace = time.monotonic(), Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def open_bar(self, done: int, total: int, unit: str, name: str | None = None) -> None:
        """Show a bar of `total` units, of which `done` are done; the pace is taken from here on.

        `name` stands before the bar, which is as wide as the terminal.
        """
        self._line_at, self.pace = time.monotonic(), Pace()
        terminal = self._stream.isatty()
        self._bar = tqdm(
            desc=name,
            total=total,
            initial=done,
            unit=unit,
            file=self._stream,
            disable=not terminal,
            dynamic_ncols=True,
        )

    @property
    def line_is_due(self) -> bool:
        """Whether no bar is shown and the last line is more than `LINE_EVERY_S` ago."""
        return bool(self._bar.disable) and time.monotonic() - self._line_at > LINE_EVERY_S

    def say(self, line: str) -> None:
        """Write a line above the progress bar."""
        self._line_at = time.monotonic()
        tqdm.write(line, file=self._stream)


class FitConsole(Console, Listener):
    """A listener that shows a search or a training on the console.

    `introduction` returns the lines to write at the start. `news` is called before each record and
    returns lines that have come up since its last call. `epoch` is what the lines call an epoch, and
    `name` what they call the run. On a terminal the line of an epoch is no wider than that.

    Leaving its context writes the time that the run took, unless `goes_on` says that the run is
    about to go on under another console.
    """

    goes_on = False

    def __init__(
        self,
        stream: TextIO,
        introduction: Callable[[Progress], Sequence[str]],
        news: Callable[[], Iterable[str]] = tuple,
        epoch: str = "epoch",
        name: str = "run",
    ) -> None:
        super().__init__(stream)
        self._introduction, self._news, self._epoch = introduction, news, epoch
        self._name = name
        self._first_step: int | None = None
        self._progress = Progress(0, 0, 0, 0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None and self.pace.steps and not self.goes_on:
            since = f" since step {self._first_step}" if self._first_step else ""
            self.say(f"{self._name}  time{since}: {clock(self.pace.seconds)}")

    def on_start(self, progress: Progress) -> None:
        self._first_step = progress.step
        self.open_bar(progress.step, progress.steps, "step", self._name)
        for line in self._introduction(progress):
            self.say(line)

    def on_step(self, progress: Progress, images: int) -> None:
        self._progress = progress
        self.pace.count(images)
        self._bar.update()

    def on_measure(self, done: int, total: int) -> None:
        """Hear that so many batches of `total` are measured, in a measurement after an epoch."""
        words = f"measures, batch {done}/{total}"
        if not self._bar.disable:
            self._bar.set_postfix_str(words)
        elif self.line_is_due:
            self.say("  ".join([*self._place(self._progress), words]))

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        self._say_news()
        if not self._bar.disable:
            self._bar.set_postfix_str(_brief(numbers))
        elif self.line_is_due and not progress.ends_epoch:
            self.say(self._line(progress, numbers))

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        self._say_news()
        self.say(self._line(progress, numbers))

    def _say_news(self) -> None:
        for line in self._news():
            self.say(line)

    def _place(self, progress: Progress) -> tuple[str, str, str]:
        """Return the run, the epoch and the step in words."""
        epoch = f"{self._epoch} {progress.epoch}/{progress.epochs}"
        return self._name, epoch, f"step {progress.step}/{progress.steps}"

    def _line(self, progress: Progress, numbers: Numbers) -> str:
        """Return the line on the present step: its numbers, the speed, the time left.

        On a terminal what the bar says too is left out where there is no room for it.
        """
        name, epoch, step = self._place(progress)
        speed = f"{self.pace.images_per_second:.0f} images/s"
        left = f"{clock(self.pace.seconds_left(progress.steps - progress.step))} left"
        parts = [name, epoch, step, _brief(numbers), speed, left]
        if self._bar.disable:
            return "  ".join(parts)
        room = shutil.get_terminal_size().columns - 1
        for part in (speed, left, step, name):
            if len("  ".join(parts)) > room:
                parts.remove(part)
        return "  ".join(parts)[:room]


class RobustnessConsole(Console):
    """A measurement of robustness on the console.

    A line for each attack says how many images stayed right; lines on the progress come between
    where an attack takes long.
    """

    def __init__(self, stream: TextIO, measurement: Measurement) -> None:
        super().__init__(stream)
        self.measurement, self._done, self._steps = measurement, measurement.done, measurement.steps

    def on_start(self, subjects: Sequence[Subject]) -> None:
        """Write the networks and their clean accuracy, and open the bar."""
        for subject in subjects:
            self.say(f"{subject.name} ({subject.rules}): test accuracy {100 * subject.clean:.2f} %")
        self.say(f"{len(self.measurement.images)} test images, {self._steps} batches to do")
        self.open_bar(self._done, self._steps, "batch")

    def on_batch(self, job: Job) -> None:
        """Count a batch of a job that is done, and write a line where one is due."""
        self._bar.update()
        self.pace.count(0)
        self._done += 1
        # The numbers of the images to measure, and a row for each that has been measured.
        index, rows = self.measurement.subject(job), self.measurement.found[job.key]
        left = clock(self.pace.seconds_left(self._steps - self._done))
        progress = f"({self._done} of {self._steps} batches, {left} left)"
        complete = len(rows) == len(index)
        # A job on a few images (`most`) is a check of the attack, not a result.
        is_result = job.kind in ("attack", "corruption") and not job.most
        if complete and is_result:
            share = rows.sum().item() / len(self.measurement.images)
            self.say(f"{in_words(job)}: {100 * share:.2f} % right  {progress}")
        elif self.line_is_due:
            self.say(f"{in_words(job)}: {len(rows)} of {len(index)} images  {progress}")


def in_words(job: Job) -> str:
    """Describe a job in a few words.

    >>> in_words(Job("attack", "run-a", "pgd", 8.0, "true"))
    'run-a  pgd eps 8/255, true gradient'
    """
    if job.kind == "corruption":
        return f"{job.network}  {job.what}, severity {job.level:g}"
    if not job.what:
        return f"{job.network}  {job.kind}"
    level = f" eps {job.level:g}/255" if job.level else ""
    gradient = {"none": "", "true": ", true gradient", "rule": ", rule's gradient"}[job.gradients]
    return f"{job.network}  {job.what}{level}{gradient}"


def _brief(numbers: Numbers) -> str:
    """Return the losses and the accuracies among the numbers in one line.

    >>> _brief({"train/loss": 1.5, "train/accuracy": 0.25, "train/lr": 0.1, "test/accuracy": 0.2})
    'train 1.500 25.00%  test 20.00%'
    """
    words: dict[str, list[str]] = {}
    for name, value in numbers.items():
        group, _, quantity = name.partition("/")
        if quantity == "loss":
            words.setdefault(group, []).append(f"{value:.3f}")
        elif quantity == "accuracy":
            words.setdefault(group, []).append(f"{100 * value:.2f}%")
    return "  ".join(" ".join([group, *values]) for group, values in words.items())


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds.

    >>> clock(59.6), clock(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
