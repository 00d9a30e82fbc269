"""Several processes that find each other as those of torchrun or srun do, started from here.

A fork has PyTorch imported already, which takes longer than what most tests do.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LAUNCHERS = ("torchrun", "srun")


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (that of a signal is negative), and what it wrote."""

    code: int | None
    output: str
    errors: str


def several(
    count: int,
    work: Callable[..., Any],
    *args: Any,
    place: Path,
    launcher: str = "torchrun",
    seconds: float = 120,
) -> list[Ended]:
    """Have `count` processes do `work(number, *args)` in the folder `place`, each with the
    variables that the launcher sets, and return how they ended; those that have not ended after so
    many seconds are killed.
    """
    import_for_forks()
    port = free_port()
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    started = []
    for number in range(count):
        variables = _variables(launcher, number, count) | {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        process = context.Process(target=_process, args=(work, number, args, place, variables))
        process.start()
        started.append(process)
    deadline = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
    written = [
        [(place / f"{number}.{kind}").read_text() for kind in ("out", "err")]
        for number in range(count)
    ]
    return [
        Ended(process.exitcode, *texts) for process, texts in zip(started, written, strict=True)
    ]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def import_for_forks() -> None:
    """Import here what a command imports when it needs it, so that no fork has to."""
    for name in (
        *("torch.distributed.nn.functional", "torch.utils.tensorboard"),
        *("darts_bio.runs.search", "darts_bio.runs.train"),
    ):
        importlib.import_module(name)
    torch.optim.SGD([torch.zeros(1)], lr=1.0)


def _variables(launcher: str, number: int, count: int) -> dict[str, str]:
    if launcher == "torchrun":
        return {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
    numbers = {
        "SLURM_PROCID": number,
        "SLURM_LOCALID": number,
        "SLURM_NTASKS": count,
        "SLURM_STEP_NUM_TASKS": count,
    }
    return {name: str(value) for name, value in numbers.items()}


def _process(
    work: Callable[..., Any], number: int, args: Any, place: Path, variables: dict[str, str]
) -> None:
    torch.set_num_threads(1)
    os.chdir(place)
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        del os.environ[name]
    os.environ.update(variables)
    with (
        (place / f"{number}.out").open("w") as sys.stdout,
        (place / f"{number}.err").open("w") as sys.stderr,
    ):
        try:
            work(number, *args)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            sys.exit(1)
