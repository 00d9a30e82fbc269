"""One writer of all numbers: the console, metrics.jsonl and TensorBoard say the same.

metrics.jsonl holds a record a line: event ("record" every few steps, or "epoch"), step, epoch, the numbers, and at the
end seconds and images_per_second. All but these last two is the same whether or not a run was stopped and resumed.
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from darts_bio.monitoring.tensorboard import TensorBoard
from darts_bio.training.engine import Numbers, Progress
from darts_bio.training.run_folder import METRICS_FILE, RunFolder, read_records, write_text, writing

LINE_EVERY_S = 10.0


class Console(TensorBoard):
    """A run's event files, its progress bar on a terminal, and its lines above that. A context manager: leaving it
    closes them."""

    def __init__(self, folder: RunFolder, console: TextIO = sys.stderr) -> None:
        super().__init__(folder.path)
        self.folder, self._console = folder, console
        self._bar: tqdm | None = None
        self._started_at = self._line_at = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        super().__exit__(kind, error, trace)

    def open_bar(self, done: int, total: int, unit: str) -> None:
        """From here on time is counted."""
        self._started_at = self._line_at = time.monotonic()
        terminal = self._console.isatty()
        self._bar = tqdm(total=total, initial=done, unit=unit, file=self._console, disable=not terminal)

    @property
    def line_is_due(self) -> bool:
        """Whether there is no bar to be seen, and has been no line for a while."""
        assert self._bar is not None
        return bool(self._bar.disable) and time.monotonic() - self._line_at > LINE_EVERY_S

    def say(self, line: str) -> None:
        """A line on the console, above the progress bar."""
        self._line_at = time.monotonic()
        tqdm.write(line, file=self._console)


class Monitor(Console):
    """Listens to `fit`."""

    def __init__(self, folder: RunFolder, console: TextIO = sys.stderr) -> None:
        super().__init__(folder, console)
        self._metrics = folder.path / METRICS_FILE
        self._steps, self._images, self._earlier_s = 0, 0, 0.0

    def on_start(self, progress: Progress) -> None:
        """Opens the files; what they say of steps after `progress.step`, which will be made anew, is dropped."""
        kept = self.records_up_to(progress.step)
        if kept:
            self._earlier_s = kept[-1]["seconds"]
        write_text(self._metrics, "".join(json.dumps(record) + "\n" for record in kept))
        self.open_events(progress.step + 1 if self.folder.config.resume else None)
        self.open_bar(progress.step, progress.steps, "step")

    def records_up_to(self, step: int) -> list[dict[str, Any]]:
        """Those of metrics.jsonl that are of `step` or before it."""
        return read_records(self._metrics, step)

    def on_step(self, progress: Progress, images: int) -> None:
        assert self._bar is not None
        self._steps += 1
        self._images += images
        self._bar.update()

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        self._write("record", progress, numbers)
        for name, value in numbers.items():
            self.scalar(name, value, progress.step)
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(_brief(numbers))
        elif self.line_is_due and not progress.ends_epoch:
            self.say(f"{self._place(progress)}  {_brief(numbers)}  {self._rate(progress)}")

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        self._write("epoch", progress, numbers)
        for name, value in numbers.items():
            self.scalar(f"epoch/{name.replace('/', '_')}", value, progress.step)
        self.say(f"{self._place(progress)}  {_brief(numbers)}  {self._rate(progress)}")

    def _write(self, event: str, progress: Progress, numbers: Numbers) -> None:
        seconds = time.monotonic() - self._started_at
        wall_clock = {
            "seconds": round(self._earlier_s + seconds, 2),
            "images_per_second": round(self._images / max(seconds, 1e-9), 1),
        }
        record = {"event": event, "step": progress.step, "epoch": progress.epoch, **numbers, **wall_clock}
        with writing(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.flush()

    def _place(self, progress: Progress) -> str:
        return f"epoch {progress.epoch}/{progress.epochs}  step {progress.step}/{progress.steps}"

    def _rate(self, progress: Progress) -> str:
        seconds = time.monotonic() - self._started_at
        left = seconds / max(1, self._steps) * (progress.steps - progress.step)
        return f"{self._images / max(seconds, 1e-9):.0f} images/s  {clock(left)} left"


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
    """As hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
