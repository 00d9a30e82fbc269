"""Read the numbers of a run, metrics.jsonl, from its end, without PyTorch and in little memory.

A file may be cut off, damaged or hold millions of records. Lines that are no records are passed
over, and no more than a block of the file is held at a time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 16
"""Bytes that are read at a time."""
LONGEST_LINE = 1 << 20
"""Bytes; a longer line is no record."""
EPOCH_EVENT = re.compile(rb'"event"\s*:\s*"epoch"')
"""What the line of an epoch's numbers holds, and no other."""


def lines_from_end(path: Path) -> Iterator[bytes]:
    r"""Yield the lines of a file that are not blank, last to first; b"" for one that is too long.

    Raises OSError if the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     _ = path.write_bytes(b"first\nsecond\n\nthird")
    ...     list(lines_from_end(path))
    [b'third', b'second', b'first']
    """
    with path.open("rb") as file:
        place = file.seek(0, os.SEEK_END)
        rest, too_long = b"", False  # of a line whose beginning has not been read yet
        while place > 0:
            size = min(BLOCK, place)
            place -= size
            file.seek(place)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            if lines and too_long:
                lines.pop()
                too_long = False
                yield b""
            yield from filter(bytes.strip, reversed(lines))
            if len(rest) > LONGEST_LINE:
                rest, too_long = b"", True
        if too_long or rest.strip():
            yield b"" if too_long else rest


def last_record(path: Path) -> dict[str, Any] | None:
    r"""Return the last record of a file of records; None if there is none.

    One line at the end that is no record was cut off by a crash, and is passed over.

    Raises:
        ValueError: The two last lines are no records, or the only one.
        OSError: The file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     _ = path.write_text('{"event": "record", "step": 1, "epoch": 1}\n{"event": "rec')
    ...     last_record(path)
    {'event': 'record', 'step': 1, 'epoch': 1}
    """
    bad = 0
    for line in lines_from_end(path):
        record = _record(line)
        if record is not None:
            return record
        bad += 1
        if bad == 2:
            break
    if bad:
        raise ValueError("its last lines are no records")
    return None


def epochs_from_end(path: Path) -> Iterator[dict[str, Any]]:
    r"""Yield the records of epochs, last to first. Raise OSError if the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     _ = path.write_text('{"event": "epoch", "step": 2, "epoch": 1}\n{"event": "record"}\n')
    ...     list(epochs_from_end(path))
    [{'event': 'epoch', 'step': 2, 'epoch': 1}]
    """
    for line in lines_from_end(path):
        # The search is many times faster than reading a record, of which an epoch may have many.
        record = _record(line) if EPOCH_EVENT.search(line) else None
        if record is not None:
            yield record


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        return None
    counts = (
        [record.get(name) for name in ("step", "epoch")] if isinstance(record, dict) else [None]
    )
    return record if all(type(count) is int for count in counts) else None
