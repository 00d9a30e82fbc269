"""Images that are read from disk while the network trains: folders, tar files and what else timm
knows.

The data sets and the transforms are timm's; order and augmentation are those of
`loader.SeededLoader`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import posixpath
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from darts_bio.config import ImageNetConfig
from darts_bio.data.batches import Measured, Normalisation
from darts_bio.data.datasets import (
    IMAGE_SUFFIXES,
    drawn,
    eight_bits,
    split_off,
    torchvision_datasets,
)
from darts_bio.data.loader import Damaged, OrderedLoader, SeededLoader
from darts_bio.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_transform,
    training_transform,
)
from darts_bio.errors import InputError, first_line
from darts_bio.runtime import Run, call, worker_count

EVALUATION_BATCH = 256

FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
}
"""The names under which timm looks for a part."""

STREAMING_PACKAGES = {"wds": "webdataset", "hfids": "datasets", "tfds": "tensorflow_datasets"}
"""What reads those that come as streams."""

PACKAGES = {"hfds": "datasets", "torch": "torchvision"}
"""What reads timm's data sets of a prefix, each image by its number."""


@dataclass(frozen=True)
class Part:
    """Images of a timm data set that are trained on, or measured on.

    The first thing in `reader[i]` is an opened file or an image; `members` are the i that count,
    `labels` their places in `classes`, `name_of(reader, i)` what identifies an image.
    """

    reader: Any
    members: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name_of: Callable[[Any, int], str]

    def __len__(self) -> int:
        return len(self.members)

    def name(self, number: int) -> str:
        return self.name_of(self.reader, int(self.members[number]))

    def image(self, number: int) -> Image.Image:
        """Decoded, in RGB. Raises whatever the reader or the decoder does if it is damaged."""
        opened = self.reader[int(self.members[number])][0]
        if isinstance(opened, Image.Image):
            return eight_bits(opened).convert("RGB")
        with opened, Image.open(opened) as image:
            return eight_bits(image).convert("RGB")


class TarMembers:
    """The members of tar files by number, as timm's index of them says: (member, file name or None,
    inner tar or None).

    timm's own reader keeps files open, whose position processes would share.
    """

    def __init__(self, root: str, samples: Any) -> None:
        self.root, self.samples = root, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[io.BytesIO]:
        member, tar, inner = self.samples[i]
        with open(os.path.join(self.root, tar) if tar else self.root, "rb") as file:
            file.seek(member.offset_data + (inner.offset_data if inner else 0))
            return (io.BytesIO(file.read(member.size)),)


class FileItems:
    """The images of a part that `chosen` numbers, transformed: `loader.Items`."""

    def __init__(self, part: Part, chosen: Tensor, transform: Callable[[Image.Image], Any]) -> None:
        self._part, self._chosen, self._transform = part, chosen.numpy(), transform

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """An image (3, S, S) uint8 and its label. Raises Damaged if it cannot be decoded."""
        number = int(self._chosen[index])
        try:
            with (
                warnings.catch_warnings()
            ):  # of Pillow, about oddities in what it reads nevertheless
                warnings.simplefilter("ignore")
                image = self._part.image(number)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on broken bytes
            raise Damaged(self._part.name(number), first_line(error)) from None
        return np.asarray(self._transform(image)), int(self._part.labels[number])


