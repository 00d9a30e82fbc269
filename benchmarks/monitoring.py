"""Measure what TensorBoard costs a search on the digits: its share of the CPU time of steps and epochs.

    python benchmarks/monitoring.py               six epochs, as the digits' protocol has them, three times
    python benchmarks/monitoring.py --epochs 50

The board is timed where the loop calls it, between the steps, so that both meet the same machine. Each
of its calls returns once its events are written, so that the thread which writes them is counted too.
Opening it, with the imports, is told apart: it comes once a run, whatever its length.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import RESULTS, options, run, spread, stopwatch, timing_device, write_timings

from darts_bio.config import SearchConfig
from darts_bio.monitoring.boards import SearchBoard
from darts_bio.reports.time_lapse import alpha_record
from darts_bio.runs.options import complete
from darts_bio.runs.records import EpochsFile
from darts_bio.runs.running import Watching, perform
from darts_bio.runs.search import SearchFiles, images_of
from darts_bio.storage.logs import ALPHA_FILE
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.listeners import Progress
from darts_bio.training.meters import Numbers
from darts_bio.training.search import Search


class TimedBoard(SearchBoard):
    """A board that counts the seconds which it takes, by the name of the call."""

    def __init__(self, now: Callable[[], float], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._now, self.seconds = now, defaultdict[str, float](float)

    def _timed(self, name: str, *arguments: Any) -> None:
        start = self._now()
        getattr(super(), name)(*arguments)
        self.seconds[name] += self._now() - start

    def on_start(self, progress: Progress) -> None:
        self._timed("on_start", progress)

    def on_step(self, progress: Progress, images: int) -> None:
        self._timed("on_step", progress, images)

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        self._timed("on_record", progress, numbers)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        self._timed("on_epoch", progress, numbers)

    def conclude(self, step: int, facts: Mapping[str, float]) -> None:
        self._timed("conclude", step, facts)


def main() -> None:
    parser = options(__doc__, "cpu", epochs=6, repeats=3)
    sizes = parser.parse_args()
    device = timing_device(sizes.device)
    now = stopwatch(device)
    given = {"dataset": "digits", "device": sizes.device, "epochs": sizes.epochs}
    config = complete(SearchConfig, given)
    data = images_of(config)
    shares, openings = [], []
    for _ in range(sizes.repeats):
        with tempfile.TemporaryDirectory() as place:
            folder = RunFolder.open("search", replace(config, out=f"{place}/run"), "benchmark")
            search = Search(config, data, device)
            files = SearchFiles(search, folder)
            records = EpochsFile(folder.path / ALPHA_FILE, lambda s=search: alpha_record(s))
            board = TimedBoard(now, search, folder, files.figure)
            start = now()
            perform(
                search,
                folder,
                [files, records],
                Watching(tensorboard=True),
                lambda _: [],
                lambda b=board: b,
                {},
            )
            seconds = now() - start
        opening = board.seconds.pop("on_start")
        of_board = sum(board.seconds.values())
        openings.append(opening)
        shares.append(100 * of_board / (seconds - opening - of_board))
        print(f"{shares[-1]:.2f} % of {seconds:.1f} s, and {opening:.2f} s to open it", flush=True)
    print(f"TensorBoard: {spread(shares)} % of a search of {sizes.epochs} epochs")
    numbers = {
        "epochs": sizes.epochs,
        "percent": [round(share, 3) for share in shares],
        "median": round(statistics.median(shares), 3),
        "opening_seconds": [round(seconds, 3) for seconds in openings],
    }
    path = Path(sizes.json) if sizes.json else RESULTS / f"monitoring-{device.type}.json"
    write_timings(path, device, numbers)


if __name__ == "__main__":
    run(main)
