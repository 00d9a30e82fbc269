"""Seeds, states of generators, the device, its precision, and an orderly end on signals."""

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

from darts_bio.distributed import largest, world_size
from darts_bio.errors import InputError
from darts_bio.version import __version__

T = TypeVar("T")

SMALL_MAPS = 1 << 16
"""Numbers in the feature maps of a batch up to which a second thread does not pay: 64 maps of 8 or
16 channels of 8x8 have that many, and 64 of 32 channels of 8x8, or of 8 channels of 16x16, twice as
many."""


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2^63) that depends on all parts and on nothing else.

    Not on the order of calls, the process or the platform. A feedback tensor's seed, for example,
    comes from the run's seed and its layer's name.

    >>> derive_seed(0, "stem") == derive_seed(0, "stem") != derive_seed(1, "stem")
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """Return a new generator on `device`, seeded by `derive_seed(*parts)`.

    >>> torch.rand(2, generator=generator("cpu", "example", 0))
    tensor([0.0435, 0.8887])
    """
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def select_device(name: str) -> torch.device:
    """Return the device that `--device` names; `auto` is the GPU where there is one.

    For a GPU this also sets up PyTorch: float32 products use TF32 from then on, and cuDNN picks its
    kernels by timing them.

    Raises:
        InputError: The name is not that of a CPU or GPU, or there is no such GPU.

    >>> select_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
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
        if device.index is not None:
            # Streams and generators that name no device are meant for this one.
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return device


Caller = Callable[..., Any]
"""Something that calls a function with tensors and returns what it returns.

It is `call`, or a recorder of CUDA graphs (`training.graphs.Recorder`), which may replay what the
function did before."""


def call(function: Callable[..., T], *inputs: torch.Tensor, situation: Hashable = ()) -> T:
    """Call a function with tensors and return what it returns: a `Caller` that records nothing.

    `situation` is for recorders alone: whatever the function depends on beside its inputs.

    >>> call(torch.add, torch.tensor(1), torch.tensor(2))
    tensor(3)
    """
    return function(*inputs)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start the default generators from `seed` within the context; restore them at the end.

    These are Python's, NumPy's and that of PyTorch's CPU.

    >>> with seeded(1):
    ...     first = torch.rand(1)
    >>> with seeded(1):
    ...     torch.equal(first, torch.rand(1))
    True
    """
    with generators_kept():
        seed_generators(seed)
        yield


def seed_generators(seed: int) -> None:
    """Start the default generators of Python, NumPy and PyTorch's CPU from `seed`.

    >>> with generators_kept():
    ...     seed_generators(0)
    ...     random.random(), float(np.random.rand())
    (0.8444218515250481, 0.5488135039273248)
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy takes 32 bits
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the default generators of Python, NumPy and PyTorch's CPU at the end.

    That takes several times as long as `seed_generators`: code that seeds them often does so within
    one such context.

    >>> before = torch.get_rng_state()
    >>> with generators_kept():
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


_at_work = threading.RLock()
"""Held by the thread whose run this process makes."""


@contextlib.contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Have PyTorch work within the context as it does in a new process, and this thread alone.

    Gradients are recorded, numbers are float32 on the CPU if nothing else is said, and nothing is
    cast, whatever context or default a program has set. Everything is restored at the end.

    Raises InputError if another thread is within such a context: both would draw from the default
    generators, which are the process' own, and neither run could be repeated.

    >>> with torch.no_grad(), as_in_a_new_process():
    ...     torch.is_grad_enabled()
    True
    """
    if not _at_work.acquire(blocking=False):
        raise InputError(
            "expected one run at a time in a process, found another thread at one; make them one "
            "after the other, or each in a process of its own"
        )
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if device.type != "cpu":  # such a context slows every call down
                stack.enter_context(torch.device("cpu"))
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
        _at_work.release()


