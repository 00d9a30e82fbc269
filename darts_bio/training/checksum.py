"""A checksum that covers every byte of a checkpoint.

PyTorch writes a checkpoint as a ZIP archive and does not look at the checksums in it when it reads
one: a flipped bit of a weight goes unnoticed. So the archive's comment, its last bytes, holds a
digest of all bytes before it. It remains an archive that `torch.load` reads.

    PK ... PK 05 06 ... <length of the comment> "darts_bio blake2b " <32 hexadecimal digits>
"""

from __future__ import annotations

import hashlib
import io

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
