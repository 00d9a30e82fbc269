"""A safe reader of the files of ImageNet16-120 (NAS-Bench-201, arXiv 2001.00326).

They are pickles that somebody downloaded, and a pickle may name any function to be called. Nothing
is called here:

1. `_NotingUnpickler` writes down, as `_Noted`, each call that makes an array or a number of NumPy's,
   and refuses every other name.
2. `_array`, `_labels` and their helpers recognize these notes and take the numbers out of them.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from darts_bio.bounded import check_pickle, open_file
from darts_bio.errors import InputError, first_line

FOLDER = "ImageNet16"
TRAIN_FILES = tuple(f"train_data_batch_{i}" for i in range(1, 11))
TEST_FILES = ("val_data",)
CLASSES = 120
LABELS_IN_FILES = 1000
"""The files hold all of ImageNet; the classes of ImageNet16-120 are the labels from 1 to 120."""
SHAPE = (3, 16, 16)
PIXELS = 3 * 16 * 16
SOURCE = "NAS-Bench-201's ImageNet16 (github.com/D-X-Y/NAS-Bench-201)"

# The names that pickles of arrays consist of. NumPy 2 moved its core from numpy.core to numpy._core;
# a pickle names the place where the NumPy that wrote it had each function.
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

MOST_INSTRUCTIONS = 2_000_000
"""The most instructions of a file's pickle; a label takes one to five, and a file has 128,117."""

Arrays = tuple[np.ndarray, np.ndarray]


def read(data_dir: Path) -> tuple[Arrays, Arrays]:
    """Return the (images, labels) to train on and those to test on.

    Images are uint8 (N, 3, 16, 16), labels int64 (N,) from 0 to 119. Raises InputError if a file in
    `data_dir`, or in its folder ImageNet16, is missing, is damaged or holds anything else.

    >>> import tempfile
    >>> content = {"data": np.zeros((2, PIXELS), np.uint8), "labels": [1, 120]}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for name in (*TRAIN_FILES, *TEST_FILES):
    ...         _ = (Path(directory) / name).write_bytes(pickle.dumps(content))
    ...     (images, labels), (_, test_labels) = read(Path(directory))
    >>> images.shape, test_labels.tolist()
    ((20, 3, 16, 16), [0, 119])
    """
    root = _folder(data_dir)
    return _read_part(root, TRAIN_FILES), _read_part(root, TEST_FILES)


def _folder(data_dir: Path) -> Path:
    """Return `data_dir` or its subfolder, whichever holds all the files; raises InputError if none.

    The message names the missing files of the folder that lacks fewer of them.
    """
    folders = (data_dir, data_dir / FOLDER)
    missing_files = [
        [name for name in (*TRAIN_FILES, *TEST_FILES) if not (folder / name).is_file()]
        for folder in folders
    ]
    missing, folder = min(zip(missing_files, folders, strict=True), key=lambda pair: len(pair[0]))
    if not missing:
        return folder
    # Where no file at all is found, either folder could have been meant.
    searched = folder if len(missing) <= len(TRAIN_FILES) else " or ".join(map(str, folders))
    names = ", ".join(missing[:3]) + (f", ... {len(missing)} in all" if missing[3:] else "")
    raise InputError(
        f"--data-dir: expected the files of {SOURCE}, found no {names} in {searched}; "
        f"download them from there and give --data-dir DIR, where DIR or DIR/{FOLDER} holds them"
    )


def _read_part(root: Path, names: tuple[str, ...]) -> Arrays:
    """Return images (N, 3, 16, 16) and labels (N,) from 0 to 119 of these files together."""
    # Each file is cut down before the next is read: all 1,281,167 images would fill 1 GB.
    parts = [_of_the_first_classes(*_read_file(root / name)) for name in names]
    images, labels = (
        np.ascontiguousarray(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)
    )
    if not len(labels):
        files = " or ".join(names)
        _refuse(root, f"an image with a label from 1 to {CLASSES} in {files}", "none")
    return images.reshape(-1, *SHAPE), labels - 1


