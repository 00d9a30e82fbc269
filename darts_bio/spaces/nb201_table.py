"""Published accuracies of NAS-Bench-201's cells (arXiv 2001.00326), from a table that a user has.

A table is one of

- a JSON file `{"|op~0|+|...|": {"cifar10": 93.1, ...}, ...}`, or `{"|op~0|+|...|": 93.1, ...}` for
  a single data set;
- a CSV file whose header is `arch,cifar10,...`, with a line for each cell.

The benchmark's own file is a pickle of several GB. It is not read here, since a pickle may run any
code; the API of the benchmark writes such a table in a few lines (docs/search/nb201.md).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from darts_bio.bounded import LARGEST_TABLE, parse_csv, parse_json, read_text
from darts_bio.errors import InputError, brief
from darts_bio.spaces.genotype import Genotype
from darts_bio.spaces.nb201 import is_nb201, to_nb201_text

UNNAMED = "accuracy"
"""The name of accuracies that a table gives without a data set."""


class Nb201Table:
    r"""A table of accuracies, in per cent by data set, of the cells of NAS-Bench-201.

    >>> import pathlib, tempfile
    >>> from darts_bio.spaces import from_nb201_text
    >>> cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "table.csv")
    ...     _ = path.write_text(f"arch,cifar10,cifar100\n{cell},91.2,68.5\n")
    ...     table = Nb201Table(path)
    >>> table.accuracies(from_nb201_text(cell))
    {'cifar10': 91.2, 'cifar100': 68.5}
    """

    def __init__(self, path: Path) -> None:
        """Read the table.

        Raises:
            InputError: If the file is not one of the kinds that the top of this file describes.
        """
        self.path = path
        text = read_text(path, LARGEST_TABLE, f"--table {path}", "; expected a JSON or CSV file")
        self._rows = (
            _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_json(text, path)
        )
        # Cells in another notation would be missing for every genotype, silently.
        if not any(re.fullmatch(r"\|\S+~0\|\+\|\S+~1\|\+\|\S+~2\|", cell) for cell in self._rows):
            raise InputError(
                f"--table {path}: expected cells such as "
                "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|, found "
                f"{next(iter(self._rows))[:60]!r}"
            )

    def accuracies(self, genotype: Genotype) -> dict[str, float] | None:
        """Return the accuracies, in per cent by data set, of a genotype's operations.

        The benchmark trained all cells by backpropagation, so the genotype's rules play no part.
        None if the table does not have the cell.

        Raises:
            InputError: If the genotype is of another space.
        """
        if not is_nb201(genotype):
            raise InputError(
                f"--table {self.path}: expected a genotype of the space nb201, found "
                f"{genotype.space}"
            )
        return self._rows.get(to_nb201_text(genotype, rules=False))


def _from_json(text: str, path: Path) -> dict[str, dict[str, float]]:
    """Return cell -> data set -> accuracy; raise InputError for text that holds no such table."""
    data = parse_json(text, f"--table {path}", "; a CSV file has a name in .csv")
    if not isinstance(data, dict) or not data:
        raise InputError(f"--table {path}: expected an object of cells and their accuracies")
    rows = {}
    for cell, value in data.items():
        accuracies = value if isinstance(value, dict) else {UNNAMED: value}
        rows[cell] = {
            name: _accuracy(entry, f"--table {path}: {cell}") for name, entry in accuracies.items()
        }
    return rows


def _from_csv(text: str, path: Path) -> dict[str, dict[str, float]]:
    """Return cell -> data set -> accuracy; raise InputError for text that holds no such table."""
    lines = list(parse_csv(text, f"--table {path}"))
    if len(lines) < 2 or len(lines[0]) < 2:
        raise InputError(
            f"--table {path}: expected a header such as arch,cifar10 and a line for each cell"
        )
    names = lines[0][1:]
    rows = {}
    for line_number, (cell, *values) in enumerate(lines[1:], 2):
        if len(values) != len(names):
            raise InputError(
                f"--table {path}, line {line_number}: expected {len(names) + 1} entries, found "
                f"{len(values) + 1}"
            )
        rows[cell.strip()] = {
            name: _accuracy(value, f"--table {path}, line {line_number}")
            for name, value in zip(names, values, strict=True)
        }
    return rows


def _accuracy(value: Any, where: str) -> float:
    """Return a number or its text as an accuracy in per cent.

    Raises:
        InputError: If it is none between 0 and 100. The message begins with `where`.
    """
    try:
        number = float(value)
        if not isinstance(value, bool) and 0 <= number <= 100:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    found = value if isinstance(value, str) else brief(value)
    raise InputError(f"{where}: expected an accuracy in per cent, found {found[:40]!r}")
