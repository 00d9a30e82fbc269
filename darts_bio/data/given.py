"""Images that a user hands over in Python, brought into the form of this package's data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_bio.data.batches import Split
from darts_bio.data.datasets import DATASETS, ImageData, check_data
from darts_bio.errors import InputError, first_line

GIVEN = "given"
"""The name of such a data set in configurations."""


@DATASETS.register(GIVEN, listed=False)
def given(data_dir: Any, image_size: Any) -> ImageData:
    """Refuse to load images that were handed over in Python: a command line has none of them.

    The name is registered so that the configuration of such a run can be read; `image_data` is what
    makes the data set. Raises InputError always.
    """
    raise InputError(
        "data set given: the images of this run were handed over in Python; go on with it, or "
        "measure it, there, by darts_bio.search, train, align or attack with the same images "
        "(dataset=..., test=...)"
    )


def image_data(train: Any, test: Any = None) -> ImageData:
    """Make a data set of images and labels.

    Args:
        train: A pair (images, labels) or a map-style dataset of (image, label) pairs; an
            `ImageData` is returned as it is, and has its own test images. Images are all of one size: tensors or arrays
            (N, C, H, W), or of each sample (C, H, W); a sample's NumPy array or PIL image is
            (H, W, C) or (H, W). Values are bytes from 0 to 255, or floats from 0 to 1, which are
            rounded to bytes. Labels are whole numbers from 0. Names of classes are the dataset's
            `classes`, where it has such.
        test: The same; without it there are no images to measure a result on.

    Raises:
        InputError: For anything else.

    >>> images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    >>> data = image_data((images, labels))
    >>> tuple(data.train.images.shape), data.classes, len(data.test)
    ((8, 1, 4, 4), ('0', '1'), 0)
    """
    if isinstance(train, ImageData):
        if test is not None:
            raise InputError(
                "test: expected nothing beside an ImageData, which has its own test images, found a "
                f"{type(test).__name__}"
            )
        return train
    train_split = _split(train, "dataset")
    test_split = train_split[:0] if test is None else _split(test, "test")
    classes_of_source = getattr(train, "classes", None)
    is_named = isinstance(classes_of_source, Iterable) and not isinstance(classes_of_source, str)
    names = tuple(map(str, classes_of_source)) if is_named else ()  # type: ignore[arg-type]
    largest = int(train_split.labels.max()) if len(train_split) else -1
    classes = names or tuple(map(str, range(largest + 1)))
    absent = sorted(set(range(len(classes))) - set(train_split.labels.tolist()))
    # A named class may be without images; a number without images is rather a mistake.
    if len(classes) < 2 or (absent and not names):
        found = f"none of class {absent[0]}" if absent else f"{len(classes)} class"
        raise InputError(
            "dataset: expected labels from 0 on, of 2 classes or more, each of them there; found "
            f"{found}"
        )
    if len(test_split) and int(test_split.labels.max()) >= len(classes):
        raise InputError(
            f"test: expected labels from 0 to {len(classes) - 1}, as in `dataset`, found "
            f"{int(test_split.labels.max())}"
        )
    if len(test_split) and test_split.images.shape[1:] != train_split.images.shape[1:]:
        raise InputError(
            f"test: expected images of {tuple(train_split.images.shape[1:])} "
            "(channels, height, width), as in `dataset`, found "
            f"{tuple(test_split.images.shape[1:])}"
        )
    data = ImageData(train_split, test_split, classes)
    check_data(data, GIVEN, test=test is not None)
    return data


def _split(source: Any, name: str) -> Split:
    """Return a pair (images, labels) or a map-style dataset as images (N, C, H, W) uint8.

    Raises InputError, which calls the argument `name`, for anything else.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2:
        images, labels = _tensor(source[0], f"{name}: images"), _whole(source[1], name)
        if images.dim() != 4 or len(images) != len(labels):
            raise InputError(
                f"{name}: expected images (N, C, H, W) and as many labels (N,), found "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        return Split(_bytes(images, name), labels)
    if isinstance(source, (Tensor, np.ndarray)):
        raise InputError(
            f"{name}: expected a pair (images, labels), found {type(source).__name__} alone"
        )
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if not indexed or isinstance(source, Mapping):
        raise InputError(
            f"{name}: expected the name of a data set, a pair (images, labels) or a map-style "
            f"dataset, found {type(source).__name__}"
        )
    samples = [source[i] for i in range(len(source))]
    if not all(isinstance(sample, (tuple, list)) and len(sample) == 2 for sample in samples):
        raise InputError(
            f"{name}: expected samples (image, label), found "
            f"{type(samples[0]).__name__ if samples else 'none'}"
        )
    each = [_sample(image, name) for image, _ in samples]  # (C, H, W)
    if len({image.shape for image in each}) != 1:
        shapes = sorted({tuple(image.shape) for image in each})
        raise InputError(
            f"{name}: expected images of one size, found {shapes[:4]}; resize them first"
        )
    images = _bytes(torch.stack(each), name)
    return Split(images, _whole([label for _, label in samples], name))


def _sample(image: Any, name: str) -> Tensor:
    """Lay one image out as (C, H, W); raise InputError, which calls the argument `name`, for others."""
    if isinstance(image, Tensor):
        pixels = _tensor(image, f"{name}: images")
    else:
        if getattr(image, "mode", None) in ("P", "PA"):
            image = image.convert("RGB")  # its values are places in a palette
        pixels = _tensor(np.array(image), f"{name}: images")
        # PIL images and arrays have channels last, or none.
        if pixels.dim() == 2:
            return pixels.unsqueeze(0)
        if pixels.dim() == 3 and pixels.shape[0] <= 4 < pixels.shape[2]:
            raise InputError(
                f"{name}: expected arrays (H, W, C) as images of samples, found "
                f"{tuple(pixels.shape)}, whose channels seem to stand first; hand over "
                "torch.from_numpy(image), or image.transpose(1, 2, 0)"
            )
        pixels = pixels.permute(2, 0, 1) if pixels.dim() == 3 else pixels
    if pixels.dim() != 3:
        raise InputError(
            f"{name}: expected samples whose images are tensors (C, H, W), or arrays (H, W, C) or "
            f"(H, W), found {tuple(pixels.shape)}"
        )
    return pixels


def _bytes(images: Tensor, name: str) -> Tensor:
    """Return images (N, C, H, W) of bytes, or of floats from 0 to 1, as uint8.

    Raises InputError for other types and values, and for images whose channels seem to be last.
    """
    if images.shape[1] > 4 >= images.shape[3]:
        raise InputError(
            f"{name}: expected images (N, C, H, W), found {tuple(images.shape)}, whose channels "
            "seem to stand last; hand over images.permute(0, 3, 1, 2), of an array "
            "images.transpose(0, 3, 1, 2)"
        )
    if images.dtype == torch.uint8:
        return images.contiguous()
    # Written so that "not a number" fails.
    if not (images.is_floating_point() and len(images) and images.min() >= 0 and images.max() <= 1):
        # As float64, since not every type is ordered.
        ends = torch.aminmax(images.double()) if images.numel() else ()
        low, high = (f"{end.item():g}" for end in ends) if ends else ("-", "-")
        raise InputError(
            f"{name}: expected images of bytes, or of floats from 0 to 1, found {images.dtype} "
            f"from {low} to {high}; hand them over before they are normalized"
        )
    return (images * 255).round().to(torch.uint8).contiguous()


def _whole(labels: Any, name: str) -> Tensor:
    """Return labels (N,) as int64; raises InputError if they are not whole numbers from 0 on."""
    values = _tensor(labels, f"{name}: labels")
    if values.is_floating_point() or values.dim() != 1:
        raise InputError(
            f"{name}: expected labels (N,) of whole numbers, found {values.dtype} "
            f"{tuple(values.shape)}"
        )
    values = values.long()
    if len(values) and values.min() < 0:
        raise InputError(f"{name}: expected labels from 0 on, found {values.min().item()}")
    return values


def _tensor(values: Any, what: str) -> Tensor:
    """Return values as a tensor on the CPU, without its history; raise InputError for no numbers."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        array = np.asarray(values)
        if not (array.size and isinstance(array.flat[0], str)):
            return torch.as_tensor(array)
        found = "text"
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"what is none ({first_line(error)})"
    raise InputError(
        f"{what}: expected numbers, found {found}; labels are the numbers of classes, from 0 on: of "
        "text, classes, labels = numpy.unique(labels, return_inverse=True)"
    )
