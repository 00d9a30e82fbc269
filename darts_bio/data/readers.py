"""Data sets on disk, by timm's readers: folders, tar files, torchvision's, Hugging Face's.

A reader opens each image by its number; a data set has two parts, one to train on and one to
measure on. Data sets that can only be read from first to last are in `streams`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from darts_bio.bounded import open_file
from darts_bio.data.datasets import IMAGE_SUFFIXES, eight_bits, torchvision_datasets
from darts_bio.errors import InputError, first_line

FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
}
"""The names under which timm looks for a part of a data set."""

STREAMING_PACKAGES = {"wds": "webdataset", "hfids": "datasets", "tfds": "tensorflow_datasets"}
"""The packages that read timm's data sets of a prefix as streams."""

PACKAGES = {"hfds": "datasets", "torch": "torchvision"}
"""The packages that read timm's data sets of a prefix, each image by its number."""


@dataclass(frozen=True)
class Part:
    """A part of a timm data set: the images that are trained on, or those that are measured on.

    Images are numbered from 0 here. The reader has numbers of its own, some of which may not count.

    Attributes:
        reader: Its `reader[i]` is a sequence that begins with an opened file or an image.
        members: The reader's numbers (N,) of the images that count.
        labels: Their places (N,) in `classes`.
        classes: The names of the classes.
        name_of: Maps the reader and one of its numbers to what identifies the image.
    """

    reader: Any
    members: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name_of: Callable[[Any, int], str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.members)

    def name(self, number: int) -> str:
        """Return what identifies an image, such as its path in the folder."""
        return self.name_of(self.reader, int(self.members[number]))

    def image(self, number: int) -> Image.Image:
        """Return an image, decoded, in RGB.

        Raises whatever the reader or the decoder does if it is damaged.
        """
        opened = self.reader[int(self.members[number])][0]
        if isinstance(opened, Image.Image):
            return eight_bits(opened).convert("RGB")
        with opened, Image.open(opened) as image:
            return eight_bits(image).convert("RGB")


class TarMembers:
    """The files in tar files, by number.

    timm's own reader keeps the tar files open; processes that are forked from this one would share
    the position in them. Here each read opens its file anew.
    """

    def __init__(self, root: str, samples: Any) -> None:
        """Take over timm's index.

        Args:
            root: A tar file, or a folder of tar files.
            samples: For each file (member, name of the tar file in the folder or None, member that
                is a tar file inside of that or None).
        """
        self.root, self.samples = root, samples

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[io.BytesIO]:
        """Return the bytes of file i, in the form that a `Part`'s reader has."""
        member, tar, inner_tar = self.samples[i]
        with open(os.path.join(self.root, tar) if tar else self.root, "rb") as file:
            if member.size > os.fstat(file.fileno()).st_size:  # memory is taken before it is read
                raise OSError("it is larger than its tar file")
            # The offsets of files in an inner tar count from where that begins.
            file.seek(member.offset_data + (inner_tar.offset_data if inner_tar else 0))
            return (io.BytesIO(file.read(member.size)),)


class FolderFiles:
    """The files in a folder of class folders, by number; timm's own reader would wait for pipes."""

    def __init__(self, root: str, samples: Any) -> None:
        """Take over timm's index: the folder, and for each file its path and its label."""
        self.root, self.samples = root, samples

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[IO[bytes]]:
        """Return file i, opened, in the form that a `Part`'s reader has; raises OSError if it is none."""
        return (open_file(Path(self.samples[i][0])),)


