"""What a training is fed with: batches to train on, and images to measure on.

`Source` is what a training sees of any data set; `InMemory`, `files.ImageFiles` and
`streams.ImageStream` are the kinds of it, and `open_source` chooses one by the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from darts_bio.config import ImageNetConfig, RetrainConfig, TrainingConfig
from darts_bio.data.batches import Augmentation, Batches, Measured, Normalization, Split, in_order
from darts_bio.data.datasets import ImageData, load_data, split_off
from darts_bio.data.files import ImageFiles
from darts_bio.data.loader import SeededLoader
from darts_bio.data.readers import STREAMING_PACKAGES
from darts_bio.data.streams import ImageStream
from darts_bio.data.transforms import policy_transform
from darts_bio.distributed import first_before_the_others, rank, world_size
from darts_bio.errors import InputError
from darts_bio.runtime import Caller, worker_count

Labeled = tuple[Tensor, Tensor]
"""Normalized images (N, C, H, W) float32 and labels (N,) int64, on the device."""

MEASURED_FROM_MEMORY = 500
"""Images of a batch that is measured, of those in memory."""


class Source(Protocol):
    """The images of a data set, as a training needs them; each process receives its own share.

    Attributes:
        classes: Their names, by label.
        in_channels: 1 or 3 in most data sets.
        image_size: (height, width).
        normalization: How bytes become floats.
        per_epoch: Batches of an epoch; images that do not fill a batch are left out.
        run: Runs the computations on the device (`runtime.call`, or a recorder of CUDA graphs).
    """

    classes: tuple[str, ...]
    in_channels: int
    image_size: tuple[int, int]
    normalization: Normalization
    per_epoch: int
    run: Caller

    @property
    def damaged(self) -> Mapping[str, str]:
        """Names of the images that were passed over since they cannot be read, with the reasons."""

    def identity(self) -> str:
        """Return a line that is equal for equal images and labels, and for no others."""

    def batch(self, t: int) -> Labeled:
        """Return this process' share of batch t, counted from 0 over all epochs.

        It is a function of the seed and t alone.
        """

    def measured(self, part: Measured) -> Iterable[Labeled]:
        """Iterate over this process' share of the images of a part, each once, as they are."""

    def count(self, part: Measured) -> int:
        """Return the number of images in a part, of all processes together; 0 if it is unknown."""

    def close(self) -> None:
        """End the processes that read, if there are any."""


def source_of(
    config: TrainingConfig, device: torch.device, data: ImageData | None = None
) -> Source:
    """Open what a training is fed with: `data` if it was handed over, or what its options name.

    Raises InputError as `open_source` does, and for images that were handed over to a training that
    reads its own from files.

    >>> config = RetrainConfig(genotype="bionas_darts", dataset="digits", batch_size=32, cutout=0)
    >>> source = source_of(config, torch.device("cpu"))
    >>> source.per_epoch, tuple(source.batch(0)[0].shape)
    (44, (32, 1, 8, 8))
    >>> sum(len(labels) for _, labels in source.measured("test"))
    359
    """
    if data is None:
        return open_source(config, device)
    if not isinstance(config, RetrainConfig):
        raise InputError("dataset: expected none, since this training reads its images from files")
    return InMemory(data, config, device)


def open_source(config: TrainingConfig, device: torch.device) -> Source:
    """Open the images that a training's configuration names, for this process.

    Raises InputError if they cannot be read, or the options do not fit them.

    >>> config = RetrainConfig(genotype="bionas_darts", dataset="digits", holdout=100, cutout=0)
    >>> source = open_source(config, torch.device("cpu"))
    >>> source.classes[:3], source.in_channels, source.image_size
    (('0', '1', '2'), 1, (8, 8))
    >>> sum(len(labels) for _, labels in source.measured("valid"))
    100
    """
    with first_before_the_others():  # it may download
        if isinstance(config, ImageNetConfig):
            prefix = config.dataset.partition("/")[0]
            kind = ImageStream if prefix in STREAMING_PACKAGES else ImageFiles
            return kind(config, device, (rank(), world_size()))
        assert isinstance(config, RetrainConfig)
        data = load_data(
            config.dataset,
            config.data_dir,
            config.image_size,
            config.train_images,
            config.seed_of_images,
        )
    return InMemory(data, config, device)


