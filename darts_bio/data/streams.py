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
from darts_bio.data.batches import Measured, Normalisation
from darts_bio.data.datasets import torchvision_datasets
from darts_bio.data.files import EVALUATION_BATCH, STREAMING_PACKAGES, need_package, readable
from darts_bio.data.loader import Workers
from darts_bio.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_transform,
    training_transform,
)
from darts_bio.errors import InputError
from darts_bio.runtime import Run, call, generator, worker_count


class ImageStream:
    """A `Source` of images that come one after the other (timm's wds/, hfids/, tfds/), altered as
    in `ImageFiles`.

    timm's reader deals them out to processes and workers and shuffles what it holds in its buffer,
    so the order, which the seed fixes, depends on the number of both. Batch t in the middle of an
    epoch is reached by reading what is before it. Where a process' part of the stream ends within
    an epoch it begins again. What is measured each process reads as a whole, and keeps its share of
    the batches. timm passes over images that cannot be read.
    """

    in_channels = 3

    def __init__(
        self, config: ImageNetConfig, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> None:
        """Of the processes `share` is (rank, number). Raises InputError if the stream cannot be
        read, without `num_classes`, since a stream does not tell, and for `train_images` and
        `holdout`, since no images can be chosen from it.
        """
        root, dataset = None if config.data_dir is None else Path(config.data_dir), config.dataset
        batch_size, seed = config.batch_size, config.seed
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
                "it, as in "
                "--num-classes 1000"
            )
        own_size = batch_size // share[1]
        self._train = _stream(
            root, dataset, config.train_split, training=True, batch_size=own_size, seed=seed
        )
        self._test = _stream(
            root, dataset, config.test_split, training=False, batch_size=EVALUATION_BATCH, seed=seed
        )
        self._train.transform = training_transform(config)
        self._test.transform = center_transform(config)
        # Among processes timm's readers share out whole files, and cut off or repeat what does not
        # come out even.
        self._test.reader.dist_rank, self._test.reader.dist_num_replicas = 0, 1
        images = self._train.reader.num_samples or 0
        if batch_size > images:
            raise InputError(
                f"--batch-size: expected at most {images}, the images of {config.train_split}, "
                f"found {batch_size}"
            )
        self.per_epoch = images // batch_size
        self.classes = tuple(map(str, range(config.num_classes)))
        self.image_size = (config.image_size, config.image_size)
        self.run: Run = call
        self.normalisation = Normalisation(
            torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        ).to(device)
        self.damaged: dict[str, str] = {}
        self._identity = f"{images} images a pass of {dataset}, {config.train_split}; measured on {config.test_split}"
        self._own_size, self._stream, self._device = own_size, (seed, share[0]), device
        self._batches_measured = (share[0], None, share[1])
        self._workers = max(
            1, worker_count(config.workers)
        )  # in this process they would draw from its generators
        self._next, self._batches = -1, self._batches_from(0)

    def identity(self) -> str:
        """The stream in a line. What it holds is not read."""
        return self._identity

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """This process' share of batch t: images (N, 3, S, S) float32 and labels (N,)."""
        if t != self._next:
            self._batches.close()
            self._batches = self._batches_from(t)
        self._next = -1
        images, labels = next(self._batches)
        self._next = t + 1
        return self.run(self.normalisation, images), labels

    def measured(self, part: Measured) -> Iterator[tuple[Tensor, Tensor]]:
        """This process' share of the test images. Nothing is held out."""
        if part == "test":
            with self._read(
                self._test, EVALUATION_BATCH, generator("cpu", "measured", *self._stream)
            ) as workers:
                for images, labels in itertools.islice(workers, *self._batches_measured):
                    yield self.normalisation(images), labels

    def close(self) -> None:
        """Ends the processes that read."""
        self._next = -1
        self._batches.close()

    def _batches_from(self, t: int) -> Generator[tuple[Tensor, Tensor]]:
        first, skipped = divmod(t, self.per_epoch)
        for epoch in itertools.count(first):
            with contextlib.closing(self._epoch(epoch)) as batches:
                yield from itertools.islice(batches, skipped, self.per_epoch)
            skipped = 0

    def _epoch(self, epoch: int) -> Generator[tuple[Tensor, Tensor]]:
        """The stream of an epoch, over and over."""
        self._train.set_epoch(epoch)
        for lap in itertools.count():
            draws, found = generator("cpu", "stream", *self._stream, epoch, lap), False
            with self._read(self._train, self._own_size, draws, drop_last=True) as workers:
                for batch in workers:
                    found = True
                    yield batch
            if not found:
                raise InputError(
                    "the stream has no images for a process: expected a shard or more for each; "
                    "see --data-dir"
                )

    @contextlib.contextmanager
    def _read(
        self, dataset: Any, size: int, draws: torch.Generator, **options: Any
    ) -> Iterator[Workers]:
        """New workers, since those of an epoch before know how far their own generators are."""
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
    from timm.data import create_dataset

    where = None if root is None else str(root)
    with readable(dataset, split):
        return create_dataset(
            dataset, where, split, is_training=training, batch_size=batch_size, seed=seed
        )


def _collated(
    classes: int, samples: list[tuple[Tensor, int]]
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """In a worker: images, labels, and nothing that is damaged. Raises InputError for labels that
    are no classes.
    """
    images, labels = default_collate(samples)
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"--num-classes: expected labels from 0 to {classes - 1} in the stream, found one of "
            f"{labels.max() if labels.max() >= classes else labels.min()}"
        )
    return images, labels, {}