@contextlib.contextmanager
def threads_that_pay(
    device: torch.device, batch_size: int, channels: int, size: tuple[int, int]
) -> Iterator[None]:
    """Compute small feature maps on a CPU in one thread within the context; restore the number after.

    Threads that share an operation wait for each other at its end, and on maps as small as the
    digits' that takes about as long as the work: two take much more CPU time than one, and are
    hardly sooner done (docs/performance.md). So results of such networks do not depend on how many
    cores there are. A number that OMP_NUM_THREADS gives is left as it is.

    Args:
        device: Where the network is; on a GPU nothing changes.
        batch_size: The number of images in a batch.
        channels: The channels of a node in the first cell.
        size: (height, width) of an image in pixels.

    >>> before = torch.get_num_threads()
    >>> with threads_that_pay(torch.device("cpu"), 64, 8, (8, 8)):
    ...     torch.get_num_threads() in (1, before)
    True
    """
    before = torch.get_num_threads()
    small = batch_size * channels * size[0] * size[1] <= SMALL_MAPS
    if device.type != "cpu" or not small or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hardware(device: torch.device) -> str:
    """Return a name of the device: a GPU's model, or all of a CPU that results depend on.

    The last digits of a number that is computed on a CPU depend on its model, the instruction set
    that PyTorch's kernels use (and the one that ONEDNN_MAX_CPU_ISA limits oneDNN to), and the
    number of threads.

    >>> hardware(torch.device("cpu")).endswith(f"{torch.get_num_threads()} thread(s)")
    True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    instructions = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    limited = f" (oneDNN: {limit})" if limit else ""
    return f"{_processor()}, {instructions}{limited}, {torch.get_num_threads()} thread(s)"


def made_by() -> str:
    """Return the day and the versions that made a number, for the reports that quote it.

    >>> made_by()  # doctest: +ELLIPSIS
    '20...; darts_bio 0..., PyTorch 2..., Python 3...'
    """
    day = datetime.date.today().isoformat()
    return (
        f"{day}; darts_bio {__version__}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def code_identity() -> str:
    """Return the versions of this package and PyTorch, and a digest of this package's files.

    Processes compare it to make sure that they all run the same code.

    >>> code_identity()  # doctest: +ELLIPSIS
    'PyTorch 2..., darts_bio 0..., digest ...'
    """
    digest, home = hashlib.blake2b(digest_size=8), Path(__file__).parent
    for path in sorted(home.rglob("*.py")):
        digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return f"PyTorch {torch.__version__}, darts_bio {__version__}, digest {digest.hexdigest()}"


def _processor() -> str:
    """Return the CPU's model where Linux tells it, else the architecture alone."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return f"{names[0]} ({platform.machine()})" if names else f"{platform.machine()} CPU"


