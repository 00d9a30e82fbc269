"""Samples that worker processes read from disk while the network trains.

Which samples are in batch t, and how each is altered at random, is a function of (seed, name of the
stream, t), whatever the number of workers and of the processes that share a batch:

1. `order.ShuffledOrder` says which samples batch t has, by the seed.
2. Sample i of batch t stands at position t * batch_size + i of the stream. Before it is read, the
   default generators of Python, NumPy and PyTorch, from which transforms draw, are seeded by
   ("augment", seed, name, position). So it does not matter which worker reads it, nor what that
   worker read before.

A worker's own seed, which PyTorch would draw for it, is used by nothing here.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from darts_bio.data.order import ShuffledOrder
from darts_bio.errors import InputError, first_line
from darts_bio.runtime import STOP_SIGNALS, derive_seed, generators_kept, seed_generators

IN_A_ROW = 100
"""Damaged samples one after the other at which a training gives up."""

JOB_SIGNALS = set(STOP_SIGNALS) if sys.platform == "linux" else set()
"""Signals to a whole job, which workers ignore. None but on Linux, where `_end_on_request` can still
tell a worker to end."""

Key = tuple[int, int]
"""A sample's index, and its position in the stream, by which its random changes are seeded."""


class Damaged(Exception):  # noqa: N818  (it says what a sample is)
    """A sample that cannot be read: its name, and the reason.

    >>> error = Damaged("train/cat/1.png", "image file is truncated")
    >>> error.name, error.reason
    ('train/cat/1.png', 'image file is truncated')
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason


class Items(Protocol):
    """Samples by index; to read one may draw from Python's, NumPy's and PyTorch's generators."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return an image (C, H, W) uint8, all of one size, and its label.

        Raises Damaged if it cannot be read.
        """


class SeededLoader:
    """An endless sequence of batches of samples in random order, read by worker processes.

    `batch(t)` depends on (seed, name, t) alone; the order is that of `ShuffledOrder`, and sample i
    of batch t is read with the default generators seeded by (seed, name, t * batch_size + i). A
    damaged sample is replaced by the next that is not damaged.

    >>> class Gray:
    ...     def __len__(self):
    ...         return 6
    ...     def __getitem__(self, index):
    ...         return np.full((1, 2, 2), index, np.uint8), index % 2
    >>> loader = SeededLoader(
    ...     items=Gray(), batch_size=4, seed=0, name="train", workers=0,
    ...     device=torch.device("cpu"),
    ... )
    >>> images, labels = loader.batch(5)
    >>> loader.per_epoch, tuple(images.shape), torch.equal(images[:, 0, 0, 0] % 2, labels)
    (1, (4, 1, 2, 2), True)
    >>> torch.equal(images, loader.batch(5)[0])
    True
    """

    def __init__(
        self,
        *,
        items: Items,
        batch_size: int,
        seed: int,
        name: str,
        workers: int,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the workers; they start with the first batch.

        Args:
            items: The samples.
            batch_size: Samples of a batch, of all processes together.
            seed: The seed of order and of what is random in a sample.
            name: The name of the stream; streams of other names have other draws.
            workers: Processes that read; 0 reads in this one.
            device: Where batches are put.
            share: (rank, processes) makes this process read its part of each batch; the number of
                processes divides `batch_size`.

        Raises:
            InputError: If a batch is larger than all samples together.
        """
        order = ShuffledOrder(len(items), batch_size, seed=seed, name=name, share=share)
        self.per_epoch, self._share_size = order.per_epoch, order.share.stop - order.share.start
        self._keys, self._tries = _Keys(order), min(IN_A_ROW, len(items))
        self._workers = _reading(
            _Batches(items, seed, name, tries=self._tries), self._keys, workers, device
        )
        self._next = -1  # the batch that the workers have prepared; -1 for none

    @property
    def damaged(self) -> dict[str, str]:
        """Names of the samples that could not be read so far, with the reasons."""
        return self._workers.damaged

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Return this process' part of batch t: images (N, C, H, W) uint8 and labels (N,) int64.

        It is on the device. Quick where t follows the t before, since that has been prepared.
        Raises InputError if the workers cannot go on, or find nothing but damaged samples.
        """
        # Until the batch is there no batch is the next, so that after an error workers start anew.
        follows, self._next = t == self._next, -1
        if not follows:
            self._keys.start = t
            self._workers.start()
        images, labels = next(self._workers)
        if len(labels) < self._share_size:
            name, reason = next(reversed(self.damaged.items()))
            raise InputError(
                f"{self._tries} images in a row cannot be read, among them {name} ({reason}): "
                "expected whole image files; see whether the disk is there, and replace or remove "
                "what is damaged"
            )
        self._next = t + 1
        return images, labels

    def close(self) -> None:
        """End the workers; another batch starts new ones."""
        self._next = -1
        self._workers.close()


class OrderedLoader:
    """Batches of all samples, each once and in order; iterable again and again, by the same workers.

    A damaged sample is left out. Each sample is read with the default generators seeded by its
    index, so even a random transform gives the same image in every pass.

    >>> class Gray:
    ...     def __len__(self):
    ...         return 5
    ...     def __getitem__(self, index):
    ...         return np.full((1, 2, 2), index, np.uint8), index
    >>> loader = OrderedLoader(
    ...     items=Gray(), batch_size=2, workers=0, device=torch.device("cpu"), share=(1, 2)
    ... )
    >>> [labels.tolist() for _, labels in loader]
    [[1, 3]]
    """

    def __init__(
        self,
        *,
        items: Items,
        batch_size: int,
        workers: int,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the workers; they start with the first pass.

        Args:
            items: The samples.
            batch_size: Samples of a batch of this process; the last batch may be smaller.
            workers: Processes that read; 0 reads in this one.
            device: Where batches are put.
            share: (rank, processes) takes every processes-th sample, from rank on.
        """
        rank, processes = share
        keys = [(i, i) for i in range(rank, len(items), processes)]
        order = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
        self._workers = _reading(_Batches(items, 0, "in order", tries=1), order, workers, device)

    @property
    def damaged(self) -> dict[str, str]:
        """Names of the samples that could not be read so far, with the reasons."""
        return self._workers.damaged

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W) uint8 and labels (N,) int64, on the device.

        Raises InputError if the workers cannot go on.
        """
        self._workers.start()
        for images, labels in self._workers:
            if len(labels):  # none where all samples of a batch are damaged
                yield images, labels

    def close(self) -> None:
        """End the workers; another pass starts new ones."""
        self._workers.close()


class _Keys:
    """The keys of this process' part of batch `start` and, one list each, of all batches after.

    It is DataLoader's sampler: `start` is set before the iterator is made.
    """

    def __init__(self, order: ShuffledOrder) -> None:
        self.start, self._order = 0, order

    def __iter__(self) -> Iterator[list[Key]]:
        for t in itertools.count(self.start):
            first = t * self._order.batch_size + self._order.share.start
            yield [(index, first + i) for i, index in enumerate(self._order.indices(t).tolist())]


class _Batches(Dataset[tuple[Tensor, Tensor, dict[str, str]]]):
    """A data set of whole batches: what a worker reads for a list of keys.

    In place of a damaged sample the next ones are tried, `tries` samples altogether; where all of
    these are damaged the batch is smaller by one.
    """

    def __init__(self, items: Items, seed: int, name: str, tries: int) -> None:
        self._items, self._stream = items, (seed, name)
        self._tries = min(tries, len(items))

    def __getitem__(self, keys: list[Key]) -> tuple[Tensor, Tensor, dict[str, str]]:
        """Return images (N, C, H, W), labels (N,), and damaged samples' names with the reasons."""
        damaged: dict[str, str] = {}
        samples = []
        # Without workers these are the generators of the whole program.
        with generators_kept():
            for index, position in keys:
                sample = self._read(index, position, damaged)
                if sample is not None:
                    samples.append(sample)
        if not samples:
            return torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), damaged
        images = torch.from_numpy(np.stack([image for image, _ in samples]))
        labels = torch.tensor([label for _, label in samples])
        if get_worker_info() is not None:
            # A lack of shared memory is an error here; a queue that comes upon it loses the batch,
            # and waits forever.
            images.share_memory_()
            labels.share_memory_()
        return images, labels, damaged

    def _read(
        self, index: int, position: int, damaged: dict[str, str]
    ) -> tuple[np.ndarray, int] | None:
        """Return the sample, or the next that is not damaged; note those that are in `damaged`."""
        seed = derive_seed("augment", *self._stream, position)
        for i in range(self._tries):
            try:
                seed_generators(seed)
                return self._items[(index + i) % len(self._items)]
            except Damaged as error:
                damaged[error.name] = error.reason
        return None