def open_parts(
    root: Path | None, dataset: str, train_split: str, test_split: str
) -> tuple[Part, Part]:
    """Return the part that is trained on and the one that is measured on, of the same classes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for name in ("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png"):
    ...         path = Path(directory, name)
    ...         path.parent.mkdir(parents=True)
    ...         Image.new("RGB", (40, 30)).save(path)
    ...     train, test = open_parts(Path(directory), "", "train", "val")
    ...     train.image(0).size
    (40, 30)
    >>> train.classes, train.labels.tolist(), train.name(1), test.name(1)
    (('cat', 'dog'), [0, 1], 'dog/1.png', 'dog/2.png')

    Args:
        root: The folder of the data set, None if the library that reads it knows where it is.
        dataset: Empty for folders and tar files, else a name of timm's, such as hfds/NAME.
        train_split: The name of the part that is trained on.
        test_split: The name of the part that is measured on.

    Raises:
        InputError: If a part cannot be read, or their classes differ.
    """
    torchvision_datasets()  # timm cannot be imported without it, and says less about why
    prefix = dataset.partition("/")[0]
    if not dataset:
        try:
            train_root = _find(root, train_split, "--train-split")
            test_root = _find(root, test_split, "--test-split")
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
        train = _part_of_library(root, dataset, train_split)
        test = _part_of_library(root, dataset, test_split)
    else:
        known = ", ".join(f"{prefix}/NAME" for prefix in (*PACKAGES, *STREAMING_PACKAGES))
        raise InputError(
            f"--dataset: expected {known}, or nothing for folders and tar files, found {dataset!r}"
        )
    in_one_alone = sorted(set(train.classes) ^ set(test.classes))
    if in_one_alone:
        name = in_one_alone[0]
        has_it, lacks_it = (
            (train_split, test_split) if name in train.classes else (test_split, train_split)
        )
        raise InputError(
            f"class {name} has images in {has_it} and none in {lacks_it}: expected the same "
            "classes in both; add or remove its images"
        )
    return train, test


def need_package(dataset: str, package: str) -> None:
    """Raise InputError, which says how to install it, if a data set's package is missing.

    >>> need_package("torch/cifar10", "torchvision")
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"--dataset {dataset} needs a package: pip install {package}")


def _find(root: Path | None, split: str, option: str) -> Path:
    """Return the folder, or tar file, of a part in `root`.

    It may have any of the names that mean the same in `FOLDERS`; the one that was given comes
    first. Raises InputError, which names the option, if there is none.
    """
    if root is None:
        raise InputError(
            "expected --data-dir DIR, with DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, found "
            "none"
        )
    if not root.is_dir():
        raise InputError(
            f"--data-dir: expected a folder with the folders train and val, found no folder {root}"
        )
    synonyms = next((known for known in FOLDERS.values() if split in known), (split,))
    names = (split, *(name for name in synonyms if name != split))
    for name in names:
        for path in (root / name, root / f"{name}.tar"):
            if path.is_dir() or (path.is_file() and path.suffix == ".tar"):
                return path
    raise InputError(
        f"--data-dir {root}: expected a folder or tar file named {' or '.join(names)} in it, found "
        f"none; give its name by {option}"
    )


def _part_on_disk(path: Path) -> Part:
    """Return the images in a folder of class folders, a tar file, or a folder of tar files.

    Raises InputError if they cannot be read, or a class folder has none.
    """
    from timm.data import create_dataset
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    entries = [] if path.is_file() else list(path.iterdir())
    folders = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
    in_tar = not folders and (path.is_file() or any(path.glob("*.tar")))
    for entry in entries if in_tar else ():
        if entry.suffix == ".tar" and not entry.is_file():
            raise InputError(f"{entry}: expected a tar file, found none; remove it")
    reader: TarMembers | FolderFiles
    try:
        if in_tar:  # timm's factory knows single tar files only
            # Of many gigabytes timm would keep an index beside them, as a pickle, which may as well
            # be someone else's.
            index = ReaderImageInTar(str(path), cache_tarinfo=False)
            timm_labels, timm_classes = index.targets, index.class_name_to_idx
            reader, name_of = TarMembers(str(path), index.samples), _name_in_tar
        else:
            found = create_dataset(
                "", root=str(path), search_split=False, input_key=";".join(IMAGE_SUFFIXES)
            ).reader
            timm_labels, timm_classes = [label for _, label in found.samples], found.class_to_idx
            reader = FolderFiles(str(found.root), found.samples)
            name_of = _name_in_folder
    except Exception as error:  # of timm and tarfile, of many kinds
        raise InputError(
            f"{path}: {_EXPECTED}, found none that can be read ({first_line(error)})"
        ) from None
    names = [name_of(reader, i) for i in range(len(reader))]
    # By name, since timm's order leaves open which of 1.png and 01.png is first.
    members = sorted((i for i, name in enumerate(names) if _is_sample(name)), key=names.__getitem__)
    empty = sorted(set(folders) - {names[i].partition("/")[0] for i in members})
    if empty or not members:
        raise InputError(f"{path / empty[0] if empty else path}: {_EXPECTED}, found none")
    # timm's labels may count classes of which no member is left; these do not.
    timm_names = {label: name for name, label in timm_classes.items()}
    class_names = [timm_names[timm_labels[i]] for i in members]
    classes = _in_order(set(class_names))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[name] for name in class_names])
    return Part(reader, np.array(members), labels, classes, name_of)


_EXPECTED = f"expected images ({' '.join(IMAGE_SUFFIXES)}) in a folder for each class, or tar files of such folders"


def _is_sample(name: str) -> bool:
    """Return whether a file is in a class folder and not hidden.

    Outside of a folder there is no class; a leading dot is of what systems leave behind, such as
    ._0.png.
    """
    return "/" in name and not any(piece.startswith(".") for piece in name.split("/"))


def _in_order(classes: set[str]) -> tuple[str, ...]:
    """Sort names of classes as timm does: 2 before 10."""
    from timm.utils.misc import natural_key

    return tuple(sorted(classes, key=lambda name: (natural_key(name), name)))


def _name_in_folder(reader: Any, i: int) -> str:
    """Return the path of timm's sample i in the folder, with forward slashes."""
    return reader.samples[i][0][len(reader.root) :].replace(os.sep, "/").lstrip("/")


