"""The logs of a run folder: files that a run only appends to.

They are its records (metrics.jsonl, evaluations.jsonl, alignment-epochs.jsonl, alpha.jsonl), one JSON
object a line, and TensorBoard's events. A checkpoint keeps how long each log was when it was saved,
and a run that goes on from it cuts them back to that length. What was written after the checkpoint is written
again by the steps that are made again, so each record is there exactly once.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from darts_bio.bounded import open_file
from darts_bio.errors import InputError, first_line
from darts_bio.storage.checksum import GrowingDigest

METRICS_FILE = "metrics.jsonl"
"""The numbers of every run."""
EVALUATIONS_FILE = "evaluations.jsonl"
"""The queries of a search without a supernet."""
EPOCHS_FILE = "alignment-epochs.jsonl"
"""The alignments that a training measured (`--alignment-every`)."""
ALPHA_FILE = "alpha.jsonl"
"""The shares of alpha after each epoch of a search."""
MOST_STEPS = 1 << 63
"""No run has so many steps."""
RECORDS = (METRICS_FILE, EVALUATIONS_FILE, EPOCHS_FILE, ALPHA_FILE)
EVENTS = "events.out.tfevents.*"
"""The pattern of the names of TensorBoard's files."""

Marks = dict[str, dict[str, Any]]
"""By a log's name its length in `bytes`, and of records the `digest` of these bytes."""


def marks_of(folder: Path, digests: dict[str, GrowingDigest] | None = None) -> Marks:
    """Return the lengths of a folder's logs, once all of them is on the disk.

    `digests`, by name, are those of an earlier call; what they cover is not read again. They have to
    be dropped where a log is cut back.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     _ = Path(place, METRICS_FILE).write_bytes(b'{"step": 1}')
    ...     marks_of(Path(place))[METRICS_FILE]["bytes"]
    11
    """
    marks: Marks = {}
    digests = {} if digests is None else digests
    for path in _logs(folder):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            marks[path.name] = {"bytes": file.seek(0, os.SEEK_END)}
            if path.name in RECORDS:
                growing = digests.setdefault(path.name, GrowingDigest())
                if growing.length > marks[path.name]["bytes"]:
                    # Somebody has put another file there.
                    growing = digests[path.name] = GrowingDigest()
                growing.extend(file, marks[path.name]["bytes"])
                marks[path.name]["digest"] = growing.text()
    return marks


def _logs(folder: Path) -> list[Path]:
    """Return the paths of the logs that are there."""
    records = [folder / name for name in RECORDS if (folder / name).exists()]
    return records + sorted(folder.glob(EVENTS))


def missing_logs(folder: Path, marks: Marks) -> list[str]:
    """Return the names of records that have gone since a checkpoint with these `marks`.

    Raises:
        InputError: Records are there and do not begin as they did then.
    """
    missing = []
    for name in RECORDS:
        path, expected = folder / name, marks.get(name, {"bytes": 0})
        if expected["bytes"] == 0:
            continue
        if not path.exists():
            missing.append(name)
            continue
        growing = GrowingDigest()
        with path.open("rb") as file:
            growing.extend(file, expected["bytes"])
        if growing.text() != expected["digest"]:
            shorter = growing.length < expected["bytes"]
            raise InputError(
                f"{path}: expected the {expected['bytes']:,} bytes that the run wrote before its "
                f"checkpoint, found {f'only {growing.length:,}' if shorter else 'others'}; put the "
                "file back, or move it away to go on without these records"
            )
    return missing


def cut_back(folder: Path, marks: Marks) -> None:
    """Cut a folder's logs back to what they were when a checkpoint with these `marks` was saved.

    Logs that were begun later are removed.
    """
    for path in _logs(folder):
        length = marks.get(path.name, {"bytes": 0})["bytes"]
        if length == 0:
            path.unlink()
        elif path.stat().st_size > length:
            os.truncate(path, length)


def read_records(path: Path, step: int | None = None) -> list[dict[str, Any]]:
    r"""Return the records of a log; none if there is no such file.

    With a `step` only those up to it. A last line without an end is left out: a crash cut it off,
    so it was written after the checkpoint.

    Raises:
        InputError: It is no regular file, or a line is no JSON object with a step.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / METRICS_FILE
    ...     _ = path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    ...     read_records(path)
    [{'step': 1, 'loss': 2.5}]
    """
    content = b""
    if path.exists():
        try:
            with open_file(path) as file:
                content = file.read()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({first_line(error)}); put back the file that the run wrote"
            ) from None
    lines = content.split(b"\n")[:-1]  # what follows the last end of a line was cut off
    records = []
    for number, line in enumerate(lines, 1):
        record = None
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
        record = record if isinstance(record, dict) else {}
        step_of_record = record.get("step")
        if type(step_of_record) is not int or abs(step_of_record) >= MOST_STEPS:
            raise InputError(
                f"{path}: line {number}: expected a record, a JSON object with a step, found "
                f"{line[:40]!r}; put back the file that the run wrote"
            )
        records.append(record)
    return [record for record in records if step is None or record["step"] <= step]


def read_metrics(folder: Path, step: int | None = None) -> list[dict[str, Any]]:
    r"""Return the records of a run folder's metrics.jsonl; none if there is no such file.

    A record holds its `event`, a text, and numbers. With a `step` only those up to it are returned.

    Raises:
        InputError: A line is no such record.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     _ = Path(place, METRICS_FILE).write_text('{"event": "epoch", "step": 1, "loss": 2.5}\n')
    ...     read_metrics(Path(place))
    [{'event': 'epoch', 'step': 1, 'loss': 2.5}]
    """
    records = read_records(folder / METRICS_FILE, step)
    for record in records:
        kinds = {name: type(value) for name, value in record.items()}
        if kinds.pop("event", None) is not str:
            raise _no_metrics(folder, record["step"], "event", record.get("event"), "a text")
        for name, kind in kinds.items():
            if kind not in (int, float):
                raise _no_metrics(folder, record["step"], name, record[name], "a number")
    return records


def _no_metrics(folder: Path, step: int, name: str, value: Any, kind: str) -> InputError:
    """Return the error for a value in metrics.jsonl that is of another kind than a run writes."""
    return InputError(
        f"{folder / METRICS_FILE}: a record of step {step}: {str(name)[:40]}: expected {kind}, found "
        f"{repr(value)[:40]}; put back the file that the run wrote"
    )
