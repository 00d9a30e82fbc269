"""Samples that worker processes read while the network trains. Which ones, and how each is altered
at random, is a function of (seed, name of the stream, t), whatever the number of workers and of the
processes that share a batch.
"""

from __future__ import annotations

import contextlib
import itertools
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
from darts_bio.runtime import derive_seed, generators_kept, seed_generators

IN_A_ROW = 100
"""Damaged samples one after the other at which a training gives up."""

JOB_SIGNALS = {signal.SIGINT, signal.SIGTERM} if sys.platform == "linux" else set()
"""Of which a worker takes no notice; elsewhere it could then not be ended."""

Key = tuple[int, int]
"""A sample's index, and its position in the stream, from which what is random in it is drawn."""


class Damaged(Exception):  # noqa: N818  (it says what a sample is)
    """A sample that cannot be read: its name, and why not."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason


class Items(Protocol):
    """Samples by index. They may draw from the default generators of Python, NumPy and PyTorch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """An image (C, H, W) uint8, all of one size, and its label. Raises Damaged if it cannot be
        read.
        """


class SeededLoader:
    """An endless sequence of batches of samples in random order; an epoch leaves out what does not
    fill one.

    `batch(t)` depends on (seed, name, t) alone; the order is that of `ShuffledOrder`. Sample i of
    batch t is read with the default generators seeded by (seed, name, t * batch_size + i). One that
    is damaged is replaced by the next that is not, and kept in `damaged`: its name, and why it
    could not be read.
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
        """A batch is of `batch_size` samples; of `share` = (rank, processes), which divides it,
        this process reads its part. Raises InputError if a batch is larger than all samples
        together.
        """
        order = ShuffledOrder(len(items), batch_size, seed=seed, name=name, share=share)
        self.per_epoch, self._own_size = order.per_epoch, order.share.stop - order.share.start
        self._keys, self._tries = _Keys(order), min(IN_A_ROW, len(items))
        self._workers = _reading(
            _Batches(items, seed, name, tries=self._tries), self._keys, workers, device
        )
        self._next = -1

    @property
    def damaged(self) -> dict[str, str]:
        return self._workers.damaged

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """This process' part of batch t, on the device: images (N, C, H, W) uint8 and labels (N,)
        int64.

        Quick where t follows the t before, since that has been prepared. Raises InputError if the
        workers cannot go on, or find nothing but damaged samples.
        """
        follows, self._next = t == self._next, -1
        if not follows:
            self._keys.start = t
            self._workers.start()
        images, labels = next(self._workers)
        if len(labels) < self._own_size:
            name, reason = next(reversed(self.damaged.items()))
            raise InputError(
                f"{self._tries} images in a row cannot be read, among them {name} ({reason}): "
                "expected whole image files; see whether the disk is there, and replace or remove "
                "what is damaged"
            )
        self._next = t + 1
        return images, labels

    def close(self) -> None:
        """Ends the workers."""
        self._next = -1
        self._workers.close()


class OrderedLoader:
    """This process' share of all samples, each once and in order, in batches of up to `batch_size`;
    iterable again and again, by the same workers. Of `share` = (rank, processes) it is every
    processes-th from rank on.

    A damaged sample is left out, and kept in `damaged`.
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
        rank, processes = share
        own = [(i, i) for i in range(rank, len(items), processes)]
        order = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        self._workers = _reading(_Batches(items, 0, "in order", tries=1), order, workers, device)

    @property
    def damaged(self) -> dict[str, str]:
        return self._workers.damaged

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, C, H, W) uint8 and labels (N,) int64, on the device. Raises InputError if the
        workers cannot go on.
        """
        self._workers.start()
        for images, labels in self._workers:
            if len(labels):
                yield images, labels

    def close(self) -> None:
        """Ends the workers."""
        self._workers.close()


class _Keys:
    """The keys of this process' part of batch `start`, and of all batches after it."""

    def __init__(self, order: ShuffledOrder) -> None:
        self.start, self._order = 0, order

    def __iter__(self) -> Iterator[list[Key]]:
        for t in itertools.count(self.start):
            first = t * self._order.batch_size + self._order.share.start
            yield [(index, first + i) for i, index in enumerate(self._order.indices(t).tolist())]


