"""Small searches and trainings on the stand-in for a CUDA device.

    python -m stand_in.cases < CASES.json

Reads the keyword arguments of `outcome` for each case by its name; prints a line [name, outcome]
for each.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from stand_in.device import counters, incidents, no_waits

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData
from darts_bio.errors import first_line
from darts_bio.spaces import load_genotype
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

STEADY = 3
"""The first step that is like all that follow: all has been recorded, the optimizers have their
state."""


def images(n: int = 64, side: int = 32) -> ImageData:
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=source)
    split = Split(pixels, torch.randint(0, 5, (n,), generator=source))
    return ImageData(split, split, tuple("abcde"))


SPACE = "darts(nodes=1, operations=(none, skip_connect, max_pool_3x3, sep_conv_3x3))"
GENOTYPE = (
    "Genotype(normal=[('sep_conv_3x3_u', 1), ('skip_connect', 0)], normal_concat=[2], "
    "reduce=[('max_pool_3x3', 0), ('dil_conv_5x5_fa', 1)], reduce_concat=[2])"
)


def search(device: str = "cuda", **options: Any) -> Search:
    """On a small space, with alpha moved from the first step on."""
    sizes = {"space": SPACE, "channels": 8, "layers": 3, "batch_size": 8, "epochs": 3}
    rest = {"rules": ("fa", "brsf"), "regularizers": ("warmup(epochs=0)",)}
    config = SearchConfig(**(sizes | rest | options))
    return Search(config, images(8 * config.batch_size), torch.device(device))


def training(
    device: str = "cuda", genotype: str = GENOTYPE, rule: str | None = None, **options: Any
) -> Retraining:
    """With an auxiliary head, and with drop path from the second epoch on."""
    chosen = load_genotype(genotype) if rule is None else load_genotype(genotype).with_rule(rule)
    sizes = {
        "channels": 4,
        "layers": 3,
        "batch_size": 8,
        "epochs": 3,
        "auxiliary": 0.4,
        "drop_path": 0.5,
    }
    config = RetrainConfig(**(sizes | {"genotype": genotype} | options))
    return Retraining.of_genotype(config, chosen, images(), torch.device(device))


KINDS: dict[str, Callable[..., Any]] = {"search": search, "training": training}


def draw_first(task: Search) -> None:
    """Have a search that computes what is drawn compute the first candidates of the edges.

    What a device draws is garbage here, and a search refuses what is no candidate.
    """
    first = {
        cell_type: [
            next(c for c, candidate in enumerate(row) if candidate is not None) for row in rows
        ]
        for cell_type, rows in task.table.rows.items()
    }

    def drawn() -> dict[str, list[int]] | None:
        # Asked all the same: it waits for the device, as it would on a GPU.
        return None if task.strategy.drawn(task.strategy_state) is None else first

    task.answers.drawn = drawn  # type: ignore[method-assign]


def busy_neighbor(task: Any) -> None:
    """Have another thread pin memory in each forward pass that is recorded, as a DataLoader's may
    at any time.
    """
    network = task.supernet if isinstance(task, Search) else task.network
    kept: list[torch.Tensor] = []

    def pin(*_: Any) -> None:
        if torch.cuda.is_current_stream_capturing():
            # Larger than what PyTorch keeps for the next one, so that CUDA is asked.
            pinned = threading.Thread(
                target=lambda: kept.append(
                    torch.empty((1 << 22) + (1 << 22) * len(kept)).pin_memory()
                )
            )
            pinned.start()
            pinned.join()

    network.register_forward_pre_hook(pin)


def outcome(
    kind: str, ends: bool = False, neighbor: bool = False, timed: int = 0, **options: Any
) -> dict[str, Any]:
    """Run steps of a search or training, up to the second epoch of the latter, whose drop path
    makes another recording.

    `ends` ends an epoch too; `neighbor` is `busy_neighbor`. Returns "error" (a line, or None), the
    "stage" it came from (start, steps or end) and "where"; "steady", the `counters` of one steady
    step; "waits", the line that PyTorch raised where the next step would have waited for the
    device, or None; "host_s", CPU seconds of this thread in each of `timed` further steps;
    "incidents", "warnings" and "recordings" of all.
    """
    found: dict[str, Any] = {"error": None, "waits": None, "recordings": 0}
    incidents()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found["stage"] = "start"
            task = KINDS[kind](**options)
            if isinstance(task, Search):
                draw_first(task)
            if neighbor:
                busy_neighbor(task)
            found["stage"] = "steps"
            _steps(task, found, timed)
            if ends:
                found["stage"] = "end"
                task.synchronize()
                task.end_epoch(task.epochs - 1)
                task.load_state_dict(task.state_dict())
        except Exception as error:
            frames = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if "darts_bio" in frame.filename
            ]
            found["error"] = f"{type(error).__name__}: {first_line(error)}"
            found["where"] = [
                f"{frame.filename.rpartition('darts_bio/')[2]}:{frame.lineno}"
                for frame in frames[-4:]
            ]
    found["incidents"] = incidents()
    found["warnings"] = sorted({str(warning.message) for warning in heard})
    return found


def _steps(task: Any, found: dict[str, Any], timed: int) -> None:
    task.begin_epoch(0)
    for t in range(STEADY + 1):
        counters()
        task.step(t)
    found["steady"] = {name: number for name, number in counters().items() if number}
    try:
        with no_waits():
            task.step(STEADY + 1)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        found["waits"] = first_line(error)
    found["host_s"] = []
    for _ in range(timed):
        start = time.thread_time()
        task.step(STEADY + 1)
        found["host_s"].append(time.thread_time() - start)
    if isinstance(task, Retraining):
        task.begin_epoch(1)
        for t in range(STEADY):
            task.step(task.steps_per_epoch + t)
    found["recordings"] = sum(
        recording.graph is not None for recording in task.run.recordings.values()
    )


def main() -> None:
    # Some warnings come once a process: each case is to hear its own.
    torch.set_warn_always(True)
    torch.set_num_threads(1)
    cases = json.load(sys.stdin)
    for name, case in cases.items():
        print(json.dumps([name, outcome(**case)]), flush=True)


if __name__ == "__main__":
    main()
