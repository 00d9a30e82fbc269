"""Read files that anybody may have written: their kind, size, depth and number of values are bounded.

Genotypes, options, tables and checkpoints are passed around, so what stands in them is nobody's
word. A file that keeps these bounds is read in seconds and in less than a gigabyte; any other is
refused by an `InputError` before it takes more. Nothing that is read is ever executed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pickletools
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from darts_bio.errors import InputError, brief, first_line

LARGEST_GENOTYPE = 1_000_000
"""Bytes of a genotype file; a cell of eight edges has some 600."""
LARGEST_YAML = 250_000
"""Bytes of a file of options; a configuration has some 2,000, and a pasted genotype up to 100,000."""
LARGEST_EXPORT = 2_000_000
"""Bytes of the config.json of an export: a genotype, the options, and the names of the classes."""
LARGEST_WEIGHTS = 2**30
"""Bytes of the weights of an export; a network of 5 million weights with feedback has 40 million."""
LARGEST_TABLE = 16_000_000
"""Bytes of a table of accuracies; the 15,625 cells of NAS-Bench-201 with eight numbers have 6 million."""

MOST_VALUES = 10_000
"""Values in a file of options, those that an alias repeats counted each time."""
MOST_FIELDS = 200_000
"""Fields of all objects of a JSON file together."""
MOST_ROWS = 100_000
"""Lines of a CSV file."""
DEEPEST = 32
"""Levels of a file of options, one in the other."""

MOST_CELLS = 250
"""Cells of a network; building one takes some 10 ms."""
MOST_EDGES = 2_000
"""Edges of all cells of a network together."""
MOST_WEIGHTS = 2**28
"""Weights of a network's narrowest layers together; the whole network has some 20 times as many."""
MOST_NODES = 100
"""Nodes of a cell."""

LARGEST_PICKLE = 16_000_000
"""Bytes of what describes the tensors of a checkpoint; a search of DARTS' space has some 300,000."""
MOST_MEMBERS = 200_000
"""Files in a checkpoint's archive: one for each tensor, and a few more."""


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading its bytes.

    A named pipe would have the reader wait for ever, and a device may never end.

    Raises:
        OSError: The path is no regular file, or the system refuses.

    >>> open_file(Path("/dev/null"))
    Traceback (most recent call last):
    OSError: it is a device, not a file
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        raise OSError(f"it is a {kinds.get(stat.S_IFMT(mode), 'device')}, not a file")
    return path.open("rb")


def read_text(path: Path, most: int, where: str | None = None, hint: str = "") -> str:
    """Return the text of a file in UTF-8, with or without a byte-order mark.

    Args:
        path: The file.
        most: The most bytes it may have.
        where: What messages begin with; by default the path.
        hint: What the message of an unreadable file ends with.

    Raises:
        InputError: The file is larger, not regular, cannot be read, or is no text.

    >>> read_text(Path(__file__), 100)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    darts_bio.errors.InputError: ...bounded.py: expected at most 100 bytes, found more
    """
    where = str(path) if where is None else where
    try:
        with open_file(path) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise InputError(f"{where}: expected at most {most:,} bytes, found more{hint}")
        return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig").read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: cannot be read as text ({first_line(error)}){hint}") from None


class _Fields:
    """The hook of `json.loads` that makes objects: their names are distinct and their number bounded."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.count += len(pairs) + 1
        if self.count > MOST_FIELDS:
            raise InputError(f"expected at most {MOST_FIELDS:,} fields, found more")
        fields = dict(pairs)
        if len(fields) < len(pairs):
            repeated = _repeated(name for name, _ in pairs)
            raise InputError(f"the field {brief(repeated)} is given twice")
        return fields


def _repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stands there more than once, None if there is none."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def parse_json(text: str, where: str, hint: str = "") -> Any:
    """Return what a JSON text says; `where` begins a message, and `hint` ends it.

    Raises:
        InputError: The text is no JSON, is nested deeper than Python reads, has too many fields, or
            gives a field twice, of which JSON by itself would keep the last.

    >>> parse_json('{"a": [1, 2.5]}', "my file")
    {'a': [1, 2.5]}
    >>> parse_json('{"a": 1, "a": 2}', "my file")
    Traceback (most recent call last):
    darts_bio.errors.InputError: my file: the field 'a' is given twice
    """
    try:
        return json.loads(text, object_pairs_hook=_Fields())
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        reason = (
            f"line {error.lineno}, column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else first_line(error)
        )
        raise InputError(f"{where}: not a JSON file ({reason}){hint}") from None


class _BoundedLoader(yaml.SafeLoader):
    """YAML's safe loader, which counts values, and refuses a repeated key where YAML keeps the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values, self._depth = 0, 0
        self._sizes: dict[int, int] = {}  # how many values each node stands for, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        before, is_alias = self._values, self.check_event(yaml.AliasEvent)
        self._values += 1
        self._depth += 1
        self._check()
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:  # of what has no size yet, the alias lies within it and repeats it for ever
            self._values += self._sizes.get(id(node), MOST_VALUES)
            self._check()
        else:
            self._sizes[id(node)] = self._values - before
        return node

    def _check(self) -> None:
        if self._values > MOST_VALUES:
            raise yaml.YAMLError(f"expected at most {MOST_VALUES:,} values, found more")
        if self._depth > DEEPEST:
            raise yaml.YAMLError(f"expected at most {DEEPEST} levels, found more")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = _repeated(keys)
        if repeated is not None:
            raise yaml.YAMLError(f"{repeated[:80]} is given twice")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    r"""Return what a YAML text says, in plain Python values; `where` begins a message.

    Raises:
        InputError: The text is no YAML of plain values, gives a key twice, is nested too deep, or has
            too many values, those that its aliases repeat counted each time.

    >>> parse_yaml("a: &b [1, 2]\nc: *b", "my file")
    {'a': [1, 2], 'c': [1, 2]}
    >>> parse_yaml("a: 1\na: 2", "my file")
    Traceback (most recent call last):
    darts_bio.errors.InputError: my file: not a YAML file (a is given twice)
    """
    try:
        return yaml.load(text, _BoundedLoader)
    # A ValueError is raised for a date or number that does not exist, such as 2026-13-01.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{where}: not a YAML file ({' '.join(str(error).split())[:200]})"
        ) from None


