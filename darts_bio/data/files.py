"""Images that are read from disk while the network trains, each by its number (`readers`).

Which images a batch has, and how timm's transforms alter them, is a function of (seed, t), as
`loader.SeededLoader` makes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from darts_bio.config import ImageNetConfig
from darts_bio.data.batches import Measured, Normalization
from darts_bio.data.datasets import bounded_images, drawn, split_off
from darts_bio.data.loader import Damaged, OrderedLoader, SeededLoader
from darts_bio.data.readers import Part, open_parts
from darts_bio.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_transform,
    training_transform,
)
from darts_bio.errors import InputError, first_line
from darts_bio.runtime import Caller, call, worker_count

MEASURED_FROM_DISK = 256
"""Images of a batch that is measured, of those on disk."""


class FileItems:
    """Transformed images of a part, those that `chosen` (N,) numbers; a `loader.Items`."""

    def __init__(self, part: Part, chosen: Tensor, transform: Callable[[Image.Image], Any]) -> None:
        self._part, self._chosen, self._transform = part, chosen.numpy(), transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return an image (3, S, S) uint8 and its label.

        Raises Damaged if it cannot be decoded.
        """
        number = int(self._chosen[index])
        try:
            with bounded_images():
                image = self._part.image(number)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on broken bytes
            raise Damaged(self._part.name(number), first_line(error)) from None
        return np.asarray(self._transform(image)), int(self._part.labels[number])


class ImageFiles:
    """A `Source` of images on disk.

    Images that are trained on are cropped at random, mirrored and altered in color
    (`transforms.training_transform`); of those that are measured the center is cut out
    (`transforms.center_transform`). Images that cannot be read are passed over, and named in
    `damaged`.

    >>> import tempfile
    >>> from itertools import product
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for part, name in product(("train", "val"), ("cat", "dog")):
    ...         folder = Path(directory, part, name)
    ...         folder.mkdir(parents=True)
    ...         Image.new("RGB", (40, 30)).save(folder / "1.png")
    ...     config = ImageNetConfig(
    ...         genotype="bionas_darts", data_dir=directory, image_size=32, batch_size=2, workers=0
    ...     )
    ...     source = ImageFiles(config, torch.device("cpu"))
    ...     x, labels = source.batch(0)
    >>> source.classes, source.per_epoch, tuple(x.shape), sorted(labels.tolist())
    (('cat', 'dog'), 1, (2, 3, 32, 32), [0, 1])
    """

    in_channels = 3

    def __init__(
        self, config: ImageNetConfig, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> None:
        """Find the images; they are read by the batch, and no worker starts before the first.

        Args:
            config: Says where the images are and how they are altered.
            device: Where batches are put.
            share: (rank, processes); the number of processes divides the batch size.

        Raises:
            InputError: If the images cannot be found, or are not what the options say.
        """
        root = None if config.data_dir is None else Path(config.data_dir)
        train, test = open_parts(root, config.dataset, config.train_split, config.test_split)
        self.classes = _class_names(train, test, config.num_classes)
        self.image_size = (config.image_size, config.image_size)
        self.run: Caller = call
        self.normalization = Normalization(
            torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        ).to(device)
        self._identity = _identity(train, test, self.classes)
        workers = worker_count(config.workers)
        chosen = drawn(
            f"the {config.train_split} split",
            len(train),
            config.train_images,
            config.seed_of_images,
        )
        trained, held_out = split_off(len(chosen), config.holdout, config.seed_of_images)
        augment, crop_center = training_transform(config), center_transform(config)
        self._train = SeededLoader(
            items=FileItems(train, chosen[trained], augment),
            batch_size=config.batch_size,
            seed=config.seed,
            name="train",
            workers=workers,
            device=device,
            share=share,
        )
        self.per_epoch = self._train.per_epoch
        measured = {
            "valid": FileItems(train, chosen[held_out], crop_center),
            "test": FileItems(test, torch.arange(len(test)), crop_center),
        }
        self._counts = {part: len(items) for part, items in measured.items()}
        self._measured = {
            part: OrderedLoader(
                items=items,
                batch_size=MEASURED_FROM_DISK,
                workers=workers,
                device=device,
                share=share,
            )
            for part, items in measured.items()
        }
        self._loaders: list[SeededLoader | OrderedLoader] = [self._train, *self._measured.values()]

    @property
    def damaged(self) -> dict[str, str]:
        """Names of files that could not be read so far, with the reasons."""
        return {name: reason for loader in self._loaders for name, reason in loader.damaged.items()}

    def identity(self) -> str:
        """Return a line that is equal for equal file names, labels and classes, and for no others.

        The images are not read.
        """
        return self._identity

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Return this process' share of batch t: images (N, 3, S, S) float32 and labels (N,)."""
        images, labels = self._train.batch(t)
        return self.run(self.normalization, images), labels

    def measured(self, part: Measured) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process' share of the images held out, or of the test images, each once."""
        for images, labels in self._measured[part]:
            yield self.normalization(images), labels

    def count(self, part: Measured) -> int:
        """Return the number of images in a part, those of all processes together."""
        return self._counts[part]

    def close(self) -> None:
        """End the processes that read."""
        for loader in self._loaders:
            loader.close()


def _class_names(train: Part, test: Part, num_classes: int | None) -> tuple[str, ...]:
    """Return the names of classes by label; numbers where there are no names.

    `num_classes` may ask for more classes than the images have. Raises InputError if it is less
    than these, or the labels do not fit the names.
    """
    labels = np.concatenate([train.labels, test.labels])
    names = train.classes or tuple(map(str, range(labels.max(initial=0) + 1)))
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(names):
        raise InputError(
            f"--dataset: expected images with labels from 0 to {len(names) - 1}, found others; "
            "choose parts that have labels, by --train-split and --test-split"
        )
    if len(names) < 2:
        raise InputError(f"--data-dir: expected at least 2 classes, found {names[0]} alone")
    if num_classes is None:
        return names
    if num_classes < len(names):
        raise InputError(
            f"--num-classes: expected at least the {len(names)} classes of the images, found "
            f"{num_classes}"
        )
    return names + tuple(map(str, range(len(names), num_classes)))


def _identity(train: Part, test: Part, classes: tuple[str, ...]) -> str:
    """Return a line with numbers and a digest of all file names, labels and classes."""
    digest = hashlib.blake2b(repr(classes).encode(), digest_size=8)
    for part in (train, test):
        names = "\n".join(map(part.name, range(len(part))))
        digest.update(names.encode(errors="surrogateescape"))  # of names that are not UTF-8
        digest.update(part.labels.astype("<i8").tobytes())  # the same on every platform
    numbers = f"{len(train)} training + {len(test)} test image files in {len(classes)} classes"
    return f"{numbers}, digest {digest.hexdigest()}"
