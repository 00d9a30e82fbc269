"""Kill a run after any of its file operations, and compare the records of two runs."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from darts_bio.storage.checkpoint import read_checkpoint

OPERATIONS = ("fsync", "replace", "link", "truncate", "unlink", "mkdir")
"""The functions of `os` that change files, by their names there."""


def killed(work: Callable[[], Any], at: int | None = None) -> bool:
    """Do `work` in a process of its own, which SIGKILL ends at a file operation; say if it did.

    Operation number `at`, counted from 1, is not made any more; of a write, half of it is. With
    None, or if there are fewer operations, the work comes to its end. An error of the work is an
    error here. Nothing waits for the disk, which a killed process does not depend on.
    """
    return _forked(work, at)[0]


def operations(work: Callable[[], Any]) -> int:
    """Do `work` in a process of its own, and return how many file operations it made."""
    return _forked(work, None)[1]


def _forked(work: Callable[[], Any], at: int | None) -> tuple[bool, int]:
    context = multiprocessing.get_context("fork")
    made = context.Value("i", 0, lock=False)
    process = context.Process(target=_process, args=(work, at, made))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "the work failed"
    return process.exitcode != 0, made.value


def _process(work: Callable[[], Any], at: int | None, made: Any) -> None:
    torch.set_num_threads(1)

    def is_due() -> bool:
        made.value += 1
        return bool(made.value == at)

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def call(*args: Any, **options: Any) -> Any:
            if is_due():
                end()
            return operation(*args, **options)

        return call

    class Torn:
        """A file whose writes are operations."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, content: Any) -> Any:
            if is_due():
                self._file.write(content[: len(content) // 2])
                self._file.flush()
                end()
            return self._file.write(content)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Torn:
            return self

        def __exit__(self, *error: Any) -> None:
            self._file.close()

    real_open = io.open

    def torn_open(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real_open(file, mode, *args, **options)
        if is_due():
            end()
        return Torn(real_open(file, mode, *args, **options))

    os.fsync = lambda file: None
    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    io.open = torn_open  # what pathlib calls
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def events_of(run: Path) -> Counter[tuple[int, str, bytes]]:
    """How often each of TensorBoard's values is there: (step, tag, value).

    The value of "run", the options, is left out: some of them may change. So is what the clock and
    the machine say, but not how often they say it.
    """
    found: Counter[tuple[int, str, bytes]] = Counter()
    for path in run.glob("events.out.tfevents.*"):
        for content in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(content)
            for value in event.summary.value:
                varies = value.tag == "run/text_summary" or value.tag.startswith("machine/")
                content = b"" if varies else value.SerializeToString(deterministic=True)
                found[event.step, value.tag, content] += 1
    return found


def records_of(run: Path) -> dict[str, list[Any]]:
    """The lines of all logs of a run, without what the clock says."""
    return {
        path.name: [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")}
            for line in path.read_text().splitlines()
        ]
        for path in run.glob("*.jsonl")
    }


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


def same_runs(one: Path, other: Path, kind: str = "search") -> None:
    """Assert that two runs of a kind have the same checkpoint, records and events."""
    first, second = (read_checkpoint(run / "checkpoint.pt", kind) for run in (one, other))
    assert equal(first, second)
    assert records_of(one) == records_of(other)
    assert events_of(one) == events_of(other)
