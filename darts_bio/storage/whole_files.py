"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from darts_bio.errors import InputError, first_line


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError within the context into an InputError that names the file and the way out.

    >>> with writing(Path("report.md")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    darts_bio.errors.InputError: report.md: cannot be written (No space left on device); make room \
or choose another place. Files that were written before are whole
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({first_line(error)}); make room or choose another place. "
            "Files that were written before are whole"
        ) from None


@contextlib.contextmanager
def replacing(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Lend a temporary path whose file takes the place of `path` in one step at the end.

    `before` is called right before that, once the file is on the disk. If the context raises,
    `path` stays as it was. Raises InputError if the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv"
    ...     with replacing(path) as temporary:
    ...         _ = temporary.write_text("epoch,loss")
    ...         print(path.exists())
    ...     print(path.read_text())
    False
    epoch,loss
    """
    temporary = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            yield temporary
            # On the disk before it is renamed: else a power cut could leave an empty file there.
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            before()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raise InputError if the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(Path(folder) / "report.md", "# A run")
    ...     (Path(folder) / "report.md").read_text()
    '# A run'
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
