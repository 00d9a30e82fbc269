"""Data sets whose images lie in memory, as one uint8 tensor.

A data set is a function `(data_dir, image_size) -> ImageData`, registered by name in `DATASETS`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from darts_bio.data import imagenet16
from darts_bio.data.batches import Split
from darts_bio.errors import InputError, first_line
from darts_bio.registry import Registry
from darts_bio.runtime import generator

DATA_DIR = Path("data")
"""Where data lie, or are downloaded to, unless --data-dir says so."""

DIGITS = Path(__file__).with_name("digits.npz")
"""Images (1797, 8, 8) of values 0 to 16 and labels (1797,), both uint8; README.md beside it says
where from."""

FOLDER_SIZE = 32
TEST_SHARE = 0.2
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm")


@dataclass(frozen=True)
class ImageData:
    """A data set: what is trained on, what only the result is measured on, and the names of the
    classes.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.train.images.shape[2], self.train.images.shape[3]

    def identity(self) -> str:
        """These images and labels in a line; another one for anything else."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(
                repr(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes()
            )
        digest.update(repr(self.classes).encode())
        size = "x".join(map(str, self.train.images.shape[1:]))
        numbers = (
            f"{len(self.train)} + {len(self.test)} images of {size} in {len(self.classes)} classes"
        )
        return f"{numbers}, digest {digest.hexdigest()}"


LoadData = Callable[[Path | None, int | None], ImageData]
DATASETS: Registry[LoadData] = Registry("data set", hyphens=True)


def load_data(
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    train_images: int | None = None,
    seed: int = 0,
) -> ImageData:
    """The data set `name`; with `train_images`, only that many of its training images, drawn by
    `seed`.

    Raises InputError if there is no such data set, or it cannot be read.
    """
    load = DATASETS.get(name)
    try:
        data = load(None if data_dir is None else Path(data_dir), image_size)
    except OSError as error:
        raise InputError(
            f"--data-dir {data_dir}: {name} cannot be read ({first_line(error)})"
        ) from None
    check_data(data, name)
    if train_images is None:
        return data
    return replace(data, train=data.train[drawn(name, len(data.train), train_images, seed)])


def drawn(name: str, images: int, train_images: int | None, seed: int) -> Tensor:
    """The numbers of the training images that are used: all, in order, or `train_images` drawn by
    the seed.

    Raises InputError if the data set `name` has not so many.
    """
    if train_images is None:
        return torch.arange(images)
    if train_images > images:
        raise InputError(
            f"--train-images: expected at most {images}, all of {name}, found {train_images}"
        )
    return torch.randperm(images, generator=generator("cpu", "subset", seed))[:train_images]


def split_off(images: int, holdout: int, seed: int) -> tuple[Tensor, Tensor]:
    """The numbers of the images that are trained on, and of `holdout` drawn by the seed that are
    not.

    Raises InputError if nothing would be left.
    """
    if holdout >= images:
        raise InputError(
            f"--holdout: expected fewer than the {images} training images, found {holdout}"
        )
    if not holdout:
        return torch.arange(images), torch.arange(0)
    order = torch.randperm(images, generator=generator("cpu", "holdout", seed))
    return order[holdout:], order[:holdout]


def check_data(data: ImageData, name: str, *, test: bool = True) -> None:
    """Raise InputError unless this is what the rest of the program takes for granted; without
    `test` there may be no test images.
    """
    for part, split in (("train", data.train), ("test", data.test)):
        images, labels = split.images, split.labels
        form = f"{images.dtype} of shape {tuple(images.shape)} and {labels.dtype} of shape {tuple(labels.shape)}"
        if (
            images.dtype != torch.uint8
            or images.dim() != 4
            or labels.dtype != torch.int64
            or labels.dim() != 1
        ):
            found = form
        elif part == "test" and not test and len(images) == len(labels) == 0:
            continue
        elif not len(images) == len(labels) > 0 or images.shape[1:] != data.train.images.shape[1:]:
            found = f"{form}, beside training images of {tuple(data.train.images.shape)}"
        elif labels.min() < 0 or labels.max() >= len(data.classes):
            found = f"labels {labels.min()} to {labels.max()} for {len(data.classes)} classes"
        else:
            continue
        raise InputError(
            f"data set {name}, {part} images: expected uint8 (N, C, H, W), N > 0, of one size, and "
            "int64 labels (N,) "
            f"from 0 to the number of classes - 1, found {found}; mend the function that loads them"
        )


def _keeps_its_size(name: str, image_size: int | None) -> None:
    if image_size is not None:
        raise InputError(
            f"--image-size: {name} keeps its own size; leave the option out, or use --dataset "
            "folder"
        )


def halves(split: Split, seed: int) -> tuple[Split, Split]:
    """Two random halves of equal size: a search trains w on the first and alpha on the second."""
    order = torch.randperm(len(split), generator=generator("cpu", "halves", seed))
    middle = len(split) // 2
    return split[order[:middle]], split[order[middle : 2 * middle]]


@DATASETS.register("digits")
def digits(data_dir: Path | None, image_size: int | None) -> ImageData:
    """1,797 handwritten digits, 8x8, embedded in the package (UCI); a fixed stratified fifth of
    them for testing.
    """
    _keeps_its_size("digits", image_size)
    with np.load(DIGITS, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    pixels = np.rint(images[:, None] * (255 / 16)).astype(np.uint8)
    everything = Split(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))
    train, test = stratified(everything.labels)
    return ImageData(everything[train], everything[test], tuple(map(str, range(10))))


@DATASETS.register("cifar10")
def cifar10(data_dir: Path | None, image_size: int | None) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 photographs, 32x32, 10 classes (Krizhevsky 2009); downloaded where
    there is none.
    """
    _keeps_its_size("cifar10", image_size)
    return _cifar("CIFAR10", data_dir)


