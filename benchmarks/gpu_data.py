"""CIFAR-10's training images as parts, for machines that are sent no more than some megabytes at a
time.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from training_step import random_images

from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError

NAME = "CIFAR-10"
RANDOM = "random images"
PARTS, IN_A_CALL = 12, 4
"""12 parts of 12.2 MiB each; 4 of them, 49 MiB, are one call's."""


def pack(target: Path, data_dir: str | None) -> list[Path]:
    """Write the training images as uint8 into `target`/1, /2 and /3, a folder a call. Returns the
    files.

    Raises InputError if there is no CIFAR-10 in `data_dir`.
    """
    train = load_data("cifar10", data_dir).train
    files = []
    for number, index in enumerate(np.array_split(np.arange(len(train)), PARTS)):
        file = target / str(1 + number // IN_A_CALL) / f"cifar10-{number:02}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        images, labels = (
            value[torch.from_numpy(index)].numpy() for value in (train.images, train.labels)
        )
        np.savez(file, images=images, labels=labels.astype(np.uint8), number=number, of=PARTS)
        files.append(file)
    return files


def collect(parts: Path, keep: Path) -> None:
    """Copy the parts that have arrived to where they stay. Raises InputError if there is no such
    folder.
    """
    if not parts.is_dir():
        raise InputError(
            f"--parts {parts}: expected a folder of parts that --pack has written, found none"
        )
    own = keep / "parts"
    own.mkdir(parents=True, exist_ok=True)
    for file in sorted(parts.rglob("cifar10-*.npz")):
        if not (own / file.name).exists():
            shutil.copyfile(file, own / f".{file.name}")
            os.replace(
                own / f".{file.name}", own / file.name
            )  # a copy that was killed counts for nothing


def arrived(keep: Path) -> tuple[int, int]:
    """Count the parts that have arrived, and those that there are."""
    there = len(list((keep / "parts").glob("cifar10-*.npz")))
    return there, PARTS


def training_images(keep: Path, small: bool) -> tuple[ImageData, str]:
    """Give the images that a search is made on, and say what they are: NAME, or RANDOM where no
    part has arrived.
    """
    files = sorted((keep / "parts").glob("cifar10-*.npz"))
    if not files:
        return random_images(48 if small else 50_000, 8 if small else 32), RANDOM
    images, labels = [], []
    for file in files:
        with np.load(file, allow_pickle=False) as part:
            images.append(torch.from_numpy(part["images"]))
            labels.append(torch.from_numpy(part["labels"].astype(np.int64)))
    train = Split(torch.cat(images), torch.cat(labels))
    if small:
        train = Split(train.images[:48, :, ::4, ::4].contiguous(), train.labels[:48])
    return ImageData(train, train[:0], tuple(map(str, range(10)))), NAME
