"""How a run stands: the file status.json of its folder, which is read without PyTorch.

It holds what those who list runs cannot read elsewhere:

state        running, finished, stopped (it goes on by --resume) or dead (it ended by an error)
reason       the error, in a line
process      host, pid and beginning of the process that writes the folder
epochs       how many epochs the run has; of a search by queries, how many queries
parameters   the number of weights of the network, or of the supernet
transport    the share of the weights whose values carry the error down, in [0, 1]
data         the identity of the data
images       of a training, how many images its result is measured on; 0 if that is unknown
machine      of a training, the processor or GPU, the day and the versions

A process that was killed leaves `running` behind; whether it still runs tells `is_alive`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from darts_bio.errors import InputError, first_line
from darts_bio.storage.whole_files import write_text

STATUS_FILE = "status.json"
RUNNING, FINISHED, STOPPED, DEAD = "running", "finished", "stopped", "dead"
LONGEST_STATUS = 1 << 16
"""Bytes; a longer status file is damaged."""


class StatusFile:
    """A context that keeps a run's status.json: running from `begin` on, and at last how it ended.

    `finished` has to be set once the run has come to its end; else it was stopped. An error within
    the context is recorded, too. Nothing is written unless `begin` is called, so that a run which
    cannot go on keeps the status that it had.

    Args:
        folder: The run's folder.
        **facts: What else the file holds, as plain data.

    Raises:
        InputError: The disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     with StatusFile(Path(place), parameters=12) as status:
    ...         status.begin()
    ...         print(read_status(Path(place))["state"])
    ...         status.finished = True
    ...     print(read_status(Path(place))["state"])
    running
    finished
    """

    def __init__(self, folder: Path, **facts: Any) -> None:
        self._path, self._facts, self._begun = folder / STATUS_FILE, facts, False
        pid = os.getpid()
        self._process = {"host": socket.gethostname(), "pid": pid, "began": _began(pid)}
        self.finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._begun:
            return
        if error is None:
            self._write(FINISHED if self.finished else STOPPED)
            return
        with contextlib.suppress(InputError):  # of a full disk, which is what the error says
            self._write(DEAD, reason=first_line(error))

    def begin(self) -> None:
        """Write that the run goes on."""
        self._begun = True
        self._write(RUNNING)

    def _write(self, state: str, **reason: str) -> None:
        status = {"state": state, **reason, **self._facts, "process": self._process}
        write_text(self._path, json.dumps(status, indent=1) + "\n")


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's status.json; None if there is none.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.

    >>> read_status(Path("runs/none")) is None
    True
    """
    path = folder / STATUS_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        text = file.read(LONGEST_STATUS + 1)
    try:
        status = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not a JSON file") from None
    states = (RUNNING, FINISHED, STOPPED, DEAD)
    if not isinstance(status, dict) or status.get("state") not in states:
        raise ValueError(f"expected a state among {', '.join(states)}")
    return status


def is_alive(status: dict[str, Any]) -> bool | None:
    """Return whether the process of a status still runs; None if that cannot be told from here.

    It can on the same machine, under Linux.

    >>> is_alive({"process": {"host": socket.gethostname(), "pid": 1, "began": -1}})
    False
    >>> is_alive({"process": {"host": "elsewhere.example", "pid": 1, "began": 1}}) is None
    True
    """
    process = status.get("process")
    if not isinstance(process, dict) or process.get("host") != socket.gethostname():
        return None
    pid, began = process.get("pid"), process.get("began")
    if type(pid) is not int or type(began) is not int:
        return None
    # Another process may have got the number since; it began at another time.
    return _began(pid) == began


def _began(pid: int) -> int | None:
    """Return when a process began, in ticks since the machine did; None if it does not run.

    None too where the system does not tell.
    """
    try:
        # The name of the program, in brackets, may hold anything.
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if words[0] in (b"Z", b"X") else int(words[19])
    except (OSError, ValueError, IndexError):
        return None
