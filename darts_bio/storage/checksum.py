"""A checksum that covers every byte of a checkpoint.

PyTorch writes a checkpoint as a ZIP archive and does not look at the checksums in it when it reads
one: a flipped bit of a weight goes unnoticed. So the archive's comment, its last bytes, holds a
digest of all bytes before it. It remains an archive that `torch.load` reads.

    PK ... PK 05 06 ... <length of the comment> "darts_bio blake2b " <32 hexadecimal digits>
"""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

LABEL = b"darts_bio blake2b "
"""What the comment of the archive begins with; the digest follows."""
DIGITS = 32
"""The length of a digest in hexadecimal digits."""


def digest(content: bytes | memoryview) -> str:
    """Return the digest of bytes as hexadecimal digits.

    >>> digest(b"weights")
    '873ac3c6df553eaa62331fd4ff9b521a'
    """
    return hashlib.blake2b(content, digest_size=DIGITS // 2).hexdigest()


class GrowingDigest:
    r"""The digest of a file that is only appended to; each of its bytes is read once.

    Attributes:
        length: How many bytes it covers.

    >>> growing, file = GrowingDigest(), io.BytesIO()
    >>> for line in (b"first\n", b"second\n"):
    ...     _ = file.write(line)
    ...     growing.extend(file)
    >>> growing.length, growing.text() == digest(b"first\nsecond\n")
    (13, True)
    """

    BLOCK = 1 << 20
    """Bytes that are read at a time."""

    def __init__(self) -> None:
        self._hash, self.length = hashlib.blake2b(digest_size=DIGITS // 2), 0

    def extend(self, file: BinaryIO, to: int | None = None) -> None:
        """Cover the file's bytes up to `to`, or to its end; none of a file that is shorter."""
        file.seek(self.length)
        while to is None or self.length < to:
            rest = self.BLOCK if to is None else min(self.BLOCK, to - self.length)
            content = file.read(rest)
            if not content:
                return
            self._hash.update(content)
            self.length += len(content)

    def text(self) -> str:
        """Return the digest of the bytes covered so far, as `digest` does."""
        return self._hash.hexdigest()


def seal(archive: io.BytesIO) -> None:
    """Write the digest of a ZIP archive without a comment into its comment.

    >>> import torch
    >>> buffer = io.BytesIO()
    >>> torch.save({"step": 3}, buffer)
    >>> seal(buffer)
    >>> fault_of(buffer.getvalue()) is None, torch.load(io.BytesIO(buffer.getvalue()))
    (True, {'step': 3})
    """
    archive.seek(-2, io.SEEK_END)  # an archive ends with the length of its comment
    archive.write((len(LABEL) + DIGITS).to_bytes(2, "little") + LABEL)
    with archive.getbuffer() as content:
        found = digest(content)
    archive.write(found.encode())


def fault_of(content: bytes) -> str | None:
    """Return what is wrong with the bytes of a file that `seal` wrote; None if they are as written.

    >>> fault_of(b"PK")
    'no checksum at its end: it was cut off, or an earlier version of darts_bio wrote it'
    """
    covered, written = memoryview(content)[:-DIGITS], content[-DIGITS:]
    if content[-DIGITS - len(LABEL) : -DIGITS] != LABEL:
        return "no checksum at its end: it was cut off, or an earlier version of darts_bio wrote it"
    if digest(covered).encode() != written:
        return "its checksum does not fit: it has changed since it was written"
    return None
