"""Seeds, RNG state, device, precision, and a polite end on Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import random
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch

from darts_bio.distributed import summed, world_size
from darts_bio.errors import InputError
from darts_bio.version import __version__

T = TypeVar("T")


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on all parts and on nothing else: not on call order, process
    or platform.

    >>> derive_seed(0, "stem") == derive_seed(0, "stem") != derive_seed(1, "stem")
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A fresh generator on `device`, seeded by `derive_seed(*parts)`."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def select_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises InputError for a device that is not there.

    On a GPU float32 products use TF32 from then on, and cuDNN picks its kernels by timing them.
    """
    try:
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
        )
    except RuntimeError:
        raise InputError(f"--device: expected auto, cpu, cuda or cuda:N, found {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device {name}: this PyTorch ({torch.__version__}) sees no GPU; use --device cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: {torch.cuda.device_count()} GPU(s) found, numbered from 0"
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    if device.type == "cuda":
        if (
            device.index is not None
        ):  # what names no device (streams, generators) is meant for this one
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return device


Run = Callable[..., Any]
"""Maps a function and the tensors it is to be called with to what it returns: `call`, or a recorder
of CUDA graphs (`training.graphs.Recorder`)."""


def call(function: Callable[..., T], *inputs: torch.Tensor, situation: Hashable = ()) -> T:
    """Return what the function returns; `situation` is what a recorder would have to know beside
    the inputs.
    """
    return function(*inputs)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it the default generators of Python, NumPy and PyTorch's CPU start from `seed`; then
    all is as before.
    """
    with generators_kept():
        seed_generators(seed)
        yield


def seed_generators(seed: int) -> None:
    """Start the default generators of Python, NumPy and PyTorch's CPU from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Put the default generators of Python, NumPy and PyTorch's CPU back at the end to where they
    stand now.

    That takes several times as long as `seed_generators`, so who seeds them often does it within
    one of these.
    """
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def hardware(device: torch.device) -> str:
    """Name the device, of a CPU its model, the instruction set that PyTorch's kernels use, and the
    threads.

    The last digits of results depend on all of these.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    instructions = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    limited = f" (oneDNN: {limit})" if limit else ""
    return f"{_processor()}, {instructions}{limited}, {torch.get_num_threads()} thread(s)"


def made_by() -> str:
    """Name the day and the versions that made a number, for the reports that quote it."""
    day = datetime.date.today().isoformat()
    return f"{day}; darts_bio {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def code_identity() -> str:
    """Name the versions of this package and of PyTorch, with a digest of this package's files, in a
    line.
    """
    digest, home = hashlib.blake2b(digest_size=8), Path(__file__).parent
    for path in sorted(home.rglob("*.py")):
        digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return f"PyTorch {torch.__version__}, darts_bio {__version__}, digest {digest.hexdigest()}"


def _processor() -> str:
    """Give the model's name where Linux tells it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return f"{names[0]} ({platform.machine()})" if names else f"{platform.machine()} CPU"


def worker_count(asked: int | None) -> int:
    """Of `--workers`: if that is not given this process' share of the machine's cores, at most
    16.
    """
    if asked is not None:
        return asked
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device. From page-locked memory, for which Python need not wait until the
    GPU is idle.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def fill(target: torch.Tensor, values: torch.Tensor) -> None:
    """Put a CPU tensor's values into a tensor on any device, in place. As `send`, Python does not
    wait for the GPU.
    """
    on_gpu = target.device.type == "cuda"
    target.copy_(values.pin_memory() if on_gpu else values, non_blocking=on_gpu)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The autocast context of `--amp none|bf16`. Each weight is used once a pass, so no casts are
    kept.
    """
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=amp == "bf16", cache_enabled=False
    )


def precision_notes(device: torch.device, amp: str) -> list[str]:
    """Say in a line what `--amp bf16` costs where it gains nothing; no line elsewhere."""
    if device.type != "cpu" or amp != "bf16":
        return []
    return [
        "--amp bf16 on a CPU takes 1.5 to 2.5 times as long as float32 (as measured on two "
        "processors)"
    ]


def rng_state() -> dict[str, torch.Tensor]:
    """The states of PyTorch's default generators (drop path draws from them), those of GPUs if they
    are in use.
    """
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Puts back what `rng_state` returned; devices that are absent here are passed over."""
    torch.set_rng_state(state["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda:{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda:{i}"], i)


SAME_REQUEST_S = 1.0


class StopRequest:
    """Set by the first Ctrl-C or SIGTERM; the training loop asks it after each step and ends in
    good order.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        """Whether to stop; with several processes, whether any of them was asked to. All have to
        ask alike.
        """
        if world_size() == 1:
            return self.signal is not None
        asked = summed(torch.tensor(0 if self.signal is None else int(self.signal)))
        if asked and self.signal is None:
            self.signal = signal.SIGTERM
        return bool(asked)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it; 0 without one."""
        return 128 + self.signal if self.signal else 0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM only sets the request; another, a second later or more,
    acts as it always does. (One Ctrl-C may arrive twice: from the terminal, and passed on by what
    started this process.)

    A signal that whoever started this process has it ignore (a shell, for its background jobs)
    stays ignored. Outside the main thread, where Python lets nobody take signals, the request is
    never set.
    """
    request, requested_at = StopRequest(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    previous = {s: handler for s, handler in previous.items() if handler is not signal.SIG_IGN}

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        if request.signal is None:
            request.signal, requested_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - requested_at >= SAME_REQUEST_S:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
