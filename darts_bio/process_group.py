"""The processes that torchrun or srun started: how they meet, and how they end together.

They meet in a store, PyTorch's table of texts by key, which the first process or torchrun keeps.
Where a process may be silent or may have failed, texts pass through the store: a collective would
wait for that process, and could not tell which one it is. What is exchanged while all goes well is
in `distributed`.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from darts_bio.distributed import rank, summed, world_size
from darts_bio.environment import START_SECONDS, meeting_place, ranks, several, start_limit
from darts_bio.errors import InputError, first_line

TIMEOUT = datetime.timedelta(minutes=10)
"""How long to wait for a process that neither answers nor has ended.

One that has ended is noticed at once."""
REASON_S = 5.0
"""Seconds in which a process that failed writes down why, and in which the others read it."""
REASON = "darts_bio/reason"
"""The key of the store under which the process that failed first says why."""
BLAMED = "darts_bio/failures"
"""The key under which processes that failed by themselves are counted."""
LEFT = "darts_bio/left"
"""The prefix of the keys by which processes say that they have read the reason."""
HERE = "darts_bio/here"
"""The prefix of the keys by which processes say that they have come."""
NOTE = "darts_bio/note"
"""The prefix of the keys of `leave_note`."""
TOLD = "darts_bio/told"
"""The prefix of the keys under which processes say what they were started with."""

_store: dist.Store | None = None
"""The key-value store in which the processes of the group leave texts for each other."""
_store_of_job: dist.Store | None = None
"""The store below it, which the processes after an elastic restart of torchrun find again."""
_comparisons = itertools.count()
"""Numbers the calls of `refuse_differences`, so that each has keys of its own."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Connect, within the context, the processes that torchrun or srun started.

    Each takes the GPU of its number on its machine, if there are any. Where one process fails, the
    others end with an InputError that says why that one did. In a process that runs alone, or
    within another such context, nothing happens.

    Raises:
        InputError: The environment does not say where the processes meet, they have not all come
            there within `start_limit`, there are more of them than GPUs, or another one has failed.

    >>> with process_group():
    ...     rank(), world_size()
    (0, 1)
    """
    if not several() or dist.is_initialized():  # alone, or within another such context
        yield
        return
    store, number, world = _join()
    try:
        yield
    except Exception as error:
        # torchrun sends SIGTERM to all as soon as one has failed; this one still has to say why it
        # ends.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = _reason_of_another(store, number, error)
        _leave(store, number, world)
        if reason is None:
            raise
        same_error = isinstance(error, InputError) and reason.endswith(f": {error}")
        if same_error:  # all processes fail alike: one of them prints the line
            raise SystemExit(2) from None
        raise InputError(
            f"process {number} ends, since {reason}. The last checkpoint is whole"
        ) from None
    summed(torch.zeros(1))  # a barrier: none ends while another still talks to it
    dist.destroy_process_group()


def _join() -> tuple[dist.Store, int, int]:
    """Join this process to the group of all, on its GPU if there are any.

    Return the store that they share, the number of this process, and how many there are. Raises
    InputError as `process_group` does.
    """
    global _store, _store_of_job
    local, number, world = ranks()
    host, port = meeting_place()
    limit = start_limit()
    # What torchrun sets and srun does not.
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(number), str(world)
    os.environ["MASTER_PORT"] = str(port)
    gpus = torch.cuda.device_count()
    if gpus:
        if local >= gpus:
            raise InputError(
                f"process {local} of this machine: found {gpus} GPU(s); start as many processes as "
                "GPUs"
            )
        torch.cuda.set_device(local)
    # The functions of this module take, as a default value, the group that stands when it is
    # imported. Imported later, by whatever needs the compiler, it would keep our group and its
    # threads alive until the interpreter ends; a thread that still lets go of a tensor then aborts.
    importlib.import_module("torch.distributed.nn.functional")
    # gloo beside nccl, for numbers that lie on the CPU.
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    _store_of_job = _meet(host, port, number, world, limit)
    # A prefix for each elastic restart: the store still holds the addresses of the processes before
    # it.
    _store = dist.PrefixStore(_prefix(), _store_of_job)
    try:
        dist.init_process_group(
            backend, store=_store, rank=number, world_size=world, timeout=TIMEOUT
        )
    except RuntimeError as error:
        raise InputError(
            f"process {number}: the {world} processes have met, but cannot connect "
            f"({first_line(error)}); see the others' messages, and whether the machines reach each "
            "other (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network)"
        ) from None
    return _store, number, world


def _meet(host: str, port: int, number: int, world: int, within: datetime.timedelta) -> dist.Store:
    """Return the store where all processes meet, once all are there.

    Raises:
        InputError: They do not all come there in time.
    """
    until = time.monotonic() + within.total_seconds()
    found: list[dist.Store | Exception] = []
    missing = list(range(world))
    try:
        if number > 0 or "TORCHELASTIC_RUN_ID" in os.environ:
            _await_listener(host, port, until)

        def enter() -> None:
            try:
                found.append(next(dist.rendezvous("env://", timeout=within))[0])
            except Exception as error:  # raised below
                found.append(error)

        # In a thread, since PyTorch waits without a limit for an answer of whatever listens there.
        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        thread.join(max(0.0, until - time.monotonic()) + 1.0)  # a moment for PyTorch's own limit
        if not found:
            raise RuntimeError("what listens there does not answer")
        if isinstance(found[0], Exception):
            raise found[0]
        store = dist.PrefixStore(_prefix(), found[0])
        store.set(f"{HERE}/{number}", "")
        missing = _missing(
            store, HERE, missing, datetime.timedelta(seconds=until - time.monotonic())
        )
        if not missing:
            return found[0]
        reason = f"missing: {', '.join(map(str, missing))}"
    except (RuntimeError, OSError) as error:
        reason = first_line(error)
    if "EADDRINUSE" in reason:
        raise InputError(
            f"process {number}: port {port} of {host}, where the processes are to meet, is in use by "
            "another program; choose another MASTER_PORT"
        )
    raise InputError(
        f"process {number}: the {world} processes did not all come to {host}:{port} within "
        f"{within.total_seconds():.0f} s ({reason}); see whether each was started, and whether "
        f"MASTER_ADDR and MASTER_PORT are the same in all; {START_SECONDS}=300 waits longer"
    )


def _prefix() -> str:
    """Return the prefix of the keys of the processes since the last elastic restart."""
    return f"darts_bio/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _await_listener(host: str, port: int, until: float) -> None:
    """Wait until something listens there; raise OSError if nothing does in time.

    PyTorch's own way to wait writes pages about it.
    """
    while True:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
            return
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)


def _reason_of_another(store: dist.Store, number: int, error: Exception) -> str | None:
    """Return why another process failed before this one, as a clause.

    None if this one is the first; its own error is then left in the store for the others.
    """
    message = first_line(error) if isinstance(error, InputError) else repr(error)
    lost = _has_lost_another(error)
    try:
        # Of processes that fail by themselves, the first to count itself is the one to blame. A
        # broken exchange is the consequence of a failure elsewhere, and is not counted.
        if not lost and store.add(BLAMED, 1) == 1:
            store.set(REASON, f"process {number} failed: {message}")
            return None
        until = time.monotonic() + REASON_S
        while time.monotonic() < until:
            if store.check([REASON]):
                return store.get(REASON).decode()
            time.sleep(0.1)
    except RuntimeError:  # the process that kept the store has ended as well
        pass
    return "another one ended without a word (killed, perhaps for its memory)" if lost else None


def _leave(store: dist.Store, number: int, world: int) -> None:
    """Say in the store that this process has read why it ends.

    The first process, where it keeps the store itself, then waits for the others to say so: with it
    the store ends. Under torchrun the launcher keeps the store.
    """
    with contextlib.suppress(RuntimeError):
        store.set(f"{LEFT}/{number}", "")
        if number == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
            _missing(store, LEFT, range(1, world), datetime.timedelta(seconds=REASON_S))


def _has_lost_another(error: Exception) -> bool:
    """Tell whether an error comes from an exchange with another process."""
    signs = ("gloo", "nccl", "connection", "socket", "timed out")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
    )


def _missing(
    store: dist.Store, prefix: str, numbers: Sequence[int], within: datetime.timedelta
) -> list[int]:
    """Wait for the keys `prefix/number`; return the numbers whose key is not set in time."""
    until, missing = time.monotonic() + within.total_seconds(), list(numbers)
    # Asked again and again: a store's own way to wait leaves a broken connection once the time is
    # over.
    while True:
        missing = [i for i in missing if not store.check([f"{prefix}/{i}"])]
        if not missing or time.monotonic() >= until:
            return missing
        time.sleep(0.05)


def leave_note(key: str, text: str) -> None:
    """Leave a text for the first process after an elastic restart of torchrun, which `note` reads.

    >>> leave_note("folder", "runs/search-1")
    >>> note("folder") is None  # alone, there is nobody to keep it
    True
    """
    if world_size() > 1 and _store_of_job is not None:
        _store_of_job.set(f"{NOTE}/{key}", text)


def note(key: str) -> str | None:
    """Return what `leave_note` left under a key, also before an elastic restart; None if nothing.

    >>> note("folder") is None
    True
    """
    if world_size() == 1 or _store_of_job is None or not _store_of_job.check([f"{NOTE}/{key}"]):
        return None
    return _store_of_job.get(f"{NOTE}/{key}").decode()


def launcher() -> list[str]:
    """Return the words of the command that started these processes, before the script's.

    >>> launcher()
    ['python']
    """
    if world_size() == 1:
        return ["python"]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["srun", "python"]
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = [] if here == world_size() else ["--nnodes", str(world_size() // here)]
    return ["torchrun", *nodes, "--nproc-per-node", str(here)]


def refuse_differences(told: Mapping[str, str], within: datetime.timedelta | None = None) -> None:
    """Raise InputError, in all processes, unless all were started with the same.

    Args:
        told: This process' texts to compare, by what they are about: {"the command": ...}.
        within: How long to wait for a process to tell its own; by default as long as at the start.

    Raises:
        InputError: A text differs between two processes, or a process told nothing in time.

    >>> refuse_differences({"the command": "darts-bio search"})  # alone, nothing can differ
    """
    if world_size() == 1:
        return
    assert _store is not None
    within = start_limit() if within is None else within
    # Through the store, not by a collective: that one could not tell which process is silent.
    prefix, numbers = f"{TOLD}/{next(_comparisons)}", range(world_size())
    _store.set(f"{prefix}/{rank()}", json.dumps(dict(told)))
    silent = _missing(_store, prefix, numbers, within)
    told_by_all: list[dict[str, str]] = [
        json.loads(_store.get(f"{prefix}/{i}")) for i in numbers if i not in silent
    ]
    if silent:
        raise InputError(
            f"process {', '.join(map(str, silent))} did not say within "
            f"{within.total_seconds():.0f} s what it was started with; start all by the same "
            "command, and see what that one does"
        )
    first = told_by_all[0]
    for i, other in enumerate(told_by_all):
        for name in {**first, **other}:
            if other.get(name) != first.get(name):
                raise InputError(
                    f"{name}: expected the same in all processes, found "
                    f"{first.get(name, 'nothing'):.80} in process 0 and "
                    f"{other.get(name, 'nothing'):.80} in process {i}; start all by the same "
                    "command, with the same code and data"
                )
