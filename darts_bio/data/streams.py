"""Images that come as a stream, from shards that timm reads one after the other."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from darts_bio.config import ImageNetConfig
from darts_bio.data.batches import Measured, Normalization
from darts_bio.data.datasets import torchvision_datasets
from darts_bio.data.files import MEASURED_FROM_DISK
from darts_bio.data.loader import Workers
from darts_bio.data.readers import STREAMING_PACKAGES, need_package, readable
from darts_bio.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_transform,
    training_transform,
)
from darts_bio.errors import InputError
from darts_bio.runtime import Caller, call, generator, worker_count


class ImageStream:
    """A `Source` of images that come one after the other: timm's wds/, hfids/ and tfds/ data sets.

    They are altered as in `ImageFiles`. What differs from sources that read by number:

    - timm's reader deals the shards out to processes and workers and shuffles what it holds in its
      buffer, so the order is fixed by the seed, the number of processes and that of workers.
    - Batch t in the middle of an epoch is reached by reading what is before it.
    - Where a process' part of the stream ends within an epoch, it begins again.
    - Of what is measured every process reads all, and keeps its share of the batches.
    - timm itself passes over images that cannot be read, so `damaged` stays empty.
    """

    in_channels = 3

    def __init__(
        self, config: ImageNetConfig, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> None:
        """Open both streams; no worker starts before the first batch.

        Args:
            config: Its `dataset` names the stream, as wds/NAME.
            device: Where batches are put.
            share: (rank, processes); the number of processes divides the batch size.

        Raises:
            InputError: If the stream cannot be read; without `num_classes`, since a stream does not
                tell; for `train_images` and `holdout`, since no images can be chosen from it.
        """
        root = None if config.data_dir is None else Path(config.data_dir)
        dataset, batch_size, seed = config.dataset, config.batch_size, config.seed
        if config.train_images is not None or config.holdout:
            raise InputError(
                f"--train-images and --holdout: images of the stream {dataset} cannot be chosen; "
                "leave both out"
            )
        torchvision_datasets()
        need_package(dataset, STREAMING_PACKAGES[dataset.partition("/")[0]])
        if config.num_classes is None:
            raise InputError(
                f"--num-classes: the stream {dataset} does not tell how many classes it has; say "
                "it, as in --num-classes 1000"
            )
        share_size = batch_size // share[1]
        self._train = _stream(
            root, dataset, config.train_split, training=True, batch_size=share_size, seed=seed
        )
        self._test = _stream(
            root,
            dataset,
            config.test_split,
            training=False,
            batch_size=MEASURED_FROM_DISK,
            seed=seed,
        )
        self._train.transform = training_transform(config)
        self._test.transform = center_transform(config)
        # timm's readers share out whole files among processes, and cut off or repeat what does not
        # come out even, so that images would be measured twice or not at all. Each process is told
        # that it is the only one.
        self._test.reader.dist_rank, self._test.reader.dist_num_replicas = 0, 1
        images = self._train.reader.num_samples or 0
        if batch_size > images:
            raise InputError(
                f"--batch-size: expected at most {images}, the images of {config.train_split}, "
                f"found {batch_size}; use a smaller --batch-size, or more images"
            )
        self.per_epoch = images // batch_size
        self.classes = tuple(map(str, range(config.num_classes)))
        self.image_size = (config.image_size, config.image_size)
        self.run: Caller = call
        self.normalization = Normalization(
            torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        ).to(device)
        self.damaged: dict[str, str] = {}
        self._identity = f"{images} images a pass of {dataset}, {config.train_split}; measured on {config.test_split}"
        self._share_size, self._stream, self._device = share_size, (seed, share[0]), device
        # Start, stop and step: of the measured batches every processes-th, from rank on.
        self._batches_measured = (share[0], None, share[1])
        # At least one, since in this process transforms would draw from its own generators.
        self._workers = max(1, worker_count(config.workers))
        # The batch that `_batches` gives next; -1 if that is not known.
        self._next, self._batches = -1, self._batches_from(0)

    def identity(self) -> str:
        """Return a line with the stream's name, parts and number of images, which are not read."""
        return self._identity

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Return this process' share of batch t: images (N, 3, S, S) float32 and labels (N,)."""
        if t != self._next:
            self._batches.close()
            self._batches = self._batches_from(t)
        self._next = -1  # so that a reading that fails is begun anew
        images, labels = next(self._batches)
        self._next = t + 1
        return self.run(self.normalization, images), labels

    def measured(self, part: Measured) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process' share of the test images; nothing is held out of a stream."""
        if part == "test":
            draws = generator("cpu", "measured", *self._stream)
            with self._read(self._test, MEASURED_FROM_DISK, draws) as workers:
                for images, labels in itertools.islice(workers, *self._batches_measured):
                    yield self.normalization(images), labels

    def count(self, part: Measured) -> int:
        """Return the number of test images, 0 if the stream does not tell; none are held out."""
        return (self._test.reader.num_samples or 0) if part == "test" else 0

    def close(self) -> None:
        """End the processes that read."""
        self._next = -1
        self._batches.close()

    def _batches_from(self, t: int) -> Generator[tuple[Tensor, Tensor]]:
        """Yield batch t and all after it; those of its epoch that are before it are read as well."""
        first, skipped = divmod(t, self.per_epoch)
        for epoch in itertools.count(first):
            with contextlib.closing(self._epoch(epoch)) as batches:
                yield from itertools.islice(batches, skipped, self.per_epoch)
            skipped = 0

    def _epoch(self, epoch: int) -> Generator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch without end: the stream, over and over.

        Raises InputError if it has not a single batch for this process.
        """
        self._train.set_epoch(epoch)
        for lap in itertools.count():
            draws = generator("cpu", "stream", *self._stream, epoch, lap)
            is_empty = True
            with self._read(self._train, self._share_size, draws, drop_last=True) as workers:
                for batch in workers:
                    is_empty = False
                    yield batch
            if is_empty:
                raise InputError(
                    "the stream has no images for a process: expected a shard or more for each; "
                    "see --data-dir"
                )

    @contextlib.contextmanager
    def _read(
        self, dataset: Any, size: int, draws: torch.Generator, **options: Any
    ) -> Iterator[Workers]:
        """Lend workers that read batches of `size`, and end them afterwards.

        They are new ones each time: those of an epoch before would go on with their own generators
        where these stood, and a resumed run could not know where.
        """
        collate = partial(_collated, len(self.classes))
        workers = Workers(
            dataset,
            self._workers,
            self._device,
            draws=draws,
            batch_size=size,
            collate_fn=collate,
            **options,
        )
        workers.start()
        try:
            yield workers
        finally:
            workers.close()


def _stream(
    root: Path | None, dataset: str, split: str, *, training: bool, batch_size: int, seed: int
) -> Any:
    """Return timm's data set of a part of a stream; raises InputError if it cannot be opened."""
    from timm.data import create_dataset

    folder = None if root is None else str(root)
    with readable(dataset, split):
        return create_dataset(
            dataset, folder, split, is_training=training, batch_size=batch_size, seed=seed
        )


def _collated(
    classes: int, samples: list[tuple[Tensor, int]]
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Return samples as images, labels and an empty dict, as no damaged sample comes this far.

    Raises InputError for labels that are not below `classes`. It runs in a worker.
    """
    images, labels = default_collate(samples)
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.max() if labels.max() >= classes else labels.min()
        raise InputError(
            f"--num-classes: expected labels from 0 to {classes - 1} in the stream, found one of "
            f"{wrong}"
        )
    return images, labels, {}