class ImageFiles:
    """A `Source` of images on disk. What is trained on is cropped at random (8 to 100 % of the
    area, with an aspect ratio of 3/4 to 4/3), mirrored and altered in colour; what is measured is
    resized and its centre cut out.

    Images that cannot be read are passed over, and named in `damaged`.
    """

    in_channels = 3

    def __init__(
        self, config: ImageNetConfig, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> None:
        """Of the processes `share` is (rank, number). Raises InputError if the images cannot be
        found, or are not what the options say.
        """
        root = None if config.data_dir is None else Path(config.data_dir)
        train, test = open_parts(root, config.dataset, config.train_split, config.test_split)
        self.classes = _class_names(train, test, config.num_classes)
        self.image_size = (config.image_size, config.image_size)
        self.run: Run = call
        self.normalisation = Normalisation(
            torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        ).to(device)
        self._identity = _identity(train, test, self.classes)
        workers = worker_count(config.workers)
        chosen = drawn(
            f"the {config.train_split} split", len(train), config.train_images, config.seed
        )
        trained, held = split_off(len(chosen), config.holdout, config.seed)
        augmented, centred = training_transform(config), center_transform(config)
        self._train = SeededLoader(
            items=FileItems(train, chosen[trained], augmented),
            batch_size=config.batch_size,
            seed=config.seed,
            name="train",
            workers=workers,
            device=device,
            share=share,
        )
        self.per_epoch = self._train.per_epoch
        measured = {
            "valid": FileItems(train, chosen[held], centred),
            "test": FileItems(test, torch.arange(len(test)), centred),
        }
        self._measured = {
            part: OrderedLoader(
                items=items,
                batch_size=EVALUATION_BATCH,
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
        """These file names and labels in a line; another one for anything else. The images are not
        read.
        """
        return self._identity

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """This process' share of batch t: images (N, 3, S, S) float32 and labels (N,)."""
        images, labels = self._train.batch(t)
        return self.run(self.normalisation, images), labels

    def measured(self, part: Measured) -> Iterator[tuple[Tensor, Tensor]]:
        """This process' share of the images held out, or of the test images, each once."""
        for images, labels in self._measured[part]:
            yield self.normalisation(images), labels

    def close(self) -> None:
        """Ends the processes that read."""
        for loader in self._loaders:
            loader.close()


def open_parts(
    root: Path | None, dataset: str, train_split: str, test_split: str
) -> tuple[Part, Part]:
    """What is trained on and what is measured on, with the same classes. Raises InputError if they
    cannot be read.
    """
    torchvision_datasets()  # timm cannot be imported without it, and says less about why
    prefix = dataset.partition("/")[0]
    if not dataset:
        try:
            train_root, test_root = (
                _find(root, train_split, "--train-split"),
                _find(root, test_split, "--test-split"),
            )
            if train_root == test_root:
                raise InputError(
                    "--test-split: expected another part than the one that is trained on, "
                    f"{train_root}"
                )
            train, test = _part_on_disk(train_root), _part_on_disk(test_root)
        except OSError as error:
            raise InputError(f"--data-dir {root}: cannot be read ({first_line(error)})") from None
    elif prefix in PACKAGES:
        if prefix == "torch" and root is None:
            raise InputError(f"--dataset {dataset} needs --data-dir DIR, in which it lies")
        need_package(dataset, PACKAGES[prefix])
        train, test = (
            _part_of_library(root, dataset, train_split),
            _part_of_library(root, dataset, test_split),
        )
    else:
        known = ", ".join(f"{prefix}/NAME" for prefix in (*PACKAGES, *STREAMING_PACKAGES))
        raise InputError(
            f"--dataset: expected {known}, or nothing for folders and tar files, found {dataset!r}"
        )
    only = sorted(set(train.classes) ^ set(test.classes))
    if only:
        here, there = (
            (train_split, test_split) if only[0] in train.classes else (test_split, train_split)
        )
        raise InputError(
            f"class {only[0]} has images in {here} and none in {there}: expected the same classes "
            "in both; add or "
            "remove its images"
        )
    return train, test


def need_package(dataset: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"--dataset {dataset} needs a package: pip install {package}")


def _find(root: Path | None, split: str, option: str) -> Path:
    """The folder, or tar file, of a part in `root`."""
    if root is None:
        raise InputError(
            "expected --data-dir DIR, with DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, found "
            "none"
        )
    if not root.is_dir():
        raise InputError(
            f"--data-dir: expected a folder with the folders train and val, found no folder {root}"
        )
    names = next((known for known in FOLDERS.values() if split in known), (split,))
    names = (split, *(name for name in names if name != split))
    for name in names:
        for path in (root / name, root / f"{name}.tar"):
            if path.is_dir() or (path.is_file() and path.suffix == ".tar"):
                return path
    raise InputError(
        f"--data-dir {root}: expected a folder or tar file named {' or '.join(names)} in it, found "
        "none; give its name "
        f"by {option}"
    )


def _part_on_disk(path: Path) -> Part:
    from timm.data import create_dataset
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    folders = (
        []
        if path.is_file()
        else [f.name for f in path.iterdir() if f.is_dir() and f.name[0] != "."]
    )
    in_tar = not folders and (path.is_file() or any(path.glob("*.tar")))
    try:
        if in_tar:  # timm's factory knows single tar files only
            # Of many gigabytes timm would keep an index beside them, as a pickle, which may as well
            # be someone else's.
            index = ReaderImageInTar(str(path), cache_tarinfo=False)
            own_labels, own_classes = index.targets, index.class_name_to_idx
            reader, name_of = TarMembers(str(path), index.samples), _name_in_tar
        else:
            reader = create_dataset(
                "", root=str(path), search_split=False, input_key=";".join(IMAGE_SUFFIXES)
            ).reader
            own_labels, own_classes = [label for _, label in reader.samples], reader.class_to_idx
            name_of = _name_in_folder
    except Exception as error:  # of timm and tarfile, of many kinds
        raise InputError(
            f"{path}: {_EXPECTED}, found none that can be read ({first_line(error)})"
        ) from None
    names = [name_of(reader, i) for i in range(len(reader))]
    # Outside of a folder there is no class; a leading dot is of what systems leave behind, such as
    # ._0.png. And timm's order leaves open which of 1.png and 01.png is first.
    members = sorted((i for i, name in enumerate(names) if _is_sample(name)), key=names.__getitem__)
    empty = sorted(set(folders) - {names[i].partition("/")[0] for i in members})
    if empty or not members:
        raise InputError(f"{path / empty[0] if empty else path}: {_EXPECTED}, found none")
    class_of = {label: name for name, label in own_classes.items()}
    labels = [class_of[own_labels[i]] for i in members]
    classes = _in_order(set(labels))
    label_of = {name: label for label, name in enumerate(classes)}
    return Part(
        reader, np.array(members), np.array([label_of[name] for name in labels]), classes, name_of
    )


_EXPECTED = f"expected images ({' '.join(IMAGE_SUFFIXES)}) in a folder for each class, or tar files of such folders"


def _is_sample(name: str) -> bool:
    return "/" in name and not any(part.startswith(".") for part in name.split("/"))


def _in_order(classes: set[str]) -> tuple[str, ...]:
    """As timm numbers them: 2 before 10."""
    from timm.utils.misc import natural_key

    return tuple(sorted(classes, key=lambda name: (natural_key(name), name)))


def _name_in_folder(reader: Any, i: int) -> str:
    return reader.samples[i][0][len(reader.root) :].replace(os.sep, "/").lstrip("/")


def _name_in_tar(reader: Any, i: int) -> str:
    member, tar, inner_tar = reader.samples[i]
    return posixpath.normpath(
        "/".join(([tar] if tar else []) + ([inner_tar.name] if inner_tar else []) + [member.name])
    )


def _part_of_library(root: Path | None, dataset: str, split: str) -> Part:
    from timm.data import create_dataset

    with readable(dataset, split):
        found = create_dataset(dataset, root=None if root is None else str(root), split=split)
        if dataset.startswith("torch/"):
            reader, own_labels, classes = (
                found,
                found.targets,
                [str(name) for name in found.classes],
            )
        else:
            reader = found.reader
            own_labels = list(reader.dataset[reader.label_key])
            classes = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
        labels = np.array(own_labels, dtype=np.int64)
    return Part(
        reader,
        np.arange(len(labels)),
        labels,
        tuple(classes),
        partial(_name_by_number, f"{dataset} {split}"),
    )


@contextlib.contextmanager
def readable(dataset: str, split: str) -> Iterator[None]:
    """Within it what goes wrong is an InputError about this part of the data set."""
    try:
        yield
    except Exception as error:  # of libraries and of what they download from, of many kinds
        raise InputError(
            f"--dataset {dataset}, part {split}: cannot be read ({first_line(error)}); expected it "
            "in --data-dir, and "
            "the names of its parts in --train-split and --test-split"
        ) from None


def _name_by_number(part: str, reader: Any, i: int) -> str:
    return f"{part} image {i}"


def _class_names(train: Part, test: Part, num_classes: int | None) -> tuple[str, ...]:
    """By label; numbers where there are no names. Raises InputError if they are too few for the
    labels.
    """
    labels = np.concatenate([train.labels, test.labels])
    names = train.classes or tuple(map(str, range(labels.max(initial=0) + 1)))
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(names):
        raise InputError(
            f"--dataset: expected images with labels from 0 to {len(names) - 1}, found others; "
            "choose parts "
            "that have labels, by --train-split and --test-split"
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
    digest = hashlib.blake2b(repr(classes).encode(), digest_size=8)
    for part in (train, test):
        digest.update("\n".join(map(part.name, range(len(part)))).encode(errors="surrogateescape"))
        digest.update(part.labels.astype("<i8").tobytes())
    return f"{len(train)} + {len(test)} image files in {len(classes)} classes, digest {digest.hexdigest()}"
