"""A run on the console: a progress bar on a terminal, and a line for each epoch, or every few
seconds without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

from darts_bio.evaluation.robustness import Job, Measurement
from darts_bio.evaluation.subjects import Subject
from darts_bio.training.engine import Listener, Numbers, Pace, Progress

LINE_EVERY_S = 10.0


class Console:
    """A progress bar, where there is a terminal, and lines above it. A context manager: leaving it
    closes the bar.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._bar = stream, tqdm(disable=True)
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

    def open_bar(self, done: int, total: int, unit: str) -> None:
        """Show a bar of `total` units, of which `done` are done. Time is counted from here on."""
        self._line_at, self.pace = time.monotonic(), Pace()
        terminal = self._stream.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit=unit, file=self._stream, disable=not terminal
        )

    @property
    def line_is_due(self) -> bool:
        """Whether there is no bar to be seen, and has been no line for a while."""
        return bool(self._bar.disable) and time.monotonic() - self._line_at > LINE_EVERY_S

    def say(self, line: str) -> None:
        """Write a line above the progress bar."""
        self._line_at = time.monotonic()
        tqdm.write(line, file=self._stream)


class FitConsole(Console, Listener):
    """A search or a training on the console.

    `introduction` gives the lines at its start; `news`, asked before each record, lines that have
    come up since.
    """

    def __init__(
        self,
        stream: TextIO,
        introduction: Callable[[Progress], Sequence[str]],
        news: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        super().__init__(stream)
        self._introduction, self._news = introduction, news

    def on_start(self, progress: Progress) -> None:
        self.open_bar(progress.step, progress.steps, "step")
        for line in self._introduction(progress):
            self.say(line)

    def on_step(self, progress: Progress, images: int) -> None:
        self.pace.count(images)
        self._bar.update()

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

    def _line(self, progress: Progress, numbers: Numbers) -> str:
        place = f"epoch {progress.epoch}/{progress.epochs}  step {progress.step}/{progress.steps}"
        left = clock(self.pace.seconds_left(progress.steps - progress.step))
        return (
            f"{place}  {_brief(numbers)}  {self.pace.images_per_second:.0f} images/s  {left} left"
        )


class RobustnessConsole(Console):
    """A measurement of robustness on the console: what each attack left right, and how far it is
    between long ones.
    """

    def __init__(self, stream: TextIO, measured: Measurement) -> None:
        super().__init__(stream)
        self.measured, self._done, self._steps = measured, measured.done, measured.steps

    def on_start(self, subjects: Sequence[Subject]) -> None:
        """Hear which networks are attacked."""
        for subject in subjects:
            self.say(f"{subject.name} ({subject.rules}): test accuracy {100 * subject.clean:.2f} %")
        self.say(f"{len(self.measured.images)} test images, {self._steps} batches to do")
        self.open_bar(self._done, self._steps, "batch")

    def on_batch(self, job: Job) -> None:
        """Hear of a batch of a job."""
        self._bar.update()
        self.pace.count(0)
        self._done += 1
        index, rows = self.measured.subject(job), self.measured.found[job.key]
        left = clock(self.pace.seconds_left(self._steps - self._done))
        progress = f"({self._done} of {self._steps} batches, {left} left)"
        if len(rows) == len(index) and job.kind in ("attack", "corruption") and not job.most:
            share = rows.sum().item() / len(self.measured.images)
            self.say(f"{in_words(job)}: {100 * share:.2f} % right  {progress}")
        elif self.line_is_due:
            self.say(f"{in_words(job)}: {len(rows)} of {len(index)} images  {progress}")


def in_words(job: Job) -> str:
    """Name a job in a line."""
    if job.kind == "corruption":
        return f"{job.network}  {job.what}, severity {job.level:g}"
    level = f" eps {job.level:g}/255" if job.level else ""
    side = {"none": "", "true": ", true gradient", "rule": ", rule's gradient"}[job.gradients]
    return f"{job.network}  {job.what}{level}{side}" if job.what else f"{job.network}  {job.kind}"


def _brief(numbers: Numbers) -> str:
    """Losses and accuracies in a few words."""
    parts = []
    for name, value in numbers.items():
        group, _, quantity = name.partition("/")
        if quantity == "loss":
            parts.append(f"{group} loss {value:.3f}")
        elif quantity == "accuracy":
            parts.append(f"{group} {100 * value:.2f} %")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds.

    >>> clock(59.6), clock(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
