"""What the benchmarks share: the device, a stopwatch, what stands beside every number, and how they
end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData
from darts_bio.errors import InputError
from darts_bio.evaluation.paired import paired_p
from darts_bio.runtime import hardware, select_device
from darts_bio.training.search import Search

RESULTS = Path(__file__).parent / "results"


def options(doc: str | None, device: str, **sizes: int) -> argparse.ArgumentParser:
    """A parser with --device, --json and an option for each size; the first line of `doc` describes
    it.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--device", default=device, metavar="NAME")
    parser.add_argument(
        "--json", metavar="FILE", help="where the numbers go (default: benchmarks/results)"
    )
    for name, default in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default, metavar="N")
    return parser


def timing_device(name: str) -> torch.device:
    """The device of that name; on a CPU with one thread, so that CPU time means something."""
    device = select_device(name)
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def stopwatch(device: torch.device) -> Callable[[], float]:
    """Seconds of this process's CPU time, or of the wall where a GPU works."""
    if device.type == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def median_seconds(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """Seconds that the device takes for a call, by its own clock: the median, after three that
    count for nothing.
    """
    for _ in range(3):
        call()
    if device.type == "cpu":
        now = stopwatch(device)
        times = []
        for _ in range(repeats):
            start = now()
            call()
            times.append(now() - start)
        return max(statistics.median(times), 1e-9)  # a clock may stand still meanwhile
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for first, last in marks:
        first.record()
        call()
        last.record()
    torch.cuda.synchronize(device)
    return max(statistics.median(first.elapsed_time(last) / 1000 for first, last in marks), 1e-9)


def noise(count: int, size: int) -> ImageData:
    """That many images (3, size, size) of noise, of ten classes, to train, validate and test on."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10)
    return ImageData(split, split, tuple("0123456789"))


def seconds_a_step(
    searches: Mapping[str, Search], steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of so many steps of each search, by its name; they take turns.

    Steps before are left out: the first one allocates; on a GPU the third is recorded.
    """
    now, seconds = stopwatch(device), {name: [] for name in searches}
    before = 1 if device.type == "cpu" else 3
    for turn in range(steps + before):
        for name, search in searches.items():
            if turn == 0:
                search.begin_epoch(0)
            start = now()
            search.step(turn)
            if turn >= before:
                seconds[name].append(now() - start)
    return seconds


def kept_bytes(net: nn.Module, forward: Callable[[], Any]) -> int:
    """What autograd holds after `forward()`, each storage once, without the parameters of `net`."""
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    held: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = (
                storage.nbytes(),
                storage,
            )  # the storage itself, lest another takes its address
        # Not the tensor itself: it holds the graph, which would hold it, and neither would ever be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    total = sum(size for size, _ in held.values())
    held.clear()
    return total


def _run_alone(
    device: str, make: Callable[..., Any], arguments: tuple[Any, ...], answer: Any
) -> None:
    make(*arguments)
    if device == "cpu":
        # Not getrusage, which begins with what the parent held.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        answer.put(int(status.split("VmHWM:")[1].split()[0]) * 1024)
    else:
        answer.put(torch.cuda.max_memory_allocated(device))


def peak_bytes(device: torch.device, make: Callable[..., Any], *arguments: Any) -> int:
    """Return the most bytes that a process of its own holds which calls `make(*arguments)`."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=_run_alone, args=(str(device), make, arguments, answer))
    child.start()
    peak: int = answer.get()
    child.join()
    return peak


def command() -> str:
    """Write the command line that began this process; DIR stands for the folder of the data."""
    words = list(sys.argv)
    if "--data-dir" in words[:-1]:
        words[words.index("--data-dir") + 1] = "DIR"
    return shlex.join(["python", *words])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write the mean of some values, and of several their sample standard deviation."""
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def write_timings(path: Path, device: torch.device, numbers: dict[str, Any]) -> None:
    """Writes the numbers with the command, date, hardware, clock and versions that they belong
    to.
    """
    result = {
        "command": command(),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(device),
        "clock": "process CPU time" if device.type == "cpu" else "wall",
        **numbers,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)


def run(main: Callable[[], None]) -> None:
    """Runs a benchmark; bad input is one line and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def kept_results(path: Path) -> dict[str, Any]:
    """Return what an earlier run of a benchmark has written to a file; empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep_results(path: Path, results: dict[str, Any]) -> None:
    """Write results, with which the next run goes on; never half, whenever it is interrupted."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def p_against_first(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return `paired_p` of the first column against each other one, by its name."""
    (_, first), *others = columns.items()
    return {
        name: paired_p([a - b for a, b in zip(first, column, strict=True)])
        for name, column in others
    }


def shown(values: Sequence[float]) -> str:
    """Return mean and standard deviation as a text, with a digit after the point."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} +- {deviation:.1f}"