def _of_the_first_classes(images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Return the images and labels whose labels are from 1 to 120."""
    chosen = labels <= CLASSES
    return images[chosen], labels[chosen]


def _read_file(path: Path) -> Arrays:
    """Return all images of a file, uint8 (N, 768), and labels, int64 (N,) from 1 to 1000.

    Raises InputError unless the file is a dict of just such arrays.
    """
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
    """Raise InputError about a file's content."""
    raise InputError(
        f"{path}: expected {expected}, found {found}; replace it with that of {SOURCE}"
    ) from None


@dataclass(eq=False)
class _Noted:
    """The note of a function that a pickle names, or of a call of it.

    pickle calls the note as it would the function, and gets a note of the call; the state that it
    would set on the result (an array's shape, type and bytes) is kept in `state`.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __call__(self, *arguments: Any) -> _Noted:
        return _Noted(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NotingUnpickler(pickle.Unpickler):
    """An unpickler that leaves a `_Noted` wherever an array or a number of NumPy's is to be made."""

    def __init__(self, file: Any, path: Path) -> None:
        # Python 2 wrote bytes as str; Latin-1 keeps each byte as the character of its number.
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> _Noted:
        """Return a note of the function; raises InputError if arrays of numbers do not need it."""
        if (module, name) not in ADMITTED:
            function = f"{module}.{name}"[:80]
            _refuse(
                self._path,
                "arrays of numbers alone",
                f"a pickle that asks for {function!r}, which was not executed",
            )
        return _Noted(name)


def _read_pickle(path: Path) -> Any:
    """Return what a file holds, with notes in the place of arrays; raises InputError if damaged."""
    with open_file(path) as file:
        try:
            check_pickle(file, MOST_INSTRUCTIONS, str(path))
            return _NotingUnpickler(file, path).load()
        except (InputError, OSError):
            raise
        except Exception as error:  # damaged pickles end in exceptions of any kind
            _refuse(path, "a whole pickle", f"a damaged file ({first_line(error)})")


def _array(noted: Any) -> np.ndarray:
    """Return the array that a note describes.

    Raises ValueError or TypeError if it describes none, or one of other things than numbers.
    """
    match noted:
        # Protocols to 4: an empty array, whose state is (version, shape, dtype, order, bytes).
        case _Noted("_reconstruct", _, (_, shape, dtype, bool(is_fortran), content)):
            pass
        # Protocol 5: all that in the call itself.
        case _Noted("_frombuffer", (content, dtype, shape, ("C" | "F") as order)):
            is_fortran = order == "F"
        case _:
            raise ValueError(f"{_kind(noted)} where an array belongs")
    number_type = _dtype(dtype)  # first, as arrays of other things have no bytes
    numbers = np.frombuffer(_bytes(content), number_type)
    return numbers.reshape(shape, order="F" if is_fortran else "C")


def _dtype(noted: Any) -> np.dtype:
    """Return the type of numbers that a note describes; raises ValueError if it is of none.

    The note is of a call such as dtype("u1"), whose state is (version, byte order, ...).
    """
    match noted:
        case _Noted("dtype", (str(code), *_), (_, ("<" | ">" | "|") as order, *_)):
            if re.fullmatch("[biuf][1248]", code):
                return np.dtype(order + code)
            raise ValueError(f"an array of dtype {code[:20]!r}")
    raise ValueError(f"{_kind(noted)} where a dtype belongs")


def _bytes(noted: Any) -> bytes | bytearray:
    """Return the bytes that stand in a pickle or that a note describes, else raise ValueError."""
    match noted:
        case bytes() | bytearray():
            return noted
        case str(text) | _Noted("encode", (str(text), "latin1")):  # of Python 2, and of protocol 2
            return text.encode("latin1")
    raise ValueError(f"{_kind(noted)} where bytes belong")


def _labels(noted: Any) -> np.ndarray:
    """Return labels (N,) int64 from a list or the note of an array, else raise ValueError."""
    is_list = isinstance(noted, list)
    labels = np.array([_label(item) for item in noted], np.int64) if is_list else _array(noted)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels of dtype {labels.dtype}")
    return labels.astype(np.int64)


def _label(noted: Any) -> int:
    """Return a whole number from itself or the note of a NumPy scalar, else raise ValueError."""
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
    """Name what stands in a pickle, for messages."""
    return f"{noted.name}(...)" if isinstance(noted, _Noted) else type(noted).__name__
