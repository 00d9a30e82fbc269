"""The file metrics.jsonl, which every run writes into its folder, whether or not it is watched.

It holds one JSON record per line: `event` ("record" every few steps, or "epoch"), `step`, `epoch`,
the numbers, and last `seconds` and `images_per_second`. A run that was stopped and resumed writes
the same values as one that was not, except for these two times.
"""

from __future__ import annotations

import json
from pathlib import Path

from darts_bio.storage.logs import METRICS_FILE, read_metrics
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.whole_files import write_text, writing
from darts_bio.training.listeners import Listener, Pace, Progress
from darts_bio.training.meters import Numbers


class MetricsFile(Listener):
    """A listener that appends the numbers of a run to its metrics.jsonl."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / METRICS_FILE
        # Seconds that the run took before it was resumed, from the last record kept.
        self._pace, self._earlier_s = Pace(), 0.0

    def on_start(self, progress: Progress) -> None:
        kept = read_metrics(self._path.parent)
        if kept:
            self._earlier_s = kept[-1]["seconds"]
        else:
            write_text(self._path, "")  # the sign that the run has begun
        self._pace = Pace()

    def on_step(self, progress: Progress, images: int) -> None:
        self._pace.count(images)

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        self._write("record", progress, numbers)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        self._write("epoch", progress, numbers)

    def _write(self, event: str, progress: Progress, numbers: Numbers) -> None:
        """Append one record to the file."""
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
    """Read the numbers of each epoch from the metrics.jsonl of a run folder.

    `step` leaves out the epochs that ended after that step; None keeps all. Raises InputError for a
    file that is not as a run writes it.
    """
    return tuple(
        {key: value for key, value in record.items() if key != "event"}
        for record in read_metrics(folder, step)
        if record["event"] == "epoch"
    )
