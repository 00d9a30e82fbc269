"""A console that may be lost: a run goes on to its end, whoever reads along."""

from __future__ import annotations

import contextlib
from typing import Any, TextIO


class UnfailingStream:
    """A text stream whose reader may go away: what cannot be written is dropped.

    The pipe may be closed (`... | head`), the disk behind a redirect full, the terminal gone, the
    stream closed. Where there is room again, what is written then arrives. All else is as the
    stream itself has it; None, which Python has for a stream that was closed before it started, is
    a stream to nowhere.

    >>> import os, sys
    >>> UnfailingStream(sys.stdout).write("here") and None
    here
    >>> UnfailingStream(None).isatty()
    False
    >>> with open(os.devnull) as unwritable:
    ...     UnfailingStream(unwritable).write("nowhere")
    7
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text if that is possible; return its length, as streams do."""
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None; lost; closed
            self._stream.write(text)  # type: ignore[union-attr]
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._stream.flush()  # type: ignore[union-attr]

    def isatty(self) -> bool:
        """Return whether the stream is a terminal that is still there."""
        with contextlib.suppress(AttributeError, OSError, ValueError):
            return self._stream.isatty()  # type: ignore[union-attr]
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