def worker_count(asked: int | None) -> int:
    """Return how many data-loading workers `--workers` asks this process to start.

    By default as many as its share of the machine's cores, between 1 and 16; the cores are shared
    out among the processes that torchrun started on this machine.

    >>> worker_count(3), 1 <= worker_count(None) <= 16
    (3, True)
    """
    if asked is not None:
        return asked
    # The cores that this process may use, which in a container are fewer; macOS does not tell.
    tells = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if tells else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, cores // processes))


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on the device.

    A GPU is sent it from page-locked memory: a copy from other memory would have Python wait until
    the GPU is idle.

    >>> send(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def fill(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copy a CPU tensor's values into a tensor on any device, in place.

    As in `send`, Python does not wait for the GPU.

    >>> target = torch.zeros(2)
    >>> fill(target, torch.ones(2))
    >>> target
    tensor([1., 1.])
    """
    on_gpu = target.device.type == "cuda"
    target.copy_(values.pin_memory() if on_gpu else values, non_blocking=on_gpu)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return the autocast context of `--amp none|bf16`.

    Each weight is used once in a pass, so casts of weights are not kept for a second use.

    >>> layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    >>> for amp in ("none", "bf16"):
    ...     with autocast(torch.device("cpu"), amp):
    ...         layer(x).dtype
    torch.float32
    torch.bfloat16
    """
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=amp == "bf16", cache_enabled=False
    )


def precision_notes(device: torch.device, amp: str) -> list[str]:
    """Return a line, as a list, that warns of `--amp bf16` where it gains nothing; else no lines.

    >>> len(precision_notes(torch.device("cpu"), "bf16")), precision_notes(torch.device("cpu"), "none")
    (1, [])
    """
    if device.type != "cpu" or amp != "bf16":
        return []
    return [
        "--amp bf16 on a CPU takes 1.5 to 2.5 times as long as float32 (as measured on two "
        "processors)"
    ]


def rng_state() -> dict[str, torch.Tensor]:
    """Return the states of PyTorch's default generators, from which drop path draws.

    They are keyed "cpu", "cuda:0" and so on; those of GPUs are there once a GPU is in use.

    >>> state = rng_state()
    >>> first = torch.rand(1)
    >>> set_rng_state(state)
    >>> torch.equal(first, torch.rand(1))
    True
    """
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for i, gpu_state in enumerate(torch.cuda.get_rng_state_all()):
            state[f"cuda:{i}"] = gpu_state
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Set PyTorch's default generators to what `rng_state` returned.

    States of GPUs that are absent here are passed over.

    >>> set_rng_state({"cpu": torch.get_rng_state(), "cuda:99": torch.get_rng_state()})
    """
    torch.set_rng_state(state["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda:{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda:{i}"], i)


@contextlib.contextmanager
def rng_kept() -> Iterator[None]:
    """Put PyTorch's default generators back at the end, those of GPUs too, also after an exception.

    >>> before = rng_state()
    >>> with rng_kept():
    ...     _ = torch.rand(3)
    >>> torch.equal(before["cpu"], torch.get_rng_state())
    True
    """
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""The signals that ask a run to save and to leave.

They come from Ctrl-C, from `kill` or a batch system, from a terminal that closes, from Ctrl-\\, and
from a batch system as a warning ahead of the time limit (`sbatch --signal=USR1@120`)."""
SAME_REQUEST_S = 1.0
"""Seconds within which a second signal counts as the first one, come by another way."""


class StopRequest:
    """A flag that the first of `STOP_SIGNALS` sets, made by `stop_on_signals`.

    The training loop asks it after each step, `if stop:`, and then ends in good order.

    >>> stop = StopRequest()
    >>> bool(stop), stop.exit_code
    (False, 0)
    >>> stop.signal = signal.SIGINT
    >>> bool(stop), stop.exit_code
    (True, 130)
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        """Return whether to stop: whether any of the processes was asked to.

        This is an exchange between processes, so all of them have to ask equally often. They then
        have one exit code: that of the largest signal.
        """
        if world_size() == 1:
            return self.signal is not None
        asked = int(largest(torch.tensor(self.signal or 0)))
        if asked:
            self.signal = signal.Signals(asked)
        return bool(asked)

    @property
    def exit_code(self) -> int:
        """The exit code for shells: 128 + the signal's number, or 0 without a signal."""
        return 128 + self.signal if self.signal else 0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first of `STOP_SIGNALS` within the context into a request to stop.

    The same signal once more, a second later or more, acts as it always does. (One Ctrl-C may
    arrive twice: from the terminal, and passed on by whatever started this process.) Another one
    changes nothing: a batch system warns by SIGUSR1 and sends SIGTERM when the time is over.

    A signal that this process was started with ignored stays ignored, as for `nohup` and a shell's
    background jobs. Outside the main thread, where Python allows no signal handlers, the request is
    never set.

    >>> with stop_on_signals() as stop:
    ...     signal.raise_signal(signal.SIGUSR1)
    ...     bool(stop), stop.exit_code
    (True, 138)
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    came_at: dict[int, float] = {}
    handlers = {s: signal.getsignal(s) for s in STOP_SIGNALS}
    handlers = {s: handler for s, handler in handlers.items() if handler is not signal.SIG_IGN}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is None:
            request.signal = signal.Signals(number)
        now = time.monotonic()
        if now - came_at.setdefault(number, now) >= SAME_REQUEST_S:
            restore()
            signal.raise_signal(number)  # now to the handler that was there before

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    for number in handlers:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
