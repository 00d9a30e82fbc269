"""Small searches and trainings on the stand-in for a CUDA device.

    python -m stand_in.cases < CASES.json

Reads the keyword arguments of `outcome` for each case by its name, and prints its outcome by the same name.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData
from darts_bio.errors import first_line
from darts_bio.spaces import load_genotype
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search
from stand_in.device import counters, incidents, no_waits

STEADY = 2
"""The first step that is like all that follow: both passes have been recorded, the optimizers have their state."""
NB201 = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"


def images(n: int = 64, side: int = 32) -> ImageData:
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=source)
    split = Split(pixels, torch.randint(0, 5, (n,), generator=source))
    return ImageData(split, split, tuple("abcde"))


def search(device: str = "cuda", **options: Any) -> Search:
    """On a small space, with alpha moved from the first step on."""
    sizes = {"space": "darts(nodes=1)", "channels": 4, "layers": 3, "batch_size": 8, "epochs": 3}
    rest = {"rules": ("fa", "brsf"), "regularizers": ("warmup(epochs=0)",)}
    return Search(SearchConfig(**(sizes | rest | options)), images(), torch.device(device))


def training(
    device: str = "cuda", genotype: str = "bionas_darts", rule: str | None = None, **options: Any
) -> Retraining:
    """With an auxiliary head, and with drop path from the second epoch on."""
    chosen = load_genotype(genotype) if rule is None else load_genotype(genotype).with_rule(rule)
    sizes = {"channels": 4, "layers": 3, "batch_size": 8, "epochs": 3, "auxiliary": 0.4, "drop_path": 0.5}
    config = RetrainConfig(**(sizes | {"genotype": genotype} | options))
    return Retraining.of_genotype(config, chosen, images(), torch.device(device))


KINDS: dict[str, Callable[..., Any]] = {"search": search, "training": training}


class Meter:
    """What happens in a step, and which part of it in making its batches."""

    def __init__(self, task: Any) -> None:
        self.rest: Counter[str] = Counter()
        self.data: Counter[str] = Counter()
        sources = [task.source] if isinstance(task, Retraining) else [task.train_batches, task.valid_batches]
        for source in sources:
            source.batch = self._metered(source.batch)

    def _metered(self, batch: Callable[[int], Any]) -> Callable[[int], Any]:
        def metered(t: int) -> Any:
            self.rest.update(counters())
            made = batch(t)
            self.data.update(counters())
            return made

        return metered

    def read(self) -> dict[str, dict[str, int]]:
        """Return what was counted since the last call, all of it and the part of the data."""
        self.rest.update(counters())
        found = {"all": dict(self.rest + self.data), "data": dict(+self.data)}
        self.rest.clear()
        self.data.clear()
        return found


def outcome(kind: str, ends: bool = False, **options: Any) -> dict[str, Any]:
    """Run steps of a search or training, up to the second epoch of the latter, whose drop path makes another recording.

    `ends` ends an epoch too. Returns "error" (a line, or None) and "where" it came from; "steady", what `Meter` counted
    in one steady step; "waits", the line that PyTorch raised where the next step would have waited for the device, or
    None; "incidents", "warnings" and "recordings" of all.
    """
    found: dict[str, Any] = {"error": None, "waits": None, "recordings": 0}
    incidents()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            _steps(KINDS[kind](**options), ends, found)
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "darts_bio" in frame.filename]
            found["error"] = f"{type(error).__name__}: {first_line(error)}"
            found["where"] = [f"{frame.filename.rpartition('darts_bio/')[2]}:{frame.lineno}" for frame in frames[-4:]]
    found["incidents"] = incidents()
    found["warnings"] = sorted({str(warning.message) for warning in heard})
    return found


def _steps(task: Any, ends: bool, found: dict[str, Any]) -> None:
    meter = Meter(task)
    task.begin_epoch(0)
    for t in range(STEADY + 1):
        meter.read()
        task.step(t)
    found["steady"] = meter.read()
    try:
        with no_waits():
            task.step(STEADY + 1)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        found["waits"] = first_line(error)
    if isinstance(task, Retraining):
        task.begin_epoch(1)
        task.step(task.steps_per_epoch)
        task.step(task.steps_per_epoch + 1)
    found["recordings"] = len(getattr(task.passes, "_recordings", ()))
    if ends:
        task.synchronise()
        task.end_epoch(task.epochs - 1)
        task.load_state_dict(task.state_dict())


def main() -> None:
    # Some warnings come once a process: each case is to hear its own.
    torch.set_warn_always(True)
    cases = json.load(sys.stdin)
    json.dump({name: outcome(**case) for name, case in cases.items()}, sys.stdout)


if __name__ == "__main__":
    main()
