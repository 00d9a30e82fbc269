"""The processes of torchrun, or of SLURM's srun: who they are, what they tell each other, and how
they end together.

Alone, a process is rank 0 of 1, and everything here returns what it was given.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from darts_bio.errors import InputError, first_line

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=10)
"""For a process that neither answers nor has ended; one that has ended is noticed at once."""
AT_THE_START = datetime.timedelta(minutes=1)
"""For a process that does not say what it was started with, though all have met."""
AS_LONG_AS_IT_TAKES = datetime.timedelta(days=1000)
REASON_S = 5.0
REASON, BLAMED, LEFT, TOLD = (
    f"darts_bio/{name}" for name in ("reason", "failures", "left", "told")
)

_store: dist.Store | None = None
"""Where the processes of the group left texts for each other."""
_comparisons = itertools.count()
_apart = False
"""Whether this process is alone for a while, though there are others."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Within it the processes that torchrun or srun started know each other; alone, there is
    nothing to do.

    Each takes the GPU of its number on its machine, if there are any. Where one process fails, the
    others end with an InputError that says why that one did. Raises InputError if the environment
    does not say where they meet, and if they have not all come there within TIMEOUT.
    """
    global _store
    if not _several() or dist.is_initialized():  # within another such context
        yield
        return
    local, number, world = _who()
    if "MASTER_ADDR" not in os.environ:
        raise InputError(
            "several processes, but MASTER_ADDR does not say where they meet; start them by "
            "torchrun, or before srun: "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500'
        )
    os.environ.update(
        {
            "RANK": str(number),
            "WORLD_SIZE": str(world),
            "MASTER_PORT": os.environ.get("MASTER_PORT", "29500"),
        }
    )
    gpus = torch.cuda.device_count()
    if gpus:
        if local >= gpus:
            raise InputError(
                f"process {local} of this machine: found {gpus} GPU(s); start as many processes as "
                "GPUs"
            )
        torch.cuda.set_device(local)
    # Its functions take the group that stands when it is imported as a default value. Imported
    # later, by whatever needs the compiler, it would keep the group and its threads alive until the
    # interpreter ends, which a thread that still lets go of a tensor then aborts.
    importlib.import_module("torch.distributed.nn.functional")
    # gloo beside nccl, for numbers that lie on the CPU.
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    try:
        store = next(dist.rendezvous("env://", timeout=TIMEOUT))[0]
        # After an elastic restart the store still holds where the processes before were to be
        # found.
        store = _store = dist.PrefixStore(
            f"darts_bio/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
        )
        dist.init_process_group(
            backend, store=store, rank=number, world_size=world, timeout=TIMEOUT
        )
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"process {number}: the {world} processes did not all come to {where} within "
            f"{TIMEOUT.total_seconds():.0f} "
            f"s ({first_line(error)}); see whether each was started, and whether MASTER_ADDR and "
            "MASTER_PORT are the "
            "same in all"
        ) from None
    try:
        yield
    except Exception as error:
        # torchrun sends it as soon as one has failed; this one still has to say why it ends.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        theirs = _reason_of_another(store, number, error)
        _leave(store, number, world)
        if theirs is None:
            raise
        if isinstance(error, InputError) and theirs.endswith(
            f": {error}"
        ):  # the same in all: one line is enough
            raise SystemExit(2) from None
        raise InputError(
            f"process {number} ends, since {theirs}. The last checkpoint is whole"
        ) from None
    summed(torch.zeros(1))  # none ends while another still talks to it
    dist.destroy_process_group()


def _several() -> bool:
    """Whether torchrun, or srun, started more than this process. An allocation of SLURM alone says
    nothing of that.
    """
    return any(
        int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    )


def _who() -> tuple[int, int, int]:
    """The number of this process on its machine, that among all, and how many there are."""
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE")
    if all(
        name in os.environ for name in names
    ):  # torchrun: timm, which knows all launchers, takes seconds to import
        return int(os.environ[names[0]]), int(os.environ[names[1]]), int(os.environ[names[2]])
    from timm.utils import world_info_from_env

    return world_info_from_env()


def _reason_of_another(store: dist.Store, number: int, error: Exception) -> str | None:
    """What another process failed of before this one; None, told to the others, if this one is the
    first.
    """
    own = f"process {number} failed: {first_line(error) if isinstance(error, InputError) else repr(error)}"
    lost = _has_lost_another(error)
    try:
        if not lost and store.add(BLAMED, 1) == 1:
            store.set(REASON, own)
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
    """Has the first process, where it keeps the store, wait until the others have read there why
    they end.
    """
    with contextlib.suppress(RuntimeError):
        store.set(f"{LEFT}/{number}", "")
        if number == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
            _missing(store, LEFT, range(1, world), datetime.timedelta(seconds=REASON_S))


def _has_lost_another(error: Exception) -> bool:
    """Whether what failed is an exchange with another process."""
    signs = ("gloo", "nccl", "connection", "socket", "timed out")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
    )


def _missing(
    store: dist.Store, place: str, numbers: Sequence[int], within: datetime.timedelta
) -> list[int]:
    """The numbers for which nothing has come to lie at `place` within that time."""
    until, missing = time.monotonic() + within.total_seconds(), list(numbers)
    # Asked again and again: a store's own way to wait leaves a broken connection once the time is
    # over.
    while (
        missing := [i for i in missing if not store.check([f"{place}/{i}"])]
    ) and time.monotonic() < until:
        time.sleep(0.05)
    return missing


def launcher() -> list[str]:
    """The words of the command that started these processes, before the script's."""
    if world_size() == 1:
        return ["python"]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["srun", "python"]
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = [] if here == world_size() else ["--nnodes", str(world_size() // here)]
    return ["torchrun", *nodes, "--nproc-per-node", str(here)]


def rank() -> int:
    """The number of this process; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() and not _apart else 0


def world_size() -> int:
    """How many processes there are; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_initialized() and not _apart else 1


@contextlib.contextmanager
def apart(alone: bool = True) -> Iterator[None]:
    """Within it this process is one of one, as if there were no others; with alone=False, one of
    all again.
    """
    global _apart
    before, _apart = _apart, alone
    try:
        yield
    finally:
        _apart = before


def patient_group() -> Any:
    """A group for `gathered`, in which processes wait for each other however long that takes; one
    that ends is noticed at once. All have to ask for it together.
    """
    return dist.new_group(backend="gloo", timeout=AS_LONG_AS_IT_TAKES) if world_size() > 1 else None


def refuse_differences(told: Mapping[str, str], within: datetime.timedelta = AT_THE_START) -> None:
    """Raises InputError, in all processes, if these texts, by what they are about, are not the same
    in all, and if one has not told its own within that time.
    """
    if world_size() == 1:
        return
    assert _store is not None
    place, numbers = f"{TOLD}/{next(_comparisons)}", range(world_size())
    _store.set(f"{place}/{rank()}", json.dumps(dict(told)))
    silent = _missing(_store, place, numbers, within)
    everyone: list[dict[str, str]] = [
        json.loads(_store.get(f"{place}/{i}")) for i in numbers if i not in silent
    ]
    if silent:
        raise InputError(
            f"process {', '.join(map(str, silent))} did not say within "
            f"{within.total_seconds():.0f} s what it was "
            "started with; start all by the same command, and see what that one does"
        )
    first = everyone[0]
    for i, theirs in enumerate(everyone):
        for name in {**first, **theirs}:
            if theirs.get(name) != first.get(name):
                found = [
                    f"{own.get(name, 'nothing'):.80} in process {j}"
                    for j, own in ((0, first), (i, theirs))
                ]
                raise InputError(
                    f"{name}: expected the same in all processes, found {' and '.join(found)}; "
                    "start all by the same "
                    "command, with the same code and data"
                )


@contextlib.contextmanager
def first_before_the_others() -> Iterator[None]:
    """Within it the first process is done before the others begin, so that only it downloads what
    they all read.
    """
    if world_size() > 1 and rank() > 0:
        summed(torch.zeros(1))
    yield
    if world_size() > 1 and rank() == 0:
        summed(torch.zeros(1))


def from_first(tensors: Sequence[torch.Tensor]) -> None:
    """Gives each process the first one's values of these tensors, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def text_from_first(text: str) -> str:
    """The first process' text, in each."""
    texts = [text]
    if world_size() > 1:
        dist.broadcast_object_list(texts, 0)
    return texts[0]


def first_says(flag: bool) -> bool:
    """The first process' flag, in each."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(flag)
    dist.broadcast(flags, 0)
    return bool(flags)


def gathered(value: T, group: Any = None) -> list[T]:
    """Every process' value (plain data), in the order of their numbers; those of all, unless a
    `group` is given.
    """
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values  # type: ignore[return-value]


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of a CPU tensor over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


@torch.no_grad()
def average(tensors: Sequence[torch.Tensor]) -> None:
    """Gives each process the mean of these tensors over all, in place: one exchange for those of a
    dtype.
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for members in by_dtype.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in members])
        dist.all_reduce(flat)
        flat /= world_size()
        parts = flat.split([tensor.numel() for tensor in members])
        # A few kernels, where a supernet has thousands of tensors.
        torch._foreach_copy_(
            members, [part.view_as(own) for own, part in zip(members, parts, strict=True)]
        )


