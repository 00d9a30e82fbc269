"""What every run writes into its folder, whether or not anybody watches it.

metrics.jsonl holds a record a line: event ("record" every few steps, or "epoch"), step, epoch, the
numbers, and at the end seconds and images_per_second. All but these last two is the same whether or
not a run was stopped and resumed.
"""

from __future__ import annotations

import json
from pathlib import Path

from darts_bio.training.engine import Listener, Numbers, Pace, Progress
from darts_bio.training.run_folder import METRICS_FILE, RunFolder, read_records, write_text, writing


class MetricsFile(Listener):
    """The numbers of a run in its metrics.jsonl."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / METRICS_FILE
        self._pace, self._earlier_s = Pace(), 0.0

    def on_start(self, progress: Progress) -> None:
        """Drop what the file says of steps after `progress.step`, which will be made anew."""
        kept = read_records(self._path, progress.step)
        if kept:
            self._earlier_s = kept[-1]["seconds"]
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._pace = Pace()

    def on_step(self, progress: Progress, images: int) -> None:
        self._pace.count(images)

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        self._write("record", progress, numbers)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        self._write("epoch", progress, numbers)

    def _write(self, event: str, progress: Progress, numbers: Numbers) -> None:
        wall_clock = {
            "seconds": round(self._earlier_s + self._pace.seconds, 2),
            "images_per_second": round(self._pace.images_per_second, 1),
        }
        record = {
            "event": event,
            "step": progress.step,
            "epoch": progress.epoch,
            **numbers,
            **wall_clock,
        }
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def epochs_of(folder: Path, step: int | None = None) -> tuple[Numbers, ...]:
    """Read the numbers of each epoch, or of those up to `step`, from the metrics.jsonl of a run's
    folder.
    """
    return tuple(
        {key: value for key, value in record.items() if key != "event"}
        for record in read_records(folder / METRICS_FILE, step)
        if record["event"] == "epoch"
    )