def _name_in_tar(reader: Any, i: int) -> str:
    """Return the path of timm's sample i: of the tar file, the tar file in it, and the member."""
    member, tar, inner_tar = reader.samples[i]
    pieces = [*([tar] if tar else []), *([inner_tar.name] if inner_tar else []), member.name]
    return posixpath.normpath("/".join(pieces))


def _part_of_library(root: Path | None, dataset: str, split: str) -> Part:
    """Return a part of a data set that torchvision or Hugging Face's datasets reads.

    Raises InputError if it cannot be read.
    """
    from timm.data import create_dataset

    with readable(dataset, split):
        data_set = create_dataset(dataset, root=None if root is None else str(root), split=split)
        if dataset.startswith("torch/"):
            reader, given_labels = data_set, data_set.targets
            classes = [str(name) for name in data_set.classes]
        else:
            reader = data_set.reader
            # The column of labels alone; going through the samples would decode all images.
            given_labels = list(reader.dataset[reader.label_key])
            classes = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
        labels = np.array(given_labels, dtype=np.int64)
    return Part(
        reader,
        np.arange(len(labels)),
        labels,
        tuple(classes),
        partial(_name_by_number, f"{dataset} {split}"),
    )


@contextlib.contextmanager
def readable(dataset: str, split: str) -> Iterator[None]:
    """Turn whatever is raised within into an InputError about this part of the data set.

    >>> with readable("wds/shards", "train"):
    ...     open("no such file")
    Traceback (most recent call last):
    darts_bio.errors.InputError: --dataset wds/shards, part train: cannot be read ...
    """
    try:
        yield
    except Exception as error:  # of libraries and of what they download from, of many kinds
        raise InputError(
            f"--dataset {dataset}, part {split}: cannot be read ({first_line(error)}); expected it "
            "in --data-dir, and the names of its parts in --train-split and --test-split"
        ) from None


def _name_by_number(part: str, reader: Any, i: int) -> str:
    """Return what identifies image i of a part whose images have no names."""
    return f"{part} image {i}"