class _OfAll(torch.autograd.Function):
    """Gives what it is given; the gradient that comes back is the mean over all processes."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        means = tuple(gradient.clone() for gradient in gradients)
        average(means)
        return means


def mean_of_all(
    function: Callable[[Sequence[torch.Tensor]], torch.Tensor], at: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Returns the mean over all processes of `function(at)`, a scalar, and has its gradient at
    `at`, which is the same in all, be the mean as well. For where whoever differentiates it knows
    nothing of processes.
    """
    if world_size() == 1:
        return function(at)
    own = function(_OfAll.apply(*at))
    mean = own.detach().clone()
    average([mean])
    return mean + (own - own.detach())


@torch.no_grad()
def refuse_drift(tensors: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Raises InputError if these tensors, which all processes compute alike, are not the same in
    all. They are named by what they are, in the plural.
    """
    named = [(name, tensor) for name, own in tensors.items() for tensor in own]
    if world_size() == 1 or not named:
        return
    # What has diverged alike is not for here.
    sums = torch.stack([tensor.double().sum().cpu() for _, tensor in named]).nan_to_num()
    most, least = sums.clone(), sums.clone()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    apart = dict.fromkeys(
        name for (name, _), differ in zip(named, most != least, strict=True) if differ
    )
    if apart:
        raise InputError(
            f"the processes have drifted apart: {' and '.join(apart)} are no longer the same in "
            "all; run all on the "
            "same kind of device and with the same versions, and have a plug-in average what it "
            "moves along "
            "(darts_bio.distributed.average)"
        )
