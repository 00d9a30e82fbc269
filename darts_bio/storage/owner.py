"""Who may write into a run's folder: one process at a time.

The owner holds a lock of the operating system on the file `.lock` in the folder, which says who it
is. With the process, however it ends, the lock is gone; at an orderly end the file is, too. NFS
passes such locks on to other machines. On a file system without them what the file says counts: an
owner on this machine that has ended is passed over, one on another machine is believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from darts_bio.errors import InputError, first_line

LOCK_FILE = ".lock"
GRACE_S = 2.0
"""Seconds that a killed owner is given to be gone: a job may be started again at once."""

_held: dict[Path, int] = {}
"""The descriptors of the lock files that this process holds, by the folders they lie in."""


class _Scope:
    """The folders that one run has taken."""

    def __init__(self, first: Callable[[Path], None]) -> None:
        self.first, self.folders = first, list[Path]()


_scope: ContextVar[_Scope | None] = ContextVar("_scope", default=None)


def own(folder: Path) -> None:
    """Make this process the owner of a folder, to the end of the `owning` context it is in.

    Without such a context it is the owner to its own end. Owning a folder twice changes nothing.

    Raises:
        InputError: Another process owns the folder, or the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     with owning():
    ...         own(Path(place))
    ...         print([path.name for path in Path(place).iterdir()])
    ...     print(list(Path(place).iterdir()))
    ['.lock']
    []
    """
    place = folder.resolve()
    if place in _held:
        return
    try:
        _held[place] = _locked(folder / LOCK_FILE)
    except OSError as error:
        raise InputError(
            f"{folder / LOCK_FILE}: cannot be written ({first_line(error)}); make room or choose "
            "another place"
        ) from None
    scope = _scope.get()
    if scope is not None:
        scope.folders.append(place)
        if len(scope.folders) == 1:
            scope.first(place)


@contextlib.contextmanager
def owning(first: Callable[[Path], None] = lambda folder: None) -> Iterator[bool]:
    """Give back, at the end of the context, the folders that `own` has taken within it.

    Within another such context nothing happens: that one gives them back. Yields whether this is
    the outermost; then `first` is called with the first folder, once it is taken.
    """
    if _scope.get() is not None:
        yield False
        return
    scope = _Scope(first)
    token = _scope.set(scope)
    try:
        yield True
    finally:
        _scope.reset(token)
        for folder in scope.folders:
            file = _held.pop(folder)
            # Before it is closed: from then on the file may be that of another process.
            (folder / LOCK_FILE).unlink(missing_ok=True)
            os.close(file)


def _locked(path: Path) -> int:
    """Lock the file, and return its descriptor; raise InputError if another process has."""
    until = time.monotonic() + GRACE_S
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_owned = False
        except BlockingIOError:
            is_owned = True
        except OSError:  # the file system knows no locks
            is_owned = _is_alive(_owner(file))
        if is_owned and time.monotonic() < until:
            os.close(file)
            time.sleep(0.05)
            continue
        if is_owned:
            refusal = _refusal(path, _owner(file))
            os.close(file)
            raise refusal
        # The owner before may have removed this file since it was opened.
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)
    owner = {
        "host": platform.node(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.truncate(file, 0)
    os.pwrite(file, f"{json.dumps(owner)}\n".encode(), 0)
    return file


def _owner(file: int) -> dict[str, Any]:
    """Return who a lock file says the owner is; an empty mapping if it does not."""
    with contextlib.suppress(ValueError):
        owner = json.loads(os.pread(file, 1000, 0))
        if isinstance(owner, dict) and {"host", "process", "since"} <= owner.keys():
            return owner
    return {}


def _is_alive(owner: dict[str, Any]) -> bool:
    """Tell whether an owner may still be at work; of one on another machine that is not known."""
    if owner.get("host") != platform.node():
        return bool(owner)
    try:
        os.kill(int(owner["process"]), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # that of another user
        return True
    return True


def _refusal(path: Path, owner: dict[str, Any]) -> InputError:
    """Return the error for a folder that another process owns."""
    if not owner:  # taken in this moment
        return InputError(f"{path.parent}: another process has just begun to write there; end one")
    way = (
        "wait for its end, or end it"
        if owner["host"] == platform.node()
        else f"end it there, or, if that machine is down, delete {path}"
    )
    return InputError(
        f"{path.parent}: in use by process {owner['process']} on {owner['host']} since "
        f"{owner['since']}; {way}"
    )


def _forget() -> None:
    """Close the lock files in a process that was forked: the lock is to end with the owner."""
    for file in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