class _Batches(Dataset[tuple[Tensor, Tensor, dict[str, str]]]):
    """What a worker does: reads the samples of a list of keys.

    Returns images, labels, and the names of damaged samples with the reasons. In place of a damaged
    sample one of the next is tried, `tries` altogether; there is none where these are damaged too.
    """

    def __init__(self, items: Items, seed: int, name: str, tries: int) -> None:
        self._items, self._stream = items, (seed, name)
        self._tries = min(tries, len(items))

    def __getitem__(self, keys: list[Key]) -> tuple[Tensor, Tensor, dict[str, str]]:
        damaged: dict[str, str] = {}
        with generators_kept():
            samples = [sample for key in keys if (sample := self._read(*key, damaged)) is not None]
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
        seed = derive_seed("augment", *self._stream, position)
        for i in range(self._tries):
            try:
                seed_generators(seed)
                return self._items[(index + i) % len(self._items)]
            except Damaged as error:
                damaged[error.name] = error.reason
        return None


class Workers:
    """An iterator over what a DataLoader's processes give, on the device; `start` has it begin, or
    begin again.

    With `workers` = 0 it all happens in this process. Raises InputError if the workers cannot go
    on. What they say is damaged gathers in `damaged`.
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
        """The dataset, or the `collate_fn` among DataLoader's other options, gives images, labels
        and the names of damaged samples with the reasons. The workers' seeds are drawn from
        `draws`.
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
        with self._explained(), _starting_workers():
            self._iterator = iter(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        with self._explained():
            images, labels, damaged = next(self._iterator)
        self.damaged.update(
            {name: reason for name, reason in damaged.items() if name not in self.damaged}
        )
        return images.to(self._device, non_blocking=True), labels.to(
            self._device, non_blocking=True
        )

    def close(self) -> None:
        if self._count and self._iterator is not None:
            # Not left to the end of the last reference: PyTorch and the traceback of an exception
            # may hold some.
            self._iterator._shutdown_workers()
        self._iterator = self._loader._iterator = None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Within it what workers raise, or their death, ends them all in an InputError."""
        try:
            yield
        except StopIteration:
            raise
        except Exception as error:
            if not self._count:
                raise
            self.close()
            # PyTorch appends the worker's traceback, the last line of which says what happened.
            whole = str(error).strip() or type(error).__name__
            what = whole.splitlines()[-1].strip() if "Traceback" in whole else first_line(error)
            _, of_input, message = what.partition("InputError: ")
            if of_input:
                raise InputError(message) from None
            raise InputError(
                f"a worker process that reads images failed ({what[:160]}). If memory or shared "
                "memory (/dev/shm) does "
                "not suffice, try fewer --workers, a smaller --batch-size or, in a container, a "
                "larger --shm-size; "
                "--workers 0 shows an error in full"
            ) from None


def _reading(
    batches: _Batches, order: Iterable[list[Key]], workers: int, device: torch.device
) -> Workers:
    """The batches of an order, by workers that stay for the next time."""
    # By default the workers' seeds, which nothing here depends on, are drawn from the main process'
    # generator.
    draws = torch.Generator()
    return Workers(
        batches,
        workers,
        device,
        draws=draws,
        batch_size=None,
        sampler=order,
        persistent_workers=workers > 0,
    )


@contextlib.contextmanager
def _starting_workers() -> Iterator[None]:
    """Within it DataLoader may start processes, which are not open to the job's signals before
    `_start_worker` has run.

    DataLoader's handler of SIGCHLD, which would raise the death of a worker wherever the main
    thread happens to be, is gone again at the end; the next batch raises it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGCHLD, handler)


def _start_worker(number: int) -> None:
    """In a worker: Ctrl-C and SIGTERM, which reach all processes of a job, are for the main
    process, which may need another batch to end in good order.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        threading.Thread(target=_end_on_request, daemon=True).start()


def _end_on_request() -> None:
    """Ends this worker at a SIGTERM of the main process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
