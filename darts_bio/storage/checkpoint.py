"""Checkpoints: tensors and plain values under a checksum, written whole, and read without trust."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from darts_bio.bounded import check_archive
from darts_bio.errors import InputError, first_line
from darts_bio.storage.checksum import fault_of, seal
from darts_bio.storage.logs import Marks
from darts_bio.storage.whole_files import replacing

FORMAT = 2
"""The version of the layout of checkpoints; one of another version is refused."""
CHECKPOINT_FILE = "checkpoint.pt"
BEFORE_FILE = "checkpoint-before.pt"


class DamagedError(InputError):
    """A checkpoint that is not there, or not as it was written.

    >>> issubclass(DamagedError, InputError)
    True
    """


def checkpoint_of(source: Path) -> Path:
    """Return the path of a run folder's checkpoint, or `source` itself if it is a file.

    Raises:
        InputError: There is no checkpoint, or the folder holds a run for each of several seeds.

    >>> checkpoint_of(Path(__file__)).name
    'checkpoint.py'
    """
    path = source / CHECKPOINT_FILE if source.is_dir() else source
    if path.is_file():
        return path
    seeds = sorted(source.glob(f"seed-*/{CHECKPOINT_FILE}")) if source.is_dir() else []
    if seeds:
        raise InputError(
            f"{source}: holds a run for each seed; name one of them, such as {seeds[0].parent}"
        )
    raise InputError(
        f"{source}: expected the run folder of a training, or its {CHECKPOINT_FILE}, found no "
        f"{path}; a run writes it at the end of its first epoch"
    )


def write_checkpoint(
    path: Path, state: dict[str, Any], before: Callable[[], None] = lambda: None
) -> None:
    """Write a checkpoint with a checksum, whole or not at all.

    `before` is as in `replacing`. Raises InputError if the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     path, stamp = Path(place) / CHECKPOINT_FILE, {"format": FORMAT, "kind": "search"}
    ...     write_checkpoint(path, {**stamp, "config": {}, "command": "", "step": 3})
    ...     read_checkpoint(path, "search")["step"]
    3
    """
    # Through memory, since torch.save reports a disk that is full in words that differ from case to
    # case.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    seal(buffer)
    with replacing(path, before) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Return a checkpoint's content but for the lengths of logs, its tensors on the CPU.

    Its size is checked and every byte compared with the checksum first. The file holds tensors and plain values only:
    nothing in it is executed.

    Args:
        path: The file.
        kind: The kind of run that it has to be of, "search" or "train".

    Raises:
        DamagedError: The file is damaged or missing.
        InputError: It is not a checkpoint, or that of another kind of run.

    >>> read_checkpoint(Path(__file__).with_name("nowhere.pt"), "train")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    darts_bio.storage.checkpoint.DamagedError: ...nowhere.pt: not a readable checkpoint (No such \
file or directory)
    """
    return read_with_marks(path, kind)[0]


def read_with_marks(path: Path, kind: str) -> tuple[dict[str, Any], Marks]:
    """Return what `read_checkpoint` does, and how long the run's logs were. Raise as it does."""
    try:
        check_archive(path)
    except InputError as error:
        raise DamagedError(str(error)) from None
    try:
        content = path.read_bytes()
        fault = fault_of(content)
        # PyTorch reads the bytes that were checked, not the file once more.
        state = (
            None
            if fault
            else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a file that is no archive of PyTorch's fails in any way it likes
        fault = first_line(error)
    if fault:
        raise DamagedError(f"{path}: not a readable checkpoint ({fault})")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of this version of darts_bio (expected format {FORMAT})"
        )
    if state.get("kind") != kind:
        is_search = kind == "train" and state.get("kind") == "search"
        hint = "; train the genotype it found first" if is_search else ""
        raise InputError(
            f"{path}: expected the checkpoint of a {kind} run, found one of a {state.get('kind')} "
            f"run{hint}"
        )
    if not (isinstance(state.get("config"), dict) and isinstance(state.get("command"), str)):
        raise InputError(
            f"{path}: not a whole checkpoint (expected the configuration and the command of its "
            "run)"
        )
    marks: Marks = state.pop("logs", {})
    return state, marks
