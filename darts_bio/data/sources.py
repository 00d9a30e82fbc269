"""What a training is fed with: batches to train on, and images to measure on, whatever they come
from.
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
from darts_bio.data.batches import Augmentation, Batches, Measured, Normalisation, Split, in_order
from darts_bio.data.datasets import ImageData, load_data, split_off
from darts_bio.data.files import STREAMING_PACKAGES, ImageFiles
from darts_bio.data.loader import SeededLoader
from darts_bio.data.streams import ImageStream
from darts_bio.data.transforms import policy_transform
from darts_bio.distributed import first_before_the_others, rank, world_size
from darts_bio.errors import InputError
from darts_bio.runtime import Run, worker_count

Labelled = tuple[Tensor, Tensor]
"""Normalised images (N, C, H, W) float32 and labels (N,) int64, on the device."""

EVALUATION_BATCH = 500


class Source(Protocol):
    """Images of a data set. Of several processes each receives its own share."""

    classes: tuple[str, ...]
    in_channels: int
    image_size: tuple[int, int]
    """(height, width)."""
    normalisation: Normalisation
    per_epoch: int
    """Batches an epoch; what does not fill one is left out."""
    run: Run
    """What runs the computations on the device (`runtime.call`, or a recorder)."""

    @property
    def damaged(self) -> Mapping[str, str]:
        """Files that were passed over since they could not be read, and why not."""

    def identity(self) -> str:
        """These images and labels in a line; another one for anything else."""

    def batch(self, t: int) -> Labelled:
        """This process' share of batch t, counted from 0 over all epochs; a function of the seed
        and t alone.
        """

    def measured(self, part: Measured) -> Iterable[Labelled]:
        """This process' share of images that are measured, each once, as they are."""

    def close(self) -> None:
        """Ends the processes that read, if there are any."""


def source_of(
    config: TrainingConfig, device: torch.device, data: ImageData | None = None
) -> Source:
    """Open what a training is fed with: images that were handed over, or those that its options
    name.

    Raises InputError as `open_source` does, and for images that were handed over to a training from
    files.
    """
    if data is None:
        return open_source(config, device)
    if not isinstance(config, RetrainConfig):
        raise InputError("dataset: expected none, since this training reads its images from files")
    return InMemory(data, config, device)


def open_source(config: TrainingConfig, device: torch.device) -> Source:
    """The images that a training's configuration names, for this process.

    Raises InputError if they cannot be read, or the options do not fit them.
    """
    with first_before_the_others():  # it may download
        if isinstance(config, ImageNetConfig):
            kind = (
                ImageStream
                if config.dataset.partition("/")[0] in STREAMING_PACKAGES
                else ImageFiles
            )
            return kind(config, device, (rank(), world_size()))
        assert isinstance(config, RetrainConfig)
        data = load_data(
            config.dataset, config.data_dir, config.image_size, config.train_images, config.seed
        )
    return InMemory(data, config, device)


class AlteredItems:
    """Images of a split under a policy of timm's: `loader.Items`."""

    def __init__(self, split: Split, policy: str) -> None:
        """Raises InputError if there is no such policy, or the images are neither square nor grey
        or coloured.
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
        """An image (C, H, W) uint8 and its label."""
        image = self._split.images[index].expand(3, -1, -1).permute(1, 2, 0).numpy()
        altered = self._transform(Image.fromarray(np.ascontiguousarray(image)))
        return np.asarray(altered)[: self._split.images.shape[1]], int(self._split.labels[index])


class InMemory:
    """A `Source` of images that lie on the device as one tensor. A policy alters them on the CPU
    before.
    """

    def __init__(self, data: ImageData, config: RetrainConfig, device: torch.device) -> None:
        """Raises InputError if the options do not fit the images."""
        trained, held = split_off(len(data.train), config.holdout, config.seed)
        train = data.train[trained] if config.holdout else data.train
        self._identity = data.identity()
        self._measured = {"valid": data.train[held].to(device), "test": data.test.to(device)}
        self.classes, self.in_channels, self.image_size = (
            data.classes,
            data.in_channels,
            data.image_size,
        )
        self.normalisation = Normalisation.of(train.images).to(device)
        # Both draw the same order.
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
            self.normalisation,
            Augmentation(config.crop_padding, config.flip, config.cutout),
            altered=None if self._loader is None else self._altered,
            **stream,
        )
        self.per_epoch = self._batches.per_epoch
        self.damaged: Mapping[str, str] = {}

    @property
    def run(self) -> Run:
        return self._batches.run

    @run.setter
    def run(self, run: Run) -> None:
        self._batches.run = run

    def _altered(self, t: int) -> Tensor:
        assert self._loader is not None
        return self._loader.batch(t)[0]

    def identity(self) -> str:
        return self._identity

    def batch(self, t: int) -> Labelled:
        return self._batches.batch(t)

    def measured(self, part: Measured) -> Iterable[Labelled]:
        split = self._measured[part]
        own = replace(
            split,
            images=split.images[rank() :: world_size()],
            labels=split.labels[rank() :: world_size()],
        )
        return in_order(own, EVALUATION_BATCH, self.normalisation)

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()
