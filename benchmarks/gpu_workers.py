"""Processes in which on_gpu.py measures: an illegal access to the GPU's memory, or a hang, costs
one measurement.

A measurement of time has a process of its own, so that neither the memory nor the profiler of the
one before is left in it; the next process imports PyTorch meanwhile.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import multiprocessing
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from gpu_budget import Item

GRACE_S = 15.0
"""Seconds that a measurement may take to end itself in good order, once its own are over."""


@dataclass(frozen=True)
class Place:
    """Where it is measured: the device, whether at the smallest sizes, and the folder that lasts
    between calls.
    """

    device: str
    small: bool
    keep: Path


@dataclass(frozen=True)
class Order:
    """Says what is to be measured, in how many seconds.

    `before` is the result of an earlier call that did not come to an end, `needed` that of the item
    it comes after.
    """

    name: str
    seconds: float
    before: dict[str, Any]
    needed: dict[str, Any]


Measure = Callable[[Place, Order], dict[str, Any]]
"""A measurement: a result of plain values. One that has to go on in another call says so by
`unfinished=True` in it."""


class Worker:
    """A process that measures what it is told to, one thing after the other."""

    def __init__(self, place: Place, module: str) -> None:
        """`module` is that whose `measures(small)` gives the measurements of the items."""
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork would share what has been done to the GPU
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, place, module), daemon=True)
        self.process.start()
        theirs.close()
        self.place = place
        self.used = False
        self._ready = False

    def ready(self) -> bool:
        """Whether it has imported everything and waits to be told; not if it has died on the
        way.
        """
        if not self._ready and self.connection.poll():
            with contextlib.suppress(EOFError, ConnectionError):
                self.connection.recv()
                self._ready = True
        return self._ready

    def tell(self, order: Order) -> None:
        self.used = True
        self.connection.send(order)

    def ask_to_stop(self) -> None:
        """Let a measurement that can end in good order do so, and end all others."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)

    def death(self) -> str:
        """Say how a process ended that did not answer, and where it was: the innermost calls of its
        Python code.
        """
        self.process.join(5)
        code = self.process.exitcode or 0
        words = (
            f"its process died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        )
        crash = _crash_file(self.place, self.process.pid)
        text = crash.read_text(encoding="utf-8", errors="replace") if crash.exists() else ""
        _, _, current = text.partition("Current thread")
        frames = re.findall(
            r'File ".*?([^/"]+)", line (\d+) in (\S+)', current.partition("\n\n")[0]
        )
        return words + (
            " at " + " < ".join(f"{file}:{line} {name}" for file, line, name in frames[:6])
            if frames
            else ""
        )

    def end(self) -> None:
        """End it at once, with all that it has started."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()
        _crash_file(self.place, self.process.pid).unlink(missing_ok=True)


def _crash_file(place: Place, process: int | None) -> Path:
    return place.keep / f"crash-{process}.txt"


def _serve(connection: Connection, place: Place, module: str) -> None:
    os.setpgrp()  # a group of its own, which ends as a whole; Ctrl-C meets the parent alone
    faulthandler.enable(_crash_file(place, os.getpid()).open("w", encoding="utf-8"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    measures: dict[Item, Measure] = importlib.import_module(module).measures(place.small)
    by_name = {item.name: measure for item, measure in measures.items()}
    torch.optim.SGD(
        [torch.zeros(1, requires_grad=True)]
    )  # the first optimizer imports PyTorch's compiler, for seconds
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send("ready")
        while True:
            order = connection.recv()
            connection.send(outcome(by_name[order.name], place, order))


def outcome(measure: Measure, place: Place, order: Order) -> dict[str, Any]:
    """Measure; return the outcome with the result, or with the error and where it arose."""
    start = time.monotonic()
    try:
        result = measure(place, order)
        json.dumps(result)
    except Exception as error:
        where = [
            f"{Path(f.filename).name}:{f.lineno}"
            for f in traceback.extract_tb(error.__traceback__)[-6:]
        ]
        found = {
            "outcome": "failed",
            "error": f"{type(error).__name__}: {error}"[:600],
            "where": " > ".join(where),
        }
    else:
        found = {
            "outcome": "unfinished" if result.pop("unfinished", False) else "done",
            "result": result,
        }
    return found | {"seconds": time.monotonic() - start}


def _end_with_parent() -> None:
    """Whoever was started by a program that was killed would keep the GPU."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(os.getpid(), signal.SIGKILL)
