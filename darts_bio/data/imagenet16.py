"""The files of ImageNet16-120 (NAS-Bench-201, arXiv 2001.00326), read without running anything they
ask for.

They are pickles that somebody downloaded, and a pickle may name any function to be called. Here
each call is only noted; the numbers are then taken out of the notes that say "an array", and every
other name is refused.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from darts_bio.errors import InputError, first_line

FOLDER = "ImageNet16"
TRAIN_FILES = tuple(f"train_data_batch_{i}" for i in range(1, 11))
TEST_FILES = ("val_data",)
CLASSES = 120
LABELS_IN_FILES = 1000
SHAPE = (3, 16, 16)
PIXELS = 3 * 16 * 16
SOURCE = "NAS-Bench-201's ImageNet16 (github.com/D-X-Y/NAS-Bench-201)"

# NumPy 2 moved its core; a pickle names the place where the NumPy that wrote it had each function.
ADMITTED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("_codecs", "encode"),
    ("codecs", "encode"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}

Arrays = tuple[np.ndarray, np.ndarray]


def read(data_dir: Path) -> tuple[Arrays, Arrays]:
    """(images, labels) to train on and to test on: uint8 (N, 3, 16, 16) and int64 (N,) from 0 to
    119.

    Raises InputError if a file is missing, is damaged or holds anything else.
    """
    root = _folder(data_dir)
    return _read_part(root, TRAIN_FILES), _read_part(root, TEST_FILES)


def _folder(data_dir: Path) -> Path:
    """`data_dir` or its subfolder, whichever holds all the files."""
    places = (data_dir, data_dir / FOLDER)
    lacking = [
        [name for name in (*TRAIN_FILES, *TEST_FILES) if not (place / name).is_file()]
        for place in places
    ]
    missing, place = min(zip(lacking, places, strict=True), key=lambda found: len(found[0]))
    if not missing:
        return place
    where = place if len(missing) <= len(TRAIN_FILES) else " or ".join(map(str, places))
    raise InputError(
        f"--data-dir: expected the files of {SOURCE}, found no {', '.join(missing)} in {where}; "
        "download them from "
        f"there and give --data-dir DIR, where DIR or DIR/{FOLDER} holds them"
    )


def _read_part(root: Path, names: tuple[str, ...]) -> Arrays:
    # Each file is cut down before the next is read: all 1,281,167 images would fill 1 GB.
    parts = [_of_the_first_classes(*_read_file(root / name)) for name in names]
    images, labels = (
        np.ascontiguousarray(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)
    )
    if not len(labels):
        where = " or ".join(names)
        _refuse(root, f"an image with a label from 1 to {CLASSES} in {where}", "none")
    return images.reshape(-1, *SHAPE), labels - 1


def _of_the_first_classes(images: np.ndarray, labels: np.ndarray) -> Arrays:
    chosen = labels <= CLASSES
    return images[chosen], labels[chosen]


def _read_file(path: Path) -> Arrays:
    """All its images, uint8 (N, 768), and labels, int64 (N,) from 1 to 1000."""
    content = _read_pickle(path)
    if not isinstance(content, dict) or not {"data", "labels"} <= content.keys():
        keys = [key for key in content if isinstance(key, str)] if isinstance(content, dict) else []
        found = f"a {type(content).__name__} with the keys {keys}"[:100] if keys else _kind(content)
        _refuse(path, "a dict with the keys 'data' and 'labels'", found)
    try:
        images, labels = _array(content["data"]), _labels(content["labels"])
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        _refuse(path, "arrays of numbers", first_line(error))
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != PIXELS:
        _refuse(path, f"data of uint8 (N, {PIXELS})", f"{images.dtype} {images.shape}")
    if labels.shape != images.shape[:1]:
        _refuse(
            path, f"{len(images)} labels, one for each image", f"labels of shape {labels.shape}"
        )
    if len(labels) and not 1 <= labels.min() <= labels.max() <= LABELS_IN_FILES:
        _refuse(
            path,
            f"labels from 1 to {LABELS_IN_FILES}",
            f"labels from {labels.min()} to {labels.max()}",
        )
    return images, labels


def _refuse(path: Path, expected: str, found: str) -> NoReturn:
    raise InputError(
        f"{path}: expected {expected}, found {found}; replace it with that of {SOURCE}"
    ) from None


@dataclass(eq=False)
class _Noted:
    """A function that a pickle names, or a call of it with the state it sets afterwards."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __call__(self, *arguments: Any) -> _Noted:
        return _Noted(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NotingUnpickler(pickle.Unpickler):
    """Leaves a `_Noted` wherever an array or a number of NumPy's is to be made. Raises InputError
    for other names.
    """

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(
            file, encoding="latin1"
        )  # Python 2 wrote bytes as str, which this keeps one to one
        self._path = path

    def find_class(self, module: str, name: str) -> _Noted:
        if (module, name) not in ADMITTED:
            asked = f"{module}.{name}"[:80]
            _refuse(
                self._path,
                "arrays of numbers alone",
                f"a pickle that asks for {asked!r}, which was not executed",
            )
        return _Noted(name)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _NotingUnpickler(file, path).load()
        except (InputError, OSError):
            raise
        except Exception as error:  # damaged pickles end in exceptions of any kind
            _refuse(path, "a whole pickle", f"a damaged file ({first_line(error)})")


def _array(noted: Any) -> np.ndarray:
    """The array that was to be made. Raises ValueError or TypeError if it is none of plain
    numbers.
    """
    match noted:
        case _Noted("_reconstruct", _, (_, shape, dtype, bool(by_columns), content)):
            pass
        case _Noted("_frombuffer", (content, dtype, shape, ("C" | "F") as order)):
            by_columns = order == "F"
        case _:
            raise ValueError(f"{_kind(noted)} where an array belongs")
    numbers = _dtype(dtype)  # first, as arrays of other things have no bytes
    return np.frombuffer(_bytes(content), numbers).reshape(shape, order="F" if by_columns else "C")


def _dtype(noted: Any) -> np.dtype:
    match noted:
        case _Noted("dtype", (str(code), *_), (_, ("<" | ">" | "|") as order, *_)):
            if re.fullmatch("[biuf][1248]", code):
                return np.dtype(order + code)
            raise ValueError(f"an array of dtype {code[:20]!r}")
    raise ValueError(f"{_kind(noted)} where a dtype belongs")


def _bytes(noted: Any) -> bytes | bytearray:
    match noted:
        case bytes() | bytearray():
            return noted
        case str(text) | _Noted("encode", (str(text), "latin1")):  # of Python 2, and of protocol 2
            return text.encode("latin1")
    raise ValueError(f"{_kind(noted)} where bytes belong")


def _labels(noted: Any) -> np.ndarray:
    labels = (
        np.array([_label(x) for x in noted], np.int64) if isinstance(noted, list) else _array(noted)
    )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels of dtype {labels.dtype}")
    return labels.astype(np.int64)


def _label(noted: Any) -> int:
    match noted:
        case bool():
            pass
        case int():
            return noted
        case _Noted("scalar", (dtype, content)):
            number = np.frombuffer(_bytes(content), _dtype(dtype))
            if number.size == 1 and number.dtype.kind in "iu":
                return int(number[0])
    raise ValueError(f"{_kind(noted)} among the labels")


def _kind(noted: Any) -> str:
    return f"{noted.name}(...)" if isinstance(noted, _Noted) else type(noted).__name__
