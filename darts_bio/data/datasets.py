"""Data sets whose images lie in memory, as one uint8 tensor.

A data set is a function `(data_dir, image_size) -> ImageData`, registered by name in `DATASETS`:

>>> DATASETS.names()[:3]
('digits', 'cifar10', 'cifar100')
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from darts_bio.bounded import open_file
from darts_bio.data import imagenet16
from darts_bio.data.batches import Split
from darts_bio.errors import InputError, first_line
from darts_bio.registry import Registry
from darts_bio.runtime import generator

DATA_DIR = Path("data")
"""Where data lie, or are downloaded to, unless --data-dir says otherwise."""

DIGITS = Path(__file__).with_name("digits.npz")
"""Images (1797, 8, 8) of values 0 to 16 and labels (1797,), both uint8; README.md beside it says
where from."""

FOLDER_SIZE = 32
"""Side in pixels of the images of a folder, unless --image-size says otherwise."""

TEST_SHARE = 0.2
"""The share of each class's images that is held out for testing, where there are no test images."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm")


@dataclass(frozen=True)
class ImageData:
    """A data set in memory.

    >>> images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    >>> split = Split(images, torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> data = ImageData(train=split[:4], test=split[4:], classes=("cat", "dog"))
    >>> data.in_channels, data.image_size
    (3, (8, 8))
    >>> data.identity().partition(", digest")[0]
    '4 training + 2 test images of 3x8x8 in 2 classes'

    Attributes:
        train: What a network is trained on.
        test: What only the result is measured on.
        classes: The names of the classes, by label.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of an image."""
        return self.train.images.shape[2], self.train.images.shape[3]

    def identity(self) -> str:
        """Return a line that is equal for equal images, labels and classes, and for no others."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(
                repr(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes()
            )
        digest.update(repr(self.classes).encode())
        size = "x".join(map(str, self.train.images.shape[1:]))
        numbers = (
            f"{len(self.train)} training + {len(self.test)} test images of {size} in "
            f"{len(self.classes)} classes"
        )
        return f"{numbers}, digest {digest.hexdigest()}"


LoadData = Callable[[Path | None, int | None], ImageData]
"""Maps --data-dir and --image-size, None where they are not given, to a data set. Raises InputError
if it cannot be read, or an option does not fit it."""

DATASETS: Registry[LoadData] = Registry("data set", hyphens=True)
"""The data sets in memory, by the name that --dataset takes."""


def load_data(
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    train_images: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Load the data set `name`.

    With `train_images` only that many of its training images are kept, drawn by `seed`. Raises
    InputError if there is no such data set, or it cannot be read.

    >>> data = load_data("digits", train_images=100)
    >>> tuple(data.train.images.shape), len(data.test), len(data.classes)
    ((100, 1, 8, 8), 359, 10)
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
    """Return the numbers of the training images that are used.

    These are all `images` in order, or `train_images` of them drawn by the seed. Raises InputError
    if the data set `name` has not so many.

    >>> drawn("digits", 5, None, seed=0).tolist(), len(drawn("digits", 5, 3, seed=0))
    ([0, 1, 2, 3, 4], 3)
    """
    if train_images is None:
        return torch.arange(images)
    if train_images > images:
        raise InputError(
            f"--train-images: expected at most {images}, all of {name}, found {train_images}"
        )
    return torch.randperm(images, generator=generator("cpu", "subset", seed))[:train_images]


def split_off(images: int, holdout: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the images that are trained on, and of those that are held out.

    The `holdout` images are drawn by the seed. Raises InputError if no image would be left.

    >>> trained, held_out = split_off(10, 3, seed=0)
    >>> len(trained), len(held_out), sorted(torch.cat([trained, held_out]).tolist())
    (7, 3, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
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
    """Raise InputError unless a data set has the types, shapes and labels that all code relies on.

    These are uint8 images (N, C, H, W), N > 0, of one size in both parts, and int64 labels (N,)
    from 0 to the number of classes - 1. Without `test` there may be no test images.

    >>> check_data(load_data("digits"), "digits")
    """
    for part, split in (("train", data.train), ("test", data.test)):
        images, labels = split.images, split.labels
        form = f"{images.dtype} of shape {tuple(images.shape)} and {labels.dtype} of shape {tuple(labels.shape)}"
        images_fit = images.dtype == torch.uint8 and images.dim() == 4
        labels_fit = labels.dtype == torch.int64 and labels.dim() == 1
        if not (images_fit and labels_fit):
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
            "int64 labels (N,) from 0 to the number of classes - 1, found "
            f"{found}; mend the function that loads them"
        )


def _keeps_its_size(name: str, image_size: int | None) -> None:
    """Raise InputError if another size is asked of a data set whose images have one."""
    if image_size is not None:
        raise InputError(
            f"--image-size: {name} keeps its own size; leave the option out, or use --dataset "
            "folder"
        )


def halves(split: Split, seed: int) -> tuple[Split, Split]:
    """Return two random halves of equal size: a search trains w on the first, alpha on the second.

    >>> split = Split(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), torch.arange(7))
    >>> [len(half) for half in halves(split, seed=0)]
    [3, 3]
    """
    order = torch.randperm(len(split), generator=generator("cpu", "halves", seed))
    middle = len(split) // 2
    return split[order[:middle]], split[order[middle : 2 * middle]]


@DATASETS.register("digits")
def digits(data_dir: Path | None, image_size: int | None) -> ImageData:
    """Load 1,797 handwritten digits, 8x8 and gray, which come with this package (UCI).

    A fixed fifth of each class is for testing. Raises InputError if a folder is named.

    >>> data = digits(None, None)
    >>> len(data.train), len(data.test), tuple(data.train.images.shape[1:])
    (1438, 359, (1, 8, 8))
    """
    if data_dir is not None:
        raise InputError(
            f"--data-dir: digits come with this package, found {data_dir}; leave the option out, or "
            "name the data that lie there by --dataset"
        )
    _keeps_its_size("digits", image_size)
    with np.load(DIGITS, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    # (N, H, W) of 0 to 16 -> (N, 1, H, W) of 0 to 255
    pixels = np.rint(images[:, None] * (255 / 16)).astype(np.uint8)
    everything = Split(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))
    train, test = stratified(everything.labels)
    return ImageData(everything[train], everything[test], tuple(map(str, range(10))))


@DATASETS.register("cifar10")
def cifar10(data_dir: Path | None, image_size: int | None) -> ImageData:
    """Load CIFAR-10: 50,000 + 10,000 photographs, 32x32, 10 classes (Krizhevsky 2009).

    They are downloaded if they are not in `data_dir`.
    """
    _keeps_its_size("cifar10", image_size)
    return _cifar("CIFAR10", data_dir)


@DATASETS.register("cifar100")
def cifar100(data_dir: Path | None, image_size: int | None) -> ImageData:
    """Load CIFAR-100: 50,000 + 10,000 photographs, 32x32, 100 classes (Krizhevsky 2009).

    They are downloaded if they are not in `data_dir`.
    """
    _keeps_its_size("cifar100", image_size)
    return _cifar("CIFAR100", data_dir)


@DATASETS.register("imagenet16-120")
def imagenet16_120(data_dir: Path | None, image_size: int | None) -> ImageData:
    """Load ImageNet16-120: 151,700 + 6,000 photographs, 16x16, 120 classes (NAS-Bench-201).

    They are read from files that NAS-Bench-201 (arXiv 2001.00326) offers and the user downloads.
    Classes are named by their numbers in these files, from 1 on.
    """
    _keeps_its_size("imagenet16-120", image_size)
    arrays = imagenet16.read(data_dir or DATA_DIR)
    train, test = (
        Split(torch.from_numpy(images), torch.from_numpy(labels)) for images, labels in arrays
    )
    return ImageData(train, test, tuple(map(str, range(1, imagenet16.CLASSES + 1))))


@DATASETS.register("folder")
def folder(data_dir: Path | None, image_size: int | None) -> ImageData:
    """Load any images: DIR/train/CLASS/*.png beside DIR/val or DIR/test, or DIR/CLASS/*.png.

    In the second case a fixed fifth of each class is for testing. Images become RGB of `image_size`
    (32 by default): resized by the shorter side, the center cut out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
    ...         path = Path(directory, name)
    ...         path.parent.mkdir(exist_ok=True)
    ...         Image.new("RGB", (20, 16)).save(path)
    ...     data = folder(Path(directory), 8)
    >>> data.classes, len(data.train), len(data.test), tuple(data.train.images.shape[1:])
    (('cat', 'dog'), 2, 2, (3, 8, 8))
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
            count = int((everything.labels == label).sum())
            if count < 2:
                raise InputError(
                    f"{root / name}: expected at least 2 images, one of them for testing, found "
                    f"{count}"
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
    """Return the indices of a fixed split: for training and, a fifth of each class, for testing.

    At least one of each class is for testing; each class has at least two members. The split does
    not depend on the seed, so that results of all seeds are measured on the same images.

    >>> train, test = stratified(torch.tensor([0] * 10 + [1] * 5))
    >>> len(train), (test < 10).tolist()
    (12, [True, True, False])
    """
    test_indices = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator("cpu", "stratified", label))
        count = max(1, round(TEST_SHARE * len(members)))
        test_indices.append(members[order[:count]])
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[torch.cat(test_indices)] = True
    return (~is_test).nonzero().squeeze(1), is_test.nonzero().squeeze(1)


def torchvision_datasets() -> Any:
    """Return the module `torchvision.datasets`; raises InputError if torchvision does not load.

    A torchvision built for another PyTorch fails at its import.
    """
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"torchvision does not fit this PyTorch {torch.__version__} ({first_line(error)}); "
            "repair it with: pip install --force-reinstall torch torchvision"
        ) from None
    return datasets


def _cifar(name: str, data_dir: Path | None) -> ImageData:
    """Load torchvision's CIFAR10 or CIFAR100, after a download if need be.

    Raises InputError if it is neither there nor can be downloaded.
    """
    data_set = getattr(torchvision_datasets(), name)
    root = data_dir or DATA_DIR
    existed = root.exists()

    def load(train: bool) -> Any:
        try:
            return data_set(root, train=train, download=False)
        except RuntimeError:  # not there, or not complete: torchvision verifies checksums
            pass
        try:
            return data_set(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            # Leave no empty folder that this attempt has made; one with part of a download stays.
            if not existed:
                with contextlib.suppress(OSError):
                    root.rmdir()
            raise InputError(
                f"{name} is neither in {root} nor can it be downloaded ({first_line(error)}): give "
                f"--data-dir DIR, where DIR holds {data_set.base_folder}, or run once where there "
                "is a network"
            ) from None

    def split(loaded: Any) -> Split:
        # (N, H, W, C) -> (N, C, H, W)
        images = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
        return Split(images, torch.tensor(loaded.targets))

    train = load(True)
    return ImageData(split(train), split(load(False)), tuple(train.classes))


def _class_folders(root: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders in `root`, hidden ones aside.

    Raises InputError if there are fewer than two.
    """
    if not root.is_dir():
        raise InputError(
            f"--data-dir: expected a folder with a subfolder for each class, found no folder {root}"
        )
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    classes = tuple(sorted(path.name for path in folders))
    if len(classes) < 2:
        raise InputError(
            f"--data-dir: expected a subfolder for each class in {root}, at least 2, found "
            f"{len(classes)}"
        )
    return classes


def _read_images(root: Path, classes: tuple[str, ...], size: int) -> Split:
    """Read the images of all class folders in `root`; raises InputError if one has none."""
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = [p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES]
        # Names with a leading dot are what systems leave behind, such as ._0.png.
        paths = sorted(
            p for p in paths if not any(n.startswith(".") for n in p.relative_to(root).parts)
        )
        if not paths:
            raise InputError(
                f"{root / name}: expected images ({' '.join(IMAGE_SUFFIXES)}), found none"
            )
        images += [_read_image(path, size) for path in paths]
        labels += [label] * len(paths)
    # (N, H, W, C) -> (N, C, H, W)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.tensor(labels))


def _read_image(path: Path, size: int) -> np.ndarray:
    """Return an image as (size, size, 3): its shorter side resized to `size`, the center cut out.

    Raises InputError if it cannot be decoded.
    """
    try:
        with bounded_images(), open_file(path) as file, Image.open(file) as image:
            image.draft("RGB", (size, size))  # a JPEG is decoded at a fraction of its size, faster
            scale = size / min(image.size)
            # Not less than `size`, whatever the rounding.
            width, height = (max(size, round(side * scale)) for side in image.size)
            left, top = (width - size) // 2, (height - size) // 2
            rgb = eight_bits(image).convert("RGB")
            resized = rgb.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(resized.crop((left, top, left + size, top + size)))
    except InputError:
        raise
    except (
        OSError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        UnidentifiedImageError,
        ValueError,
        SyntaxError,
    ) as error:
        raise InputError(
            f"{path}: not a readable image ({first_line(error)}); replace or remove it"
        ) from None


@contextlib.contextmanager
def bounded_images() -> Iterator[None]:
    """Raise `Image.DecompressionBombWarning` within for an image of more pixels than Pillow trusts.

    These are 89 million: the bytes of a small file can stand for any number. Pillow's other warnings
    are about oddities in files that it reads nevertheless, and are silenced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a gray image of 16 bits scaled to 8, where Pillow would clip it; others as they are.

    Raises ValueError for floating-point pixels, whose range nobody knows.

    >>> image = Image.fromarray(np.array([[0, 65535, 32768]], np.uint16))
    >>> np.asarray(eight_bits(image)).tolist()
    [[0, 255, 128]]
    """
    # Pillow opens some images of 16 bits in mode I (32 bits); of the formats read here no others.
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64) * (255 / 65535)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bits")
    return image