def parse_csv(text: str, where: str) -> Iterator[list[str]]:
    r"""Yield the lines of a CSV text as lists of their entries, blank lines left out.

    `where` begins a message.

    Raises:
        InputError: The text has too many lines, or is no CSV.

    >>> list(parse_csv("arch,cifar10\n\na,90.5\n", "my file"))
    [['arch', 'cifar10'], ['a', '90.5']]
    """
    try:
        for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
            if number > MOST_ROWS:
                raise InputError(f"{where}: expected at most {MOST_ROWS:,} lines, found more")
            if row:
                yield row
    except csv.Error as error:
        raise InputError(f"{where}: not a CSV file ({first_line(error)})") from None


def check_archive(path: Path) -> None:
    """Check that a checkpoint is an archive which holds no more than its own size, and not too much.

    `torch.save` stores tensors as they are. A member that is compressed may unpack to any size, and
    so may members that share bytes, so both are refused; so are a description of the tensors that is
    out of proportion, and numbers in it that make a reader reserve memory. The tensors are not read.

    Raises:
        InputError: The file cannot be read, or is no archive of this kind. The message names it.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "checkpoint.pt")
    ...     torch.save({"w": torch.zeros(3)}, path)
    ...     check_archive(path)
    """
    expected = (
        f"{path}: not a readable checkpoint: expected an archive as torch.save writes it, found"
    )
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            members = zipfile.ZipFile(file).infolist()
    except OSError as error:
        raise InputError(f"{path}: not a readable checkpoint ({first_line(error)})") from None
    except Exception as error:  # damaged bytes fail in any way that a reader of them can
        raise InputError(f"{expected} another file ({first_line(error)})") from None
    if len(members) > MOST_MEMBERS:
        raise InputError(f"{expected} {len(members):,} files in it, more than {MOST_MEMBERS:,}")
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise InputError(f"{expected} {brief(packed[0])} compressed in it")
    unpacked = sum(max(member.file_size, member.compress_size) for member in members)
    if unpacked > size:
        raise InputError(f"{expected} {unpacked:,} bytes described in a file of {size:,}")
    for member in members:
        if member.filename.endswith(".pkl") and member.file_size > LARGEST_PICKLE:
            raise InputError(
                f"{expected} {member.file_size:,} bytes of {brief(member.filename)} in it, more than "
                f"{LARGEST_PICKLE:,}"
            )


def check_pickle(file: IO[bytes], most: int, where: str) -> None:
    r"""Check that the pickle in a file makes its reader reserve no memory but for what it holds.

    Python's reader keeps places for values by their numbers, which a pickle chooses: the number
    4,000,000,000 takes 32 GB. The file is left at its beginning; that it is damaged is for its reader
    to say. `where` begins a message.

    Raises:
        InputError: The pickle has more than `most` instructions, or numbers a value higher than it
            has instructions.

    >>> check_pickle(io.BytesIO(b"N" + b"r\xff\xff\xff\x0f" + b"."), 1000, "my file")
    Traceback (most recent call last):
    darts_bio.errors.InputError: my file: expected values numbered in turn, found number 268,435,455 as instruction 2
    """
    fault = None
    with contextlib.suppress(ValueError):  # of a damaged pickle
        for count, (operation, argument, _) in enumerate(pickletools.genops(file), 1):
            if count > most:
                fault = f"at most {most:,} instructions, found more"
            elif operation.name.endswith("PUT") and (argument or 0) > count:
                fault = (
                    f"values numbered in turn, found number {argument:,} as instruction {count:,}"
                )
            if fault is not None:
                break
    if fault is not None:
        raise InputError(f"{where}: expected {fault}")
    file.seek(0)