@DATASETS.register("cifar100")
def cifar100(data_dir: Path | None, image_size: int | None) -> ImageData:
    """CIFAR-100: 50,000 + 10,000 photographs, 32x32, 100 classes (Krizhevsky 2009); downloaded
    where there is none.
    """
    _keeps_its_size("cifar100", image_size)
    return _cifar("CIFAR100", data_dir)


@DATASETS.register("imagenet16-120")
def imagenet16_120(data_dir: Path | None, image_size: int | None) -> ImageData:
    """ImageNet16-120: 151,700 + 6,000 photographs, 16x16, 120 classes (NAS-Bench-201), from files
    in --data-dir.
    """
    _keeps_its_size("imagenet16-120", image_size)
    parts = imagenet16.read(data_dir or DATA_DIR)
    train, test = (
        Split(torch.from_numpy(images), torch.from_numpy(labels)) for images, labels in parts
    )
    return ImageData(train, test, tuple(map(str, range(1, imagenet16.CLASSES + 1))))


@DATASETS.register("folder")
def folder(data_dir: Path | None, image_size: int | None) -> ImageData:
    """Any images: DIR/train/CLASS/*.png with DIR/val or DIR/test, or DIR/CLASS/*.png, a fifth of
    them for testing.
    """
    if data_dir is None:
        raise InputError(
            "--dataset folder needs --data-dir DIR, with DIR/train/CLASS/*.png or DIR/CLASS/*.png"
        )
    size = image_size or FOLDER_SIZE
    root = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    classes = _class_folders(root)
    everything = _read_images(root, classes, size)
    if root is data_dir:
        for label, name in enumerate(classes):
            if (found := int((everything.labels == label).sum())) < 2:
                raise InputError(
                    f"{root / name}: expected at least 2 images, one of them for testing, found "
                    f"{found}"
                )
        train, test = stratified(everything.labels)
        return ImageData(everything[train], everything[test], classes)
    test_root = next(
        (data_dir / name for name in ("val", "test") if (data_dir / name).is_dir()), None
    )
    if test_root is None:
        raise InputError(
            f"--data-dir {data_dir}: there is a folder train, so expected a folder val or test "
            "beside it"
        )
    return ImageData(everything, _read_images(test_root, classes, size), classes)


def stratified(labels: Tensor) -> tuple[Tensor, Tensor]:
    """A fixed split: indices for training and, a fifth of each class but at least one, for testing.

    Each class has at least two members. The split does not depend on the seed.
    """
    test = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator("cpu", "stratified", label))
        test.append(members[order[: max(1, round(TEST_SHARE * len(members)))]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(test)] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def torchvision_datasets() -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"torchvision does not fit this PyTorch {torch.__version__} ({first_line(error)}); "
            "repair it "
            "with: pip install --force-reinstall torch torchvision"
        ) from None
    return datasets


def _cifar(name: str, data_dir: Path | None) -> ImageData:
    data_set = getattr(torchvision_datasets(), name)
    root = data_dir or DATA_DIR
    existed = root.exists()

    def load(train: bool) -> Any:
        try:
            return data_set(root, train=train, download=False)
        except RuntimeError:  # not there, or not whole: torchvision checks sums
            pass
        try:
            return data_set(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            if not existed:
                with contextlib.suppress(OSError):  # it stays if part of a download lies in it
                    root.rmdir()
            raise InputError(
                f"{name} is neither in {root} nor can it be downloaded ({first_line(error)}): give "
                f"--data-dir DIR, where DIR holds {data_set.base_folder}, or run once where there "
                "is a network"
            ) from None

    def split(loaded: Any) -> Split:
        images = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
        return Split(images, torch.tensor(loaded.targets))

    train = load(True)
    return ImageData(split(train), split(load(False)), tuple(train.classes))


def _class_folders(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise InputError(
            f"--data-dir: expected a folder with a subfolder for each class, found no folder {root}"
        )
    classes = tuple(
        sorted(
            path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    )
    if len(classes) < 2:
        raise InputError(
            f"--data-dir: expected a subfolder for each class in {root}, at least 2, found "
            f"{len(classes)}"
        )
    return classes


def _read_images(root: Path, classes: tuple[str, ...], size: int) -> Split:
    images, labels = [], []
    for label, name in enumerate(classes):
        found = (p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        # Names with a leading dot are what systems leave behind, such as ._0.png.
        paths = sorted(
            p for p in found if not any(n.startswith(".") for n in p.relative_to(root).parts)
        )
        if not paths:
            raise InputError(
                f"{root / name}: expected images ({' '.join(IMAGE_SUFFIXES)}), found none"
            )
        images += [_read_image(path, size) for path in paths]
        labels += [label] * len(paths)
    return Split(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
    )


def _read_image(path: Path, size: int) -> np.ndarray:
    """(size, size, 3): the shorter side resized to `size`, the centre cut out."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))
            scale = size / min(image.size)
            width, height = (max(size, round(side * scale)) for side in image.size)
            left, top = (width - size) // 2, (height - size) // 2
            resized = (
                eight_bits(image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            )
            return np.asarray(resized.crop((left, top, left + size, top + size)))
    except InputError:
        raise
    except (
        OSError,
        Image.DecompressionBombError,
        UnidentifiedImageError,
        ValueError,
        SyntaxError,
    ) as error:
        raise InputError(
            f"{path}: not a readable image ({first_line(error)}); replace or remove it"
        ) from None


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits scaled to 8, which Pillow would clip. The formats read here have no
    others of mode I.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64) * (255 / 65535)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bits")
    return image