class Workers:
    """An iterator over the batches of a DataLoader's processes, moved to the device.

    `start` has it begin, or begin again. Names of damaged samples gather in `damaged`, with the
    reasons. Raises InputError if the workers cannot go on.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        workers: int,
        device: torch.device,
        *,
        draws: torch.Generator,
        **options: Any,
    ) -> None:
        """Build the DataLoader; no process starts before `start`.

        Args:
            dataset: Gives images, labels, and the names of damaged samples with the reasons, if the
                `collate_fn` among the options does not.
            workers: Processes that read; 0 reads in this one.
            device: Where batches are put.
            draws: The generator from which the workers' seeds are drawn.
            **options: Further options of `torch.utils.data.DataLoader`.
        """
        self.damaged: dict[str, str] = {}
        self._count, self._device = workers, device
        self._iterator: Any = None
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            generator=draws,
            **options,
        )

    def start(self) -> None:
        """Begin with the first batch; starts the processes if there are none."""
        with self._explained(), _starting_workers():
            self._iterator = iter(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next images (N, C, H, W) and labels (N,), on the device."""
        with self._explained():
            images, labels, damaged = next(self._iterator)
        for name, reason in damaged.items():
            self.damaged.setdefault(name, reason)
        images = images.to(self._device, non_blocking=True)
        return images, labels.to(self._device, non_blocking=True)

    def close(self) -> None:
        """End the processes."""
        if self._count and self._iterator is not None:
            # Not left to the end of the last reference: PyTorch and the traceback of an exception
            # may hold some.
            self._iterator._shutdown_workers()
        self._iterator = self._loader._iterator = None

    def _await_deaths(self) -> None:
        """Wait up to a second for a worker whose pipe has closed to be gone.

        The pipes of a dying process close a moment before the signal of its death arrives, for
        which PyTorch's handler raises a RuntimeError in whatever code runs then: here rather than
        amid `close`.
        """
        with contextlib.suppress(RuntimeError):
            multiprocessing.connection.wait([w.sentinel for w in self._iterator._workers], 1)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what a worker raises, or its death, into an InputError, and end all workers."""
        try:
            yield
        except StopIteration:
            raise
        except Exception as error:
            if not self._count:
                raise
            if isinstance(error, EOFError | ConnectionError):
                self._await_deaths()
                error = RuntimeError("a process exited unexpectedly, its pipe closed")
            self.close()
            # PyTorch appends the worker's traceback, the last line of which says what happened.
            text = str(error).strip() or type(error).__name__
            cause = text.splitlines()[-1].strip() if "Traceback" in text else first_line(error)
            _, is_input_error, message = cause.partition("InputError: ")
            if is_input_error:  # its message is meant for the user as it is
                raise InputError(message) from None
            raise InputError(
                f"a worker process that reads images failed ({cause[:160]}). If memory or shared "
                "memory (/dev/shm) does not suffice, try fewer --workers, a smaller --batch-size "
                "or, in a container, a larger --shm-size; --workers 0 shows an error in full"
            ) from None


def _reading(
    batches: _Batches, order: Iterable[list[Key]], workers: int, device: torch.device
) -> Workers:
    """Return workers that read the batches of an order, and stay for the next pass over it."""
    # By default the workers' seeds, which nothing here depends on, are drawn from the main process'
    # generator, which would then stand elsewhere with workers than without.
    draws = torch.Generator()
    return Workers(
        batches,
        workers,
        device,
        draws=draws,
        batch_size=None,  # an element of the order is a whole batch already
        sampler=order,
        persistent_workers=workers > 0,
    )


@contextlib.contextmanager
def _starting_workers() -> Iterator[None]:
    """Block the job's signals while DataLoader starts processes.

    A new process inherits what is blocked, so it is not open to these signals before
    `_start_worker` has run. DataLoader's handler of SIGCHLD, which would raise the death of a
    worker wherever the main thread happens to be, is gone again at the end; the next batch raises
    it.
    """
    is_main = threading.current_thread() is threading.main_thread()  # only it may set handlers
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGCHLD, handler)


def _start_worker(number: int) -> None:
    """Leave, in a new worker, the signals of the job to the main process.

    Signals that end a run reach all processes of a job, and the main process may need another batch
    to end in good order.
    """
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        threading.Thread(target=_end_on_request, daemon=True).start()


def _end_on_request() -> None:
    """End this worker at a SIGTERM that the main process itself has sent (DataLoader's shutdown)."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
