"""Files with a line for each epoch of a run, beside metrics.jsonl: alpha, alignments."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from darts_bio.storage.whole_files import writing
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers


class EpochsFile(Listener):
    """A listener that appends to a file a JSON record for each epoch: `step`, `epoch` and more.

    It is one of `storage.logs.RECORDS`: a resumed run writes the same file as one that was not.

    Args:
        path: The file.
        latest: Returns what is to be said of the ending epoch, None for no record.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     file = EpochsFile(Path(place, "alpha.jsonl"), lambda: {"share": 0.5})
    ...     file.on_epoch(Progress(step=10, steps=20, epoch=1, epochs=2), {})
    ...     print(Path(place, "alpha.jsonl").read_text())
    {"step": 10, "epoch": 1, "share": 0.5}
    <BLANKLINE>
    """

    def __init__(self, path: Path, latest: Callable[[], Mapping[str, Any] | None]) -> None:
        self._path, self._latest = path, latest

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        latest = self._latest()
        if latest is None:
            return
        record = {"step": progress.step, "epoch": progress.epoch, **latest}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