class AlteredItems:
    """Images of a split, altered by a policy of timm's; a `loader.Items`.

    >>> split = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([4, 7]))
    >>> image, label = AlteredItems(split, "rand-m9-mstd0.5")[1]
    >>> image.shape, label
    ((1, 8, 8), 7)
    """

    def __init__(self, split: Split, policy: str) -> None:
        """Build the policy.

        Raises InputError if there is no such policy, or the images are not square or have another
        number of channels than 1 or 3.
        """
        channels, height, width = split.images.shape[1:]
        if channels not in (1, 3) or height != width:
            raise InputError(
                "--auto-augment: expected square images of 1 or 3 channels, found "
                f"{channels}x{height}x{width}"
            )
        self._split, self._transform = split, policy_transform(policy, height)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return an altered image (C, H, W) uint8 and its label."""
        # (C, H, W) -> (H, W, 3): timm's policies take images in RGB, Pillow has channels last.
        pixels = self._split.images[index].expand(3, -1, -1).permute(1, 2, 0).numpy()
        altered = self._transform(Image.fromarray(np.ascontiguousarray(pixels)))
        # Of a gray image the three channels are alike, and one is kept.
        return np.asarray(altered)[: self._split.images.shape[1]], int(self._split.labels[index])


class InMemory:
    """A `Source` of images that lie on the device as one tensor.

    With an `--auto-augment` policy, which only the CPU can compute, workers alter the images of
    each batch before they are cropped and mirrored on the device.

    >>> data = load_data("digits", train_images=64)
    >>> config = RetrainConfig(genotype="bionas_darts", dataset="digits", batch_size=16, cutout=0)
    >>> source = InMemory(data, config, torch.device("cpu"))
    >>> x, labels = source.batch(0)
    >>> source.per_epoch, tuple(x.shape), torch.equal(x, source.batch(0)[0])
    (4, (16, 1, 8, 8), True)
    """

    def __init__(self, data: ImageData, config: RetrainConfig, device: torch.device) -> None:
        """Put the images on the device.

        Raises InputError if the options do not fit the images.
        """
        trained, held_out = split_off(len(data.train), config.holdout, config.seed_of_images)
        train = data.train[trained] if config.holdout else data.train
        self._identity = data.identity()
        self._measured = {"valid": data.train[held_out].to(device), "test": data.test.to(device)}
        self.classes = data.classes
        self.in_channels = data.in_channels
        self.image_size = data.image_size
        self.normalization = Normalization.of(train.images).to(device)
        # Loader and batches have the same seed and name, hence the same order: image i of the
        # loader's batch t is image i of batch t here.
        stream: dict[str, Any] = {
            "seed": config.seed,
            "name": "train",
            "device": device,
            "share": (rank(), world_size()),
        }
        self._loader: SeededLoader | None = None
        if config.auto_augment:
            items, workers = AlteredItems(train, config.auto_augment), worker_count(config.workers)
            self._loader = SeededLoader(
                items=items, batch_size=config.batch_size, workers=workers, **stream
            )
        self._batches = Batches(
            train,
            config.batch_size,
            self.normalization,
            Augmentation(config.crop_padding, config.flip, config.cutout),
            altered=None if self._loader is None else self._altered,
            **stream,
        )
        self.per_epoch = self._batches.per_epoch
        self.damaged: Mapping[str, str] = {}

    @property
    def run(self) -> Caller:
        """What runs the computations on the device."""
        return self._batches.run

    @run.setter
    def run(self, run: Caller) -> None:
        self._batches.run = run

    def _altered(self, t: int) -> Tensor:
        """Return the images (N, C, H, W) uint8 of batch t as the policy alters them."""
        assert self._loader is not None
        return self._loader.batch(t)[0]

    def identity(self) -> str:
        """Return a line with numbers, sizes and a digest of all images and labels."""
        return self._identity

    def batch(self, t: int) -> Labeled:
        """Return this process' share of batch t: images (N, C, H, W) float32 and labels (N,)."""
        return self._batches.batch(t)

    def measured(self, part: Measured) -> Iterable[Labeled]:
        """Iterate over every world_size-th image of a part, beginning with that of this rank."""
        split = self._measured[part]
        share = replace(
            split,
            images=split.images[rank() :: world_size()],
            labels=split.labels[rank() :: world_size()],
        )
        return in_order(share, MEASURED_FROM_MEMORY, self.normalization)

    def count(self, part: Measured) -> int:
        """Return the number of images in a part, those of all processes together."""
        return len(self._measured[part])

    def close(self) -> None:
        """End the policy's workers, if there is a policy."""
        if self._loader is not None:
            self._loader.close()
